"""Storage of SGLang's hierarchical cache (HiCache): pages of its host pools as frames in a store.

Tested with SGLang 0.5.23's own base class, factory and host pools, imported without a GPU, and, where SGLang is not
installed, against the signatures of that release, with host pools of its layouts on the CPU; and with a model in
SGLang on the CPU, with stand-ins for its kernels.

SGLang loads it by `--hicache-storage-backend dynamic`; see the package's README for the whole configuration.
"""

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

try:
    import torch
    from sglang.srt.mem_cache.hicache_storage import HiCacheStorage, PoolHitPolicy, PoolName, PoolTransferResult
except ImportError as error:
    raise ImportError(
        f"kvcompress.adapters.sglang runs inside SGLang, which cannot be imported here: {error}"
    ) from error

from .. import FailedPrecondition, InvalidArgument
from ..store import open_store
from ._chunks import ChunkStore
from ._codec import Codec, check_dtype, check_keys
from ._sglang_pools import HostPool, Page, Ranks

logger = logging.getLogger(__name__)

Value = TypeVar("Value")
# SGLang's own options in the same object.
_SGLANG_KEYS = {
    "backend_name", "module_path", "class_name", "interface_v1", "prefetch_threshold", "prefetch_timeout_base",
    "prefetch_timeout_per_ki_token", "hicache_storage_pass_prefix_keys", "tp_lcm_size",
}  # fmt: skip
# What SGLang calls the values of pools that hold them as bytes.
_FP8 = {None: None, "fp8_e4m3": torch.float8_e4m3fn, "fp8_e5m2": torch.float8_e5m2}


