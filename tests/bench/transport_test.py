#!/usr/bin/env python3
"""Runs the transport benchmark on tiny loads, and checks that its results are complete: every contestant moves tensors
in every cell, every caller gets answers, every target has a verdict, and nothing is left behind.

usage: transport_test.py BUILD_FOLDER FOLDER_OF_THE_DAEMON
"""
import json
import pathlib
import subprocess
import sys
import tempfile

SCRIPTS = pathlib.Path(__file__).resolve().parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))
import bench_report  # noqa: E402
import bench_transport  # noqa: E402

STREAMS = 2
TENSORS = [64 << 10, 1 << 20]
CALLS = 100


def check(results):
    cells = results["cells"]
    assert [(cell["streams"], cell["tensor_bytes"]) for cell in cells] == [(STREAMS, size) for size in TENSORS]
    for cell in cells:
        assert set(cell["contestants"]) == {name for name, _, _ in bench_transport.CONTESTANTS}
        for name, entry in cell["contestants"].items():
            assert entry["max_gb_per_s"] > 0, f"{name} moved nothing: {entry}"
            assert entry["min_gb_per_s"] <= entry["gb_per_s"] <= entry["max_gb_per_s"], entry
        assert set(cell["ratios"]) == set(bench_report.RATIOS)
    assert set(results["latency_us"]) == {name for name, _, _ in bench_transport.CALLERS}
    for name, row in results["latency_us"].items():
        assert row["calls"] == CALLS and 0 < row["p50"] <= row["p99"] <= row["p99.9"], f"{name}: {row}"
    assert set(results["batches"]) == {name for name, *_ in bench_transport.BATCHERS}
    for name, ways in results["batches"].items():
        for way, calls in ways.items():
            assert (calls["many"]["tensors"], calls["one"]["tensors"]) == (64, 1), name
            assert calls["cpu_ratio"] > 0, calls
            for row in (calls["many"], calls["one"]):
                assert row["direction"] == way and row["gb_per_s"] > 0 and row["client_cpu_per_gb"] > 0, row
                assert (row["server_cpu_per_gb"] > 0) == (name != "local"), row
    assert set(results["peak_rss_bytes"]) == {"socket", "sink", "daemon"}
    assert all(value > 1 << 20 for value in results["peak_rss_bytes"].values()), results["peak_rss_bytes"]
    assert len(results["targets"]) >= 10
    for target in results["targets"]:
        limit = float(target["wanted"].split()[-1])
        good = target["value"] >= limit if "least" in target["wanted"] else target["value"] <= limit
        assert target["met"] == good, target


def main():
    build, daemon = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        output = pathlib.Path(folder) / "results.json"
        run = subprocess.Popen(
            [SCRIPTS / "bench_transport.py", "--build", build, "--bin", daemon, "--output", output, "--rounds", "2",
             "--streams", str(STREAMS), "--tensors", ",".join(map(str, TENSORS)), "--window-ms", "80",
             "--warm-up-ms", "40", "--calls", str(CALLS)], stdout=subprocess.PIPE, text=True)
        table, _ = run.communicate(timeout=110)
        assert run.returncode == 0
        results = json.loads(output.read_text())
    check(results)
    rows = [line for line in table.splitlines() if line.startswith(str(STREAMS))]
    assert len(rows) == len(TENSORS) * 5, table
    left = list(pathlib.Path("/dev/shm").glob(bench_transport.shared_memory_prefix(run.pid) + "*"))
    assert not left, left
    return 0


if __name__ == "__main__":
    sys.exit(main())
