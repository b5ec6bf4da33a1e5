"""kv-compressd from outside: stock generated stubs, real data, every way to go wrong."""

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from safetensors.numpy import load_file

SERVICE = "kvcompress.v1.KvCompression"
MIB = 1 << 20


def wait_for(condition, what, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.01)


def page(address):
    connection = http.client.HTTPConnection(address, timeout=10)
    connection.request("GET", "/metrics")
    response = connection.getresponse()
    assert response.status == 200
    return response.read().decode()


def page_value(text, series):
    """The value of one series, named as the page has it."""
    for line in text.splitlines():
        if line.startswith(series + " "):
            return float(line.rsplit(" ", 1)[1])
    return None


class Client:
    """The service of one daemon, in terms of arrays and bytes."""

    def __init__(self, daemon, stubs, *options):
        self.pb = stubs.pb
        self.stub = stubs.rpc.KvCompressionStub(daemon.channel(*options))

    def header(self, name, shape, codec="", dtype=1, axes=()):
        tensor = self.pb.Tensor(name=name, dtype=dtype, shape=shape, axes=axes)
        return self.pb.CompressRequest(header=self.pb.CompressHeader(tensor=tensor, codec=codec))

    def data(self, payload):
        return self.pb.CompressRequest(data=payload)

    def frame_header(self, name):
        return self.pb.DecompressRequest(header=self.pb.DecompressHeader(name=name))

    def frame(self, payload):
        return self.pb.DecompressRequest(frame=payload)

    def compress_requests(self, tensors, chunk=MIB, codec=""):
        for name, array in tensors.items():
            dtype = {"float16": 1, "float32": 3}[array.dtype.name]
            yield self.header(name, array.shape, codec, dtype)
            payload = array.tobytes()
            for at in range(0, len(payload), chunk):
                yield self.data(payload[at:at + chunk])

    def compress(self, tensors, chunk=MIB, codec="", timeout=60):
        """Frames by name, reports by name, the stream's report."""
        frames, reports, stream, frame = {}, {}, None, b""
        for response in self.stub.Compress(self.compress_requests(tensors, chunk, codec), timeout=timeout):
            kind = response.WhichOneof("payload")
            if kind == "frame":
                assert 0 < len(response.frame) <= MIB
                frame += response.frame
            elif kind == "tensor":
                reports[response.tensor.name] = response.tensor
                frames[response.tensor.name], frame = frame, b""
            else:
                assert stream is None and not frame
                stream = response.stream
        return frames, reports, stream

    def decompress_requests(self, frames, chunk=MIB):
        for name, frame in frames.items():
            yield self.frame_header(name)
            for at in range(0, len(frame), chunk):
                yield self.frame(frame[at:at + chunk])

    def decompress(self, frames, chunk=MIB, timeout=60):
        arrays, reports, stream, tensor, data = {}, {}, None, None, []
        for response in self.stub.Decompress(self.decompress_requests(frames, chunk), timeout=timeout):
            kind = response.WhichOneof("payload")
            if kind == "header":
                assert tensor is None
                tensor = response.header
            elif kind == "data":
                assert 0 < len(response.data) <= MIB
                data.append(response.data)
            elif kind == "tensor":
                dtype = {1: np.float16, 3: np.float32}[tensor.dtype]
                assert tensor.name == response.tensor.name
                arrays[tensor.name] = np.frombuffer(b"".join(data), dtype).reshape(tuple(tensor.shape))
                reports[tensor.name] = response.tensor
                tensor, data = None, []
            else:
                stream = response.stream
        return arrays, reports, stream

    def metrics(self):
        return self.stub.Metrics(self.pb.MetricsRequest(), timeout=10)

    def wait_until_idle(self):
        def idle():
            metrics = self.metrics()
            return metrics.streams_in_flight == 0 and metrics.bytes_in_flight == 0 and metrics.jobs_queued == 0
        wait_for(idle, "an idle daemon")


class Feed:
    """Requests of a call that is kept open: an iterator that a test fills and closes."""

    def __init__(self, *requests):
        self._requests = list(requests)
        self._closed = False
        self._changed = threading.Condition()

    def send(self, *requests):
        with self._changed:
            self._requests.extend(requests)
            self._changed.notify()

    def close(self):
        with self._changed:
            self._closed = True
            self._changed.notify()

    def __iter__(self):
        return self

    def __next__(self):
        with self._changed:
            self._changed.wait_for(lambda: self._requests or self._closed)
            if not self._requests:
                raise StopIteration
            return self._requests.pop(0)


