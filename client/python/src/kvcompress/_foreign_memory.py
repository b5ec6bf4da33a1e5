"""Memory in /dev/shm that an engine has made, and of which a daemon on this machine reads tensors where they stand."""

import fcntl
import logging
import os
import secrets
import struct
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ._errors import KvCompressError, Unavailable
from ._regions import Link
from .v1 import kvcompress_pb2 as pb

if TYPE_CHECKING:
    from ._client import Client

logger = logging.getLogger(__name__)

# Seconds until a daemon that refused is asked again.
_PAUSE = 60.0
# Seconds for the daemon to say what it offers.
_PATIENCE = 5.0
_FOLDER = "/dev/shm/"
_FLOCK = "hhqqi4x"  # struct flock: type, whence, start, length, process


@dataclass(frozen=True)
class _Part:
    """Of an object of /dev/shm, which a mapping of this process shows."""

    path: str
    file: tuple[int, int]  # device and inode
    offset: int


def _part_at(address: int, size: int) -> _Part:
    """KvCompressError where the memory is not one part of one object that has a name."""
    with open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
        for line in maps:
            span, access, offset, device, inode, *path = line.split(None, 5)
            begin, end = (int(text, 16) for text in span.split("-"))
            if not begin <= address < end:
                continue
            name = path[0].rstrip("\n") if path else ""
            if address + size > end or "s" not in access or not name.startswith(_FOLDER) or name.endswith(" (deleted)"):
                break
            major, minor = (int(text, 16) for text in device.split(":"))
            return _Part(name, (os.makedev(major, minor), int(inode)), int(offset, 16) + address - begin)
    raise KvCompressError("the memory is no part of an object of /dev/shm that has a name")


def _lock_byte(file: int, offset: int) -> None:
    """For writing, as long as the file is open: what shows that this process may write it."""
    fcntl.fcntl(file, fcntl.F_OFD_SETLK, struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, offset, 1, 0))


class ForeignMemory:
    """Memory of which pieces can be compressed through `client` where they stand, once `is_ready`. Threads may share
    it."""

    def __init__(self, client: "Client", memory: memoryview):
        self._client = client
        view = np.frombuffer(memory, np.uint8)
        self._address, self._size = view.ctypes.data, len(view)
        self._lock = threading.Lock()
        self._is_closed = False
        self._is_asking = False
        self._ask_again = 0.0  # time.monotonic()
        self._why_not = ""
        self._link: Link | None = None
        self._region = 0

    def is_ready(self) -> bool:
        """Whether the daemon has the memory. Does not wait: it is asked in a thread, and, where it refused, again after
        a while. What it says is logged once."""
        with self._lock:
            if self._link is not None and self._link.is_alive():
                return True
            if not self._is_closed and not self._is_asking and time.monotonic() >= self._ask_again:
                self._is_asking = True
                threading.Thread(target=self._ask, name="kvcompress-foreign-memory", daemon=True).start()
            return False

    @property
    def region(self) -> int:
        """Its number for the daemon. Unavailable where the daemon has lost it."""
        with self._lock:
            if self._link is not None and self._link.is_alive():
                return self._region
        raise Unavailable("the daemon has ended the stream that registers the engine's memory")

    def close(self) -> None:
        with self._lock:
            self._is_closed = True
            if self._link is not None:
                self._link.close()

    def _ask(self) -> None:
        link, region, why_not = None, 0, ""
        try:
            link, region = self._register()
        except (KvCompressError, OSError) as error:
            why_not = str(error)
        if why_not and why_not != self._why_not:
            logger.info("the daemon does not read the engine's memory, which is copied for it: %s", why_not)
        with self._lock:
            if self._is_closed and link is not None:
                link.close()
            self._link, self._region, self._why_not = link, region, why_not
            self._is_asking, self._ask_again = False, time.monotonic() + _PAUSE

    def _register(self) -> tuple[Link, int]:
        prefix = self._client.capabilities(timeout=_PATIENCE).foreign_memory_prefix
        part = _part_at(self._address, self._size)
        name = part.path.removeprefix(_FOLDER)
        if not prefix or not name.startswith(prefix):
            raise KvCompressError(f"it has no --foreign-memory that {name} begins with")
        file = os.open(part.path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        link = Link(self._client._channel)
        try:
            found = os.fstat(file)
            if (found.st_dev, found.st_ino) != part.file:
                raise KvCompressError(f"{name} is another object by now")
            asked = pb.SharedMemoryRegister(
                name=secrets.token_hex(16), key=f"/{name}", offset=part.offset, byte_size=self._size
            )
            return link, link.register_foreign(asked, lambda offset: _lock_byte(file, offset))
        except BaseException:
            link.close()
            raise
        finally:
            os.close(file)


@dataclass(frozen=True)
class Pieces:
    """A tensor's values: `size` bytes, of which the first is that at `offset` in the memory, in pieces of one size;
    `levels` are counts and strides in bytes, from the outermost."""

    memory: ForeignMemory
    offset: int
    size: int
    levels: tuple[tuple[int, int], ...]

    def described(self) -> bytes:
        """A SharedMemoryRange."""
        levels = [pb.SharedMemoryLevel(count=count, stride=stride) for count, stride in self.levels]
        described = pb.SharedMemoryRange(
            region=self.memory.region, offset=self.offset, byte_size=self.size, levels=levels
        )
        return described.SerializeToString()
