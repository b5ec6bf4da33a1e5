"""Storage of SGLang's hierarchical cache (HiCache): pages of the host pool as frames on local disk.

Tested with SGLang 0.5.23's own base class and factory, imported without a GPU, and, where SGLang is not installed,
against the signatures of that release, with host pools of its layouts on the CPU. No model has run in SGLang with it.

SGLang loads it by `--hicache-storage-backend dynamic`; see the package's README for the whole configuration.
"""

import logging
from collections.abc import Sequence
from typing import Any

try:
    import torch
    from sglang.srt.mem_cache.hicache_storage import HiCacheStorage
except ImportError as error:
    raise ImportError(
        f"kvcompress.adapters.sglang runs inside SGLang, which cannot be imported here: {error}"
    ) from error

from .. import DataLoss, FailedPrecondition, InvalidArgument, KvCompressError
from ..store import Store, open_store
from ._codec import Codec, Kind, Stored, check_dtype, check_keys, most_packed, pack, unpack

logger = logging.getLogger(__name__)

# Shape of a flat page, and the order of its axes that makes it [sides, layers, heads, tokens, head_dim].
_Split = tuple[tuple[int, ...], tuple[int, ...]]
# The axes of a page of keys and values [2, ...] or latents [1, ...] in each layout of SGLang's host pool, and
# that order.
_LAYOUTS = {
    "layer_first": ("LPHD", (0, 1, 3, 2, 4)),
    "page_first": ("PLHD", (0, 2, 3, 1, 4)),
    "page_first_direct": ("LPHD", (0, 1, 3, 2, 4)),
    "page_head": ("HPLD", (0, 3, 1, 2, 4)),
}
# SGLang's own options in the same object.
_SGLANG_KEYS = {
    "backend_name", "module_path", "class_name", "interface_v1", "prefetch_threshold", "prefetch_timeout_base",
    "prefetch_timeout_per_ki_token", "hicache_storage_pass_prefix_keys", "tp_lcm_size",
}  # fmt: skip