class KvCompressStorage(HiCacheStorage):
    """Pages of the host pools, by SGLang's hashes of their tokens and of all before them.

    Where pages stand in their prompt SGLang tells with `interface_v1` and `hicache_storage_pass_prefix_keys`; without
    these codecs take each for the first. What cannot be stored or read is logged and counted, and is a miss. A damaged
    page, and one that is another's, is removed."""

    def __init__(self, storage_config: Any, kwargs: Any = None):
        extra = dict(storage_config.extra_config or {})
        check_keys(extra, {"capacity_bytes", "kv_cache_dtype", *_SGLANG_KEYS}, required={"path"})
        if getattr(storage_config, "dcp_size", 1) != 1:
            raise FailedPrecondition("decode context parallelism spreads a page's tokens, and is not supported")
        if extra.get("kv_cache_dtype") not in _FP8:
            raise InvalidArgument(f"kv_cache_dtype is {extra['kv_cache_dtype']!r}, and not fp8_e4m3 or fp8_e5m2")
        codec = Codec.from_config(extra)
        self._is_flat = not extra.get("interface_v1")
        if self._is_flat or not extra.get("hicache_storage_pass_prefix_keys"):
            codec.check_without_positions()
        self._codec = codec
        self._config = storage_config
        self._fp8 = _FP8[extra.get("kv_cache_dtype")]
        namespace = repr(["sglang", storage_config.model_name, codec.text])
        self._store = open_store(extra["path"], namespace, extra.get("capacity_bytes"))
        self._chunks = ChunkStore(codec, self._store, namespace)
        self._pools: dict[str, HostPool] = {}
        self._is_logical = False  # the pool of keys and values has no memory of its own: all is in other pools
        self._has_metrics = bool(getattr(storage_config, "enable_storage_metrics", False))
        self._metrics: dict[str, list[float]] = defaultdict(list)  # as SGLang's StorageMetrics names them

    # What SGLang registers.

    def register_mem_pool_host(self, mem_pool_host: Any) -> None:
        """Before any page: the pool says what its pages look like."""
        super().register_mem_pool_host(mem_pool_host)
        self._is_logical = getattr(mem_pool_host, "kv_buffer", mem_pool_host) is None
        if not self._is_logical:
            check_dtype(mem_pool_host.dtype, "SGLang's KV cache")
            self._add(PoolName.KV, mem_pool_host)

    def register_mem_host_pool_v2(self, host_pool: Any, host_pool_name: Any) -> None:
        """Of keys and values it is registered before, as the one above."""
        super().register_mem_host_pool_v2(host_pool, host_pool_name)
        if host_pool_name != PoolName.KV:
            self._add(host_pool_name, host_pool)

    def _add(self, name: Any, pool: Any) -> None:
        config = self._config
        common = f"pp{config.pp_rank}/{config.pp_size} cp{config.attn_cp_rank}/{config.attn_cp_size}"
        split = max(1, (getattr(config, "tp_lcm_size", None) or 0) // config.tp_size)
        ranks = Ranks(common, config.tp_rank, config.tp_size, config.is_mla_model, split)
        self._pools[str(name)] = HostPool(str(name), pool, ranks, self._fp8, by_layer=self._codec.tells_layers_apart)

    def _pool(self, name: Any = PoolName.KV) -> HostPool:
        try:
            return self._pools[str(name)]
        except KeyError:
            raise FailedPrecondition(f"no host pool {name} is registered") from None

    # One pool of keys and values, as flat pages.

    def exists(self, key: str) -> bool:
        return self.batch_exists([key]) == 1

    def batch_exists(self, keys: Sequence[str], extra_info: Any = None) -> int:
        """How many of the first ones are stored."""
        if self._is_logical:
            return len(keys)
        have = self._have(PoolName.KV, keys)
        return have.index(False) if False in have else len(have)

    def set(self, key: str, value: Any = None, target_location: Any = None, target_sizes: Any = None) -> bool:
        return self.batch_set([key], [value])

    def get(self, key: str, target_location: Any = None, target_sizes: Any = None) -> torch.Tensor | None:
        return self.batch_get([key], [target_location])[0]

    def batch_set(
        self, keys: Sequence[str], values: Any = None, target_locations: Any = None, target_sizes: Any = None
    ) -> bool:
        """True if all of the pages are stored now; those that were already are not written again."""
        pool = self._pool()
        try:
            pages = [pool.flat_page(value) for value in values or []]
        except InvalidArgument as error:
            logger.warning("%d pages are not stored: %s", len(keys), error)
            return False
        return all(self._save(pool, keys, pages, flat=True))

    def batch_get(
        self, keys: Sequence[str], target_locations: Any = None, target_sizes: Any = None
    ) -> list[torch.Tensor | None]:
        """Pages, in `target_locations` where these are given, and None for each miss."""
        pool = self._pool()
        buffers = [
            self.mem_pool_host.get_dummy_flat_data_page() if buffer is None else buffer
            for buffer in target_locations or [None] * len(keys)
        ]
        flats = [buffer.reshape(-1).contiguous() for buffer in buffers]  # copies, of buffers with gaps
        found = self._load(pool, keys, [pool.flat_page(flat) for flat in flats], flat=True)
        for buffer, flat in zip(buffers, flats, strict=True):
            if flat.data_ptr() != buffer.data_ptr():
                buffer.copy_(flat.view(buffer.shape))
        return [buffer if hit else None for buffer, hit in zip(buffers, found, strict=True)]

    # The same in the host pool's memory.

    def batch_set_v1(self, keys: Sequence[str], host_indices: torch.Tensor, extra_info: Any = None) -> list[bool]:
        if self._is_logical:
            return [True] * len(keys)
        pool = self._pool()
        pages = _checked_pages(pool, keys, host_indices, to_write=False)
        return self._save(pool, keys, pages, _pages_before(extra_info))

    def batch_get_v1(self, keys: Sequence[str], host_indices: torch.Tensor, extra_info: Any = None) -> list[bool]:
        if self._is_logical:
            return [True] * len(keys)
        pool = self._pool()
        return self._load(pool, keys, _checked_pages(pool, keys, host_indices, to_write=True))

    # Several pools.

    def batch_exists_v2(self, keys: Sequence[str], pool_transfers: Any = None, extra_info: Any = None) -> Any:
        """As SGLang's own file backend counts: every prefix that all pools can restore, and the longest one of each
        pool. A policy that is not known here gives no verdict."""
        pages = self.batch_exists(keys)
        hits: dict[Any, int] = {PoolName.KV: pages} if pages else {}
        restorable = list(range(1, pages + 1))
        for transfer in pool_transfers or []:
            if not restorable:
                break
            if transfer.hit_policy not in (PoolHitPolicy.ALL_PAGES, PoolHitPolicy.TRAILING_PAGES):
                continue
            have = self._have(transfer.name, keys[:pages])
            window = pages if transfer.hit_policy == PoolHitPolicy.ALL_PAGES else max(1, len(transfer.keys or [1]))
            good = {end for end in range(1, pages + 1) if all(have[max(0, end - window) : end])}
            if good:
                hits[transfer.name] = max(good)
            restorable = [end for end in restorable if end in good]
        return PoolTransferResult(restorable[-1] if restorable else 0, hits, restorable)

    def batch_get_v2(self, transfers: Sequence[Any], extra_info: Any = None) -> dict[Any, list[bool]]:
        """The pages of a transfer that cannot be are misses, of one pool without the others'."""
        return {one.name: self._transferred(one, self._load, to_write=True) for one in transfers}

    def batch_set_v2(self, transfers: Sequence[Any], extra_info: Any = None) -> dict[Any, list[bool]]:
        before = _pages_before(extra_info)

        def save(pool: HostPool, keys: Sequence[str], pages: Sequence[Page]) -> list[bool]:
            return self._save(pool, keys, pages, before)

        return {one.name: self._transferred(one, save, to_write=False) for one in transfers}

    def _transferred(self, transfer: Any, work: Callable[..., list[bool]], *, to_write: bool) -> list[bool]:
        keys = transfer.keys or []
        try:
            pool = self._pool(transfer.name)
            return work(pool, keys, _checked_pages(pool, keys, transfer.host_indices, to_write=to_write))
        except (FailedPrecondition, InvalidArgument) as error:
            logger.warning("pages of pool %s are not moved: %s", transfer.name, error)
            return [False] * len(keys)

    # All of them.

    def _have(self, name: Any, keys: Sequence[str]) -> list[bool]:
        pool = self._pool(name)
        flat = self._is_flat and name == PoolName.KV
        pages = [pool.keys(key, flat=flat) for key in keys]
        held = self._chunks.exists([key for page in pages for key in page])
        return [all(page) for page in _grouped(held, pages)]

    def _save(
        self,
        pool: HostPool,
        keys: Sequence[str],
        pages: Sequence[Page],
        before: int | None = None,
        *,
        flat: bool = False,
    ) -> list[bool]:
        """Which pages are stored now. `before`: how many of the prompt's come before these, where that is known."""
        began = time.perf_counter()
        starts = [0 if before is None else (before + number) * pool.page_size for number in range(len(keys))]
        chunks = [
            pool.chunks(key, page, start, flat=flat) for key, page, start in zip(keys, pages, starts, strict=True)
        ]
        found = _grouped(self._chunks.save([chunk for page in chunks for chunk in page]), chunks)
        self._measured("backup", pool, sum(any(page) for page in found), time.perf_counter() - began)
        return [None not in page for page in found]

    def _load(self, pool: HostPool, keys: Sequence[str], pages: Sequence[Page], *, flat: bool = False) -> list[bool]:
        """Which pages were found; they stand in their memory then."""
        began = time.perf_counter()
        chunks = [pool.chunks(key, page, flat=flat) for key, page in zip(keys, pages, strict=True)]
        loaded = self._chunks.load([chunk for page in chunks for chunk in page])
        found = [all(page) for page in _grouped(loaded, chunks)]
        for page, hit in zip(pages, found, strict=True):
            if hit:
                page.written()
        self._measured("prefetch", pool, sum(found), time.perf_counter() - began)
        return found

    def _measured(self, what: str, pool: HostPool, pages: int, seconds: float) -> None:
        if pages and self._has_metrics:
            self._metrics[f"{what}_pgs"].append(pages)
            self._metrics[f"{what}_bandwidth"].append(pages * pool.page_bytes / seconds / (1 << 30))

    # Everything else.

    def get_stats(self) -> Any:
        """What SGLang's metrics tell of a storage, since it was asked last; None where they are off."""
        if not self._has_metrics:
            return None
        from sglang.srt.observability.metrics_collector import StorageMetrics

        taken = {name: values.copy() for name, values in self._metrics.items()}
        for name, values in taken.items():
            del self._metrics[name][: len(values)]
        return StorageMetrics(**taken)

    def stats(self) -> dict[str, float]:
        """The counters of chunks; see _chunks.COUNTERS."""
        return self._chunks.counters.values()

    def clear(self) -> None:
        self._store.clear()

    def close(self) -> None:
        self._codec.client.close()
        self._store.close()


def _checked_pages(pool: HostPool, keys: Sequence[str], indices: Any, *, to_write: bool) -> list[Page]:
    """InvalidArgument for another number of indices than the keys have tokens."""
    count = 0 if indices is None else indices.numel()
    if count != len(keys) * pool.page_size:
        raise InvalidArgument(f"{count} indices for {len(keys)} pages of {pool.page_size} tokens")
    return pool.pages(indices, to_write=to_write) if keys else []


def _grouped(values: Iterable[Value], pages: Sequence[Sequence[Any]]) -> list[list[Value]]:
    """One value after another, as many for each page as that has chunks."""
    rest = iter(values)
    return [[next(rest) for _ in page] for page in pages]


def _pages_before(extra_info: Any) -> int | None:
    before = getattr(extra_info, "prefix_keys", None)
    return None if before is None else len(before)
