"""-inspect as data: JSON and CSV, heads, and rotary embeddings of every convention."""

import csv
import io
import json
import subprocess

import numpy as np
import pytest
from cli_helpers import File, run, run_ok, write_file


def inspect(bin_dir, path, *flags):
    done = run(bin_dir, "-inspect", "-format", "json", *flags, path)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def rotate(keys, theta, interleaved, dims, start):
    """What a model does to keys [..., seq, head_dim]: pair i of the first `dims` channels is turned."""
    out = keys.astype(np.float64)
    pairs = np.arange(dims // 2)
    one, other = (2 * pairs, 2 * pairs + 1) if interleaved else (pairs, pairs + dims // 2)
    angles = np.outer(start + np.arange(keys.shape[-2]), theta ** (-2.0 * pairs / dims))
    x, y = out[..., one].copy(), out[..., other].copy()
    out[..., one] = x * np.cos(angles) - y * np.sin(angles)
    out[..., other] = y * np.cos(angles) + x * np.sin(angles)
    return out


@pytest.mark.parametrize(("flags", "convention"), [
    ([], (False, 32, 0)), (["-rope-pairs", "interleaved"], (True, 32, 0)), (["-rope-dims", "8"], (False, 8, 0)),
    (["-rope-pairs", "interleaved", "-rope-dims", "16", "-rope-start", "1000"], (True, 16, 1000)),
])
def test_a_rotation_of_each_convention_is_undone(bin_dir, tmp_path, flags, convention):
    # Channels have a mean, which the rotation hides.
    plain = np.random.default_rng(1).standard_normal((1, 2, 200, 32)) + np.linspace(-9, 9, 32)
    turned = rotate(plain, 10000.0, *convention).astype(np.float32)
    path = write_file(tmp_path / "in", {"layer_0_key": turned, "layer_0_value": turned})
    keys, values = inspect(bin_dir, path, "-rope-theta", "10000", *flags)["tensors"]
    assert keys["unrotated"]["mean"] == pytest.approx(plain.mean(), abs=1e-5)
    assert keys["unrotated"]["stddev"] == pytest.approx(plain.std(), rel=1e-5)
    assert keys["unrotated"]["mean_difference"] == pytest.approx(np.abs(turned - plain).mean(), rel=1e-4)
    assert keys["unrotated"]["lag1_correlation"] == pytest.approx(0, abs=0.05)
    assert keys["values"]["mean_difference"] is None and "unrotated" not in values
    wrong = inspect(bin_dir, path, "-rope-theta", "10000", "-rope-start", "3")["tensors"][0]["unrotated"]
    assert abs(wrong["mean"] - keys["unrotated"]["mean"]) > 1e-3
    text = run(bin_dir, "-inspect", "-rope-theta", "10000", *flags, path).stdout
    assert f'{keys["unrotated"]["mean_difference"]:.4g}' in text.split("what undoing the rotation changes")[1]


def test_json_and_csv_say_what_the_values_are_like(bin_dir, sample):
    result = inspect(bin_dir, sample)
    file = File(sample)
    assert result["compressed"] is False and result["metadata"] == file.metadata
    assert [entry["tensor"] for entry in result["tensors"]] == [name for name, *_ in file.layout]
    rows = list(csv.DictReader(io.StringIO(run(bin_dir, "-inspect", "-format", "csv", sample).stdout, newline="")))
    assert len(rows) == len(result["tensors"]) == 4
    for entry, row in zip(result["tensors"], rows):
        values = file.values(entry["tensor"]).astype(np.float64)
        figures = entry["values"]
        assert figures["mean"] == pytest.approx(values.mean()) and figures["stddev"] == pytest.approx(values.std())
        assert (figures["min"], figures["max"]) == (values.min(), values.max())
        assert (row["tensor"], row["head"], row["form"], row["dtype"]) == (entry["tensor"], "", "values", "BF16")
        for name, value in figures.items():
            shown = row[name]
            if value is None:
                assert shown == ""
            elif isinstance(value, list):
                assert [float(one) for one in shown.split(" ")] == value
            else:
                assert float(shown) == value


def test_each_head_has_figures_of_its_own(bin_dir, tmp_path):
    random = np.random.default_rng(2)
    heads = np.array([1, 10, 100])[None, :, None, None]
    keys = (random.standard_normal((2, 3, 50, 8)) * heads).astype(np.float32)
    path = write_file(tmp_path / "in", {"layer_0_key": keys, "flat": keys[0, 0, 0]})
    key, flat = inspect(bin_dir, path, "-per-head", "-rope-theta", "500")["tensors"]
    assert [head["head"] for head in key["heads"]] == [0, 1, 2] and "heads" not in flat
    for index, head in enumerate(key["heads"]):
        own = keys[:, index].astype(np.float64)
        assert head["values"]["elements"] == 800
        assert head["values"]["stddev"] == pytest.approx(own.std()) and head["values"]["max"] == own.max()
        back = rotate(keys[:, index], 500.0, False, 8, 0)  # turned the other way it is another key, of the same length
        assert head["unrotated"]["elements"] == 800 and head["unrotated"]["mean_difference"] > 0
        assert np.sqrt((back ** 2).mean()) == pytest.approx(
            np.hypot(head["unrotated"]["stddev"], head["unrotated"]["mean"]), rel=1e-5)
    rows = run(bin_dir, "-inspect", "-format", "csv", "-per-head", path).stdout.splitlines()
    assert [row.split(",")[:3] for row in rows[1:]] == [
        ["layer_0_key", "", "values"], *([["layer_0_key", str(head), "values"] for head in range(3)]), ["flat", "", "values"]]
    assert '"layer_0_key" head 2 ' in run(bin_dir, "-inspect", "-per-head", path).stdout


def test_what_a_cast_of_f32_would_cost_stands_apart(bin_dir, tmp_path):
    values = np.random.default_rng(3).standard_normal((1, 2, 300, 16)).astype(np.float32)
    path = write_file(tmp_path / "in", {"layer_0_key": values, "layer_0_value": values.astype(np.float16)})
    key, value = inspect(bin_dir, path)["tensors"]
    errors = np.abs(values.astype(np.float64) - values.astype(np.float16))
    assert key["values"]["f16_cast_mean_abs_error"] == pytest.approx(errors.mean(), rel=1e-9)
    assert key["values"]["f16_cast_max_error"] == errors.max() and key["values"]["f16_cast_too_large"] == 0
    assert value["values"]["f16_cast_mean_abs_error"] is None
    # And it is the error that a run reports of the stage in front of a lossless codec.
    report = run_ok(bin_dir, "-input", path, "-metrics-only", "-codec", "cast(to=f16)|planes|rans", "-verbose")
    assert report["tensor_metrics"]["layer_0_key_max_error"] == pytest.approx(errors.max())
    assert report["tensor_metrics"]["layer_0_value_max_error"] == 0


def test_names_that_csv_must_quote(bin_dir, tmp_path):
    name = 'a,"b"\r\nc'
    path = write_file(tmp_path / "in", {name: np.ones(4, np.float16), "ids": np.arange(3)})
    text = subprocess.run([bin_dir / "kv-compress", "-inspect", "-format", "csv", path], capture_output=True).stdout
    assert [row["tensor"] for row in csv.DictReader(io.StringIO(text.decode(), newline=""))][:1] == [name]
    assert [entry["tensor"] for entry in inspect(bin_dir, path)["tensors"]] == [name, "ids"]


def test_csv_names_its_columns_where_there_are_no_rows(bin_dir, tmp_path):
    def header(path):
        return run(bin_dir, "-inspect", "-format", "csv", path).stdout.splitlines()[0]

    none = write_file(tmp_path / "none", {"ids": np.arange(3)})
    assert run(bin_dir, "-inspect", "-format", "csv", none).stdout == header(none) + "\n"
    assert header(none) == header(write_file(tmp_path / "one", {"a": np.ones(4, np.float16)})) != ""
    for name, arrays in [("packed", {"a": np.ones(4, np.float16)}), ("empty", {})]:
        run_ok(bin_dir, "-input", write_file(tmp_path / "in", arrays), "-output", tmp_path / name)
    assert header(tmp_path / "empty") == header(tmp_path / "packed") != ""


def test_a_rotation_of_more_channels_than_a_key_has(bin_dir, sample):
    done = run(bin_dir, "-inspect", "-rope-theta", "10000", "-rope-dims", "200", sample)
    said = '-rope-dims must be at most the head_dim, 64 in tensor "layer_10_key", not 200'
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"Error: {said}\n")


def test_compressed_files_as_data(bin_dir, sample, tmp_path):
    run_ok(bin_dir, "-input", sample, "-output", tmp_path / "packed", "-min-snr", "30")
    result = inspect(bin_dir, tmp_path / "packed")
    assert result["compressed"] is True and result["bytes"] == 393216 and result["codec"].startswith("bounded(")
    assert result["file_bytes"] == (tmp_path / "packed").stat().st_size
    for entry in result["tensors"]:
        assert sum(entry["block_codecs"].values()) == entry["blocks"] and entry["shape"] == [1, 3, 256, 64]
    text = run(bin_dir, "-inspect", "-format", "csv", tmp_path / "packed").stdout
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert [row["compressed_bytes"] for row in rows] == [str(entry["compressed_bytes"]) for entry in result["tensors"]]


@pytest.mark.parametrize(("flags", "said"), [
    (["-inspect", "-format", "xml", "f"], "-format must be table, json or csv, not xml"),
    (["-inspect", "-rope-theta", "1", "-rope-pairs", "odd", "f"], "-rope-pairs must be half or interleaved, not odd"),
    (["-inspect", "-rope-theta", "1", "-rope-dims", "3", "f"], "-rope-dims must be an even number of channels, not 3"),
    (["-inspect", "-rope-theta", "1", "-rope-start", "-1", "f"], "-rope-start must be a position, not -1"),
    (["-inspect", "-rope-dims", "4", "f"], "-rope-dims needs -rope-theta"),
    (["-input", "f", "-metrics-only", "-per-head"], "-per-head needs -inspect"),
    (["-input", "f", "-metrics-only", "-max-key-mae", "1"], "-max-key-mae needs -sweep"),
    (["-sweep", "-input", "f", "-max-key-mae", "0"], "-max-key-mae must be above 0 and finite, not 0"),
    (["-sweep", "-input", "f", "-min-value-cosine", "2"], "-min-value-cosine must be above 0 and at most 1, not 2"),
])
def test_flags_that_do_not_go_together(bin_dir, flags, said):
    done = run(bin_dir, *flags)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"Error: {said}\n")


def test_heads_of_a_compressed_file(bin_dir, sample, tmp_path):
    run_ok(bin_dir, "-input", sample, "-output", tmp_path / "packed")
    done = run(bin_dir, "-inspect", "-per-head", tmp_path / "packed")
    assert done.stderr == "Error: -per-head is for plain files, and this one is compressed\n"
