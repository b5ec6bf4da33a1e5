"""Payloads by key, on disk, in memory or in a Redis that many hosts share: caches that may lose anything, and hand on
nothing that is not whole. README.md says how to choose.

    store = open_store("/data/kv", namespace="model, layout and codec", capacity=500_000_000_000)
    store.put("key", payload)
    payload = store.get("key", most=1 << 20)
"""

import os

from .. import InvalidArgument
from .._payload import Payload, SelfChecked
from ._folder import FolderStore
from ._memory import MemoryStore
from ._store import Store, Stored, StoreStats

__all__ = ["Payload", "SelfChecked", "Store", "StoreStats", "Stored", "open_store"]

_REDIS = ("redis://", "rediss://", "unix://")


def open_store(where: str | os.PathLike[str], namespace: str, capacity: int | None = None) -> Store:
    """`where`: the path of a folder, which processes of this host may share; `memory:`, a store of its own each time;
    `redis://HOST:PORT/DB`, `rediss://` for TLS, or `unix:///PATH?db=DB`. Keys of another `namespace` are other keys.

    `capacity` is in bytes, of a folder for all that it holds; beyond it the entries go that were used least lately. A
    Redis evicts by its own configuration. InvalidArgument for what is no such place or capacity, OSError for a folder
    that cannot be made; a Redis that does not answer is no error, but misses."""
    # Of exactly this type: True is an int to isinstance.
    if capacity is not None and (type(capacity) is not int or capacity <= 0):
        raise InvalidArgument(f"capacity_bytes is {capacity!r}, and not a positive whole number")
    if isinstance(where, str) and where.startswith(_REDIS):
        if capacity is not None:
            raise InvalidArgument("a Redis evicts by its own maxmemory, and takes no capacity_bytes")
        from ._redis import RedisStore

        return RedisStore(where, namespace)
    if where == "memory:":
        return MemoryStore(capacity)
    if not os.fspath(where) or (isinstance(where, str) and "://" in where):
        raise InvalidArgument("a store is a folder's path, memory:, redis://, rediss:// or unix://")
    return FolderStore(where, namespace, capacity)
