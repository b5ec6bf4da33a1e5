#!/usr/bin/env python3
"""Measures tensors through the daemon beside peers that move as many bytes: a raw socket, and a gRPC service that does
nothing. docs/benchmarks.md says what the columns mean and how it is kept fair.

usage: bench_transport.py [--quick] [--check] [--output build/bench/transport.json]

With --check the exit status is 1 when a target is missed.
"""
import argparse
import json
import os
import pathlib
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time

sys.path.append(str(pathlib.Path(__file__).resolve().parents[1] / "bench"))
import verdicts
from bench_report import batches_table, beside_one, latency_table, summarize, targets, throughput_table

MIB = 1 << 20
STREAMS = [1, 2, 8, 64]
TENSORS = [64 << 10, MIB, 64 * MIB, 1024 * MIB]


def shared_memory_prefix(pid):
    """Of the objects that the run of this process makes."""
    return f"kv-bench-{pid}-"


# What takes turns in a cell: the name that the report has for it, the kind of client, the server.
CONTESTANTS = [
    *((f"{name} {path}", kind, server)
      for path in ("tcp", "unix")
      for name, kind, server in [("socket", "socket", "socket"), ("sink", "sink", "sink"), ("daemon", "daemon", "daemon"),
                                 ("library", "library", "daemon")]),
    ("daemon shm", "shm", "daemon"),
    ("library shm", "library-shm", "daemon"),
    ("library copy", "library-copy", "daemon"),
    ("embedded", "embedded", None),
    ("local", "local", None),
]
CALLERS = [
    *((f"{name} {path}", kind, server)
      for path in ("tcp", "unix")
      for name, kind, server in [("socket", "socket", "socket"), ("sink, unary", "unary", "sink"),
                                 ("sink, new stream", "stream", "sink"), ("daemon, unary", "unary", "daemon"),
                                 ("daemon, new stream", "stream", "daemon"),
                                 ("daemon, open stream", "open-stream", "daemon"), ("library", "library", "daemon")]),
    ("library copy", "library-copy", "daemon"),
    ("local", "local", None),
]
# Who sends the tensors of one chunk of a cache in one call, and as many bytes as one tensor: the name in the report, the
# kind of client, the server and the path to it.
BATCHERS = [
    ("library tcp", "library", "daemon", "tcp"),
    ("library unix", "library", "daemon", "unix"),
    ("library shm", "library-shm", "daemon", "shm"),
    ("library copy", "library-copy", "daemon", "copy"),
    ("local", "local", None, None),
]
CHUNK = {"tensors": 64, "tensor_bytes": 512 << 10}


class Server:
    """A process that serves on loopback TCP and on a unix socket, both of its own choice."""

    def __init__(self, folder, name, command):
        self.name = name
        port_file = folder / f"{name}.json"
        listen = ["127.0.0.1:0", f"unix:{folder}/{name}.sock"]
        with open(folder / f"{name}.log", "wb") as log:
            self.process = subprocess.Popen(command(str(port_file), listen), stdout=log, stderr=log)
        deadline = time.monotonic() + 30
        while not port_file.exists():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise RuntimeError(f"{name} does not start: {(folder / f'{name}.log').read_text()}")
            time.sleep(0.01)
        tcp, unix = json.loads(port_file.read_text())["listen"]
        self.address = {"tcp": tcp, "unix": unix, "shm": unix, "copy": unix}

    def peak_rss(self):
        for line in pathlib.Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) << 10
        raise RuntimeError(f"{self.name} is gone")

    def stop(self):
        self.process.send_signal(signal.SIGKILL if self.name != "daemon" else signal.SIGTERM)
        self.process.wait(60)


def entrant(kind, server, path):
    return kind if server is None else f"{kind},{server.address[path]},{server.process.pid}"


