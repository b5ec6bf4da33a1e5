"""The script of Fisher metrics, as its user types it."""

import fcntl
import json
import os
import re
import struct
import subprocess
import sys
import termios

import pytest
from compression_bridge import find_cli_binary
from conftest import VALIDATION
from kvcompress.calibration import fisher_run

SEED = ["--entity", "mcgrof-citizen", "--project", "gpt2-ra-v2-h100", "--generate-compression-config",
        "--compression-config-output", "compression_config.json"]


def script(*arguments, **environment):
    return subprocess.run([sys.executable, "scripts/analyze_fim_metrics.py", *map(str, arguments)], cwd=VALIDATION,
                          capture_output=True, text=True, timeout=100, env={**os.environ, **environment})


def metrics_file(folder, names=("first",), traces=(0.85, 0.96)):
    summary = {f"fisher/layer0/head{head}/{name}": value for head, trace in enumerate(traces)
               for name, value in (("trace", trace), ("cond", 2e7), ("eigmax", 0.2))}
    path = folder / "fim_metrics_mine.json"
    path.write_text(json.dumps([{"run_info": {"display_name": name}, "config": {}, "summary_metrics": summary}
                                for name in names]))
    return path


def test_without_the_service_it_says_what_to_do_instead(tmp_path):
    (tmp_path / "wandb.py").write_text("raise ImportError('none here')")
    done = script(*SEED, "--output-dir", tmp_path / "out", PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    assert done.stderr.startswith("Error: --entity and --project ask a hosted service, which needs its client and a login ")
    assert "--metrics FILE" in done.stderr
    assert "--model MODEL" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not list((tmp_path / "out").iterdir())


SERVICE = """
class Run:
    name, id, url, state, created_at = "gpt2-run", "a1", "https://x", "finished", "2026-01-01"
    config, summary = {"n_layer": 1, "n_head": 2}, {"loss": 1.0, "_wandb": {}}
    summary |= {f"fisher/layer0/head{head}/trace": 0.5 + head / 10 for head in range(2)}
    def history(self, pandas): return [{"_step": 1}]
class Api:
    def runs(self, path):
        if path != "mcgrof-citizen/gpt2-ra-v2-h100": raise RuntimeError("no login")
        return [Run()]
"""


def test_with_the_service_it_keeps_what_it_was_told(tmp_path):
    """A stand-in for the service's client."""
    (tmp_path / "wandb.py").write_text(SERVICE)
    out = tmp_path / "out"
    done = script(*SEED, "--output-dir", out, PYTHONPATH=str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(path.name for path in out.iterdir()) == [
        "compression_config.json", "compression_config_summary.txt", "fim_metrics_gpt2-ra-v2-h100.json",
        "fim_summary.txt", "fim_summary_gpt2-ra-v2-h100.csv"]
    (kept,) = json.loads((out / "fim_metrics_gpt2-ra-v2-h100.json").read_text())
    assert kept["run_info"] == {"entity": "mcgrof-citizen", "project": "gpt2-ra-v2-h100", "run_name": "gpt2-run",
                                "display_name": "gpt2-run", "run_id": "a1", "url": "https://x", "state": "finished",
                                "created_at": "2026-01-01"}
    assert kept["history"] == [{"_step": 1}]
    again = script("--metrics", out / "fim_summary_gpt2-ra-v2-h100.csv", "--output-dir", tmp_path / "again",
                   "--generate-compression-config")
    assert again.returncode == 0, again.stderr
    name = "compression_config.json"
    assert (tmp_path / "again" / name).read_text() == (out / name).read_text()
    refused = script("--entity", "other", "--project", "p", "--output-dir", out, PYTHONPATH=str(tmp_path))
    assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
    assert "other/p cannot be read from the hosted service (no login); give --metrics FILE" in refused.stderr


def test_steps_without_numbers_are_left_out_with_a_warning(tmp_path):
    history = 'return [{"_step": 1}]'
    assert history in SERVICE
    (tmp_path / "wandb.py").write_text(
        SERVICE.replace(history, 'return [{"_step": 1}, {"_step": 2, "loss": float("nan")}]'))
    done = script(*SEED, "--output-dir", tmp_path, PYTHONPATH=str(tmp_path))
    warning = "Warning: run gpt2-run: 1 of 2 steps of its history have NaN or infinities, and are left out\n"
    assert (done.returncode, done.stderr) == (0, warning)
    (kept,) = json.loads((tmp_path / "fim_metrics_gpt2-ra-v2-h100.json").read_text())
    assert kept["history"] == [{"_step": 1}]


def test_a_model_is_measured_and_the_config_is_of_its_key_value_heads(stories, tmp_path):
    done = script("--model", stories, "--text", stories / "windows.json", "--tokens", 300,
                  "--window", 64, "--output-dir", tmp_path, "--generate-compression-config")
    assert done.returncode == 0, done.stderr
    assert "Fisher metrics" not in done.stderr, "progress is for terminals"
    config = json.loads((stories / "config.json").read_text())
    (run,) = json.loads((tmp_path / f"fim_metrics_{stories.name}.json").read_text())
    assert run["config"]["num_key_value_heads"] == config["num_key_value_heads"]
    assert run["config"]["tokens"] == 256
    heads = {key for key in run["summary_metrics"] if key.endswith("/trace")}
    assert len(heads) == config["num_hidden_layers"] * config["num_attention_heads"]
    made = json.loads((tmp_path / "compression_config.json").read_text())
    assert len(made["per_layer_head"]) == config["num_hidden_layers"] * config["num_key_value_heads"]
    assert made["d_head"] == config["hidden_size"] // config["num_attention_heads"]
    assert made["actual_memory_reduction"] >= 0.5
    assert f"saves {made['expected_kv_memory_savings']} of keys and values" in done.stdout


def test_progress_is_drawn_on_terminals(stories, tmp_path):
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    try:
        subprocess.run([sys.executable, "scripts/analyze_fim_metrics.py", "--model", stories, "--text",
                        stories / "windows.json", "--tokens", "64", "--window", "64", "--output-dir", tmp_path],
                       cwd=VALIDATION, stdout=subprocess.DEVNULL, stderr=theirs, timeout=100, check=True)
        drawn = os.read(ours, 65536).decode()
    finally:
        os.close(ours)
        os.close(theirs)
    assert "Fisher metrics:   0%|" in drawn
    assert "Fisher metrics: 100%|" in drawn


def analyze(capsys, *arguments):
    code = fisher_run.main([*map(str, arguments)])
    return code, capsys.readouterr()


def test_of_several_runs_the_config_takes_the_first_or_the_named_one(tmp_path, capsys):
    path = metrics_file(tmp_path, ("one", "two"))
    options = ("--metrics", path, "--output-dir", tmp_path, "--generate-compression-config",
               "--target-memory-reduction", 0.1)
    code, told = analyze(capsys, *options)
    assert code == 0
    assert told.err == "Warning: 2 runs, of which the first is taken, one: --run-name chooses\n"
    code, told = analyze(capsys, *options, "--run-name", "two", "--output-summary", "of_two.txt")
    assert (code, told.err) == (0, "")
    assert re.findall("Run: (.*)", (tmp_path / "of_two.txt").read_text()) == ["two"]
    assert re.findall("Run: (.*)", (tmp_path / "fim_summary.txt").read_text()) == ["one", "two"]
    code, told = analyze(capsys, *options, "--run-name", "three")
    assert (code, told.err) == (1, "Error: no run is called 'three'; there are: one, two\n")


def test_without_metrics_it_is_an_error(tmp_path, capsys):
    path = tmp_path / "runs.json"
    path.write_text(json.dumps([{"run_info": {"display_name": "r"}, "summary_metrics": {"loss": 3}}]))
    code, told = analyze(capsys, "--metrics", path, "--output-dir", tmp_path)
    assert (code, told.err) == (1, "Error: no run has metrics under fisher/\n")
    assert not (tmp_path / "fim_summary.txt").exists()


@pytest.mark.parametrize(("options", "text"), [
    (["--target-memory-reduction", "0.9"], "cannot be met: at most 49.2% can"),
    (["--d-head", "4"], "layer0/head0: d_head 4 is below the lowest rank, 8"),
    (["--d-head", "65537"], "d_head is an integer from 1 to 65536, not 65537"),
    (["--compression-config-output", "config"], "ends in .json"),
])
def test_what_cannot_be_is_one_line_and_exit_code_1(tmp_path, capsys, options, text):
    code, told = analyze(capsys, "--metrics", metrics_file(tmp_path), "--output-dir", tmp_path,
                         "--generate-compression-config", *options)
    assert code == 1
    assert told.err.startswith("Error: ")
    assert told.err.count("\n") == 1
    assert text in told.err
    assert not list(tmp_path.glob("*config*"))


@pytest.mark.parametrize("options", [
    [], ["--entity", "e"], ["--project", "p"], ["--metrics", "f", "--model", "m"], ["--metrics", "f", "--entity", "e"],
    ["--model", "m", "--tokens", "0"], ["--metrics", "f", "--sensitivity"],
])
def test_flags_that_do_not_fit(capsys, options):
    with pytest.raises(SystemExit) as ended:
        fisher_run.main(options)
    assert ended.value.code == 2
    assert "usage: " in capsys.readouterr().err


def test_sensitivity_without_its_program_is_refused_at_once(capsys, tmp_path, monkeypatch):
    monkeypatch.delenv("KV_COMPRESS_PATH", raising=False)
    monkeypatch.setenv("PATH", "")
    code, told = analyze(capsys, "--model", tmp_path / "no model", "--sensitivity", "--output-dir", tmp_path)
    assert code == 1
    assert told.err.startswith("Error: no kv-compress on PATH")


def test_sensitivity_is_measured_beside_the_metrics_of_a_file(stories, tmp_path, capsys, monkeypatch):
    measure = ("--model", stories, "--text", stories / "windows.json", "--window", 64)
    code, told = analyze(capsys, *measure, "--tokens", 64, "--output-dir", tmp_path)
    assert code == 0, told.err
    measured = tmp_path / f"fim_metrics_{stories.name}.json"
    before = measured.stat().st_mtime_ns
    options = (*measure, "--metrics", measured, "--sensitivity", "--sensitivity-windows", 1, "--output-dir", tmp_path)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setenv("KV_COMPRESS_PATH", find_cli_binary())
    code, told = analyze(capsys, *options)
    assert code == 0, told.err
    assert measured.stat().st_mtime_ns == before
    assert "No plot: matplotlib is not installed" in told.out
    config = json.loads((stories / "config.json").read_text())
    lines = (tmp_path / "sensitivity.csv").read_text().splitlines()
    assert len(lines) == 1 + config["num_hidden_layers"] * config["num_key_value_heads"]
    last = told.out.splitlines()[-1]
    assert "tier" in last
    assert (tmp_path / "sensitivity.txt").read_text().endswith(f"{last}\n")
    monkeypatch.delitem(sys.modules, "matplotlib.figure")
    code, told = analyze(capsys, *options, "--sensitivity-codec", "int2(group=64)")
    assert code == 0, told.err
    assert (tmp_path / "sensitivity.png").exists()
    assert "int2(group=64)" in (tmp_path / "sensitivity.txt").read_text()
    code, told = analyze(capsys, *options, "--sensitivity-codec", "int99")
    assert code == 1
    assert "int99" in told.err.splitlines()[-1]


def test_texts_that_are_too_short_and_models_that_are_missing(documents, stories, tmp_path, capsys):
    short, other = tmp_path / "short.txt", tmp_path / "other.json"
    short.write_text("Once upon a time")
    other.write_text("{}")
    for model, source, text in ((documents, short, "a text of at least 8 tokens"),
                                (documents, tmp_path / "none", "is no file"), (stories, short, "has no tokenizer"),
                                (stories, other, "other.json is not "), (tmp_path / "none", short, "no such folder")):
        code, told = analyze(capsys, "--model", model, "--text", source, "--output-dir", tmp_path)
        assert code == 1
        assert re.search(f"^Error: .*{text}", told.err, re.MULTILINE), told.err
