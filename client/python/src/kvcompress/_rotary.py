"""The rotary embedding of a model, which codecs that turn keys back are told of."""

from dataclasses import dataclass
from typing import Any, Literal

from ._errors import InvalidArgument, refusing
from .v1 import kvcompress_pb2 as pb

_PAIRS = {"half": pb.ROTARY_PAIRS_HALF, "interleaved": pb.ROTARY_PAIRS_INTERLEAVED}
# Models, by `model_type`, whose neighbouring channels turn together, in transformers and in vLLM.
_INTERLEAVED = {"cohere", "cohere2", "ernie4_5", "glm", "glm4"}


@dataclass(frozen=True)
class RotaryEmbedding:
    """What a model does to its keys before attention: of each head, `dims` channels from `offset` on turn, with the
    base `theta`; `dims` 0 means all of them. `pairs` says which turn together: i and i + dims / 2 ("half"), or 2 i and
    2 i + 1. `start` is the position of a tensor's first token. The daemon refuses what no model has. A wrong one costs
    bits, and no accuracy."""

    theta: float = 0.0  # 0: only `start` is told
    pairs: Literal["half", "interleaved"] = "half"
    dims: int = 0
    offset: int = 0
    start: int = 0

    @staticmethod
    def of_config(config: Any) -> "RotaryEmbedding | None":
        """That of a model's configuration, as transformers and vLLM have it (`rope_theta` or `rope_parameters`,
        `partial_rotary_factor`, `head_dim`). Of scaled embeddings (llama3, yarn, linear) it is the base alone, which is
        nearly all there is to gain. Of MLA (`kv_lora_rank`, `qk_rope_head_dim`) it is that of the latents as engines
        keep them: the channels that turn follow the others, in neighbouring pairs unless `rope_interleave` is false.
        None for a model without one, and where its layers differ."""
        parameters = getattr(config, "rope_parameters", None) or {}
        if any(isinstance(value, dict) for value in parameters.values()):
            return None
        theta = parameters.get("rope_theta", getattr(config, "rope_theta", None))
        if not theta:
            return None
        latent, turned = getattr(config, "kv_lora_rank", None), getattr(config, "qk_rope_head_dim", None)
        if latent and turned:
            plain = getattr(config, "rope_interleave", None) is False
            return RotaryEmbedding(float(theta), "half" if plain else "interleaved", dims=turned, offset=latent)
        factor = parameters.get("partial_rotary_factor", getattr(config, "partial_rotary_factor", None))
        dims = 0
        if factor not in (None, 1, 1.0):
            head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
            dims = int(head_dim * factor)
        is_interleaved = getattr(config, "model_type", None) in _INTERLEAVED
        return RotaryEmbedding(float(theta), "interleaved" if is_interleaved else "half", dims=dims)

    def message(self) -> pb.RotaryEmbedding:
        """As calls carry it. InvalidArgument for what no message can hold."""
        if not isinstance(self.pairs, str) or self.pairs not in _PAIRS:
            raise InvalidArgument(f'pairs is "half" or "interleaved", not {self.pairs!r}')
        with refusing("the rotary embedding cannot be sent"):
            return pb.RotaryEmbedding(
                theta=self.theta, pairs=_PAIRS[self.pairs], dims=self.dims, offset=self.offset, start=self.start
            )


def rotary_message(rotary: RotaryEmbedding | None) -> pb.RotaryEmbedding | None:
    """InvalidArgument for what is none."""
    if rotary is None:
        return None
    if not isinstance(rotary, RotaryEmbedding):
        raise InvalidArgument(f"rotary is a RotaryEmbedding, not {type(rotary).__name__}")
    return rotary.message()
