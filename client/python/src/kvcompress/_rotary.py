"""The rotary embedding of a model, which codecs that turn keys back are told of."""

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from ._errors import InvalidArgument, refusing
from .v1 import kvcompress_pb2 as pb

_PAIRS = {"half": pb.ROTARY_PAIRS_HALF, "interleaved": pb.ROTARY_PAIRS_INTERLEAVED}
# Models, by `model_type`, whose neighbouring channels turn together, in transformers and in vLLM.
_INTERLEAVED = {"cohere", "cohere2", "ernie4_5", "glm", "glm4"}
Pairs = Literal["half", "interleaved"]
Kind = Literal["linear", "llama3", "yarn"]
_KINDS = {
    "linear": pb.ROTARY_SCALING_KIND_LINEAR,
    "llama3": pb.ROTARY_SCALING_KIND_LLAMA3,
    "yarn": pb.ROTARY_SCALING_KIND_YARN,
}


@dataclass(frozen=True)
class RotaryScaling:
    """How a model that serves longer contexts than it was first trained on slows pairs of channels down: all of them
    `factor` times ("linear"), or those that turn fewer than `low` times within `original` tokens, while those that turn
    more than `high` times stay as they are ("llama3", "yarn"). 0 stands for what models have as a rule: 1 of `low`, 4
    ("llama3") or 32 ("yarn") of `high`, 8192 ("llama3") of `original`."""

    kind: Kind
    factor: float
    low: float = 0.0  # low_freq_factor, beta_slow
    high: float = 0.0  # high_freq_factor, beta_fast
    original: int = 0  # original_max_position_embeddings

    @staticmethod
    def of(parameters: Mapping[str, Any]) -> "RotaryScaling | None":
        """That of `rope_scaling` or `rope_parameters` of a model's configuration, whose type is "rope_type" or "type".
        None for the type "default". InvalidArgument for a type that is not one of these: it is not guessed at."""
        kind: Any = parameters.get("rope_type") or parameters.get("type") or "default"
        if kind == "default":
            return None
        if kind not in _KINDS or (kind == "yarn" and parameters.get("truncate") is False):
            raise InvalidArgument(f"a rotary embedding of the type {kind!r} with {dict(parameters)!r} is not known")
        factor = parameters.get("factor") or 0.0
        if kind == "linear":
            return RotaryScaling(kind, factor)
        low, high = ("beta_slow", "beta_fast") if kind == "yarn" else ("low_freq_factor", "high_freq_factor")
        return RotaryScaling(
            kind, factor, low=parameters.get(low) or 0.0, high=parameters.get(high) or 0.0,
            original=parameters.get("original_max_position_embeddings") or 0,
        )  # fmt: skip

    def parameters(self) -> dict[str, Any]:
        """The inverse of `of`."""
        low, high = ("beta_slow", "beta_fast") if self.kind == "yarn" else ("low_freq_factor", "high_freq_factor")
        numbers = {low: self.low, high: self.high, "original_max_position_embeddings": self.original}
        return {"rope_type": self.kind, "factor": self.factor, **{key: own for key, own in numbers.items() if own}}

    def kept(self, theta: float, dims: int, pair: int) -> float:
        """How much of the turns of a pair of `dims` channels is not slowed down, from 0 to 1."""
        if self.kind == "linear":
            return 0.0
        usual_low, usual_high, usual_original = (1.0, 4.0, 8192) if self.kind == "llama3" else (1.0, 32.0, 0)
        low, high, original = self.low or usual_low, self.high or usual_high, self.original or usual_original
        if self.kind == "llama3":
            turns = original * math.pow(theta, -2 * pair / dims) / (2 * math.pi)
            return min(max((turns - low) / (high - low), 0.0), 1.0)
        first, last = (
            dims * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta)) for turns in (high, low)
        )
        first, last = max(math.floor(first), 0), min(math.ceil(last), dims - 1)
        return 1 - min(max((pair - first) / ((last - first) or 0.001), 0.0), 1.0)

    def message(self) -> pb.RotaryScaling:
        """As calls carry it. InvalidArgument for what no message can hold."""
        if not isinstance(self.kind, str) or self.kind not in _KINDS:
            raise InvalidArgument(f"kind is one of {', '.join(_KINDS)}, not {self.kind!r}")
        with refusing("the scaling of the rotary embedding cannot be sent"):
            return pb.RotaryScaling(
                kind=_KINDS[self.kind], factor=self.factor, low=self.low, high=self.high, original=self.original
            )


