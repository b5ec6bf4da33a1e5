"""The scheduler's side of the vLLM connector: which chunks a request loads and saves."""

import hashlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorMetadata

from ..store import Store


@dataclass
class Chunk:
    """`chunk_tokens` tokens of a prompt, at the positions from `start` on, or the blocks of them that are needed, from
    the `first` on."""

    key: str
    start: int
    block_ids: list[int]  # of the engine's KV cache
    first: int = 0


@dataclass
class ConnectorMetadata(KVConnectorMetadata):
    """What the workers do in one step."""

    loads: list[Chunk] = field(default_factory=list)
    stores: list[Chunk] = field(default_factory=list)


@dataclass
class _Request:
    request: Any
    external_tokens: int = 0  # to be loaded in the step that is planned next
    blocks: list[int] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    chunks_done: int = 0  # stored, or found to be


def rank_key(rank: int, key: str) -> str:
    return f"{rank}/{key}"


class Scheduler:
    def __init__(self, store: Store, block_tokens: int, chunk_tokens: int, ranks: int):
        self._store = store
        self._block = block_tokens
        self._chunk = chunk_tokens
        self._ranks = ranks
        self._requests: dict[str, _Request] = {}

    def matched_tokens(self, request: Any, computed: int) -> int | None:
        """Tokens beyond the `computed` ones that can be loaded; None where the store does not know at once. The last
        token is always left to the model, whose output is what was asked for; and whole blocks are loaded. 0 for
        requests that want the output of all tokens, as those for the log-probabilities of the prompt do."""
        if _untold(request) or getattr(request, "skip_reading_prefix_cache", False):
            return 0
        tokens = request.all_token_ids
        most = (len(tokens) - 1) // self._block * self._block
        found = 0
        for stored in self._peek(self._extended([], request, len(tokens))):
            if stored is None:
                return None
            if not stored:
                break
            found += self._chunk
        return max(0, min(found, most) - computed)

    def allocated(self, request: Any, external_tokens: int) -> None:
        if _untold(request):
            return
        known = self._requests.setdefault(request.request_id, _Request(request))
        known.external_tokens = external_tokens

    def finished(self, request_id: str) -> None:
        self._requests.pop(request_id, None)

    def plan(self, output: Any) -> ConnectorMetadata:
        """Of a SchedulerOutput."""
        meta = ConnectorMetadata()
        for new in output.scheduled_new_reqs:
            known = self._requests.get(new.req_id)
            if known is not None:
                known.blocks = list(new.block_ids[0])
                self._plan_one(meta, known, new.num_computed_tokens, output.num_scheduled_tokens[new.req_id])
        cached = output.scheduled_cached_reqs
        for index, request_id in enumerate(cached.req_ids):
            known = self._requests.get(request_id)
            if known is None:
                continue
            if request_id in cached.resumed_req_ids:
                known.blocks = []
            if cached.new_block_ids[index] is not None:
                known.blocks += cached.new_block_ids[index][0]
            self._plan_one(meta, known, cached.num_computed_tokens[index], output.num_scheduled_tokens[request_id])
        return meta

    def _plan_one(self, meta: ConnectorMetadata, known: _Request, computed: int, scheduled: int) -> None:
        tokens = known.request.all_token_ids
        # Drafts and tokens that are not known yet are not stored: their values may still change.
        covered = min(computed + scheduled, len(tokens))
        known.keys = self._extended(known.keys, known.request, max(covered, min(computed + self._chunk, len(tokens))))
        if known.external_tokens:
            self._plan_loads(meta, known, computed - known.external_tokens, computed)
            known.external_tokens = 0
        per_chunk = self._chunk // self._block
        while (known.chunks_done + 1) * self._chunk <= covered:
            key, at = known.keys[known.chunks_done], known.chunks_done * per_chunk
            if not self._peek([key])[0]:
                meta.stores.append(Chunk(key, at * self._block, known.blocks[at : at + per_chunk]))
            known.chunks_done += 1

    def _plan_loads(self, meta: ConnectorMetadata, known: _Request, begin: int, end: int) -> None:
        """Tokens [begin, end), whole blocks, from the chunks that they lie in."""
        per_chunk = self._chunk // self._block
        first, last = begin // self._block, end // self._block
        for index in range(first // per_chunk, -(-last // per_chunk)):
            low, high = max(first, index * per_chunk), min(last, (index + 1) * per_chunk)
            blocks = known.blocks[low:high]
            meta.loads.append(Chunk(known.keys[index], index * self._chunk, blocks, low - index * per_chunk))

    def _peek(self, keys: list[str]) -> list[bool | None]:
        """Of each key whether every rank has stored it, without waiting; None: ask again."""
        ranks = range(self._ranks)
        answers = iter(self._store.peek_many([rank_key(rank, key) for key in keys for rank in ranks]))
        found = [{next(answers) for _ in ranks} for _ in keys]
        return [False if False in those else None if None in those else True for those in found]

    def _extended(self, keys: list[str], request: Any, tokens: int) -> list[str]:
        """Keys of the whole chunks among the first `tokens` tokens, of which the first are known: a chain of hashes,
        over the tokens, and over all else that the values depend on."""
        digest = bytes.fromhex(keys[-1]) if keys else _seed(request)
        found = list(keys)
        for begin in range(len(keys) * self._chunk, tokens - self._chunk + 1, self._chunk):
            chunk = np.asarray(request.all_token_ids[begin : begin + self._chunk], dtype="<i8")
            digest = hashlib.sha256(digest + chunk.tobytes()).digest()
            found.append(digest.hex())
        return found


def _untold(request: Any) -> bool:
    """Whether tokens do not say what the prompt is."""
    return getattr(request, "prompt_embeds", None) is not None


def _seed(request: Any) -> bytes:
    """Of the salt that keeps tenants apart, the adapter of the weights, and the images that some tokens stand for."""
    lora = getattr(request, "lora_request", None)
    images = [
        (feature.identifier, feature.mm_position.offset, feature.mm_position.length)
        for feature in getattr(request, "mm_features", None) or []
    ]
    weights = None if lora is None else (lora.lora_name, lora.lora_path)
    return hashlib.sha256(repr((getattr(request, "cache_salt", None), weights, images)).encode()).digest()
