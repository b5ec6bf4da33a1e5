"""The benchmarks beside other people's codecs, on what needs no other packages."""

import json
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[3]
BENCH = ROOT / "bench"
sys.path.insert(0, str(BENCH))
import measurements  # noqa: E402


@pytest.mark.parametrize("spec", ["int4(group=64)", "lossless"])
def test_contestants_take_turns_in_processes_of_their_own(tmp_path, spec):
    output = tmp_path / "peers.json"
    command = [sys.executable, BENCH / "peers" / "measure.py", "--rounds", "1", "--seconds", "0.01", "--output", output]
    subprocess.run([*command, "--only", f"memcpy,kvcompress {spec},zstd -1"], check=True, timeout=100)
    rows = {row["name"]: row for row in json.loads(output.read_text())["rows"]}
    assert set(rows) == {"memcpy", f"kvcompress {spec}", "zstd -1"}
    assert all(
        row[way]["gb_per_s"] > 0 and row[way]["of_memcpy"] > 0 for row in rows.values() for way in ("encode", "decode")
    )
    assert rows["zstd -1"]["coded_bytes"] < rows["memcpy"]["coded_bytes"] == rows["memcpy"]["tensor_bytes"]


def test_a_chunk_goes_to_redis_and_through_a_daemon(tmp_path):
    output = tmp_path / "chunk.json"
    command = [sys.executable, BENCH / "peers" / "chunk.py", "--rounds", "1", "--seconds", "0.01", "--output", output]
    subprocess.run(command, check=True, timeout=100, cwd=ROOT)
    raw = json.loads(output.read_text())
    rows = {row["name"]: row["cells"] for row in next(measurements.chunk(raw))["rows"]}
    assert rows["redis, raw"]["bytes"]["value"] == 1
    assert {"redis, int4(group=64)", "daemon, tcp, int4(group=64)", "in the process, int4(group=64)"} <= set(rows)
    for name, cells in rows.items():
        assert min(cells["store"]["value"], cells["load"]["value"]) > 0, name
        assert name == "redis, raw" or "flight" in name or 0.1 < cells["bytes"]["value"] < 0.3, name
    assert not list(pathlib.Path("/dev/shm").glob("kv-chunk-*")), "shared memory stays behind"


def test_a_contestant_that_is_not_installed_is_left_out_with_a_line(tmp_path, monkeypatch):
    sys.path.insert(0, str(BENCH / "peers"))
    import environments
    import measure

    monkeypatch.setattr(environments, "ENVIRONMENTS", tmp_path)
    processes, absent = measure.start(["zipnn"], measure.SAMPLE, install=False)
    assert not processes
    assert "not installed" in absent["zipnn"]
