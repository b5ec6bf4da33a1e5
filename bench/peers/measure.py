#!/usr/bin/env python3
"""Measures this project's codecs beside those of others, in turns, on the tensors of a real cache: size, speed of one
thread in both directions, and what is lost.

usage: measure.py [--install] [--rounds 5] [--seconds 0.2] [--only NAME,...] [--output FILE.json] [FILE.safetensors]

Every contestant runs in a process of its own. Packages that the tests do not have lie in environments of their own
below build/peers, which --install makes from PyPI; without it a contestant whose environment is not there is left out,
with a line that says so. Without a file the tensors are those of tests/data/smollm2.256.bf16.safetensors.
"""

import argparse
import json
import math
import os
import pathlib
import statistics
import subprocess
import sys
import venv

from contestants import CONTESTANTS

ROOT = pathlib.Path(__file__).resolve().parents[2]
SAMPLE = ROOT / "tests" / "data" / "smollm2.256.bf16.safetensors"
ENVIRONMENTS = ROOT / "build" / "peers"
DIRECTIONS = ("encode", "decode")


def python_of(name, install):
    """The interpreter that a contestant runs in, or None where its environment is not there. An environment of its own
    finds what it lacks in that of the tests, so that torch is
    installed once."""
    packages = CONTESTANTS[name].packages
    if not packages:
        return sys.executable
    folder = ENVIRONMENTS / name.split()[0]
    stamp = folder / "wanted"
    wanted = "\n".join(packages) + "\n"
    if not stamp.exists() or stamp.read_text() != wanted:
        if not install:
            return None
        print(f"{name}: installing {', '.join(packages)}", file=sys.stderr)
        venv.create(folder, clear=True, with_pip=True)
        (site,) = (folder / "lib").glob("python*/site-packages")
        (site / "tests.pth").write_text("".join(path + "\n" for path in sys.path if path.endswith("site-packages")))
        subprocess.run(
            [
                folder / "bin" / "python",
                "-m",
                "pip",
                "install",
                "--quiet",
                "--retries",
                "5",
                "--constraint",
                ROOT / "scripts" / "constraints-test.txt",
                *packages,
            ],
            check=True,
        )
        stamp.write_text(wanted)
    return str(folder / "bin" / "python")


class Process:
    """A contestant that waits for its turns."""

    def __init__(self, name, python, path):
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
        command = [python, pathlib.Path(__file__).with_name("worker.py"), name, path]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def ask(self, *words):
        """What the contestant answers; a RuntimeError when it has ended instead."""
        try:
            self.process.stdin.write(" ".join(map(str, words)) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise RuntimeError(f"ended with {self.process.wait(30)}")
        return json.loads(line)

    def stop(self):
        self.process.stdin.close()
        if self.process.wait(30) != 0:
            raise RuntimeError(f"ended with {self.process.returncode}")


def start(names, path, install):
    """(name to process, name to why it does not take part)."""
    processes, absent = {}, {}
    for name in names:
        python = python_of(name, install)
        if python is None:
            absent[name] = f"{', '.join(CONTESTANTS[name].packages)} is not installed: run with --install"
            continue
        process = Process(name, python, path)
        try:
            process.facts = process.ask("describe")
            processes[name] = process
        except RuntimeError as error:
            absent[name] = str(error)
    return processes, absent


def measure(processes, rounds, seconds):
    """One row a contestant: medians and extremes of the rounds, as GB/s and beside memcpy of the same round."""
    speeds = {name: {direction: [] for direction in DIRECTIONS} for name in processes}
    for _ in range(rounds):
        for direction in DIRECTIONS:
            for name, process in processes.items():
                turn = process.ask(direction, seconds)
                speeds[name][direction].append(turn["bytes"] / turn["seconds"] / 1e9)
    rows = []
    for name, process in processes.items():
        row = {"name": name, **process.facts}
        for direction in DIRECTIONS:
            mine = speeds[name][direction]
            row[direction] = {"gb_per_s": statistics.median(mine), "low": min(mine), "high": max(mine)}
            if "memcpy" in speeds:
                row[direction]["of_memcpy"] = statistics.median(
                    map(lambda a, b: a / b, mine, speeds["memcpy"][direction])
                )
        rows.append(row)
    return rows


def table(rows):
    lines = [
        f"{'':30} {'version':>16} {'ratio':>7} {'SNR dB':>7} "
        f"{'encode':>7} {'of memcpy':>9} {'decode':>7} {'of memcpy':>9}"
    ]
    for row in rows:
        snr = "exact" if row["snr_db"] is None else f"{row['snr_db']:.1f}"
        speeds = " ".join(
            f"{row[way]['gb_per_s']:7.2f} {row[way].get('of_memcpy', math.nan):9.3f}" for way in DIRECTIONS
        )
        lines.append(
            f"{row['name']:30} {row['version']:>16} {row['tensor_bytes'] / row['coded_bytes']:7.3f} {snr:>7} {speeds}"
        )
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--install", action="store_true", help="make the environments that are not there, from PyPI")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.2, help="of CPU, of one turn")
    parser.add_argument("--only", help="names with commas: " + ", ".join(CONTESTANTS))
    parser.add_argument("--output", type=pathlib.Path)
    parser.add_argument("file", nargs="?", default=SAMPLE, type=pathlib.Path)
    args = parser.parse_args()
    names = args.only.split(",") if args.only else list(CONTESTANTS)
    for name in names:
        if name not in CONTESTANTS:
            parser.error(f"no contestant is named {name!r}")
    processes, absent = start(names, args.file, args.install)
    rows = measure(processes, args.rounds, args.seconds)
    for process in processes.values():
        process.stop()
    print(f"{args.file.name}, one thread, GB of BF16 per CPU second, values in cache\n{table(rows)}")
    for name, why in absent.items():
        print(f"left out: {name}: {why}")
    if args.output:
        args.output.write_text(json.dumps({"file": args.file.name, "rows": rows, "absent": absent}, indent=1) + "\n")


if __name__ == "__main__":
    main()
