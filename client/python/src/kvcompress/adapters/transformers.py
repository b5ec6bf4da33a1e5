"""Caches of Hugging Face transformers: compressed as a whole between turns, or layer by layer while a model generates.

Tested against the library itself, from transformers 4.50 to 5.24.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

try:
    import torch
    from transformers import cache_utils
except ImportError as error:
    raise ImportError(
        f"kvcompress.adapters.transformers needs PyTorch and transformers ({error}): "
        "pip install './client/python[transformers]' from a checkout"
    ) from error

from .. import Frame, InvalidArgument, RotaryEmbedding
from ._codec import AnyClient, Codec
from ._frame_cache import FrameCache

__all__ = ["CompressedCache", "CompressedLayer", "FrameCache", "compress_cache", "restore_cache"]

# Absent before transformers 4.54, whose caches are lists of tensors and not of layers.
_DynamicLayer: Any = getattr(cache_utils, "DynamicLayer", None)
_SlidingLayer: Any = getattr(cache_utils, "DynamicSlidingWindowLayer", None)


@dataclass(frozen=True)
class CompressedLayer:
    """One layer: its two frames, of [batch, heads, tokens, head_dim]; None where it has held nothing yet."""

    key: Frame | None
    value: Frame | None
    device: str
    sliding_window: int | None = None
    seen_tokens: int = 0  # by a sliding layer, of which it holds the last ones
    records_past: bool = False


@dataclass(frozen=True)
class CompressedCache:
    """A cache at rest, independent of the daemon and of transformers; it can be pickled."""

    layers: tuple[CompressedLayer, ...]

    @property
    def frames(self) -> list[Frame]:
        return [frame for layer in self.layers for frame in (layer.key, layer.value) if frame is not None]

    @property
    def tensor_bytes(self) -> int:
        return sum(frame.tensor_bytes for frame in self.frames)

    @property
    def frame_bytes(self) -> int:
        return sum(frame.frame_bytes for frame in self.frames)

    @property
    def ratio(self) -> float:
        """Bytes of the tensors in their own dtype to bytes of the frames; 1 for an empty cache."""
        return self.tensor_bytes / self.frame_bytes if self.frame_bytes else 1.0


def compress_cache(
    client: AnyClient,
    cache: Any,
    *,
    codec: str = "",
    profile: Any = None,
    rotary: RotaryEmbedding | None = None,
    timeout: float | None = None,
) -> CompressedCache:
    """Compresses a DynamicCache between two turns, all layers on one stream. `codec` is a codec chain or its name, and
    `profile` chooses one by the names layer_{i}_key and layer_{i}_value; without either the daemon's default is used.
    `rotary`, RotaryEmbedding.of_config(model.config), is for codecs that turn keys back; where its sliding layers begin
    the cache itself tells. `timeout` is in seconds, for all of it. The cache is not changed.

    InvalidArgument for other caches (static, quantized, encoder-decoder) and for layers that are more than keys and
    values (linear attention, indexers)."""
    coder = replace(Codec.of(client, codec, profile, timeout), rotary=rotary)
    states = _states(cache)
    found = [
        ((f"layer_{index}_{side}", tensor), state.start)
        for index, state in enumerate(states)
        for side, tensor in (("key", state.key), ("value", state.value))
        if tensor is not None
    ]
    frames = iter(coder.compress([named for named, _ in found], [start for _, start in found]))
    return CompressedCache(tuple(state.compressed(frames) for state in states))


def restore_cache(
    client: AnyClient, compressed: CompressedCache, *, device: Any = None, timeout: float | None = None
) -> Any:
    """The DynamicCache again, with its dtypes, lengths and sliding layers, on the devices that it was on or on
    `device`. DataLoss for a frame that is damaged."""
    coder = Codec.of(client, "", None, timeout)
    tensors = iter(coder.decompress(compressed.frames))
    pairs = []
    for layer in compressed.layers:
        where = device or layer.device
        pair = [None if frame is None else next(tensors).to(where) for frame in (layer.key, layer.value)]
        pairs.append((layer, *pair))
    return _legacy_cache(pairs) if _DynamicLayer is None else _layered_cache(pairs)


@dataclass
class _State:
    key: torch.Tensor | None
    value: torch.Tensor | None
    sliding_window: int | None = None
    seen_tokens: int = 0
    records_past: bool = False

    @property
    def start(self) -> int:
        """The position of the first token that it holds."""
        return 0 if self.key is None else max(0, self.seen_tokens - self.key.shape[-2])

    def compressed(self, frames: Iterator[Frame]) -> CompressedLayer:
        """The next two frames are this layer's, where it holds anything."""
        key, value = (next(frames) if tensor is not None else None for tensor in (self.key, self.value))
        device = "cpu" if self.key is None else str(self.key.device)
        return CompressedLayer(key, value, device, self.sliding_window, self.seen_tokens, self.records_past)


def _states(cache: Any) -> list[_State]:
    if not isinstance(cache, cache_utils.DynamicCache):
        raise InvalidArgument(f"only a DynamicCache can be compressed, and this is a {type(cache).__name__}")
    if _DynamicLayer is None:
        pairs = zip(cache.key_cache, cache.value_cache, strict=True)
        return [_State(_held(key), _held(value)) for key, value in pairs]
    states = []
    for index, layer in enumerate(cache.layers):
        if type(layer) not in (_DynamicLayer, _SlidingLayer):
            raise InvalidArgument(f"layer {index} is a {type(layer).__name__}, which is more than keys and values")
        state = _State(_held(layer.keys), _held(layer.values))
        if type(layer) is _SlidingLayer:
            state.sliding_window, state.seen_tokens = layer.sliding_window, layer.cumulative_length
            state.records_past = getattr(layer, "record_past", False)
        states.append(state)
    return states


def _held(side: Any) -> torch.Tensor | None:
    """None for a layer that has held nothing yet: it has None, an empty tensor or, before layers, an empty list."""
    return side if isinstance(side, torch.Tensor) and side.numel() else None


def _layered_cache(pairs: list[Any]) -> Any:
    cache = cache_utils.DynamicCache()
    cache.layers.clear()  # transformers 4.55 begins with an empty one
    for layer, key, value in pairs:
        made = _DynamicLayer() if layer.sliding_window is None else _SlidingLayer(layer.sliding_window)
        if key is not None:
            made.update(key, value)
            made.keys, made.values = key, value  # and not what a sliding layer thinks fit to keep of them
        if layer.sliding_window is not None:
            made.cumulative_length = layer.seen_tokens
            if layer.records_past:
                made.activate_past_recording()
        cache.layers.append(made)
    return cache


def _legacy_cache(pairs: list[Any]) -> Any:
    cache = cache_utils.DynamicCache()
    for index, (layer, key, value) in enumerate(pairs):
        if layer.sliding_window is not None:
            raise InvalidArgument(f"layer {index} is a sliding one, which this version of transformers does not have")
        if key is None:
            cache.key_cache.append([])
            cache.value_cache.append([])
        else:
            cache.update(key, value, index)
    return cache
