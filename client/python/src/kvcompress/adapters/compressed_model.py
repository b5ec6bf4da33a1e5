"""A model of transformers that runs on a compressed cache, from the first prompt on.

    model = CompressedKVModelWrapper(model, compressor)  # latents of a PCACompressor or KVSpliceCompressor
    model = CompressedKVModelWrapper(model, "kv3", client=client)  # frames, of any codec
    model.generate(**tokenizer("Once upon a time", return_tensors="pt"), max_new_tokens=256)
    print(model.memory_stats())

It works with transformers from 4.50 on.
"""

import contextlib
import functools
import inspect
from collections.abc import Mapping
from os import PathLike
from typing import Any

try:
    import torch
    import transformers
except ImportError as error:
    raise ImportError(
        f"kvcompress.adapters.compressed_model needs PyTorch and transformers ({error}): "
        "pip install './client/python[transformers]' from a checkout"
    ) from error

from .. import InvalidArgument, RotaryEmbedding
from ._codec import AnyClient, client_at
from ._frame_cache import FrameCache
from ._latent_cache import KVCompressor, LatentCache
from ._layered_cache import LayeredCache

__all__ = ["FAMILIES", "CompressedKVModelWrapper", "KVCompressor"]

# By the `model_type` of their text configurations: models whose layers keep keys and values, and nothing else.
FAMILIES = ("gpt2", "llama", "qwen2", "qwen3", "mistral", "gemma", "gemma2", "gemma3_text")

# Options of `generate` that try tokens and take some of them back.
_TAKING_BACK = ("assistant_model", "assistant_early_exit", "prompt_lookup_num_tokens")


class CompressedKVModelWrapper(torch.nn.Module):
    """`model` with a cache that holds its keys and values compressed. forward, `generate` and all else are the
    model's; a forward that is given no cache gets one, and so does `generate`. `use_cache=False` makes a forward keep
    its cache to itself, and is an InvalidArgument of `generate`.

    `compressor` is one of latents (KVCompressor), or what frames are made by: a codec chain, its name, or a profile (a
    mapping, or the path of a file). Frames are then made by the `client`, a daemon's or LocalClient, or an address or
    "in-process"; of more than `page_length` tokens, and the last `residual_length` tokens stay as they are; codecs that
    turn keys back are told the model's rotary embedding, unless there is a `rotary`; `timeout`, in seconds, is for each
    update of a layer.
    LatentCache and FrameCache, which are the caches, say more.

    With `patch_attention` attention sees what the cache holds, restored, of the tokens of the same forward as well;
    without it, of those before alone.

    A call that fails leaves the cache that it was given as it was. Where it cannot, as latents before a sliding window
    or of other rows are gone, the cache is empty, and the error is a FailedPrecondition that says so.

    NotImplementedError for a model of another family than FAMILIES."""

    def __init__(
        self,
        model: Any,
        compressor: KVCompressor | str | Mapping[str, Any] | PathLike[str],
        patch_attention: bool = True,
        *,
        client: AnyClient | str | None = None,
        residual_length: int = 32,
        page_length: int = 64,
        rotary: RotaryEmbedding | None = None,
        timeout: float | None = None,
    ):
        super().__init__()
        family = _text_config(model).model_type
        if family not in FAMILIES:
            raise NotImplementedError(f"{family} is none of {', '.join(FAMILIES)}")
        is_codec = isinstance(compressor, (str, Mapping, PathLike))
        if is_codec != (client is not None):
            raise InvalidArgument("a codec needs a client, and a compressor of latents takes none")
        if not is_codec and not all(callable(getattr(compressor, name, None)) for name in ("compress", "decompress")):
            raise InvalidArgument(f"{type(compressor).__name__} is neither a codec nor a compressor of latents")
        self.model = model
        self.compressor: Any = compressor
        self.patch_attention = patch_attention
        self._client = client_at(client) if isinstance(client, str) else client
        self._frame_options: dict[str, Any] = {
            "codec" if isinstance(compressor, str) else "profile": compressor,
            "residual_length": residual_length, "page_length": page_length, "rotary": rotary, "timeout": timeout,
        }  # fmt: skip
        # Newer transformers have another name for it.
        self._cache_name = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
        self._stats = self.make_cache().memory_stats()
        self._generating: Any = contextlib.nullcontext
        if not getattr(model, "_supports_cache_class", True):
            from ._old_gpt2 import CacheTaker

            self._generating = CacheTaker(model).generating
        if not is_codec:
            # The model outlives this, and keeps the hook.
            model.register_forward_pre_hook(functools.partial(_tell_positions, self._cache_name), with_kwargs=True)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("model"), name)

    def make_cache(self) -> LayeredCache:
        """An empty one, for calls that go on from each other: `model(ids, past_key_values=cache)`."""
        options = {"patch_attention": self.patch_attention, "config": _text_config(self.model)}
        if self._client is None:
            return LatentCache(self.compressor, **options)
        return FrameCache(self._client, **self._frame_options, **options)

    def memory_stats(self) -> dict[str, float]:
        """Of the cache of the last call, as it was at its end; see LayeredCache.memory_stats."""
        return dict(self._stats)

    def forward(self, *args: Any, use_cache: bool | None = None, **kwargs: Any) -> Any:
        """The model's. Its output has the cache, unless `use_cache` is False."""
        cache = self._take_cache(kwargs)
        with cache.rolled_back_on_error():
            output = self.model(*args, use_cache=use_cache is not False, **kwargs)
        self._stats = cache.memory_stats()
        if use_cache is False and isinstance(output, tuple):
            return tuple(part for part in output if part is not cache)
        if use_cache is False and isinstance(output, transformers.utils.ModelOutput):
            return type(output)(**{key: value for key, value in output.items() if value is not cache})
        return output

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """The model's."""
        if kwargs.get("use_cache") is False:
            raise InvalidArgument("a model without a cache has none to compress")
        cache = self._take_cache(kwargs)
        if any(kwargs.get(name) is not None for name in _TAKING_BACK):
            cache.activate_past_recording()
        with cache.rolled_back_on_error(), self._generating():
            # Models of old versions of transformers have one of their own choice.
            output = self.model.generate(*args, **{"cache_implementation": None, **kwargs})
        self._stats = cache.memory_stats()
        return output

    def _take_cache(self, kwargs: dict[str, Any]) -> LayeredCache:
        """That of the arguments, or a new one, which then is among them. InvalidArgument for one of another kind."""
        given = [kwargs.pop(name, None) for name in ("cache", "past_key_values")]
        cache = next((found for found in given if found is not None), None)
        if cache is None:
            cache = self.make_cache()
        if not isinstance(cache, LayeredCache):
            raise InvalidArgument(f"a {type(cache).__name__} is not compressed: use make_cache")
        kwargs[self._cache_name] = cache
        return cache


def _tell_positions(cache_name: str, _: Any, args: Any, kwargs: dict[str, Any]) -> None:
    """Called with what `generate`, too, gives the model: rows that are padded in front begin at other positions."""
    cache = kwargs.get(cache_name)
    if isinstance(cache, LatentCache):
        cache.tell_positions(kwargs.get("position_ids"))


def _text_config(model: Any) -> Any:
    return model.config.get_text_config(decoder=True)
