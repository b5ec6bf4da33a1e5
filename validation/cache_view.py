"""One view of every KV cache that transformers 4.35 and later hand out.

Styles, newest first: a list of layer objects (`cache.layers[i].keys`, 4.54 and later), two lists (`cache.key_cache`,
`cache.value_cache`, from 4.36), tuples of (key, value) for each layer (4.35, and other models for longer). An object
that has one of these shapes is taken, whatever its class.

A tensor is [batch, kv_heads, tokens, head_dim]; sliding layers hold fewer tokens than the others.
"""

import copy
import inspect
from typing import Any, Iterable, List, Optional, Tuple

import torch

Pair = Tuple[torch.Tensor, torch.Tensor]


def layers(cache: Any) -> List[Pair]:
    """Keys and values of each layer, as views of the cache's own memory: writing to them changes the cache.

    Preallocated buffers (StaticCache) are cut to the tokens that are in use.

    Raises:
        ValueError: the cache, or one of its layers, is empty.
        TypeError: it is no cache, or one whose layers do not hold plain 4-D tensors (quantized, linear attention).
    """
    if isinstance(getattr(cache, "layers", None), (list, tuple)):
        found = [_of_layer(index, layer) for index, layer in enumerate(cache.layers)]
    elif hasattr(cache, "key_cache") and hasattr(cache, "value_cache"):
        found = [_checked(index, *pair) for index, pair in enumerate(zip(cache.key_cache, cache.value_cache))]
        used = getattr(cache, "get_seq_length", None)
        # Only a static cache holds more than it uses; only its tensors are preallocated up to max_cache_len.
        if used is not None and getattr(cache, "max_cache_len", None) is not None:
            found = [_first_tokens(pair, int(used(index))) for index, pair in enumerate(found)]
    elif isinstance(cache, (list, tuple)):
        if not all(isinstance(entry, (list, tuple)) and len(entry) >= 2 for entry in cache):
            raise TypeError("a cache in the form of a tuple has a (key, value) pair for each layer")
        found = [_checked(index, *entry[:2]) for index, entry in enumerate(cache)]
    elif hasattr(cache, "to_legacy_cache"):
        return layers(cache.to_legacy_cache())
    else:
        raise TypeError(f"{type(cache).__name__} is no KV cache: it has no layers, no key_cache, and is no tuple of pairs")
    if not found:
        raise ValueError("the cache is empty: it has no layers")
    return found


def forward(model: Any, ids: torch.Tensor, cache: Any = None) -> Tuple[torch.Tensor, Any]:
    """Logits [batch, n, vocabulary] of token ids [batch, n] behind a cache, and the cache afterwards (None: there is none).

    The argument is called `cache` in the newest transformers, `past_key_values` in 4.x.
    """
    name = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
    given = {} if cache is None else {name: cache}
    outputs = model(input_ids=ids, use_cache=True, **given)
    return outputs.logits, getattr(outputs, name)


def with_tensors(cache: Any, pairs: Iterable[Pair]) -> Any:
    """A copy of the cache, of the same class and state, that holds these keys and values, in its own dtype and device.

    This is how a restored cache goes back into a model: positions and the counters of sliding layers stay right.

    Raises:
        ValueError: a shape differs from the cache's.
    """
    # deepcopy refuses tensors that a forward pass with gradients made: it finds their copies already in its memo.
    copies = {id(tensor): tensor.detach().clone() for pair in layers(cache) for tensor in pair}
    changed = copy.deepcopy(cache, copies)
    pairs = list(pairs)
    targets = layers(changed)
    if len(pairs) != len(targets):
        raise ValueError(f"{len(pairs)} layers for a cache of {len(targets)}")
    for index, (target, pair) in enumerate(zip(targets, pairs)):
        for name, to, tensor in zip(("key", "value"), target, pair):
            if to.shape != tensor.shape:
                raise ValueError(f"layer {index}'s {name} is {list(tensor.shape)}, the cache's is {list(to.shape)}")
            to.copy_(tensor.detach())
    return changed


def build(pairs: Iterable[Pair], config: Any = None, tokens: Optional[int] = None) -> Any:
    """A DynamicCache with these tensors, or a tuple of pairs where transformers has no such class (4.35).

    Args:
        config: the model's configuration, for sliding layers to be sliding again (transformers that know of it)
        tokens: how many tokens the cache has seen, which sliding layers do not show
    """
    pairs = list(pairs)
    try:
        from transformers import DynamicCache
    except ImportError:
        try:
            from transformers.cache_utils import DynamicCache
        except ImportError:
            return tuple(pairs)
    takes_config = config is not None and "config" in inspect.signature(DynamicCache.__init__).parameters
    cache = DynamicCache(config=config) if takes_config else DynamicCache()
    for index, (key, value) in enumerate(pairs):
        cache.update(key, value, index)
    for layer in getattr(cache, "layers", ()):
        if tokens is not None and getattr(layer, "is_sliding", False) and hasattr(layer, "cumulative_length"):
            layer.cumulative_length = tokens
    return cache


def tokens_seen(cache: Any) -> int:
    """How many tokens went through the cache: the longest layer, or more where all layers are sliding."""
    held = max(key.shape[2] for key, _ in layers(cache))
    counted = getattr(cache, "get_seq_length", None)
    return max(held, int(counted())) if callable(counted) else held


def _of_layer(index: int, layer: Any) -> Pair:
    if hasattr(layer, "_quantized_keys"):
        raise TypeError(f"layer {index} is quantized by transformers itself: use a cache that holds plain tensors")
    if not hasattr(layer, "keys") or not hasattr(layer, "values"):
        raise TypeError(f"layer {index} ({type(layer).__name__}) has no keys and values")
    pair = _checked(index, layer.keys, layer.values)
    used = getattr(layer, "get_seq_length", None)
    return pair if used is None else _first_tokens(pair, int(used()))


def _checked(index: int, key: Any, value: Any) -> Pair:
    for name, tensor in (("keys", key), ("values", value)):
        if tensor is None or (isinstance(tensor, list) and not tensor):
            raise ValueError(f"layer {index} of the cache is empty: it has no {name}")
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(f"layer {index}'s {name} are a {type(tensor).__name__}, not a tensor")
        if tensor.numel() == 0:
            raise ValueError(f"layer {index} of the cache is empty: its {name} are {list(tensor.shape)}")
        if tensor.dim() != 4:
            raise TypeError(f"layer {index}'s {name} are {list(tensor.shape)}, not [batch, kv_heads, tokens, head_dim]")
    return key, value


def _first_tokens(pair: Pair, used: int) -> Pair:
    if used >= pair[0].shape[2]:
        return pair
    if used == 0:
        raise ValueError("the cache is empty: no token has gone through it")
    return pair[0][:, :, :used], pair[1][:, :, :used]
