"""Chunks of an engine's cache as frames in a store: what the adapters for SGLang and LMCache share."""

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from .. import DataLoss, DeadlineExceeded, FingerprintMismatch, InvalidArgument, KvCompressError, Unavailable
from .._payload import Piece
from ..store import Store
from ._codec import Codec, Kind, Stored, most_packed, pack, unpack
from ._counters import Counters
from ._fingerprint import fingerprint

logger = logging.getLogger(__name__)

# Bytes of tensors that one stream takes, so that memory is bounded however many chunks an engine asks for at once.
_BATCH_BYTES = 64 << 20
# Seconds that a daemon is left alone for which did not answer within the timeout: the engine must not wait for it again
# and again.
_PAUSE = 5.0
# Chunks that were saved or not, and loaded; of those that were not loaded, which were not there, damaged, another's by
# their fingerprint, or could not be decoded for want of a daemon. Bytes of what was saved and loaded, and seconds.
COUNTERS = (
    "saved", "unsaved", "loaded", "missing", "damaged", "foreign", "undecoded", "tensor_bytes", "frame_bytes",
    "loaded_bytes", "save_seconds", "load_seconds",
)  # fmt: skip


@dataclass(frozen=True)
class Part:
    """One tensor of a chunk, where it stands in the engine's memory: read by `save`, written into by `load`."""

    name: str  # what profiles choose by
    tensor: torch.Tensor
    exact: bool = False  # neither keys nor values: kept bit for bit, whatever codec is asked for
    start: int = 0  # the position of its first token, where it is known


@dataclass(frozen=True)
class Chunk:
    """What an engine stores under one key. `key` says all that makes another chunk of it: model, shard, layout and
    tokens."""

    key: str
    parts: Sequence[Part]

    @property
    def nbytes(self) -> int:
        return sum(part.tensor.nbytes for part in self.parts)

    def kinds(self) -> list[Kind]:
        return [Kind.of(part.tensor) for part in self.parts]


