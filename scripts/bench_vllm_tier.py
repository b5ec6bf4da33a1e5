#!/usr/bin/env python3
"""Measures the vLLM tier beside vLLM's own `fs` tier, which stores raw bytes: the same chunks, in one run.

usage: PYTHONPATH=FOLDER bench_vllm_tier.py [--gigabytes 2] [--codec lossless --codec int4] [--folders DIR,DIR]
                                            [--no-in-process]
FOLDER: where a wheel of vLLM was unpacked to, or nothing where vLLM is installed.

Chunks of 256 tokens are made of a model's keys and values (tests/data), each layer times a factor of its own. Store
and load are jobs of 8 chunks, 4 at a time. Folders are forgotten by the page cache in between. GB/s and CPU seconds are
of 10^9 bytes of CPU cache; CPU seconds are this process' and the daemon's. "longest" is the longest time that a call of
a scheduler's took. Each codec is measured by a daemon that is sent copies, by one that reads the CPU cache where it
stands, and in this process. bench_vllm_troubles.py measures daemons and stores that are slow, stopped or gone.
"""
import argparse
import contextlib
import os
import pathlib
import shutil
import sys
import tempfile
import time

import numpy as np
import torch
from safetensors.torch import load_file

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY / folder) for folder in ("scripts", "tests/client/python/adapters")]
import vllm_imports  # noqa: E402, F401, I001 - before all that imports vLLM
import tiering  # noqa: E402
from bench_python import Daemon  # noqa: E402

LAYERS, HEADS, HEAD_DIM, TOKENS, BLOCKS = 30, 3, 64, 16, 16
JOB, IN_FLIGHT, ROWS = 8, 4, 32


def configured():
    tiering.HEAD_DIM, tiering.TOKENS = HEAD_DIM, TOKENS
    return tiering.offloading_config(layers=LAYERS, heads=HEADS, blocks=BLOCKS, dtype="bfloat16")


def filled(config, path=None):
    """A cache whose layers hold a model's values, each times a factor of its own; with a path, one that the daemon reads
    where it stands."""
    cache = tiering.Cache(config, ROWS, path)
    tensors = load_file(REPOSITORY / "tests/data/smollm2.256.bf16.safetensors")
    layers = sorted({name.rpartition("_")[0] for name in tensors})
    for row in range(ROWS):
        pages = cache.pages(row)[0]
        for layer in range(LAYERS):
            name = layers[layer % len(layers)]
            both = torch.cat([tensors[f"{name}_key"][0], tensors[f"{name}_value"][0]], -1).float()
            both *= 1 + (row * LAYERS + layer) / 4096
            pages[layer] = both.view(HEADS, BLOCKS, TOKENS, 2 * HEAD_DIM).transpose(0, 1)
    return cache


def cpu_seconds(daemon):
    fields = pathlib.Path(f"/proc/{daemon.process.pid}/stat").read_text().rpartition(")")[2].split()
    return time.process_time() + (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def forget(folder):
    os.sync()
    for path in pathlib.Path(folder).rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def bytes_of(folder):
    return sum(path.stat().st_blocks * 512 for path in pathlib.Path(folder).rglob("*") if path.is_file())


def move(steps, chunks, load, daemon):
    """Seconds, and CPU seconds, of moving that many chunks."""
    begin, cpu, waiting, failed = time.perf_counter(), cpu_seconds(daemon), 0, 0
    for at in range(0, chunks, JOB):
        if waiting == IN_FLIGHT:
            failed += not steps.finish()[0].success
            waiting -= 1
        numbers = range(at, min(at + JOB, chunks))
        steps.submit([tiering.key_of(number) for number in numbers], [number % ROWS for number in numbers], load=load)
        waiting += 1
    failed += sum(not result.success for result in steps.finish(waiting, seconds=600))
    assert not failed, f"{failed} jobs failed"
    return time.perf_counter() - begin, cpu_seconds(daemon) - cpu


def tier_of(kind, config, cache, folder, daemon, target=None, **more):
    from kvcompress.adapters.vllm import CompressedTier
    from vllm.v1.kv_offload.tiering.fs.manager import FileSystemTierManager

    spec = tiering.Spec(config)
    spec.blocks_per_chunk = config.cache.blocks_per_chunk
    if kind == "fs":
        return FileSystemTierManager(spec, cache.view, "fs", root_dir=str(folder))
    return CompressedTier(spec, cache.view, "CompressedTier", path=str(folder), codec=kind, head_dim=HEAD_DIM,
                          target=target or daemon.paths["unix socket"][0], rotary={"theta": 1e5, "pairs": "half"}, **more)


def wait_until_read(tier):
    """Until the daemon has the cache."""
    deadline = time.monotonic() + 10
    while not tier._rows._foreign.is_ready():
        assert time.monotonic() < deadline, "the daemon does not read the cache"
        time.sleep(0.01)


def measure(kind, config, cache, where, chunks, daemon, target=None, in_place=False):
    folder = pathlib.Path(where) / "tier"
    shutil.rmtree(folder, ignore_errors=True)
    steps = tiering.Steps(tier_of(kind, config, cache, folder, daemon, target))
    if in_place:
        wait_until_read(steps.tier)
    gigabytes, truth = chunks * tiering.row_bytes(config) / 1e9, cache.rows.copy()
    try:
        stored, stored_cpu = move(steps, chunks, False, daemon)
        size = bytes_of(folder)
        forget(folder)
        cache.rows[:] = 0
        loaded, loaded_cpu = move(steps, chunks, True, daemon)
        exact = np.array_equal(cache.rows, truth)
        assert exact or kind not in ("fs", "lossless", "raw")
    finally:
        cache.rows[:] = truth
        steps.tier.shutdown()
        shutil.rmtree(folder, ignore_errors=True)
    figures = [gigabytes / stored, gigabytes / loaded, stored_cpu / gigabytes, loaded_cpu / gigabytes,
               size / (gigabytes * 1e9)]
    row = " | ".join(f"{figure:.2f}" for figure in figures)
    shown = f"{kind}, {target}" if target else f"{kind}, read in place" if in_place else kind
    print(f"| {where} | {shown} | {row} | {1e3 * steps.longest:.1f} ms |", flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--codec", action="append", default=[])
    parser.add_argument("--no-in-process", dest="in_process", action="store_false")
    parser.add_argument("--folders", default=f"{REPOSITORY}/build/bench-tier,/dev/shm/kvcompress-bench-tier")
    parser.add_argument("--bin", type=pathlib.Path, default=REPOSITORY / "bin")
    args = parser.parse_args()
    torch.set_num_threads(1)
    config = configured()
    path = f"/dev/shm/kvcompress-bench-cache-{os.getpid()}.mmap"
    cache, chunks = filled(config), int(args.gigabytes * 1e9 / tiering.row_bytes(config))
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as end:
        daemon = Daemon(args.bin / "kv-compressd", pathlib.Path(folder))
        end.callback(daemon.stop)
        end.callback(lambda: os.unlink(path))
        in_place = filled(config, path)
        print("| folder | tier | store GB/s | load GB/s | CPU s/GB of stores | of loads | bytes on disk | longest |")
        print("|---|---|---|---|---|---|---|---|")
        for where in args.folders.split(","):
            measure("fs", config, cache, where, chunks, daemon)
            for kind in args.codec or ["lossless", "int4(group=64)"]:
                measure(kind, config, cache, where, chunks, daemon)
                measure(kind, config, in_place, where, chunks, daemon, in_place=True)
                if args.in_process:
                    measure(kind, config, cache, where, chunks, daemon, "in-process")


if __name__ == "__main__":
    main()
