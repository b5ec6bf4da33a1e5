"""A cache of transformers whose layers hold their tokens compressed, whatever compresses them: see TokenStore."""

import contextlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from transformers import cache_utils

from .. import FailedPrecondition, InvalidArgument

# Before transformers 4.56 a cache takes no layers of others; before 4.54 it has no layers at all.
TAKES_LAYERS = "layer_class_to_replicate" in inspect.signature(cache_utils.Cache.__init__).parameters
_LayerBase: Any = getattr(cache_utils, "CacheLayerMixin", object)

Pair = tuple[torch.Tensor, torch.Tensor]  # keys and values

# Tokens are the last axis but one of [batch, heads, tokens, head_dim].
TOKENS = -2


class TokenStore(Protocol):
    """Where a layer keeps its compressed tokens, the oldest first. Each is compressed once, by `append`."""

    @property
    def tokens(self) -> int: ...

    @property
    def nbytes(self) -> int:
        """Of all that it holds."""
        ...

    def append(self, keys: torch.Tensor, values: torch.Tensor, start: int) -> None:
        """`start` is the position of the first of these tokens."""
        ...

    def restored(self) -> list[Pair]:
        """Keys and values that, one after another, are those of all tokens."""
        ...

    def drop_last(self, tokens: int) -> None: ...

    def drop_first(self, tokens: int) -> int:
        """At most so many, as far as it can: their number."""
        ...

    def select(self, rows: torch.Tensor) -> None:
        """Rows of the batch, in this order."""
        ...

    def state(self) -> Any:
        """For `roll_back`; it takes next to no memory."""
        ...

    def roll_back(self, state: Any) -> bool:
        """To what it was when it gave `state`. False where that is gone."""
        ...