class Bench:
    def __init__(self, args, folder):
        self.program = str(args.build / "bench" / "transport" / "kvc_bench_transport")
        self.args = args
        self.servers = {}
        daemon = str(args.bin / "kv-compressd")

        def peer(kind):
            return lambda port_file, listen: [self.program, "serve", port_file, kind, *listen]

        commands = {
            "socket": peer("socket"),
            "sink": peer("sink"),
            "daemon": lambda port_file, listen: [
                daemon, "--listen", ",".join(listen), "--metrics-listen", "off", "--port-file", port_file,
                "--log-level", "error", "--shared-memory", shared_memory_prefix(os.getpid())],
        }
        try:
            for name, command in commands.items():
                self.servers[name] = Server(folder, name, command)
        except BaseException:
            self.stop()
            raise

    def stop(self):
        for server in self.servers.values():
            server.stop()

    def measure(self, command, contestants, flags):
        """The rows that the program prints for contestants."""
        words = [entrant(kind, self.servers.get(server), name.split()[-1]) for name, kind, server in contestants]
        return self.run(command, words, flags)

    def run(self, command, words, flags):
        flags = [f"--{name}={value}" for name, value in flags.items()]
        done = subprocess.run([self.program, command, *flags, *words], stdout=subprocess.PIPE, check=True,
                              timeout=300)
        return json.loads(done.stdout)

    def cell(self, streams, tensor_bytes):
        args = self.args
        rows = self.measure("throughput", CONTESTANTS,
                            {"streams": streams, "tensor_bytes": tensor_bytes, "rounds": args.rounds,
                             "warm_up_ms": args.warm_up_ms, "window_ms": args.window_ms})
        by_name = {name: [row for row in rows if row["entrant"] == i] for i, (name, _, _) in enumerate(CONTESTANTS)}
        return {"streams": streams, "tensor_bytes": tensor_bytes, **summarize(by_name)}

    def batches(self):
        """By contestant and direction: what a call with many tensors took, and one with a single tensor of the same bytes."""
        words = [entrant(kind, self.servers.get(server), path) for _, kind, server, path in BATCHERS]
        rows = iter(self.run("batches", words, {**CHUNK, "rounds": self.args.rounds}))
        return {name: {way: beside_one(next(rows), next(rows)) for way in ("compress", "decompress")}
                for name, *_ in BATCHERS}

    def latency(self):
        rows = self.measure("latency", CALLERS, {"calls": self.args.calls, "tensor_bytes": 64 << 10})
        return {name: row for (name, _, _), row in zip(CALLERS, rows)}


def machine(args):
    def text(*command):
        return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()

    cpu = [line.split(":", 1)[1].strip() for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines()
           if line.startswith("model name")]
    return {"cpu": cpu[0] if cpu else platform.machine(), "cores": os.cpu_count(), "kernel": platform.release(),
            "daemon": text(str(args.bin / "kv-compressd"), "--version"),
            "grpc": text("pkg-config", "--modversion", "grpc++"), "load": os.getloadavg()}


def numbers(text):
    return [int(word) for word in text.split(",")]


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer cells, rounds and calls: a minute or two")
    parser.add_argument("--check", action="store_true", help="fail when a target is missed")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("build/bench/transport.json"))
    parser.add_argument("--build", type=pathlib.Path, default=pathlib.Path("build/release"))
    parser.add_argument("--bin", type=pathlib.Path, default=pathlib.Path("bin"))
    parser.add_argument("--streams", type=numbers, help="numbers with commas")
    parser.add_argument("--tensors", type=numbers, help="bytes, with commas")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--window-ms", type=int)
    parser.add_argument("--warm-up-ms", type=int, default=100)
    parser.add_argument("--calls", type=int)
    args = parser.parse_args()
    for name, full, quick in [("streams", STREAMS, [1, 8]), ("tensors", TENSORS, [64 << 10, 64 * MIB]), ("rounds", 5, 3),
                              ("window_ms", 250, 150), ("calls", 10000, 1000)]:
        if getattr(args, name) is None:
            setattr(args, name, quick if args.quick else full)
    return args


def main():
    args = parse()
    with tempfile.TemporaryDirectory(prefix="kvb") as folder:
        bench = Bench(args, pathlib.Path(folder))
        try:
            results = {"machine": machine(args), "cells": []}
            for streams in args.streams:
                for tensor_bytes in args.tensors:
                    print(f"\r{streams} x {tensor_bytes >> 10} KiB ...        ", end="", file=sys.stderr, flush=True)
                    results["cells"].append(bench.cell(streams, tensor_bytes))
            print("\rlatency ...                ", end="", file=sys.stderr, flush=True)
            results["latency_us"] = bench.latency()
            print("\rbatches ...                ", end="", file=sys.stderr, flush=True)
            results["batches"] = bench.batches()
            results["peak_rss_bytes"] = {name: server.peak_rss() for name, server in bench.servers.items()}
        finally:
            bench.stop()
    print("\r                           \r", end="", file=sys.stderr, flush=True)
    results["targets"] = targets(results)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(results, indent=1) + "\n")
    print(throughput_table(results))
    print(latency_table(results))
    print(batches_table(results))
    judged = [verdicts.judged(target, is_quiet=True) for target in results["targets"]]
    for target in judged:
        print(f"{target['verdict']:10} {target['what']}: {target['value']:.2f} ({target['wanted']})", target.get("why", ""))
    return 1 if args.check and any(target["verdict"] == "missed" for target in judged) else 0


if __name__ == "__main__":
    sys.exit(main())
