"""The cache of transformers that lives as frames; see FrameCache."""

import inspect
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import cache_utils

from .. import Client, FailedPrecondition, Frame, InvalidArgument, RotaryEmbedding
from ._codec import Codec

# Before transformers 4.56 a cache takes no layers of others, or has no layers at all; FrameCache says so.
_LayerBase: Any = getattr(cache_utils, "CacheLayerMixin", object)
_TAKES_LAYERS = "layer_class_to_replicate" in inspect.signature(cache_utils.Cache.__init__).parameters

# Tokens are the last axis but one of [batch, heads, tokens, head_dim].
_TOKENS = -2


@dataclass(frozen=True)
class _Segment:
    """Some tokens of one layer: frames of its keys and values, and what of them still counts."""

    frames: tuple[Frame, Frame]
    tokens: int  # the first of them
    rows: torch.Tensor | None = None  # of the batch, in today's order; None: all, as they were

    def select(self, rows: torch.Tensor) -> "_Segment":
        return replace(self, rows=rows if self.rows is None else self.rows[rows])

    def current(self, tensor: torch.Tensor) -> torch.Tensor:
        """What still counts of one of its decoded tensors."""
        tensor = tensor.narrow(_TOKENS, 0, self.tokens)
        return tensor if self.rows is None else tensor.index_select(0, self.rows)


class FrameLayer(_LayerBase):
    """Keys and values [batch, heads, tokens, head_dim] of one layer: the last tokens as they are, those before them as
    frames, which `update` decodes for the time of the layer's attention. A token is compressed once and never again,
    so that what a codec loses does not add up."""

    is_sliding = False
    is_croppable = True
    is_compileable = False
    supports_early_init = True

    def __init__(self, codec: Codec, index: int, residual_length: int):
        super().__init__()
        self._codec = codec
        self._index = index
        self._residual = residual_length
        self._segments: list[_Segment] = []
        self.keys: Any = None
        self.values: Any = None
        self.is_initialized = False

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor | None = None) -> None:
        like = key_states if value_states is None else value_states
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys, self.values = key_states[..., :0, :], like[..., :0, :]
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """All keys and values, the new ones last."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        parts = [*self._decoded(), (self.keys, self.values), (key_states, value_states)]
        keys, values = (torch.cat([part[side] for part in parts], dim=_TOKENS) for side in (0, 1))
        kept = self.keys.shape[_TOKENS] + key_states.shape[_TOKENS]
        if kept > 2 * self._residual:
            self._compress(keys, values, kept - self._residual)
            kept = self._residual
        # Copies: a view would keep alive all that it is a part of.
        self.keys, self.values = (side[..., side.shape[_TOKENS] - kept :, :].clone() for side in (keys, values))
        return keys, values

    def _decoded(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        if not self._segments:
            return []
        frames = [frame for segment in self._segments for frame in segment.frames]
        tensors = [tensor.to(self.device) for tensor in self._codec.decompress(frames)]
        pairs = zip(self._segments, tensors[::2], tensors[1::2], strict=True)
        return [(segment.current(key), segment.current(value)) for segment, key, value in pairs]

    def _compress(self, keys: torch.Tensor, values: torch.Tensor, tokens: int) -> None:
        """The `tokens` in front of the residual ones become one more segment."""
        begin = keys.shape[_TOKENS] - self._residual - tokens
        key, value = (side.narrow(_TOKENS, begin, tokens) for side in (keys, values))
        named = [(f"layer_{self._index}_key", key), (f"layer_{self._index}_value", value)]
        start = sum(segment.tokens for segment in self._segments)
        frames = self._codec.compress(named, [start, start])
        self._segments.append(_Segment((frames[0], frames[1]), tokens))

    @property
    def held_bytes(self) -> int:
        """Of frames, and of the tokens that are kept as they are."""
        frames = sum(len(frame) for segment in self._segments for frame in segment.frames)
        return frames + (self.keys.nbytes + self.values.nbytes if self.is_initialized else 0)

    def get_seq_length(self, *_: Any) -> int:
        if not self.is_initialized:
            return 0
        return sum(segment.tokens for segment in self._segments) + int(self.keys.shape[_TOKENS])

    def get_mask_sizes(self, query_length: Any) -> tuple[int, int]:
        """Length and offset, of what `update` will give for so many new tokens: a number, or, in transformers 4, their
        positions."""
        new = query_length if isinstance(query_length, int) else query_length.shape[0]
        return self.get_seq_length() + new, 0

    def get_max_length(self) -> int:
        """None, which transformers writes as -1."""
        return -1

    get_max_cache_shape = get_max_length

    def reset(self) -> None:
        self._segments = []
        self.keys = self.values = None
        self.is_initialized = False

    def offload(self) -> None:
        """Nothing: the frames are in host memory."""

    prefetch = offload

    def crop(self, length: int) -> None:
        """Keeps `length` tokens, or, where it is negative, all but so many."""
        if not self.is_initialized or length == 0:
            return
        surplus = max(0, self.get_seq_length() - length if length > 0 else -length)
        raw = min(surplus, self.keys.shape[_TOKENS])
        end = self.keys.shape[_TOKENS] - raw
        self.keys, self.values = (side[..., :end, :].clone() for side in (self.keys, self.values))
        surplus -= raw
        while surplus and self._segments:
            last = self._segments.pop()
            if last.tokens > surplus:
                self._segments.append(replace(last, tokens=last.tokens - surplus))
            surplus -= min(surplus, last.tokens)

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        if self.is_initialized:
            self.batch_select_indices(torch.arange(self.keys.shape[0]).repeat_interleave(repeats))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """The batch's rows, in this order. The frames stay as they are."""
        if not self.is_initialized:
            return
        rows = torch.arange(self.keys.shape[0], device=self.device)[indices.to(self.device)]
        self._segments = [segment.select(rows) for segment in self._segments]
        self.keys, self.values = self.keys[rows], self.values[rows]


