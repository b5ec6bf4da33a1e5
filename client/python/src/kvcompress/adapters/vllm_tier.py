"""A secondary tier of vLLM's KV offloading: chunks of the CPU cache as compressed frames in a store.

vLLM loads it by `module_path`; see the package's README for the whole configuration. Tested under the
TieringOffloadingManager of vLLM 0.33.0 on the CPU, and with models in vLLM 0.32.0 for the CPU.
"""

import json
import logging
from collections.abc import Collection, Iterable
from dataclasses import replace
from typing import Any, ClassVar

try:
    import torch
    from vllm.distributed.kv_transfer.kv_connector.v1.offloading.metrics import OffloadingConnectorStats
    from vllm.v1.kv_offload.base import (
        Locality,
        LookupResult,
        Medium,
        OffloadingCounterMetadata,
        OffloadingEvent,
        RequestOffloadingContext,
    )
    from vllm.v1.kv_offload.tiering.base import JobResult, SecondaryTierManager
except ImportError as error:
    raise ImportError(
        f"kvcompress.adapters.vllm_tier runs inside vLLM, which cannot be imported here: {error}"
    ) from error

from .. import Client, InvalidArgument
from .._foreign_memory import ForeignMemory
from ..store import open_store
from ._codec import Codec, check_keys
from ._vllm_geometry import Group, RowChunk, Rows, groups_of, head_dims_of
from ._vllm_jobs import Job, Jobs, Task
from ._vllm_lookups import Lookups
from ._vllm_transfer import Transfer, group_number

logger = logging.getLogger(__name__)

_OPTIONS = {"capacity_bytes", "streams", "head_dim", "group_codecs", "enable_kv_events", "locality", "namespace"}
# Of the rows of one task, which is one stream to the daemon.
_TASK_BYTES = 32 << 20
_MOST_WAITING = 256  # tasks of each kind
# Seconds for one stream. A request waits for its loads, and is computed without them afterwards.
_TIMEOUT = 5.0

_COUNTERS = {
    "stored_value_bytes": ("Bytes of KV cache that were compressed and stored.", ()),
    "stored_frame_bytes": ("Bytes of the frames that they became.", ()),
    "loaded_value_bytes": ("Bytes of KV cache that were loaded and restored.", ()),
    "load_failures": ("Chunks that were not loaded, and are computed.", ("reason",)),
    "store_failures": ("Chunks that were not stored.", ("reason",)),
}


def _metric(name: str) -> str:
    return f"vllm:kv_offload_kvcompress_{name}"


