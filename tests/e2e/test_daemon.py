"""kv-compressd from outside, with stock generated stubs: what it is for, and what it refuses."""

import math

import grpc
import numpy as np
import pytest
from daemon_helpers import MIB, SERVICE, Feed, failure, failure_of_raw, random_array
from safetensors.numpy import load_file

# --- what it is for ---------------------------------------------------------------------------------------------------


def test_round_trip_of_a_real_cache(client, sample):
    tensors = load_file(sample)
    frames, reports, stream = client.compress(tensors)
    assert list(frames) == list(reports)
    assert stream.tensors == len(tensors)
    assert stream.tensor_bytes == sum(array.nbytes for array in tensors.values())
    assert stream.frame_bytes == sum(len(frame) for frame in frames.values())
    assert stream.tensor_bytes / stream.frame_bytes > 3.7
    arrays, back, totals = client.decompress(frames)
    assert list(arrays) == list(frames)
    assert totals.tensors == len(tensors) and totals.frame_bytes == stream.frame_bytes
    worst, rmses = (math.inf, ""), []
    for name, original in tensors.items():
        assert arrays[name].shape == original.shape and arrays[name].dtype == original.dtype
        error = original.astype(np.float64) - arrays[name].astype(np.float64)
        rmse = np.sqrt(np.mean(error**2))
        report = reports[name]
        assert report.codec == back[name].codec == "int4(group=64)"
        assert report.elements == original.size and report.tensor_bytes == original.nbytes
        assert report.frame_bytes == len(frames[name])
        assert report.quality.rmse == pytest.approx(rmse, rel=1e-6)
        assert report.quality.max_error == pytest.approx(np.max(np.abs(error)), rel=1e-6)
        assert report.sums.sum_error_squares == pytest.approx(np.sum(error**2), rel=1e-6)
        assert not back[name].HasField("quality")
        rmses.append(rmse)
        judged = report.quality.token_snr_db if name.endswith("_key") else report.quality.snr_db
        worst = min(worst, (judged, name))
    assert stream.quality.rmse == pytest.approx(np.mean(rmses), rel=1e-6)
    assert stream.worst_tensor == worst[1]
    assert not totals.HasField("quality")


@pytest.mark.parametrize("chunk", [1, 61, 4096, 65537, MIB, 3 * MIB + 5])
def test_chunk_sizes_do_not_matter(client, chunk):
    size = 1000 if chunk == 1 else 20_000 if chunk == 61 else 2_000_003
    tensors = {"t": random_array(size, np.float32)}
    expected = client.compress(tensors)[0]
    frames = client.compress(tensors, chunk)[0]
    assert frames == expected
    arrays, _, _ = client.decompress(frames, chunk)
    assert arrays["t"].shape == (size,)
    np.testing.assert_array_equal(arrays["t"], client.decompress(expected)[0]["t"])


def test_lossless_codec_gives_every_bit_back(client):
    bits = np.random.default_rng(2).integers(0, 1 << 16, 300_000, dtype=np.uint16)
    tensors = {"t": bits.view(np.float16)}
    frames, reports, stream = client.compress(tensors, codec="raw|zstd(level=1)")
    assert not reports["t"].quality.HasField("snr_db") and reports["t"].quality.level == "EXCELLENT"
    assert not stream.quality.HasField("snr_db") and stream.worst_tensor == ""
    np.testing.assert_array_equal(client.decompress(frames)[0]["t"].view(np.uint16), bits)


def test_many_tensors_a_stream_in_order(client):
    rng = np.random.default_rng(3)
    tensors = {f"layer_{i}_key": random_array((1, 2, int(rng.integers(1, 300)), 64), seed=i) for i in range(300)}
    tensors["empty"] = np.zeros((4, 0, 8), np.float16)
    tensors["scalar"] = np.array(1.5, np.float32)
    frames, reports, stream = client.compress(tensors)
    assert list(reports) == list(tensors)
    assert stream.tensors == 302
    arrays, _, _ = client.decompress(frames)
    assert list(arrays) == list(tensors)
    assert arrays["empty"].shape == (4, 0, 8)
    assert arrays["scalar"].shape == () and arrays["scalar"] == pytest.approx(1.5, abs=1e-3)


def test_a_tensor_is_answered_while_the_next_is_still_coming(client):
    array = random_array(5000)
    feed = Feed(client.header("a", array.shape), client.data(array.tobytes()))
    call = client.stub.Compress(feed, timeout=30)
    assert next(call).WhichOneof("payload") == "frame"
    assert next(call).tensor.name == "a"
    feed.send(client.header("b", array.shape), client.data(array.tobytes()[:100]))
    feed.send(client.data(array.tobytes()[100:]))
    assert next(call).WhichOneof("payload") == "frame"
    assert next(call).tensor.name == "b"
    feed.close()
    assert next(call).stream.tensors == 2
    assert call.code() == grpc.StatusCode.OK


