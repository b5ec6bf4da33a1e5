"""The bridge to kv-compress: what it finds, what it reads, how it fails."""

import math
import os
import stat
import subprocess
import sys

import compression_bridge
import pytest
from compression_bridge import (
    CompressionMetrics,
    check_cli_available,
    compress_kv_cache,
    decompress_kv_cache,
    find_cli_binary,
    get_compression_metrics,
    print_metrics_report,
)
from conftest import REPOSITORY, VALIDATION
from safetensors.torch import load_file


def program(path, text="exit 0"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """As if the module lay in another checkout, without a bin/ of its own."""
    monkeypatch.setattr(compression_bridge, "__file__", str(tmp_path / "validation" / "compression_bridge.py"))
    monkeypatch.delenv("KV_COMPRESS_PATH", raising=False)
    monkeypatch.chdir(tmp_path.parent)
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    return tmp_path


def test_the_binary_is_searched_in_the_published_order(elsewhere, monkeypatch):
    with pytest.raises(FileNotFoundError, match="make build"):
        find_cli_binary()
    assert not check_cli_available()
    on_path = program(elsewhere / "path" / "kv-compress")
    assert find_cli_binary() == on_path
    work = elsewhere / "work"
    in_work = program(work / "bin" / "kv-compress")
    monkeypatch.chdir(work)
    assert find_cli_binary() == in_work
    beside = program(elsewhere / "bin" / "kv-compress")
    assert find_cli_binary() == beside
    named = program(elsewhere / "named")
    monkeypatch.setenv("KV_COMPRESS_PATH", named)
    assert find_cli_binary() == named
    assert check_cli_available()
    os.chmod(named, 0o644)
    with pytest.warns(UserWarning, match="KV_COMPRESS_PATH names no program"):
        assert find_cli_binary() == beside


def test_a_binary_that_does_not_run_is_not_available(elsewhere, monkeypatch):
    monkeypatch.setenv("KV_COMPRESS_PATH", program(elsewhere / "named", "exit 1"))
    assert not check_cli_available()


def test_compress_and_back(sample, tmp_path):
    metrics = compress_kv_cache(str(sample), str(tmp_path / "packed"))
    assert metrics.compression_ratio == pytest.approx(
        sum(array.nbytes for array in load_file(sample).values()) / (tmp_path / "packed").stat().st_size)
    assert metrics.compressed_size_bytes == (tmp_path / "packed").stat().st_size
    assert 15 < metrics.snr_db < 18 and metrics.codec == "int4(group=64)"
    own = [value for name, value in metrics.tensor_metrics.items() if name.endswith("_token_snr_db")]
    assert metrics.token_snr_db == pytest.approx(sum(own) / 4) and metrics.warnings == []
    assert metrics.tensor_metrics["layer_10_key_rmse"] > 0
    back = decompress_kv_cache(str(tmp_path / "packed"), str(tmp_path / "back"))
    assert back.quality_level == "UNKNOWN" and math.isnan(back.rmse) and back.original_size_bytes == 393216
    assert {name: (array.shape, array.dtype) for name, array in load_file(tmp_path / "back").items()} == {
        name: (array.shape, array.dtype) for name, array in load_file(sample).items()}


def test_what_chooses_the_codec_reaches_the_program(sample, tmp_path):
    out = str(tmp_path / "out")
    assert compress_kv_cache(str(sample), out, 32).codec == "int4(group=32)"
    assert compress_kv_cache(str(sample), out, sparsity=0.5).codec.startswith("sparse(ratio=0.5)|int4")
    assert compress_kv_cache(str(sample), out, codec="int8").codec == "int8(group=64)"
    profile = str(REPOSITORY / "deploy" / "profiles" / "mixed-n2-q10.json")
    assert compress_kv_cache(str(sample), out, profile=profile).codec == "profile"
    os.remove(out)
    assert get_compression_metrics(str(sample), 128).codec == "int4(group=128)"
    assert get_compression_metrics(str(sample), profile=profile).codec == "profile"
    assert os.listdir(tmp_path) == []
    with pytest.raises(subprocess.CalledProcessError, match="-codec and -profile exclude each other"):
        compress_kv_cache(str(sample), out, codec="raw", profile=profile)


def test_lossless_has_an_infinite_snr(sample):
    metrics = get_compression_metrics(str(sample), codec="lossless")
    assert (metrics.snr_db, metrics.token_snr_db, metrics.rmse, metrics.passed) == (math.inf, math.inf, 0, True)


def test_verbose_shows_what_the_program_tells(sample, capfd):
    get_compression_metrics(str(sample))
    assert capfd.readouterr() == ("", "")
    get_compression_metrics(str(sample), verbose=True)
    captured = capfd.readouterr()
    assert "layer_10_key" in captured.err and captured.out == ""


def test_a_failure_says_why(tmp_path):
    missing = str(tmp_path / "none")
    with pytest.raises(subprocess.CalledProcessError) as failure:
        compress_kv_cache(missing, str(tmp_path / "out"))
    assert str(failure.value) == (f"kv-compress failed with exit code 1: read input: open {missing}: "
                                  "no such file or directory")
    assert failure.value.returncode == 1 and "\nError: read input" in failure.value.stderr


@pytest.mark.parametrize("printed", ["", "no json", "[1]", '{"rmse": '])
def test_output_that_is_no_json_object(elsewhere, monkeypatch, printed):
    monkeypatch.setenv("KV_COMPRESS_PATH", program(elsewhere / "named", f"printf '%s' '{printed}'"))
    with pytest.raises(ValueError, match="printed"):
        compress_kv_cache("in", "out")


def test_from_dict_takes_missing_and_further_keys():
    empty = CompressionMetrics.from_dict({})
    assert (empty.original_size_bytes, empty.quality_level, empty.passed, empty.violations) == (0, "UNKNOWN", False, [])
    assert all(math.isnan(value) for value in (empty.compression_ratio, empty.rmse, empty.snr_db, empty.max_error))
    full = CompressionMetrics.from_dict({"compression_ratio": 3, "rmse": 0.5, "snr_db": None, "quality_passed": True,
                                         "violations": ["x"], "never_heard_of": {}})
    assert (full.compression_ratio, full.passed, full.violations) == (3.0, True, ["x"])
    assert math.isnan(full.snr_db), "an SNR of null is infinite only where the error is 0"
    assert CompressionMetrics.from_dict({"rmse": 0.0, "snr_db": None}).snr_db == math.inf


def test_report(sample, capsys):
    print_metrics_report(get_compression_metrics(str(sample)), "A title")
    text = capsys.readouterr().out
    assert text.startswith("A title\n=======\n")
    assert "3.728x" in text and "16.26 dB" in text and "missed: RMSE 0.2822 > 0.1000" in text
    print_metrics_report(CompressionMetrics.from_dict({}))
    text = capsys.readouterr().out
    assert "not measured" in text and "nan" not in text


def test_the_bridge_needs_python_alone():
    code = "import sys, compression_bridge; print('torch' in sys.modules, 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=VALIDATION, capture_output=True, text=True, check=True)
    assert done.stdout == "False False\n"
