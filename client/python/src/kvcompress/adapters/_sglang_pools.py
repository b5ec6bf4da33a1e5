"""Host pools of SGLang's hierarchical cache: their pages as tensors, where they stand."""

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from .. import InvalidArgument
from ._chunks import Chunk, Part

# Of each layout of SGLang's: the axes of a block of keys or values, and the order that makes it
# [layers, heads, tokens, head_dim].
_LAYOUTS = {
    "layer_first": ("LPHD", (0, 2, 1, 3)),
    "page_first": ("PLHD", (1, 2, 0, 3)),
    "page_first_direct": ("LPHD", (0, 2, 1, 3)),
    "page_head": ("HPLD", (2, 0, 1, 3)),
}
_COMPRESSED = {torch.float16, torch.bfloat16, torch.float32, torch.float8_e4m3fn, torch.float8_e5m2}


@dataclass(frozen=True)
class Ranks:
    """Of the process among those that hold a model together. `common`: of all ranks of tensor parallelism that a page
    is the same on."""

    common: str
    tensor: int
    tensors: int
    are_replicas: bool = False  # all ranks of tensor parallelism hold the same latents
    split: int = 1  # a page's heads become so many chunks, which fewer heads a rank find again


@dataclass(frozen=True)
class Page:
    """Blocks of bytes, and what must be called after they were written into."""

    blocks: Sequence[torch.Tensor]
    written: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class _Geometry:
    """Of keys and values, or of MLA's latents, which are keys of one head. A page has one block for each side."""

    layout: str
    layers: int
    tokens: int
    heads: int
    sizes: tuple[int, ...]  # of a head: of keys and of values, or of keys alone

    def block_sizes(self, itemsize: int, layers: int) -> list[int]:
        """Bytes of so many layers, of each side."""
        return [layers * self.tokens * self.heads * size * itemsize for size in self.sizes]

    def view(self, block: torch.Tensor, side: int) -> torch.Tensor:
        """[layers, heads, tokens, head_dim] of a block of values."""
        axes, order = _LAYOUTS[self.layout]
        extents = {"L": -1, "P": self.tokens, "H": self.heads, "D": self.sizes[side]}
        return block.view([extents[axis] for axis in axes]).permute(order)


