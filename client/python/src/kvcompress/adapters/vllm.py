"""Out-of-tree KV connector of vLLM: the KV cache of prompts as frames on local disk, found again by their tokens.

Tested under the Scheduler of vLLM 0.33.0, with models in vLLM 0.32.0 for the CPU, and, where vLLM is not installed,
against the signatures of 0.33.0. Nothing of it has run on a GPU.

vLLM loads it by `kv_connector_module_path`; see the package's README for the whole configuration.
"""

import json
from collections.abc import Sequence
from typing import Any

try:
    import torch
    from vllm.distributed.kv_transfer.kv_connector.v1.base import (
        KVConnectorBase_V1,
        KVConnectorRole,
        KVConnectorTransferResults,
        SupportsHMA,
    )
except ImportError as error:
    raise ImportError(f"kvcompress.adapters.vllm runs inside vLLM, which cannot be imported here: {error}") from error

from .. import FailedPrecondition
from ..store import open_store
from ._codec import Codec, check_keys
from ._vllm_groups import Group, chunk_tokens, groups_of
from ._vllm_metrics import ConnectorMetrics, ConnectorStats
from ._vllm_pages import PagedCaches
from ._vllm_scheduler import ResetsDone, Scheduler
from ._vllm_worker import Worker

# Seconds for one stream. A request waits for its loads, and is computed without them afterwards.
_TIMEOUT = 5.0


