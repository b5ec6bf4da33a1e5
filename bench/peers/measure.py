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
import pathlib
import statistics

from contestants import CONTESTANTS
from environments import HOW_TO_INSTALL, ROOT, Process, python_of

SAMPLE = ROOT / "tests" / "data" / "smollm2.256.bf16.safetensors"
WORKER = pathlib.Path(__file__).with_name("worker.py")
DIRECTIONS = ("encode", "decode")


def start(names, path, install):
    """(name to process, name to why it does not take part)."""
    processes, absent = {}, {}
    for name in names:
        python = python_of(CONTESTANTS[name].packages, install)
        if python is None:
            absent[name] = f"{', '.join(CONTESTANTS[name].packages)} {HOW_TO_INSTALL}"
            continue
        process = Process(python, WORKER, name, path)
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
