"""Where keys and values lie in a chunk of vLLM's CPU cache, as its OffloadingConfig and the model's configuration say.

A chunk is a row of the CPU cache: of each worker one slot after the other, in a slot of each layer `blocks_per_chunk`
pages after one another, in a page [heads, tokens, key and value] (layout LBHNC, which vLLM's OffloadingConnector asks
for). The groups of a model that has several lie over each other: a chunk belongs to one of them.
"""

import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .. import InvalidArgument
from .._foreign_memory import ForeignMemory, Pieces
from .._tensors import TensorView
from ._codec import DTYPES, Kind
from ._vllm_jobs import Chunk

# vLLM's names of types of KV caches, besides those of PyTorch.
_FP8 = {"fp8": "float8_e4m3fn", "fp8_e4m3": "float8_e4m3fn", "fp8_e5m2": "float8_e5m2"}
_BY_NAME = {str(dtype).removeprefix("torch."): dtype for dtype in DTYPES if dtype.is_floating_point}


@dataclass(frozen=True)
class Part:
    """One tensor of a chunk: a strided view of the row's bytes, described once for all rows. `shape` and `strides` are
    those of the view, in elements; the tensor of the frame has the shape of `kind`, with the same values in order."""

    name: str
    kind: Kind
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int

    def view(self, row: torch.Tensor) -> torch.Tensor:
        """Of a row [bytes] of uint8."""
        values = row.view(self.kind.dtype)
        return values.as_strided(self.shape, self.strides, values.storage_offset() + self.offset)

    def gather(self, row: torch.Tensor, into: torch.Tensor) -> torch.Tensor:
        """The values, dense, in the first bytes of `into`, of uint8."""
        values = into[: self.kind.size].view(self.kind.dtype).view(self.shape)
        return values.copy_(self.view(row)).view(self.kind.shape)

    def pieces(self, memory: ForeignMemory, row_offset: int) -> TensorView:
        """The values where they stand in a row that begins there, in bytes."""
        size = self.kind.dtype.itemsize
        levels = tuple(zip(self.shape[:-1], (stride * size for stride in self.strides[:-1]), strict=True)) or ((1, 0),)
        pieces = Pieces(memory, row_offset + self.offset * size, self.kind.size, levels)
        return TensorView(DTYPES[self.kind.dtype], self.kind.shape, memoryview(b""), "torch", pieces)

    def scatter(self, row: torch.Tensor, values: torch.Tensor) -> None:
        self.view(row).copy_(values.view(self.shape))


@dataclass(frozen=True)
class Group:
    """The chunks of one group of KV caches. `tokens` is None where the values are no keys and values of tokens: those
    are kept bit for bit."""

    parts: tuple[Part, ...]
    tokens: int | None

    @property
    def kinds(self) -> list[Kind]:
        return [part.kind for part in self.parts]

    @property
    def size(self) -> int:
        """In bytes."""
        return sum(kind.size for kind in self.kinds)


@dataclass(frozen=True)
class RowChunk(Chunk):
    row: int  # of the CPU cache


class Rows:
    """The CPU cache, [chunks, bytes] of uint8, as the memory of a Transfer. `foreign` is the same memory, where a
    daemon may read it: nothing is gathered then."""

    def __init__(self, rows: torch.Tensor, groups: Mapping[int, Group], foreign: ForeignMemory | None = None):
        self._rows = rows
        self._foreign = foreign
        self._groups = groups
        self._of_thread = threading.local()
        self.kinds = {number: {part.name: part.kind for part in group.parts} for number, group in groups.items()}

    def release(self) -> None:
        """Lets go of the rows, which their owner unmaps."""
        if self._foreign is not None:
            self._foreign.close()
        self._rows = torch.empty(0)

    def gather(self, number: int, chunks: Sequence[RowChunk]) -> Sequence[torch.Tensor | TensorView]:
        """In a buffer of the thread's, which is used again: new memory costs its pages, more than the copy."""
        group, at, tensors = self._groups[number], 0, []
        if self._foreign is not None and self._foreign.is_ready():
            width = self._rows.shape[1]
            return [part.pieces(self._foreign, chunk.row * width) for chunk in chunks for part in group.parts]
        buffer = getattr(self._of_thread, "buffer", None)
        if buffer is None or len(buffer) < len(chunks) * group.size:
            self._of_thread.buffer = buffer = torch.empty(len(chunks) * group.size, dtype=torch.uint8)
        for chunk in chunks:
            for part in group.parts:
                tensors.append(part.gather(self._rows[chunk.row], buffer[at:]))
                at += part.kind.size
        return tensors

    def drop_buffers(self) -> None:
        self._of_thread.buffer = None

    def scatter(self, number: int, chunk: RowChunk, tensors: Sequence[torch.Tensor]) -> None:
        for part, tensor in zip(self._groups[number].parts, tensors, strict=True):
            part.scatter(self._rows[chunk.row], tensor)


@dataclass(frozen=True)
class Page:
    """One layer of one block of one worker."""

    heads: int
    tokens: int
    head_dim: int  # of keys, and of values
    dtype: torch.dtype

    @property
    def values(self) -> int:
        return self.heads * self.tokens * 2 * self.head_dim


