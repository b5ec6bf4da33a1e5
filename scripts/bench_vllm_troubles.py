#!/usr/bin/env python3
"""Measures what a scheduler sees of the vLLM tier while the daemon, or a Redis as its store, is slow, stopped or gone.

usage: PYTHONPATH=FOLDER bench_vllm_troubles.py [--seconds 5]
FOLDER: where a wheel of vLLM was unpacked to, or nothing where vLLM is installed. Needs redis-server.

Every 20 ms a request looks up a chunk of 256 tokens (5.9 MB) that was stored, and loads it if it is there and one of 16
rows is free; and another one is stored, by as many as 48 jobs at once, as a CPU cache of 64 such rows has it. "longest"
is the longest time that one of the scheduler's calls took, "open" the most jobs at once. "wrong" are rows of the CPU
cache with anything but what was asked for, or, of a miss, with anything new.
"""
import argparse
import contextlib
import pathlib
import sys
import tempfile

import torch

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY / folder) for folder in ("scripts", "tests/client/python/adapters", "tests/e2e")]
import bench_vllm_tier as tier  # noqa: E402
import tiering  # noqa: E402
from bench_python import Daemon  # noqa: E402
from process_helpers import stopped  # noqa: E402
from redis_servers import Server  # noqa: E402
from traffic import Slowed, Traffic  # noqa: E402

SOURCES, TARGETS, STORES = 4, 16, 48


@contextlib.contextmanager
def killed(server):
    """And started anew, with nothing in it."""
    server.stop()
    yield
    server.start()


def measure(path, daemon, troubles, seconds, **options):
    """Rows of what one tier does: while each trouble lasts, and as long afterwards."""
    tier.ROWS = SOURCES + TARGETS
    config = tier.configured()
    cache = tier.filled(config)
    steps = tiering.Steps(tier.tier_of("lossless", config, cache, path, daemon, **options))
    steps.cache = cache
    traffic = Traffic(steps, SOURCES, pause=0.02, most_stores=STORES)
    try:
        traffic.begin(8)
        for name, trouble in troubles:
            for words, state in ((name, trouble), ("afterwards", contextlib.nullcontext())):
                with state:
                    seen = traffic.run(seconds)
                seen.add(traffic.settle())
                print(f"| {words} | {1e3 * seen.longest:.1f} ms | {seen.most_open} | {seen.hits} / {seen.misses} "
                      f"| {seen.wrong} | {seen.stored} / {seen.unstored} |", flush=True)
    finally:
        steps.tier.shutdown()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each trouble, and afterwards")
    parser.add_argument("--bin", type=pathlib.Path, default=REPOSITORY / "bin")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as end:
        daemon = Daemon(args.bin / "kv-compressd", pathlib.Path(folder))
        end.callback(daemon.stop)
        redis = Server(folder, "--maxmemory", "1gb", "--maxmemory-policy", "allkeys-lru")
        end.callback(redis.stop)
        well = contextlib.nullcontext()
        print("| | longest | open | loads: hits / misses | wrong | stores: done / left out |\n" + "|---" * 6 + "|")
        measure(pathlib.Path(folder) / "kv", daemon, [
            ("a folder, all well", well),
            ("a daemon that runs a tenth of the time", Slowed(daemon.process)),
            ("a daemon that is stopped", stopped(daemon.process))], args.seconds, capacity_bytes=10**9)
        measure(redis.url, daemon, [
            ("a Redis, all well", well),
            ("a daemon that runs a tenth of the time", Slowed(daemon.process)),
            ("a Redis that runs a tenth of the time", Slowed(redis.process)),
            ("a Redis that is stopped", stopped(redis.process)),
            ("a Redis that is killed", killed(redis))], args.seconds)


if __name__ == "__main__":
    main()
