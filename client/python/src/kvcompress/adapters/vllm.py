"""Out-of-tree KV connector of vLLM: the KV cache of prompts as frames on local disk, found again by their tokens.

Tested with vLLM 0.33.0's own base class and factory, imported without a GPU, and, where vLLM is not installed, against
the signatures of that release: both of its sides go through their life with KV caches of that release's layout on the
CPU. No model has run in vLLM with it.

vLLM loads it by `kv_connector_module_path`; see the package's README for the whole configuration.
"""

import json
from typing import Any

try:
    import torch
    from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorBase_V1, KVConnectorRole
except ImportError as error:
    raise ImportError(f"kvcompress.adapters.vllm runs inside vLLM, which cannot be imported here: {error}") from error

from .. import FailedPrecondition, InvalidArgument
from ..store import open_store
from ._codec import Codec, check_keys
from ._vllm_scheduler import Scheduler
from ._vllm_worker import Worker


class KvCompressConnector(KVConnectorBase_V1):
    """Prompts are stored in chunks of `chunk_tokens`, each under the hash of its tokens and of all before them. A load
    and a save last as long as their step: they are on the request's way. A chunk that cannot be read is reported to
    vLLM, which computes it (`kv_load_failure_policy: recompute`) or fails the request; one that cannot be saved is
    logged."""

    def __init__(self, vllm_config: Any, role: KVConnectorRole, kv_cache_config: Any):
        super().__init__(vllm_config=vllm_config, role=role, kv_cache_config=kv_cache_config)
        extra = dict(vllm_config.kv_transfer_config.kv_connector_extra_config or {})
        check_keys(extra, {"capacity_bytes", "chunk_tokens"}, required={"path"})
        parallel, block = vllm_config.parallel_config, vllm_config.cache_config.block_size
        if getattr(parallel, "decode_context_parallel_size", 1) != 1:
            raise FailedPrecondition("decode context parallelism spreads a block's tokens, and is not supported")
        if len(kv_cache_config.kv_cache_groups) != 1:
            raise FailedPrecondition("models with several groups of KV caches are not supported")
        chunk = int(extra.get("chunk_tokens", 256))
        if chunk <= 0 or chunk % block:
            raise InvalidArgument(f"chunk_tokens is {chunk}, and not a multiple of the block size, {block}")
        self._codec = Codec.from_config(extra).of_model(_text_config(vllm_config.model_config))
        namespace = _namespace(vllm_config, chunk, self._codec.text)
        self._store = store = open_store(extra["path"], namespace, extra.get("capacity_bytes"))
        self._scheduler = self._worker = None
        if role is KVConnectorRole.SCHEDULER:
            self._scheduler = Scheduler(store, block, chunk, parallel.world_size)
        else:
            self._worker = Worker(store, self._codec, kv_cache_config, block, chunk, parallel.rank, namespace)

    @property
    def requires_kv_delivery(self) -> bool:
        """A cache: what is not saved is a miss later."""
        return False

    # In the workers.

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        self._of(self._worker).register(kv_caches)

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        """All layers of all chunks, before the forward begins."""
        self._of(self._worker).load(self._get_connector_metadata().loads)

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Nothing: start_load_kv has waited."""

    def save_kv_layer(self, layer_name: str, kv_layer: torch.Tensor, attn_metadata: Any, **kwargs: Any) -> None:
        """Nothing: wait_for_save takes all layers of a chunk together, and is called with CUDA graphs, too, which leave
        this out."""

    def wait_for_save(self) -> None:
        self._of(self._worker).save(self._get_connector_metadata().stores)

    def get_block_ids_with_load_errors(self) -> set[int]:
        failed: set[int] = self._of(self._worker).take_failed_blocks()
        return failed

    def shutdown(self) -> None:
        self._codec.client.close()

    # In the scheduler.

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int | None, bool]:
        return self._of(self._scheduler).matched_tokens(request, num_computed_tokens), False

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        self._of(self._scheduler).allocated(request, num_external_tokens)

    def build_connector_meta(self, scheduler_output: Any) -> Any:
        return self._of(self._scheduler).plan(scheduler_output)

    def request_finished(self, request: Any, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        """Its blocks can be freed at once: nothing is in flight between steps."""
        self._of(self._scheduler).finished(request.request_id)
        return False, None

    def reset_cache(self) -> bool:
        """What is stored is of weights that are replaced."""
        self._store.clear()
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


def _namespace(config: Any, chunk: int, codec: str) -> str:
    """Caches of another model, dtype, sharding or codec are other caches. FailedPrecondition for overrides of the
    model's configuration that do not say what they change."""
    model, parallel = config.model_config, config.parallel_config
    overrides = getattr(model, "hf_overrides", None) or {}
    if callable(overrides):
        raise FailedPrecondition("hf_overrides is a function, which does not say whose caches these are: use a dict")
    weights = [model.model, getattr(model, "revision", None), getattr(model, "quantization", None)]
    changes = json.dumps(overrides, sort_keys=True, default=str)
    sizes = [parallel.tensor_parallel_size, parallel.pipeline_parallel_size, chunk]
    dtypes = [str(model.dtype), config.cache_config.cache_dtype]
    return repr(["vllm", weights, changes, dtypes, sizes, codec])