class CompressedLayer(_LayerBase):
    """Keys and values [batch, heads, tokens, head_dim] of one layer: the newest tokens as they are, those before them
    in `store`, restored by `update` for the time of the layer's attention. As soon as more than `residual_length` and
    `page_length` together stand there as they are, all but the last `residual_length` go to the store.

    What goes there within an `update` comes out of it restored where `sees_restored`, and undamaged otherwise. With a
    `sliding_window` tokens before it are dropped."""

    is_croppable = True
    is_compileable = False
    supports_early_init = True

    def __init__(
        self,
        store: TokenStore,
        *,
        residual_length: int = 0,
        page_length: int = 0,
        sees_restored: bool = False,
        sliding_window: int | None = None,
    ):
        super().__init__()
        self.store = store
        self._residual, self._page = residual_length, page_length
        self._sees_restored = sees_restored
        self.sliding_window = sliding_window
        self.is_sliding = sliding_window is not None
        self.record_past = False
        self._dropped = 0  # tokens before the window
        self.keys: Any = None
        self.values: Any = None
        self.is_initialized = False

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor | None = None) -> None:
        like = key_states if value_states is None else value_states
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys, self.values = key_states[..., :0, :].clone(), like[..., :0, :].clone()
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """All keys and values, the new ones last. What raises leaves the layer as it was."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        raw = (torch.cat([self.keys, key_states], dim=TOKENS), torch.cat([self.values, value_states], dim=TOKENS))
        count = raw[0].shape[TOKENS]
        full = count - self._residual if count > self._residual + self._page else 0
        before = self.store.state()
        try:
            parts = [] if self._sees_restored else [*self.store.restored(), raw]
            if full:
                self.store.append(raw[0][..., :full, :], raw[1][..., :full, :], self._dropped + self.store.tokens)
                raw = (raw[0][..., full:, :], raw[1][..., full:, :])
            parts = parts or [*self.store.restored(), raw]
            seen = self._joined(parts, 0), self._joined(parts, 1)
        except BaseException:
            self.store.roll_back(before)
            raise
        # Copies: a view would keep alive all that it is a part of.
        self.keys, self.values = raw[0].clone(), raw[1].clone()
        self._drop_before_window()
        return seen

    def _joined(self, parts: list[Pair], side: int) -> torch.Tensor:
        return torch.cat([part[side].to(self.device, self.dtype) for part in parts], dim=TOKENS)

    def _drop_before_window(self) -> None:
        """What no later token sees, unless it may be cropped to."""
        if self.sliding_window is None or self.record_past or not self.is_initialized:
            return
        surplus = self.store.tokens + self.keys.shape[TOKENS] - (self.sliding_window - 1)
        if surplus <= 0:
            return
        dropped = self.store.drop_first(surplus)
        if self.store.tokens == 0 and dropped < surplus:
            begin = surplus - dropped
            self.keys, self.values = self.keys[..., begin:, :].clone(), self.values[..., begin:, :].clone()
            dropped = surplus
        self._dropped += dropped

    def state(self) -> Any:
        """For `roll_back`."""
        return self.store.state(), self.keys, self.values, self._dropped, self.is_initialized

    def roll_back(self, state: Any) -> bool:
        """To what it was when it gave `state`. False where that is gone."""
        of_store, self.keys, self.values, self._dropped, self.is_initialized = state
        return self.store.roll_back(of_store)

    @property
    def held_bytes(self) -> int:
        """Of the store, and of the tokens that are kept as they are."""
        return self.store.nbytes + self.raw_bytes

    @property
    def raw_bytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes if self.is_initialized else 0

    @property
    def tensor_bytes(self) -> int:
        """Of the tokens that it holds, uncompressed."""
        if not self.is_initialized:
            return 0
        of_a_token = sum(
            int(side.shape[0] * side.shape[1] * side.shape[3] * side.dtype.itemsize)
            for side in (self.keys, self.values)
        )
        return of_a_token * (self.get_seq_length() - self._dropped)

    def get_seq_length(self, *_: Any) -> int:
        if not self.is_initialized:
            return 0
        return self._dropped + self.store.tokens + int(self.keys.shape[TOKENS])

    def get_mask_sizes(self, query_length: Any) -> tuple[int, int]:
        """Length and offset, of what `update` will give for so many new tokens: a number, or, in transformers 4, their
        positions."""
        new = query_length if isinstance(query_length, int) else query_length.shape[0]
        return self.get_seq_length() - self._dropped + new, self._dropped

    def get_max_length(self) -> int:
        """None, which transformers writes as -1."""
        return -1

    get_max_cache_shape = get_max_length

    def reset(self) -> None:
        self.store.drop_last(self.store.tokens)
        self._dropped = 0
        self.keys = self.values = None
        self.is_initialized = False

    def offload(self) -> None:
        """Nothing: what is compressed stays where its store has it."""

    prefetch = offload

    def activate_past_recording(self) -> None:
        """Tokens before the window are dropped by `crop` alone from here on."""
        self.record_past = True

    def crop(self, length: int) -> None:
        """Keeps `length` tokens, or, where it is negative, all but so many. InvalidArgument where tokens of the window
        are gone that would be seen again."""
        if not self.is_initialized:
            return
        seen = self.get_seq_length()
        surplus = min(seen, max(0, seen - length) if length > 0 else -length)
        window = self.sliding_window
        if surplus and window is not None and self._dropped > max(0, seen - surplus - (window - 1)):
            raise InvalidArgument("a sliding layer can be cropped no further than it records the past")
        raw = min(surplus, self.keys.shape[TOKENS])
        end = self.keys.shape[TOKENS] - raw
        self.keys, self.values = (side[..., :end, :].clone() for side in (self.keys, self.values))
        self.store.drop_last(surplus - raw)
        record, self.record_past = self.record_past, False
        self._drop_before_window()
        self.record_past = record

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        if self.is_initialized:
            self.batch_select_indices(torch.arange(self.keys.shape[0]).repeat_interleave(repeats))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """The batch's rows, in this order."""
        if not self.is_initialized:
            return
        rows = torch.arange(self.keys.shape[0], device=self.device)[indices.to(self.device)]
        self.store.select(rows)
        self.keys, self.values = self.keys[rows], self.values[rows]


