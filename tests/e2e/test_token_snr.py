"""Figures that are true for attention: token SNR, and tensors that have no SNR."""

import json
import math

import numpy as np
import pytest
from cli_helpers import DTYPES, File, run, run_ok, write_file
from daemon_helpers import Client, page, page_value

BF16 = DTYPES["BF16"]


def keys_with_constants(seed=0, heads=2, tokens=512, channels=128, dtype=BF16):
    """Keys like those of the first layers of Qwen2.5: six channels of a head have constants of 60 to 350 deviations."""
    rng = np.random.default_rng(seed)
    keys = rng.standard_normal((1, heads, tokens, channels)).astype(np.float32)
    for head in range(heads):
        chosen = rng.choice(channels, 6, replace=False)
        keys[0, head, :, chosen] += (rng.choice([-1, 1], 6) * np.array([350, 300, 200, 150, 90, 60]))[:, None]
    return keys.astype(dtype)


def token_snr_db(x, y):
    """By definition, in float64: of [..., tokens, channels]."""
    x, error = x.astype(np.float64), x.astype(np.float64) - y.astype(np.float64)
    signal = np.sum((x - x.mean(-2, keepdims=True)) ** 2)
    noise = np.sum((error - error.mean(-2, keepdims=True)) ** 2)
    return 10 * math.log10(signal / noise) if noise > 0 else math.inf


@pytest.fixture(scope="module")
def keys_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("keys") / "keys.safetensors"
    rng = np.random.default_rng(7)
    tensors = {}
    for layer in range(2):
        tensors[f"layer_{layer}_key"] = keys_with_constants(layer)
        tensors[f"layer_{layer}_value"] = rng.standard_normal((1, 2, 512, 128)).astype(BF16)
    tensors["layer_2_key"] = rng.standard_normal((1, 2, 512, 128)).astype(BF16)
    return write_file(path, tensors)


def decoded_token_snrs(bin_dir, original, packed, folder):
    """By definition, of each tensor of rank 4 of a file and what comes back of it."""
    run_ok(bin_dir, "-decompress", "-input", packed, "-output", folder / "back")
    before, after = File(original), File(folder / "back")
    return {name: token_snr_db(before.values(name).reshape(entry["shape"]), after.values(name).reshape(entry["shape"]))
            for name, entry in before.entries if len(entry["shape"]) == 4}


@pytest.mark.parametrize("codec", ["int4", "int8", "quant(bits=4,per=channel,symmetric=false)", "quant(bits=6,per=token)"])
def test_token_snr_is_that_of_its_definition(bin_dir, keys_file, tmp_path, codec):
    result = run_ok(bin_dir, "-input", keys_file, "-output", tmp_path / "small", "-codec", codec, "-verbose")
    own = decoded_token_snrs(bin_dir, keys_file, tmp_path / "small", tmp_path)
    for name, expected in own.items():
        assert result["tensor_metrics"][f"{name}_token_snr_db"] == pytest.approx(expected, abs=0.01), name
    assert result["token_snr_db"] == pytest.approx(np.mean(list(own.values())), abs=0.01)
    judged = {name: snr if name.endswith("_key") else result["tensor_metrics"][f"{name}_snr_db"]
              for name, snr in own.items()}
    assert result["worst_tensor"] == min(judged, key=judged.get)
    assert result["judged_snr_db"] == pytest.approx(np.mean(list(judged.values())), abs=0.01)
    assert result["judged_snr_db"] not in (result["snr_db"], result["token_snr_db"])


def test_destroyed_keys_are_warned_of_and_fail(bin_dir, keys_file, tmp_path):
    done = run(bin_dir, "-input", keys_file, "-output", tmp_path / "small", "-codec", "int4")
    result = json.loads(done.stdout)
    assert result["snr_db"] > 18 and result["quality_level"] == "POOR"
    assert any(text.startswith("TokenSNR") for text in result["violations"])
    (warning,) = result["warnings"]
    assert warning.startswith("keys of layers 0-1 have channels") and "int4(group=64) loses them" in warning
    assert done.stderr == f"Warning: {warning}\n"
    kept = run(bin_dir, "-input", keys_file, "-output", tmp_path / "small", "-codec",
               "quant(bits=4,per=channel,symmetric=false)")
    assert json.loads(kept.stdout)["warnings"] == [] and kept.stderr == ""


def test_inspect_warns_where_constants_dominate(bin_dir, keys_file):
    done = run(bin_dir, "-inspect", keys_file)
    assert done.returncode == 0
    assert done.stderr.startswith("Warning: keys of layers 0-1 have channels whose constant is up to ")
    assert done.stderr.count("\n") == 1
    assert "token SNR" in done.stdout


