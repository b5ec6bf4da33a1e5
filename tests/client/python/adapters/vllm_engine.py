"""vLLM's own Scheduler with the connector, and in place of a model one that knows what each block must hold: it checks
all that it reads. Needs vLLM, or an unpacked wheel of it and vllm_imports."""

import contextlib
import functools
import itertools
import pickle
import time
from types import SimpleNamespace as Bag

import torch
from vllm.config import CacheConfig, DeviceConfig, KVTransferConfig, ParallelConfig, SchedulerConfig, VllmConfig
from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorRole
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.kv_cache_interface import (
    FullAttentionSpec,
    KVCacheConfig,
    KVCacheGroupSpec,
    MambaSpec,
    SlidingWindowSpec,
)
from vllm.v1.outputs import KVConnectorOutput, ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus

BLOCK, HEADS, SIZE, WINDOW = 16, 2, 32, 24
init_none_hash(sha256)


def full(block=BLOCK):
    return FullAttentionSpec(block_size=block, num_kv_heads=HEADS, head_size=SIZE, dtype=torch.float16)


def window(tokens=WINDOW, block=BLOCK):
    return SlidingWindowSpec(
        block_size=block, num_kv_heads=HEADS, head_size=SIZE, dtype=torch.float16, sliding_window=tokens)


def mamba(block=BLOCK):
    # A page of the size that attention's have, as vLLM makes them.
    return MambaSpec(
        block_size=block, shapes=((3, 40), (8, 50)), dtypes=(torch.float16, torch.float32),
        page_size_padded=full(block).page_size_bytes, mamba_cache_mode="align")


