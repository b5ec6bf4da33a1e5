"""What vLLM has around a connector: requests, steps, and a paged cache of its layout, on the CPU."""

import pickle
import time
from types import SimpleNamespace as Bag

import torch

LAYERS, HEADS, SIZE, BLOCK, BLOCKS, CHUNK = 3, 2, 32, 4, 40, 16


class Engine:
    """A scheduler and a worker of one group of caches, called as vLLM calls them, in steps without a model."""

    def __init__(self, server, path, *, kernel_blocks=1, content=2 * SIZE, dtype=torch.float16, ranks=1, rank=0,
                 model=None, spec=None, **options):
        from kvcompress.adapters.vllm import KvCompressConnector
        from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorRole
        from vllm.v1.kv_cache_interface import FullAttentionSpec

        target = server if isinstance(server, str) else server.address
        extra = {"target": target, "path": str(path), "codec": "lossless", "chunk_tokens": CHUNK, **options}
        spec = spec or FullAttentionSpec(block_size=BLOCK, num_kv_heads=HEADS, head_size=SIZE, dtype=dtype)
        names = [f"model.layers.{i}.self_attn.attn" for i in range(LAYERS)]
        self.cache_config = Bag(num_blocks=BLOCKS, kv_cache_groups=[Bag(kv_cache_spec=spec, layer_names=names)])
        config = Bag(
            kv_transfer_config=Bag(kv_connector_extra_config=extra),
            parallel_config=Bag(world_size=ranks, rank=rank, tensor_parallel_size=ranks, pipeline_parallel_size=1),
            cache_config=Bag(block_size=BLOCK, cache_dtype="auto"),
            model_config=Bag(model="org/model", dtype=dtype, **(model or {})))
        self.scheduler = KvCompressConnector(config, KVConnectorRole.SCHEDULER, self.cache_config)
        self.worker = KvCompressConnector(config, KVConnectorRole.WORKER, self.cache_config)
        shape = (BLOCKS * kernel_blocks, HEADS, BLOCK // kernel_blocks, content)
        # The memory under the views is [blocks, tokens, heads, content], as vLLM's NHD layout has it.
        self.caches = {
            name: torch.zeros(shape[0], shape[2], HEADS, content, dtype=dtype).transpose(1, 2) for name in names}
        self.kernel_blocks = kernel_blocks
        self.worker.register_kv_caches(self.caches)
        self.tables, self.longest = {}, {}

    def call(self, side, method, *arguments):
        begin = time.perf_counter()
        result = getattr(side, method)(*arguments)
        self.longest[method] = max(self.longest.get(method, 0), time.perf_counter() - begin)
        return result

    def cells(self, layer, blocks):
        """The cache's content [tokens, heads, content] of some blocks."""
        cache = self.caches[f"model.layers.{layer}.self_attn.attn"]
        rows = [row for block in blocks for row in range(block * self.kernel_blocks, (block + 1) * self.kernel_blocks)]
        return cache[rows].permute(0, 2, 1, 3).flatten(0, 1)

    def compute(self, request, blocks, begin, end):
        """What a model would: the values of tokens [begin, end), which depend on all tokens before them."""
        for position in range(begin, end):
            seed = hash(tuple(request.all_token_ids[: position + 1])) % 2**31
            values = torch.randn(LAYERS, HEADS, SIZE * 2, generator=torch.Generator().manual_seed(seed))
            per = BLOCK // self.kernel_blocks
            row = blocks[position // BLOCK] * self.kernel_blocks + position % BLOCK // per
            for layer, cache in enumerate(self.caches.values()):
                cache[row, :, position % per] = values[layer, :, : cache.shape[-1]].to(cache.dtype)

    def step(self, output, work=()):
        """One step with a SchedulerOutput; what its KVConnectorOutput says. `work`: what the model computes in it,
        (request, blocks, begin, end)."""
        output.kv_connector_block_state = self._block_state(output)
        meta = pickle.loads(pickle.dumps(self.call(self.scheduler, "build_connector_meta", output)))
        self.worker.bind_connector_metadata(meta)
        for item in work:
            self.compute(*item)
        for name, cache in self.caches.items():
            self.worker.wait_for_layer_load(name)
            self.worker.save_kv_layer(name, cache, None)
        self.call(self.worker, "start_load_kv", None)
        self.call(self.worker, "wait_for_save")
        found = self.call(self.worker, "get_transfer_results", set())
        assert not found.finished_sending
        told = Bag(
            finished_recving=found.finished_recving, failed_recving=found.failed_recving,
            invalid_block_ids=self.worker.get_block_ids_with_load_errors(),
            kv_connector_worker_meta=self.worker.build_connector_worker_meta())
        self.worker.clear_connector_metadata()
        self.scheduler.update_connector_output(told)
        return told

    def _block_state(self, output):
        """Blocks of each request, as vLLM's tables have them after this step's were allocated."""
        from vllm.v1.core.sched.output import KVConnectorBlockState

        for new in output.scheduled_new_reqs:
            self.tables[new.req_id] = list(new.block_ids[0])
        cached = output.scheduled_cached_reqs
        for request, more in zip(cached.req_ids, cached.new_block_ids, strict=True):
            before = [] if request in cached.resumed_req_ids else self.tables[request]
            self.tables[request] = [*before, *(more[0] if more else [])]
        state = KVConnectorBlockState(
            req_ids=set(output.num_scheduled_tokens), resolve_block_ids=lambda request: (self.tables[request],),
            boundary_state_offloads={})
        state.get_block_ids = state.resolve_block_ids
        return state

    def match(self, request, local=0):
        """Tokens that are found, when that is known."""
        while True:
            loaded, later = self.call(self.scheduler, "get_num_new_matched_tokens", request, local)
            assert later == bool(loaded)
            if loaded is not None:
                return loaded

    def allocate(self, request, blocks, loaded):
        self.call(self.scheduler, "update_state_after_alloc", request, Bag(get_block_ids=lambda: (blocks,)), loaded)

    def load(self, request, blocks, loaded, seconds=30):
        """Steps until these tokens of a request are loaded; the blocks that failed."""
        self.allocate(request, blocks, loaded)
        deadline, failed = time.monotonic() + seconds, set()
        while True:
            told = self.step(output())
            failed |= told.invalid_block_ids
            if request.request_id in told.finished_recving:
                return failed
            assert time.monotonic() < deadline, "the load does not end"
            time.sleep(0.001)

    def prefill(self, request, blocks, local=0):
        """A new request: the tokens that were found for it, and the blocks that failed to be loaded, which are computed
        with all that follows."""
        loaded = self.match(request, local)
        failed = self.load(request, blocks, loaded) if loaded else set()
        known, length = local + loaded, len(request.all_token_ids)
        if failed:
            known = min(blocks.index(block) for block in failed) * BLOCK
        self.allocate(request, blocks, 0)
        self.run(output(new=[(request, blocks, known, length - known)]), [(request, blocks, known, length)])
        return loaded, failed

    def run(self, output, work=()):
        """A step, and what is stored of it."""
        self.step(output, work)
        self.settle()

    def settle(self, seconds=30):
        """Returns when nothing is being stored."""
        deadline = time.monotonic() + seconds
        while self.worker._worker._saves:
            assert time.monotonic() < deadline, "saves do not end"
            self.step(output())
            time.sleep(0.001)

    def names(self, tokens, rank=0):
        """Of the chunks of a prompt in the store."""
        from kvcompress.adapters import _vllm_scheduler as side

        scheduler, known = self.scheduler._scheduler, side._Request(make_request("", tokens))
        scheduler._extend(known, len(tokens))
        return [side.store_name(rank, side._key(digest, scheduler._groups[0])) for digest in known.keys]

    def stats(self):
        found = self.worker.get_kv_connector_stats()
        return {} if found is None else found.data

    def close(self):
        self.scheduler.shutdown()
        self.worker.shutdown()


def make_request(name, tokens, **more):
    return Bag(request_id=name, all_token_ids=list(tokens), **more)


def output(new=(), cached=(), resumed=()):
    """A SchedulerOutput: new are (request, blocks, computed, scheduled), cached the same with new blocks or None."""
    return Bag(
        scheduled_new_reqs=[Bag(req_id=request.request_id, block_ids=(blocks,), num_computed_tokens=computed)
                            for request, blocks, computed, _ in new],
        scheduled_cached_reqs=Bag(
            req_ids=[request.request_id for request, *_ in cached], resumed_req_ids=set(resumed),
            new_block_ids=[None if blocks is None else (blocks,) for _, blocks, *_ in cached],
            num_computed_tokens=[computed for _, _, computed, _ in cached]),
        num_scheduled_tokens={item[0].request_id: item[3] for item in [*new, *cached]})
