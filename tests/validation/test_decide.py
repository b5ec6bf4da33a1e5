"""decide.py: the page, the figures and the decision, on a small model."""

import json
import math
import re
import subprocess
import sys

import decide
import decide_page
import pytest
from compression_bridge import CompressionError, artifact_id, find_cli_binary, measure_codec
from conftest import VALIDATION, make_model
from kvcompress.calibration import calibrate, collect_cache
from results import Change, ValidationResult
from validate_perplexity import Setup

CODECS = ["--codec", "kv3", "--codec", "int4", "--codec", "lossless-fast"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model's directory, with windows of token ids, and an artifact of it."""
    path = tmp_path_factory.mktemp("tiny")
    model = make_model()
    model.save_pretrained(path)
    windows = [[(7 * i * i + 3 * i + row) % 64 for i in range(100)] for row in range(4)]
    (path / "windows.json").write_text(json.dumps({"prefix_len": 72, "windows": windows}))
    (path / "artifacts").mkdir()
    collect_cache(model, windows, path / "cache.safetensors")
    calibrate([path / "cache.safetensors"], path / "artifacts" / "tiny.kvcal", group_dim=64, program=find_cli_binary())
    return path


def run(folder, *args):
    return subprocess.run([sys.executable, str(VALIDATION / "decide.py"), "--model", folder, "--token-windows",
                           folder / "windows.json", "--cpu", *map(str, args)], capture_output=True, text=True)


@pytest.fixture(scope="module")
def decided(folder, tmp_path_factory):
    """The JSON, the page and standard output of one run."""
    page = tmp_path_factory.mktemp("page") / "p.html"
    done = run(folder, *CODECS, "--artifacts", folder / "artifacts", "--max-kl", "1e-3", "--bandwidth", "25Gbit/s,1MB/s",
               "--context-tokens", "4096", "--output", page)
    assert done.returncode == 0, done.stderr
    return json.loads(page.with_suffix(".json").read_text()), page.read_text(), done.stdout


def test_each_codec_has_bits_divergence_speed_and_links(decided, folder):
    figures = decided[0]
    named = artifact_id(str(folder / "artifacts" / "tiny.kvcal"))
    artifacts = {f"kv(bits={bits},artifact={named})" for bits in decide.ARTIFACT_BITS}
    codecs = {codec["codec"]: codec for codec in figures["codecs"]}
    assert set(codecs) == {"kv3", "int4", "lossless-fast"} | artifacts
    assert figures["context_tokens"] == 4096 and figures["noise_floor_kl"] > 0 and figures["windows"] == 4
    assert [link["bandwidth"] for link in figures["links"]] == ["25Gbit/s", "1MB/s"]
    bits = [codec["both"]["bits_per_value"] for codec in figures["codecs"]]
    assert bits == sorted(bits)
    for name, codec in codecs.items():
        assert codec["encode_gb_per_s"] > 0 and codec["pays_below_bytes_per_second"]["both"]["serial"] >= 0
        assert len(codec["links"]) == 2
        for part in ("both", "keys", "values"):
            assert (codec[part]["kl"] == 0) == (name == "lossless-fast")
            assert codec[part]["bits_per_value"] < 17
    assert codecs["kv3"]["keys"]["bits_per_value"] < codecs["kv3"]["values"]["bits_per_value"]


def test_the_cheapest_is_the_smallest_that_keeps_the_divergence(decided):
    figures = decided[0]
    for part, chosen in figures["cheapest"].items():
        kept = [codec for codec in figures["codecs"] if codec[part]["kl"] <= 1e-3]
        assert chosen == min(kept, key=lambda codec: codec[part]["bits_per_value"])["codec"]
    for index, (link, soonest) in enumerate(figures["soonest"].items()):
        assert link == figures["links"][index]["bandwidth"]
        saved = {codec["codec"]: codec["links"][index]["saved_first_token_seconds"]["serial"]
                 for codec in figures["codecs"] if codec["both"]["kl"] <= 1e-3}
        assert soonest == (max(saved, key=saved.get) if max(saved.values()) > 0 else None)
    assert figures["soonest"]["1MB/s"] is not None


def test_the_page_is_whole_and_loads_nothing(decided):
    figures, page, _ = decided
    assert not re.search(r"src=|@import|url\((?!#)|<script|<link", page)
    assert page.count("<svg") == 1 and page.count("<tr") == 1 + len(figures["codecs"])
    assert page.count("<tr class=chosen>") == 1
    chosen = re.search(r"<tr class=chosen><td>(.*?)</td>", page).group(1)
    assert chosen == figures["cheapest"]["both"]
    assert "allowed: 0.001" in page and "Rounding alone, without a codec, makes a KL of " in page


def test_standard_output_names_the_codec_last(decided):
    figures, _, told = decided
    lines = told.splitlines()
    assert lines[0].split()[-1] == "codec"
    codecs = [codec["codec"] for codec in figures["codecs"]]
    assert [line.split()[-1] for line in lines[1:1 + len(codecs)]] == codecs
    assert f"Cheapest with a KL of at most 0.001 nats, keys and values: {figures['cheapest']['both']}, " in told
    assert "Loads 4096 tokens soonest over 1MB/s, under that KL: " in told


def test_without_a_codec_that_keeps_it_the_exit_code_says_so(folder, tmp_path):
    done = run(folder, "--codec", "kv2", "--max-kl", "0", "--quiet", "--output", tmp_path / "p.html")
    assert done.returncode == 1
    assert done.stdout.startswith("Cheapest with a KL of at most 0 nats, keys and values: none of these\n")
    assert json.loads((tmp_path / "p.json").read_text())["cheapest"] == {"both": None, "keys": None, "values": None}
    assert "links" not in json.loads((tmp_path / "p.json").read_text())


@pytest.mark.parametrize("args, code, text", [
    (["--output", "p.png"], 1, "Error: --output writes a .html file, not p.png"),
    (["--output", "none/p.html"], 1, "Error: no such folder: none"),
    (["--output", "p.html", "--max-kl", "nan"], 2, "--max-kl must be 0 or more"),
    (["--output", "p.html", "--max-kl", "inf"], 2, "--max-kl must be 0 or more"),
    (["--output", "p.html", "--codec", " "], 2, "--codec must name a codec"),
    (["--output", "p.html", "--artifacts", "none"], 1, "Error: no artifacts (*.kvcal) in none"),
    (["--output", "p.html", "--windows", "0"], 2, "--windows must be at least 1"),
    ([], 2, "the following arguments are required: --output"),
    (["--output", "p.html", "--codec", "int4", "--windows", "1", "--bandwidth", "fast"], 1, '"fast" is no bandwidth'),
    (["--output", "p.html", "--codec", "int9", "--windows", "1"], 1, 'unknown codec "int9"'),
])
def test_errors(folder, args, code, text):
    done = run(folder, *args)
    assert done.returncode == code and text in done.stderr and "Traceback" not in done.stderr


def test_speeds_come_first_so_that_wrong_flags_fail_before_the_long_measurement(folder, monkeypatch):
    monkeypatch.setattr(decide, "measure", lambda *args, **options: pytest.fail("predictions were measured"))
    setup = Setup(str(folder), token_windows=str(folder / "windows.json"), windows=1)
    with pytest.raises((OSError, ValueError, subprocess.CalledProcessError), match="is no bandwidth"):
        decide.decide(setup, ["int4"], bandwidth=["fast"], device="cpu", verbose=False)


def candidate(codec, bits, kl, saved=(), floor=None):
    change = Change(5.0, 0.1, 0.0, 0.1, 0.0, kl, math.nan, 1.0)
    result = ValidationResult(5.0, 5.1, 0.1, 2.0, 16 / bits, 0.0, 0.0, 1.0, True, change=change, keys_only=change,
                              values_only=change, cache_dtype="float16", noise_floor=floor)
    speed = {"keys": {"bits_per_value": bits}, "values": {"bits_per_value": bits},
             "links": [{"saved_first_token_seconds": {"serial": seconds}} for seconds in saved]}
    return decide.Candidate(codec, result, speed)


def test_what_only_costs_time_is_not_advised_for_a_link():
    link = {"bandwidth": "1GB/s", "uncompressed_context_seconds": 2.0}
    slow = decide.Decision([candidate("a", 2, 0.5, [1.5]), candidate("b", 4, 1e-3, [-0.5])], 0.01,
                           {"links": [link], "context_tokens": 7})
    assert slow.soonest(0) is None and slow.cheapest().codec == "b"
    assert "Loads 7 tokens soonest over 1GB/s, under that KL: no codec, 2.00 s" in decide_page.verdict(slow)
    fast = decide.Decision([candidate("a", 2, 1e-3, [0.5]), candidate("b", 4, 1e-3, [1.5])], 0.01,
                           {"links": [link], "context_tokens": 7})
    assert fast.soonest(0).codec == "b" and fast.cheapest().codec == "a"
    assert "Loads 7 tokens soonest over 1GB/s, under that KL: b, 500 ms in place of 2.00 s" in decide_page.verdict(fast)


@pytest.mark.parametrize("floor, drawn", [(1e-12, False), (2e-3, True)])
def test_the_noise_floor_is_drawn_where_it_is_near(floor, drawn):
    noise = Change(5.0, 0.0, 0.0, 0.0, 0.0, floor, 0.0, 1.0)
    decision = decide.Decision([candidate("a", 2, 0.5, floor=noise), candidate("b", 4, 1e-2, floor=noise)], 0.01, {})
    labels = decide_page._figure(decision).axes[0].get_legend_handles_labels()[1]
    assert ("rounding without a codec" in labels) == drawn and "allowed: 0.01" in labels


def test_one_window_has_no_standard_error_and_its_json_no_nan(folder):
    setup = Setup(str(folder), token_windows=str(folder / "windows.json"), windows=1)
    decision = decide.decide(setup, ["int4", "lossless-fast"], device="cpu", verbose=False)
    assert json.loads(json.dumps(decision.to_dict(), allow_nan=False))["codecs"][0]["both"]["kl_stderr"] is None
    assert "±" not in decide_page.table(decision) and "<svg" in decide_page.page(decision)


def test_a_codec_that_does_not_take_the_values_is_an_error(tmp_path):
    import torch
    from safetensors.torch import save_file

    save_file({"layer_0_key": torch.full((1, 1, 4, 64), math.nan)}, tmp_path / "nan.safetensors")
    with pytest.raises(CompressionError, match=r" is NaN, which int4 cannot hold"):
        measure_codec(str(tmp_path / "nan.safetensors"), "int4")
    with pytest.raises(ValueError, match="is no artifact"):
        artifact_id(str(tmp_path / "nan.safetensors"))


def test_an_error_stands_on_a_line_of_its_own_where_there_is_a_progress_bar(folder, tmp_path):
    done = run(folder, "--codec", "int4", "--bandwidth", "25Gbps/s", "--output", tmp_path / "p.html")
    assert done.returncode == 1
    last = done.stderr.replace("\r", "\n").splitlines()[-1]
    assert last.startswith('Error: kv-compress failed with exit code 1: -bandwidth: "25Gbps/s" is no bandwidth')