class KvCompressStorage(HiCacheStorage):
    """Pages, flat tensors of the host pool's dtype, by SGLang's hashes of their tokens and of all before them.

    A page of an MHA pool becomes a frame for each layer's keys and values [1, heads, tokens, head_dim], of an MLA pool
    one for each layer's latents [1, 1, tokens, size]; of any other pool, one frame. Where pages stand in their prompt
    SGLang tells with `interface_v1` and `hicache_storage_pass_prefix_keys`; without these codecs take each for the
    first. What cannot be stored or read is logged, and is a miss. A damaged page is removed."""

    def __init__(self, storage_config: Any, kwargs: Any = None):
        extra = dict(storage_config.extra_config or {})
        check_keys(extra, {"capacity_bytes", *_SGLANG_KEYS}, required={"path"})
        self._codec = Codec.from_config(extra)
        if not (extra.get("interface_v1") and extra.get("hicache_storage_pass_prefix_keys")):
            self._codec.check_without_positions()
        self._config = storage_config
        self._options = extra
        self._store: Store | None = None
        self._page = Kind(torch.float16, (0,))
        self._kinds: list[Kind] = []
        self._split: _Split | None = None

    def register_mem_pool_host(self, mem_pool_host: Any) -> None:
        """Before any page: the pool says what its pages look like. InvalidArgument for FP8 and the like."""
        super().register_mem_pool_host(mem_pool_host)
        page = mem_pool_host.get_dummy_flat_data_page()
        check_dtype(page.dtype, "SGLang's KV cache")
        self._page = Kind.of(page)
        self._split = _split(mem_pool_host, page.numel())
        self._kinds = [Kind.of(tensor) for _, tensor in self._tensors(page)]
        self._store = open_store(self._options["path"], self._namespace(), self._options.get("capacity_bytes"))

    def _namespace(self) -> str:
        """Pages of another shard, shape, layout or codec are other pages."""
        config = self._config
        shard = [config.pp_rank, config.pp_size, config.attn_cp_rank, config.attn_cp_size]
        if not config.is_mla_model:  # all ranks hold the same pages there
            shard += [config.tp_rank, config.tp_size]
        parts = ["sglang", config.model_name, shard, getattr(self.mem_pool_host, "layout", ""), self._page, self._kinds]
        return repr([*parts, self._codec.text])

    def _tensors(self, page: torch.Tensor) -> list[tuple[str, torch.Tensor]]:
        """Views of a flat page, by name."""
        if self._split is None:
            return [("page", page)]
        shape, order = self._split
        layers = page.view(shape).permute(order).unsqueeze(2)
        return [
            (f"layer_{index}_{side}", layers[number, index])
            for index in range(layers.shape[1])
            for number, side in enumerate(("key", "value")[: layers.shape[0]])
        ]

    def _open(self) -> Store:
        if self._store is None:
            raise FailedPrecondition("no host pool is registered")
        return self._store

    # What SGLang calls.

    def exists(self, key: str) -> bool:
        return self._open().exists(key)

    def set(self, key: str, value: Any = None, target_location: Any = None, target_sizes: Any = None) -> bool:
        return self.batch_set([key], [value])

    def get(self, key: str, target_location: Any = None, target_sizes: Any = None) -> torch.Tensor | None:
        return self.batch_get([key], [target_location])[0]

    def batch_set(
        self, keys: Sequence[str], values: Any = None, target_locations: Any = None, target_sizes: Any = None
    ) -> bool:
        """True if all of the pages are stored now; those that were already are not written again."""
        return all(self._write(keys, list(values or [])))

    def batch_get(
        self, keys: Sequence[str], target_locations: Any = None, target_sizes: Any = None
    ) -> list[torch.Tensor | None]:
        """Pages, in `target_locations` where these are given, and None for each miss."""
        buffers = [
            self.mem_pool_host.get_dummy_flat_data_page() if buffer is None else buffer
            for buffer in target_locations or [None] * len(keys)
        ]
        return [buffer if found else None for buffer, found in zip(buffers, self._read(keys, buffers), strict=True)]

    def batch_set_v1(self, keys: Sequence[str], host_indices: torch.Tensor, extra_info: Any = None) -> list[bool]:
        pages = [self.mem_pool_host.get_data_page(index) for index in self._pages(keys, host_indices)]
        before = getattr(extra_info, "prefix_keys", None)
        return self._write(keys, pages, None if before is None else len(before))

    def batch_get_v1(self, keys: Sequence[str], host_indices: torch.Tensor, extra_info: Any = None) -> list[bool]:
        indices = self._pages(keys, host_indices)
        pages = self.batch_get(keys)
        for index, page in zip(indices, pages, strict=True):
            if page is not None:
                self.mem_pool_host.set_from_flat_data_page(index, page)
        return [page is not None for page in pages]

    def clear(self) -> None:
        self._open().clear()

    def close(self) -> None:
        self._codec.client.close()

    # The same for all of them.

    def _pages(self, keys: Sequence[str], host_indices: torch.Tensor) -> list[int]:
        """The first token of each page."""
        size = self.mem_pool_host.page_size
        if host_indices.numel() != len(keys) * size:
            raise InvalidArgument(f"{host_indices.numel()} indices for {len(keys)} pages of {size} tokens")
        return [int(index) for index in host_indices[::size]]

    def _write(self, keys: Sequence[str], pages: Sequence[torch.Tensor], before: int | None = None) -> list[bool]:
        """`before`: the number of pages of the prompt that come before these, where it is known."""
        store = self._open()
        try:
            new, starts = [], []
            for number, (key, page) in enumerate(zip(keys, pages, strict=True)):
                if not store.exists(key):
                    new.append((key, self._tensors(self._checked(page))))
                    starts.append(0 if before is None else (before + number) * self.mem_pool_host.page_size)
            count = len(self._kinds)
            frames = self._codec.compress(
                [tensor for _, tensors in new for tensor in tensors], [start for start in starts for _ in range(count)]
            )
            payloads = (pack(frames[at : at + count]) for at in range(0, len(frames), count))
            stored = store.put_many((key, payload) for (key, _), payload in zip(new, payloads, strict=True))
            missing = {key for (key, _), done in zip(new, stored, strict=True) if not done}
            return [key not in missing for key in keys]
        except KvCompressError as error:
            logger.warning("%d pages are not stored: %s", len(keys), error)
            return [store.exists(key) for key in keys]

    def _checked(self, page: torch.Tensor) -> torch.Tensor:
        page = page.reshape(-1)
        if Kind.of(page) != self._page:
            raise InvalidArgument(f"a page is {Kind.of(page)}, and those of the pool are {self._page}")
        return page

    def _read(self, keys: Sequence[str], buffers: Sequence[torch.Tensor]) -> list[bool]:
        """Which of the pages were found; they are in their buffers then."""
        found: list[bool] = []
        payloads: list[tuple[str, torch.Tensor, list[Stored]]] = []
        copies: list[tuple[torch.Tensor, torch.Tensor]] = []
        for key, buffer in zip(keys, buffers, strict=True):
            frames = self._load(key)
            found.append(frames is not None)
            if frames is not None:
                flat = self._checked(buffer)
                payloads.append((key, flat, frames))
                if flat.data_ptr() != buffer.data_ptr():  # a copy, of a buffer with gaps
                    copies.append((buffer, flat))
        decoded = iter(self._decode(payloads))
        for buffer, flat in copies:
            buffer.copy_(flat.view(buffer.shape))
        return [hit and next(decoded) for hit in found]

    def _load(self, key: str) -> list[Stored] | None:
        store = self._open()
        try:
            payload = store.get(key, most_packed(self._kinds))
            return None if payload is None else unpack(payload, self._kinds)
        except DataLoss as error:
            self._lost(key, error)
            return None

    def _decode(self, payloads: Sequence[tuple[str, torch.Tensor, list[Stored]]]) -> list[bool]:
        """On one stream; where that fails, page by page, for the others' sake."""
        if not payloads:
            return []
        try:
            frames = [frame for _, _, page in payloads for frame in page]
            tensors = iter(self._codec.decompress(frames))
            for _, buffer, _ in payloads:
                for _, part in self._tensors(buffer):
                    part.copy_(next(tensors))
            return [True] * len(payloads)
        except DataLoss as error:
            if len(payloads) > 1:
                return [self._decode([payload])[0] for payload in payloads]
            self._lost(payloads[0][0], error)
        except KvCompressError as error:
            logger.warning("%d pages are not read: %s", len(payloads), error)
        return [False] * len(payloads)

    def _lost(self, key: str, error: Exception) -> None:
        logger.warning("page %s is lost: %s", key, error)
        self._open().discard(key)


def _split(pool: Any, elements: int) -> _Split | None:
    """Of a page of keys and values, or of MLA's latents; None for another kind of pool."""
    layout = _LAYOUTS.get(getattr(pool, "layout", ""))
    names = {"L": "layer_num", "P": "page_size", "H": "head_num", "D": "head_dim"}
    sizes = {axis: getattr(pool, name, None) for axis, name in names.items()}
    latent, turned = getattr(pool, "kv_lora_rank", None), getattr(pool, "qk_rope_head_dim", None)
    sides = 2
    if isinstance(latent, int) and isinstance(turned, int):
        sides, sizes["H"], sizes["D"] = 1, 1, latent + turned
    if layout is None or not all(isinstance(size, int) for size in sizes.values()):
        return None
    shape = (sides, *(int(sizes[axis] or 0) for axis in layout[0]))
    return (shape, layout[1]) if torch.Size(shape).numel() == elements else None