@dataclass(frozen=True)
class RotaryEmbedding:
    """What a model does to its keys before attention: of each head, `dims` channels from `offset` on turn, with the
    base `theta`; `dims` 0 means all of them. `pairs` says which turn together: i and i + dims / 2 ("half"), or 2 i and
    2 i + 1. `start` is the position of a tensor's first token. The daemon refuses what no model has. A wrong one costs
    bits, or SNR at a budget of bits; frames decode right with any."""

    theta: float = 0.0  # 0: only `start` is told
    pairs: Pairs = "half"
    dims: int = 0
    offset: int = 0
    start: int = 0
    scaling: RotaryScaling | None = None

    @staticmethod
    def of_fields(fields: Mapping[str, Any]) -> "RotaryEmbedding":
        """One with these fields, of which `scaling` is as in a model's configuration. TypeError for what is no object,
        and for unknown fields."""
        scaling = {**fields}.get("scaling")
        return RotaryEmbedding(**{**fields, "scaling": None if scaling is None else RotaryScaling.of({**scaling})})

    @staticmethod
    def of_config(config: Any) -> "RotaryEmbedding | None":
        """That of a model's configuration, as transformers and vLLM have it (`rope_theta` or `rope_parameters`,
        `partial_rotary_factor`, `head_dim`), with its scaling (`rope_scaling` or `rope_parameters`). Of MLA
        (`kv_lora_rank`, `qk_rope_head_dim`) it is that of the latents as engines keep them: the channels that turn
        follow the others, in neighbouring pairs unless `rope_interleave` is false. None for a model without one, and
        where its layers differ; with a warning, where it is scaled in a way that is not known here, such as "dynamic"
        and "longrope"."""
        parameters = getattr(config, "rope_parameters", None) or {}
        if any(isinstance(value, dict) for value in parameters.values()):
            return None
        theta = parameters.get("rope_theta", getattr(config, "rope_theta", None))
        if not theta:
            return None
        try:
            scaling = _scaling_of(config, parameters)
        except InvalidArgument as error:
            warnings.warn(f"{error}: keys are taken as they are, with their rotation", stacklevel=2)
            return None
        latent, turned = getattr(config, "kv_lora_rank", None), getattr(config, "qk_rope_head_dim", None)
        if latent and turned:
            plain = getattr(config, "rope_interleave", None) is False
            return RotaryEmbedding(
                float(theta), "half" if plain else "interleaved", dims=turned, offset=latent, scaling=scaling
            )
        factor = parameters.get("partial_rotary_factor", getattr(config, "partial_rotary_factor", None))
        dims = 0
        if factor not in (None, 1, 1.0):
            head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
            dims = int(head_dim * factor)
        is_interleaved = getattr(config, "model_type", None) in _INTERLEAVED
        return RotaryEmbedding(float(theta), "interleaved" if is_interleaved else "half", dims=dims, scaling=scaling)

    def frequencies(self, dims: int) -> list[float]:
        """By how many radians each pair of `dims` channels turns from one token to the next, scaled."""
        scaling = self.scaling
        turns = []
        for pair in range(dims // 2):
            kept = 1.0 if scaling is None else scaling.kept(self.theta, dims, pair)
            slowed = 0.0 if scaling is None else (1 - kept) / scaling.factor
            turns.append(math.pow(self.theta, -2 * pair / dims) * (slowed + kept))
        return turns

    def message(self) -> pb.RotaryEmbedding:
        """As calls carry it. InvalidArgument for what no message can hold."""
        if not isinstance(self.pairs, str) or self.pairs not in _PAIRS:
            raise InvalidArgument(f'pairs is "half" or "interleaved", not {self.pairs!r}')
        with refusing("the rotary embedding cannot be sent"):
            return pb.RotaryEmbedding(
                theta=self.theta, pairs=_PAIRS[self.pairs], dims=self.dims, offset=self.offset, start=self.start,
                scaling=None if self.scaling is None else self.scaling.message(),
            )  # fmt: skip


def _scaling_of(config: Any, parameters: Mapping[str, Any]) -> RotaryScaling | None:
    """Of a model's configuration with these `rope_parameters`, which older ones have as `rope_scaling`. As in
    transformers, the context that the model was first trained on stands beside them or is its whole one, where they do
    not have it."""
    scaling = RotaryScaling.of({**(getattr(config, "rope_scaling", None) or {}), **parameters})
    if scaling is None or scaling.kind == "linear":
        return scaling
    beside = getattr(config, "original_max_position_embeddings", None)
    whole = getattr(config, "max_position_embeddings", None)
    return replace(scaling, original=beside or scaling.original or whole or 0)


def rotary_message(rotary: RotaryEmbedding | None) -> pb.RotaryEmbedding | None:
    """InvalidArgument for what is none."""
    if rotary is None:
        return None
    if not isinstance(rotary, RotaryEmbedding):
        raise InvalidArgument(f"rotary is a RotaryEmbedding, not {type(rotary).__name__}")
    return rotary.message()
