"""A store in this process's memory."""

import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import replace

from .._payload import Payload
from ._entry import Parts
from ._store import Store, Stored, StoreStats


class MemoryStore(Store):
    """Payloads are copied. A child of a fork has what was there at the fork, and its own from then on."""

    def __init__(self, capacity: int | None):
        super().__init__()
        self._capacity = capacity
        self._lock = threading.Lock()
        self._entries: OrderedDict[str, bytes] = OrderedDict()  # what was used least lately comes first
        self._used = 0

    def locks(self) -> list[threading.Lock]:
        return [self._lock, *super().locks()]

    def exists_many(self, keys: Sequence[str]) -> list[bool]:
        return [key in self._entries for key in keys]

    def get_many(self, keys: Sequence[str], most: int) -> list[Stored | None]:
        return [self._get(key, most) for key in keys]

    def _get(self, key: str, most: int) -> Stored | None:
        with self._lock:
            payload = self._entries.get(key)
            if payload is not None:
                self._entries.move_to_end(key)
        if payload is not None and len(payload) > most:
            self._counters.lost(key, f"{len(payload)} bytes, and {most} at most are its own")
            self.remove(key)
            payload = None
        if payload is None:
            self._counters.add(misses=1)
        else:
            self._counters.add(hits=1, bytes_out=len(payload))
        return payload

    def put_many(self, items: Iterable[tuple[str, Payload]]) -> list[bool]:
        return [self._put(key, payload) for key, payload in items]

    def _put(self, key: str, payload: Payload) -> bool:
        parts = Parts(payload)
        size = parts.size
        if self._capacity is not None and size > self._capacity:
            self._counters.trouble("an entry is not stored", f"{size} bytes are above the capacity")
            return False
        copy, evicted = payload if type(payload) is bytes else b"".join(parts.pieces), 0
        with self._lock:
            self._used += size - len(self._entries.pop(key, b""))
            while self._capacity is not None and self._used > self._capacity:
                self._used -= len(self._entries.popitem(last=False)[1])
                evicted += 1
            self._entries[key] = copy
        self._counters.add(bytes_in=size, evicted=evicted)
        return True

    def remove(self, key: str) -> None:
        with self._lock:
            self._used -= len(self._entries.pop(key, b""))

    def touch(self, keys: Sequence[str]) -> None:
        with self._lock:
            for key in keys:
                if key in self._entries:
                    self._entries.move_to_end(key)

    def clear(self) -> None:
        with self._lock:
            self._entries.clear()
            self._used = 0

    def stats(self) -> StoreStats:
        return replace(self._counters.stats(), used_bytes=self._used, entries=len(self._entries))

    def close(self) -> None:
        self._capacity = 0
        self.clear()
