"""gpt2 before transformers 4.52, which takes tuples of keys and values in place of caches."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from transformers.models.gpt2.modeling_gpt2 import GPT2Attention

from ._layered_cache import TOKENS, LayeredCache, Pair

# What `generate` of these versions asks a model for; there is nothing public that says it.
_TAKES_CACHES = "_supports_cache_class"


class _Past:
    """A layer's keys and values before a forward: a length, and themselves while the layer's attention runs."""

    def __init__(self, length: int):
        self._length = length
        self.pair: Pair | None = None

    def __getitem__(self, side: int) -> torch.Tensor:
        return torch.empty(0, 0, self._length, 0)

    def __iter__(self) -> Iterator[torch.Tensor]:
        return iter(self.pair or ())


class CacheTaker:
    """Makes a model take a LayeredCache, and give it back, by hooks: what a layer's projection makes of new tokens goes
    to the cache, and on from there."""

    def __init__(self, model: Any):
        self._model = model
        self._cache: LayeredCache | None = None
        self._pasts: list[_Past] = []
        self._attentions = [module for module in model.modules() if isinstance(module, GPT2Attention)]
        model.register_forward_pre_hook(self._begin, with_kwargs=True)
        model.register_forward_hook(self._end)
        for attention in self._attentions:
            attention.c_attn.register_forward_hook(lambda _, __, output, at=attention: self._update(at, output))
            attention.register_forward_hook(lambda at, _, output: self._forget(at, output))

    @contextlib.contextmanager
    def generating(self) -> Iterator[None]:
        """Meanwhile `generate` of the model takes a cache, too."""
        setattr(self._model, _TAKES_CACHES, True)
        try:
            yield
        finally:
            delattr(self._model, _TAKES_CACHES)

    def _begin(self, _: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        cache = kwargs.get("past_key_values")
        self._cache = cache if isinstance(cache, LayeredCache) else None
        if self._cache is None:
            return None
        self._pasts = [_Past(self._cache.get_seq_length()) for _ in self._attentions]
        return args, {**kwargs, "past_key_values": self._pasts}

    def _update(self, attention: Any, output: torch.Tensor) -> torch.Tensor | None:
        if self._cache is None:
            return None
        query, key, value = output.chunk(3, dim=2)
        heads = (*key.shape[:2], -1, attention.head_dim)
        new = [side.reshape(heads).transpose(1, 2) for side in (key, value)]
        seen = self._cache.update(new[0], new[1], attention.layer_idx)
        past = seen[0].shape[TOKENS] - key.shape[1]
        self._pasts[attention.layer_idx].pair = (seen[0][..., :past, :], seen[1][..., :past, :])
        return torch.cat([query, *(side[..., past:, :].transpose(1, 2).flatten(2) for side in seen)], dim=2)

    def _forget(self, attention: Any, output: Any) -> Any:
        """All that the layer has seen, which is its second output."""
        if self._cache is None:
            return None
        self._pasts[attention.layer_idx].pair = None
        return (output[0], None, *output[2:])

    def _end(self, _: Any, args: Any, output: Any) -> None:
        if self._cache is not None and getattr(output, "past_key_values", None) is not None:
            output.past_key_values = self._cache
        self._cache = None
