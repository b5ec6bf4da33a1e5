"""The page of the benchmarks: what it reads, when compressing pays, and what counts as a change."""

import copy
import json
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
BENCH = ROOT / "bench"
sys.path.insert(0, str(BENCH))
import break_even  # noqa: E402
import compare  # noqa: E402
import measurements  # noqa: E402
import page  # noqa: E402
import targets  # noqa: E402
import verdicts  # noqa: E402

KERNELS = {
    "benchmarks": [
        {"run_type": "iteration", "run_name": f"{name}/real_time", "bytes_per_second": speed * 1e9}
        for name, speeds in {
            "memcpy": (10, 11, 12),
            "encode int4": (9, 8, 10),
            "decode int4": (20, 20, 20),
            "encode <b>": (1, 1, 1),
        }.items()
        for speed in speeds
    ]
    + [{"run_type": "aggregate", "run_name": "memcpy", "bytes_per_second": 1}]
}
CODECS = [
    {
        "input": "/somewhere/cache.safetensors",
        "original_size_bytes": 1000000,
        "memcpy_gb_per_s": 10.0,
        "specs": [
            {"spec": "int4", "compression_ratio": 4.0, "snr_db": 18.0, "encode_gb_per_s": 8.0, "decode_gb_per_s": 16.0},
            {
                "spec": "lossless",
                "compression_ratio": 1.5,
                "snr_db": None,
                "encode_gb_per_s": 1.0,
                "decode_gb_per_s": 2.0,
            },
        ],
    }
]
PEERS = {
    "file": "cache.safetensors",
    "rows": [
        {"name": name, "version": "1", "tensor_bytes": 3, "coded_bytes": 2, "snr_db": None,
         **{way: {"gb_per_s": 1.0, "low": 0.9, "high": 1.1} for way in ("encode", "decode")}}
        for name in ("memcpy", "theirs")
    ],
    "absent": {"others": "is not installed"},
}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    """What a run leaves, without transports and files."""
    subprocess.run([sys.executable, BENCH / "page.py", "begin", tmp_path], check=True)
    for name, raw in (("kernels", KERNELS), ("codecs", CODECS), ("peers", PEERS)):
        (tmp_path / f"{name}.json").write_text(json.dumps(raw))
    return tmp_path


def section(run, name):
    (found,) = (one for one in run["sections"] if one["id"] == name)
    return found


def test_targets_are_formed_of_the_worst_cell_of_a_path():
    def row(path, size, call, speed, cpu_ratio):
        speeds = {"gb_per_s": speed, "cpp_gb_per_s": [1.0, 2.0, 4.0]}
        return {"path": path, "tensor_bytes": size, "call": call, "cpu_ratios": [cpu_ratio] * 3, **speeds}

    rows = [
        row("TCP", 64 << 10, "compress", [0.1] * 3, 1.2),
        row("TCP", 64 << 10, "decompress", [0.1] * 3, 1.4),
        row("TCP", 1 << 20, "compress", [1.0, 1.9, 0.1], 2.0),
        row("TCP", 64 << 20, "compress", [0.9, 1.6, 4.0], 2.0),
        row("unix socket", 1 << 20, "compress", [1.0, 2.0, 4.0], 1.0),
    ]
    assert [(one["what"], one["value"], one["met"]) for one in targets.python({"rows": rows})] == [
        ("speed of the Python client / C++ client, TCP, least from 1 MiB: compress of 64 MiB", 0.9, True),
        ("CPU of the Python client / C++ client, TCP, most at 64 KiB: decompress", 1.4, False),
        ("speed of the Python client / C++ client, unix socket, least from 1 MiB: compress of 1 MiB", 1.0, True),
    ]


