"""What every store is, and what they share: counters, and troubles that are told once in a while."""

import abc
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

from .._payload import Payload

logger = logging.getLogger("kvcompress.store")

Stored = bytes | memoryview  # a payload that is got

# Seconds in which a trouble of one kind is logged once: a full disk is one for every entry.
_LOG_PAUSE = 60.0


@dataclass(frozen=True)
class StoreStats:
    """Of one process, since its store was opened; `used_bytes` and `entries` of all that share it, and None where only
    a server knows."""

    hits: int = 0
    misses: int = 0
    bytes_in: int = 0  # of payloads that were put
    bytes_out: int = 0  # of payloads that were got
    evicted: int = 0  # entries that went for the capacity's sake, or for a full disk's
    lost: int = 0  # entries that were damaged, cut off or of another key; each is a miss, too
    errors: int = 0  # of the disk or the server; what was asked of it is a miss, or not stored
    used_bytes: int | None = None
    entries: int | None = None


class Counters:
    """StoreStats while they are counted, and the log of what is wrong. Threads may share one."""

    def __init__(self) -> None:
        self._counts = {field.name: 0 for field in fields(StoreStats) if field.type is int}
        self._told: dict[str, float] = {}
        self.lock = threading.Lock()

    def add(self, **counts: int) -> None:
        with self.lock:
            for name, count in counts.items():
                self._counts[name] += count

    def lost(self, what: str, why: str) -> None:
        """An entry that was not what was stored."""
        self.add(lost=1)
        self._tell("lost", "%s is lost: %s", what, why)

    def trouble(self, what: str, error: BaseException | str) -> None:
        """Something that did not work."""
        self.add(errors=1)
        self._tell(what, "%s: %s", what, error)

    def _tell(self, kind: str, text: str, *values: object) -> None:
        with self.lock:
            now = time.monotonic()
            if now - self._told.get(kind, -_LOG_PAUSE) < _LOG_PAUSE:
                return
            self._told[kind] = now
        logger.warning(text, *values)

    def stats(self) -> StoreStats:
        with self.lock:
            return StoreStats(**self._counts)


class Store(abc.ABC):
    """A cache of payloads. Threads may share a store, and a child of a fork may use it. What the disk or the server
    refuses raises nothing: it is a miss, or not stored, is counted in `stats`, and logged at most once a minute.

    An entry that is there may be gone when it is asked for: what `exists` says is a hint. What `get` gives is what was
    put under this key, whole; of one that checks itself (SelfChecked) the key and the size alone are sure."""

    def __init__(self) -> None:
        self._counters = Counters()
        self._held: list[threading.Lock] = []
        _stores.add(self)

    def locks(self) -> list[threading.Lock]:
        """All of the store's, in the order in which they are taken."""
        return [self._counters.lock]

    def pause(self) -> None:
        """Before a fork: no thread is at work here until `resume`."""
        self._held = self.locks()
        for lock in self._held:
            lock.acquire()

    def resume(self, is_child: bool) -> None:
        """After a fork, in both processes."""
        while self._held:
            self._held.pop().release()

    def exists(self, key: str) -> bool:
        return self.exists_many([key])[0]

    @abc.abstractmethod
    def exists_many(self, keys: Sequence[str]) -> list[bool]:
        """By one look-up for all. A folder and memory answer in microseconds, a server within a bound."""

    def peek_many(self, keys: Sequence[str]) -> list[bool | None]:
        """What is known without waiting for a server. None is asked in the background: ask again later."""
        return list(self.exists_many(keys))

    def get(self, key: str, most: int) -> Stored | None:
        return self.get_many([key], most)[0]

    @abc.abstractmethod
    def get_many(self, keys: Sequence[str], most: int) -> list[Stored | None]:
        """None for a miss, and for an entry that is damaged or has more than `most` bytes, which is removed."""

    def put(self, key: str, payload: Payload) -> bool:
        return self.put_many([(key, payload)])[0]

    @abc.abstractmethod
    def put_many(self, items: Iterable[tuple[str, Payload]]) -> list[bool]:
        """Whether each is stored. One replaces what was there, at once or not at all. Payloads, or their pieces, are of
        contiguous memory, which is free again when this returns."""

    @abc.abstractmethod
    def remove(self, key: str) -> None: ...

    @abc.abstractmethod
    def touch(self, keys: Sequence[str]) -> None:
        """As if they had been got just now, for eviction's sake."""

    @abc.abstractmethod
    def clear(self) -> None:
        """Removes all entries: of a folder those of all namespaces, of a server this namespace's."""

    @abc.abstractmethod
    def stats(self) -> StoreStats: ...

    @abc.abstractmethod
    def close(self) -> None:
        """Everything is a miss afterwards; again is no error."""


# Those of this process, as long as someone has them, and those that wait for a fork.
_stores: "weakref.WeakSet[Store]" = weakref.WeakSet()
_paused: list[Store] = []


def _pause() -> None:
    for store in list(_stores):
        _paused.append(store)
        _take(store.pause)


def _resume(is_child: bool) -> None:
    while _paused:
        _take(_paused.pop().resume, is_child)


def _take(step: Callable[..., None], *arguments: Any) -> None:
    """The others take theirs even where one store fails: they would stay locked for good."""
    try:
        step(*arguments)
    except Exception as error:
        logger.exception("a store does not come through a fork: %s: %s", type(error).__name__, error)


os.register_at_fork(
    before=_pause, after_in_parent=lambda: _resume(is_child=False), after_in_child=lambda: _resume(is_child=True)
)
