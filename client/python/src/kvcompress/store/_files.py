"""The files of a folder's entries: where they lie, and how one becomes whole."""

import contextlib
import errno
import fcntl
import os
import pathlib
import secrets
import stat
from typing import Any

from ._entry import HEADER_SIZE, ID_SIZE, Parts, payload_of

_SUFFIX, _UNFINISHED = ".kvc", "unfinished"
# Entries lie in shards, folders that are named by the first digits of the ids: 10 million make some 2400 in each.
SHARDS, _DIGITS = 4096, 3


class Lost(Exception):
    """An entry that is not what was stored."""


class Files:
    """Only their owner may read them: the caches of models give away what they were asked. OSError from all of it."""

    def __init__(self, folder: pathlib.Path):
        self._folder = folder
        self._unfinished = folder / _UNFINISHED
        self._make()

    def _make(self) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._unfinished.mkdir(mode=0o700, exist_ok=True)

    def path_of(self, entry_id: bytes) -> pathlib.Path:
        digits = entry_id.hex()
        return self._folder / digits[:_DIGITS] / (digits + _SUFFIX)

    def exists(self, entry_id: bytes) -> bool:
        return os.path.exists(self.path_of(entry_id))

    def read(self, entry_id: bytes, most: int) -> memoryview:
        """The payload. FileNotFoundError; Lost for one of more than `most` bytes, and for what is no whole entry."""
        path = self.path_of(entry_id)
        try:
            # Buffered: one call of the system reads 2 GiB at most.
            with open(path, "rb", opener=_open) as file:
                found = os.fstat(file.fileno())
                if not stat.S_ISREG(found.st_mode) or found.st_size > most + HEADER_SIZE:
                    raise Lost(f"{path} has {found.st_size} bytes, and {most + HEADER_SIZE} at most are its own")
                payload = payload_of(entry_id, file.read(found.st_size))
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.EISDIR):
                raise
            raise Lost(f"{path} is no file") from error
        if isinstance(payload, str):
            raise Lost(f"{path}: {payload}")
        return payload

    def write(self, entry_id: bytes, parts: Parts) -> "Unfinished":
        try:
            return Unfinished(self._unfinished, self.path_of(entry_id), entry_id, parts)
        except FileNotFoundError:  # someone has removed the folder
            self._make()
            return Unfinished(self._unfinished, self.path_of(entry_id), entry_id, parts)

    def unlink(self, entry_id: bytes) -> None:
        self.path_of(entry_id).unlink(missing_ok=True)

    def is_empty(self) -> bool:
        """Whether there are no shards yet."""
        with os.scandir(self._folder) as entries:
            return not any(len(entry.name) == _DIGITS for entry in entries)

    def of_shard(self, shard: int) -> dict[bytes, "os.DirEntry[str]"] | None:
        """By their ids; None where the shard has no folder."""
        try:
            with os.scandir(self._folder / f"{shard:0{_DIGITS}x}") as entries:
                return {entry_id: entry for entry in entries if (entry_id := _id_of(entry.name)) is not None}
        except (FileNotFoundError, NotADirectoryError):
            return None

    def sweep(self) -> None:
        """Removes what processes left unfinished that have ended: nothing of it is locked."""
        for path in self._unfinished.iterdir():
            with contextlib.suppress(OSError), open(path, "rb", opener=_open) as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()


def _open(path: str, flags: int) -> int:
    """Neither a link that leads elsewhere, nor a pipe that no one writes to."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


def ids_of_shard(shard: int) -> tuple[bytes, bytes]:
    """The lowest and the highest one."""
    digits = f"{shard:0{_DIGITS}x}"
    return bytes.fromhex(digits.ljust(2 * ID_SIZE, "0")), bytes.fromhex(digits.ljust(2 * ID_SIZE, "f"))


class Unfinished:
    """A whole entry, `size` bytes, that goes at the end of a `with` where it has not got its name. Until then it is
    locked, which tells others that its writer lives."""

    def __init__(self, folder: pathlib.Path, path: pathlib.Path, entry_id: bytes, parts: Parts):
        self.entry_id = entry_id
        self.size = HEADER_SIZE + parts.size
        self._path = path
        self._descriptor = -1
        self._has_name = False
        try:
            self._create(folder)
            for left in (memoryview(parts.header(entry_id)), *parts.pieces):
                while left:
                    left = left[os.write(self._descriptor, left) :]
        except BaseException:
            self.__exit__()
            raise

    def _create(self, folder: pathlib.Path) -> None:
        """Again where another process has swept it up before it was locked."""
        while self._descriptor < 0 or os.fstat(self._descriptor).st_nlink == 0:
            if self._descriptor >= 0:
                os.close(self._descriptor)
            self._unfinished = folder / secrets.token_hex(16)
            self._descriptor = os.open(self._unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._descriptor, fcntl.LOCK_EX)

    def name(self) -> None:
        """Replaces what has its name, at once."""
        try:
            os.replace(self._unfinished, self._path)
        except FileNotFoundError:  # it is the shard's first
            self._path.parent.mkdir(mode=0o700, exist_ok=True)
            os.replace(self._unfinished, self._path)
        self._has_name = True

    def __enter__(self) -> "Unfinished":
        return self

    def __exit__(self, *_: Any) -> None:
        if self._descriptor >= 0:
            if not self._has_name:
                with contextlib.suppress(OSError):
                    self._unfinished.unlink()
            os.close(self._descriptor)
            self._descriptor = -1


def _id_of(name: str) -> bytes | None:
    """Of a file's name; None of one that is none of ours."""
    if not name.endswith(_SUFFIX) or len(name) != 2 * ID_SIZE + len(_SUFFIX):
        return None
    try:
        return bytes.fromhex(name[: -len(_SUFFIX)])
    except ValueError:
        return None
