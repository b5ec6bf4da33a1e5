"""NaN, infinities and values too large for a codec: refused with their place, or their blocks stored as they are."""

import kvcompress
import numpy as np
import pytest
from cli_helpers import File, run, run_ok, write_file
from daemon_helpers import page, page_value
from frame_reader import read_frame, split_payload

BLOCK = 1 << 17
BAD = BLOCK + 77  # in the second of three blocks
SHAPE = (1, 2, 2100, 64)
CODECS = ["int4", "quant(bits=4,per=channel)|rans", "heads(0:int4,1-:int8|zstd(level=1))", "blocknorm"]


def values(special=None, dtype=np.float16):
    array = np.random.default_rng(1).standard_normal(SHAPE).astype(dtype)
    if special is not None:
        array.reshape(-1)[BAD] = special
    return array


@pytest.fixture
def file(tmp_path):
    return write_file(tmp_path / "in.safetensors", {
        "layer_0_key": values(), "layer_0_value": values(np.nan), "layer_1_key": values(3e38, np.float32)})


@pytest.mark.parametrize("codec", CODECS)
def test_only_the_block_that_a_codec_refuses_is_stored_as_it_is(bin_dir, tmp_path, file, codec):
    small, back = tmp_path / "small", tmp_path / "back"
    report = run_ok(bin_dir, "-input", file, "-output", small, "-codec", codec, "-on-nonfinite", "lossless", "-verbose")
    run_ok(bin_dir, "-input", small, "-output", back, "-decompress")
    clean = write_file(tmp_path / "clean", {"layer_0_key": values()})
    run_ok(bin_dir, "-input", clean, "-output", small, "-codec", codec)
    run_ok(bin_dir, "-input", small, "-output", clean, "-decompress")
    expected = File(clean).values("layer_0_key").view(np.uint16)
    original, decoded = File(file), File(back)
    assert (decoded.values("layer_0_key").view(np.uint16) == expected).all()
    found, bits = (one.values("layer_0_value").view(np.uint16) for one in (decoded, original))
    assert (found[BLOCK:2 * BLOCK] == bits[BLOCK:2 * BLOCK]).all()
    if not codec.startswith("heads"):  # whose shares of a block begin elsewhere in each
        assert (found[:BLOCK] == expected[:BLOCK]).all()
        assert (found[2 * BLOCK:] == expected[2 * BLOCK:]).all()
    metrics = report["tensor_metrics"]
    assert metrics["layer_0_value_nonfinite_blocks"] == 1
    assert "layer_0_key_nonfinite_blocks" not in metrics
    if codec == "int4":  # the others hold it
        assert metrics["layer_1_key_nonfinite_blocks"] == 1
        assert decoded.values("layer_1_key")[BAD] == np.float32(3e38)


def test_without_the_flag_tensor_and_index_are_named(bin_dir, tmp_path, file):
    for flags in ([], ["-on-nonfinite", "error"]):
        done = run(bin_dir, "-input", file, "-output", tmp_path / "out", *flags)
        assert done.returncode == 1
        assert f'tensor "layer_0_value": value {BAD} is NaN, which int4 cannot hold' in done.stderr
        assert "(on_nonfinite=lossless stores its block as it is; clamp|int4(group=64) makes 0 of it)" in done.stderr
        assert done.stderr.endswith("; -on-nonfinite lossless stores blocks with such values as they are\n")
    done = run(bin_dir, "-input", file, "-output", tmp_path / "out", "-on-nonfinite", "clamp")
    assert done.returncode == 1
    assert '-on-nonfinite must be error or lossless, not "clamp"' in done.stderr


def test_every_way_gives_the_same_bytes_and_counts(bin_dir, daemon, tmp_path, file):
    server = daemon("--threads", "2", "--shared-memory", "kvc-nonfinite-")
    flags = ["-input", file, "-on-nonfinite", "lossless"]
    run_ok(bin_dir, *flags, "-output", tmp_path / "local")
    run_ok(bin_dir, *flags, "-output", tmp_path / "remote", "-server", server.address)
    frames = File(tmp_path / "local").bytes
    assert frames == File(tmp_path / "remote").bytes
    named = [("layer_0_key", values()), ("layer_0_value", values(np.nan)), ("layer_1_key", values(3e38, np.float32))]
    for shared in (True, False):
        with kvcompress.Client(server.address, timeout=30, shared_memory=shared) as client:
            with pytest.raises(kvcompress.InvalidArgument, match=f"value {BAD} is NaN"):
                client.compress(values(np.nan), "int4", name="layer_0_value")
            one_by_one = [client.compress(array, "int4", name=name, on_nonfinite="lossless") for name, array in named]
            together = list(client.compress_many(named, "int4", on_nonfinite="lossless"))
            for made in (one_by_one, together):
                assert {frame.name: frame.data for frame in made} == frames
                assert [frame.nonfinite_blocks for frame in made] == [0, 1, 1]
                assert {frame.codec for frame in made} == {"fallback|int4(group=64)"}
    profile = {"version": 1, "default": "int4"}
    with kvcompress.Client(server.address, timeout=30) as client:
        frame = client.compress(values(np.nan), name="layer_0_value", profile=profile, on_nonfinite="lossless")
        assert frame.data == frames["layer_0_value"]
        assert client.compress(values(np.nan), "lossless", on_nonfinite="lossless").nonfinite_blocks == 0
    assert page_value(page(server.metrics_address), "kvcompress_nonfinite_tensors_total") == 2 + 2 * 4 + 1


def test_a_payload_is_what_the_document_says(bin_dir, tmp_path, file):
    run_ok(bin_dir, "-input", file, "-output", tmp_path / "kept", "-on-nonfinite", "lossless")
    run_ok(bin_dir, "-input", write_file(tmp_path / "clean", {"layer_0_value": values()}), "-output", tmp_path / "plain")
    kept, plain = (read_frame(File(tmp_path / name).bytes["layer_0_value"]) for name in ("kept", "plain"))
    assert kept.codec == "fallback|int4(group=64)"
    for index, ((payload, count), (expected, _)) in enumerate(zip(kept.blocks, plain.blocks)):
        ((size,), side), *streams = split_payload(payload, 3)
        if index == 1:
            assert side == values(np.nan).tobytes()[2 * BLOCK:4 * BLOCK]
            assert [sizes for sizes, _ in streams] == [(0,), (0,)]
        else:
            assert size == 0
            assert streams == split_payload(expected, 2)
