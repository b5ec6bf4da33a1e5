"""validate_perplexity.py and measure_table.py as programs."""

import json
import math
import os
import pathlib
import re
import shutil
import subprocess
import sys

import measure_table
import pytest
import report
import torch
from conftest import VALIDATION, make_model
from gguf_model import write_gguf
from kv_cache_utils import save_kv_cache
from results import Change, ValidationResult
from validate_perplexity import ValidationResult as Published
from validate_perplexity import main, run_full_validation, run_quick_test


def run(*args, script="validate_perplexity.py", **options):
    return subprocess.run([sys.executable, str(VALIDATION / script), *map(str, args)], capture_output=True, text=True,
                          **options)


def with_path(folder):
    """An environment whose Python finds the modules of a folder first."""
    return {**os.environ, "PYTHONPATH": str(folder)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model's directory with windows of token ids beside it."""
    path = tmp_path_factory.mktemp("tiny")
    make_model().save_pretrained(path)
    (path / "windows.json").write_text(json.dumps({"prefix_len": 24, "windows": windows_of(5, 40)}))
    return path


def windows_of(count, tokens):
    return [[(7 * i * i + 3 * i + row) % 64 for i in range(tokens)] for row in range(count)]


def flags(folder):
    return ["--model", folder, "--token-windows", folder / "windows.json", "--cpu"]


def test_quick_test_is_a_measurement_and_says_that_it_is_synthetic():
    done = run("--quick-test", "--cpu", "--threshold", "1e9")
    assert done.returncode == 0, done.stderr
    assert "synthetic: shows that the pipeline works, nothing about a trained model" in done.stdout
    assert "Result:            PASSED: the change is below the threshold of 1000000000.0" in done.stdout
    assert "deprecated" not in done.stderr
    result = run_quick_test(verbose=False)
    assert isinstance(result, Published) and Published is ValidationResult
    assert result.synthetic and result.perplexity_measured and result.change.kl > 0
    assert result.delta == result.compressed_perplexity - result.baseline_perplexity != 2 * result.rmse
    assert result.delta_percent == pytest.approx(100 * result.delta / result.baseline_perplexity)
    assert result.passed == (result.delta < 0.5) and 3.5 < result.compression_ratio < 3.77
    assert run_quick_test(verbose=False, codec="lossless").delta == 0


def test_quick_test_without_torch_does_not_make_a_perplexity_up(tmp_path):
    (tmp_path / "torch.py").write_text("raise ImportError('no torch here')\n")
    done = run("--quick-test", "--json", "--codec", "int8", env=with_path(tmp_path))
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["perplexity_measured"], result["synthetic"], result["passed"]) == (False, True, True)
    assert result["baseline_perplexity"] is result["compressed_perplexity"] is result["delta"] is None
    assert 1.9 < result["compression_ratio"] < 1.94 and result["snr_db"] > 40
    done = run("--quick-test", "--codec", "int2", env=with_path(tmp_path))
    assert done.returncode == 1
    assert "not measured: no model ran" in done.stdout and "FAILED: kv-compress's quality limits are missed" in done.stdout
    assert "nan" not in done.stdout


def test_json_is_all_that_stdout_has(folder):
    done = run(*flags(folder), "--json", "--threshold", "1e9")
    assert (done.returncode, done.stderr) == (0, "")
    result = json.loads(done.stdout)
    assert list(result)[:10] == ["baseline_perplexity", "compressed_perplexity", "delta", "delta_percent",
                                 "compression_ratio", "rmse", "snr_db", "cosine_similarity", "passed", "threshold"]
    assert (result["windows"], result["tokens"], result["spec"], result["model_name"], result["cache_dtype"]) == (
        5, 5 * 15, "int4(group=64)", folder.name, "float16")
    assert result["versions"]["model_dtype"] == "float32" and result["change"]["kl"] > 0
    assert result["keys_only"]["kl"] != result["values_only"]["kl"]


def test_several_specs_and_lossless_as_json(folder, capsys):
    assert main([*map(str, flags(folder)), "--json", "--codec", "lossless", "--codec", "int8", "--windows", "2",
                 "--threshold", "1e9"]) == 0
    lossless, int8 = json.loads(capsys.readouterr().out)
    assert lossless["delta"] == lossless["change"]["kl"] == 0 and lossless["snr_db"] is None
    assert (int8["spec"], int8["windows"]) == ("int8", 2)


