"""intN of values that an F16 scale does not reach."""

import ml_dtypes
import numpy as np
import pytest
from cli_helpers import File, run, run_ok, write_file

RNG = np.random.default_rng(11)


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float32])
@pytest.mark.parametrize("size", [1e-30, 1e-8, 1e-5, 1.0, 491_500.0, 1e30])
@pytest.mark.parametrize("where", ["local", "server"])
def test_int4_keeps_small_and_large_values_as_well_as_others(bin_dir, tmp_path, daemon, dtype, size, where):
    values = (RNG.standard_normal((1, 2, 100, 64)) * size).astype(dtype)
    path = write_file(tmp_path / "in", {"layer_0_key": values})
    flags = ["-server", daemon().address] if where == "server" else []
    report = run_ok(bin_dir, "-input", path, "-output", tmp_path / "small", "-codec", "int4", *flags)
    assert 18 < report["snr_db"] < 22
    run_ok(bin_dir, "-decompress", "-input", tmp_path / "small", "-output", tmp_path / "back", *flags)
    back = File(tmp_path / "back").values("layer_0_key").astype(np.float64)
    exact = values.astype(np.float64).ravel()
    assert 18 < 10 * np.log10(np.var(exact) / np.mean((back - exact) ** 2)) < 22
    # Half a step of a scale that is rounded, of each group; and the rounding to the dtype.
    steps = np.abs(exact.reshape(-1, 64)).max(axis=1, keepdims=True) / 7
    assert (np.abs(back - exact).reshape(-1, 64) <= 0.55 * steps).all()


def test_one_value_of_491500_comes_back_as_int8_gives_it(bin_dir, tmp_path):
    path = write_file(tmp_path / "in", {"x": np.array([491_500, 1, -3], np.float32)})
    for codec in ("int4", "int8"):
        run_ok(bin_dir, "-input", path, "-output", tmp_path / "small", "-codec", codec)
        run_ok(bin_dir, "-decompress", "-input", tmp_path / "small", "-output", tmp_path / "back")
        assert abs(File(tmp_path / "back").values("x")[0] - 491_500) < 0.004 * 491_500


def test_what_int4_cannot_hold_names_the_codecs_that_do(bin_dir, tmp_path):
    path = write_file(tmp_path / "in", {"x": np.array([1, 3e38], np.float32)})
    done = run(bin_dir, "-input", path, "-output", tmp_path / "out", "-codec", "int4")
    assert done.returncode == 1
    assert done.stderr == ('Error: tensor "x": value 1 is 3e+38, which int4 cannot hold '
                           "(quant(symmetric=true), blocknorm, near-lossless and lossless do); "
                           "-on-nonfinite lossless stores blocks with such values as they are\n")
    for codec in ("quant(symmetric=true)", "blocknorm", "near-lossless", "lossless"):
        run_ok(bin_dir, "-input", path, "-output", tmp_path / "small", "-codec", codec)
        run_ok(bin_dir, "-decompress", "-input", tmp_path / "small", "-output", tmp_path / "back")
        assert abs(File(tmp_path / "back").values("x")[1] / 3e38 - 1) < 0.01, codec
