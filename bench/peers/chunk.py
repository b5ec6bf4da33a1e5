#!/usr/bin/env python3
"""One chunk of a cache, stored and loaded: 256 tokens of 32 layers, keys and values 1024 wide, 64 tensors of 512 KiB in
BF16. Before Redis, raw and through codecs in the process; through a daemon; and through Arrow Flight, which moves the same
bytes and computes nothing. All processes share the cores.

usage: chunk.py [--install] [--rounds 5] [--seconds 0.5] [--bin bin] [--output FILE.json]

GB/s are 10^9 bytes of tensors a second. CPU seconds per GB are of the client and of the server that it talks to. Flight
needs a package that the tests do not have: --install makes an environment for it, and without it Flight is left out.
"""

import argparse
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

from environments import HOW_TO_INSTALL, Process, python_of

SPECS = ("int4(group=64)", "rotated(bits=3)", "kv3")
FLIGHT = ("pyarrow==26.0.1",)
PATHS = ("tcp", "unix")
DIRECTIONS = ("store", "load")
WORKER = pathlib.Path(__file__).with_name("chunk_worker.py")


def cpu_seconds(pid):
    """Of a process, all of its threads, in user mode and in the system."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Server:
    """A program that serves on loopback and on a unix socket; `ready` says its two addresses once it does, else None."""

    def __init__(self, command, ready):
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 30
        while (addresses := ready()) is None:
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise RuntimeError(f"{command[0]} does not start")
            time.sleep(0.02)
        self.address = dict(zip(PATHS, addresses, strict=True))

    def stop(self):
        self.process.terminate()
        self.process.wait(30)


def json_file(path):
    """What a server writes when it is ready."""

    def ready():
        try:
            return json.loads(path.read_text())["listen"]
        except (OSError, ValueError):
            return None

    return ready


def servers(folder, args, flight_python):
    """Name to Server, of those whose programs are there; and name to why the others are not."""
    started, absent = {}, {}
    ports = folder / "daemon.json"
    listen = f"127.0.0.1:0,unix:{folder}/d"
    prefix = f"kv-chunk-{os.getpid()}-"
    daemon = [args.bin / "kv-compressd", "--listen", listen, "--metrics-listen", "off", "--port-file", ports]
    started["daemon"] = Server([*daemon, "--log-level", "error", "--shared-memory", prefix], json_file(ports))
    if redis := shutil.which("redis-server"):
        socket = folder / "r"
        # Redis wants a port that is known beforehand: the unix socket alone is enough of it for one machine.
        command = [redis, "--port", "0", "--unixsocket", socket, "--save", "", "--appendonly", "no"]
        started["redis"] = Server(command, lambda: (None, str(socket)) if socket.exists() else None)
    else:
        absent["redis"] = "redis-server is not installed"
    if flight_python:
        ports = folder / "flight.json"
        started["flight"] = Server([flight_python, WORKER, "serve-flight", ports, folder / "f"], json_file(ports))
    else:
        absent["flight"] = f"{FLIGHT[0]} {HOW_TO_INSTALL}"
    return started, absent


def contestants(started, flight_python):
    """Name to (server, command of the process that takes the turns)."""
    found = {}
    if "redis" in started:
        address = started["redis"].address["unix"]
        for spec in ("raw", *SPECS):
            found[f"redis, {spec}"] = ("redis", [sys.executable, WORKER, "redis", address, spec])
    for path in PATHS:
        if "flight" in started:
            found[f"flight, {path}"] = ("flight", [flight_python, WORKER, "flight", started["flight"].address[path]])
        for spec in SPECS[:1]:
            address = started["daemon"].address[path]
            found[f"daemon, {path}, {spec}"] = ("daemon", [sys.executable, WORKER, "daemon", address, spec])
    address = started["daemon"].address["unix"]
    found[f"daemon, shared memory, {SPECS[0]}"] = ("daemon", [sys.executable, WORKER, "shared", address, SPECS[0]])
    found[f"in the process, {SPECS[0]}"] = (None, [sys.executable, WORKER, "local", "", SPECS[0]])
    return found


def measure(started, found, rounds, seconds):
    processes = {name: Process(*map(str, command)) for name, (_, command) in found.items()}
    shares = {name: process.ask("share") for name, process in processes.items()}  # they are ready
    readings = {name: {way: [] for way in DIRECTIONS} for name in found}
    for _ in range(rounds):
        for way in DIRECTIONS:
            for name, process in processes.items():
                server = found[name][0]
                pids = [process.process.pid, *([started[server].process.pid] if server else [])]
                before = sum(map(cpu_seconds, pids))
                turn = process.ask(way, seconds)
                turn["cpu"] = sum(map(cpu_seconds, pids)) - before
                readings[name][way].append(turn)
    rows = []
    for name, by_way in readings.items():
        row = {"name": name, "share": shares[name]}
        for way, turns in by_way.items():
            speeds = [turn["bytes"] / turn["seconds"] / 1e9 for turn in turns]
            cpu = sum(turn["cpu"] for turn in turns) / (sum(turn["bytes"] for turn in turns) / 1e9)
            row[way] = {"gb_per_s": speeds, "cpu_s_per_gb": cpu}
        processes[name].stop()
        rows.append(row)
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--install", action="store_true", help="make the environment of Arrow Flight, from PyPI")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.5, help="of one turn")
    parser.add_argument("--bin", type=pathlib.Path, default=pathlib.Path("bin"))
    parser.add_argument("--output", type=pathlib.Path)
    args = parser.parse_args()
    flight_python = python_of(FLIGHT, args.install)
    with tempfile.TemporaryDirectory(prefix="kvc-") as folder:
        started, absent = servers(pathlib.Path(folder), args, flight_python)
        try:
            rows = measure(started, contestants(started, flight_python), args.rounds, args.seconds)
        finally:
            for server in started.values():
                server.stop()
    print(f"{'64 tensors of 512 KiB':40} {'bytes':>6} {'store':>7} {'CPU s/GB':>8} {'load':>7} {'CPU s/GB':>8}")
    for row in rows:
        ways = " ".join(
            f"{statistics.median(row[w]['gb_per_s']):7.2f} {row[w]['cpu_s_per_gb']:8.2f}" for w in DIRECTIONS
        )
        print(f"{row['name']:40} {row['share']:6.1%} {ways}")
    for name, why in absent.items():
        print(f"left out: {name}: {why}")
    if args.output:
        args.output.write_text(json.dumps({"rows": rows, "absent": absent}) + "\n")


if __name__ == "__main__":
    main()