def test_blocks_come_out_before_the_tensor_is_complete(client):
    array = random_array(8 * MIB)
    feed = Feed(client.header("t", array.shape), client.data(array.tobytes()[:3 * MIB]))
    call = client.stub.Compress(feed, timeout=30)
    assert next(call).WhichOneof("payload") == "frame"
    call.cancel()
    feed.close()


def test_axes_travel(client):
    array = random_array((2, 3))
    requests = [client.header("t", (2, 3), "raw", axes=(4, 5)), client.data(array.tobytes())]
    frame = b"".join(response.frame for response in client.stub.Compress(iter(requests), timeout=30))
    for name, axes in (("t", [4, 5]), ("layer_0_key", [4, 5])):
        call = client.stub.Decompress(iter([client.frame_header(name), client.frame(frame)]), timeout=30)
        assert list(next(call).header.axes) == axes
    frames, _, _ = client.compress({"layer_3_value": random_array((1, 2, 3, 4))})
    call = client.stub.Decompress(client.decompress_requests(frames), timeout=30)
    assert list(next(call).header.axes) == [1, 3, 4, 5]


def test_whole_tensor_codecs(client):
    array = random_array(500_000)
    frames, _, _ = client.compress({"t": array, "u": array}, codec="sparse(ratio=0.75)|raw")
    assert frames["t"] == frames["u"]
    decoded = client.decompress(frames)[0]["t"]
    assert np.count_nonzero(decoded == 0) == 375_000
    kept = decoded != 0
    np.testing.assert_array_equal(decoded[kept], array[kept])


def test_a_stream_without_tensors(client):
    for call in (client.stub.Compress(iter([]), timeout=30), client.stub.Decompress(iter([]), timeout=30)):
        responses = list(call)
        assert len(responses) == 1 and responses[0].stream.tensors == 0
        assert not responses[0].stream.HasField("quality")


def test_the_shared_caches(client, kv_dir):
    for path in sorted(kv_dir.glob("docs.1024.f*.safetensors")):
        tensors = load_file(path)
        frames, _, stream = client.compress(tensors)
        minimum = 7.4 if "f32" in path.name else 3.7
        assert stream.tensor_bytes / stream.frame_bytes > minimum, path.name
        arrays, _, _ = client.decompress(frames)
        for name, original in tensors.items():
            groups = original.astype(np.float64).reshape(-1, 64)
            scale = np.float16(np.max(np.abs(groups), axis=1) / 7).astype(np.float64)
            error = np.abs(groups - arrays[name].astype(np.float64).reshape(-1, 64))
            # Half a step of the scale as stored, and the rounding of the decoded value to the tensor's own dtype.
            slack = np.max(np.abs(groups), axis=1) * (2.0**-11 if original.dtype == np.float16 else 1e-6)
            assert np.all(error <= (scale / 2 + slack + 1e-7)[:, None] * (1 + 1e-3)), (path.name, name)


# --- what it refuses --------------------------------------------------------------------------------------------------

INVALID = grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("build, code, text, before", [
    (lambda c: [c.data(b"xx")], INVALID, "data before the tensor's header", []),
    (lambda c: [c.pb.CompressRequest()], INVALID, "message without a payload", []),
    (lambda c: [c.pb.CompressRequest(header=c.pb.CompressHeader())], INVALID, "header without a tensor", []),
    (lambda c: [c.header("a", [2]), c.data(b"1234"), c.data(b"x")], INVALID,
     "data behind the tensor's last byte, before the next header", ["frame", "tensor"]),
    (lambda c: [c.header("a", [2]), c.data(b"12345")], INVALID,
     'tensor "a": more than the 4 bytes that its shape says', []),
    (lambda c: [c.header("a", [2]), c.data(b"123")], INVALID,
     'the stream ends, but tensor "a" has 3 of its 4 bytes', []),
    (lambda c: [c.header("a", [2]), c.data(b"123"), c.header("b", [2])], INVALID,
     'tensor "b" begins, but tensor "a" has 3 of its 4 bytes', []),
    (lambda c: [c.header("a", [2]), c.data(b"1234"), c.header("b", [2], dtype=0)], INVALID,
     'tensor "b": no dtype', ["frame", "tensor"]),
    (lambda c: [c.header("a", [2], dtype=99)], INVALID, 'tensor "a": unknown dtype 99', []),
    (lambda c: [c.header("a", [2], axes=[17])], INVALID, 'tensor "a": unknown axis role 17', []),
    (lambda c: [c.header("a", [2], axes=[1, 2])], INVALID, 'tensor "a": 2 axis roles for rank 1', []),
    (lambda c: [c.header("", [2])], INVALID, "tensor name must be 1 to 1024 bytes of UTF-8", []),
    (lambda c: [c.header("a", [1] * 9)], INVALID, 'tensor "a": rank 9 is above the limit of 8', []),
    (lambda c: [c.header("a", [1 << 63, 1 << 63])], INVALID,
     'tensor "a": shape [9223372036854775808, 9223372036854775808] has more than 2^48 elements', []),
    (lambda c: [c.header("a", [1 << 40])], grpc.StatusCode.RESOURCE_EXHAUSTED,
     'tensor "a": 2199023255552 bytes are above the limit of 68719476736', []),
    (lambda c: [c.header("a", [2], "int4(group=48)")], INVALID,
     'tensor "a": int4: group=48 is not one of 32, 64, 128', []),
    (lambda c: [c.header("a", [2], "int9")], INVALID, 'tensor "a": unknown codec "int9" (similar: int2, int3, int4, int5, int6, int8)', []),
    (lambda c: [c.header("a", [2]), c.data(np.array([1, np.nan], np.float16).tobytes())], INVALID,
     'tensor "a": value 1 is NaN, which int4 cannot hold (on_nonfinite=lossless stores its block as it is; '
     'clamp|int4(group=64) makes 0 of it)', []),
])
def test_wrong_compress_streams(client, build, code, text, before):
    assert failure(client.stub.Compress(iter(build(client)), timeout=30)) == (code, text, before)


