"""The scheduler's side of the vLLM connector: which chunks a request loads and saves."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorMetadata, KVConnectorWorkerMetadata

from ..store import Store
from ._vllm_groups import Group
from ._vllm_jobs import Chunk

_AT_ONCE = 64  # chunks of a prompt that are looked up together, before it is seen that the first is missing
_NULL = 0  # the block that vLLM's tables have where there is none


@dataclass(frozen=True)
class PagedChunk(Chunk):
    """What is stored of a chunk of one group: `block_ids` are the blocks of the engine's cache that it comes from, or
    that it goes to: the `first` of those that are stored, and the ones that follow."""

    block_ids: tuple[int, ...]
    first: int = 0


@dataclass
class ConnectorMetadata(KVConnectorMetadata):
    """What the workers do in one step. `loads` are of requests, by their ids, `resets` how often all was forgotten."""

    loads: dict[str, list[PagedChunk]] = field(default_factory=dict)
    stores: list[PagedChunk] = field(default_factory=list)
    resets: int = 0


@dataclass
class ResetsDone(KVConnectorWorkerMetadata):
    """Of all workers together: after each, what was being stored before it is gone, too."""

    count: int

    def aggregate(self, other: KVConnectorWorkerMetadata) -> "ResetsDone":
        return ResetsDone(self.count + getattr(other, "count", 0))


@dataclass
class _Request:
    request: Any
    keys: list[bytes] = field(default_factory=list)
    computed: int = 0  # tokens that vLLM had itself when it asked
    chunks_done: int = 0  # stored, or found to be
    is_spoilt: bool = False  # a load has failed: it would fail again


def store_name(rank: int, key: bytes) -> str:
    return f"{rank}/{key.hex()}"


class Scheduler:
    def __init__(self, store: Store, groups: Sequence[Group], chunk_tokens: int, ranks: int):
        self._store = store
        self._groups = groups
        self._chunk = chunk_tokens
        self._ranks = ranks
        self._requests: dict[str, _Request] = {}
        self._loads: dict[str, list[PagedChunk]] = {}  # of the step that is planned next
        self._loading: dict[str, set[int]] = {}  # blocks, by request
        self._resets = 0
        self._resets_open = 0  # of all workers together

    def matched_tokens(self, request: Any, computed: int) -> int | None:
        """Tokens beyond the `computed` ones that can be loaded; None where the store does not know at once. The last
        token is always left to the model, whose output is what was asked for; and whole blocks are loaded. 0 for
        requests that want the output of all tokens, as those for the log-probabilities of the prompt do."""
        if _untold(request) or getattr(request, "skip_reading_prefix_cache", False) or self._resets_open:
            return 0
        known = self._known(request)
        if known.is_spoilt:
            return 0
        tokens = len(request.all_token_ids)
        self._extend(known, tokens)
        known.computed = computed
        if any(group.reach is not None for group in self._groups):
            # States, and what windows keep, are those of a chunk's end.
            found = self._longest(known.keys[: (tokens - 1) // self._chunk])
            return None if found is None else max(0, found * self._chunk - computed)
        found = self._longest(known.keys)
        block = math.lcm(*(group.block_tokens for group in self._groups))
        return None if found is None else max(0, min(found * self._chunk, (tokens - 1) // block * block) - computed)

    def allocated(self, request: Any, blocks: Any, external_tokens: int) -> None:
        """`blocks` are vLLM's KVCacheBlocks, of all of the request's tokens."""
        if _untold(request):
            return
        known = self._known(request)
        if not external_tokens:
            return
        tables = blocks.get_block_ids()
        chunks = self._to_load(known, tables, known.computed, known.computed + external_tokens)
        self._loads[request.request_id] = chunks
        self._loading[request.request_id] = {block for chunk in chunks for block in chunk.block_ids}

    def finished(self, request_id: str) -> None:
        self._requests.pop(request_id, None)

    def update(self, output: Any) -> None:
        """What a KVConnectorOutput says of loads and of resets."""
        for request_id, blocks in self._loading.items():
            failed = request_id in output.failed_recving or blocks & output.invalid_block_ids
            if failed and request_id in self._requests:
                self._requests[request_id].is_spoilt = True
        for request_id in output.finished_recving or ():
            self._loading.pop(request_id, None)
        if isinstance(output.kv_connector_worker_meta, ResetsDone):
            self._resets_open -= output.kv_connector_worker_meta.count

    def reset(self) -> None:
        """Nothing is found until all workers have removed what they were storing."""
        self._store.clear()
        self._resets += 1
        self._resets_open += self._ranks

    def plan(self, output: Any) -> ConnectorMetadata:
        """Of a SchedulerOutput."""
        meta = ConnectorMetadata(self._loads, resets=self._resets)
        self._loads = {}
        state, cached = output.kv_connector_block_state, output.scheduled_cached_reqs
        computed = {new.req_id: new.num_computed_tokens for new in output.scheduled_new_reqs}
        computed.update(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
        complete: list[PagedChunk] = []
        for request_id, tokens in computed.items():
            known = self._requests.get(request_id)
            if known is not None:
                # Drafts and tokens that are not known yet are not stored: their values may still change.
                covered = min(tokens + output.num_scheduled_tokens[request_id], len(known.request.all_token_ids))
                complete += self._complete(known, covered // self._chunk, state)
        for request_id, offers in state.boundary_state_offloads.items():
            if request_id in self._requests:
                complete += self._states(self._requests[request_id], offers)
        by_key = {chunk.key: chunk for chunk in complete}
        stored = self._peek(list(by_key))
        meta.stores = [chunk for chunk, found in zip(by_key.values(), stored, strict=True) if not found]
        return meta

    def _complete(self, known: _Request, chunks: int, state: Any) -> list[PagedChunk]:
        """Of the first so many chunks those that were not complete before."""
        if known.chunks_done >= chunks:
            return []
        self._extend(known, chunks * self._chunk)
        tables = state.get_block_ids(known.request.request_id)
        found = []
        for index in range(known.chunks_done, chunks):
            for group in self._groups:
                end = (index + 1) * group.blocks
                blocks = tables[group.number][end - group.kept : end]
                if not group.is_state and len(blocks) == group.kept and _NULL not in blocks:
                    found.append(self._paged(known, group, index, blocks))
        known.chunks_done = chunks
        return found

    def _states(self, known: _Request, offers: Sequence[tuple[int, int, int]]) -> list[PagedChunk]:
        """Of blocks that hold the state after some number of tokens, those at the end of chunks."""
        found = []
        for number, block, tokens in offers:
            group, (chunks, rest) = self._groups[number], divmod(tokens, self._chunk)
            if group.is_state and chunks and not rest and block != _NULL:
                self._extend(known, tokens)
                if chunks <= len(known.keys):
                    found.append(self._paged(known, group, chunks - 1, [block]))
        return found

    def _paged(self, known: _Request, group: Group, index: int, blocks: Sequence[int], first: int = 0) -> PagedChunk:
        position = index * self._chunk + group.skipped_tokens
        return PagedChunk(_key(known.keys[index], group), position, tuple(blocks), first)

    def _to_load(self, known: _Request, tables: Sequence[Sequence[int]], begin: int, end: int) -> list[PagedChunk]:
        """Tokens [begin, end), whole blocks, from the chunks that they lie in; of each group the blocks that it has."""
        chunks = []
        for group in self._groups:
            first, last = begin // group.block_tokens, end // group.block_tokens
            table = tables[group.number]
            for index in range(begin // self._chunk, -(-end // self._chunk)):
                stop = (index + 1) * group.blocks
                start = stop - group.kept
                needed = [at for at in range(max(first, start), min(last, stop)) if table[at] != _NULL]
                if needed:
                    # What a window needs not is at the beginning.
                    blocks = table[needed[0] : needed[-1] + 1]
                    chunks.append(self._paged(known, group, index, blocks, needed[0] - start))
        return chunks

    def _longest(self, keys: Sequence[bytes]) -> int | None:
        """The most chunks that all groups have what they need of; None: ask again."""
        most: int | None = len(keys)
        for group in self._groups:
            if group.reach is None and most:
                most = self._prefix(group, keys[:most])
        reaching = [group for group in self._groups if group.reach is not None]
        while most and reaching:
            missing = None
            for group in reaching:
                first = max(0, most - (group.reach or 0))
                found = self._peek([_key(key, group) for key in keys[first:most]])
                if None in found:
                    return None
                if False in found:
                    missing = first + found.index(False)
                    break
            if missing is None:
                break
            most = missing
        return most

    def _prefix(self, group: Group, keys: Sequence[bytes]) -> int | None:
        for begin in range(0, len(keys), _AT_ONCE):
            for index, found in enumerate(self._peek([_key(key, group) for key in keys[begin : begin + _AT_ONCE]])):
                if not found:
                    return None if found is None else begin + index
        return len(keys)

    def _peek(self, keys: Sequence[bytes]) -> list[bool | None]:
        """Of each key whether every rank has stored it, without waiting; None: ask again."""
        ranks = range(self._ranks)
        answers = iter(self._store.peek_many([store_name(rank, key) for key in keys for rank in ranks]))
        found = [{next(answers) for _ in ranks} for _ in keys]
        return [False if False in those else None if None in those else True for those in found]

    def _known(self, request: Any) -> _Request:
        known = self._requests.get(request.request_id)
        if known is None or known.request is not request:
            known = self._requests[request.request_id] = _Request(request)
        return known

    def _extend(self, known: _Request, tokens: int) -> None:
        """Keys of the whole chunks among the first `tokens` tokens: a chain of hashes, over the tokens, and over all
        else that the values depend on."""
        digest = known.keys[-1] if known.keys else _seed(known.request)
        for begin in range(len(known.keys) * self._chunk, tokens - self._chunk + 1, self._chunk):
            chunk = np.asarray(known.request.all_token_ids[begin : begin + self._chunk], dtype="<i8")
            digest = hashlib.sha256(digest + chunk.tobytes()).digest()
            known.keys.append(digest)


def _key(digest: bytes, group: Group) -> bytes:
    return digest + group.number.to_bytes(4, "big")


def _untold(request: Any) -> bool:
    """Whether tokens do not say what the prompt is, or are replaced later, as those of a streaming session are."""
    return getattr(request, "prompt_embeds", None) is not None or bool(getattr(request, "resumable", False))


def _seed(request: Any) -> bytes:
    """Of the salt that keeps tenants apart, the adapter of the weights, and the images that some tokens stand for."""
    lora = getattr(request, "lora_request", None)
    images = [
        (feature.identifier, feature.mm_position.offset, feature.mm_position.length)
        for feature in getattr(request, "mm_features", None) or []
    ]
    weights = None if lora is None else (lora.lora_name, lora.lora_path)
    return hashlib.sha256(repr((getattr(request, "cache_salt", None), weights, images)).encode()).digest()