class FrameCache(cache_utils.Cache):
    """A cache for `generate` and for a model's forward (`past_key_values=`), which holds full-attention layers as
    frames: `model.generate(..., past_key_values=FrameCache(client, codec="lossless"))`.

    `codec` and `profile` are those of `compress_cache`. The last `residual_length` to twice as many tokens of each
    layer stay as they are, and so does what was compressed less than a step ago: each forward sees its own keys and
    values undamaged. With the model's `config`, sliding-window layers are transformers' own, which hold a window each,
    and codecs that turn keys back are told its rotary embedding, unless `rotary` has one. One layer at a time is
    decoded in full. `timeout`, in seconds, is for each update of a layer; what fails there is raised through the model.

    FailedPrecondition with transformers before 4.56, InvalidArgument for layers that are more than keys and values.
    """

    def __init__(
        self,
        client: Client,
        *,
        codec: str = "",
        profile: Any = None,
        residual_length: int = 128,
        config: Any = None,
        rotary: RotaryEmbedding | None = None,
        timeout: float | None = None,
    ):
        if not _TAKES_LAYERS:
            raise FailedPrecondition("FrameCache needs transformers 4.56 or newer")
        if residual_length < 1:
            raise InvalidArgument("residual_length is at least 1")
        text_config = None if config is None else config.get_text_config(decoder=True)
        coder = replace(Codec.of(client, codec, profile, timeout), rotary=rotary).of_model(text_config)

        def layer(index: int) -> FrameLayer:
            return FrameLayer(coder, index, residual_length)

        if config is None:
            # Called for one layer after another, as the first forward comes to them.
            super().__init__(layer_class_to_replicate=lambda: layer(len(self.layers)))
            return
        plain = cache_utils.DynamicCache(config=config).layers
        for index, found in enumerate(plain):
            if type(found) not in (cache_utils.DynamicLayer, cache_utils.DynamicSlidingWindowLayer):
                raise InvalidArgument(f"layer {index} is a {type(found).__name__}, which is more than keys and values")
        kept = [layer(index) if type(found) is cache_utils.DynamicLayer else found for index, found in enumerate(plain)]
        super().__init__(layers=kept)

    @property
    def held_bytes(self) -> int:
        """Of memory for keys and values, in frames and as tensors."""
        return sum(
            layer.held_bytes
            if isinstance(layer, FrameLayer)
            else sum(side.nbytes for side in (layer.keys, layer.values) if side is not None)
            for layer in self.layers
        )
