"""A worker's side of the vLLM connector: chunks between the paged KV cache, the daemon and the disk."""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .. import DataLoss, FailedPrecondition, FingerprintMismatch, KvCompressError
from ..store import Store
from ._codec import Codec, Kind, check_dtype, most_packed, pack, unpack
from ._fingerprint import fingerprint
from ._vllm_scheduler import Chunk, rank_key

logger = logging.getLogger(__name__)

# vLLM schedules a step before it knows how the one before it went. So this is for how many steps after a failed load
# nothing is stored: what they compute may build upon blocks that hold no values.
_STEPS_AHEAD = 2


@dataclass(frozen=True)
class _Layer:
    """One layer of the paged cache: a view [blocks, parts, heads, tokens, content] of its memory, in which `parts` are
    the kernel's blocks of each of the engine's. Content is the key, followed by the value."""

    index: int
    view: torch.Tensor
    key_size: int

    def sides(self) -> list[tuple[str, slice]]:
        size = self.view.shape[-1]
        ends = [(0, self.key_size), (self.key_size, size)] if self.key_size < size else [(0, size)]
        names = [f"layer_{self.index}_{side}" for side in ("key", "value")]
        return [(name, slice(*end)) for name, end in zip(names, ends, strict=False)]

    def gather(self, blocks: torch.Tensor) -> list[tuple[str, torch.Tensor]]:
        """Keys and values [1, heads, tokens, head_dim] of some blocks, in host memory."""
        taken = self.view[blocks].permute(2, 0, 1, 3, 4).flatten(1, 3).unsqueeze(0)
        return [(name, taken[..., part].cpu()) for name, part in self.sides()]

    def scatter(self, blocks: torch.Tensor, first: int, tensors: Sequence[torch.Tensor]) -> None:
        """Into some blocks, what `gather` gave of a chunk, from its block `first` on."""
        _, parts, heads, tokens, _ = self.view.shape
        joined = torch.cat(list(tensors), dim=-1).to(self.view.device)
        paged = joined.view(heads, -1, parts, tokens, joined.shape[-1]).permute(1, 2, 0, 3, 4)
        self.view[blocks] = paged[first : first + len(blocks)]


class Worker:
    def __init__(
        self,
        store: Store,
        codec: Codec,
        kv_cache_config: Any,
        block_tokens: int,
        chunk_tokens: int,
        rank: int,
        whose: str,
    ):
        self._store = store
        self._codec = codec
        self._config = kv_cache_config
        self._block = block_tokens
        self._chunk = chunk_tokens
        self._rank = rank
        self._whose = whose
        self._layers: list[_Layer] = []
        self._kinds: list[Kind] = []
        self._failed: set[int] = set()
        self._doubtful_steps = 0

    def register(self, kv_caches: dict[str, torch.Tensor]) -> None:
        """KV caches [blocks, heads, tokens, content] by the names of their layers. FailedPrecondition for others,
        InvalidArgument for dtypes that are not taken."""
        numbers = [int(found[1]) if (found := re.search(r"\.(\d+)\.", name)) else -1 for name in kv_caches]
        if len(set(numbers)) != len(numbers) or -1 in numbers:
            numbers = list(range(len(kv_caches)))
        layers = [
            self._layer(number, name, cache) for number, (name, cache) in zip(numbers, kv_caches.items(), strict=True)
        ]
        self._layers = sorted(layers, key=lambda layer: layer.index)
        self._kinds = []
        for layer in self._layers:
            heads = layer.view.shape[2]
            for _, part in layer.sides():
                self._kinds.append(Kind(layer.view.dtype, (1, heads, self._chunk, part.stop - part.start)))

    def _layer(self, number: int, name: str, cache: torch.Tensor) -> _Layer:
        check_dtype(cache.dtype, f"the KV cache of {name}")
        blocks = self._config.num_blocks
        if cache.ndim != 4 or cache.shape[0] % blocks or cache.shape[0] // blocks * cache.shape[2] != self._block:
            raise FailedPrecondition(
                f"the KV cache of {name} is {list(cache.shape)}, and not [blocks, heads, tokens, content] "
                f"with {blocks} blocks of {self._block} tokens"
            )
        spec = self._config.kv_cache_groups[0].kv_cache_spec
        spec = getattr(spec, "kv_cache_specs", {}).get(name, spec)
        key, value = getattr(spec, "head_size", 0), getattr(spec, "head_size_v", 0)
        # A latent, as of MLA, is no pair of the two.
        key_size = key if key and value and key + value == cache.shape[-1] else cache.shape[-1]
        return _Layer(number, cache.view(blocks, -1, *cache.shape[1:]), key_size)

    def load(self, chunks: Sequence[Chunk]) -> None:
        """One after another, each in full; what fails is told by take_failed_blocks."""
        self._doubtful_steps = max(0, self._doubtful_steps - 1)
        for chunk in chunks:
            try:
                self._load(chunk)
            except KvCompressError as error:
                logger.warning("%d blocks are not loaded: %s", len(chunk.block_ids), error)
                self._failed.update(chunk.block_ids)
                self._doubtful_steps = _STEPS_AHEAD + 1
                if isinstance(error, DataLoss | FingerprintMismatch):
                    self._remove(chunk)

    def _load(self, chunk: Chunk) -> None:
        payload = self._store.get(rank_key(self._rank, chunk.key), most_packed(self._kinds))
        if payload is None:
            raise DataLoss(f"chunk {chunk.key} is gone")
        names = [name for layer in self._layers for name, _ in layer.sides()]
        frames = unpack(payload, self._kinds)
        tensors = iter(self._codec.decompress(frames, fingerprints=self._fingerprints(chunk, names)))
        for layer in self._layers:
            blocks = torch.tensor(chunk.block_ids, device=layer.view.device)
            layer.scatter(blocks, chunk.first, [next(tensors) for _ in layer.sides()])

    def save(self, chunks: Sequence[Chunk]) -> None:
        """Returns when the blocks may be overwritten. A chunk that is not saved is removed: the other ranks do not know
        of it, and what they save now is no pair for what this one has from before."""
        for chunk in chunks:
            if self._doubtful_steps:
                self._remove(chunk)
                continue
            try:
                is_saved = self._save(chunk)
            except KvCompressError as error:
                logger.warning("%d blocks are not saved: %s", len(chunk.block_ids), error)
                is_saved = False
            if not is_saved:
                self._remove(chunk)

    def _remove(self, chunk: Chunk) -> None:
        self._store.remove(rank_key(self._rank, chunk.key))

    def _save(self, chunk: Chunk) -> bool:
        named = []
        for layer in self._layers:
            named += layer.gather(torch.tensor(chunk.block_ids, device=layer.view.device))
        prints = self._fingerprints(chunk, [name for name, _ in named])
        frames = self._codec.compress(named, [chunk.start] * len(named), fingerprints=prints)
        return self._store.put(rank_key(self._rank, chunk.key), pack(frames))

    def _fingerprints(self, chunk: Chunk, names: Sequence[str]) -> list[bytes]:
        return [fingerprint(self._whose, rank_key(self._rank, chunk.key), name) for name in names]

    def take_failed_blocks(self) -> set[int]:
        """Of the loads since this was last asked."""
        failed, self._failed = self._failed, set()
        return failed