class _OldCache(cache_utils.DynamicCache):
    """What caches of layers are in transformers 4.56, for those before."""

    is_compileable = False

    def __init__(self, layer_class_to_replicate: Callable[[], CompressedLayer]):
        self.layers: list[CompressedLayer] = []
        self.layer_class_to_replicate = layer_class_to_replicate

    def __len__(self) -> int:
        return len(self.layers)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, cache_kwargs: Any = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        while len(self.layers) <= layer_idx:
            self.layers.append(self.layer_class_to_replicate())
        keys, values = self.layers[layer_idx].update(key_states, value_states)
        window = (cache_kwargs or {}).get("sliding_window")
        if window is None:
            return keys, values
        # Before transformers 4.53 such a layer cuts its mask to these.
        shown = max(window, key_states.shape[TOKENS])
        return keys[..., -shown:, :], values[..., -shown:, :]

    def get_seq_length(self, layer_idx: int | None = 0, *_: Any, **__: Any) -> int:
        index = layer_idx or 0
        return self.layers[index].get_seq_length() if index < len(self.layers) else 0

    def get_mask_sizes(self, cache_position: torch.Tensor, layer_idx: int) -> tuple[int, int]:
        if layer_idx >= len(self.layers):
            return cache_position.shape[0], 0
        return self.layers[layer_idx].get_mask_sizes(cache_position)

    def get_max_cache_shape(self, *_: Any) -> int | None:
        return None

    def reset(self) -> None:
        for layer in self.layers:
            layer.reset()

    def crop(self, length: int) -> None:
        for layer in self.layers:
            layer.crop(length)

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        for layer in self.layers:
            layer.batch_repeat_interleave(repeats)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        for layer in self.layers:
            layer.batch_select_indices(indices)


_CacheBase: Any = cache_utils.Cache if TAKES_LAYERS else _OldCache


class LayeredCache(_CacheBase):
    """A cache for `generate` and for a model's forward of compressed layers: `layer(index, sliding_window)` makes one.
    With the model's `config` its sliding layers are told their windows, from transformers 4.56 on; without it, and
    before, they hold all tokens. InvalidArgument for layers that are more than keys and values."""

    def __init__(self, layer: Callable[[int, int | None], CompressedLayer], config: Any = None):
        if config is None or not TAKES_LAYERS:
            # Called for one layer after another, as the first forward comes to them.
            super().__init__(layer_class_to_replicate=lambda: layer(len(self.layers), None))
            return
        plain = cache_utils.DynamicCache(config=config).layers
        for index, found in enumerate(plain):
            if type(found) not in (cache_utils.DynamicLayer, cache_utils.DynamicSlidingWindowLayer):
                raise InvalidArgument(f"layer {index} is a {type(found).__name__}, which is more than keys and values")
        windows = [getattr(found, "sliding_window", None) for found in plain]
        super().__init__(layers=[layer(index, window) for index, window in enumerate(windows)])

    def activate_past_recording(self) -> None:
        """Sliding layers hold tokens until `crop`."""
        for layer in self.layers:
            layer.activate_past_recording()

    @contextlib.contextmanager
    def rolled_back_on_error(self) -> Iterator[None]:
        """What raises within leaves the cache as it was before, whatever some layers have taken meanwhile. Where
        tokens of that are gone, the cache is emptied, and the error becomes a FailedPrecondition that says so."""
        states = [layer.state() for layer in self.layers]
        try:
            yield
        except BaseException as error:
            for layer in self.layers[len(states) :]:
                layer.reset()
            if all(layer.roll_back(state) for layer, state in zip(self.layers, states, strict=False)):
                raise
            self.reset()
            if not isinstance(error, Exception):
                raise
            what = str(error) or type(error).__name__
            raise FailedPrecondition(
                f"{what}; the cache cannot be brought back to what it was before, and is empty"
            ) from error

    @property
    def held_bytes(self) -> int:
        """Of memory for keys and values, compressed and as they are."""
        return sum(layer.held_bytes for layer in self.layers)

    def memory_stats(self) -> dict[str, float]:
        """Of what it holds: `tokens` seen, `original_bytes` as uncompressed tensors, `held_bytes`, of which `raw_bytes`
        are of tokens that are not compressed yet, `compression_ratio`, `memory_savings_pct`, and, of a token of all
        layers and of the whole batch, `bytes_per_token_original` and `bytes_per_token_compressed`."""
        tokens = self.get_seq_length()
        original = sum(layer.tensor_bytes for layer in self.layers)
        held, raw = self.held_bytes, sum(layer.raw_bytes for layer in self.layers)
        return {
            "tokens": tokens,
            "original_bytes": original,
            "held_bytes": held,
            "raw_bytes": raw,
            "compression_ratio": original / held if held else 1.0,
            "memory_savings_pct": 100 * (1 - held / original) if original else 0.0,
            "bytes_per_token_original": original / tokens if tokens else 0.0,
            "bytes_per_token_compressed": held / tokens if tokens else 0.0,
        }