def test_a_store_of_frames_and_a_daemon_are_judged_beside_those_that_compute_nothing():
    def row(name, store, load):
        return {"name": name, "store": {"gb_per_s": [store]}, "load": {"gb_per_s": [load]}}

    rows = [
        row("redis, raw", 1.0, 2.0),
        row("redis, kv3", 2.0, 1.0),
        row("flight, tcp", 2.0, 2.0),
        row("daemon, tcp, int4(group=64)", 3.0, 1.0),
        row("daemon, unix, int4(group=64)", 3.0, 1.0),
        row("in the process, int4(group=64)", 9.0, 9.0),
    ]
    assert [(one["what"], one["value"], one["met"]) for one in targets.chunk({"rows": rows})] == [
        ("Redis with kv3 / raw, store of a chunk", 2.0, True),
        ("Redis with kv3 / raw, load of a chunk", 0.5, False),
        ("Python client over tcp by int4(group=64) / Arrow Flight, store of a chunk", 1.5, True),
        ("Python client over tcp by int4(group=64) / Arrow Flight, load of a chunk", 0.5, False),
    ]


def target(value, wanted="at least 0.9", **more):
    return {"what": "ours / theirs", "value": value, "wanted": wanted, "met": value >= 0.9, **more}


@pytest.mark.parametrize(
    "one, quiet, noisy",
    [
        (target(1.2, rounds=[1.0, 1.2, 1.3]), "met", "met"),
        (target(0.7, rounds=[0.6, 0.7, 0.8]), "missed", "missed"),
        (target(1.2, rounds=[0.8, 1.2, 1.3]), "not judged", "not judged"),
        (target(0.8, rounds=[0.7, 0.8, 1.0]), "not judged", "not judged"),
        (target(0.8, rounds=[0.7, 1.0, 0.75, 0.8, 0.85]), "missed", "missed"),
        (target(1.2, rounds=[1.3, 1.2, 1.1, 1.0, 0.5]), "met", "met"),
        (target(0.8, rounds=[0.7, 1.0, 0.75, 0.8, 0.92]), "not judged", "not judged"),
        (target(1.1, rounds=[1.05, 1.1, 1.2], most=1), "met", "met"),
        (target(1.43, rounds=[1.3, 1.43, 1.5], most=1), "not judged", "not judged"),
        (target(float("inf"), rounds=[float("inf")] * 3), "not judged", "not judged"),
        (target(1.0), "met", "not judged"),
        (target(0.8), "missed", "not judged"),
        (target(0.5), "missed", "missed"),
        (target(1.0, exact=True), "met", "met"),
        (target(1, "none") | {"met": False}, "missed", "missed"),
    ],
)
def test_a_target_is_judged_only_where_its_measurements_tell(one, quiet, noisy):
    assert [verdicts.judged(one, is_quiet)["verdict"] for is_quiet in (True, False)] == [quiet, noisy]


def test_a_value_that_cannot_be_says_so():
    assert "cannot be above 1" in verdicts.judged(target(1.43, most=1), True)["why"]
    assert "from 0.80 to 1.30" in verdicts.judged(target(1.2, rounds=[0.8, 1.2, 1.3]), True)["why"]
    assert "why" not in verdicts.judged(target(1.0), True)


def test_a_machine_that_others_use_is_not_quiet():
    quiet = {"others": 0.01, "stolen": 0.01, "memcpy_spread": 0.1}
    assert list(verdicts.disturbances(quiet)) == []
    assert list(verdicts.disturbances({"stolen": 0.0})) == []
    (found,) = verdicts.disturbances(quiet | {"others": 0.4})
    assert found == "other programs took 40 % of its CPU time"
    assert len(list(verdicts.disturbances({"others": 0.4, "stolen": 0.1, "memcpy_spread": 0.66}))) == 3


@pytest.mark.parametrize("caller, others", [(7, 0.3), (8, None)])
def test_what_the_run_computed_itself_is_no_disturbance(monkeypatch, caller, others):
    monkeypatch.setattr(page, "cpu_ticks", lambda: (1900, 10, 3000))
    monkeypatch.setattr(page, "caller_ticks", lambda: (caller, 350))
    machine = {"ticks": (1000, 10, 1000), "caller": (7, 50)}
    found = page.finish({"machine": machine, "sections": [], "targets": []})
    assert found["machine"] == {"stolen": 0.0} | ({} if others is None else {"others": others})
    assert len(found["disturbances"]) == (0 if others is None else 1)