@pytest.fixture
def client(daemon, stubs):
    return Client(daemon("--threads", "2"), stubs)


def random_array(shape, dtype=np.float16, seed=1):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def failure(call):
    """The status of a call that must fail, and the payloads in front of it."""
    kinds = []
    with pytest.raises(grpc.RpcError) as error:
        for response in call:
            kinds.append(response.WhichOneof("payload"))
    return error.value.code(), error.value.details(), kinds


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
    worst, rmses = None, []
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
        if worst is None or report.quality.snr_db < reports[worst].quality.snr_db:
            worst = name
    assert stream.quality.rmse == pytest.approx(np.mean(rmses), rel=1e-6)
    assert stream.worst_tensor == worst
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
    (lambda c: [c.header("a", [2], dtype=9)], INVALID, 'tensor "a": unknown dtype 9', []),
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
    (lambda c: [c.header("a", [2], "int9")], INVALID, 'tensor "a": unknown codec "int9"', []),
    (lambda c: [c.header("a", [2]), c.data(np.array([1, np.nan], np.float16).tobytes())], INVALID,
     'tensor "a": value 1 is NaN, which int4 cannot hold (use a lossless codec, or put clamp in front: '
     'clamp|int4(group=64))', []),
])
def test_wrong_compress_streams(client, build, code, text, before):
    assert failure(client.stub.Compress(iter(build(client)), timeout=30)) == (code, text, before)


