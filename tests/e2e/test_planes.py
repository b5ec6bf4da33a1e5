"""Frames of the codec `planes`, decoded by what docs/format.md says and nothing else."""

import math
import struct

import numpy as np
import pytest
from cli_helpers import File, run_ok, write_file

PLANES = 4
MODES = {"bytes": 0, "fields": 1}, {"none": 0, "token": 1, "xor": 2}


def decode_block(payload, count, width):
    sizes = struct.unpack_from(f"<{1 + PLANES}I", payload)
    assert sizes == (6, *(count if p < width else 0 for p in range(PLANES)))
    at = 4 * (1 + PLANES)
    assert len(payload) == at + sum(sizes)
    split, delta, distance = struct.unpack_from("<BBI", payload, at)
    at += 6
    bits = 8 * width
    planes = np.frombuffer(payload, np.uint8, width * count, at).reshape(width, count)
    words = sum(planes[p].astype(np.uint64) << np.uint64(bits - 8 - 8 * p) for p in range(width))
    if delta:
        assert 1 <= distance < count
        for begin in range(distance, count, distance):
            here = words[begin:begin + distance]
            before = words[begin - distance:begin][:len(here)]
            words[begin:begin + distance] = here + before if delta == 1 else here ^ before
            words[begin:begin + distance] &= np.uint64((1 << bits) - 1)
    else:
        assert distance == 0
    if split:
        words = words >> np.uint64(1) | (words & np.uint64(1)) << np.uint64(bits - 1)
    return words.astype(f"<u{width}").tobytes(), (split, delta)


def decode_frame(frame):
    """The values' bytes, and the (split, delta) of each block."""
    magic, version, _, header_bytes, dtype, rank, codec_bytes, block_elements = struct.unpack_from("<4sBBHBBHI", frame)
    assert (magic, version) == (b"KVCF", 1)
    width = {1: 2, 2: 2, 3: 4}[dtype]
    left = math.prod(struct.unpack_from(f"<{rank}Q", frame, 16))
    codec = frame[16 + 9 * rank:][:codec_bytes].decode()
    assert codec.startswith("planes(split=")
    at = header_bytes
    values, modes = b"", []
    while left:
        count = min(left, block_elements)
        (payload_bytes,) = struct.unpack_from("<I", frame, at)
        block, mode = decode_block(frame[at + 12:at + 12 + payload_bytes], count, width)
        values += block
        modes.append(mode)
        at += 12 + payload_bytes
        left -= count
    assert frame[at:at + 4] == b"KVCE"
    return values, modes


@pytest.mark.parametrize("split", ["auto", "bytes", "fields"])
@pytest.mark.parametrize("delta", ["auto", "none", "token", "xor"])
def test_a_decoder_of_the_document_reads_what_the_program_writes(bin_dir, sample, tmp_path, split, delta):
    # A real cache; and in each dtype every kind of bits, over more than one block.
    random = np.random.default_rng(1)
    noise = random.integers(0, 1 << 16, (1, 2, 1100, 64), np.uint16)
    files = [sample, write_file(tmp_path / "bits.safetensors", {"layer_0_key": noise.view(np.float16),
                                                                "x": noise.reshape(-1, 200).view(np.float32)})]
    for path in files:
        packed = tmp_path / "packed.safetensors"
        report = run_ok(bin_dir, "-input", path, "-output", packed, "-codec", f"planes(split={split},delta={delta})")
        assert report["snr_db"] is None and report["max_error"] == 0
        original, compressed = File(path), File(packed)
        for name in original.bytes:
            values, modes = decode_frame(compressed.bytes[name])
            assert values == original.bytes[name], name
            if path != sample:  # noise does not shrink, and hardly grows
                assert len(compressed.bytes[name]) <= 1.001 * len(values) + 64, name
            for number, (asked, known) in zip(zip(*modes), zip((split, delta), MODES)):
                assert asked == "auto" or set(number) == {known[asked]}, name


def test_the_default_spec_is_chosen_by_the_encoder(bin_dir, sample, tmp_path):
    packed, restored = tmp_path / "packed.safetensors", tmp_path / "restored.safetensors"
    run_ok(bin_dir, "-input", sample, "-output", packed, "-codec", "planes")
    for name, frame in File(packed).bytes.items():
        assert decode_frame(frame)[0] == File(sample).bytes[name]
    run_ok(bin_dir, "-input", packed, "-output", restored, "-decompress")
    assert File(restored).bytes == File(sample).bytes
