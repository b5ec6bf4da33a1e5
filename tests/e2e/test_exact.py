"""The codec `exact`: what `lossless` stands for. Its frames are decoded by code that was written from docs/format.md alone."""

import numpy as np
import pytest
from cli_helpers import File, run_ok, write_file
from exact_decoder import decode_frame
from frame_reader import read_frame

OTHER_CHAINS = ["planes|rans", "planes|huffman", "planes|lz4", "planes|zstd(level=1)", "planes|zstd(level=3)",
                "planes(split=bytes,delta=none)|rans", "planes(split=fields,delta=none)|rans",
                "planes(split=bytes,delta=none)|zstd(level=1)", "planes(split=bytes,delta=none)|zstd(level=3)",
                "raw|zstd(level=1)", "raw|zstd(level=3)"]


def compress(bin_dir, tmp_path, path, codec):
    run_ok(bin_dir, "-input", path, "-output", tmp_path / "packed.safetensors", "-codec", codec)
    return File(tmp_path / "packed.safetensors")


def made_files(tmp_path):
    """Rows that repeat and nearly repeat, in each dtype; noise; and rows with channels that are constant."""
    random = np.random.default_rng(1)
    tokens = random.integers(0, 150, 1100)
    contents = random.normal(size=(150, 64)).astype(np.float32)
    exact = contents[tokens][None, None]
    near = (contents[tokens] * (1 + random.normal(size=(1100, 64)) / 1000)).astype(np.float32)[None, None]
    constant = random.normal(size=(1, 1, 1100, 64)).astype(np.float32) + np.where(np.arange(64) < 24, 300, 0)
    for name, values in {"exact": exact, "near": near, "constant": constant.astype(np.float32)}.items():
        yield write_file(tmp_path / f"{name}.safetensors",
                         {"layer_1_key": values, "layer_1_value": values.astype(np.float16)})
    noise = random.integers(0, 1 << 16, (1, 2, 1100, 64), np.uint16)
    yield write_file(tmp_path / "noise.safetensors", {"layer_0_key": noise.view(np.float16), "none": noise[:, :, :0].view(np.float16),
                                                      "x": noise.reshape(-1, 200).view(np.float32),
                                                      "small": random.normal(size=3000).astype(np.float32)})


def test_a_decoder_of_the_document_reads_what_the_program_writes(bin_dir, sample, f16_cache, tmp_path):
    coders = set()
    for path in [sample, f16_cache, *made_files(tmp_path)]:
        original, packed = File(path), compress(bin_dir, tmp_path, path, "exact")
        for name in original.bytes:
            values, told = decode_frame(packed.bytes[name])
            assert values == original.bytes[name], name
            coders.update(coder for _, block in told for coder in block)
            assert len(packed.bytes[name]) <= len(values) + 200
        run_ok(bin_dir, "-input", tmp_path / "packed.safetensors", "-output", tmp_path / "restored", "-decompress")
        assert File(tmp_path / "restored").bytes == original.bytes
    assert coders == {1, 4, 64, None}


def sizes(bin_dir, tmp_path, path, codec):
    packed = compress(bin_dir, tmp_path, path, codec).bytes
    return sum(map(len, packed.values())), sum(len(frame) for name, frame in packed.items() if not name.startswith("layer_0_"))


def test_lossless_is_no_larger_than_another_lossless_chain(bin_dir, sample, f16_cache, tmp_path):
    """With layer 0, whose values depend on the token alone and so repeat, and without."""
    for path in [sample, f16_cache, *made_files(tmp_path)]:
        whole, rest = sizes(bin_dir, tmp_path, path, "lossless")
        for chain in OTHER_CHAINS:
            other_whole, other_rest = sizes(bin_dir, tmp_path, path, chain)
            assert whole <= 1.003 * other_whole, (path, chain)
            assert rest <= 1.003 * other_rest, (path, chain)


def order_0_bytes(values, width):
    """Of the byte planes of such values: as they are or with the exponent's bits together, whichever is less."""
    words = np.frombuffer(values, f"<u{width}").astype(np.uint64)
    rotated = (words << np.uint64(1) | words >> np.uint64(8 * width - 1)) & np.uint64(256**width - 1)

    def bound(words):
        counts = [np.bincount((words >> np.uint64(8 * plane) & np.uint64(255)).astype(int)) for plane in range(width)]
        return sum((count[count > 0] * np.log2(len(words) / count[count > 0])).sum() for count in counts) / 8

    return min(bound(words), bound(rotated))


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32"])
def test_small_tensors_pay_less_than_a_percent_for_tables(bin_dir, sample, f16_cache, tmp_path, dtype):
    """16 KiB each. What tells of the tensor itself, the frame's header and end, is not counted."""
    tensors, width = {}, 4 if dtype == "F32" else 2
    random = np.random.default_rng(1)
    source = File(sample if dtype == "BF16" else f16_cache)
    for name in source.bytes:
        part = source.values(name)[:16384 // width].reshape(1, 2, -1, 64)
        if dtype == "F32":  # with lower bits that F16 has not
            part = (part * (1 + random.random(part.shape) / 1024)).astype(np.float32)
        tensors[name] = part
    packed = compress(bin_dir, tmp_path, write_file(tmp_path / "small.safetensors", tensors), "lossless")
    for name, frame in packed.bytes.items():
        taken = sum(len(payload) for payload, _ in read_frame(frame).blocks)
        bound = order_0_bytes(tensors[name].tobytes(), width)
        assert bound >= 0.99 * taken, (name, bound, taken)
