"""The cache of transformers that lives as frames; see FrameCache."""

from dataclasses import dataclass, replace
from typing import Any

import torch

from .. import Frame, InvalidArgument, RotaryEmbedding
from ._codec import AnyClient, Codec
from ._layered_cache import TOKENS, CompressedLayer, LayeredCache, Pair


@dataclass(frozen=True)
class _Segment:
    """Some tokens of one layer: frames of its keys and values, and what of them still counts."""

    frames: tuple[Frame, Frame]
    tokens: int  # the first of them
    rows: torch.Tensor | None = None  # of the batch, in today's order; None: all, as they were

    @property
    def nbytes(self) -> int:
        return sum(map(len, self.frames)) + (0 if self.rows is None else self.rows.nbytes)

    def select(self, rows: torch.Tensor) -> "_Segment":
        return replace(self, rows=rows if self.rows is None else self.rows[rows])

    def current(self, tensor: torch.Tensor) -> torch.Tensor:
        """What still counts of one of its decoded tensors."""
        tensor = tensor.narrow(TOKENS, 0, self.tokens)
        return tensor if self.rows is None else tensor.index_select(0, self.rows)


class FrameStore:
    """Tokens of a layer as frames, in host memory: two more of them by each `append`."""

    def __init__(self, codec: Codec, layer: int):
        self._codec = codec
        self._layer = layer
        self.segments: list[_Segment] = []

    @property
    def tokens(self) -> int:
        return sum(segment.tokens for segment in self.segments)

    @property
    def nbytes(self) -> int:
        return sum(segment.nbytes for segment in self.segments)

    def append(self, keys: torch.Tensor, values: torch.Tensor, start: int) -> None:
        named = [(f"layer_{self._layer}_key", keys), (f"layer_{self._layer}_value", values)]
        frames = self._codec.compress(named, [start, start])
        self.segments.append(_Segment((frames[0], frames[1]), keys.shape[TOKENS]))

    def restored(self) -> list[Pair]:
        if not self.segments:
            return []
        tensors = self._codec.decompress([frame for segment in self.segments for frame in segment.frames])
        pairs = zip(self.segments, tensors[::2], tensors[1::2], strict=True)
        return [(segment.current(key), segment.current(value)) for segment, key, value in pairs]

    def drop_last(self, tokens: int) -> None:
        while tokens and self.segments:
            last = self.segments.pop()
            if last.tokens > tokens:
                self.segments.append(replace(last, tokens=last.tokens - tokens))
            tokens -= min(tokens, last.tokens)

    def drop_first(self, tokens: int) -> int:
        """Whole frames alone."""
        dropped = 0
        while self.segments and dropped + self.segments[0].tokens <= tokens:
            dropped += self.segments.pop(0).tokens
        return dropped

    def state(self) -> list[_Segment]:
        return list(self.segments)

    def roll_back(self, state: list[_Segment]) -> bool:
        self.segments = state
        return True

    def select(self, rows: torch.Tensor) -> None:
        self.segments = [segment.select(rows.cpu()) for segment in self.segments]


class FrameCache(LayeredCache):
    """A cache for `generate` and for a model's forward (`past_key_values=`), which holds layers as frames:
    `model.generate(..., past_key_values=FrameCache(client, codec="lossless"))`.

    `codec` and `profile` are those of `compress_cache`. The last `residual_length` tokens of each layer stay as they
    are, and so do up to `page_length` more, as many as that unless given, before all of these become frames together.
    Each forward sees its own keys and values, and what is compressed meanwhile, undamaged, unless `patch_attention`:
    then attention sees what the frames hold, within a prompt as well. With the model's `config`, sliding layers hold
    no more than what of frames and tokens is in their window, and codecs that turn keys back are told its rotary
    embedding, unless `rotary` has one; not that of MLA, as transformers keep its parts apart, or not, by their version.
    One layer at a time is decoded in full. `timeout`, in seconds, is for each update of a layer; what fails there is
    raised through the model, and leaves this layer as it was and those before it with the new tokens: `crop` takes all
    of them back to as many tokens as they had.

    InvalidArgument for layers that are more than keys and values.
    """

    def __init__(
        self,
        client: AnyClient,
        *,
        codec: str = "",
        profile: Any = None,
        residual_length: int = 128,
        page_length: int | None = None,
        patch_attention: bool = False,
        config: Any = None,
        rotary: RotaryEmbedding | None = None,
        timeout: float | None = None,
    ):
        if residual_length < 1:
            raise InvalidArgument("residual_length is at least 1")
        page = residual_length if page_length is None else page_length
        if page < 0:
            raise InvalidArgument("page_length is at least 0")
        text_config = None if config is None else config.get_text_config(decoder=True)
        coder = replace(Codec.of(client, codec, profile, timeout), rotary=rotary)
        if getattr(text_config, "kv_lora_rank", None) is None:
            coder = coder.of_model(text_config)

        def layer(index: int, sliding_window: int | None) -> CompressedLayer:
            return CompressedLayer(
                FrameStore(coder, index), residual_length=residual_length, page_length=page,
                sees_restored=patch_attention, sliding_window=sliding_window,
            )  # fmt: skip

        super().__init__(layer, config)