class CompressedTier(SecondaryTierManager):
    """All methods return at once: a few threads of this process gather a job's chunks, have the daemon compress them,
    and store the frames, or the other way round. A daemon or a store that is gone, stuck or slow costs misses, which
    the results name and `load_failures` counts: a chunk that is reported as loaded has passed all checks."""

    medium: ClassVar[Medium] = Medium.STORAGE

    def __init__(
        self,
        offloading_spec: Any,
        primary_kv_view: memoryview,
        tier_type: str,
        backpressure_detector: Any = None,
        **options: Any,
    ):
        super().__init__(offloading_spec, primary_kv_view, tier_type, backpressure_detector)
        check_keys(options, _OPTIONS, required={"path"})
        self.locality = Locality(options["locality"]) if options.get("locality") else None
        config = offloading_spec.config
        self._row_bytes = self.block_size_bytes
        codec, head_dims = _of_model(Codec.from_config({"timeout": _TIMEOUT, **options}), options, config)
        by_layer = bool(codec.profile) or "artifact=" in codec.spec
        self._groups = groups_of(config, self._row_bytes, head_dims, by_layer)
        whose = _whose(config, options.get("namespace"), codec.text, self._groups)
        self._client, self._store = codec.client, open_store(options["path"], whose, options.get("capacity_bytes"))
        codecs = {number: _codec_of(codec, options, number, group) for number, group in self._groups.items()}
        rows = torch.frombuffer(primary_kv_view.cast("B"), dtype=torch.uint8).view(-1, self._row_bytes)
        foreign = ForeignMemory(codec.client, primary_kv_view.cast("B")) if isinstance(codec.client, Client) else None
        self._rows = Rows(rows, self._groups, foreign)
        self._transfer = Transfer(self._rows, codecs, self._store, whose)
        patience = 2 * (codec.timeout or _TIMEOUT)
        streams = int(options.get("streams", 4))  # of which one is free for loads
        self._jobs = Jobs(self._transfer.work, streams, max(1, streams - 1), _MOST_WAITING, patience)
        self._lookups = Lookups(self._transfer.exists, patience)
        tells = options.get("enable_kv_events") and offloading_spec.kv_events_config.enable_kv_cache_events
        self._events: list[OffloadingEvent] | None = [] if tells else None

    def lookup(self, key: bytes, req_context: Any) -> LookupResult:
        if self._transfer.is_resting:
            return LookupResult.MISS
        found = self._lookups.lookup(key, req_context.req_id)
        if found is None:
            return LookupResult.RETRY
        return LookupResult.HIT if found else LookupResult.MISS

    def submit_store(self, job_metadata: Any) -> None:
        self._submit(job_metadata, is_load=False)

    def submit_load(self, job_metadata: Any) -> None:
        self._submit(job_metadata, is_load=True)

    def _submit(self, job: Any, is_load: bool) -> None:
        keys = list(job.keys)
        chunks = [
            RowChunk(key, self._start(key, job.req_context), int(row))
            for key, row in zip(keys, job.chunk_ids, strict=True)
        ]
        per = max(1, _TASK_BYTES // self._row_bytes)
        tasks = [Task(chunks[at : at + per], is_load) for at in range(0, len(chunks), per)]
        self._jobs.submit(Job(job.job_id, is_load, keys), tasks)

    def _start(self, key: bytes, context: Any) -> int | None:
        """Position of a chunk's first token."""
        end, tokens = context.get_offload_key_position(key), self._groups[group_number(key)].tokens
        return None if end is None or tokens is None else max(0, end - tokens)

    def get_finished_jobs(self) -> Iterable[JobResult]:
        return [self._result(job) for job in self._jobs.finished()]

    def _result(self, job: Job) -> JobResult:
        for reason in job.failures.values():
            self._transfer.count("load_failures" if job.is_load else "store_failures", label=reason)
        if job.is_load:
            self._lookups.mark_missing(job.failures)
        elif self._events is not None and job.done:
            self._events.append(
                OffloadingEvent(keys=list(job.done), medium=self.medium, removed=False, locality=self.locality)
            )
        some = tuple(job.done) if job.is_load and job.failures and job.done else None
        return JobResult(
            job_id=job.number,
            success=not job.failures,
            successful_keys=some,
            transfer_time=job.ended - job.submitted,
            transfer_bytes=len(job.done) * self._row_bytes,
        )

    def has_pending_work(self) -> bool:
        return self._jobs.has_open()

    def take_events(self) -> Iterable[OffloadingEvent]:
        events, self._events = self._events or [], None if self._events is None else []
        return events

    def touch(self, keys: Collection[bytes], req_context: Any) -> None:
        self._lookups.later(lambda: self._store.touch([key.hex() for key in keys]))

    def on_new_request(self, req_context: Any) -> RequestOffloadingContext:
        return RequestOffloadingContext()

    def on_request_finished(self, req_context: Any) -> None:
        self._lookups.forget(req_context.req_id)

    def on_schedule_end(self, context: Any) -> None:
        self._lookups.flush()

    def drain_jobs(self) -> None:
        """Waits for jobs that make progress, and gives up those that do not."""
        self._jobs.drain()

    def shutdown(self) -> None:
        self._lookups.close()
        self._jobs.close()
        self._rows.release()
        self._client.close()
        self._store.close()

    @classmethod
    def build_metric_definitions(cls, extra_config: dict[str, Any]) -> dict[str, Any]:
        return {
            _metric(name): OffloadingCounterMetadata(documentation=text, labelnames=labels)
            for name, (text, labels) in _COUNTERS.items()
        }

    def get_stats(self) -> OffloadingConnectorStats | None:
        stats = OffloadingConnectorStats()
        for (name, label), amount in self._transfer.take_counts().items():
            stats.increase_counter(_metric(name), amount, (label,) if label else ())
        return stats


def _of_model(codec: Codec, options: dict[str, Any], config: Any) -> tuple[Codec, list[int | None]]:
    """The codec with the keys' rotary embedding, and channels of a head for each group."""
    told = options.get("head_dim")
    model = None if told is not None and codec.rotary is not None else _model_config(config.model.name)
    dims = head_dims_of(config, told, model)
    if not any(dims):
        logger.warning("chunks are stored losslessly: the option head_dim says how many channels a head has")
    return codec.of_model(model), dims


def _model_config(name: str) -> Any:
    """As transformers has it, of the text's model; None where vLLM cannot read it by the name alone."""
    try:
        from vllm.transformers_utils.config import get_config

        found = get_config(name, trust_remote_code=False)
        return found.get_text_config()
    except Exception as error:  # of many libraries, for files that are not there or not theirs
        logger.info("the configuration of %s cannot be read: %s", name, error)
        return None


def _codec_of(codec: Codec, options: dict[str, Any], number: int, group: Group) -> Codec:
    """`group_codecs`: codec chains by group, in place of what the others have. What is no tokens is kept as it is."""
    if group.tokens is None:
        return replace(codec, spec="lossless", profile="")
    others = options.get("group_codecs") or {}
    if not isinstance(others, dict):
        raise InvalidArgument(f"group_codecs is an object of codec chains by the group's number, not {others!r}")
    spec = others.get(str(number))
    return codec if spec is None else replace(codec, spec=str(spec), profile="")


def _whose(config: Any, namespace: Any, codec: str, groups: dict[int, Group]) -> str:
    """Chunks of another model, layout, sharding or codec are other chunks."""
    parallel, cache = config.parallel, config.cache
    sizes = [cache.tokens_per_hash, cache.blocks_per_chunk, parallel.world_size, parallel.tp_size]
    sizes += [parallel.pp_size, parallel.pcp_size, parallel.dcp_size]
    layout = [config.kv_cache_layout, config.canonical_layout, config.replicated_layout]
    layers = [[group.group_id, group.tokens_per_block, list(group.layer_names)] for group in config.groups]
    parts = [[number, part.name, list(part.kind.shape)] for number, group in groups.items() for part in group.parts]
    model = [config.model.name, config.model.dtype, namespace]
    return json.dumps(["vllm-tier", model, sizes, layout, layers, parts, codec], separators=(",", ":"))
