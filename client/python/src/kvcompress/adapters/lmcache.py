"""Serde of LMCache: the objects of a second-level cache (disk, S3, ...) as frames.

Tested with LMCache 0.5.6 itself, whose Python runs without a GPU: its registry, its thread pool and its memory objects;
and, where it is not installed, against the signatures of that release.

LMCache has no option that imports a serde, so its server is started by this module, which registers the serde
"kvcompress" and hands everything on: `python -m kvcompress.adapters.lmcache server ...`. See the package's README.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

try:
    import torch
    from lmcache.v1.distributed.serde import (
        AsyncSerdeProcessor,
        Deserializer,
        Serializer,
        get_registered_serde_types,
        register_serde_factory,
    )
except ImportError as error:
    raise ImportError(f"kvcompress.adapters.lmcache needs LMCache 0.5 ({error}): pip install lmcache") from error

from .. import InvalidArgument, KvCompressError
from ._codec import DTYPES, Codec, Kind, check_dtype, check_keys, most_packed, pack, packed_size, unpack

NAME = "kvcompress"


@dataclass(frozen=True)
class _Part:
    """Of an object of LMCache: all of one tensor of another rank, or of keys and values one layer's."""

    name: str
    tensor: int  # its number
    shape: tuple[int, ...]  # [tokens, heads, head_dim] of keys or values
    layer: tuple[int, int] | None = None  # its index in the tensor's first two axes

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """Where it stands; keys or values as [1, heads, tokens, head_dim]."""
        if self.layer is None:
            return tensor.view(self.shape)
        return tensor[self.layer].view(self.shape).transpose(0, 1).unsqueeze(0)

    def kind(self, dtype: torch.dtype) -> Kind:
        """Of what `of` gives."""
        if self.layer is None:
            return Kind(dtype, self.shape)
        tokens, heads, size = self.shape
        return Kind(dtype, (1, heads, tokens, size))


def _parts(shapes: Sequence[Sequence[int]], head_dim: int) -> list[_Part]:
    """The axes of keys and values are [2, layers, tokens, heads * head_dim], and [1, layers, tokens, size] for MLA.
    LMCache does not tell the heads: without a `head_dim` all of them are one of that size."""
    parts: list[_Part] = []
    layers = 0
    for number, shape in enumerate(shapes):
        if len(shape) == 4 and shape[0] in (1, 2):
            heads = shape[3] // head_dim if head_dim and shape[0] == 2 and shape[3] % head_dim == 0 else 1
            for layer in range(shape[1]):
                for side, word in enumerate(("key", "value")[: shape[0]]):
                    split = (int(shape[2]), heads, int(shape[3]) // max(heads, 1))
                    parts.append(_Part(f"layer_{layers + layer}_{word}", number, split, (side, layer)))
            layers += shape[1]
        else:
            parts.append(_Part(f"tensor_{number}", number, tuple(int(size) for size in shape)))
    return parts


def _views(memory: Any, head_dim: int) -> list[tuple[str, torch.Tensor]]:
    """The parts of a MemoryObj, where they stand."""
    shapes = memory.get_shapes()
    tensors = [memory.tensor] if len(shapes) == 1 else [memory.get_tensor(number) for number in range(len(shapes))]
    if any(tensor is None for tensor in tensors):
        raise InvalidArgument("the object has no tensor in memory")
    for tensor in tensors:
        check_dtype(tensor.dtype, "LMCache's object")
    return [(part.name, part.of(tensors[part.tensor])) for part in _parts(shapes, head_dim)]


class KvCompressSerializer(Serializer):
    """Calls wait in gRPC, which lets other threads of Python run."""

    def __init__(self, codec: Codec, head_dim: int = 0):
        self._codec = codec
        self._head_dim = head_dim
        self._estimates: dict[Any, int] = {}

    def serialize(self, src: Any, dst: Any, key: Any = None) -> int:
        """Bytes written to the front of `dst`, which tell their own number. Children of KvCompressError."""
        payload = pack(self._codec.compress(_views(src, self._head_dim)))
        buffer = memoryview(dst.byte_array).cast("B")
        if len(payload) > len(buffer):
            raise InvalidArgument(f"{len(payload)} bytes do not fit into {len(buffer)}")
        buffer[: len(payload)] = payload
        return len(payload)

    def estimate_serialized_size(self, layout_desc: Any) -> int:
        """Bytes that no payload of this layout passes, by the daemon's own account: that of intN and raw reaches it.
        Without a daemon it is a bound of ours, some times larger. LMCache has nothing to catch an error here with, so
        what cannot be compressed is refused by `serialize`."""
        parts = _parts(layout_desc.shapes, self._head_dim)
        named = [(part.name, part.kind(layout_desc.dtypes[part.tensor])) for part in parts]
        layout = tuple(kind for _, kind in named)
        if layout not in self._estimates:
            if any(kind.dtype not in DTYPES for kind in layout):
                return most_packed(layout)
            try:
                self._estimates[layout] = packed_size(self._codec.most_bytes(named))
            except KvCompressError:
                return most_packed(layout)
        return self._estimates[layout]


class KvCompressDeserializer(Deserializer):
    def __init__(self, codec: Codec, head_dim: int = 0):
        self._codec = codec
        self._head_dim = head_dim

    def deserialize(self, src: Any, dst: Any, key: Any = None) -> None:
        """`src` may be longer than what was stored. DataLoss for a payload that is damaged or of another layout; `dst`
        is then as it was."""
        views = _views(dst, self._head_dim)
        kinds = [Kind.of(view) for _, view in views]
        tensors = self._codec.decompress(unpack(memoryview(src.byte_array), kinds, padded=True))
        for (_, view), tensor in zip(views, tensors, strict=True):
            view.copy_(tensor)


def create(config: Mapping[str, Any]) -> AsyncSerdeProcessor:
    """Of the keys beside `type` in an L2 adapter's `serde` object."""
    check_keys(config, {"max_workers", "head_dim"})
    codec = Codec.from_config(config)
    codec.check_without_positions()
    workers, head_dim = int(config.get("max_workers", 4)), config.get("head_dim", 0)
    if type(head_dim) is not int or head_dim < 0:
        raise InvalidArgument(f"head_dim is {head_dim!r}, and not a positive whole number")
    if codec.rotary is not None and not head_dim and not codec.rotary.offset:
        raise InvalidArgument("rotary needs head_dim, too: LMCache does not tell where a head ends")
    return AsyncSerdeProcessor(
        KvCompressSerializer(codec, head_dim), KvCompressDeserializer(codec, head_dim), max_workers=workers
    )


def register() -> None:
    """Makes LMCache know the serde; again is no error."""
    if NAME not in get_registered_serde_types():
        register_serde_factory(NAME, create)


def main() -> Any:
    """LMCache's own command line, with the serde registered."""
    from lmcache.cli.main import main as run

    register()
    return run()


if __name__ == "__main__":
    main()