def test_a_gguf_file_is_measured_as_the_model_in_it(folder, tmp_path, capsys):
    path = tmp_path / "tiny.gguf"
    write_gguf(make_model(), [*(chr(code) for code in range(33, 96)), "AB"], path)
    both = [[*model, *map(str, flags(folder)[2:]), "--json", "--windows", "2", "--threshold", "1e9"]
            for model in (("--gguf", str(path)), ("--model", str(folder)))]
    found, expected = [json.loads(capsys.readouterr().out) for arguments in both if main(arguments) == 0]
    assert (found["model_name"], found["versions"], found["cache_dtype"]) == (
        "tiny.gguf", expected["versions"], expected["cache_dtype"])
    assert found["baseline_nll"] == pytest.approx(expected["baseline_nll"], rel=1e-5)
    assert found["change"]["kl"] == pytest.approx(expected["change"]["kl"], rel=1e-2)
    done = run("--gguf", path, "--model", folder)
    assert done.returncode == 2 and "argument --model: not allowed with argument --gguf" in done.stderr


def test_a_model_computes_in_float32_and_its_cache_is_saved_in_the_type_of_its_weights(folder, tmp_path, capsys):
    make_model().bfloat16().save_pretrained(tmp_path)
    arguments = ["--model", str(tmp_path), *map(str, flags(folder)[2:]), "--json", "--windows", "1", "--threshold", "1e9"]
    for more, computed, saved in (([], "float32", "bfloat16"), (["--dtype", "bfloat16"], "bfloat16", "bfloat16"),
                                  (["--cache-dtype", "float16"], "float32", "float16")):
        assert main([*arguments, *more]) == 0
        result = json.loads(capsys.readouterr().out)
        assert (result["versions"]["model_dtype"], result["cache_dtype"]) == (computed, saved)


def result_of(kl, noise_kl, dtype="bfloat16"):
    change, floor = [Change(20.4, 0.4, 0.1, 0.02, 0.005, value, 1e-4, 0.98) for value in (kl, noise_kl)]
    return ValidationResult(20.0, 20.4, 0.4, 2.0, 3.76, 0.05, 20.5, 0.995, True, change=change, keys_only=change,
                            values_only=change, noise_floor=floor, spec="int8", cache_dtype="bfloat16", windows=8, tokens=9,
                            versions={"torch": "2", "transformers": "5", "model_dtype": dtype, "device": "cpu"})


def test_what_rounding_does_stands_beside_every_figure_and_a_codec_that_does_no_more_is_called_noise():
    clear, drowned, lossless = result_of(3.1e-3, 1.5e-3), result_of(2.9e-3, 1.5e-3), result_of(0, 1.5e-3)
    for result in (clear, drowned, lossless):
        assert re.search(r"^Noise floor: .* KL 1\.5e-03, .*, of bfloat16 alone$", report.paragraph(result), re.MULTILINE)
        assert report.stack(result).endswith("; noise floor KL 1.5e-03")
        assert result.to_dict()["noise_floor"]["kl"] == 1.5e-3
    assert report.cells(drowned)[7:10] == ("2.9e-03 (noise)",) * 3 and "KL 2.9e-03" in report.paragraph(drowned)
    assert report.cells(clear)[7:10] == ("3.1e-03",) * 3 and report.cells(lossless)[7:10] == ("0",) * 3
    assert report.paragraph(drowned).count("(noise)") == 3 and report.paragraph(clear).count("(noise)") == 0
    assert report.noise_warning(clear) is report.noise_warning(lossless) is None
    assert report.noise_warning(drowned) == (
        "int8: its KL of 2.9e-03 is less than twice the 1.5e-03 that rounding in bfloat16 makes without a codec; measure it "
        "with --dtype float32")
    assert report.noise_warning(result_of(2.9e-9, 1.5e-9, "float32")).endswith("rounding in float32 makes without a codec")


def test_a_measurement_in_bfloat16_warns_of_its_noise(folder, capsys):
    arguments = [*map(str, flags(folder)), "--json", "--threshold", "1e9", "--codec", "quant(bits=12)", "--codec", "int2"]
    assert main([*arguments, "--dtype", "bfloat16"]) == 0
    found = capsys.readouterr()
    assert [line.split(":")[1] for line in found.err.splitlines() if line.startswith("Warning: ")] == [" quant(bits=12)"]
    assert len(json.loads(found.out)) == 2
    assert main(arguments) == 0
    found = capsys.readouterr()
    assert "Warning" not in found.err
    assert all(0 < result["noise_floor"]["kl"] < 1e-10 for result in json.loads(found.out))


