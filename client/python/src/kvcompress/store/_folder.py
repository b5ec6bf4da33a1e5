"""A store in a folder: a file for each entry, and an index of them."""

import contextlib
import errno
import os
import pathlib
import sqlite3
import threading
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace

from .._payload import Payload
from ._entry import HEADER_SIZE, Ids, Parts
from ._files import SHARDS, Files, Lost, Unfinished, ids_of_shard
from ._filter import Filter
from ._index import MOST_EVICTED, Index
from ._store import Store, Stored, StoreStats

# Of how many calls that put something one compares a shard with the index, besides those after the machine's start.
_COMPARE_EVERY = 256
# Entries, and bytes, that are put by one transaction.
_BATCH, _BATCH_BYTES = 64, 64 << 20
# Ids whose use is noted together.
_MOST_TOUCHED = 256
_FULL = (errno.ENOSPC, errno.EDQUOT)


class FolderStore(Store):
    """Processes of one host may share the folder. OSError where it cannot be made.

    An entry gets its name when it is whole, after the index knows of it: a process that is killed leaves at most what
    the index evicts later, and an unfinished file, which goes with its lock. Nothing is flushed to the disk: what a
    crash of the machine damages is found by its checksum. The capacity is that of files; those that are being written
    come on top of it."""

    def __init__(self, folder: str | os.PathLike[str], namespace: str, capacity: int | None = None):
        super().__init__()
        self._folder = pathlib.Path(folder)
        self._files = Files(self._folder)
        self._ids = Ids(namespace)
        self._capacity = capacity
        self._lock = threading.Lock()
        self._touched: dict[bytes, None] = {}  # least lately first
        self._puts = 0
        self._is_closed = False
        self._files.sweep()
        self._index = Index(self._folder / "index.sqlite")
        # Whether all files were compared with the filter and the index.
        self._is_sure = False
        self._filter = self._new_filter()
        with self._indexing():
            # A folder without entries has nothing that the index could lack.
            if self._index.scanned() == 0 and self._files.is_empty():
                self._index.set_scanned(SHARDS)
            self._is_sure = self._index.scanned() >= SHARDS

    def locks(self) -> list[threading.Lock]:
        return [*self._index.locks, self._filter.lock, self._lock, *super().locks()]

    def pause(self) -> None:
        super().pause()
        self._index.disconnect()

    def _new_filter(self) -> Filter:
        made = Filter(self._folder / "filter", self._capacity)
        if made.is_new:
            with self._indexing():
                self._index.set_scanned(0)
        return made

    # Look-ups.

    def exists(self, key: str) -> bool:
        known = self._filter.has(self._ids.of(key))
        return known if known is not None and self._is_sure else self.exists_many([key])[0]

    def exists_many(self, keys: Sequence[str]) -> list[bool]:
        if self._is_closed:
            return [False] * len(keys)
        ids = [self._ids.of(key) for key in keys]
        known = [self._filter.has(entry_id) for entry_id in ids]
        if None in known or not self._is_sure:
            known = self._found(ids, known)
        return [bool(found) for found in known]

    def _found(self, ids: Sequence[bytes], known: Sequence[bool | None]) -> list[bool | None]:
        """Where the filter does not know, the index does, and as long as these were not compared, the files."""
        asked = [entry_id for entry_id, found in zip(ids, known, strict=True) if not found]
        there: set[bytes] = set()
        with self._indexing():
            there = self._index.found(asked)
            self._is_sure = self._index.scanned() >= SHARDS
        if not self._is_sure:
            there.update(entry_id for entry_id in asked if entry_id not in there and self._files.exists(entry_id))
        return [found or entry_id in there for entry_id, found in zip(ids, known, strict=True)]

    def get_many(self, keys: Sequence[str], most: int) -> list[Stored | None]:
        payloads = [self._get(key, most) for key in keys]
        if len(self._touched) >= _MOST_TOUCHED:
            with self._indexing():
                self._index.touch(self._take_touched())
        if not self._is_sure and not self._is_closed:
            self._compare_some()
        return payloads

    def _get(self, key: str, most: int) -> Stored | None:
        entry_id, payload = self._ids.of(key), None
        try:
            payload = None if self._is_closed else self._files.read(entry_id, most)
        except FileNotFoundError:
            self._forget(entry_id)
        except Lost as error:
            self._counters.lost(key, str(error))
            self.remove(key)
        except (OSError, MemoryError) as error:
            self._counters.trouble("an entry is not read", error)
        if payload is None:
            self._counters.add(misses=1)
            return None
        self._counters.add(hits=1, bytes_out=len(payload))
        self._note(entry_id)
        return payload

    def _forget(self, entry_id: bytes) -> None:
        """What has no file; its writer may have been killed before it gave it its name."""
        if self._filter.has(entry_id) is False and self._is_sure:
            return
        self._unlink(entry_id)
        with self._indexing():
            if self._index.found([entry_id]):
                self._index.drop([entry_id])

    def touch(self, keys: Sequence[str]) -> None:
        for key in keys:
            self._note(self._ids.of(key))

    def _note(self, entry_id: bytes) -> None:
        with self._lock:
            self._touched.pop(entry_id, None)
            self._touched[entry_id] = None
            if len(self._touched) > 4 * _MOST_TOUCHED:  # touched alone
                del self._touched[next(iter(self._touched))]

    def _take_touched(self) -> Collection[bytes]:
        with self._lock:
            touched, self._touched = self._touched, {}
        return touched

    # What changes the folder.

    def put_many(self, items: Iterable[tuple[str, Payload]]) -> list[bool]:
        stored: list[bool] = []
        batch: list[tuple[str, Parts]] = []
        size = 0
        for key, payload in items:
            batch.append((key, Parts(payload)))
            size += batch[-1][1].size
            if len(batch) == _BATCH or size > _BATCH_BYTES:
                stored += self._put(batch)
                batch, size = [], 0
        return stored + self._put(batch)

    def _put(self, batch: Sequence[tuple[str, Parts]]) -> list[bool]:
        """Of a key that is there twice, the last wins."""
        if not batch or self._is_closed:
            return [False] * len(batch)
        with contextlib.ExitStack() as held:
            written: dict[bytes, Unfinished] = {}
            for key, parts in batch:
                unfinished = self._write(self._ids.of(key), parts)
                if unfinished is not None:
                    held.enter_context(unfinished)
                    written[unfinished.entry_id] = unfinished
            named = {entry_id for entry_id in self._admitted(written) if self._name(written[entry_id])}
        stored = [self._ids.of(key) in named for key, _ in batch]
        self._counters.add(bytes_in=sum(parts.size for (_, parts), done in zip(batch, stored, strict=True) if done))
        self._compare_some()
        return stored

    def _write(self, entry_id: bytes, parts: Parts) -> Unfinished | None:
        """None where the disk does not take it, even after others have gone."""
        size = HEADER_SIZE + parts.size
        if self._capacity is not None and size > self._capacity:
            self._counters.trouble("an entry is not stored", f"{size} bytes are above the capacity")
            return None
        for is_last in (False, True):
            try:
                return self._files.write(entry_id, parts)
            except OSError as error:
                if is_last or error.errno not in _FULL or not self._make_space(size):
                    self._counters.trouble("an entry is not stored", error)
                    return None
        return None

    def _admitted(self, written: dict[bytes, Unfinished]) -> set[bytes]:
        """Those that the index has taken up. Where its disk is full, it gets another try with fewer entries."""
        entries = [(entry_id, unfinished.size) for entry_id, unfinished in written.items()]
        for is_last in (False, True):
            try:
                admitted, evicted = self._index.admit(entries, self._capacity, self._take_touched(), self._unlink)
                self._counters.add(evicted=evicted)
                return admitted
            except (sqlite3.Error, OSError) as error:
                if is_last or not _is_full(error) or not self._make_space(sum(size for _, size in entries)):
                    self._mend(error)
                    return set()
        return set()

    def _name(self, unfinished: Unfinished) -> bool:
        try:
            unfinished.name()
            self._filter.add(unfinished.entry_id)
        except OSError as error:
            self._counters.trouble("an entry is not stored", error)
            self._remove(unfinished.entry_id)
            return False
        return True

    def _make_space(self, size: int) -> bool:
        """On a full disk: removes what was used least lately, `size` bytes at least. Files first: the index may find no
        room to write before."""
        gone: list[bytes] = []
        freed = 0
        with self._indexing():
            for entry_id, one in self._index.oldest(MOST_EVICTED):
                if freed >= size:
                    break
                self._unlink(entry_id)
                gone.append(entry_id)
                freed += one
            self._counters.add(evicted=len(gone))
            self._index.drop(gone)
        return bool(gone)

    def remove(self, key: str) -> None:
        self._remove(self._ids.of(key))

    def _remove(self, entry_id: bytes) -> None:
        self._unlink(entry_id)
        with self._indexing():
            self._index.drop([entry_id])

    def clear(self) -> None:
        """Not what is being written."""
        with self._indexing():
            self._files.sweep()
            for shard in range(SHARDS):
                ids = self._files.of_shard(shard) or {}
                for entry_id in ids:
                    self._unlink(entry_id)
                self._index.drop(self._index.between(*ids_of_shard(shard)))

    def stats(self) -> StoreStats:
        stats = self._counters.stats()
        if self._is_closed:
            return stats
        with self._indexing():
            used, entries = self._index.totals()
            stats = replace(stats, used_bytes=used, entries=entries)
        return stats

    def close(self) -> None:
        if not self._is_closed:
            with self._indexing():
                self._index.touch(self._take_touched())
            self._is_closed = True
            self._is_sure = False
            self._index.close()
            self._filter.close()

    def _path(self, key: str) -> pathlib.Path:
        return self._files.path_of(self._ids.of(key))

    def _unlink(self, entry_id: bytes) -> None:
        try:
            self._filter.drop(entry_id)
            self._files.unlink(entry_id)
        except OSError as error:
            self._counters.trouble("an entry is not removed", error)

    # The index.

    @contextlib.contextmanager
    def _indexing(self) -> Iterator[None]:
        """What follows from the index is left out where that does not work."""
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            self._mend(error)

    def _mend(self, error: sqlite3.Error | OSError) -> None:
        """A database that is damaged is made anew from the files."""
        self._counters.trouble("the index of the folder does not work", error)
        if not isinstance(error, sqlite3.OperationalError | sqlite3.ProgrammingError | OSError):
            self._index.discard()
            self._is_sure = False

    def _compare_some(self) -> None:
        """Compares the files of the next shard with filter and index: of all shards after the machine's start, and then
        of one now and then."""
        self._puts += 1
        if self._is_sure and self._puts % _COMPARE_EVERY:
            return
        with self._indexing():
            if self._index.is_replaced():
                self._index.close()
            if self._filter.is_replaced():
                self._filter, old = self._new_filter(), self._filter
                old.close()
            scanned = self._index.scanned()
            for number in range(scanned, scanned + SHARDS):
                scanned = number + 1
                if self._compare(number % SHARDS):
                    break
            self._index.set_scanned(scanned)
            self._is_sure = scanned >= SHARDS

    def _compare(self, shard: int) -> bool:
        """False for one that has no folder. The index is read first: what is put meanwhile is in it, or is added."""
        indexed = self._index.between(*ids_of_shard(shard))
        files = self._files.of_shard(shard)
        try:
            self._filter.fill(shard, files or ())
        except OSError as error:
            self._counters.trouble("the filter is not written", error)
        if files is None:
            return False
        found = []
        for entry_id in files.keys() - indexed:
            with contextlib.suppress(OSError):
                found.append((entry_id, files[entry_id].stat(follow_symlinks=False).st_size))
        self._index.add(found)
        self._index.drop(indexed - files.keys())
        return True


def _is_full(error: sqlite3.Error | OSError) -> bool:
    return "full" in str(error) or "I/O" in str(error)