class Pages:
    """The caches of one group: two layers, of whose blocks the model reads what it wrote there."""

    def __init__(self, number, spec, blocks):
        self.spec, self.names = spec, [f"model.layers.{2 * number + layer}.attn" for layer in range(2)]
        self.is_state = isinstance(spec, MambaSpec)
        if self.is_state:
            caches = [torch.zeros(blocks, 1, 1, spec.page_size_bytes, dtype=torch.int8) for _ in self.names]
        else:
            caches = [torch.zeros(blocks, spec.block_size, HEADS, 2 * SIZE, dtype=torch.float16).transpose(1, 2)
                      for _ in self.names]
        self.caches = dict(zip(self.names, caches, strict=True))

    def write(self, table, prefixes, begin, end):
        """`prefixes`: of each number of tokens what stands for them."""
        size = self.spec.block_size
        for layer, cache in enumerate(self.caches.values()):
            if self.is_state:
                block = table[(end - 1) // size]
                assert block, "there is no block for the state"
                cache[block, 0, 0, : self.size] = self.state(layer, prefixes[end])
            else:
                blocks, places = self._places(table, begin, end)
                assert 0 not in blocks, "there is no block for a token"
                cache[blocks, :, places] = values(layer, prefixes[begin + 1 : end + 1])

    def check(self, table, prefixes, begin):
        """What is read to compute the tokens from `begin` on."""
        for layer, cache in enumerate(self.caches.values()):
            if not begin:
                continue
            if self.is_state:
                found = cache[table[(begin - 1) // self.spec.block_size], 0, 0, : self.size]
                assert torch.equal(found, self.state(layer, prefixes[begin])), "a wrong state"
            else:
                is_full = isinstance(self.spec, FullAttentionSpec)
                first = 0 if is_full else max(0, begin - self.spec.sliding_window + 1)
                blocks, places = self._places(table, first, begin)
                wrong = (cache[blocks, :, places] != values(layer, prefixes[first + 1 : begin + 1])).nonzero()
                assert not len(wrong), (begin, first + int(wrong[0, 0]), "a wrong token")

    def _places(self, table, begin, end):
        """Blocks, and where in them."""
        size = self.spec.block_size
        return [table[position // size] for position in range(begin, end)], [at % size for at in range(begin, end)]

    @property
    def size(self):
        return self.spec.real_page_size_bytes

    def state(self, layer, prefix):
        conv, ssm = (torch.Size(shape).numel() for shape in self.spec.shapes)
        whole = _made(layer, prefix, conv + ssm)
        return torch.cat([whole[:conv].half().view(torch.int8), whole[conv:].float().view(torch.int8)])


def values(layer, prefixes):
    """Of the last of the tokens that each of these stands for."""
    return torch.stack([_made(layer, prefix, HEADS * 2 * SIZE) for prefix in prefixes]).half().view(-1, HEADS, 2 * SIZE)


@functools.cache
def _made(layer, prefix, count):
    return torch.randn(count, generator=torch.Generator().manual_seed(abs(hash((layer, prefix)))))


def prefixes_of(tokens):
    return list(itertools.accumulate(tokens, lambda prefix, token: hash((prefix, token)), initial=0))


class Model(Bag):
    """A ModelConfig of a model that has nothing special."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)


class Engine:
    """`longest` has the seconds that the longest call of each of the connector's methods took. `ahead`: each step is
    scheduled before it is known how the one before it went, as vLLM does it unless told otherwise."""

    def __init__(self, path, specs=None, *, blocks=64, batched=256, policy="recompute", sequences=8,
                 ahead=False, **options):
        specs = specs or [full()]
        # States are those of a step's end: each end of a block is one of a chunk.
        has_states = any(isinstance(spec, MambaSpec) for spec in specs)
        self.chunk = BLOCK if has_states else 2 * BLOCK
        extra = {"path": str(path), "codec": "lossless", "chunk_tokens": self.chunk, "timeout": 10, **options}
        transfer = KVTransferConfig(
            kv_connector="KvCompressConnector", kv_connector_module_path="kvcompress.adapters.vllm",
            kv_role="kv_both", kv_load_failure_policy=policy, kv_connector_extra_config=extra)
        cache = CacheConfig(
            block_size=BLOCK, enable_prefix_caching=True, mamba_cache_mode="align" if has_states else "none")
        config = VllmConfig(
            device_config=DeviceConfig(device="cpu"), cache_config=cache, kv_transfer_config=transfer,
            parallel_config=ParallelConfig(),
            scheduler_config=SchedulerConfig(
                max_num_seqs=sequences, max_num_batched_tokens=batched, max_model_len=2048, is_encoder_decoder=False,
                async_scheduling=ahead))
        config.model_config = Model(max_model_len=2048, model="org/model", dtype=torch.float16, runner_type="generate")
        cache.num_gpu_blocks = blocks
        self.pages = [Pages(number, spec, blocks) for number, spec in enumerate(specs)]
        groups = [KVCacheGroupSpec(pages.names, pages.spec) for pages in self.pages]
        described = KVCacheConfig(num_blocks=blocks, kv_cache_tensors=[], kv_cache_groups=groups)
        plain = Bag(accept_tokens=lambda *_: True, should_advance=lambda *_: False)
        self.scheduler = (AsyncScheduler if ahead else Scheduler)(
            config, described, structured_output_manager=plain, block_size=BLOCK, log_stats=True)
        self.connector = self.scheduler.connector
        self.worker = KVConnectorFactory.create_connector(config, KVConnectorRole.WORKER, described)
        self.worker.register_kv_caches({name: cache for pages in self.pages for name, cache in pages.caches.items()})
        self.longest, self.stats, self.steps, self.computed = {}, {}, 0, {}
        self._tables, self._computed, self._tokens = {}, {}, {}
        self._ahead, self._in_flight = ahead, []
        self._hasher = get_request_block_hasher(BLOCK, sha256)
        for side in (self.connector, self.worker):
            self._time_calls(side)

    def _time_calls(self, side):
        for name in ("get_num_new_matched_tokens", "update_state_after_alloc", "build_connector_meta",
                     "update_connector_output", "request_finished_all_groups", "start_load_kv", "wait_for_save",
                     "get_transfer_results"):
            setattr(side, name, self._timed(name, getattr(side, name)))

    def _timed(self, name, method):
        def call(*arguments, **options):
            begin = time.perf_counter()
            try:
                return method(*arguments, **options)
            finally:
                self.longest[name] = max(self.longest.get(name, 0), time.perf_counter() - begin)

        return call

    def add(self, name, tokens, output_tokens=1):
        sampling = SamplingParams(max_tokens=output_tokens, ignore_eos=True)
        sampling.max_tokens, sampling.ignore_eos = output_tokens, True
        request = Request(name, list(tokens), sampling, None, block_hasher=self._hasher)
        request.max_tokens = output_tokens
        self.scheduler.add_request(request)
        return request

    def abort(self, request):
        self.scheduler.finish_requests(request.request_id, RequestStatus.FINISHED_ABORTED)

    def step(self):
        """As vLLM's engine core and its model runner do it."""
        output = self.scheduler.schedule()
        self.steps += 1
        meta = pickle.loads(pickle.dumps(output.kv_connector_metadata))
        self.worker.handle_preemptions(meta)
        self.worker.bind_connector_metadata(meta)
        self._take_tables(output)
        for name, count in output.num_scheduled_tokens.items():
            self._compute(name, count)
        self.worker.start_load_kv(None)
        self.worker.wait_for_save()
        found = self.worker.get_transfer_results(output.finished_req_ids)
        told = KVConnectorOutput(
            finished_sending=found.finished_sending, finished_recving=found.finished_recving,
            failed_recving=found.failed_recving, invalid_block_ids=self.worker.get_block_ids_with_load_errors(),
            kv_connector_stats=self.worker.get_kv_connector_stats(),
            kv_connector_worker_meta=self.worker.build_connector_worker_meta())
        self.worker.clear_connector_metadata()
        if told.kv_connector_stats is not None:
            for key, number in told.kv_connector_stats.to_dict().items():
                self.stats[key] = self.stats.get(key, 0) + number
        names = list(output.num_scheduled_tokens)
        result = ModelRunnerOutput(
            req_ids=names, req_id_to_index={name: index for index, name in enumerate(names)},
            sampled_token_ids=[self._sample(name) for name in names], kv_connector_output=told)
        self._in_flight.append((output, result))
        if len(self._in_flight) > self._ahead:
            self.scheduler.update_from_output(*self._in_flight.pop(0))

    def _take_tables(self, output):
        for new in output.scheduled_new_reqs:
            self._tables[new.req_id] = [list(table) for table in new.block_ids]
            self._computed[new.req_id] = new.num_computed_tokens
            self._tokens[new.req_id] = list(self.scheduler.requests[new.req_id].all_token_ids)
        cached = output.scheduled_cached_reqs
        for name, more, computed in zip(
                cached.req_ids, cached.new_block_ids, cached.num_computed_tokens, strict=True):
            if name in cached.resumed_req_ids:
                self._tables[name] = [list(table) for table in more]
                self._tokens[name] = list(self.scheduler.requests[name].all_token_ids)
            elif more is not None:
                for table, blocks in zip(self._tables[name], more, strict=True):
                    table += blocks
            self._computed[name] = computed

    def _compute(self, name, count):
        begin, prefixes = self._computed[name], prefixes_of(self._tokens[name])
        for pages, table in zip(self.pages, self._tables[name], strict=True):
            pages.check(table, prefixes, begin)
            pages.write(table, prefixes, begin, begin + count)
        self._computed[name] = begin + count
        self.computed[name] = self.computed.get(name, 0) + count

    def _sample(self, name):
        """The token that follows, of a prompt that is computed as a whole."""
        tokens = self._tokens[name]
        if self._computed[name] < len(tokens):
            return []
        tokens.append((sum(tokens[-8:]) * 7 + len(tokens)) % 50000)
        return tokens[-1:]

    def run(self, *requests, seconds=60):
        """Steps until these are finished, or all are."""
        deadline = time.monotonic() + seconds
        while not all(request.is_finished() for request in requests) or not (
                requests or not self.scheduler.has_unfinished_requests()):
            assert time.monotonic() < deadline, "the engine is stuck"
            self.step()
            time.sleep(0.0005)
        self.settle(seconds)

    def settle(self, seconds=60):
        """Steps until nothing is being stored or loaded, and vLLM has freed the blocks."""
        deadline, worker = time.monotonic() + seconds, self.worker._worker
        while worker._saves or worker._loads or worker._resets or self.scheduler.has_finished_requests():
            assert time.monotonic() < deadline, "the connector is stuck"
            self.step()
            time.sleep(0.0005)
        self.step()

    def prompt(self, name, tokens, output_tokens=1):
        """A request until it is finished; how many of its tokens were computed."""
        request = self.add(name, tokens, output_tokens)
        self.run(request)
        assert request.status in (RequestStatus.FINISHED_LENGTH_CAPPED, RequestStatus.FINISHED_STOPPED)
        return self.computed[name]

    def forget_blocks(self):
        """What vLLM has cached itself, so that the connector is asked."""
        assert self.scheduler.reset_prefix_cache()

    def counts(self, name):
        """By reason."""
        return {key.partition(":")[2]: number for key, number in self.stats.items() if key.split(":")[0] == name}

    def close(self):
        with contextlib.suppress(Exception):
            self.scheduler.kv_event_publisher.shutdown()
        self.connector.shutdown()
        self.worker.shutdown()
