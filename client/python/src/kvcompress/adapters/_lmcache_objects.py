"""Objects of LMCache as the tensors that they are made of."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .. import InvalidArgument
from ._chunks import Part
from ._codec import DTYPES, Kind

_MOST_AXES = 8


@dataclass(frozen=True)
class Geometry:
    """What LMCache does not tell. `head_dim`: how many channels a head has; 0: all heads count as one. `latents`:
    objects of one plane are latents of MLA; else they may be states of a recurrent layer, and are kept bit for bit.
    `by_layer`: each layer is a tensor of its own."""

    head_dim: int = 0
    latents: bool = False
    by_layer: bool = True

    @staticmethod
    def from_config(config: Any, *, by_layer: bool) -> "Geometry":
        head_dim, latents = config.get("head_dim", 0), config.get("latents", False)
        if type(head_dim) is not int or head_dim < 0:
            raise InvalidArgument(f"head_dim is {head_dim!r}, and not a positive whole number")
        if type(latents) is not bool:
            raise InvalidArgument(f"latents is {latents!r}, and not true or false")
        return Geometry(head_dim, latents, by_layer)


@dataclass(frozen=True)
class Piece:
    """Of an object: all of one tensor, or of keys and values those of some layers."""

    name: str
    tensor: int  # its number
    kind: Kind  # of what `of` gives
    side: int | None = None  # 0: keys or latents, 1: values
    first: int = 0  # layer of the tensor's

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """Where it stands; keys or values as [layers, heads, tokens, head_dim]."""
        if self.side is None:
            return tensor.reshape(-1).view(self.kind.dtype).view(self.kind.shape)
        layers, heads, tokens, size = self.kind.shape
        found = tensor[self.side, self.first : self.first + layers]
        return found.view(layers, tokens, heads, size).transpose(1, 2)


def pieces(shapes: Sequence[Sequence[int]], dtypes: Sequence[torch.dtype], geometry: Geometry) -> list[Piece]:
    """The axes of keys and values are [2, layers, tokens, heads * head_dim], and [1, layers, tokens, size] of what has
    one plane. What is none of these is one piece; of bytes, where frames do not have its type or as many axes, or it
    does not begin where values of its type can."""
    found: list[Piece] = []
    layers = begin = 0
    for number, (shape, dtype) in enumerate(zip(shapes, dtypes, strict=True)):
        sizes = tuple(int(size) for size in shape)
        size = torch.Size(sizes).numel() * dtype.itemsize
        is_typed = dtype in DTYPES and len(sizes) <= _MOST_AXES and begin % dtype.itemsize == 0
        planes = sizes[0] if is_typed and len(sizes) == 4 else 0
        if planes == 2 or (planes == 1 and geometry.latents):
            head_dim = geometry.head_dim if planes == 2 else 0
            found += _layers(number, sizes, dtype, layers, head_dim, 1 if geometry.by_layer else sizes[1])
            layers += sizes[1]
        else:
            kind = Kind(dtype, sizes) if is_typed else Kind(torch.uint8, (size,))
            found.append(Piece(f"tensor_{number}", number, kind))
        begin += size
    return found


def _layers(
    number: int, sizes: tuple[int, ...], dtype: torch.dtype, before: int, head_dim: int, step: int
) -> list[Piece]:
    """`before`: how many layers the tensors before have; `step`: layers of a piece."""
    planes, layers, tokens, size = sizes
    heads = size // head_dim if head_dim and size % head_dim == 0 else 1
    kind = Kind(dtype, (step, heads, tokens, size // max(heads, 1)))
    return [
        Piece(f"layer_{before + first}_{word}", number, kind, side, first)
        for first in range(0, layers, max(step, 1))
        for side, word in enumerate(("key", "value")[:planes])
    ]


def parts(memory: Any, geometry: Geometry) -> list[Part]:
    """Of a MemoryObj, where they stand. InvalidArgument for one without memory."""
    shapes, dtypes = memory.get_shapes(), memory.get_dtypes()
    tensors = _tensors(memory, shapes, dtypes)
    found = pieces(shapes, dtypes, geometry)
    return [Part(piece.name, piece.of(tensors[piece.tensor]), piece.side is None) for piece in found]


def _tensors(memory: Any, shapes: Sequence[Sequence[int]], dtypes: Sequence[torch.dtype]) -> list[torch.Tensor]:
    """Bytes in place of one that LMCache cannot make, because it does not begin where values of its type can."""
    found = []
    begin = 0
    for number, (shape, dtype) in enumerate(zip(shapes, dtypes, strict=True)):
        end = begin + torch.Size(shape).numel() * dtype.itemsize
        if begin % dtype.itemsize:
            tensor = torch.frombuffer(memoryview(memory.byte_array).cast("B"), dtype=torch.uint8)[begin:end]
        else:
            tensor = memory.tensor if len(shapes) == 1 else memory.get_tensor(number)
        if tensor is None:
            raise InvalidArgument("the object has no tensor in memory")
        found.append(tensor)
        begin = end
    return found


def key_text(key: Any) -> str:
    """Of an ObjectKey: all that makes another object of it."""
    return repr([key.model_name, key.kv_rank, key.object_group_id, key.cache_salt, key.chunk_hash.hex()])