class HostPool:
    """What SGLang registered as `name`. Keys and values, and latents, are a tensor [layers, heads, tokens, head_dim]
    for each side, or, `by_layer`, for each layer and side. Everything else (the states of Mamba, indexers, bytes whose
    meaning is not told) is kept bit for bit.

    `fp8` is the type of values that the pool holds as bytes, where it does. InvalidArgument for heads that cannot be
    split as asked."""

    def __init__(self, name: str, pool: Any, ranks: Ranks, fp8: torch.dtype | None = None, *, by_layer: bool = False):
        self._name, self._pool, self._by_layer = name, pool, by_layer
        self.page_size = int(getattr(pool, "page_size", 1) or 1)
        dtype: Any = getattr(pool, "dtype", None)
        self._dtype: Any = fp8 if fp8 is not None and dtype == torch.uint8 else dtype
        self._first_layer = int(getattr(pool, "start_layer", 0) or 0)
        self._addresses, self._sizes, self.has_pointers = self._first_page()
        self._geometry = self._find_geometry()
        self._shards = self._find_shards(ranks)
        self.page_bytes = sum(self._sizes)

    # Pages.

    def pages(self, indices: torch.Tensor, *, to_write: bool) -> list[Page]:
        """Where the pages of these tokens stand; InvalidArgument for indices that are no whole pages. Of pools without
        pointers copies: of what they hold, or, `to_write`, blank ones that go back to the pool."""
        if indices.numel() % self.page_size:
            raise InvalidArgument(f"{indices.numel()} indices are no pages of {self.page_size} tokens")
        if self.has_pointers:
            pointers, sizes = self._pool.get_page_buffer_meta(indices)
            count = len(self._sizes)
            blocks = list(zip(map(int, pointers), map(int, sizes), strict=True))
            return [Page(self._memory(blocks[at : at + count])) for at in range(0, len(blocks), count)]
        first = [int(index) for index in indices[:: self.page_size]]
        return [self._blank_page(index) if to_write else self._copied_page(index) for index in first]

    def flat_page(self, page: torch.Tensor) -> Page:
        """Of SGLang's one flat tensor, which holds all keys before all values."""
        flat = _bytes(page)
        geometry = self._geometry
        sizes = [flat.numel()] if geometry is None else geometry.block_sizes(self._itemsize(), geometry.layers)
        if flat.numel() != self.page_bytes:
            raise InvalidArgument(f"a page has {flat.numel()} bytes, and those of the pool {self.page_bytes}")
        return Page(torch.split(flat, sizes))

    def _memory(self, blocks: Sequence[tuple[int, int]]) -> list[torch.Tensor]:
        """Of the addresses and sizes of a page's blocks; those of the layers of one side, where each has its own, are
        rows of one tensor."""
        if self._geometry is None or len(blocks) == len(self._geometry.sizes):
            return [_memory(address, size) for address, size in blocks]
        sides = len(self._geometry.sizes)
        found = []
        for side in range(sides):
            (first, size), (last, _), step = (
                blocks[side],
                blocks[side - sides],
                blocks[side + sides][0] - blocks[side][0],
            )
            span = _memory(first, last + size - first)
            found.append(span.as_strided((self._geometry.layers, size), (step, 1)))
        return found

    def _blank_page(self, index: int) -> Page:
        page = self._pool.get_dummy_flat_data_page()
        return Page(self.flat_page(page).blocks, lambda: self._pool.set_from_flat_data_page(index, page))

    def _copied_page(self, index: int) -> Page:
        return self.flat_page(self._pool.get_data_page(index))

    # Chunks of pages.

    def keys(self, page_hash: str, *, flat: bool = False) -> list[str]:
        """Of the chunks of one page: another shard, type, geometry or order of bytes makes another chunk."""
        geometry = self._geometry
        if geometry is None:
            of_pages: list[Any] = [self._sizes, "flat" if flat else ""]
        else:
            of_pages = [
                self._by_layer,
                geometry.layers,
                geometry.tokens,
                geometry.heads // len(self._shards),
                geometry.sizes,
            ]
        kind = [self._name, str(self._dtype), self._first_layer, of_pages]
        return [f"{kind} {shard} {page_hash}" for shard, _ in self._shards]

    def chunks(self, page_hash: str, page: Page, start: int = 0, *, flat: bool = False) -> list[Chunk]:
        parts = self._parts(page.blocks, start)
        return [
            Chunk(key, parts if heads is None else [replace(part, tensor=part.tensor[:, heads]) for part in parts])
            for key, (_, heads) in zip(self.keys(page_hash, flat=flat), self._shards, strict=True)
        ]

    def _parts(self, blocks: Sequence[torch.Tensor], start: int) -> list[Part]:
        geometry = self._geometry
        if geometry is None:
            return [Part(f"{self._name}_{number}", block, exact=True) for number, block in enumerate(blocks)]
        views = [geometry.view(block.view(self._dtype), side) for side, block in enumerate(blocks)]
        step = 1 if self._by_layer else geometry.layers
        return [
            Part(f"layer_{self._first_layer + layer}_{word}", view[layer : layer + step], start=start)
            for layer in range(0, geometry.layers, step)
            for word, view in zip(("key", "value"), views, strict=False)
        ]

    # What the pool says of itself.

    def _itemsize(self) -> int:
        return int(self._dtype.itemsize)

    def _first_page(self) -> tuple[list[int], list[int], bool]:
        """Addresses and sizes of the blocks of the first page, and whether the pool points to blocks. SGLang asks its
        pools in the same way."""
        try:
            meta = self._pool.get_page_buffer_meta(torch.zeros(self.page_size, dtype=torch.int64))
        except (AttributeError, NotImplementedError, ValueError):
            return [0], [_bytes(self._pool.get_dummy_flat_data_page()).numel()], False
        return [int(address) for address in meta[0]], [int(size) for size in meta[1]], True

    def _find_geometry(self) -> _Geometry | None:
        """That of which the blocks have the sizes; None for another kind of pool."""
        pool = self._pool
        layout, layers = getattr(pool, "layout", ""), getattr(pool, "layer_num", None)
        lora, turned = getattr(pool, "kv_lora_rank", None), getattr(pool, "qk_rope_head_dim", None)
        heads, size = getattr(pool, "head_num", None), getattr(pool, "head_dim", None)
        if isinstance(lora, int) and isinstance(turned, int):
            heads = 1
            candidates: list[tuple[Any, ...]] = [(lora + turned,)]
        else:
            candidates = [(size, getattr(pool, "v_head_dim", size)), (size,)]
        if self._dtype not in _COMPRESSED or layout not in _LAYOUTS or not isinstance(layers, int):
            return None
        for sizes in candidates:
            if not all(isinstance(number, int) for number in (heads, *sizes)):
                continue
            found = _Geometry(layout, layers, self.page_size, int(heads or 0), sizes)
            whole = found.block_sizes(self._itemsize(), layers)
            layered = found.block_sizes(self._itemsize(), 1) * layers
            is_flat = not self.has_pointers and self._sizes == [sum(whole)]
            if self._sizes == whole or is_flat or (self._sizes == layered and self._has_even_layers(len(sizes))):
                return found
        return None

    def _has_even_layers(self, sides: int) -> bool:
        """Whether a layer's block of one side comes as far after that of the layer before as everywhere."""
        at = self._addresses
        steps = {(number % sides, at[number + sides] - at[number]) for number in range(len(at) - sides)}
        return len(steps) == sides and all(step > 0 for _, step in steps)

    def _find_shards(self, ranks: Ranks) -> list[tuple[str, slice | None]]:
        """The name of each, the same on all ranks that hold it, and its heads. The states of Mamba, and keys and values
        of a draft model, are those of a rank, too, where all ranks hold the same latents."""
        has_heads = self._geometry is not None and len(self._geometry.sizes) == 2
        if ranks.are_replicas and not has_heads and self._name != "mamba":
            return [(ranks.common, None)]
        if not has_heads or ranks.are_replicas or ranks.split == 1:
            return [(f"{ranks.common} tp{ranks.tensor}/{ranks.tensors}", None)]
        count, rest = divmod(self._geometry.heads if self._geometry else 0, ranks.split)
        if rest or not count:
            raise InvalidArgument(f"a rank's heads cannot be split into {ranks.split} parts of the same size")
        first, total = ranks.tensor * ranks.split, ranks.tensors * ranks.split
        return [
            (f"{ranks.common} tp{first + part}/{total}", slice(part * count, (part + 1) * count))
            for part in range(ranks.split)
        ]


def _bytes(page: torch.Tensor) -> torch.Tensor:
    return page.reshape(-1).contiguous().view(torch.uint8)


def _memory(address: int, size: int) -> torch.Tensor:
    """Bytes that a pool points to, and holds longer than any call."""
    return torch.frombuffer((ctypes.c_ubyte * size).from_address(address), dtype=torch.uint8)