def test_wrong_decompress_streams(client):
    frame = client.compress({"t": random_array(400_000)}, codec="raw")[0]["t"]
    cases = [
        ([client.frame(b"xx")], INVALID, "data before the tensor's header"),
        ([client.pb.DecompressRequest()], INVALID, "message without a payload"),
        ([client.frame_header("a"), client.frame_header("b")], INVALID,
         'tensor "b" begins, but the frame of tensor "a" is incomplete'),
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


def failure_of_raw(call):
    with pytest.raises(grpc.RpcError) as error:
        list(call)
    return error.value.code(), error.value.details()


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


# --- clients that go away, wait, or want too much ---------------------------------------------------------------------


def test_a_cancelled_call_leaves_nothing_behind(client):
    for i in range(10):
        feed = Feed(client.header("t", [16 * MIB], "int4|zstd(level=3)"), client.data(bytes(2 * MIB + i)))
        call = client.stub.Compress(feed, timeout=30)
        if i % 2:
            next(call)
        wait_for(lambda: client.metrics().bytes_in_flight > 0, "bytes in flight")
        call.cancel()
        feed.close()
        client.wait_until_idle()
    calls = next(method for method in client.metrics().methods if method.method == "Compress").calls_by_code
    assert dict(calls) == {"CANCELLED": 10}


def test_a_client_that_is_killed_leaves_nothing_behind(client, daemon, stubs):
    victim = Client(daemon(), stubs)
    address = victim.stub.Compress._channel.target().decode()
    # A generator that never ends keeps the call open.
    code = (
        "import grpc, sys, time\n"
        "def requests():\n"
        "    yield bytes.fromhex(sys.argv[1])\n"
        "    yield bytes.fromhex(sys.argv[2])\n"
        "    print('sent', flush=True)\n"
        "    time.sleep(60)\n"
        f"list(grpc.insecure_channel('{address}').stream_stream('/{SERVICE}/Compress')(requests()))\n"
    )
    header = victim.header("t", [MIB]).SerializeToString().hex()
    data = victim.data(bytes(1000)).SerializeToString().hex()
    process = subprocess.Popen([sys.executable, "-c", code, header, data], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"sent\n"
    wait_for(lambda: victim.metrics().streams_in_flight == 1, "the stream")
    process.kill()
    process.wait()
    victim.wait_until_idle()


def test_deadlines_hold(client):
    feed = Feed(client.header("t", [16 * MIB]), client.data(bytes(MIB)))
    start = time.monotonic()
    call = client.stub.Compress(feed, timeout=0.5)
    code, _, _ = failure(call)
    feed.close()
    assert code == grpc.StatusCode.DEADLINE_EXCEEDED
    assert time.monotonic() - start < 5
    client.wait_until_idle()
    calls = next(method for method in client.metrics().methods if method.method == "Compress").calls_by_code
    assert sum(calls.values()) == 1 and set(calls) <= {"DEADLINE_EXCEEDED", "CANCELLED"}


def test_max_streams(daemon, stubs):
    client = Client(daemon("--max-streams", "2"), stubs)
    feeds = [Feed(), Feed()]
    calls = [client.stub.Compress(feed, timeout=30) for feed in feeds]
    wait_for(lambda: client.metrics().streams_in_flight == 2, "two streams")
    refused = client.stub.Decompress(iter([]), timeout=30)
    assert failure(refused) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "the limit of 2 streams is reached", [])
    assert ("grpc-retry-pushback-ms", "100") in [tuple(pair) for pair in refused.trailing_metadata()]
    for feed in feeds:
        feed.close()
    assert [list(call)[0].stream.tensors for call in calls] == [0, 0]
    wait_for(lambda: client.metrics().streams_in_flight == 0, "no stream")
    assert list(client.stub.Compress(iter([]), timeout=30))[0].stream.tensors == 0
    assert client.metrics().rejected_by_reason["max_streams"] == 1


def test_memory_budget(daemon, stubs):
    client = Client(daemon("--memory-budget", "1MiB", "--threads", "1"), stubs)
    feed = Feed(client.header("a", [200_000]), client.data(b"xx"))
    call = client.stub.Compress(feed, timeout=30)
    wait_for(lambda: client.metrics().bytes_in_flight == 800_000, "the first tensor's memory")
    refused = client.stub.Compress(iter([client.header("b", [100_000])]), timeout=30)
    text = "the stream needs 400000 bytes of memory, other streams hold 800000 of the budget of 1048576"
    assert failure(refused) == (grpc.StatusCode.RESOURCE_EXHAUSTED, text, [])
    assert ("grpc-retry-pushback-ms", "100") in [tuple(pair) for pair in refused.trailing_metadata()]
    hopeless = client.stub.Compress(iter([client.header("c", [MIB])]), timeout=30)
    text = "the stream needs 4194304 bytes of memory, the whole budget is 1048576"
    assert failure(hopeless) == (grpc.StatusCode.RESOURCE_EXHAUSTED, text, [])
    assert "grpc-retry-pushback-ms" not in dict(hopeless.trailing_metadata())
    call.cancel()
    feed.close()
    client.wait_until_idle()
    assert dict(client.metrics().rejected_by_reason) == {"memory_budget": 1, "tensor_too_large": 1}
    client.compress({"d": random_array(100_000)})


def test_max_tensor_bytes(daemon, stubs):
    client = Client(daemon("--max-tensor-bytes", "1000"), stubs)
    code, text, _ = failure(client.stub.Compress(iter([client.header("a", [501])]), timeout=30))
    assert (code, text) == (grpc.StatusCode.RESOURCE_EXHAUSTED, 'tensor "a": 1002 bytes are above the limit of 1000')
    client.compress({"b": random_array(500)})


def test_a_client_that_does_not_read_is_not_read(daemon, stubs):
    server = daemon("--threads", "2")
    # Nothing is buffered on the client's side beyond HTTP/2's window.
    client = Client(server, stubs, ("grpc.http2.lookahead_bytes", 65536), ("grpc.http2.bdp_probe", 0))
    sent = []

    def requests():
        yield client.header("t", [64 * MIB], "raw")
        for _ in range(128):
            sent.append(1)
            yield client.data(bytes(MIB))

    def resident():
        return page_value(page(server.metrics_address), "process_resident_memory_bytes")

    before = resident()
    call = client.stub.Compress(requests(), timeout=60)
    assert next(call).WhichOneof("payload") == "frame"
    settled = [0, 0]

    def stalled():
        now = len(sent)
        settled[:] = [settled[0] + 1, now] if now == settled[1] else [0, now]
        return settled[0] >= 50
    wait_for(stalled, "a sender that is held back")
    assert len(sent) < 40
    metrics = client.metrics()
    assert metrics.bytes_in_flight == 2 * (12 + 1) * (1 << 18)
    assert metrics.jobs_queued == 0
    assert resident() - before < 48 * MIB
    # And on it goes.
    kinds = [response.WhichOneof("payload") for response in call]
    assert kinds[-2:] == ["tensor", "stream"] and len(sent) == 128


def test_a_frame_that_grows_a_thousand_times_is_held_back(daemon, stubs):
    server = daemon("--threads", "2")
    client = Client(server, stubs, ("grpc.http2.lookahead_bytes", 65536), ("grpc.http2.bdp_probe", 0))
    frame = client.compress({"t": np.zeros(64 * MIB, np.float32)}, codec="raw|zstd(level=3)")[0]["t"]
    assert len(frame) < MIB
    before = page_value(page(server.metrics_address), "process_resident_memory_bytes")
    call = client.stub.Decompress(client.decompress_requests({"t": frame}), timeout=60)
    next(call)
    time.sleep(0.5)
    assert page_value(page(server.metrics_address), "process_resident_memory_bytes") - before < 48 * MIB
    total = sum(len(response.data) for response in call)
    assert total == 256 * MIB


def test_many_clients_at_once(client, sample):
    tensors = load_file(sample)
    expected = client.compress(tensors)[0]
    results = []

    def work(index):
        frames, _, _ = client.compress(tensors, chunk=10_000 + index)
        arrays, _, _ = client.decompress(frames)
        results.append(frames == expected and len(arrays) == len(tensors))
    threads = [threading.Thread(target=work, args=(index,)) for index in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert results == [True] * 16
    client.wait_until_idle()


# --- operation --------------------------------------------------------------------------------------------------------


def health_of(channel, service):
    stub = health_pb2_grpc.HealthStub(channel)
    status = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=10).status
    return health_pb2.HealthCheckResponse.ServingStatus.Name(status)


def test_health_and_reflection(daemon):
    channel = daemon().channel()
    assert health_of(channel, "") == "SERVING"
    assert health_of(channel, SERVICE) == "SERVING"
    with pytest.raises(grpc.RpcError) as error:
        health_of(channel, "nobody.v1.Nothing")
    assert error.value.code() == grpc.StatusCode.NOT_FOUND
    reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    services = next(iter(reflection.ServerReflectionInfo(iter([request]), timeout=10))).list_services_response.service
    assert SERVICE in [service.name for service in services]


def test_drain_lets_calls_finish_and_refuses_new_ones(daemon, stubs):
    server = daemon()
    client = Client(server, stubs)
    array = random_array(10_000)
    feed = Feed(client.header("t", array.shape), client.data(array.tobytes()[:1000]))
    call = client.stub.Compress(feed, timeout=30)
    wait_for(lambda: client.metrics().bytes_in_flight > 0, "the call in flight")
    server.signal(signal.SIGTERM)
    wait_for(lambda: client.metrics().draining, "the drain")
    channel = server.channel()
    assert health_of(channel, "") == "NOT_SERVING"
    assert health_of(channel, SERVICE) == "NOT_SERVING"
    refused = client.stub.Compress(iter([]), timeout=30)
    assert failure(refused) == (grpc.StatusCode.UNAVAILABLE, "the server is draining", [])
    assert page_value(page(server.metrics_address), "kvcompress_draining") == 1
    feed.send(client.data(array.tobytes()[1000:]))
    feed.close()
    assert list(call)[-1].stream.tensors == 1
    assert server.wait() == 0
    assert "stopped" in server.log()


def test_drain_timeout_cancels_what_is_left(daemon, stubs):
    server = daemon("--drain-timeout", "300ms")
    client = Client(server, stubs)
    feed = Feed(client.header("t", [1000]))
    call = client.stub.Compress(feed, timeout=30)
    wait_for(lambda: client.metrics().bytes_in_flight > 0, "the call in flight")
    server.signal(signal.SIGINT)
    code, _, _ = failure(call)
    feed.close()
    assert code in (grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE)
    assert server.wait() == 0
    assert "drain timeout" in server.log()


def test_a_second_signal_ends_at_once(daemon, stubs):
    server = daemon("--drain-timeout", "1h")
    client = Client(server, stubs)
    feed = Feed(client.header("t", [1000]))
    call = client.stub.Compress(feed, timeout=30)
    wait_for(lambda: client.metrics().bytes_in_flight > 0, "the call in flight")
    server.signal(signal.SIGTERM)
    wait_for(lambda: client.metrics().draining, "the drain")
    server.signal(signal.SIGTERM)
    assert server.wait(10) == 128 + signal.SIGTERM
    feed.close()
    assert failure(call)[0] == grpc.StatusCode.UNAVAILABLE


def test_request_ids(daemon, stubs):
    server = daemon("--log-format", "json")
    client = Client(server, stubs)
    given = [("abc-DEF.0_9", True), ("x" * 64, True), ("x" * 65, False), ("no blanks", False), ("", False)]
    for request_id, kept in given:
        call = client.stub.Compress(iter([]), timeout=30, metadata=[("x-request-id", request_id)])
        list(call)
        answered = dict(call.initial_metadata())["x-request-id"]
        assert (answered == request_id) == kept
        assert 1 <= len(answered) <= 64
    refused = client.stub.Compress(iter([client.data(b"xx")]), timeout=30, metadata=[("x-request-id", "bad-one")])
    failure(refused)
    assert dict(refused.initial_metadata())["x-request-id"] == "bad-one"
    client.compress({"hidden-name": random_array(64)})
    assert server.stop() == 0
    lines = [json.loads(line) for line in server.log().splitlines()]
    calls = {line["request_id"]: line for line in lines if line["message"] == "call"}
    assert calls["abc-DEF.0_9"]["code"] == "OK" and calls["abc-DEF.0_9"]["method"] == "Compress"
    assert calls["bad-one"]["code"] == "INVALID_ARGUMENT"
    last = list(calls.values())[-1]
    assert (last["tensors"], last["tensor_bytes"]) == (1, 128) and last["ratio"] > 0.5
    assert "hidden-name" not in server.log()


def test_metrics_page_passes_promtool(daemon, stubs, sample):
    if shutil.which("promtool") is None:
        pytest.skip("no promtool on this machine (Debian package prometheus)")
    server = daemon()
    client = Client(server, stubs)
    frames, _, _ = client.compress(load_file(sample))
    client.decompress(frames)
    failure(client.stub.Compress(iter([client.data(b"xx")]), timeout=30))
    page(server.metrics_address)
    result = subprocess.run(["promtool", "check", "metrics"], input=page(server.metrics_address), text=True,
                            capture_output=True, timeout=30)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_metrics_call_agrees_with_the_page(daemon, stubs, sample):
    server = daemon("--threads", "2", "--memory-budget", "512MiB")
    client = Client(server, stubs)
    tensors = load_file(sample)
    frames, reports, stream = client.compress(tensors)
    client.compress({"t": random_array(1000)}, codec="raw")
    client.decompress(frames)
    failure(client.stub.Compress(iter([client.data(b"xx")]), timeout=30))
    client.wait_until_idle()
    metrics, text = client.metrics(), page(server.metrics_address)
    codecs = {codec.codec: codec for codec in metrics.codecs}
    assert set(codecs) == {"int4", "raw"}
    int4 = codecs["int4"]
    assert int4.tensors_compressed == int4.tensors_decompressed == len(tensors)
    assert int4.tensor_bytes_in == int4.tensor_bytes_out == stream.tensor_bytes
    assert int4.frame_bytes_out == int4.frame_bytes_in == stream.frame_bytes
    for codec, figures in codecs.items():
        for method, fields in {"Compress": ("tensors_compressed", "tensor_bytes_in", "frame_bytes_out"),
                               "Decompress": ("tensors_decompressed", "tensor_bytes_out", "frame_bytes_in")}.items():
            names = ("kvcompress_tensors_total", "kvcompress_tensor_bytes_total", "kvcompress_frame_bytes_total")
            for name, field in zip(names, fields):
                value = page_value(text, f'{name}{{codec="{codec}",method="{method}"}}') or 0
                assert value == getattr(figures, field), (codec, method, field)
    calls = {method.method: dict(method.calls_by_code) for method in metrics.methods}
    assert calls["Compress"] == {"OK": 2, "INVALID_ARGUMENT": 1}
    assert page_value(text, 'kvcompress_requests_total{code="OK",method="Compress"}') == 2
    assert page_value(text, 'kvcompress_requests_total{code="INVALID_ARGUMENT",method="Compress"}') == 1
    levels = {}
    for report in reports.values():
        levels[report.quality.level] = levels.get(report.quality.level, 0) + 1
    levels["EXCELLENT"] = levels.get("EXCELLENT", 0) + 1
    assert dict(metrics.tensors_by_level) == levels
    for level, count in metrics.tensors_by_level.items():
        on_page = sum(page_value(text, f'kvcompress_tensors_by_level_total{{codec="{codec}",level="{level}"}}') or 0
                      for codec in codecs)
        assert on_page == count
    for kind, count in metrics.violations_by_kind.items():
        assert page_value(text, f'kvcompress_threshold_violations_total{{kind="{kind}"}}') == count
    assert page_value(text, 'kvcompress_quality_snr_db_count{codec="int4"}') == len(tensors)
    assert page_value(text, "kvcompress_memory_budget_bytes") == metrics.memory_budget_bytes == 512 * MIB
    assert page_value(text, "kvcompress_in_flight_bytes") == metrics.bytes_in_flight == 0
    assert page_value(text, 'kvcompress_requests_in_flight{method="Compress"}') == 0
    assert metrics.threads == page_value(text, "kvcompress_pool_threads") == 2
    assert metrics.uptime_seconds > 0
    build = f'version="{metrics.build.version}",compiler="{metrics.build.compiler}",simd="{metrics.build.simd_target}"'
    assert page_value(text, f"kvcompress_build_info{{{build}}}") == 1
    assert abs(page_value(text, "process_start_time_seconds") - time.time()) < 300


def test_precedence_of_settings(daemon, stubs, tmp_path):
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"threads": 1, "memory-budget": "64MiB", "default-codec": "int8(group=32)"}))
    server = daemon("--config", str(config), "--threads", "3",
                    env={"KV_COMPRESSD_THREADS": "2", "KV_COMPRESSD_MEMORY_BUDGET": "32MiB"})
    client = Client(server, stubs)
    metrics = client.metrics()
    assert (metrics.threads, metrics.memory_budget_bytes) == (3, 32 * MIB)
    _, reports, _ = client.compress({"t": random_array(100)})
    assert reports["t"].codec == "int8(group=32)"