def test_wrong_decompress_streams(client):
    frame = client.compress({"t": random_array(400_000)}, codec="raw")[0]["t"]
    cases = [
        ([client.frame(b"xx")], INVALID, "data before the tensor's header"),
        ([client.pb.DecompressRequest()], INVALID, "message without a payload"),
        ([client.frame_header("a"), client.frame_header("b")], grpc.StatusCode.DATA_LOSS,
         'tensor "a": frame: truncated in its header (after 0 bytes)'),
        ([client.frame_header("a"), client.frame(frame + b"xyz")], INVALID,
         'tensor "a": 3 bytes behind the frame\'s end mark'),
        ([client.frame_header("a"), client.frame(frame[:-1])], grpc.StatusCode.DATA_LOSS,
         f'tensor "a": frame: truncated before its end mark (after {len(frame) - 1} bytes)'),
        ([client.frame_header("a"), client.frame(b"not a frame")], grpc.StatusCode.DATA_LOSS,
         'tensor "a": frame: bad magic, this is not a kvcompress frame'),
    ]
    for requests, code, text in cases:
        assert failure(client.stub.Decompress(iter(requests), timeout=30))[:2] == (code, text)


def test_flipped_bits_are_data_loss_and_name_the_block(client):
    frame = client.compress({"t": random_array(400_000)}, codec="raw")[0]["t"]
    block = 2 * (1 << 17) + 12
    header = len(frame) - 400_000 * 2 - 4 * 12 - 16 - 4 * 4
    for index in range(4):
        flipped = bytearray(frame)
        flipped[header + index * block + 12 + 1000] ^= 0x10
        requests = [client.frame_header("t"), client.frame(bytes(flipped))]
        code, text, _ = failure(client.stub.Decompress(iter(requests), timeout=30))
        assert (code, text) == (grpc.StatusCode.DATA_LOSS, f'tensor "t": frame: block {index}: checksum mismatch')
    rng = np.random.default_rng(5)
    small = client.compress({"t": random_array(1000)})[0]["t"]
    for at in rng.integers(0, len(small) * 8, 100):
        flipped = bytearray(small)
        flipped[at // 8] ^= 1 << (at % 8)
        code, _, kinds = failure(client.stub.Decompress(client.decompress_requests({"t": bytes(flipped)}), timeout=30))
        assert code == grpc.StatusCode.DATA_LOSS, at
        assert "tensor" not in kinds


def test_messages_that_do_not_parse_are_not_the_end(client, daemon):
    raw = daemon().channel().stream_stream(f"/{SERVICE}/Compress", lambda message: message, lambda message: message)
    assert failure_of_raw(raw(iter([b"\xff\xff\xff"]), timeout=30)) == (INVALID, "message cannot be parsed")
    bad_name = client.header("a", [2]).SerializeToString().replace(b"a", b"\xff")
    assert failure_of_raw(raw(iter([bad_name]), timeout=30)) == (INVALID, "message cannot be parsed")


def test_messages_above_the_limit(client):
    requests = [client.header("a", [8 * MIB]), client.data(bytes(5 * MIB))]
    code, text, _ = failure(client.stub.Compress(iter(requests), timeout=30))
    assert code == grpc.StatusCode.RESOURCE_EXHAUSTED, text
    client.wait_until_idle()


def test_long_names_do_not_break_the_status(client):
    name = "\u00fc" * 512
    requests = [client.header(name, [2]), client.header(name, [2])]
    code, text, _ = failure(client.stub.Compress(iter(requests), timeout=30))
    assert code == INVALID and text.startswith('tensor "\u00fc')
