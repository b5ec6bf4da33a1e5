"""The figures that the README shows of its cache, which is one of a model that people use, measured again."""

import json
import re

import pytest
from cli_helpers import run, run_ok
from conftest import REPOSITORY

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| `(?P<codec>[^`]+)` \|.*\| (?P<ratio>\d+\.\d\d) \|(?: (?P<snr>[\d.]+) dB)? \|$", re.MULTILINE)
ROWS = [(row["codec"].replace("\\|", "|"), row["ratio"], row["snr"]) for row in ROW.finditer(README)]


def metrics(bin_dir, cache, codec, *flags):
    return run_ok(bin_dir, "-input", cache, "-metrics-only", "-codec", codec, *flags)


def test_the_table_of_codecs_is_read_whole():
    section = README.partition("### Choose a codec")[2].partition("\n### ")[0]
    assert len(ROWS) == section.count("\n| `") - 1 == 13, "all but the head"


@pytest.mark.parametrize("codec, ratio, snr", ROWS, ids=[row[0] for row in ROWS])
def test_codecs_give_what_the_readme_says(bin_dir, sample, codec, ratio, snr):
    found = metrics(bin_dir, sample, codec)
    assert f"{found['compression_ratio']:.2f}" == ratio
    if snr is None:
        assert found["snr_db"] is None
    else:
        digits = len(snr.partition(".")[2])
        assert f"{found['snr_db']:.{digits}f}" == snr


def test_the_demo_prints_what_the_readme_says(bin_dir, sample, tmp_path):
    shown = dict(re.findall(r'^         "(\w+)": ([^,\n]+),$', README, re.MULTILINE))
    found = run_ok(bin_dir, "-input", sample, "-output", tmp_path / "small")
    assert len(shown) == 8 and {name: json.loads(value) for name, value in shown.items()} == pytest.approx(
        {name: found[name] for name in shown})
    listed = run(bin_dir, "-inspect", "-input", tmp_path / "small").stdout
    rows = [line.split() for line in re.findall(r'^ +"layer_.*$', README, re.MULTILINE)]
    assert len(rows) == 2 and all(row in map(str.split, listed.splitlines()) for row in rows)


def test_the_cache_says_how_its_keys_turn(bin_dir, sample):
    turned, otherwise = metrics(bin_dir, sample, "kv4"), metrics(bin_dir, sample, "kv4", "-rope-theta", "10")
    assert turned["rotary"]["theta"] == 100000 and otherwise["rotary"]["theta"] == 10
    assert turned["token_snr_db"] > otherwise["token_snr_db"] + 1
