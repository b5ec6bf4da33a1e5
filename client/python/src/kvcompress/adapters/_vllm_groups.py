"""The groups of KV caches of a model in vLLM, as the connector's chunks see them."""

import math
from dataclasses import dataclass
from typing import Any

from vllm.v1.kv_cache_interface import FullAttentionSpec, MambaSpec, SlidingWindowSpec, UniformTypeKVCacheSpecs

from .. import FailedPrecondition, InvalidArgument

_LEAST_TOKENS = 256  # of a chunk: frames of fewer values cost more than they save


@dataclass(frozen=True)
class Group:
    """One group of caches: layers whose values are in the same blocks. Of the `blocks` of a chunk the last `kept` are
    stored, and tokens that follow need the `reach` chunks before them; None: all."""

    number: int
    block_tokens: int
    blocks: int
    kept: int
    reach: int | None
    is_state: bool = False  # whose block vLLM names, which no table of blocks does

    @property
    def skipped_tokens(self) -> int:
        """Of each chunk, before the first that is stored."""
        return (self.blocks - self.kept) * self.block_tokens


def chunk_tokens(config: Any, told: Any) -> int:
    """Of a KVCacheConfig: the option's, or the fewest that are whole blocks of every group, and enough for a frame;
    with states, which vLLM keeps at the ends of some blocks only, those are ends of chunks."""
    specs = [group.kv_cache_spec for group in config.kv_cache_groups]
    block = math.lcm(*(spec.block_size for spec in specs))
    least = 1 if any(map(is_state, specs)) else _LEAST_TOKENS
    chunk = -(-least // block) * block if told is None else int(told)
    if chunk <= 0 or chunk % block:
        raise InvalidArgument(f"chunk_tokens is {chunk}, and not a multiple of the block size, {block}")
    return chunk


def groups_of(config: Any, chunk: int) -> list[Group]:
    """Of a KVCacheConfig. FailedPrecondition for caches that chunks of tokens do not say all of."""
    return [_group(number, group.kv_cache_spec, chunk) for number, group in enumerate(config.kv_cache_groups)]


def layer_spec(group: Any, name: str) -> Any:
    """The specification of one layer of a KVCacheGroupSpec."""
    spec = group.kv_cache_spec
    return spec.kv_cache_specs[name] if isinstance(spec, UniformTypeKVCacheSpecs) else spec


def is_state(spec: Any) -> bool:
    """Whether it is of the state after a token, and not of the tokens' own values."""
    return isinstance(spec, MambaSpec)


def _group(number: int, spec: Any, chunk: int) -> Group:
    size = spec.block_size
    blocks = chunk // size
    specs = list(spec.kv_cache_specs.values()) if isinstance(spec, UniformTypeKVCacheSpecs) else [spec]
    names = ", ".join(sorted({type(one).__name__ for one in specs}))
    if not spec.prefix_cacheable:
        raise FailedPrecondition(f"vLLM finds no prefixes in caches of {names}: they are not supported")
    if all(isinstance(one, FullAttentionSpec) for one in specs):
        return Group(number, size, blocks, kept=blocks, reach=None)
    if all(isinstance(one, SlidingWindowSpec) for one in specs):
        window = max(one.sliding_window - 1 + one.extra_retained_tokens for one in specs)
        kept = min(blocks, max(1, -(-window // size)))
        return Group(number, size, blocks, kept, reach=max(1, -(-window // chunk)))
    if not all(map(is_state, specs)):
        raise FailedPrecondition(f"caches of {names} are not supported")
    if any(one.mamba_cache_mode != "align" for one in specs):
        raise FailedPrecondition("states are kept with --enable-prefix-caching and --mamba-cache-mode align")
    return Group(number, size, blocks, kept=1, reach=1, is_state=True)