def test_without_the_package_that_reads_models(folder, tmp_path):
    (tmp_path / "kvcompress.py").write_text("raise ImportError('not here')\n")
    done = run(*flags(folder), env=with_path(tmp_path))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == ("Error: models and texts are read by the package kvcompress: pip install ../client/python "
                           "(not here)\n")


def test_quiet_is_one_line_and_the_exit_code_is_the_verdict(folder):
    done = run(*flags(folder), "--quiet", "--threshold=-1e9")
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.startswith("FAILED int4(group=64): perplexity ") and done.stdout.count("\n") == 1


def test_progress_and_a_paragraph_otherwise(folder):
    done = run(*flags(folder), "--group-size", "32")
    assert "windows: " in done.stderr
    for text in ("int4(group=32)", "5, 75 tokens scored", "Keys only:", "Values only:", "bytes on disk"):
        assert text in done.stdout


def test_a_result_as_text_is_its_paragraph():
    result = ValidationResult(20.0, 20.4, 0.4, 2.0, 3.76, 0.05, 20.5, 0.995, True)
    text = str(result)
    for figure in ("20.0000", "20.4000", "+0.4000", "+2.000 %", "3.760x", "0.050000", "20.5 dB", "0.995000", "PASSED"):
        assert figure in text, text
    assert "FAILED" not in text
    failed = str(ValidationResult(20.0, 21.0, 1.0, 5.0, 3.76, 0.05, 20.5, 0.995, False))
    assert "FAILED" in failed and "threshold of 0.5" in failed and "PASSED" not in failed


@pytest.mark.parametrize("args, text", [
    (["--codec", "int9"], 'kv-compress failed with exit code 1: unknown codec "int9"'),
    (["--profile", "none.json"], "read profile: open none.json: no such file or directory"),
    (["--codec", f"kv(artifact={'a' * 32})", "--artifacts", "none"], "put its file into none, as NAME.kvcal"),
    (["--prefix-len", "39"], "a window of 40 tokens and a prefix of 39"),
    (["--prefix-len", "0"], "a window of 40 tokens and a prefix of 0"),
    (["--token-windows", "none.json"], "No such file or directory: 'none.json'"),
    (["--sweep", "plot.gif"], "--sweep writes a .png or a .html file, not plot.gif"),
    (["--sweep", "none/plot.png", "--codec", "int9"], "no such folder: none"),
])
def test_errors_are_one_line(folder, args, text, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert report.as_program(lambda: main([*map(str, flags(folder)), "--quiet", *args])) == 1
    captured = capfd.readouterr()
    assert captured.err.startswith("Error: ") and text in captured.err
    assert (captured.out, captured.err.count("\n"), os.listdir(tmp_path)) == ("", 1, [])


def test_a_text_that_is_not_there(folder):
    with pytest.raises(FileNotFoundError, match="no such text: none"):
        run_full_validation("cpu", verbose=False, model_name=str(folder), text="none")


def test_a_model_that_is_not_there(tmp_path):
    done = run("--model", tmp_path / "none", "--text", __file__, "--quiet", env={**os.environ, "HF_HUB_OFFLINE": "1"})
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"Error: no such folder: {tmp_path / 'none'}\n")


@pytest.mark.parametrize("args, text", [(["--windows", "0"], "--windows must be at least 1"),
                                        (["--quick-test", "--sweep", "a.png"], "--quick-test takes one spec"),
                                        (["--quick-test", "--model", "m"], "--quick-test has no use for --model"),
                                        (["--quick-test", "--text", "t"], "--quick-test has no use for --text"),
                                        (["--quick-test", "--windows", "32"], "--quick-test has no use for --windows"),
                                        (["--token-windows", "w", "--text", "t"],
                                         "--token-windows has no use for --text"),
                                        (["--token-windows", "w", "--continuation-len", "64"],
                                         "--token-windows has no use for --continuation-len"),
                                        (["--threshold", "x"], "invalid float value"), (["--no"], "unrecognized")])
