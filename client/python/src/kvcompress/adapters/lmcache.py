"""Serde of LMCache: the objects of a second-level cache (disk, S3, ...) as frames.

Tested with LMCache 0.5.6 itself, whose Python runs without a GPU: its registry, its thread pool and its memory objects;
and, where it is not installed, against the signatures of that release.

LMCache has no option that imports a serde, so its server is started by this module, which registers the serde
"kvcompress" and hands everything on: `python -m kvcompress.adapters.lmcache server ...`. See the package's README.
"""

from collections.abc import Mapping, Sequence
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


def _parts(shapes: Sequence[Sequence[int]]) -> list[tuple[str, int, tuple[int, int] | None, tuple[int, ...]]]:
    """What an object of LMCache consists of: name, number of the tensor, index in its first two axes, shape. The axes
    of keys and values are [2, layers, tokens, heads * head_dim], and [1, layers, tokens, size] for MLA; a tensor of
    another rank is one part. The heads are not told, so all of them are one of that size."""
    parts: list[tuple[str, int, tuple[int, int] | None, tuple[int, ...]]] = []
    layers = 0
    for number, shape in enumerate(shapes):
        if len(shape) == 4 and shape[0] in (1, 2):
            for layer in range(shape[1]):
                for side, word in enumerate(("key", "value")[: shape[0]]):
                    name = f"layer_{layers + layer}_{word}"
                    parts.append((name, number, (side, layer), (1, 1, int(shape[2]), int(shape[3]))))
            layers += shape[1]
        else:
            parts.append((f"tensor_{number}", number, None, tuple(int(size) for size in shape)))
    return parts


def _kinds(shapes: Sequence[Sequence[int]], dtypes: Sequence[torch.dtype]) -> list[tuple[str, Kind]]:
    return [(name, Kind(dtypes[number], shape)) for name, number, _, shape in _parts(shapes)]


def _views(memory: Any) -> list[tuple[str, torch.Tensor]]:
    """The parts of a MemoryObj, where they stand."""
    shapes = memory.get_shapes()
    tensors = [memory.tensor] if len(shapes) == 1 else [memory.get_tensor(number) for number in range(len(shapes))]
    if any(tensor is None for tensor in tensors):
        raise InvalidArgument("the object has no tensor in memory")
    for tensor in tensors:
        check_dtype(tensor.dtype, "LMCache's object")
    return [
        (name, tensors[number].view(shape) if index is None else tensors[number][index].view(shape))
        for name, number, index, shape in _parts(shapes)
    ]


class KvCompressSerializer(Serializer):
    """Calls wait in gRPC, which lets other threads of Python run."""

    def __init__(self, codec: Codec):
        self._codec = codec
        self._estimates: dict[Any, int] = {}

    def serialize(self, src: Any, dst: Any, key: Any = None) -> int:
        """Bytes written to the front of `dst`, which tell their own number. Children of KvCompressError."""
        payload = pack(self._codec.compress(_views(src)))
        buffer = memoryview(dst.byte_array).cast("B")
        if len(payload) > len(buffer):
            raise InvalidArgument(f"{len(payload)} bytes do not fit into {len(buffer)}")
        buffer[: len(payload)] = payload
        return len(payload)

    def estimate_serialized_size(self, layout_desc: Any) -> int:
        """Bytes that no payload of this layout passes, by the daemon's own account: that of intN and raw reaches it.
        Without a daemon it is a bound of ours, some times larger. LMCache has nothing to catch an error here with, so
        what cannot be compressed is refused by `serialize`."""
        named = _kinds(layout_desc.shapes, layout_desc.dtypes)
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
    def __init__(self, codec: Codec):
        self._codec = codec

    def deserialize(self, src: Any, dst: Any, key: Any = None) -> None:
        """`src` may be longer than what was stored. DataLoss for a payload that is damaged or of another layout; `dst`
        is then as it was."""
        views = _views(dst)
        kinds = [Kind.of(view) for _, view in views]
        tensors = self._codec.decompress(unpack(memoryview(src.byte_array), kinds, padded=True))
        for (_, view), tensor in zip(views, tensors, strict=True):
            view.copy_(tensor)


def create(config: Mapping[str, Any]) -> AsyncSerdeProcessor:
    """Of the keys beside `type` in an L2 adapter's `serde` object."""
    check_keys(config, {"max_workers"})
    codec = Codec.from_config(config)
    workers = int(config.get("max_workers", 4))
    return AsyncSerdeProcessor(KvCompressSerializer(codec), KvCompressDeserializer(codec), max_workers=workers)


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
