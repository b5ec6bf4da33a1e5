"""The profiles in deploy/profiles/ keep what their descriptions promise, on a real cache."""

import numpy as np
import pytest
from cli_helpers import File, run_ok, write_layers
from conftest import REPOSITORY


def compress(bin_dir, tmp_path, source, profile):
    """The input, what comes back, and the frames."""
    small, back = tmp_path / "small.safetensors", tmp_path / "back.safetensors"
    run_ok(bin_dir, "-input", source, "-output", small, "-profile", REPOSITORY / "deploy" / "profiles" / profile)
    run_ok(bin_dir, "-input", small, "-output", back, "-decompress")
    return File(source), File(back), File(small)


def cosine(x, y):
    x, y = x.astype(np.float64), y.astype(np.float64)
    return np.sum(x * y) / np.sqrt(np.sum(x * x) * np.sum(y * y))


@pytest.mark.parametrize("profile, exact_layers", [("mixed-n2-q10.json", 2), ("blocknorm-strict.json", 0)])
def test_cosines_ratios_and_exact_layers(bin_dir, sample, tmp_path, profile, exact_layers):
    source = write_layers(tmp_path / "in.safetensors", sample, 1, 2)  # the last exact layer of mixed, and the first other
    before, after, frames = compress(bin_dir, tmp_path, source, profile)
    plain = packed = 0
    for name, *_ in before.layout:
        layer = int(name.split("_")[1])
        if layer < exact_layers:
            assert after.bytes[name] == before.bytes[name]
        else:
            assert cosine(before.values(name), after.values(name)) >= 0.9999, name
        plain += len(before.bytes[name])
        packed += len(frames.bytes[name])
    assert plain / packed >= 1.65