def test_flags_that_do_not_parse(args, text, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(args)
    assert stopped.value.code == 2
    assert text in capsys.readouterr().err


def test_sweep(folder, tmp_path):
    picture, page = tmp_path / "plot.png", tmp_path / "plot.html"
    specs = ["--codec", "int4", "--codec", "int4(group=64)|rans", "--codec", "lossless"]
    done = run(*flags(folder), "--quiet", "--threshold", "1e9", *specs, "--sweep", picture)
    assert done.returncode == 0, done.stderr
    assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size > 20000
    results = [run_full_validation("cpu", verbose=False, codec=spec, model_name=str(folder),
                                   token_windows=str(folder / "windows.json")) for spec in specs[1::2]]
    report.plot(results, str(page))
    text = page.read_text()
    assert "<svg" in text and "<td>int4(group=64)|rans</td>" in text and "<td>no loss</td>" in text
    assert "http" not in text.split("</svg>")[1], "the page loads nothing"


def test_an_error_bar_is_that_of_the_percentage():
    """Windows of different difficulty move the absolute change, and not the relative one."""
    changes = [Change(0.0, 0.5, 9.0, delta_nll, 0.01, 0.1, 0.0, 1.0) for delta_nll in (0.1, 0.2)]
    results = [ValidationResult(5.0, 5.5, 0.5, 100 * math.expm1(change.delta_nll), 2.0, 0.0, 0.0, 1.0, True,
                                delta_stderr=9.0, change=change) for change in changes]
    (bars,) = report._figure(results).axes[0].containers[0].lines[2]
    for change, segment in zip(changes, bars.get_segments()):
        low, high = segment[:, 1]
        assert (high - low) / 2 == pytest.approx(100 * math.exp(change.delta_nll) * 0.01)


def test_sweep_without_matplotlib(folder, tmp_path):
    (tmp_path / "matplotlib.py").write_text("raise ImportError\n")
    done = run(*flags(folder), "--sweep", "plot.png", env=with_path(tmp_path))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "Error: --sweep draws with matplotlib, which is not installed: pip install matplotlib\n"


def test_run_full_validation_knows_its_settings(folder):
    result = run_full_validation("cpu", 1e9, False, model_name=str(folder), token_windows=str(folder / "windows.json"),
                                 windows=3, cache_dtype="bfloat16")
    assert (result.windows, result.cache_dtype, result.passed, result.threshold) == (3, "bfloat16", True, 1e9)
    assert result.delta_stderr == result.change.delta_perplexity_stderr > 0
    assert result.compressed_perplexity == result.change.perplexity
    assert result.delta == pytest.approx(result.compressed_perplexity - result.baseline_perplexity)
    assert math.log(result.baseline_perplexity) == pytest.approx(result.baseline_nll)
    with pytest.raises(TypeError, match="window_count"):
        run_full_validation("cpu", window_count=3)


def test_a_text_with_sentencepiece(documents):
    result = run_full_validation("cpu", verbose=False, codec="lossless", model_name=str(documents),
                                 text=str(documents / "eval.txt"), windows=3, prefix_len=100, continuation_len=20)
    assert (result.windows, result.tokens, result.delta) == (3, 57, 0)
    assert 2 < result.baseline_nll < 6


def test_measure_table_writes_between_its_marks(folder, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("nothing to write between\n")
    done = run(folder, "--document", readme, script="measure_table.py")
    assert done.returncode == 1 and done.stderr.startswith("Error: no <!-- table: begin -->")
    readme.write_text(f"before\n{measure_table.BEGIN}\nold\n{measure_table.END}\nafter\n")
    cache = tmp_path / "cache.safetensors"
    save_kv_cache([(torch.randn(1, 2, 64, 16), torch.randn(1, 2, 64, 16))], str(cache))
    model = tmp_path / "many"
    shutil.copytree(folder, model)
    # Enough to learn from: more tokens than a basis has channels.
    (model / "windows.json").write_text(json.dumps({"prefix_len": 60, "windows": windows_of(4, 76)}))
    done = run(model, "--document", readme, "--quiet", "--group-dim", "64", "--cache", cache, script="measure_table.py")
    assert done.returncode == 0, done.stderr
    text = readme.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text
    of_model, of_cache = text.split("`cache.safetensors`:")
    rows = [line for line in of_model.splitlines() if line.startswith("| ")]
    artifacts = {"calibrated": "0" * 32, "calibrated, weighted": "1" * 32}
    assert len(rows) == 2 + len(measure_table.specs(str(tmp_path), artifacts))
    assert {len(row.split(" | ")) for row in rows} == {len(report.COLUMNS) + len(measure_table.SPEEDS)}
    calibrated = [row.split(" | ") for row in rows if row.startswith("| kv3, calibrated")]
    assert len(calibrated) == 2 and all(float(row[7]) > 0 for row in calibrated)
    swept = [line.split(" | ")[0].strip("| ") for line in of_cache.splitlines() if line.startswith("| ")]
    assert set(swept[2:]) == {codec.replace("|", "\\|") for codec in measure_table.CODECS}
    assert "2 windows, 30 tokens scored" in text and "torch 2." in text
    lossless = next(row for row in rows if row.startswith("| lossless "))
    assert lossless.count("| 0 ") == 5 and lossless.count("| no loss ") == 3 and "100.00 %" in lossless
    assert next(row for row in rows if row.startswith("| int4(group=64)")).count(" ± ") == 2
    with pytest.raises(ValueError, match=r"has neither windows\.json nor eval.txt to measure on: give --text FILE"):
        measure_table.of_model(str(tmp_path), 1, 64, False)
    with pytest.raises(ValueError, match="has 1 windows: one half is learned from"):
        measure_table.of_model(str(folder), 1, 64, False)


def test_measure_table_takes_a_text_for_models_that_have_none(folder, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(measure_table, "load_model_and_tokenizer", lambda *args: (None, None))
    monkeypatch.setattr(measure_table, "windows_of", lambda setup, model, tokenizer: asked.append(setup) or [])
    own = tmp_path / "own"
    own.mkdir()
    (own / "eval.txt").touch()
    for name in (str(folder), str(own), "a/name", "a.gguf"):
        with pytest.raises(ValueError, match="has 0 windows"):
            measure_table.of_model(name, None, 64, False, text="given.txt", prefix_len=7, dtype="float32")
    assert [(setup.token_windows, setup.text, setup.prefix_len, setup.windows) for setup in asked] == [
        (str(folder / "windows.json"), None, None, 96), (None, str(own / "eval.txt"), 7, 48),
        (None, "given.txt", 7, 48), (None, "given.txt", 7, 48)]


def test_the_published_table_is_a_measurement():
    """What must hold of any measurement holds of the published table, within half of the last digit."""
    document = pathlib.Path(measure_table.DOCUMENT).read_text()
    table = document.partition(measure_table.BEGIN)[2].partition(measure_table.END)[0]
    sections = re.split(r"baseline ([\d.]+) nats/token \(perplexity ([\d.]+)\)", table)[1:]
    assert len(sections) >= 6
    for nll, perplexity, text in zip(map(float, sections[::3]), map(float, sections[1::3]), sections[2::3]):
        assert math.exp(nll) == pytest.approx(perplexity, abs=5e-5 * (1 + perplexity))
        of_model = text.split("\n\n`")[0]
        lines = [line.strip("| ").split(" | ") for line in of_model.splitlines() if line.startswith("| ")]
        rows = {row[0]: row[1:] for row in lines[2:]}
        assert rows.pop("lossless")[1:10] == ["no loss"] * 3 + ["0"] * 5 + ["100.00 %"]
        for bits, _, _, _, change, nats, kl, *_ in rows.values():
            assert 0 < float(bits) < 32 and float(kl) > 0
            nats = float(nats.split(" ")[0])
            delta, percent = map(float, re.fullmatch(r"(\S+) ± \S+ \((\S+) %\)", change).groups())
            rounding = 5e-6 * math.exp(nats)
            assert percent == pytest.approx(100 * math.expm1(nats), abs=5e-4 + 100 * rounding)
            assert delta == pytest.approx(perplexity * math.expm1(nats), abs=1e-4 + perplexity * rounding)
        # More bits, less noise: in keys, in values.
        order = [rows[spec] for spec in (
            "int2(group=64)", "int3(group=64)", "int4(group=64)", "int4(group=32)", "int8(group=64)")]
        for column in (1, 2, 3):
            noise = [float(row[column].removesuffix(" dB")) for row in order]
            assert noise == sorted(noise)
        assert [float(row[0]) for row in order] == sorted(float(row[0]) for row in order)
