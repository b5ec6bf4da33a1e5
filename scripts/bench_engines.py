#!/usr/bin/env python3
"""Measures storing and loading through the adapters for SGLang and LMCache beside these engines' own file backends,
which keep raw bytes: the same values, in turns, in one run.

usage: bench_engines.py [--engine sglang lmcache serde] [--gigabytes 2] [--rounds 3] [--folder DIR]
                        [--codec lossless lossless-fast "int4(group=64)"] [--by daemon in-process] [--bin bin]

Needs the engines' Python packages; of SGLang no more than what its HiCache imports. Values are those of heads
of a real cache, BF16: 32 layers of 8 heads of 64 channels. Pages of SGLang have 64 tokens and go in batches of 128, as
its controller moves them; objects of LMCache have 256 tokens and go in tasks of 16. GB/s are 10^9 bytes of tensors a
second, the best of the rounds; CPU seconds are of this process and the daemon together. Files are in the page cache,
and count as blocks on the disk, without a store's index and filter, which are 64 MiB and a little. Where a virtual
machine has not touched its memory yet, the page cache alone costs some 2 CPU seconds a GB that is written: of one codec
and another, and of raw files, as many bytes as they have.
"""
import argparse
import os
import pathlib
import resource
import select
import signal
import subprocess
import tempfile
import time
import types
from collections.abc import Callable
from dataclasses import dataclass

import safetensors.torch
import torch

LAYERS, HEADS, SIZE = 32, 8, 64
REPOSITORY = pathlib.Path(__file__).resolve().parents[1]


class Daemon:
    def __init__(self, binary, folder):
        self.address = f"unix:{folder}/s"
        ports = folder / "ports.json"
        self.process = subprocess.Popen([
            binary, "--listen", self.address, "--metrics-listen", "off", "--port-file", ports, "--log-level", "error",
            "--shared-memory", "kvcompress-bench-"])
        deadline = time.monotonic() + 30
        while not ports.exists():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("the daemon does not start")
            time.sleep(0.01)

    def cpu_seconds(self):
        fields = pathlib.Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(30)


@dataclass
class Way:
    """One way to keep an engine's values."""

    store: Callable[[], object]
    load: Callable[[], object]
    size: Callable[[], int]  # of what is stored, in bytes
    close: Callable[[], object] = lambda: None


def size_of(folder):
    return sum(512 * path.stat().st_blocks for path in folder.rglob("*")
               if path.is_file() and not path.name.startswith(("index", "filter")))


