"""LMCache's second level: an L2 adapter that keeps objects as frames in a store of this package, and a serde for the L2
adapters of LMCache's own (S3, Redis, ...).

Tested with LMCache 0.5.6 itself, whose Python runs without a GPU: its plugin loader, registry, thread pool, metrics and
memory objects; and, where it is not installed, against the signatures of that release.

LMCache loads the adapter by `"type": "plugin"`. It has no option that imports a serde, so for that its server is
started by this module, which registers the serde "kvcompress" and hands everything on:
`python -m kvcompress.adapters.lmcache server ...`. See the package's README.
"""

import itertools
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, TypeVar

try:
    from lmcache.lmcache_native import Bitmap
    from lmcache.v1.distributed.internal_api import L2StoreResult
    from lmcache.v1.distributed.l2_adapters.base import AdapterUsage, L2AdapterInterface
    from lmcache.v1.distributed.serde import get_registered_serde_types, register_serde_factory
    from lmcache.v1.platform import create_event_notifier
except ImportError as error:
    raise ImportError(f"kvcompress.adapters.lmcache needs LMCache 0.5 ({error}): pip install lmcache") from error

from .. import KvCompressError
from ..store import open_store
from ._chunks import COUNTERS, Chunk, ChunkStore
from ._codec import check_keys
from ._lmcache_metrics import publish
from ._lmcache_objects import Geometry, key_text, parts
from ._lmcache_serde import KvCompressDeserializer, KvCompressSerializer, codec_of, create

__all__ = [
    "NAME", "KvCompressDeserializer", "KvCompressL2Adapter", "KvCompressSerializer", "create", "main", "register",
]  # fmt: skip

logger = logging.getLogger(__name__)

NAME = "kvcompress"
Answer = TypeVar("Answer")


class _Tasks(Generic[Answer]):
    """Tasks of one kind, on threads of their own. What a task came to is kept until it is asked for."""

    def __init__(self, threads: int):
        self.notifier = create_event_notifier()
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="kvcompress-l2")
        self._lock = threading.Lock()
        self._answers: dict[int, Answer] = {}

    def submit(self, number: int, work: Callable[[], Answer], failure: Answer) -> None:
        """`failure` is the answer where `work` raises, which must not end LMCache's own threads."""

        def run() -> None:
            try:
                answer = work()
            except Exception:
                logger.exception("task %d of the L2 adapter failed", number)
                answer = failure
            self._finish(number, answer)

        try:
            self._pool.submit(run)
        except RuntimeError:  # it is closed
            self._finish(number, failure)

    def take(self, number: int) -> Answer | None:
        with self._lock:
            return self._answers.pop(number, None)

    def take_all(self) -> dict[int, Answer]:
        with self._lock:
            taken, self._answers = self._answers, {}
        return taken

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)
        self.notifier.close()

    def _finish(self, number: int, answer: Answer) -> None:
        with self._lock:
            self._answers[number] = answer
        try:
            self.notifier.notify()
        except (OSError, ValueError) as error:  # closed
            logger.warning("LMCache is not told of task %d: %s", number, error)


