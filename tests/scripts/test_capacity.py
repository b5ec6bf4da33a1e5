"""The model of docs/capacity.md: its arithmetic, what it takes of a run, and that the document has its tables."""

import json
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "bench"))
import capacity  # noqa: E402

DOCUMENT = ROOT / "docs" / "capacity.md"
INPUTS = ROOT / "docs" / "capacity.json"


def test_cores_that_fill_a_link_are_what_makes_the_gain_the_ratio():
    # 100 GB/s of tensors become 25 GB/s of frames; a core makes 5 GB/s of them: 0.2 s a GB, a quarter of it for moving.
    full = capacity.cores_to_fill(25, ratio=4, speed=1 / 0.15, cost=0.05)
    assert full == pytest.approx(20)
    for cores, expected in [(10, 2), (20, 4), (40, 4), (2.5, 0.5)]:
        assert capacity.gain(25, 4, 1 / 0.15, 0.05, cores) == pytest.approx(expected)


def test_pays_up_to_the_link_where_raw_is_as_fast():
    link = capacity.pays_below(speed=10, cost=0.1, cores=8)
    assert link == pytest.approx(40)
    assert capacity.gain(link, 4, 10, 0.1, 8) == pytest.approx(1)


@pytest.fixture
def run(tmp_path):
    def row(spec, ratio, encode, decode):
        return {"spec": spec, "compression_ratio": ratio, "encode_gb_per_s": encode, "decode_gb_per_s": decode}

    def kernel(name, speed, kind="iteration"):
        return {"run_name": name, "run_type": kind, "bytes_per_second": speed * 1e9}

    def cell(path, tensor_bytes, client, server):
        return {"path": path, "tensor_bytes": tensor_bytes, "client_s_per_gb": client, "server_s_per_gb": server}

    swept = [row(spec, 2.0, 20.0, 3.0) for spec in capacity.CODECS]
    chains = [
        kernel("encode int4(group=64)/real_time", 9),
        kernel("encode int4(group=64)/real_time", 10),
        kernel("encode int4(group=64)/real_time", 99, "aggregate"),
        kernel("decode int4(group=64)", 30),
        kernel("memcpy", 18),
    ]
    cells = [
        cell("pipe", 1 << 20, 9, 9),
        cell("pipe", 16 << 20, 0.2, 0.3),
        cell("pipe", 64 << 20, 0.1, 0.3),
        cell("pipe", 1 << 30, 0.1, 0.2),
        cell("free", 16 << 20, 0, 0.01),
    ]
    machine = {"cpu": "a CPU", "cores": 2, "daemon": "a daemon", "load": [0, 0, 0]}
    for name, content in [
        ("codecs", [{"specs": swept}]),
        ("kernels", {"benchmarks": chains}),
        ("scale", {"machine": machine, "cells": cells}),
    ]:
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    return tmp_path


def test_collects_the_slower_speed_and_what_large_tensors_cost_to_move(run):
    found = capacity.collect(run)
    assert found["machine"] == {"cpu": "a CPU", "cores": 2, "daemon": "a daemon"}
    assert list(found["codecs"]) == capacity.CODECS
    assert found["codecs"]["int4(group=64)"] == {"ratio": 2, "encode_gb_per_s": 10, "decode_gb_per_s": 3}
    assert found["codecs"]["kv2"] == {"ratio": 2, "encode_gb_per_s": 20, "decode_gb_per_s": 3}
    # Without the codec's 0.1 s; the median of three cells; never below 0.
    assert found["moving_s_per_gb"] == pytest.approx({"in the process": 0, "pipe": 0.3, "free": 0})


def test_document_has_the_tables_of_its_inputs():
    text = DOCUMENT.read_text()
    shown = text.split("<!-- tables: begin -->\n")[1].split("<!-- tables: end -->")[0]
    made = capacity.tables(json.loads(INPUTS.read_text()), 200, [8, 16, 32, 64], "shared memory")
    assert shown == "\n".join(made)


def test_document_has_the_output_of_its_example():
    command, shown = re.search(r"^    (bench/capacity.py tables docs/.*)\n\n((?:    .*\n|\n)+)", DOCUMENT.read_text(), re.M).groups()
    done = subprocess.run([sys.executable, *command.split()], cwd=ROOT, check=True, capture_output=True, text=True)
    made = done.stdout.splitlines()
    lines = [line.strip() for line in shown.splitlines() if line.strip()]
    assert len(lines) > 4 and [line for line in lines if line not in made] == []


def test_document_has_the_quality_of_the_readme():
    row = re.compile(r"^\| `([^`]+)` \|.*\| ([\d.]+ %) \|$", re.M)
    quality = dict(row.findall((ROOT / "README.md").read_text()))
    assert quality["kv4"] == "98.0 %" and "int4(group=64)" in quality
    text = DOCUMENT.read_text()
    assert [spec for spec, same in quality.items() if f"`{spec}` {same}" not in text] == []


@pytest.mark.parametrize(
    "words, said",
    [
        (["tables", INPUTS, "--path", "pigeon"], "has no path 'pigeon'; it has: in the process, unix socket, shared memory"),
        (["tables", "gone.json"], "gone.json: No such file"),
        (["collect", "gone"], "codecs.json: No such file"),
        (["tables", DOCUMENT], "is nothing that `tables` reads"),
        (["tables", INPUTS, "--link-gbit", "0"], "argument --link-gbit: '0' is no whole number above 0"),
        (["tables", INPUTS, "--cores", "8,0"], "argument --cores: '0' is no whole number above 0"),
    ],
)
def test_what_it_cannot_use_is_said_in_a_line(words, said):
    command = [sys.executable, ROOT / "bench" / "capacity.py", *words]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert "Traceback" not in done.stderr and said in done.stderr.splitlines()[-1]
