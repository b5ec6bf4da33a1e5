"""What vLLM has around a secondary tier: a configuration, and a CPU cache of its layout."""

import dataclasses
import mmap
import os
import time

import numpy as np
import torch
from kvcompress.adapters.vllm_tier import CompressedTier

LAYERS, HEADS, TOKENS, HEAD_DIM = 3, 2, 16, 32
ROTARY = {"theta": 10000.0}


def offloading_config(*, layers=LAYERS, heads=HEADS, blocks=1, workers=1, dtype="float16", groups=1, model="org/model",
                      names="model.layers.{}.self_attn.attn", **more):
    """An OffloadingConfig of a model with attention in all layers, or, with several groups, as many times as many."""
    from vllm.v1.kv_offload import config

    size = {"float16": 2, "bfloat16": 2, "float32": 4, "fp8": 1}.get(dtype, 1)
    per = layers * heads * TOKENS * 2 * HEAD_DIM * size
    found = config.OffloadingConfig(
        groups=tuple(
            config.OffloadingGroupConfig(
                tokens_per_block=TOKENS, group_id=group,
                layer_names=tuple(names.format(group * layers + layer) for layer in range(layers)))
            for group in range(groups)),
        worker_kv_bytes_per_block=per, enable_kv_cache_events=True, extra_config={}, engine_id="engine",
        model=config.OffloadingModelConfig(name=model, dtype=dtype),
        cache=config.OffloadingCacheConfig(tokens_per_hash=TOKENS, blocks_per_chunk=blocks),
        parallel=config.OffloadingParallelConfig(
            rank=0, world_size=workers, tp_size=workers, pp_size=1, pcp_size=1, dcp_size=1, data_parallel_index=0,
            data_parallel_size=1, data_parallel_rank_local=None, is_parallelism_agnostic=False),
        replicated_layout=False, canonical_layout=False, kv_cache_layout="LBHNC")
    return dataclasses.replace(found, **more)


def row_bytes(config):
    """Of a chunk: whole pages of memory."""
    used = config.worker_kv_bytes_per_block * config.parallel.world_size * config.cache.blocks_per_chunk
    return -(-used // 4096) * 4096


def key_of(number, group=0):
    return number.to_bytes(32, "little") + group.to_bytes(4, "big")


class Spec:
    """What a tier sees of an OffloadingSpec."""

    def __init__(self, config):
        self.config = config
        self.kv_events_config = type("Events", (), {"enable_kv_cache_events": config.enable_kv_cache_events})


class Cache:
    """The CPU cache: rows of bytes, in which values stand that are smooth along the tokens, as a model's are."""

    def __init__(self, config, rows=8, path=None):
        """`path`: of a new file for the memory, as vLLM has it."""
        self.config = config
        size, file = rows * row_bytes(config), -1
        if path is not None:
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            os.ftruncate(file, size)
        memory = mmap.mmap(file, size)  # which begins with a page, as direct I/O needs it
        if path is not None:
            os.close(file)
        self.rows = np.frombuffer(memory, np.uint8).reshape(rows, -1)

    @property
    def view(self):
        return memoryview(self.rows.view(np.int8))

    def pages(self, row):
        """[workers, layers, blocks, heads, tokens, key and value] of one row."""
        config = self.config
        used = config.worker_kv_bytes_per_block * config.parallel.world_size * config.cache.blocks_per_chunk
        values = torch.from_numpy(self.rows[row, :used]).view(getattr(torch, config.model.dtype))
        layers, blocks = len(config.groups[0].layer_names), config.cache.blocks_per_chunk
        return values.view(config.parallel.world_size, layers, blocks, -1, TOKENS, 2 * HEAD_DIM)

    def fill(self, row, seed):
        pages = self.pages(row)
        generator = torch.Generator().manual_seed(seed)
        steps = torch.randn(pages.shape, generator=generator).cumsum(-2) * 0.1
        pages.copy_((steps + torch.randn(pages.shape[-1], generator=generator)).to(pages.dtype))


def job(number, keys, rows, *, load, request="r", ends=None):
    from vllm.v1.kv_offload.base import ReqContext
    from vllm.v1.kv_offload.tiering.base import TransferJob

    context = ReqContext(req_id=request)
    for key, end in (ends or {}).items():
        context.set_offload_key_position(key, end)
    chunk_ids = np.array(rows, np.int32)
    return TransferJob(job_id=number, keys=keys, chunk_ids=chunk_ids, is_promotion=load, req_context=context)


class Steps:
    """Jobs of one tier, one after another; `longest` is the longest time that one of the tier's methods took."""

    def __init__(self, tier):
        self.tier, self.longest, self._number, self._ended = tier, 0.0, 0, []

    @staticmethod
    def of(address, folder, config=None, *, rows=8, cache_file=None, **options):
        """Of a new tier whose frames go through a daemon to a folder, with a CPU cache of its own: `cache`."""
        config = config or offloading_config()
        cache = Cache(config, rows, cache_file)
        options = {"target": address, "path": str(folder), "codec": "lossless", "head_dim": HEAD_DIM, "rotary": ROTARY,
                   "streams": 2, **options}
        steps = Steps(CompressedTier(Spec(config), cache.view, "CompressedTier", **options))
        steps.cache = cache
        return steps

    def call(self, method, *arguments):
        begin = time.perf_counter()
        result = getattr(self.tier, method)(*arguments)
        self.longest = max(self.longest, time.perf_counter() - begin)
        return result

    def submit(self, keys, rows, *, load, **more):
        self._number += 1
        self.call("submit_load" if load else "submit_store", job(self._number, keys, rows, load=load, **more))
        return self._number

    def finish(self, count=1, seconds=30):
        """The results of the next jobs that end."""
        deadline = time.monotonic() + seconds
        while len(self._ended) < count:
            assert time.monotonic() < deadline, "jobs do not end"
            self._ended += self.call("get_finished_jobs")
            self.call("on_schedule_end", None)
            time.sleep(0.001)
        results, self._ended = self._ended[:count], self._ended[count:]
        return results

    def store(self, keys, rows, **more):
        self.submit(keys, rows, load=False, **more)
        return self.finish()[0]

    def load(self, keys, rows, **more):
        self.submit(keys, rows, load=True, **more)
        return self.finish()[0]

    def lookup(self, key, request="r", seconds=30):
        """The answer, when it is one."""
        from vllm.v1.kv_offload.base import LookupResult, ReqContext

        deadline = time.monotonic() + seconds
        while (found := self.call("lookup", key, ReqContext(req_id=request))) is LookupResult.RETRY:
            assert time.monotonic() < deadline, "the look-up does not end"
            self.call("on_schedule_end", None)
            time.sleep(0.001)
        return found.name

    def failures(self):
        """Chunks by reason, since this was last asked."""
        data = getattr(self.tier.get_stats(), "data", {}).get("data", {})
        return {labels[0]: amount for name, values in data.items() if name.endswith("load_failures")
                for labels, amount in values.items()}
