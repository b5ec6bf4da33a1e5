"""A worker's side of the vLLM connector: threads move chunks between the paged KV cache, the daemon and the store."""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace

from ..store import Store
from ._codec import Codec
from ._vllm_jobs import Chunk, Job, Jobs, Task
from ._vllm_pages import LocalChunk, PagedCaches
from ._vllm_scheduler import PagedChunk, store_name
from ._vllm_transfer import Transfer, group_number

_TASK_BYTES = 32 << 20  # of the chunks of one task, which is one stream to the daemon
_MOST_WAITING = 4096  # tasks of each kind
_MOST_SAVING = 2 << 30  # bytes of chunks in host memory that are not stored yet; what is more is not stored
_RESET = b"reset"  # the key of a task that forgets all that is stored


class Worker:
    """All methods return at once. Stores are worked on in their order, the same in all ranks: what one rank stores
    twice is a pair for what the others do. `whose`: text that differs where models or layouts do."""

    def __init__(self, caches: PagedCaches, codec: Codec, store: Store, rank: int, whose: str, threads: int):
        self._caches = caches
        self._store = store
        self._rank = rank
        self._sizes = caches.sizes
        lossless = replace(codec, spec="lossless", profile="")
        codecs = {number: lossless if caches.is_lossless(number) else codec for number in caches.kinds}
        self._transfer = Transfer(caches, codecs, store, whose, name=self._name, replaces=True)
        patience = 2 * (codec.timeout or 1.0)
        self._jobs = Jobs(self._work, threads, most_storing=1, most_waiting=_MOST_WAITING, patience=patience)
        self._loads: dict[int, tuple[str, Sequence[PagedChunk]]] = {}  # by job: of which request
        self._saves: dict[int, int] = {}  # by job: bytes of host memory
        self._resets: dict[int, int] = {}  # by job: how many
        self._number = 0
        self._resets_seen = 0
        self._resets_done = 0
        self._failed_blocks: set[int] = set()
        self._failed_requests: set[str] = set()

    def load(self, request: str, chunks: Sequence[PagedChunk]) -> None:
        marked = [self._caches.mark(chunk) for chunk in chunks]
        self._loads[self._submit(self._tasks(marked, is_load=True), is_load=True)] = (request, chunks)

    def save(self, chunks: Sequence[PagedChunk]) -> None:
        """Copies them out of the cache, as far as there is room for them."""
        room = _MOST_SAVING - sum(self._saves.values())
        taken, others, held = [], [], 0
        for chunk in chunks:
            number = group_number(chunk.key)
            if held + self._sizes[number] <= room:
                held += self._sizes[number]
                taken.append(self._caches.take(number, chunk))
            else:
                others.append(chunk)
        if chunks:
            tasks = self._tasks(taken, is_load=False) + self._tasks(others, is_load=False)
            self._saves[self._submit(tasks, is_load=False)] = held

    def forget(self, resets: int) -> None:
        """Removes all that is stored, and what is being stored, where there were more resets than before."""
        if resets > self._resets_seen:
            task = Task([Chunk(_RESET, None)], is_load=False)
            self._resets[self._submit([task], is_load=False)] = resets - self._resets_seen
            self._resets_seen = resets

    def finished(self) -> set[str]:
        """Requests whose loads have ended since this was last asked, some perhaps with failures."""
        requests = set()
        for job in self._jobs.finished():
            self._saves.pop(job.number, None)
            if job.number in self._resets:
                self._reset_ended(self._resets.pop(job.number), bool(job.failures))
                continue
            self._count(job)
            if job.is_load:
                request, chunks = self._loads.pop(job.number)
                requests.add(request)
                if job.failures:
                    self._failed_requests.add(request)
                    self._failed_blocks.update(*(chunk.block_ids for chunk in chunks if chunk.key in job.failures))
        return requests

    def _reset_ended(self, resets: int, has_failed: bool) -> None:
        if has_failed:
            self._resets_seen -= resets
            self.forget(self._resets_seen + resets)
        else:
            self._resets_done += resets

    def take_failed_blocks(self) -> set[int]:
        failed, self._failed_blocks = self._failed_blocks, set()
        return failed

    def take_failed_requests(self) -> set[str]:
        failed, self._failed_requests = self._failed_requests, set()
        return failed

    def take_resets(self) -> int:
        """How many were done since this was last asked."""
        done, self._resets_done = self._resets_done, 0
        return done

    def take_counts(self) -> Counter[tuple[str, str]]:
        return self._transfer.take_counts()

    def close(self) -> None:
        """Waits for what makes progress."""
        self._jobs.drain()
        self._jobs.close()

    def _name(self, key: bytes) -> str:
        return store_name(self._rank, key)

    def _tasks(self, chunks: Sequence[PagedChunk], is_load: bool) -> list[Task]:
        """Pieces of some bytes, and of one chunk at least."""
        pieces: list[list[PagedChunk]] = []
        room = 0
        for chunk in chunks:
            size = self._sizes[group_number(chunk.key)]
            if size > room:
                pieces.append([])
                room = _TASK_BYTES
            pieces[-1].append(chunk)
            room -= size
        return [Task(piece, is_load) for piece in pieces]

    def _submit(self, tasks: Sequence[Task], is_load: bool) -> int:
        self._number += 1
        keys = [chunk.key for task in tasks for chunk in task.chunks]
        self._jobs.submit(Job(self._number, is_load, keys), tasks)
        return self._number

    def _work(self, task: Task) -> Collection[bytes]:
        if task.is_load:
            return self._transfer.work(task)
        if task.chunks[0].key == _RESET:
            self._store.clear()
            return [_RESET]
        return self._save(task)

    def _save(self, task: Task) -> Collection[bytes]:
        """A chunk that is not stored is removed: the other ranks do not know of it, and what they store is no pair for
        what this one has from before."""
        done: Collection[bytes] = ()
        try:
            if isinstance(task.chunks[0], LocalChunk):
                done = self._transfer.work(task)
            else:
                task.failures = {chunk.key: "busy" for chunk in task.chunks}
        finally:
            for key in {chunk.key for chunk in task.chunks}.difference(done):
                self._store.remove(self._name(key))
        return done

    def _count(self, job: Job) -> None:
        for reason in job.failures.values():
            self._transfer.count("load_failures" if job.is_load else "store_failures", label=reason)
        self._transfer.count("loaded_chunks" if job.is_load else "stored_chunks", len(job.done))