def test_a_run_that_was_disturbed_says_so_at_its_top(folder):
    (one,) = (one for one in KERNELS["benchmarks"] if one["bytes_per_second"] == 12e9)
    disturbed = {"benchmarks": [*KERNELS["benchmarks"], one | {"bytes_per_second": 20e9}]}
    (folder / "kernels.json").write_text(json.dumps(disturbed))
    (folder / "hostile.json").write_text(json.dumps({
        "rows": [{"direction": "encode", "chain": "a", "usual": 1.5, "parts": {}}],
        "slow": [],
        "targets": [target(1.43, most=1), target(0.5, exact=True) | {"what": "far off"}],
    }))  # fmt: skip
    end = [sys.executable, BENCH / "page.py", "end", folder]
    done = subprocess.run([*end, "--check"], capture_output=True, text=True)
    assert done.returncode == 1 and "missed: far off" in done.stdout and "not judged: ours / theirs" in done.stdout
    assert "1 missed, 1 not judged, 0 met" in done.stdout
    run = json.loads((folder / "results.json").read_text())
    said = "memcpy's readings lie within 87 %, more than 30"
    assert said in run["disturbances"]
    assert [one["verdict"] for one in run["targets"]] == ["not judged", "missed"]
    for text in (done.stdout, (folder / "page.md").read_text()):
        assert "This machine was not quiet" in text and said in text
    assert said.replace("'", "&#39;") in (folder / "page.html").read_text()


def test_what_is_not_judged_is_no_miss(folder):
    row = {"direction": "encode", "chain": "a", "usual": 1.5, "parts": {}}
    (folder / "hostile.json").write_text(json.dumps({"rows": [row], "slow": [], "targets": [target(1.43, most=1)]}))
    end = [sys.executable, BENCH / "page.py", "end", folder, "--check"]
    done = subprocess.run(end, capture_output=True, text=True)
    assert done.returncode == 0 and "0 missed, 1 not judged" in done.stdout


def test_a_run_is_read_with_its_medians_and_extremes(folder):
    run = measurements.read_run(folder)
    chains = {row["name"]: row["cells"] for row in section(run, "chains")["rows"]}
    assert chains["int4"] == {
        "encode": {"value": 9, "low": 8, "high": 10},
        "decode": {"value": 20, "low": 20, "high": 20},
    }
    assert chains["memcpy"]["encode"]["value"] == 11
    cells = {row["name"]: row["cells"] for row in section(run, "codecs cache.safetensors")["rows"]}
    assert cells["int4"]["SNR dB"] == {"value": 18.0} and "SNR dB" not in cells["lossless"]
    assert set(run["absent"]) == {"chunk", "hostile", "transport", "instructions", "python", "files", "others"}


def test_the_page_and_the_results_are_made(folder):
    done = subprocess.run(
        [sys.executable, BENCH / "page.py", "end", folder], check=True, capture_output=True, text=True
    )
    assert "left out: others: is not installed" in done.stdout
    run = json.loads((folder / "results.json").read_text())
    assert 0 <= run["machine"]["stolen"] <= 1
    assert run["machine"]["memcpy_spread"] == pytest.approx(2 / 11)
    page = (folder / "page.html").read_text()
    for row in ("int4", "theirs", "lossless", "200 Gb/s", "others: is not installed"):
        assert row in page
    assert "encode <b>" not in page and "&lt;b&gt;" in page
    tables = (folder / "page.md").read_text()
    assert "\n| | ratio | SNR dB | encode GB/s | decode GB/s |\n|---|---|---|---|---|\n| memcpy |  |  | 10.0 | 10.0 |\n" in tables
    assert "\n| int4 | 4.00 | 18.0 | 8.00 | 16.0 |\n| lossless | 1.50 |  | 1.00 | 2.00 |\n" in tables
    assert "\n- others: is not installed\n" in tables


