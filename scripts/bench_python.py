#!/usr/bin/env python3
"""Measures the Python client, by both of its ways, beside the C++ client: the same tensors through the same daemon, in
turns, in one run.

usage: bench_python.py [--rounds 5] [--calls 4] [--mebibytes 64] [--bin bin] [--output FILE.json]

Tensors have 64 KiB, 1 MiB, and as many MiB as `--mebibytes` says, of which `--calls` are made a round; of the others
up to a hundred times as many. One call at a time, int4(group=64). GB/s are 10^9 bytes of FP16 tensor a second; the
median of the rounds counts, and the ratio is the median of each round's own ratio. "Python" is the client by the gRPC
of C++, "grpcio" the one without its module; CPU is that of the client's process, in s/GB, of all three. "into out"
decompresses into an array that is there already; the other decompression makes a new array. The C++ side is the client
library under kvc_load, which has each call's output in the memory of the one before, and connects once a round. Both
sides make one call more, which does not count.
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
WAYS = {"Python": "require", "grpcio": "off"}
CALLS = ("compress", "decompress", "decompress into out")


class Daemon:
    """Serves on loopback TCP, on a unix socket, and through shared memory."""

    def __init__(self, binary, folder):
        ports = folder / "ports.json"
        listen = f"127.0.0.1:0,unix:{folder}/s"
        self.process = subprocess.Popen([binary, "--listen", listen, "--metrics-listen", "off", "--port-file", ports,
                                         "--log-level", "error", "--shared-memory", "kvcompress-bench-",
                                         "--foreign-memory", "kvcompress-bench-cache-"])
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


def cpp_seconds(binaries, address, shared, size, calls, *flags):
    """Of one call of the C++ client, whose output is kept: on the clock, and of its process' CPU."""
    command = [binaries / "kvc_load", f"--address={address}", f"--shared_memory={str(shared).lower()}",
               f"--tensor_bytes={size}", "--warm_up=1", "--keep", f"--calls={calls}", f"--codec={CODEC}", *flags]
    outcome = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, timeout=120).stdout)[0]
    assert outcome["codes"] == {"OK": calls}, outcome
    return outcome["seconds"] / calls, outcome["process_cpu_seconds"] / calls


def python_seconds(calls, work):
    """Of one call: on the clock, and of this process' CPU."""
    work()  # the first connects, or clears pages
    started, started_cpu = time.perf_counter(), time.process_time()
    for _ in range(calls):
        work()
    return (time.perf_counter() - started) / calls, (time.process_time() - started_cpu) / calls


def measure(args, address, shared, size, calls):
    """Rows of one table: readings by call, one a round."""
    values = np.random.default_rng(1).standard_normal(size // 2, np.float32).astype(np.float16)
    out = np.empty_like(values)
    readings = {call: {"cpp": [], **{way: [] for way in WAYS}} for call in CALLS}
    clients = {
        way: kvcompress.Client(address, timeout=60, shared_memory=shared, native=native) for way, native in WAYS.items()
    }
    for _ in range(args.rounds):
        for call, by in readings.items():
            flags = ["--decompress"] if call.startswith("decompress") else []
            by["cpp"].append(cpp_seconds(args.bin, address, shared, size, calls, *flags))
            for way, client in clients.items():
                frame = client.compress(values, CODEC)
                work = {
                    "compress": lambda client=client: client.compress(values, CODEC),
                    "decompress": lambda client=client, frame=frame: client.decompress(frame),
                    "decompress into out": lambda client=client, frame=frame: client.decompress(frame, out=out),
                }[call]
                by[way].append(python_seconds(calls, work))
    for client in clients.values():
        client.close()
    return readings


def row_of(path, size, call, by):
    speeds = {way: [size / seconds / 1e9 for seconds, _ in by[way]] for way in by}
    cpu = {way: [spent / size * 1e9 for _, spent in by[way]] for way in by}
    medians = {way: statistics.median(speeds[way]) for way in by}
    medians_cpu = {way: statistics.median(cpu[way]) for way in by}
    cpu_ratios = ratios_of(cpu["Python"], cpu["cpp"])
    cells = [*medians.values(), statistics.median(ratios_of(speeds["Python"], speeds["cpp"])), *medians_cpu.values(),
             statistics.median(cpu_ratios)]
    print(f"| {path} | {size >> 10} KiB | {call} | {' | '.join(f'{value:.2f}' for value in cells)} |", flush=True)
    return {"path": path, "tensor_bytes": size, "call": call, "gb_per_s": speeds["Python"],
            "cpp_gb_per_s": speeds["cpp"], "grpcio_gb_per_s": speeds["grpcio"], "cpu_s_per_gb": medians_cpu["Python"],
            "cpp_cpu_s_per_gb": medians_cpu["cpp"], "grpcio_cpu_s_per_gb": medians_cpu["grpcio"],
            "cpu_ratios": cpu_ratios}


def ratios_of(mine, its):
    """Of each round."""
    return [a / b for a, b in zip(mine, its, strict=True)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--calls", type=int, default=4)
    parser.add_argument("--mebibytes", type=int, default=64)
    parser.add_argument("--bin", type=pathlib.Path, default=pathlib.Path("bin"))
    parser.add_argument("--output", type=pathlib.Path)
    args = parser.parse_args()
    largest = args.mebibytes << 20
    rows = []
    print("| path | tensor | call | C++ GB/s | Python | grpcio | Python / C++ | C++ CPU s/GB | Python | grpcio | "
          "Python / C++ |")
    print("|---" * 11 + "|")
    with tempfile.TemporaryDirectory(prefix="kvc-") as folder:
        daemon = Daemon(args.bin / "kv-compressd", pathlib.Path(folder))
        try:
            for path, (address, shared) in daemon.paths.items():
                for size in (64 << 10, 1 << 20, largest):
                    calls = args.calls * min(100, max(1, largest // size))
                    for call, by in measure(args, address, shared, size, calls).items():
                        rows.append(row_of(path, size, call, by))
        finally:
            daemon.stop()
    if args.output:
        args.output.write_text(json.dumps({"rows": rows}) + "\n")


if __name__ == "__main__":
    main()