def test_several_addresses_and_ipv6(daemon, stubs):
    if not socket.has_ipv6 or not os.path.exists("/proc/net/if_inet6") or not open("/proc/net/if_inet6").read():
        pytest.skip("this machine has no IPv6")
    server = daemon("--listen", "[::1]:0,localhost:0")
    assert len(server.listen) == 3
    assert server.listen[1].startswith("[::1]:") and server.listen[2].startswith("localhost:")
    for address in server.listen:
        with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
            assert health_of(channel, SERVICE) == "SERVING"


def run(bin_dir, *args, env=None):
    return subprocess.run([bin_dir / "kv-compressd", *args], capture_output=True, text=True, timeout=30,
                          env={**os.environ, **(env or {})})


def test_healthcheck(bin_dir, daemon):
    server = daemon()
    result = run(bin_dir, "--listen", server.address, "--healthcheck")
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    port = server.address.rsplit(":", 1)[1]
    assert run(bin_dir, "--healthcheck", env={"KV_COMPRESSD_LISTEN": f"0.0.0.0:{port}"}).returncode == 0
    assert run(bin_dir, "--healthcheck", "--healthcheck-target", server.address).returncode == 0
    assert server.stop() == 0
    result = run(bin_dir, "--listen", server.address, "--healthcheck")
    assert result.returncode == 1 and result.stdout == ""
    assert result.stderr.startswith(f"kv-compressd: {server.address}: ") and result.stderr.count("\n") == 1