def values(tokens, heads=HEADS):
    """[2, layers, tokens, heads, size]: heads of the real cache with their channels in another order and scaled, so that
    no codec finds one in another."""
    found = safetensors.torch.load_file(REPOSITORY / "tests" / "data" / "smollm2.256.bf16.safetensors")
    generator = torch.Generator().manual_seed(1)
    made = torch.empty(2, LAYERS, tokens, heads, SIZE, dtype=torch.bfloat16)
    for side, word in enumerate(("key", "value")):
        real = torch.cat([found[f"layer_{layer}_{word}"][0] for layer in (10, 20)])  # [6, 256, 64]
        for number in range(LAYERS * heads):
            head = real[number % 6][:, torch.randperm(SIZE, generator=generator)].float()
            head = (head * (0.5 + torch.rand(SIZE, generator=generator))).bfloat16()
            made[side, number // heads, :, number % heads] = head.repeat(-(-tokens // 256), 1)[:tokens]
    return made


class Pool:
    """SGLang's MHATokenToKVPoolHost in the layout page_first, as far as storage goes."""

    layout, layer_num, head_num, head_dim, page_size, dtype = "page_first", LAYERS, HEADS, SIZE, 64, torch.bfloat16

    def __init__(self, tokens):
        self.size = tokens
        self.kv_buffer = values(tokens).transpose(1, 2).contiguous()

    def get_page_buffer_meta(self, indices):
        blocks = [side[start : start + 64] for start in indices.tolist()[::64] for side in self.kv_buffer]
        return [block.data_ptr() for block in blocks], [block.nbytes for block in blocks]

    def get_data_page(self, index, flat=True):
        return self.kv_buffer[:, index : index + 64].flatten()

    def get_dummy_flat_data_page(self):
        return torch.zeros(2 * 64 * LAYERS * HEADS * SIZE, dtype=self.dtype)

    def set_from_flat_data_page(self, index, page):
        self.kv_buffer[:, index : index + 64] = page.view(2, 64, LAYERS, HEADS, SIZE)


class SGLang:
    """Both sides as SGLang's cache controller calls them."""

    def __init__(self, gigabytes):
        page = 2 * 64 * LAYERS * HEADS * SIZE * 2
        self.pages = max(128, int(gigabytes * 1e9 / page) // 128 * 128)
        self.nbytes = self.pages * page
        self.pool = Pool(16 * 1024)  # pages beyond it have the same places, and other keys
        self._fresh = self.pool.kv_buffer.clone()

    def refresh(self):
        """What a lossy codec has left in the pool would be cheaper to compress."""
        self.pool.kv_buffer.copy_(self._fresh)

    def batches(self):
        for first in range(0, self.pages, 128):
            yield [f"{number:064x}" for number in range(first, first + 128)], torch.arange(64 * 128) + first % 256 * 64

    def config(self, **extra):
        from sglang.srt.mem_cache.hicache_storage import HiCacheStorageConfig

        return HiCacheStorageConfig(
            tp_rank=0, tp_size=1, pp_rank=0, pp_size=1, attn_cp_rank=0, attn_cp_size=1, is_mla_model=False,
            enable_storage_metrics=False, is_page_first_layout=True, model_name="bench", extra_config=extra)

    def own(self):
        return {"its own files": self.raw}

    def raw(self, folder):
        from sglang.srt.mem_cache.hicache_storage import HiCacheFile

        storage = HiCacheFile(self.config(), str(folder))
        storage.register_mem_pool_host(self.pool)

        def store():
            for keys, indices in self.batches():
                assert storage.batch_set(keys, [self.pool.get_data_page(int(index)) for index in indices[::64]])

        def load():
            for keys, indices in self.batches():
                found = storage.batch_get(keys, [self.pool.get_dummy_flat_data_page() for _ in keys])
                for index, page in zip(indices[::64], found, strict=True):
                    self.pool.set_from_flat_data_page(int(index), page)

        return Way(store, load, lambda: size_of(folder))

    def ours(self, folder, target, codec):
        from kvcompress.adapters.sglang import KvCompressStorage

        storage = KvCompressStorage(self.config(path=str(folder), target=target, codec=codec, interface_v1=1))
        storage.register_mem_pool_host(self.pool)

        def store():
            for keys, indices in self.batches():
                assert all(storage.batch_set_v1(keys, indices))

        def load():
            for keys, indices in self.batches():
                assert all(storage.batch_get_v1(keys, indices))

        return Way(store, load, lambda: size_of(folder), storage.close)


class LMCache:
    """Both sides as LMCache's controllers call them: a task at a time."""

    def __init__(self, gigabytes):
        shape = torch.Size([2, LAYERS, 256, HEADS * SIZE])
        self.count = max(16, int(gigabytes * 1e9 / (shape.numel() * 2)) // 16 * 16)
        self.nbytes = self.count * shape.numel() * 2
        self.objects = [self.memory(shape) for _ in range(16)]
        self._fresh = values(256).flatten(3)

    def refresh(self):
        for number, memory in enumerate(self.objects):
            memory.tensor.copy_(self._fresh.roll(number, 2))

    def memory(self, shape, dtype=torch.bfloat16):
        from lmcache.v1.memory_management import MemoryFormat, MemoryObjMetadata, TensorMemoryObj

        size = shape.numel() * dtype.itemsize
        described = MemoryObjMetadata(shape, dtype, 0, size, 1, shapes=[shape], dtypes=[dtype],
                                      fmt=MemoryFormat.KV_2LTD)
        return TensorMemoryObj(torch.zeros(size, dtype=torch.uint8), described, None)

    def batches(self):
        from lmcache.v1.distributed.api import ObjectKey

        for first in range(0, self.count, 16):
            yield [ObjectKey(number.to_bytes(32, "big"), "bench", 0x01000100) for number in range(first, first + 16)]

    def own(self):
        return {"its own files": self.raw}

    def of(self, adapter, folder):
        def answer(descriptor, query):
            select.select([descriptor], [], [], 120)
            while not (found := query()):
                time.sleep(0.0005)
            return found

        def store():
            for keys in self.batches():
                task = adapter.submit_store_task(keys, self.objects)
                done = answer(adapter.get_store_event_fd(), adapter.pop_completed_store_tasks)
                assert done[task].is_successful()

        def load():
            for keys in self.batches():
                task = adapter.submit_load_task(keys, self.objects)
                done = answer(adapter.get_load_event_fd(), lambda task=task: adapter.query_load_result(task))
                assert done.popcount() == len(keys)

        return Way(store, load, lambda: size_of(folder), adapter.close)

    def raw(self, folder):
        from lmcache.v1.distributed.l2_adapters.fs_l2_adapter import FSL2Adapter, FSL2AdapterConfig

        return self.of(FSL2Adapter(FSL2AdapterConfig(str(folder))), folder)

    def ours(self, folder, target, codec):
        from kvcompress.adapters.lmcache import KvCompressL2Adapter

        return self.of(KvCompressL2Adapter({"path": str(folder), "target": target, "codec": codec}), folder)


class Serde(LMCache):
    """LMCache's serdes, called as its processor calls them; what they make stays in memory."""

    def __init__(self, gigabytes):
        shape = torch.Size([2, LAYERS, 256, 1024])
        self.count = max(1, int(gigabytes * 1e9 / (shape.numel() * 2)))
        self.nbytes = self.count * shape.numel() * 2
        self._fresh = values(256, 1024 // SIZE).flatten(3)
        self.whole, self.read = self.memory(shape), self.memory(shape)
        self.sides = [self.memory(torch.Size(shape[1:])) for _ in range(2)]

    def refresh(self):
        self.whole.tensor.copy_(self._fresh)
        for memory, side in zip(self.sides, self._fresh, strict=True):
            memory.tensor.copy_(side)

    def own(self):
        return {"fp8": self.fp8, "asym_k16_v8": self.asym}

    def way(self, serializer, deserializer, source, target):
        from lmcache.v1.distributed.api import ObjectKey

        buffer = self.memory(torch.Size([self.nbytes // self.count * 2]), torch.uint8)
        key = ObjectKey(bytes(32), "bench", 0x01000100)
        sizes = []

        def store():
            sizes[:] = [serializer.serialize(source, buffer, key) for _ in range(self.count)]

        def load():
            for _ in range(self.count):
                deserializer.deserialize(buffer, target, key)

        return Way(store, load, lambda: sum(sizes))

    def fp8(self, folder):
        from lmcache.v1.distributed.serde import fp8

        return self.way(fp8.Fp8QuantizationSerializer(), fp8.Fp8QuantizationDeserializer(), self.whole, self.read)

    def asym(self, folder):
        from lmcache.v1.distributed.serde import asym_k16_v8

        return self.way(asym_k16_v8.AsymK16V8MultiSerializer(), asym_k16_v8.AsymK16V8MultiDeserializer(), self.sides,
                        self.sides)

    def ours(self, folder, target, codec):
        from kvcompress.adapters._lmcache_serde import create

        made = create({"target": target, "codec": codec})
        way = self.way(made._serializer, made._deserializer, self.whole, self.read)
        way.close = made.close
        return way


ENGINES = {"sglang": SGLang, "lmcache": LMCache, "serde": Serde}


def measured(work, daemon):
    """Seconds, and CPU seconds of this process and the daemon."""

    def cpu():
        used = resource.getrusage(resource.RUSAGE_SELF)
        return used.ru_utime + used.ru_stime + daemon.cpu_seconds()

    before, began = cpu(), time.perf_counter()
    work()
    return time.perf_counter() - began, cpu() - before


def measure(engine, args, daemon):
    """Rows of (name, store, load, bytes kept); store and load are the best (seconds, CPU seconds)."""
    best = {}
    ways = engine.own()
    for by in args.by:
        target = daemon.address if by == "daemon" else by
        for codec in args.codec:
            ways[f"{codec}, {by}"] = lambda folder, target=target, codec=codec: engine.ours(folder, target, codec)
    for _ in range(args.rounds):
        for name, make in ways.items():
            engine.refresh()
            with tempfile.TemporaryDirectory(prefix="kvc-bench-", dir=args.folder) as folder:
                way = make(pathlib.Path(folder) / "kept")
                times = [measured(way.store, daemon), measured(way.load, daemon)]
                size = way.size()
                way.close()
            row = best.setdefault(name, types.SimpleNamespace(store=times[0], load=times[1], size=size))
            row.store, row.load, row.size = min(row.store, times[0]), min(row.load, times[1]), size
    return best


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", nargs="+", default=["sglang", "lmcache"], choices=list(ENGINES))
    parser.add_argument("--gigabytes", type=float, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=pathlib.Path, help="on the disk, or tmpfs, to measure")
    parser.add_argument("--by", nargs="+", default=["daemon"], choices=["daemon", "in-process"],
                        help="where the codec runs: in-process is this process")
    parser.add_argument("--codec", nargs="+", default=["lossless", "lossless-fast", "int4(group=64)"])
    parser.add_argument("--bin", type=pathlib.Path, default=pathlib.Path("bin"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    print("| engine | kept as | store GB/s | load GB/s | CPU s/GB store | load | bytes |\n" + "|---" * 7 + "|")
    with tempfile.TemporaryDirectory(prefix="kvc-") as folder:
        daemon = Daemon(args.bin / "kv-compressd", pathlib.Path(folder))
        try:
            for name in args.engine:
                engine = ENGINES[name](args.gigabytes)
                for kept, row in measure(engine, args, daemon).items():
                    speeds = [engine.nbytes / seconds / 1e9 for seconds, _ in (row.store, row.load)]
                    costs = [cpu / engine.nbytes * 1e9 for _, cpu in (row.store, row.load)]
                    print(f"| {name} | {kept} | {speeds[0]:.2f} | {speeds[1]:.2f} | {costs[0]:.2f} | {costs[1]:.2f} "
                          f"| {row.size / engine.nbytes:.1%} |", flush=True)
        finally:
            daemon.stop()


if __name__ == "__main__":
    main()
