"""Frames of the codec `planes`, decoded by code that was written from docs/format.md alone."""

import numpy as np
import pytest
from cli_helpers import File, run_ok, write_bytes, write_file
from frame_reader import BITS
from planes_decoder import decode_frame

MODES = {"bytes": 0, "fields": 1}, {"none": 0, "token": 1, "xor": 2}


@pytest.mark.parametrize("split", ["auto", "bytes", "fields", "coded"])
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
                assert asked in ("auto", "coded") or set(number) == {known[asked]}, name


def test_the_default_spec_is_chosen_by_the_encoder(bin_dir, sample, tmp_path):
    packed, restored = tmp_path / "packed.safetensors", tmp_path / "restored.safetensors"
    run_ok(bin_dir, "-input", sample, "-output", packed, "-codec", "planes")
    for name, frame in File(packed).bytes.items():
        assert decode_frame(frame)[0] == File(sample).bytes[name]
    run_ok(bin_dir, "-input", packed, "-output", restored, "-decompress")
    assert File(restored).bytes == File(sample).bytes


@pytest.mark.parametrize("codec", ["planes", "planes(split=fields,delta=token)", "planes(split=bytes,delta=xor)"])
def test_words_of_every_dtype_lie_as_the_document_says(bin_dir, tmp_path, codec):
    random = np.random.default_rng(2)
    tensors = {}
    for dtype, bits in BITS.items():
        rows = random.integers(0, 4, (600, bits * 40 // 8), np.uint8).cumsum(axis=0, dtype=np.uint8)  # alike from row to row
        tensors[dtype] = (dtype, [600, 40], rows.tobytes())
    packed = tmp_path / "packed.safetensors"
    run_ok(bin_dir, "-input", write_bytes(tmp_path / "in", tensors), "-output", packed, "-codec", codec)
    for name, (_, _, data) in tensors.items():
        assert decode_frame(File(packed).bytes[name])[0] == data, name