class KvCompressL2Adapter(L2AdapterInterface):
    """Objects as frames, those of one task on one stream. Objects that are not keys and values are kept bit for bit.

    `config` is what the plugin's `adapter_params` say. What cannot be stored, found or decoded is a miss of that object
    alone, which is logged and counted. Nothing is locked: what is evicted between look-up and load is a miss.
    LMCache's per-salt quotas have no usage to go by."""

    def __init__(self, config: Mapping[str, Any], l1_memory_desc: Any = None):
        check_keys(config, {"capacity_bytes", "max_workers", "head_dim", "latents"}, required={"path"})
        capacity = config.get("capacity_bytes")
        self._codec = codec_of(config)
        self._geometry = Geometry.from_config(config, by_layer=self._codec.tells_layers_apart)
        namespace = repr(["lmcache", self._codec.text, self._geometry])
        self._store = open_store(config["path"], namespace, capacity)
        super().__init__(max_capacity_bytes=capacity or 0)
        self._chunks = ChunkStore(self._codec, self._store, namespace)
        publish("l2", self._chunks.counters.values, COUNTERS)
        threads = int(config.get("max_workers", 2))
        self._numbers = itertools.count()
        self._stores: _Tasks[Any] = _Tasks(threads)
        self._lookups: _Tasks[Any] = _Tasks(1)
        self._loads: _Tasks[Any] = _Tasks(threads)
        self._is_closed = False

    def get_store_event_fd(self) -> int:
        return int(self._stores.notifier.fileno())

    def get_lookup_and_lock_event_fd(self) -> int:
        return int(self._lookups.notifier.fileno())

    def get_load_event_fd(self) -> int:
        return int(self._loads.notifier.fileno())

    # Stores.

    def submit_store_task(self, keys: Sequence[Any], objects: Sequence[Any]) -> int:
        number = next(self._numbers)
        keys, objects = list(keys), list(objects)
        self._stores.submit(number, lambda: self._save(keys, objects), L2StoreResult(False, 0))
        return number

    def pop_completed_store_tasks(self) -> dict[int, Any]:
        return self._stores.take_all()

    def _save(self, keys: Sequence[Any], objects: Sequence[Any]) -> Any:
        chunks = self._chunks_of(keys, objects)
        sizes = self._chunks.save([chunk for chunk in chunks if chunk is not None])
        written = [(key, size) for key, size in zip(_present(keys, chunks), sizes, strict=True) if size]
        if written:
            self._notify_keys_stored([key for key, _ in written], [size for _, size in written])
        is_whole = len(sizes) == len(keys) and None not in sizes
        return L2StoreResult(is_whole, sum(size for _, size in written))

    # Look-ups.

    def submit_lookup_and_lock_task(self, keys: Sequence[Any], group_layout_descs: Any = None) -> int:
        number = next(self._numbers)
        keys = list(keys)
        self._lookups.submit(number, lambda: self._look_up(keys), Bitmap(len(keys)))
        return number

    def query_lookup_and_lock_result(self, task_id: int) -> Any:
        return self._lookups.take(task_id)

    def submit_unlock(self, keys: Sequence[Any]) -> None:
        """Nothing: there are no locks."""

    def _look_up(self, keys: Sequence[Any]) -> Any:
        return _bitmap(self._chunks.exists([key_text(key) for key in keys]))

    # Loads.

    def submit_load_task(self, keys: Sequence[Any], objects: Sequence[Any]) -> int:
        number = next(self._numbers)
        keys, objects = list(keys), list(objects)
        self._loads.submit(number, lambda: self._load(keys, objects), Bitmap(len(keys)))
        return number

    def query_load_result(self, task_id: int) -> Any:
        return self._loads.take(task_id)

    def _load(self, keys: Sequence[Any], objects: Sequence[Any]) -> Any:
        chunks = self._chunks_of(keys, objects)
        loaded = iter(self._chunks.load([chunk for chunk in chunks if chunk is not None]))
        found = [chunk is not None and next(loaded) for chunk in chunks]
        if any(found):
            self._notify_keys_accessed([key for key, hit in zip(keys, found, strict=True) if hit])
        return _bitmap(found)

    # Everything else.

    def delete(self, keys: Sequence[Any]) -> None:
        for key in keys:
            self._store.remove(key_text(key))
        self._notify_keys_deleted(list(keys), [0] * len(keys))

    def get_usage(self) -> Any:
        used = self._store.stats().used_bytes or 0
        return AdapterUsage(total_bytes_used=used, total_capacity_bytes=self._max_capacity_bytes)

    def report_status(self) -> dict[str, Any]:
        """Healthy is what was not closed: without a daemon everything is a miss."""
        return {"is_healthy": not self._is_closed, "type": type(self).__name__, **self._chunks.counters.values()}

    def close(self) -> None:
        self._is_closed = True
        self._codec.client.close()
        for tasks in (self._stores, self._lookups, self._loads):
            tasks.close()
        self._store.close()

    def _chunks_of(self, keys: Sequence[Any], objects: Sequence[Any]) -> list[Chunk | None]:
        """None for an object that cannot be."""
        found: list[Chunk | None] = []
        for key, memory in zip(keys, objects, strict=True):
            try:
                found.append(Chunk(key_text(key), parts(memory, self._geometry)))
            except KvCompressError as error:
                logger.warning("object %s is passed over: %s", key, error)
                found.append(None)
        return found


def _present(keys: Sequence[Any], chunks: Sequence[Chunk | None]) -> list[Any]:
    return [key for key, chunk in zip(keys, chunks, strict=True) if chunk is not None]


def _bitmap(found: Sequence[bool]) -> Any:
    bitmap = Bitmap(len(found))
    for number, hit in enumerate(found):
        if hit:
            bitmap.set(number)
    return bitmap


def register() -> None:
    """Makes LMCache know the serde; again is no error."""
    if NAME not in get_registered_serde_types():
        register_serde_factory(NAME, create)


def main() -> Any:
    """LMCache's own command line, with the serde registered."""
    from lmcache.cli.main import main as run

    register()
    return run()


if __name__ == "__main__":
    main()