def test_bad_flags(bin_dir):
    for args, text in [
        (["--no-such"], "unknown argument --no-such"),
        (["--threads", "x"], '--threads: "x": expected a number from 0 to 1024'),
        (["--listen"], "--listen needs a value"),
        (["--default-codec=int9"], '--default-codec: "int9": unknown codec "int9"'),
    ]:
        result = run(bin_dir, *args)
        assert (result.returncode, result.stdout, result.stderr) == (2, "", f"kv-compressd: {text}\n")


def test_help_and_version(bin_dir):
    result = run(bin_dir, "--help")
    assert result.returncode == 0 and "--memory-budget BYTES" in result.stdout and result.stderr == ""
    result = run(bin_dir, "--version")
    assert result.returncode == 0 and result.stdout.startswith("kv-compressd ") and result.stderr == ""


def test_a_port_that_is_taken(bin_dir, daemon):
    server = daemon()
    result = run(bin_dir, "--listen", server.address, "--metrics-listen", "off", "--log-level", "error")
    assert (result.returncode, result.stderr) == (
        1, f"kv-compressd: listen on {server.address}: address already in use\n")
    result = run(bin_dir, "--listen", "127.0.0.1:0", "--metrics-listen", server.metrics_address)
    assert (result.returncode, result.stderr) == (
        1, f"kv-compressd: listen on {server.metrics_address}: address already in use\n")
    result = run(bin_dir, "--listen", "no.such.host.invalid:1", "--metrics-listen", "off", "--log-level", "error")
    assert result.returncode == 1
    assert result.stderr.startswith("kv-compressd: listen on no.such.host.invalid:1: ")


def test_a_warning_beyond_this_machine(daemon):
    server = daemon("--listen", "0.0.0.0:0")
    assert "plaintext" in server.log() and "0.0.0.0" in server.log()
    quiet = daemon()
    assert "plaintext" not in quiet.log()
