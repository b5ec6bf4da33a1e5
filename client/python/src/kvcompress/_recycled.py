"""Memory of results that nobody holds any more, for those to come: the kernel clears fresh pages, which takes longer
than a fast codec."""

import contextlib
import mmap
import threading
from typing import Any

import numpy as np
import numpy.typing as npt

# Of one result: the C library maps no less by itself.
_LEAST = 128 << 10
_LEAST_OF_LARGE_PAGES = 4 << 20  # as NumPy has it
# Of all that is kept.
_MOST = 64 << 20
# Results at a time: each may be a mapping of its own, of which the kernel gives a process 65530.
_MOST_LENT = 16384

Bytes = npt.NDArray[np.uint8]


class _Spare:
    """Memory by its size. What ends a result may happen anywhere, and so inside of these methods: who finds the lock
    taken goes without."""

    # Of the class: at the end of the process a result may outlive what its modules hold.
    _kind, _most = mmap.mmap, _MOST

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: dict[int, list[mmap.mmap]] = {}  # that of the size which came back last is last
        self._bytes = 0
        self._lent: set[int] = set()  # identities: adding and discarding need no lock

    @property
    def has_lent_all(self) -> bool:
        return len(self._lent) >= _MOST_LENT

    def lend(self, memory: mmap.mmap) -> mmap.mmap:
        self._lent.add(id(memory))
        return memory

    def take(self, size: int) -> mmap.mmap | None:
        if not self._lock.acquire(blocking=False):
            return None
        try:
            found = self._idle.get(size)
            if not found:
                return None
            self._bytes -= size
            return found.pop()
        finally:
            self._lock.release()

    def give(self, memory: Any) -> None:
        """What is no memory of this module is left alone."""
        if not isinstance(memory, self._kind):
            return
        self._lent.discard(id(memory))
        if len(memory) > self._most or not self._lock.acquire(blocking=False):
            return
        try:
            same = self._idle.pop(len(memory), [])
            same.append(memory)
            self._idle[len(memory)] = same
            self._bytes += len(memory)
            while self._bytes > self._most:
                self._drop_oldest()
        finally:
            self._lock.release()

    def _drop_oldest(self) -> None:
        size = next(iter(self._idle))
        if self._idle[size]:
            self._idle[size].pop()
            self._bytes -= size
        else:
            del self._idle[size]


_spare = _Spare()


class _Lent(np.ndarray[Any, np.dtype[np.uint8]]):
    """Memory that is spare again when nothing lies over it any more. As its base is no array, NumPy does not make that
    the base of what does."""

    def __del__(self, _give: Any = _spare.give) -> None:
        _give(self.base)


def memory(size: int) -> Bytes | None:
    """For one result of so many bytes; what is in it is undefined. None for few, which the C library keeps by itself,
    and where very many are lent; OSError where there is none."""
    if size < _LEAST or _spare.has_lent_all:
        return None
    return _Lent(size, np.uint8, _spare.lend(_spare.take(size) or _fresh(size))).view(np.ndarray)


def _fresh(size: int) -> mmap.mmap:
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if size >= _LEAST_OF_LARGE_PAGES and hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # of a kernel without
            memory.madvise(mmap.MADV_HUGEPAGE)
    return memory
