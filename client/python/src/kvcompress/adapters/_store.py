"""Payloads on local disk, by key: a cache that may lose anything, and whose files anyone may have changed."""

import hashlib
import logging
import os
import pathlib
import stat
import tempfile
import threading
import time

from .. import DataLoss, InvalidArgument

logger = logging.getLogger(__name__)

_SUFFIX, _UNFINISHED = ".kvc", ".kvc.tmp"
# Seconds after which an unfinished file is no one's any more: its process was killed.
_ABANDONED = 3600
# Of the capacity, after files were evicted.
_KEPT = 0.9


class Store:
    """A folder, which several processes may share, for keys that begin with `namespace`. Only its owner may read what
    it holds: the caches of models give away what they were asked.

    With a `capacity`, in bytes, files that were not read for the longest time are evicted; each process counts what it
    writes, and looks at the folder when that has passed the capacity. InvalidArgument for one that is no
    positive int. Any error of the file system is an OSError."""

    def __init__(self, folder: str | os.PathLike[str], namespace: str, capacity: int | None = None):
        # Of exactly this type: True is an int to isinstance.
        if capacity is not None and (type(capacity) is not int or capacity <= 0):
            raise InvalidArgument(f"capacity_bytes is {capacity!r}, and not a positive whole number")
        self._folder = pathlib.Path(folder)
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._namespace = namespace
        self._capacity = capacity
        self._lock = threading.Lock()
        self._used = self._size() if capacity is not None else 0

    def _path(self, key: str) -> pathlib.Path:
        """Of the key's hash: keys come from outside, and may be of any length and characters."""
        digest = hashlib.sha256(f"{len(self._namespace)}:{self._namespace}{key}".encode()).hexdigest()
        return self._folder / digest[:2] / (digest + _SUFFIX)

    def exists(self, key: str) -> bool:
        return self._path(key).is_file()

    def get(self, key: str, most: int) -> bytes | None:
        """What was put there; None without it. DataLoss for more than `most` bytes, and what is no file."""
        path = self._path(key)
        try:
            # Neither a link that leads elsewhere, nor a pipe that no one writes to.
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        # Buffered: one call of the system reads 2 GiB at most.
        with open(descriptor, "rb") as file:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode) or found.st_size > most:
                raise DataLoss(f"{path} is not what was stored: {found.st_size} bytes, and {most} at most are its own")
            os.utime(descriptor)
            return file.read(found.st_size)

    def put(self, key: str, payload: bytes) -> None:
        """Replaces what was there, at once or not at all."""
        path = self._path(key)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(_UNFINISHED, dir=path.parent)
        try:
            with open(descriptor, "wb") as file:
                file.write(payload)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
        if self._capacity is not None:
            self._evict(len(payload))

    def remove(self, key: str) -> None:
        self._path(key).unlink(missing_ok=True)

    def discard(self, key: str) -> None:
        """Removes it; what hinders that is logged."""
        try:
            self.remove(key)
        except OSError as error:
            logger.warning("%s cannot be removed: %s", key, error)

    def clear(self) -> None:
        """Of all namespaces; not what is being written."""
        for path, _ in self._files():
            path.unlink(missing_ok=True)

    def _files(self) -> list[tuple[pathlib.Path, os.stat_result]]:
        """All that is stored, and what killed processes left unfinished."""
        found = []
        for path in self._folder.glob(f"*/*{_SUFFIX}*"):
            try:
                status = path.lstat()
            except FileNotFoundError:  # another process was faster
                continue
            if not path.name.endswith(_UNFINISHED) or status.st_mtime < time.time() - _ABANDONED:
                found.append((path, status))
        return found

    def _size(self) -> int:
        return sum(status.st_size for _, status in self._files())

    def _evict(self, added: int) -> None:
        with self._lock:
            self._used += added
            if self._capacity is None or self._used <= self._capacity:
                return
            files = sorted(self._files(), key=lambda entry: entry[1].st_mtime_ns)
            self._used = sum(status.st_size for _, status in files)
            if self._used <= self._capacity:
                return
            for path, status in files:
                if self._used <= _KEPT * self._capacity:
                    return
                path.unlink(missing_ok=True)
                self._used -= status.st_size