def groups_of(config: Any, row_bytes: int, head_dims: Sequence[int | None], by_layer: bool) -> dict[int, Group]:
    """Of an OffloadingConfig, by group_id. `head_dims`: channels of a head in each of its groups, None where that is
    not known. Keys and values of all layers are one tensor each, or, `by_layer`, one for each layer."""
    if len(head_dims) != len(config.groups):
        raise InvalidArgument(
            f"head_dim is told for {len(head_dims)} groups of KV caches, and there are {len(config.groups)}"
        )
    found = {}
    for group, head_dim in zip(config.groups, head_dims, strict=True):
        page = _page(config, group, head_dim)
        found[group.group_id] = _whole(config, row_bytes) if page is None else _split(config, group, page, by_layer)
    return found


def _page(config: Any, group: Any, head_dim: int | None) -> Page | None:
    """None where it is not certain that pages are keys and values of heads: where anything adds up to another size than
    vLLM's, and where a worker's pages are another thing than the heads of its rank."""
    parallel, dtype = config.parallel, _dtype(config.model.dtype)
    split = parallel.pp_size * parallel.pcp_size * parallel.dcp_size != 1
    if split or config.canonical_layout or config.replicated_layout or config.kv_cache_layout not in (None, "LBHNC"):
        return None
    # vLLM's attention of keys and values; recurrent states, indexers and convolutions have other names.
    attends = all(name.endswith(".attn") and "linear" not in name for name in group.layer_names)
    if not head_dim or dtype is None or not attends:
        return None
    layers = max(len(other.layer_names) for other in config.groups)
    bytes_of_page, rest = divmod(config.worker_kv_bytes_per_block, layers)
    heads, more = divmod(bytes_of_page, group.tokens_per_block * 2 * head_dim * dtype.itemsize)
    return Page(heads, group.tokens_per_block, head_dim, dtype) if heads and not rest and not more else None


def _dtype(name: str) -> torch.dtype | None:
    return _BY_NAME.get(_FP8.get(name, name))


def _whole(config: Any, row_bytes: int) -> Group:
    """The whole row, as values of the cache's type where they can be: lossless codecs find more in them."""
    dtype = _dtype(config.model.dtype) or torch.uint8
    if row_bytes % dtype.itemsize:
        dtype = torch.uint8
    count = row_bytes // dtype.itemsize
    return Group((Part("state", Kind(dtype, (count,)), (count,), (1,), 0),), None)


def _split(config: Any, group: Any, page: Page, by_layer: bool) -> Group:
    blocks, workers = config.cache.blocks_per_chunk, config.parallel.world_size
    slot = config.worker_kv_bytes_per_block * blocks // page.dtype.itemsize  # values
    content = 2 * page.head_dim
    parts = []
    for name, first, count in _runs(group.layer_names, by_layer):
        shape = (count, workers, page.heads, blocks, page.tokens, page.head_dim)
        strides = (blocks * page.values, slot, page.tokens * content, page.values, content, 1)
        kind = Kind(page.dtype, (count, workers * page.heads, blocks * page.tokens, page.head_dim))
        for side, at in (("key", 0), ("value", page.head_dim)):
            parts.append(Part(f"{name}_{side}", kind, shape, strides, first * blocks * page.values + at))
    return Group(tuple(parts), blocks * page.tokens)


def _runs(names: Sequence[str], by_layer: bool) -> Iterator[tuple[str, int, int]]:
    """Name, first layer, and number of layers of each tensor."""
    if not by_layer:
        yield "layers", 0, len(names)
        return
    numbers = [int(found[1]) if (found := re.search(r"\.(\d+)\.", name)) else -1 for name in names]
    known = -1 not in numbers and len(set(numbers)) == len(numbers)
    for at in range(len(names)):
        yield f"layer_{numbers[at] if known else at}", at, 1


def head_dims_of(config: Any, told: Any, model: Any) -> list[int | None]:
    """For groups_of: what the option `head_dim` says, a number or a list with one for each group, null where that has
    no heads; else the model's configuration, where that says one for all layers."""
    if isinstance(told, list):
        numbers = told
    elif told is not None:
        numbers = [told] * len(config.groups)
    else:
        return [_head_dim(model)] * len(config.groups)
    for number in numbers:
        if number is not None and (type(number) is not int or number <= 0):
            raise InvalidArgument(f"head_dim is a whole number, or a list of them and of null, and not {told!r}")
    return numbers


def _head_dim(model: Any) -> int | None:
    """Of a configuration of transformers; None for one that has latents, or heads of different sizes."""
    fields: Mapping[str, Any] = model.to_dict() if hasattr(model, "to_dict") else {}
    if fields.get("kv_lora_rank"):
        return None
    sizes = {size for name, size in fields.items() if re.fullmatch(r"(\w+_)?head_dim", name) and isinstance(size, int)}
    heads, hidden = fields.get("num_attention_heads"), fields.get("hidden_size")
    if not sizes and isinstance(heads, int) and isinstance(hidden, int) and heads:
        sizes = {hidden // heads}
    return sizes.pop() if len(sizes) == 1 else None
