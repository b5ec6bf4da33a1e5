"""Which entries a folder has, as a table that all processes have mapped: a look-up is a read of memory, which waits for
nothing and keeps Python's lock.

The top bits of an id choose a bucket. A bucket has 15 tags of 4 bytes, which are part of the ids, and a last one that
tells when more entries were to go in than it has room for: then the index is asked. Writers do not wait for each other.
What they lose for it, and what a killed process leaves, is an entry that is stored once more, or one that is looked for
in vain, until its shard is compared.
"""

import contextlib
import errno
import io
import mmap
import os
import pathlib
import secrets
import threading
from collections.abc import Iterable

from ._files import SHARDS

_TAG, _BUCKET = 4, 64
_FREE, _FULL = b"\0" * _TAG, b"\xff" * _TAG
_LAST = _BUCKET - _TAG
# A bucket for each shard at least, and room for 10 million entries at most.
_LEAST, _MOST = SHARDS * _BUCKET, (1 << 20) * _BUCKET
# Bytes of the capacity for one of the table: entries of some 6 KB fill it.
_CAPACITY_PER_BYTE = 1024


class Filter:
    """Threads may share it. Its size is that of the capacity for which it was made; where the disk has no room for it,
    it knows nothing. OSError."""

    def __init__(self, path: pathlib.Path, capacity: int | None):
        self.lock = threading.Lock()
        self.is_new = False
        self._path = path
        self._map: mmap.mmap | None = None
        if not _is_there(path):
            self.is_new = _make(path, capacity)
        if self.is_new or _is_there(path):
            # Written by calls: what these cannot do is an error, where a write to mapped memory would end the process.
            self._file = io.FileIO(path, "r+", opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW))
            self._map = mmap.mmap(self._file.fileno(), 0, prot=mmap.PROT_READ)
            # Else the first look at each page reads the pages around it, too, which takes milliseconds.
            self._map.madvise(mmap.MADV_RANDOM)
            self._shift = 24 - (len(self._map) // _BUCKET).bit_length() + 1
            self._inode = os.fstat(self._file.fileno()).st_ino

    def is_replaced(self) -> bool:
        """Whether the file is another than the one that is mapped, or none."""
        try:
            return self._map is not None and os.stat(self._path).st_ino != self._inode
        except FileNotFoundError:
            return True

    def close(self) -> None:
        """Nothing is written afterwards."""
        with self.lock:
            if self._map is not None:
                self._file.close()

    def has(self, entry_id: bytes) -> bool | None:
        """None where that is not known."""
        if self._map is None:
            return None
        at, tag = self._place_of(entry_id)
        bucket = self._map[at : at + _BUCKET]
        if _slot(bucket, tag) >= 0:
            return True
        return None if bucket.endswith(_FULL) else False

    def add(self, entry_id: bytes) -> None:
        with self.lock:
            if self._map is None:
                return
            at, tag = self._place_of(entry_id)
            bucket = self._map[at : at + _BUCKET]
            if _slot(bucket, tag) >= 0:
                return
            free = _slot(bucket, _FREE)
            if 0 <= free < _LAST:
                self._write(tag, at + free)
            else:
                self._write(_FULL, at + _LAST)

    def drop(self, entry_id: bytes) -> None:
        with self.lock:
            if self._map is None:
                return
            at, tag = self._place_of(entry_id)
            slot = _slot(self._map[at : at + _BUCKET], tag)
            if slot >= 0:
                self._write(_FREE, at + slot)

    def fill(self, shard: int, ids: Iterable[bytes]) -> None:
        """What a shard has, and nothing else."""
        if self._map is None:
            return
        size = len(self._map) // SHARDS
        tags: dict[int, list[bytes]] = {}
        for entry_id in ids:
            at, tag = self._place_of(entry_id)
            tags.setdefault(at - shard * size, []).append(tag)
        table = bytearray(size)
        for at, some in tags.items():
            some[_LAST // _TAG :] = [_FULL] if len(some) > _LAST // _TAG else []
            table[at : at + len(some) * _TAG] = b"".join(some)
        with self.lock:
            if table != self._map[shard * size : (shard + 1) * size]:
                self._write(table, shard * size)

    def _write(self, data: bytes | bytearray, at: int) -> None:
        if not self._file.closed:
            os.pwrite(self._file.fileno(), data, at)

    def _place_of(self, entry_id: bytes) -> tuple[int, bytes]:
        """Where the bucket begins, and the tag."""
        tag = entry_id[4 : 4 + _TAG]
        at = (int.from_bytes(entry_id[:3], "big") >> self._shift) * _BUCKET
        return at, tag if tag not in (_FREE, _FULL) else b"\1" * _TAG


def _is_there(path: pathlib.Path) -> bool:
    try:
        size = os.stat(path).st_size
    except FileNotFoundError:
        return False
    return _LEAST <= size <= _MOST and size.bit_count() == 1


def _make(path: pathlib.Path, capacity: int | None) -> bool:
    """Whether there was room. It gets its name with all of its blocks: to read a mapped page without one may take one,
    and end the process where there is none."""
    size = _LEAST
    while size < _MOST and (capacity is None or size * _CAPACITY_PER_BYTE < capacity):
        size *= 2
    unfinished = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    try:
        with open(unfinished, "xb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            os.posix_fallocate(file.fileno(), 0, size)
        if path.exists():  # of no such size
            path.unlink()
        with contextlib.suppress(FileExistsError):  # another process was faster
            os.link(unfinished, path)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        return False
    finally:
        unfinished.unlink(missing_ok=True)
    return True


def _slot(bucket: bytes, tag: bytes) -> int:
    """Where the tag stands; -1 where it does not."""
    at = bucket.find(tag)
    while at % _TAG and at >= 0:
        at = bucket.find(tag, at + 1)
    return at
