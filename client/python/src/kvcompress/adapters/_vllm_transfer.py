"""Chunks between vLLM's memory, the daemon and a store. The memory is written when all frames of a chunk have been
decoded and checked, from memory of our own: what fails leaves it as it was, and so does a thread that hangs."""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Protocol

import torch

from .. import DataLoss, DeadlineExceeded, FingerprintMismatch, KvCompressError, Unavailable
from .._tensors import TensorView
from ..store import Store
from ._codec import Codec, Kind, Stored, most_packed, pack, unpack
from ._fingerprint import fingerprint
from ._vllm_jobs import Chunk, Task

logger = logging.getLogger(__name__)

# After the daemon was found gone or stuck, seconds until it is asked again: all is a miss meanwhile.
_REST = 1.0
_WARNINGS = 10.0  # seconds between two of the same kind


def group_number(key: bytes) -> int:
    """Of an OffloadKey: a block's hash, and the group."""
    return int.from_bytes(key[-4:], "big")


class Memory(Protocol):
    """Where an engine has its chunks. `kinds` has of each group the tensors that all of its chunks consist of."""

    @property
    def kinds(self) -> Mapping[int, Mapping[str, Kind]]: ...

    def gather(self, number: int, chunks: Sequence[Any]) -> Sequence[torch.Tensor | TensorView]:
        """The tensors of these chunks of one group, in order, valid until the thread gathers again; or views of the
        memory itself, which is then read while they are compressed."""

    def drop_buffers(self) -> None:
        """What this thread has gathered may still be read."""

    def scatter(self, number: int, chunk: Any, tensors: Sequence[torch.Tensor]) -> None: ...


class Transfer:
    """`codecs`: of each group. `whose`: text that differs where models or layouts do. `name`: a key's in the store.
    With `replaces`, what is stored is stored anew."""

    def __init__(
        self,
        memory: Memory,
        codecs: Mapping[int, Codec],
        store: Store,
        whose: str,
        name: Callable[[bytes], str] = bytes.hex,
        replaces: bool = False,
    ):
        self._memory = memory
        self._codecs = codecs
        self._store = store
        self._whose = whose
        self._name = name
        self._replaces = replaces
        self._most = {number: most_packed(list(kinds.values())) for number, kinds in memory.kinds.items()}
        self._size = {number: sum(kind.size for kind in kinds.values()) for number, kinds in memory.kinds.items()}
        self._rests_until = 0.0
        self._lock = threading.Lock()
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

    def exists(self, keys: Sequence[bytes]) -> list[bool]:
        return self._store.exists_many([self._name(key) for key in keys])

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
        stored = [False] * len(chunks) if self._replaces else self.exists([chunk.key for chunk in chunks])
        there = [chunk.key for chunk, found in zip(chunks, stored, strict=True) if found]
        chunks = [chunk for chunk, found in zip(chunks, stored, strict=True) if not found]
        if not chunks:
            return there
        with task.memory():
            tensors = self._memory.gather(number, chunks)
        names = list(self._memory.kinds[number]) * len(chunks)
        per = len(names) // len(chunks)
        starts = [chunk.start or 0 for chunk in chunks for _ in range(per)]
        try:
            frames = self._codecs[number].compress(
                list(zip(names, tensors, strict=True)), starts, fingerprints=self._fingerprints(number, chunks)
            )
        except BaseException:
            self._memory.drop_buffers()  # a call that has failed may still be reading
            raise
        with task.memory():  # else what was read may be of other chunks
            pass
        payloads = [pack(frames[at * per : (at + 1) * per]) for at in range(len(chunks))]
        put = self._store.put_many(
            (self._name(chunk.key), payload) for chunk, payload in zip(chunks, payloads, strict=True)
        )
        self._fail(task, "store", [chunk for chunk, done in zip(chunks, put, strict=True) if not done])
        self.count("stored_value_bytes", len(chunks) * self._size[number])
        self.count("stored_frame_bytes", sum(len(piece) for pieces in payloads for piece in pieces))
        return there + [chunk.key for chunk, done in zip(chunks, put, strict=True) if done]

    def _fingerprints(self, number: int, chunks: Sequence[Chunk]) -> list[bytes]:
        """Of the tensors of these chunks, in order."""
        names = self._memory.kinds[number]
        return [fingerprint(self._whose, self._name(chunk.key), name) for chunk in chunks for name in names]

    def _load(self, task: Task, number: int, chunks: Sequence[Chunk]) -> list[bytes]:
        kinds = list(self._memory.kinds[number].values())
        found: list[tuple[Chunk, list[Stored]]] = []
        payloads = self._store.get_many([self._name(chunk.key) for chunk in chunks], self._most[number])
        for chunk, payload in zip(chunks, payloads, strict=True):
            if payload is None:
                self._fail(task, "absent", [chunk])
                continue
            try:
                found.append((chunk, unpack(payload, kinds)))
            except DataLoss as error:
                self._lose(task, chunk, error)
        done = []
        for chunk, tensors in self._decoded(task, number, found):
            with task.memory():
                self._memory.scatter(number, chunk, tensors)
            done.append(chunk.key)
        self.count("loaded_value_bytes", len(done) * self._size[number])
        return done

    def _decoded(
        self, task: Task, number: int, found: Sequence[tuple[Chunk, list[Stored]]]
    ) -> Iterable[tuple[Chunk, Sequence[torch.Tensor]]]:
        """All of them by one stream; where one is damaged, another's or has no key, each by its own."""
        frames = [frame for _, frames in found for frame in frames]
        prints = self._fingerprints(number, [chunk for chunk, _ in found])
        per = len(self._memory.kinds[number])
        try:
            tensors = self._codecs[number].decompress(frames, fingerprints=prints) if frames else []
            return [(chunk, tensors[at * per : (at + 1) * per]) for at, (chunk, _) in enumerate(found)]
        except self._codecs[number].errors_of_one as error:
            if len(found) == 1:
                if isinstance(error, (DataLoss, FingerprintMismatch)):
                    self._lose(task, found[0][0], error)
                else:
                    self._fail(task, "refused", [found[0][0]], error)
                return []
        return [one for alone in found for one in self._decoded(task, number, [alone])]

    def _lose(self, task: Task, chunk: Chunk, error: KvCompressError) -> None:
        """What cannot be read is removed: it would be found again and again."""
        self._store.remove(self._name(chunk.key))
        self._fail(task, "foreign" if isinstance(error, FingerprintMismatch) else "damaged", [chunk], error)
