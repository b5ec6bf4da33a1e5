"""Frames of quant, blocknorm and rotated, decoded by code that was written from docs/format.md alone: it must give the bits that
ours gives."""

import ml_dtypes
import numpy as np
import pytest
from chain_decoder import decode_frame
from cli_helpers import File, run_ok, write_file

SPECS = pytest.mark.parametrize("spec", [
    "quant(bits=10,per=token)",
    "quant(bits=8,per=block)",
    "quant(bits=2,per=channel,group=64,symmetric=false)",
    "quant(bits=2,per=token,symmetric=false)",
    "quant(bits=7,per=group,group=32,outliers=0.03)",
    "quant(bits=5,per=channel,group=4096,symmetric=false,outliers=0.001,layout=bytes)",
    "quant(bits=12,per=group,group=128,symmetric=false)",
    "quant(bits=11,per=channel,group=128)",
    "blocknorm(block=128,topk=0.02,bits=10)",
    "blocknorm(block=32,topk=0.4,bits=5)",
    "rotated(bits=4)",
    "rotated(bits=3)",
    "rotated(bits=2)",
])


@SPECS
def test_a_decoder_from_the_document_gives_the_same_bits(bin_dir, sample, tmp_path, spec):
    small, back = tmp_path / "small.safetensors", tmp_path / "back.safetensors"
    run_ok(bin_dir, "-input", sample, "-output", small, "-codec", spec)
    run_ok(bin_dir, "-input", small, "-output", back, "-decompress")
    frames, ours = File(small), File(back)
    assert [name for name, *_ in frames.layout] == [name for name, *_ in ours.layout]
    for name, *_ in frames.layout:
        decoded = decode_frame(frames.bytes[name])
        np.testing.assert_array_equal(decoded.view(np.uint16), ours.values(name).view(np.uint16))


@SPECS
def test_of_f8_it_does_so_by_way_of_f16(bin_dir, tmp_path, spec):
    small, back = tmp_path / "small.safetensors", tmp_path / "back.safetensors"
    values = (8 * np.random.default_rng(3).standard_normal((2, 300, 96))).astype(np.float32)
    names = {"latent": ml_dtypes.float8_e4m3fn, "wide": ml_dtypes.float8_e5m2}
    path = write_file(tmp_path / "in", {name: values.astype(dtype) for name, dtype in names.items()})
    run_ok(bin_dir, "-input", path, "-output", small, "-codec", spec)
    run_ok(bin_dir, "-input", small, "-output", back, "-decompress")
    for name in names:
        decoded = decode_frame(File(small).bytes[name])
        np.testing.assert_array_equal(decoded.view(np.uint8), File(back).values(name).view(np.uint8))