@pytest.mark.parametrize("bound, codec", [(30, ["-min-snr", "30"]), (30, ["-min-token-snr", "30"]),
                                          (40, ["-codec", "near-lossless"]), (12, ["-min-snr", "12"]),
                                          (60, ["-min-token-snr", "60"])])
def test_bounds_hold_for_the_token_snr(bin_dir, keys_file, tmp_path, bound, codec):
    result = run_ok(bin_dir, "-input", keys_file, "-output", tmp_path / "small", *codec, "-verbose")
    own = decoded_token_snrs(bin_dir, keys_file, tmp_path / "small", tmp_path)
    assert min(own.values()) >= bound
    reported = [value for name, value in result["tensor_metrics"].items() if name.endswith("_token_snr_db")]
    assert len(reported) == 5 and all(value is None or value >= bound for value in reported)
    least = {12: 3.9, 30: 2.2, 40: 1.7, 60: 1.1}[bound]
    assert result["compression_ratio"] > least


def test_constants_without_variance_have_no_snr(bin_dir, daemon, tmp_path):
    rng = np.random.default_rng(3)
    good = {f"layer_{i}_{kind}": (0.05 * rng.standard_normal((1, 2, 64, 64))).astype(np.float32)
            for i in range(2) for kind in ("key", "value")}
    path = write_file(tmp_path / "in", good)
    alone = run_ok(bin_dir, "-input", path, "-output", tmp_path / "out", "-codec", "int4")
    path = write_file(tmp_path / "in", {**good, "k_scale": np.array(1234.567, np.float32),
                                        "constant": np.full((70000,), 3.1, np.float32)})
    for where in ([], ["-server", daemon().address]):
        result = run_ok(bin_dir, *where, "-input", path, "-output", tmp_path / "out", "-codec", "int4", "-verbose")
        metrics = result["tensor_metrics"]
        assert metrics["k_scale_max_error"] > 0 and metrics["k_scale_snr_db"] is None
        assert metrics["constant_max_error"] > 0 and metrics["constant_snr_db"] is None
        for figure in ("snr_db", "token_snr_db", "quality_level", "worst_tensor", "violations"):
            assert result[figure] == alone[figure], figure
        assert result["quality_level"] != "POOR"


def test_an_all_zero_tensor_that_came_back_exact_has_a_cosine_of_one(bin_dir, tmp_path):
    path = write_file(tmp_path / "in", {"zeros": np.zeros((1000,), np.float16)})
    result = run_ok(bin_dir, "-input", path, "-output", tmp_path / "out")
    assert (result["cosine_similarity"], result["quality_level"], result["violations"]) == (1, "EXCELLENT", [])


@pytest.mark.parametrize("tensors", [{}, {"empty": np.zeros((0, 4), np.float16)}])
def test_a_file_without_values_has_no_level(bin_dir, tmp_path, tensors):
    path = write_file(tmp_path / "in", tensors)
    assert "quality_level" not in run_ok(bin_dir, "-input", path, "-output", tmp_path / "out")


def test_calls_and_metrics_tell_the_token_snr(daemon, stubs):
    server = daemon()
    client = Client(server, stubs)
    keys = keys_with_constants(dtype=np.float32)
    _, reports, stream = client.compress({"layer_0_key": keys, "scale": np.array(1234.567, np.float32),
                                          "empty": np.zeros((0,), np.float32)})
    quality = reports["layer_0_key"].quality
    assert quality.snr_db > quality.token_snr_db + 15 and quality.level == "POOR"
    assert not reports["scale"].quality.HasField("snr_db") and reports["scale"].quality.max_error > 0
    assert reports["scale"].quality.level == "EXCELLENT"
    assert stream.quality.token_snr_db == quality.token_snr_db and stream.quality.snr_db == quality.snr_db
    assert stream.worst_tensor == "layer_0_key" and stream.quality.level == "POOR"
    text = page(server.metrics_address)
    series = 'codec="int4",kind="key"'
    assert page_value(text, f"kvcompress_quality_token_snr_db_count{{{series}}}") == 1
    assert page_value(text, f"kvcompress_quality_token_snr_db_sum{{{series}}}") == pytest.approx(max(0, quality.token_snr_db))
    assert page_value(text, 'kvcompress_quality_snr_db_count{codec="int4"}') == 1
    _, _, stream = client.compress({"empty": np.zeros((0,), np.float32)})
    assert stream.quality.level == stream.element_weighted.level == ""