class ChunkStore:
    """Threads may share it. Nothing is raised: what cannot be read is a miss, what cannot be saved is not held, and
    both are logged and counted, as COUNTERS says."""

    def __init__(self, codec: Codec, store: Store, namespace: str):
        """`namespace` is that of the store: it goes into the fingerprints, too."""
        self._namespace = namespace
        self._codec = codec
        self._store = store
        self.counters = Counters()
        self._resume = 0.0  # when a daemon that did not answer is asked again

    def exists(self, keys: Sequence[str]) -> list[bool]:
        return self._store.exists_many(keys)

    def save(self, chunks: Sequence[Chunk]) -> list[int | None]:
        """The bytes of each that were written, 0 of one that was held already, None of one that is not held now."""
        held = self.exists([chunk.key for chunk in chunks])
        new = [chunk for chunk, is_held in zip(chunks, held, strict=True) if not is_held]
        written = iter([size for batch in _batches(new) for size in self._save(batch)])
        return [0 if is_held else next(written) for is_held in held]

    def load(self, chunks: Sequence[Chunk]) -> list[bool]:
        """Which of them were found and stand in their parts now; what the parts of others hold is undefined: engines
        give that memory up."""
        return [found for batch in _batches(chunks) for found in self._load(batch)]

    # Batches.

    def _save(self, chunks: Sequence[Chunk]) -> list[int | None]:
        """On one stream; where a chunk is refused, each on one of its own, for the others' sake."""
        began = time.perf_counter()
        try:
            payloads = self._compress(chunks)
        except KvCompressError as error:
            if isinstance(error, InvalidArgument) and len(chunks) > 1:
                return [size for chunk in chunks for size in self._save([chunk])]
            self._failed(error, chunks, "unsaved")
            return [None] * len(chunks)
        kept = self._store.put_many([(chunk.key, payload) for chunk, payload in zip(chunks, payloads, strict=True)])
        sizes = [sum(map(len, pieces)) if is_kept else None for pieces, is_kept in zip(payloads, kept, strict=True)]
        self.counters.add(
            saved=sum(kept),
            unsaved=len(kept) - sum(kept),
            tensor_bytes=sum(chunk.nbytes for chunk, is_kept in zip(chunks, kept, strict=True) if is_kept),
            frame_bytes=sum(size or 0 for size in sizes),
            save_seconds=time.perf_counter() - began,
        )
        return sizes

    def _compress(self, chunks: Sequence[Chunk]) -> list[tuple[Piece, ...]]:
        self._check_daemon()
        parts = [part for chunk in chunks for part in chunk.parts]
        frames = iter(
            self._codec.compress(
                [(part.name, part.tensor) for part in parts],
                [part.start for part in parts],
                specs=["lossless" if part.exact else None for part in parts],
                fingerprints=[one for chunk in chunks for one in self._fingerprints(chunk)],
            )
        )
        return [pack([next(frames) for _ in chunk.parts]) for chunk in chunks]

    def _load(self, chunks: Sequence[Chunk]) -> list[bool]:
        began = time.perf_counter()
        most = max(most_packed(chunk.kinds()) for chunk in chunks)
        payloads = self._store.get_many([chunk.key for chunk in chunks], most)
        read = [self._unpack(chunk, payload) for chunk, payload in zip(chunks, payloads, strict=True)]
        decoded = iter(self._decode([found for found in read if found is not None]))
        done = [found is not None and next(decoded) for found in read]
        self.counters.add(load_seconds=time.perf_counter() - began)
        return done

    def _unpack(self, chunk: Chunk, payload: bytes | memoryview | None) -> tuple[Chunk, list[Stored]] | None:
        if payload is None:
            self.counters.add(missing=1)
            return None
        try:
            return chunk, unpack(payload, chunk.kinds())
        except DataLoss as error:
            self._lost(error, chunk, "damaged")
            return None

    def _decode(self, read: Sequence[tuple[Chunk, list[Stored]]]) -> list[bool]:
        """On one stream; where that fails, chunk by chunk, for the others' sake."""
        if not read:
            return []
        try:
            self._check_daemon()
            frames = [frame for _, found in read for frame in found]
            targets = [part.tensor for chunk, _ in read for part in chunk.parts]
            prints = [one for chunk, _ in read for one in self._fingerprints(chunk)]
            self._codec.decompress_into(targets, frames, prints)
        except KvCompressError as error:
            if len(read) > 1 and isinstance(error, self._codec.errors_of_one):
                return [found for one in read for found in self._decode([one])]
            if isinstance(error, (DataLoss, FingerprintMismatch)):
                self._lost(error, read[0][0], "damaged" if isinstance(error, DataLoss) else "foreign")
                return [False]
            self._failed(error, [chunk for chunk, _ in read], "undecoded")
            return [False] * len(read)
        for chunk, _ in read:
            self.counters.add(loaded=1, loaded_bytes=chunk.nbytes)
        return [True] * len(read)

    def _fingerprints(self, chunk: Chunk) -> list[bytes]:
        return [
            fingerprint(self._namespace, chunk.key, part.name, str(part.tensor.dtype), list(part.tensor.shape))
            for part in chunk.parts
        ]

    # The daemon, and what goes wrong.

    def _check_daemon(self) -> None:
        if time.monotonic() < self._resume:
            raise Unavailable("the daemon did not answer a moment ago")

    def _failed(self, error: Exception, chunks: Sequence[Chunk], counter: str) -> None:
        if isinstance(error, (Unavailable, DeadlineExceeded)):
            self._resume = max(self._resume, time.monotonic() + _PAUSE)
        logger.warning("chunks %s: %d: %s", counter, len(chunks), error)
        self.counters.add(**{counter: len(chunks)})

    def _lost(self, error: Exception, chunk: Chunk, counter: str) -> None:
        logger.warning("chunk %s is %s: %s", chunk.key, counter, error)
        self.counters.add(**{counter: 1})
        self._store.remove(chunk.key)


def _batches(chunks: Sequence[Chunk]) -> Iterator[list[Chunk]]:
    batch: list[Chunk] = []
    size = 0
    for chunk in chunks:
        if batch and size + chunk.nbytes > _BATCH_BYTES:
            yield batch
            batch, size = [], 0
        batch.append(chunk)
        size += chunk.nbytes
    if batch:
        yield batch