@pytest.mark.parametrize(
    "cut", [json.dumps(KERNELS)[:200], "", "[1", "[]", '{"benchmarks": [{"run_type": "iteration"}]}', "\x00"]
)
def test_a_result_that_was_cut_off_is_left_out_and_costs_no_other(folder, cut):
    (folder / "kernels.json").write_text(cut)
    done = subprocess.run(
        [sys.executable, BENCH / "page.py", "end", folder], check=True, capture_output=True, text=True
    )
    assert "left out: kernels: kernels.json cannot be read: " in done.stdout
    run = json.loads((folder / "results.json").read_text())
    assert {one["id"] for one in run["sections"]} == {"peers", "codecs cache.safetensors"}
    assert "kernels: kernels.json cannot be read" in (folder / "page.html").read_text()


def test_whoever_lacks_a_peer_is_told_how_make_installs_it(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(BENCH / "peers")
    import environments
    import measure

    monkeypatch.setattr(environments, "ENVIRONMENTS", tmp_path)
    processes, absent = measure.start(["zipnn"], measure.SAMPLE, install=False)
    assert processes == {} and "make bench BENCH=--peers" in absent["zipnn"]


def test_chains_below_their_targets_are_listed():
    raw = {
        "rows": [{"direction": "encode", "chain": "a", "usual": 1.5, "parts": {"zeros": 0.5}}],
        "slow": [{"name": "encode a", "usual": 1.5}, {"name": "decode b (called slow)", "usual": 0.5}],
    }
    run = {"sections": list(measurements.hostile(raw))}
    assert [(row["name"], row["cells"]["usual"]["value"]) for row in section(run, "slow chains")["rows"]] == [
        ("encode a", 1.5),
        ("decode b", 0.5),
    ]
    assert [row.get("note") for row in section(run, "slow chains")["rows"]] == [None, "called slow"]
    assert section(run, "hostile")["rows"][0]["cells"] == {"usual": {"value": 1.5}, "zeros": {"value": 0.5}}


def test_kernels_and_chains_stand_where_a_reader_looks_for_them():
    names = ["quantize int8 g64", "memcpy", "quantize int4 g128", "quantize int4 g64", "encode raw", "decode raw"]
    names += ["encode kv3", "encode int4(group=64)", "encode int4(group=32)|rans", "encode int4(group=128)"]
    speeds = {"encode int4(group=64)": 9, "encode int4(group=128)": 8}
    raw = {
        "benchmarks": [
            {"run_type": "iteration", "run_name": name, "bytes_per_second": speeds.get(name, 1) * 1e9} for name in names
        ]
    }
    run = {"sections": list(measurements.kernels(raw))}
    kernels, chains = ([row["name"] for row in section(run, name)["rows"]] for name in ("kernels", "chains"))
    assert kernels == ["memcpy", "quantize int4 g64", "quantize int4 g128", "quantize int8 g64"]
    assert chains == ["memcpy", "int4(group=64)", "int4(group=128)", "int4(group=32)|rans", "kv3", "raw"]


def test_a_target_that_counts_chains_names_them(folder):
    what = "chains that decode less than 4 GB/s and that no help text calls slow"
    row = {"direction": "encode", "chain": "a", "usual": 1.5, "parts": {}}
    slow = [("decode exact", 3.9612), ("encode kv3", 1.0), ("decode |raw (called slow)", 0.5)]
    raw = {
        "rows": [row],
        "slow": [{"name": name, "usual": speed} for name, speed in slow],
        "targets": [{"what": what, "value": 1, "wanted": "none", "met": False}],
    }
    (folder / "hostile.json").write_text(json.dumps(raw))
    end = [sys.executable, BENCH / "page.py", "end", folder]
    done = subprocess.run(end, check=True, capture_output=True, text=True)
    assert f"missed: {what}; 1, wanted none; decode exact, 3.96 GB/s\n" in done.stdout
    tables, page = ((folder / name).read_text() for name in ("page.md", "page.html"))
    assert f"| **missed** | {what} | 1 | none | decode exact, 3.96 GB/s |\n" in tables
    assert "| decode \\|raw (called slow) | 0.500 |" in tables
    assert '<span title="decode |raw">decode |raw</span> <small>called slow</small>' in page


def test_one_reading_has_no_spread(folder):
    (folder / "kernels.json").write_text(json.dumps({"benchmarks": KERNELS["benchmarks"][:1]}))
    subprocess.run([sys.executable, BENCH / "page.py", "end", folder], check=True, capture_output=True)
    assert "memcpy_spread" not in json.loads((folder / "results.json").read_text())["machine"]
    assert "memcpy's readings" not in (folder / "page.md").read_text()


def test_serial_and_pipelined_speed_ups():
    # 1 GB over 2 GB/s: raw 0.5 s each way. By a codec of ratio 4: 0.125 s on the link, 0.125 to encode, 0.0625 to decode.
    assert break_even.speed_up(4, 8, 16, 2, pipelined=False) == pytest.approx(1.0 / (0.25 + 0.1875))
    assert break_even.speed_up(4, 8, 16, 2, pipelined=True) == pytest.approx(1.0 / (0.125 + 0.125))
    tables = break_even.tables(section({"sections": list(measurements.codecs(CODECS))}, "codecs cache.safetensors"))
    found = {(one["cores"], one["pipelined"]): {row["name"]: row["links"] for row in one["rows"]} for one in tables}
    assert all(set(rows) == {"int4", "lossless"} for rows in found.values()) and len(found) == 4
    slow, fast = (found[cores, True]["lossless"] for cores in (1, 2))
    assert all(fast[link] >= slow[link] for link in break_even.LINKS)
    assert slow["200 Gb/s"] < 1 < slow["10 Gb/s"]


def test_what_changed_beyond_noise(folder):
    old = measurements.read_run(folder)
    assert compare.changes(old, copy.deepcopy(old)) == []
    new = copy.deepcopy(old)
    chains = {row["name"]: row["cells"] for row in section(new, "chains")["rows"]}
    chains["int4"]["encode"] = {"value": 8.5, "low": 7.5, "high": 9.5}  # within the ranges
    chains["int4"]["decode"] = {"value": 10, "low": 9, "high": 11}
    cells = {row["name"]: row["cells"] for row in section(new, "codecs cache.safetensors")["rows"]}
    cells["lossless"]["ratio"]["value"] = 1.501  # sizes have no noise
    cells["lossless"]["encode"]["value"] = 0.9  # measured once
    found = {(one["row"], one["column"]): one["ratio"] for one in compare.changes(old, new)}
    assert found == {("int4", "decode"): pytest.approx(0.5), ("lossless", "ratio"): pytest.approx(1.501 / 1.5)}


def test_a_machine_that_is_slower_throughout_has_changed_nothing(folder):
    old = measurements.read_run(folder)
    new = copy.deepcopy(old)
    for one in new["sections"]:
        for row in one["rows"]:
            for column, cell in row["cells"].items():
                if column not in ("ratio", "SNR dB"):
                    for key in cell:
                        cell[key] /= 2
    assert compare.changes(old, new) == []


def test_compare_says_by_its_status_whether_something_changed(folder):
    subprocess.run([sys.executable, BENCH / "page.py", "end", folder], check=True, capture_output=True)
    old, new = folder / "results.json", folder / "new.json"
    new.write_text(old.read_text())
    assert subprocess.run([sys.executable, BENCH / "page.py", "compare", old, new], capture_output=True).returncode == 0
    run = json.loads(new.read_text())
    (int4,) = (row for row in section(run, "chains")["rows"] if row["name"] == "int4")
    int4["cells"]["decode"] = {"value": 1}
    new.write_text(json.dumps(run))
    done = subprocess.run([sys.executable, BENCH / "page.py", "compare", old, new], capture_output=True, text=True)
    assert done.returncode == 1 and "Codec chains: int4, decode" in done.stdout
