"""What the report of the transports makes of its measurements: ratios within a round, CPU outside the codec and gRPC,
and which of them are promised."""

import pathlib
import re
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "bench")]
import bench_report  # noqa: E402
import bench_transport  # noqa: E402
import measurements  # noqa: E402


def row(gb_per_s, user=0.0, codec=0.0):
    """What a contestant did in a round of a second."""
    tensor_bytes = gb_per_s * 1e9
    return {"tensor_bytes": tensor_bytes, "seconds": 1.0, "client_user": user * gb_per_s, "client_system": 0.0,
            "server_user": user * gb_per_s, "server_system": 0.0, "codec_tensor_bytes": tensor_bytes if codec else 0.0,
            "codec_seconds": codec * gb_per_s}  # fmt: skip


@pytest.fixture
def rounds():
    """Two rounds, of which the second was on a machine half as fast."""
    steady = {name: [row(4.0), row(2.0)] for name, *_ in bench_transport.CONTESTANTS}
    for path in bench_report.PATHS:
        steady[f"sink {path}"] = [row(3.0, user=0.11), row(1.5, user=0.11)]
        steady[f"daemon {path}"] = [row(2.0, user=0.33, codec=0.2), row(1.0, user=0.33, codec=0.2)]
    steady["embedded"] = [row(12.0, user=0.15), row(6.0, user=0.15)]
    return steady


def results(rounds, sink_us=100.0):
    cell = {"streams": 1, "tensor_bytes": 64 << 20, **bench_report.summarize(rounds)}
    latency = {name: {"p50": sink_us if name.startswith("sink") else 130.0, "p99": 1.0, "p99.9": 1.0, "calls": 1}
               for name, *_ in bench_transport.CALLERS}  # fmt: skip
    return {"cells": [cell], "latency_us": latency, "batches": {}, "peak_rss_bytes": {}, "machine": {"cpu": "", "cores": 2}}


def test_what_grpc_and_the_codec_allow_is_one_after_the_other_within_a_round(rounds):
    cell = bench_report.summarize(rounds)
    # 1 / (1/3 + 1/12) = 2.4 GB/s in the first round, and half of it, for half of the speed, in the second.
    assert cell["ratios"]["daemon/allowed tcp"] == pytest.approx(2 / 2.4)
    assert cell["ratios"]["daemon/sink tcp"] == pytest.approx(2 / 3)


def test_a_peer_that_stood_still_is_no_bound(rounds):
    rounds["sink unix"] = [row(0.0), row(0.0)]
    rounds["daemon unix"] = [row(0.0), row(0.0)]
    assert bench_report.summarize(rounds)["ratios"]["daemon/allowed unix"] == float("inf")


def test_cpu_outside_the_codec_and_grpc(rounds):
    contestants = bench_report.summarize(rounds)["contestants"]
    # The embedded codec took less than what the daemon's clock says of its own.
    assert contestants["daemon tcp"]["outside_codec_s_per_gb"] == pytest.approx(0.33 - 0.15)
    assert contestants["daemon tcp"]["outside_codec_and_grpc_s_per_gb"] == pytest.approx(0.33 - 0.15 - 0.11)
    assert "outside_codec_and_grpc_s_per_gb" not in contestants["daemon shm"]  # no sink has its path


def test_targets_are_what_the_goals_say(rounds):
    found = {target["what"]: target for target in bench_report.targets(results(rounds))}
    allowed = found["Compress over unix / what gRPC that does nothing and the codec allow together"]
    assert (allowed["value"], allowed["wanted"], allowed["met"]) == (pytest.approx(2 / 2.4), "at least 0.9", False)
    cpu = found["daemon's user CPU outside the codec and gRPC, s/GB, tcp"]
    assert (cpu["value"], cpu["wanted"], cpu["met"]) == (pytest.approx(0.07), "at most 0.08", True)
    p50 = "p50 of a 64 KiB CompressTensor / unary call that does nothing, tcp"
    assert found[p50]["value"] == pytest.approx(1.3) and found[p50]["met"]
    slower = {target["what"]: target for target in bench_report.targets(results(rounds, sink_us=90.0))}
    assert not slower[p50]["met"] and slower[p50]["wanted"] == "at most 1.4"
    assert not any("over tcp / gRPC that does nothing" in what or "shared memory / Compress" in what for what in found)


def test_a_target_knows_what_each_round_says_of_it(rounds):
    rounds["sink tcp"] = [row(3.0, user=0.11), row(1.0, user=0.11)]
    found = {target["what"]: target for target in bench_report.targets(results(rounds))}
    allowed = found["Compress over tcp / what gRPC that does nothing and the codec allow together"]
    # In the second round 1 / (1/1 + 1/6) = 6/7 GB/s are allowed, and the daemon has 1.
    assert allowed["rounds"] == pytest.approx([2 / 2.4, 7 / 6]) and allowed["most"] == 1
    cpu = found["daemon's user CPU outside the codec and gRPC, s/GB, tcp"]
    assert cpu["rounds"] == pytest.approx([0.07, 0.07])


def test_a_round_in_which_a_contestant_stood_still_has_no_cpu(rounds):
    rounds["daemon unix"] = [row(0.0), row(1.0, user=0.33, codec=0.2)]
    found = {target["what"]: target for target in bench_report.targets(results(rounds))}
    assert len(found["daemon's user CPU outside the codec and gRPC, s/GB, unix"]["rounds"]) == 1


def test_the_tables_have_the_older_figures_beside_the_targets(rounds):
    raw = results(rounds)
    header, tcp = bench_report.throughput_table(raw).splitlines()[1:3]
    named = {}
    for word in re.finditer(r"\S+( \S+)*", header):
        named[word[0]] = tcp[: word.end()].split("  ")[-1].strip()  # columns are aligned on the right
    assert named["ours/sink"] == "0.67" and named["ours/allowed"] == "0.83"
    assert named["outside codec"] == "0.18" and named["and gRPC"] == "0.07"
    section = next(iter(measurements.transport(raw)))
    cells = {one["name"]: {column: cell["value"] for column, cell in one["cells"].items()} for one in section["rows"]}
    assert cells["daemon tcp"]["of allowed"] == pytest.approx(2 / 2.4)
    assert cells["daemon tcp"]["outside codec and gRPC, CPU s/GB"] == pytest.approx(0.07)
    assert "of allowed" not in cells["sink tcp"] and "of allowed" not in cells["daemon shm"]
    assert set(section["columns"]) >= set(cells["daemon tcp"]) and section["bars"] == ["speed"]
