"""The serde of LMCache: objects of a second-level cache of LMCache's own (disk, S3, ...) as frames."""

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

from lmcache.v1.distributed.serde import AsyncSerdeProcessor, Deserializer, Serializer

from .. import DataLoss, InvalidArgument, KvCompressError
from ._chunks import Part
from ._codec import Codec, Kind, check_keys, most_packed, pack, packed_size, unpack
from ._counters import Counters
from ._fingerprint import FINGERPRINT_BYTES, fingerprint
from ._lmcache_metrics import publish
from ._lmcache_objects import Geometry, key_text, parts, pieces

logger = logging.getLogger(__name__)

# Objects that went through or failed, their bytes before and after, and seconds.
COUNTERS = (
    "serialized", "unserialized", "deserialized", "undeserialized", "tensor_bytes", "frame_bytes", "serialize_seconds",
    "deserialize_seconds",
)  # fmt: skip


class KvCompressSerializer(Serializer):
    """Calls wait in gRPC, which lets other threads of Python run. With `padded_to` payloads have this part of their
    object's bytes, whatever the codec makes of it; what does not fit is an error."""

    def __init__(self, codec: Codec, geometry: Geometry, counters: Counters, padded_to: float | None = None):
        self._codec = codec
        self._geometry = geometry
        self._counters = counters
        self._padded_to = padded_to
        self._estimates: dict[Any, int] = {}
        self._has_warned = False

    def serialize(self, src: Any, dst: Any, key: Any) -> int:
        """Bytes written to the front of `dst`, which tell their own number. Children of KvCompressError."""
        began = time.perf_counter()
        try:
            size = self._write(src, dst, key)
        except KvCompressError:
            self._counters.add(unserialized=1)
            raise
        self._counters.add(
            serialized=1, tensor_bytes=src.get_size(), frame_bytes=size, serialize_seconds=time.perf_counter() - began
        )
        return size

    def _write(self, src: Any, dst: Any, key: Any) -> int:
        found = parts(src, self._geometry)
        specs = ["lossless" if part.exact else None for part in found]
        named = [(part.name, part.tensor) for part in found]
        pieces = pack(self._codec.compress(named, specs=specs, fingerprints=_fingerprints(key, found)))
        buffer, size = memoryview(dst.byte_array).cast("B"), sum(map(len, pieces))
        if size > len(buffer):
            raise InvalidArgument(f"{size} bytes do not fit into {len(buffer)}")
        if self._padded_to is None and size < len(buffer) and not self._has_warned:
            self._has_warned = True
            logger.warning(
                "payloads of this codec are shorter than was estimated: misses of LMCache's fs, valkey, bigtable and "
                "hfbucket; use padded_to, or intN with on_nonfinite 'error', or the L2 plugin in place of the serde"
            )
        at = 0
        for piece in pieces:
            buffer[at : at + len(piece)] = piece
            at += len(piece)
        if self._padded_to is None:
            return size
        buffer[size:] = bytes(len(buffer) - size)
        return len(buffer)

    def estimate_serialized_size(self, layout_desc: Any) -> int:
        """Bytes that no payload of this layout passes, by the daemon's own account: that of intN and raw reaches it.
        Without a daemon it is a bound of ours, some times larger. Nothing is refused. With `padded_to` it is that."""
        layout = (tuple(map(tuple, layout_desc.shapes)), tuple(layout_desc.dtypes))
        if layout not in self._estimates:
            found = pieces(*layout, self._geometry)
            if self._padded_to is not None:
                return int(self._padded_to * sum(piece.kind.size for piece in found))
            try:
                most = self._codec.most_bytes(
                    [(piece.name, piece.kind) for piece in found],
                    ["lossless" if piece.side is None else None for piece in found],
                    FINGERPRINT_BYTES,
                )
            except KvCompressError:
                return most_packed([piece.kind for piece in found])
            self._estimates[layout] = packed_size(most)
        return self._estimates[layout]


class KvCompressDeserializer(Deserializer):
    def __init__(self, codec: Codec, geometry: Geometry, counters: Counters):
        self._codec = codec
        self._geometry = geometry
        self._counters = counters

    def deserialize(self, src: Any, dst: Any, key: Any) -> None:
        """`src` may be longer than what was stored. DataLoss for a payload that is damaged or of another layout,
        FingerprintMismatch for one that was stored under another key; what `dst` holds is undefined then."""
        began = time.perf_counter()
        try:
            found = parts(dst, self._geometry)
            frames = unpack(memoryview(src.byte_array), [Kind.of(part.tensor) for part in found], padded=True)
            targets = [part.tensor for part in found]
            self._codec.decompress_into(targets, frames, _fingerprints(key, found))
        except KvCompressError as error:
            self._counters.add(undeserialized=1)
            if isinstance(error, InvalidArgument):  # bytes of the padding are taken for the last frame's
                raise DataLoss(str(error)) from None
            raise
        self._counters.add(deserialized=1, deserialize_seconds=time.perf_counter() - began)


def _fingerprints(key: Any, found: Sequence[Part]) -> list[bytes]:
    return [fingerprint("lmcache", key_text(key), part.name) for part in found]


def create(config: Mapping[str, Any]) -> AsyncSerdeProcessor:
    """Of the keys beside `type` in an L2 adapter's `serde` object."""
    check_keys(config, {"max_workers", "head_dim", "latents", "padded_to"})
    padded_to = config.get("padded_to")
    if padded_to is not None and not (type(padded_to) in (int, float) and 0 < padded_to <= 2):
        raise InvalidArgument(f"padded_to is {padded_to!r}, and no part of an object's bytes, such as 0.75")
    codec = codec_of(config)
    geometry = Geometry.from_config(config, by_layer=codec.tells_layers_apart)
    counters = Counters()
    publish("serde", counters.values, COUNTERS)
    return AsyncSerdeProcessor(
        KvCompressSerializer(codec, geometry, counters, padded_to),
        KvCompressDeserializer(codec, geometry, counters),
        max_workers=int(config.get("max_workers", 4)),
    )


def codec_of(config: Mapping[str, Any]) -> Codec:
    """InvalidArgument for what needs what LMCache does not tell."""
    codec = Codec.from_config(config)
    codec.check_without_positions()
    if codec.rotary is not None and not config.get("head_dim") and not codec.rotary.offset:
        raise InvalidArgument("rotary needs head_dim, too: LMCache does not tell where a head ends")
    return codec
