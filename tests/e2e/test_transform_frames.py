"""Frames of the codec `transform`, decoded by code that was written from docs/format.md alone: it must give the bits that
ours gives."""

import ml_dtypes
import numpy as np
import pytest
from chain_decoder import decode_frame
from cli_helpers import File, run_ok, write_file

SPECS = pytest.mark.parametrize("spec", [
    "transform(bits=3,theta=10000)",
    "transform(step=0.02,theta=10000)",
    "transform(step=0.3,trellis=false)",
    "transform(snr=15,theta=500000,rotary=interleaved,rotary_dims=32,start=100000)",
    "transform(step=4,sinks=false)",
])


def keys(shape, seed):
    """Rows with means and deviations of their channels, sinks and a token that is no token like the others."""
    random = np.random.default_rng(seed)
    channels = (shape[1], 1, shape[3])
    values = random.standard_normal(shape) * random.uniform(0.01, 3, channels) + 10 * random.standard_normal(channels)
    values[:, :, 0] *= 30
    values[:, :, shape[2] // 2] *= 12
    return values.astype(np.float32)


def check(bin_dir, tmp_path, path, spec):
    small, back = tmp_path / "small.safetensors", tmp_path / "back.safetensors"
    run_ok(bin_dir, "-input", path, "-output", small, "-codec", spec)
    run_ok(bin_dir, "-input", small, "-output", back, "-decompress")
    for name, *_ in File(small).layout:
        decoded = decode_frame(File(small).bytes[name])
        assert decoded.tobytes() == bytes(File(back).bytes[name]), name


@SPECS
def test_a_decoder_from_the_document_gives_the_same_bits(bin_dir, tmp_path, spec):
    path = write_file(tmp_path / "in", {
        "layer_0_key": keys((1, 2, 90, 64), 1).astype(np.float16),
        "layer_1_key": keys((1, 3, 24, 80), 2).astype(ml_dtypes.bfloat16),
        "layer_1_value": keys((2, 1, 17, 48), 3),
        "layer_2_key": (keys((1, 1, 40, 32), 4) / 20).clip(-400, 400).astype(ml_dtypes.float8_e4m3fn),
        "rows": keys((1, 1, 30, 20), 5).reshape(30, 20),
        "few": np.arange(5, dtype=np.float32),
        "zeros": np.zeros((1, 1, 40, 64), np.float16),
    })
    check(bin_dir, tmp_path, path, spec)


def test_values_that_do_not_shrink_are_stored(bin_dir, tmp_path):
    path = write_file(tmp_path / "in", {"layer_0_key": keys((1, 1, 20, 64), 6).astype(np.float16)})
    check(bin_dir, tmp_path, path, "transform(step=0.000001)")
