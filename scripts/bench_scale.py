#!/usr/bin/env python3
"""Measures what a byte costs as tensors and streams grow: CPU seconds per GB of client and daemon, and the most memory
that the daemon holds. Prints a table in Markdown, as docs/capacity.md has it.

usage: bench_scale.py [--output build/bench/scale.json]
"""
import argparse
import json
import os
import pathlib
import subprocess
import tempfile
import threading

from bench_report import MIB, size
from bench_transport import Server, machine, shared_memory_prefix

PATHS = {"unix socket": "daemon", "shared memory": "shm"}
CELLS = [*((1, bytes_) for bytes_ in (256 << 10, MIB, 16 * MIB, 256 * MIB, 4096 * MIB)),
         *((streams, 16 * MIB) for streams in (4, 16, 64))]


class Resident(threading.Thread):
    """Watches how much of a process's resident memory is its own, and how much is shared."""

    def __init__(self, pid):
        super().__init__()
        self.status = pathlib.Path(f"/proc/{pid}/status")
        self.peak = {"RssAnon": 0, "RssShmem": 0}
        self.over = threading.Event()

    def run(self):
        while not self.over.wait(0.01):
            for line in self.status.read_text().splitlines():
                name, _, value = line.partition(":")
                if name in self.peak:
                    self.peak[name] = max(self.peak[name], int(value.split()[0]) << 10)

    def stop(self):
        self.over.set()
        self.join()
        return self.peak


def cell(args, path, streams, tensor_bytes):
    """Of a daemon that has done nothing before."""
    with tempfile.TemporaryDirectory(prefix="kvb") as folder:
        server = Server(pathlib.Path(folder), "daemon", lambda port_file, listen: [
            str(args.bin / "kv-compressd"), "--listen", ",".join(listen), "--metrics-listen", "off", "--port-file", port_file,
            "--log-level", "error", "--shared-memory", shared_memory_prefix(os.getpid())])
        resident = Resident(server.process.pid)
        resident.start()
        try:
            done = subprocess.run(
                [args.build / "bench" / "transport" / "kvc_bench_transport", "throughput", f"--streams={streams}",
                 f"--tensor_bytes={tensor_bytes}", f"--rounds={args.rounds}", f"--window_ms={args.window_ms}",
                 f"{PATHS[path]},{server.address['unix']},{server.process.pid}"],
                stdout=subprocess.PIPE, check=True, timeout=300)
        finally:
            peak = resident.stop()
            server.stop()
    rows = json.loads(done.stdout)
    total = {key: sum(row[key] for row in rows) for key in rows[0]}
    gigabytes = total["tensor_bytes"] / 1e9
    return {"path": path, "streams": streams, "tensor_bytes": tensor_bytes, "gb_per_s": gigabytes / total["seconds"],
            "own_bytes": peak["RssAnon"], "region_bytes": peak["RssShmem"],
            **{f"{side}_s_per_gb": (total[f"{side}_user"] + total[f"{side}_system"]) / gigabytes
               for side in ("client", "server")}}


def table(cells):
    lines = ["| path | streams | tensor | client, CPU s/GB | daemon, CPU s/GB | daemon's own memory | regions |",
             "|---|---|---|---|---|---|---|"]
    for one in cells:
        cost = f"{one['client_s_per_gb']:.2f} | {one['server_s_per_gb']:.2f}"
        memory = f"{one['own_bytes'] / MIB:.0f} MiB | {one['region_bytes'] / MIB:.0f} MiB"
        lines.append(f"| {one['path']} | {one['streams']} | {size(one['tensor_bytes'])} | {cost} | {memory} |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("build/bench/scale.json"))
    parser.add_argument("--build", type=pathlib.Path, default=pathlib.Path("build/release"))
    parser.add_argument("--bin", type=pathlib.Path, default=pathlib.Path("bin"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--window-ms", type=int, default=500)
    args = parser.parse_args()
    cells = [cell(args, path, *streams_and_bytes) for path in PATHS for streams_and_bytes in CELLS]
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps({"machine": machine(args), "cells": cells}, indent=1) + "\n")
    print(table(cells))


if __name__ == "__main__":
    main()
