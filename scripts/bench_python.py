#!/usr/bin/env python3
"""Measures the Python client beside the C++ client: the same tensor through the same daemon, in turns, in one run.

usage: bench_python.py [--rounds 5] [--calls 4] [--mebibytes 64] [--bin bin] [--output FILE.json]

GB/s are 10^9 bytes of FP16 tensor a second, one call at a time, int4(group=64); the median of the rounds counts, and
the ratio is the median of each round's own ratio. "into out" decompresses into an array that is there already; the
other decompression makes a new array, whose pages the kernel must clear first. The C++ side is the client library under
kvc_load, which hashes what comes piece by piece and keeps nothing.
"""
import argparse
import json
import pathlib
import signal
import statistics
import subprocess
import tempfile
import time

import kvcompress
import numpy as np

CODEC = "int4(group=64)"


class Daemon:
    """Serves on loopback TCP, on a unix socket, and through shared memory."""

    def __init__(self, binary, folder):
        ports = folder / "ports.json"
        listen = f"127.0.0.1:0,unix:{folder}/s"
        self.process = subprocess.Popen([binary, "--listen", listen, "--metrics-listen", "off", "--port-file", ports,
                                         "--log-level", "error", "--shared-memory", "kvcompress-bench-"])
        deadline = time.monotonic() + 30
        while not ports.exists():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise RuntimeError("the daemon does not start")
            time.sleep(0.01)
        tcp, unix = json.loads(ports.read_text())["listen"]
        self.paths = {"TCP": (tcp, False), "unix socket": (unix, False), "shared memory": (unix, True)}

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(30)


def cpp_seconds(args, address, shared, *flags):
    """Of one call of the C++ client, whose output is hashed."""
    command = [args.bin / "kvc_load", f"--address={address}", f"--shared_memory={str(shared).lower()}",
               f"--tensor_bytes={args.mebibytes << 20}", f"--calls={args.calls}", f"--codec={CODEC}", *flags]
    outcome = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, timeout=120).stdout)[0]
    assert outcome["codes"] == {"OK": args.calls}, outcome
    return outcome["seconds"] / args.calls


def python_seconds(args, work):
    work()  # the first connects, or clears pages
    started = time.perf_counter()
    for _ in range(args.calls):
        work()
    return (time.perf_counter() - started) / args.calls


def measure(args, address, shared, values):
    """Lists of seconds by name, one entry a round."""
    with kvcompress.Client(address, timeout=60, shared_memory=shared) as client:
        frame = client.compress(values, CODEC)
        out = np.empty_like(values)
        contestants = {
            "C++ compress": lambda: cpp_seconds(args, address, shared),
            "compress": lambda: python_seconds(args, lambda: client.compress(values, CODEC)),
            "C++ decompress": lambda: cpp_seconds(args, address, shared, "--decompress"),
            "decompress": lambda: python_seconds(args, lambda: client.decompress(frame)),
            "decompress into out": lambda: python_seconds(args, lambda: client.decompress(frame, out=out)),
        }
        seconds = {name: [] for name in contestants}
        for _ in range(args.rounds):
            for name, work in contestants.items():
                seconds[name].append(work())
    return seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--calls", type=int, default=4)
    parser.add_argument("--mebibytes", type=int, default=64)
    parser.add_argument("--bin", type=pathlib.Path, default=pathlib.Path("bin"))
    parser.add_argument("--output", type=pathlib.Path)
    args = parser.parse_args()
    size = args.mebibytes << 20
    values = np.random.default_rng(1).standard_normal(size // 2, np.float32).astype(np.float16)
    rows = []
    print("| path | call | C++ GB/s | Python GB/s | ratio |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="kvc-") as folder:
        daemon = Daemon(args.bin / "kv-compressd", pathlib.Path(folder))
        try:
            for path, (address, shared) in daemon.paths.items():
                seconds = measure(args, address, shared, values)
                for call in ("compress", "decompress", "decompress into out"):
                    ours, theirs = seconds[call], seconds["C++ " + call.split()[0]]
                    cpp, python = ([size / each / 1e9 for each in times] for times in (theirs, ours))
                    rows.append({"path": path, "call": call, "gb_per_s": python, "cpp_gb_per_s": cpp})
                    ratio = statistics.median(mine / its for mine, its in zip(python, cpp, strict=True))
                    medians = " | ".join(f"{statistics.median(speeds):.2f}" for speeds in (cpp, python))
                    print(f"| {path} | {call} | {medians} | {ratio:.2f} |", flush=True)
        finally:
            daemon.stop()
    if args.output:
        args.output.write_text(json.dumps({"tensor_bytes": size, "rows": rows}) + "\n")


if __name__ == "__main__":
    main()
