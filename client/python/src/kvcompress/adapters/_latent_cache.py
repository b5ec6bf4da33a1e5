"""The cache of transformers that lives as latents; see LatentCache."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch

from ._layered_cache import TOKENS, CompressedLayer, LayeredCache, Pair


class KVCompressor(Protocol):
    """What makes latents [batch, tokens, rank] of keys and values [batch, tokens, head_dim] of one KV head, token by
    token, and restores them. Ranks may differ from head to head, and between keys and values. `positions` are those of
    the tokens, [tokens] or [batch, tokens]."""

    def is_enabled(self, layer: int, head: int, /) -> bool:
        """False for a head that stays as it is."""
        ...

    def compress(
        self, layer: int, head: int, keys: torch.Tensor, values: torch.Tensor, /, *, positions: torch.Tensor
    ) -> Pair: ...

    def decompress(
        self, layer: int, head: int, keys: torch.Tensor, values: torch.Tensor, /, *, positions: torch.Tensor
    ) -> Pair: ...


class _Rows:
    """Of a forward's batch: how far each row's positions lie from the number of tokens in the cache before it, which
    they are where nothing is told. They are less where rows are padded at their beginning."""

    shift: Sequence[int] = (0,)


class LatentStore:
    """Tokens of a layer as latents, of each head apart; those of heads that are not compressed as they are."""

    def __init__(self, compressor: KVCompressor, layer: int, batch: _Rows):
        self._compressor = compressor
        self._layer = layer
        self._batch = batch
        self._heads: list[Pair] = []  # of keys and values, [batch, tokens, rank]
        self._dtype = torch.float32  # of the model's tensors
        self._start = 0  # of the first token
        self._selections = 0

    @property
    def tokens(self) -> int:
        return self._heads[0][0].shape[1] if self._heads else 0

    @property
    def nbytes(self) -> int:
        return sum(side.nbytes for pair in self._heads for side in pair)

    def append(self, keys: torch.Tensor, values: torch.Tensor, start: int) -> None:
        if not self.tokens:
            self._start = start
        self._dtype = keys.dtype
        positions = self._positions(start, keys.shape[TOKENS], keys.device)
        new = [
            self._compressor.compress(self._layer, head, *pair, positions=positions) if self._is_enabled(head) else pair
            for head, pair in enumerate(zip(keys.unbind(1), values.unbind(1), strict=True))
        ]
        held = self._heads or [(key[:, :0], value[:, :0]) for key, value in new]
        self._heads = [
            (torch.cat([old_key, key], dim=1), torch.cat([old_value, value], dim=1))
            for (old_key, old_value), (key, value) in zip(held, new, strict=True)
        ]

    def restored(self) -> list[Pair]:
        if not self._heads:
            return []
        positions = self._positions(self._start, self.tokens, self._heads[0][0].device)
        pairs = [
            self._compressor.decompress(self._layer, head, *pair, positions=positions)
            if self._is_enabled(head)
            else pair
            for head, pair in enumerate(self._heads)
        ]
        keys, values = (torch.stack([pair[side].to(self._dtype) for pair in pairs], dim=1) for side in (0, 1))
        return [(keys, values)]

    def _is_enabled(self, head: int) -> bool:
        return self._compressor.is_enabled(self._layer, head)

    def _positions(self, start: int, tokens: int, device: torch.device) -> torch.Tensor:
        shift = torch.tensor(self._batch.shift, device=device)
        return (torch.arange(start, start + tokens, device=device) + shift[:, None]).clamp(min=0)

    def drop_last(self, tokens: int) -> None:
        if tokens >= self.tokens:
            self._heads = []
        elif tokens:
            self._keep(0, self.tokens - tokens)

    def drop_first(self, tokens: int) -> int:
        dropped = min(tokens, self.tokens)
        self._keep(dropped, self.tokens)
        self._start += dropped
        return dropped

    def _keep(self, begin: int, end: int) -> None:
        # Copies: a view would keep alive all that it is a part of.
        self._heads = [(key[:, begin:end].clone(), value[:, begin:end].clone()) for key, value in self._heads]

    def select(self, rows: torch.Tensor) -> None:
        self._heads = [(key[rows], value[rows]) for key, value in self._heads]
        self._selections += 1

    def state(self) -> tuple[int, int, int]:
        # Not the latents, which would take as much again: they grow at their end.
        return self.tokens, self._start, self._selections

    def roll_back(self, state: tuple[int, int, int]) -> bool:
        tokens, start, selections = state
        if tokens and (tokens > self.tokens or (start, selections) != (self._start, self._selections)):
            return False
        self.drop_last(self.tokens - tokens)
        return True


class LatentCache(LayeredCache):
    """A cache for `generate` and for a model's forward (`past_key_values=`), which holds latents of all tokens, and
    restores those of one layer at a time. With `patch_attention` a forward sees its own keys and values as they are
    restored, too, and otherwise as they are. With the model's `config` sliding layers hold their windows alone.

    InvalidArgument for layers that are more than keys and values."""

    def __init__(self, compressor: KVCompressor, *, patch_attention: bool = True, config: Any = None):
        self._batch = _Rows()

        def layer(index: int, sliding_window: int | None) -> CompressedLayer:
            store = LatentStore(compressor, index, self._batch)
            return CompressedLayer(store, sees_restored=patch_attention, sliding_window=sliding_window)

        super().__init__(layer, config)

    def tell_positions(self, positions: torch.Tensor | None) -> None:
        """Of the tokens of the next forward, [batch or 1, tokens], which follow one another in each row; None: as many
        as come before them."""
        if positions is None:
            self._batch.shift = (0,)
        else:
            seen = self.get_seq_length() + positions.shape[-1] - 1
            self._batch.shift = [last - seen for last in positions.reshape(-1, positions.shape[-1])[:, -1].tolist()]