class KvCompressConnector(KVConnectorBase_V1, SupportsHMA):
    """Prompts are stored in chunks of `chunk_tokens`, each under the hash of its tokens and of all before them, of each
    group of KV caches what tokens that follow need. No method waits for the daemon or the store: a request is loaded
    between steps, and what is stored is copied out of the cache in the step that computes it. A chunk that cannot be
    read is reported to vLLM, which computes it (`kv_load_failure_policy: recompute`) or fails the request."""

    def __init__(self, vllm_config: Any, role: KVConnectorRole, kv_cache_config: Any):
        super().__init__(vllm_config=vllm_config, role=role, kv_cache_config=kv_cache_config)
        extra = dict(vllm_config.kv_transfer_config.kv_connector_extra_config or {})
        check_keys(extra, {"capacity_bytes", "chunk_tokens", "streams"}, required={"path"})
        parallel = vllm_config.parallel_config
        if getattr(parallel, "decode_context_parallel_size", 1) != 1:
            raise FailedPrecondition("decode context parallelism spreads a block's tokens, and is not supported")
        chunk = chunk_tokens(kv_cache_config, extra.get("chunk_tokens"))
        self._groups = groups_of(kv_cache_config, chunk)
        # Of a request vLLM keeps what is before the first block that failed. With windows and states that is not
        # enough to go on from, and the blocks of several groups have the same ids: there the request has failed.
        self._fails_by_blocks = len(self._groups) == 1 and self._groups[0].reach is None
        codec = Codec.from_config({"timeout": _TIMEOUT, **extra})
        self._codec = codec.of_model(_text_config(vllm_config.model_config))
        self._caches = kv_cache_config
        self._rank, self._threads = parallel.rank, int(extra.get("streams", 4))
        self._whose = _namespace(vllm_config, self._groups, chunk, self._codec.text)
        self._store = store = open_store(extra["path"], self._whose, extra.get("capacity_bytes"))
        self._worker: Worker | None = None
        self._scheduler: Scheduler | None = None
        if role is KVConnectorRole.SCHEDULER:
            self._scheduler = Scheduler(store, self._groups, chunk, parallel.world_size)

    @property
    def requires_kv_delivery(self) -> bool:
        """A cache: what is not saved is a miss later."""
        return False

    # In the workers.

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        pages = PagedCaches(self._caches, self._groups, kv_caches)
        if self._worker is not None:
            self._worker.close()
        self._worker = Worker(pages, self._codec, self._store, self._rank, self._whose, self._threads)

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        worker, plan = self._of(self._worker), self._get_connector_metadata()
        worker.forget(plan.resets)
        for request, chunks in plan.loads.items():
            worker.load(request, chunks)

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Nothing: no request of this step is being loaded."""

    def save_kv_layer(self, layer_name: str, kv_layer: torch.Tensor, attn_metadata: Any, **kwargs: Any) -> None:
        """Nothing: wait_for_save takes all layers of a chunk together, and is called with CUDA graphs, too, which leave
        this out."""

    def wait_for_save(self) -> None:
        self._of(self._worker).save(self._get_connector_metadata().stores)

    def get_finished(self, finished_req_ids: set[str]) -> tuple[set[str], set[str]]:
        """No blocks are kept from being freed for what is stored: it is copied before."""
        return set(), self._of(self._worker).finished()

    def get_transfer_results(self, finished_req_ids: set[str]) -> KVConnectorTransferResults:
        _, received = self.get_finished(finished_req_ids)
        failed = self._of(self._worker).take_failed_requests()
        return KVConnectorTransferResults(
            finished_recving=received, failed_recving=set() if self._fails_by_blocks else failed
        )

    def get_block_ids_with_load_errors(self) -> set[int]:
        failed: set[int] = self._of(self._worker).take_failed_blocks()
        return failed if self._fails_by_blocks else set()

    def build_connector_worker_meta(self) -> ResetsDone | None:
        done = self._of(self._worker).take_resets()
        return ResetsDone(done) if done else None

    def get_kv_connector_stats(self) -> ConnectorStats | None:
        """Of a worker: what it has moved since this was last asked."""
        return None if self._worker is None else ConnectorStats.of(self._worker.take_counts())

    @classmethod
    def build_kv_connector_stats(cls, data: dict[str, Any] | None = None) -> ConnectorStats:
        return ConnectorStats(data=data or {})

    @classmethod
    def build_prom_metrics(
        cls,
        vllm_config: Any,
        metric_types: Any,
        labelnames: list[str],
        per_engine_labelvalues: dict[int, list[object]],
    ) -> ConnectorMetrics:
        return ConnectorMetrics(vllm_config, metric_types, labelnames, per_engine_labelvalues)

    def shutdown(self) -> None:
        """What is being stored is waited for, as long as it makes progress."""
        if self._worker is not None:
            self._worker.close()
        self._codec.client.close()
        self._store.close()

    # In the scheduler.

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int | None, bool]:
        found = self._of(self._scheduler).matched_tokens(request, num_computed_tokens)
        return found, bool(found)

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        self._of(self._scheduler).allocated(request, blocks, num_external_tokens)

    def build_connector_meta(self, scheduler_output: Any) -> Any:
        return self._of(self._scheduler).plan(scheduler_output)

    def update_connector_output(self, connector_output: Any) -> None:
        self._of(self._scheduler).update(connector_output)

    def request_finished(self, request: Any, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        """Its blocks can be freed at once: what is stored was copied in the step that computed it."""
        self._of(self._scheduler).finished(request.request_id)
        return False, None

    def request_finished_all_groups(
        self, request: Any, block_ids: tuple[list[int], ...]
    ) -> tuple[bool, dict[str, Any] | None]:
        return self.request_finished(request, block_ids[0])

    def reset_cache(self) -> bool:
        """What is stored is of weights that are replaced."""
        self._of(self._scheduler).reset()
        return True

    def _of(self, side: Any) -> Any:
        if side is None:
            raise FailedPrecondition(f"this connector's role is {self.role}, and that is a method of the other one")
        return side


def __getattr__(name: str) -> Any:
    """The tier, with its own needs of vLLM, is imported where it is asked for."""
    if name == "CompressedTier":
        from .vllm_tier import CompressedTier

        return CompressedTier
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _text_config(model: Any) -> Any:
    """The configuration that transformers has of a model, or, of one that reads more than text, of its language model;
    None where vLLM does not tell."""
    return getattr(model, "hf_text_config", None) or getattr(model, "hf_config", None)


def _namespace(config: Any, groups: Sequence[Group], chunk: int, codec: str) -> str:
    """Caches of another model, dtype, sharding, grouping or codec are other caches. FailedPrecondition for overrides of
    the model's configuration that do not say what they change."""
    model, parallel = config.model_config, config.parallel_config
    overrides = getattr(model, "hf_overrides", None) or {}
    if callable(overrides):
        raise FailedPrecondition("hf_overrides is a function, which does not say whose caches these are: use a dict")
    weights = [model.model, getattr(model, "revision", None), getattr(model, "quantization", None)]
    changes = json.dumps(overrides, sort_keys=True, default=str)
    sizes = [parallel.tensor_parallel_size, parallel.pipeline_parallel_size, chunk]
    sizes += [group.skipped_tokens for group in groups]
    dtypes = [str(model.dtype), config.cache_config.cache_dtype]
    return repr(["vllm", weights, changes, dtypes, sizes, codec])
