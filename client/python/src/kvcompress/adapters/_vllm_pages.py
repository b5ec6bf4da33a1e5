"""The paged KV caches of a worker in vLLM: what is stored of chunks, between blocks of the cache and host memory."""

import contextlib
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .. import FailedPrecondition
from ._codec import DTYPES, Kind, check_dtype
from ._vllm_groups import Group, is_state, layer_spec
from ._vllm_scheduler import PagedChunk


@dataclass(frozen=True)
class PagedLayer:
    """Keys and values, or latents: a view [blocks, parts, heads, tokens, content] of the cache's memory, in which
    `parts` are the kernel's blocks of each of the engine's. Content is the key, followed by the value."""

    name: str
    view: torch.Tensor
    key_size: int

    def kinds(self, blocks: int) -> dict[str, Kind]:
        """Of the tensors that some blocks become: keys and values [1, heads, tokens, head_dim]."""
        _, parts, heads, tokens, content = self.view.shape
        sizes = [self.key_size, content - self.key_size]
        shapes = [(1, heads, blocks * parts * tokens, size) for size in sizes if size]
        sides = zip(("key", "value"), shapes, strict=False)
        return {f"{self.name}_{side}": Kind(self.view.dtype, shape) for side, shape in sides}

    def split(self, taken: torch.Tensor) -> list[torch.Tensor]:
        """Of blocks of the view."""
        values = taken.permute(2, 0, 1, 3, 4).flatten(1, 3).unsqueeze(0)
        sides = [values[..., : self.key_size], values[..., self.key_size :]]
        return [side for side in sides if side.shape[-1]]

    def join(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        """The blocks that `split` gave these of."""
        _, parts, heads, tokens, content = self.view.shape
        return torch.cat(list(tensors), dim=-1).view(heads, -1, parts, tokens, content).permute(1, 2, 0, 3, 4)


@dataclass(frozen=True)
class StateLayer:
    """States: a view [blocks, bytes] of the cache's memory, of uint8, in which those of `shapes` follow each other."""

    name: str
    view: torch.Tensor
    shapes: Sequence[Kind]

    def kinds(self, blocks: int) -> dict[str, Kind]:
        return {
            f"{self.name}_state_{number}": Kind(kind.dtype, (blocks, *kind.shape))
            for number, kind in enumerate(self.shapes)
        }

    def split(self, taken: torch.Tensor) -> list[torch.Tensor]:
        pieces = torch.split(taken, [kind.size for kind in self.shapes], dim=1)
        return [
            piece.contiguous().view(kind.dtype).view(-1, *kind.shape)
            for piece, kind in zip(pieces, self.shapes, strict=True)
        ]

    def join(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        return torch.cat([tensor.contiguous().view(len(tensor), -1).view(torch.uint8) for tensor in tensors], dim=1)


Layer = PagedLayer | StateLayer


@dataclass(frozen=True)
class LocalChunk(PagedChunk):
    """In a worker: `mark` is an event in a GPU's stream, `taken` is the memory of the blocks of each layer, on the host
    from that event on."""

    mark: Any = None
    taken: tuple[torch.Tensor, ...] = ()


class PagedCaches:
    """The memory of a Transfer. Where the cache is a GPU's, `take` and `mark` have a place among the work of the stream
    of the thread that calls them: chunks are taken as what is before leaves them, and written when that is done."""

    def __init__(self, config: Any, groups: Sequence[Group], caches: Mapping[str, torch.Tensor]):
        """`caches` by the names of their layers. FailedPrecondition for layouts, and InvalidArgument for dtypes that
        are not known."""
        numbers = _numbers(list(caches))
        described = {group.number: config.kv_cache_groups[group.number] for group in groups}
        unknown = set(caches) ^ {name for group in described.values() for name in group.layer_names}
        if unknown:
            raise FailedPrecondition(f"caches and their description are of different layers: {sorted(unknown)[0]}")
        self._device = next(iter(caches.values())).device
        self._layers: dict[int, list[Layer]] = {}
        self.kinds: dict[int, dict[str, Kind]] = {}
        for group in groups:
            names = sorted(described[group.number].layer_names, key=lambda name: numbers[name])
            layers = [
                _layer(
                    f"layer_{numbers[name]}",
                    name,
                    caches[name],
                    layer_spec(described[group.number], name),
                    config.num_blocks,
                )
                for name in names
            ]
            self._layers[group.number] = layers
            self.kinds[group.number] = {
                name: kind for layer in layers for name, kind in layer.kinds(group.kept).items()
            }
        self._of_thread = threading.local()

    @property
    def sizes(self) -> dict[int, int]:
        """Bytes of a chunk of each group."""
        return {number: sum(kind.size for kind in kinds.values()) for number, kinds in self.kinds.items()}

    def is_lossless(self, number: int) -> bool:
        """Whether a group's values are none that a codec may round."""
        layers = self._layers[number]
        return any(isinstance(layer, StateLayer) or not layer.view.dtype.is_floating_point for layer in layers)

    def mark(self, chunk: PagedChunk, taken: Sequence[torch.Tensor] = ()) -> LocalChunk:
        event = torch.cuda.current_stream(self._device).record_event() if self._device.type == "cuda" else None
        return LocalChunk(chunk.key, chunk.start, chunk.block_ids, chunk.first, event, tuple(taken))

    def take(self, number: int, chunk: PagedChunk) -> LocalChunk:
        """With the values, copied without waiting for a GPU."""
        taken = []
        for layer in self._layers[number]:
            pages = _pages_of(layer.view).index_select(0, torch.tensor(chunk.block_ids, device=self._device))
            if self._device.type == "cuda":
                host = torch.empty(pages.shape, dtype=pages.dtype, pin_memory=True)
                pages = host.copy_(pages, non_blocking=True)
            taken.append(pages)
        return self.mark(chunk, taken)

    def gather(self, number: int, chunks: Sequence[LocalChunk]) -> list[torch.Tensor]:
        tensors = []
        for chunk in chunks:
            if chunk.mark is not None:
                chunk.mark.synchronize()
            for layer, pages in zip(self._layers[number], chunk.taken, strict=True):
                shape, strides = layer.view.shape[1:], layer.view.stride()[1:]
                tensors += layer.split(pages.as_strided((len(pages), *shape), (pages.stride(0), *strides)))
        return tensors

    def drop_buffers(self) -> None:
        """Nothing is used again."""

    def scatter(self, number: int, chunk: LocalChunk, tensors: Sequence[torch.Tensor]) -> None:
        """Into the blocks of a chunk, which may be some of those that are stored."""
        at, last = 0, chunk.first + len(chunk.block_ids)
        with self._stream_after(chunk.mark):
            blocks = torch.tensor(chunk.block_ids, device=self._device)
            for layer in self._layers[number]:
                count = len(layer.kinds(1))
                joined = layer.join(tensors[at : at + count])
                layer.view[blocks] = joined[chunk.first : last].to(self._device)
                at += count

    @contextlib.contextmanager
    def _stream_after(self, mark: Any) -> Iterator[None]:
        """Of a GPU a stream of the thread's own, whose work is done at the end."""
        if mark is None:
            yield
            return
        with torch.cuda.device(self._device):
            stream: torch.cuda.Stream | None = getattr(self._of_thread, "stream", None)
            if stream is None:
                self._of_thread.stream = stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
            stream.wait_event(mark)
            with torch.cuda.stream(stream):
                yield
            stream.synchronize()


def _pages_of(view: torch.Tensor) -> torch.Tensor:
    """Of blocks the memory that they lie in, [blocks, values]: to copy it as it lies is several times as fast."""
    span = 1 + sum((size - 1) * stride for size, stride in zip(view.shape[1:], view.stride()[1:], strict=True))
    return view.as_strided((len(view), span), (view.stride(0), 1))


def _numbers(names: Sequence[str]) -> dict[str, int]:
    """Of layers, as their names have them."""
    found = [int(match[1]) if (match := re.search(r"\.(\d+)\.", name)) else -1 for name in names]
    known = len(set(found)) == len(found) and -1 not in found
    return dict(zip(names, found if known else range(len(names)), strict=True))


def _layer(label: str, name: str, cache: torch.Tensor, spec: Any, blocks: int) -> Layer:
    if is_state(spec):
        return StateLayer(label, _pages(name, cache, spec, blocks), _states(spec))
    check_dtype(cache.dtype, f"the KV cache of {name}")
    tokens = spec.block_size
    if cache.ndim != 4 or cache.shape[0] % blocks or cache.shape[0] // blocks * cache.shape[2] != tokens:
        raise FailedPrecondition(
            f"the KV cache of {name} is {list(cache.shape)}, and not [blocks, heads, tokens, content] "
            f"with {blocks} blocks of {tokens} tokens"
        )
    content, key, value = cache.shape[-1], spec.head_size, spec.head_size_v
    # A latent, as of MLA, is no pair of the two.
    is_pair = key and value and key + value == content
    return PagedLayer(label, torch.unflatten(cache, 0, (blocks, -1)), key if is_pair else content)


def _pages(name: str, cache: torch.Tensor, spec: Any, blocks: int) -> torch.Tensor:
    """A view [blocks, bytes] of states, without what pads a page."""
    values = cache.view(torch.uint8) if cache.dtype != torch.uint8 else cache
    size = sum(kind.size for kind in _states(spec))
    if values.shape[0] != blocks or values[0].numel() < size:
        raise FailedPrecondition(
            f"the states of {name} are {list(cache.shape)}, and not {blocks} blocks of {size} bytes at least"
        )
    return values.as_strided((blocks, size), (values.stride(0), 1), values.storage_offset())


def _states(spec: Any) -> list[Kind]:
    """Of a MambaSpec; as bytes where they are of types that frames do not have."""
    kinds = [Kind(dtype, tuple(shape)) for shape, dtype in zip(spec.shapes, spec.dtypes, strict=True)]
    return kinds if all(kind.dtype in DTYPES for kind in kinds) else [Kind(torch.uint8, (sum(k.size for k in kinds),))]
