"""Chunks between rows of vLLM's CPU cache, the daemon and a store. A row is written when all frames of its chunk have
been decoded and checked, from memory of our own: what fails leaves it as it was, and so does a thread that hangs."""

import logging
import threading
import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence

import torch

from .. import DataLoss, DeadlineExceeded, FingerprintMismatch, KvCompressError, Unavailable
from ..store import Store
from ._codec import Codec, Stored, most_packed, pack, unpack
from ._fingerprint import fingerprint
from ._vllm_geometry import Group, Part
from ._vllm_jobs import Chunk, Task

logger = logging.getLogger(__name__)

# After the daemon was found gone or stuck, seconds until it is asked again: all is a miss meanwhile.
_REST = 1.0
_WARNINGS = 10.0  # seconds between two of the same kind


def group_number(key: bytes) -> int:
    """Of an OffloadKey: a block's hash, and the group."""
    return int.from_bytes(key[-4:], "big")


class Transfer:
    """`rows` are the CPU cache, [chunks, bytes] of uint8. `whose`: text that differs where models or layouts do."""

    def __init__(
        self, rows: torch.Tensor, groups: Mapping[int, Group], codecs: Mapping[int, Codec], store: Store, whose: str
    ):
        self._rows = rows
        self._groups = groups
        self._codecs = codecs
        self._store = store
        self._whose = whose
        self._most = {number: most_packed(group.kinds) for number, group in groups.items()}
        self._rests_until = 0.0
        self._lock = threading.Lock()
        self._of_thread = threading.local()
        self._counts: Counter[tuple[str, str]] = Counter()
        self._warned: dict[str, float] = {}

    @property
    def is_resting(self) -> bool:
        """Whether the daemon was gone or stuck a moment ago."""
        return time.monotonic() < self._rests_until

    def take_counts(self) -> Counter[tuple[str, str]]:
        """What was counted since this was last asked, by name and label."""
        with self._lock:
            counts, self._counts = self._counts, Counter()
        return counts

    def count(self, name: str, amount: int = 1, label: str = "") -> None:
        with self._lock:
            self._counts[name, label] += amount

    def release(self) -> None:
        """Lets go of the rows, which their owner unmaps."""
        self._rows = torch.empty(0)

    def exists(self, keys: Sequence[bytes]) -> list[bool]:
        return self._store.exists_many([key.hex() for key in keys])

    def work(self, task: Task) -> Collection[bytes]:
        """The keys of a task's chunks that were moved; its failures tell of the others."""
        by_group: dict[int, list[Chunk]] = {}
        for chunk in task.chunks:
            by_group.setdefault(group_number(chunk.key), []).append(chunk)
        done: list[bytes] = []
        for number, chunks in by_group.items():
            if self.is_resting:
                self._fail(task, "daemon", chunks)
                continue
            try:
                done += self._load(task, number, chunks) if task.is_load else self._save(task, number, chunks)
            except (Unavailable, DeadlineExceeded) as error:
                self._rests_until = time.monotonic() + _REST
                self._fail(task, "daemon", chunks, error)
            except KvCompressError as error:
                self._fail(task, "refused", chunks, error)
        return done

    def _fail(self, task: Task, reason: str, chunks: Sequence[Chunk], error: Exception | None = None) -> None:
        task.failures.update((chunk.key, reason) for chunk in chunks)
        now = time.monotonic()
        if error is not None and now - self._warned.get(reason, -_WARNINGS) >= _WARNINGS:
            self._warned[reason] = now
            logger.warning("%d chunks are not %s: %s", len(chunks), "loaded" if task.is_load else "stored", error)

    def _save(self, task: Task, number: int, chunks: Sequence[Chunk]) -> list[bytes]:
        stored = self.exists([chunk.key for chunk in chunks])
        there = [chunk.key for chunk, found in zip(chunks, stored, strict=True) if found]
        chunks = [chunk for chunk, found in zip(chunks, stored, strict=True) if not found]
        if not chunks:
            return there
        parts = self._groups[number].parts
        named = self._gathered(task, parts, chunks)
        starts = [chunk.start or 0 for chunk in chunks for _ in parts]
        prints = [fingerprint(self._whose, chunk.key.hex(), part.name) for chunk in chunks for part in parts]
        try:
            frames = self._codecs[number].compress(named, starts, fingerprints=prints)
        except BaseException:
            self._of_thread.buffer = None  # a call that has failed may still be reading
            raise
        per = len(parts)
        payloads = [pack(frames[at * per : (at + 1) * per]) for at in range(len(chunks))]
        put = self._store.put_many((chunk.key.hex(), payload) for chunk, payload in zip(chunks, payloads, strict=True))
        self._fail(task, "store", [chunk for chunk, done in zip(chunks, put, strict=True) if not done])
        self.count("stored_value_bytes", len(chunks) * self._groups[number].size)
        self.count("stored_frame_bytes", sum(map(len, payloads)))
        return there + [chunk.key for chunk, done in zip(chunks, put, strict=True) if done]

    def _gathered(self, task: Task, parts: Sequence[Part], chunks: Sequence[Chunk]) -> list[tuple[str, torch.Tensor]]:
        """In a buffer of the thread's, which is used again: new memory costs its pages, more than the copy."""
        size, at = len(chunks) * sum(part.size for part in parts), 0
        buffer = getattr(self._of_thread, "buffer", None)
        if buffer is None or len(buffer) < size:
            self._of_thread.buffer = buffer = torch.empty(size, dtype=torch.uint8)
        named = []
        with task.memory():
            for chunk in chunks:
                for part in parts:
                    named.append((part.name, part.gather(self._rows[chunk.row], buffer[at:])))
                    at += part.size
        return named

    def _load(self, task: Task, number: int, chunks: Sequence[Chunk]) -> list[bytes]:
        group = self._groups[number]
        found: list[tuple[Chunk, list[Stored]]] = []
        payloads = self._store.get_many([chunk.key.hex() for chunk in chunks], self._most[number])
        for chunk, payload in zip(chunks, payloads, strict=True):
            if payload is None:
                self._fail(task, "absent", [chunk])
                continue
            try:
                found.append((chunk, unpack(payload, group.kinds)))
            except DataLoss as error:
                self._lose(task, chunk, error)
        done = []
        for chunk, tensors in self._decoded(task, number, found):
            with task.memory():
                for part, tensor in zip(group.parts, tensors, strict=True):
                    part.scatter(self._rows[chunk.row], tensor)
            done.append(chunk.key)
        self.count("loaded_value_bytes", len(done) * group.size)
        return done

    def _decoded(
        self, task: Task, number: int, found: Sequence[tuple[Chunk, list[Stored]]]
    ) -> Iterable[tuple[Chunk, Sequence[torch.Tensor]]]:
        """All of them by one stream; where one is damaged or another's, each by its own."""
        parts, codec = self._groups[number].parts, self._codecs[number]
        frames = [frame for _, frames in found for frame in frames]
        prints = [fingerprint(self._whose, chunk.key.hex(), part.name) for chunk, _ in found for part in parts]
        per = len(parts)
        try:
            tensors = codec.decompress(frames, fingerprints=prints) if frames else []
            return [(chunk, tensors[at * per : (at + 1) * per]) for at, (chunk, _) in enumerate(found)]
        except (DataLoss, FingerprintMismatch) as error:
            if len(found) == 1:
                self._lose(task, found[0][0], error)
                return []
        return [one for alone in found for one in self._decoded(task, number, [alone])]

    def _lose(self, task: Task, chunk: Chunk, error: KvCompressError) -> None:
        """What cannot be read is removed: it would be found again and again."""
        self._store.remove(chunk.key.hex())
        self._fail(task, "foreign" if isinstance(error, FingerprintMismatch) else "damaged", [chunk], error)
