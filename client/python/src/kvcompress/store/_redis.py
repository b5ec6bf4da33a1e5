"""A store in a Redis or Valkey, which engines on many hosts share."""

import pathlib
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from .. import InvalidArgument
from .._payload import Payload
from ._entry import HEADER_SIZE, Ids, Parts, payload_of
from ._lanes import Breaker, Lanes, Refused
from ._recent import Recent
from ._store import Store, Stored, StoreStats

try:
    import redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry
except ImportError as error:
    raise InvalidArgument(f"a store in a Redis needs the package redis, as of kvcompress[redis]: {error}") from error

Result = TypeVar("Result")

# Connections of one store: threads that wait for a server.
_LANES = 4
# Bytes that one exchange carries, in a single value or in several, and those that are waited for one second longer.
_EXCHANGE, _BYTES_A_SECOND = 16 << 20, 32 << 20
# Redis's own limit of a value (proto-max-bulk-len).
_MOST_VALUE = 512 << 20
# Keys of one look-up.
_KEYS = 1000
# Seconds for which it is believed that a key exists, or does not.
_FOUND, _MISSING = 2.0, 1.0
_OPTIONS = ("db", "timeout", "password_file", "ca", "certificate", "key")


@dataclass(frozen=True)
class Place:
    """What a URL says. `name` is that without secrets."""

    name: str
    timeout: float  # seconds that an exchange is waited for
    arguments: dict[str, Any]  # of redis.Connection
    connection: type

    @staticmethod
    def of(url: str) -> "Place":
        """InvalidArgument, which does not tell the URL: it may hold a password."""
        try:
            parts = urllib.parse.urlsplit(url)
            options = dict(
                urllib.parse.parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
            )
            port = parts.port or 6379
            timeout = float(options.get("timeout", "1"))
            is_unix = parts.scheme == "unix"
            database = int(options.get("db") or (not is_unix and parts.path.strip("/")) or 0)
        except ValueError:
            raise InvalidArgument("the store's URL is none, or has a port, db or timeout that is no number") from None
        for option in options:
            if option not in _OPTIONS:
                raise InvalidArgument(f"unknown option {option!r} of a Redis: there are {', '.join(_OPTIONS)}")
        if not 0 < timeout <= 3600 or database < 0 or not (parts.path if is_unix else parts.hostname):
            raise InvalidArgument("a Redis has a host, or a path; its timeout is above 0 seconds")
        password = urllib.parse.unquote(parts.password or "") or None
        if options.get("password_file"):
            password = _first_line(options["password_file"])
        arguments: dict[str, Any] = {
            "db": database,
            "username": urllib.parse.unquote(parts.username or "") or None,
            "password": password,
            "socket_timeout": timeout,
            "socket_connect_timeout": timeout,
            # Once, where the server has closed a connection that was not used.
            "retry": Retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,)),
        }
        if is_unix:
            arguments["path"] = parts.path
            return Place(f"unix://{parts.path}", timeout, arguments, redis.UnixDomainSocketConnection)
        arguments |= {"host": parts.hostname, "port": port}
        name = f"{parts.scheme}://{parts.hostname}:{port}/{database}"
        if parts.scheme == "redis":
            return Place(name, timeout, arguments, redis.Connection)
        arguments |= {
            "ssl_ca_certs": options.get("ca"), "ssl_certfile": options.get("certificate"),
            "ssl_keyfile": options.get("key"), "ssl_check_hostname": True,
        }  # fmt: skip
        return Place(name, timeout, arguments, redis.SSLConnection)

    def connect(self) -> "redis.Redis":
        return redis.Redis(connection_pool=redis.ConnectionPool(self.connection, **self.arguments))


def _first_line(path: str) -> str:
    try:
        return pathlib.Path(path).read_text(encoding="utf-8").partition("\n")[0].strip()
    except (OSError, UnicodeError) as error:
        raise InvalidArgument(f"password_file cannot be read: {error}") from error


def _abort(client: "redis.Redis") -> None:
    client.connection_pool.disconnect(inuse_connections=True)


class RedisStore(Store):
    """Entries are values with their headers. The server evicts by its own `maxmemory` and `maxmemory-policy`, which is
    to be `allkeys-lru`. A server that is slow, stopped or gone costs misses and what cannot be stored: an exchange is
    waited for `timeout` seconds (1), and after three that failed none is made for half a second to 15."""

    def __init__(self, url: str, namespace: str):
        super().__init__()
        self._place = Place.of(url)
        self._ids = Ids(namespace)
        self._breaker = Breaker()
        self._recent = Recent(_FOUND, _MISSING)
        self._lock = threading.Lock()
        self._asked: dict[bytes, float] = {}  # in the background, until when
        self._is_closed = False
        self._lanes = self._start()

    def _start(self) -> "Lanes[redis.Redis]":
        return Lanes(_LANES, self._place.connect, _abort)

    def locks(self) -> list[threading.Lock]:
        return [self._lock, self._breaker.lock, self._recent.lock, *super().locks()]

    def resume(self, is_child: bool) -> None:
        super().resume(is_child)
        if is_child and not self._is_closed:
            self._asked.clear()
            self._lanes = self._start()

    def _ask(self, work: "Callable[[redis.Redis], Result]", size: int = 0) -> Result | None:
        """What `work` returns, which moves `size` bytes; None where the server does not answer."""
        try:
            if self._is_closed:
                return None
            self._breaker.enter()
        except Refused:
            return None
        is_well = False
        try:
            result = self._lanes.call(work, self._place.timeout + size / _BYTES_A_SECOND)
            is_well = True
            return result
        except redis.ResponseError as error:  # it answers
            is_well = True
            self._trouble(error)
        except Exception as error:
            self._trouble(error)
        finally:
            self._breaker.leave(is_well)
        return None

    def _trouble(self, error: BaseException) -> None:
        self._counters.trouble(f"the store {self._place.name} does not work", str(error) or type(error).__name__)

    def _name(self, entry_id: bytes) -> str:
        """The namespace first: `clear` looks for it."""
        return f"kvc:{self._ids.suffix.hex()}:{entry_id[:-4].hex()}"

    # Look-ups.

    def _look(self, client: "redis.Redis", ids: Sequence[bytes]) -> list[bool]:
        """By the number of those of a run that are there; where it is some of them, the run is halved. Most often the
        first ones are there, and no others: a prompt's beginning. The ids are all different."""
        found = dict.fromkeys(ids, False)
        runs = [ids] if ids else []
        while runs:
            pipeline = client.pipeline(transaction=False)
            for run in runs:
                pipeline.exists(*map(self._name, run))
            mixed: list[Sequence[bytes]] = []
            for run, count in zip(runs, pipeline.execute(), strict=True):
                if count == len(run):
                    found.update(dict.fromkeys(run, True))
                elif count:
                    mixed += [run[: len(run) // 2], run[len(run) // 2 :]]
            runs = mixed
        return list(found.values())

    def exists_many(self, keys: Sequence[str]) -> list[bool]:
        ids = [self._ids.of(key) for key in keys]
        answers = {entry_id: self._recent.get(entry_id) for entry_id in ids}
        unknown = [entry_id for entry_id, known in answers.items() if known is None]
        for at in range(0, len(unknown), _KEYS):
            some = unknown[at : at + _KEYS]
            found = self._ask(partial(self._look, ids=some))
            if found is None:
                break
            self._learn(some, found)
            answers.update(zip(some, found, strict=True))
        return [bool(answers[entry_id]) for entry_id in ids]

    def _learn(self, ids: Sequence[bytes], found: Sequence[bool]) -> None:
        for entry_id, is_there in zip(ids, found, strict=True):
            self._recent.set(entry_id, is_there)

    def peek_many(self, keys: Sequence[str]) -> list[bool | None]:
        ids = [self._ids.of(key) for key in keys]
        answers = [self._recent.get(entry_id) for entry_id in ids]
        unknown = [entry_id for entry_id, known in zip(ids, answers, strict=True) if known is None]
        if unknown and (self._is_closed or not self._ask_later(unknown)):
            return [bool(known) for known in answers]
        return answers

    def _ask_later(self, ids: Sequence[bytes]) -> bool:
        """False where the server is left alone, or has not answered in time."""
        now = time.monotonic()
        with self._lock:
            new = [entry_id for entry_id in dict.fromkeys(ids) if entry_id not in self._asked]
            is_late = any(self._asked.get(entry_id, now) < now for entry_id in ids)
            self._asked.update(dict.fromkeys(new, now + 2 * self._place.timeout))
        if new:
            try:
                self._breaker.enter()
            except Refused:
                self._answered(new)
                return False
            try:
                self._lanes.post(partial(self._look, ids=new), self._place.timeout, partial(self._told, new))
            except Refused as error:
                self._breaker.leave(is_well=False)
                self._answered(new)
                self._trouble(error)
                return False
        return not is_late

    def _told(self, ids: Sequence[bytes], future: "Future[list[bool]]") -> None:
        """By a lane."""
        error = future.exception()
        self._breaker.leave(error is None or isinstance(error, redis.ResponseError))
        if error is not None:
            self._trouble(error)
        self._learn(ids, [False] * len(ids) if error is not None else future.result())
        self._answered(ids)

    def _answered(self, ids: Sequence[bytes]) -> None:
        with self._lock:
            for entry_id in ids:
                self._asked.pop(entry_id, None)

    # Payloads.

    def get_many(self, keys: Sequence[str], most: int) -> list[Stored | None]:
        ids = [self._ids.of(key) for key in keys]
        payloads: list[Stored | None] = []
        step = max(1, min(_KEYS, _EXCHANGE // (most + HEADER_SIZE)))
        for at in range(0, len(ids), step):
            some = ids[at : at + step]
            values = self._ask(partial(self._fetch, ids=some, most=most), len(some) * (most + HEADER_SIZE))
            if values is None:
                break
            payloads += [self._checked(*each, most) for each in zip(keys[at:], some, values, strict=False)]
        payloads += [None] * (len(ids) - len(payloads))
        found = [payload for payload in payloads if payload is not None]
        size = sum(len(payload) for payload in found)
        self._counters.add(hits=len(found), misses=len(ids) - len(found), bytes_out=size)
        return payloads

    def _fetch(self, client: "redis.Redis", ids: Sequence[bytes], most: int) -> list[bytes]:
        """A byte more than can be theirs at most; of one that is not there, nothing."""
        pipeline = client.pipeline(transaction=False)
        for entry_id in ids:
            pipeline.getrange(self._name(entry_id), 0, most + HEADER_SIZE)
        return list(pipeline.execute())

    def _checked(self, key: str, entry_id: bytes, value: bytes, most: int) -> Stored | None:
        payload = payload_of(entry_id, value) if value else None
        if len(value) > most + HEADER_SIZE:
            payload = f"it has more than {most} bytes, and these at most are its own"
        if isinstance(payload, str):
            self._counters.lost(key, payload)
            self.remove(key)
            return None
        self._recent.set(entry_id, payload is not None)
        return payload

    def put_many(self, items: Iterable[tuple[str, Payload]]) -> list[bool]:
        stored: list[bool] = []
        batch: list[tuple[bytes, bytes]] = []
        size = 0
        for key, payload in items:
            parts, entry_id = Parts(payload), self._ids.of(key)
            batch.append((entry_id, b"".join((parts.header(entry_id), *parts.pieces))))
            size += len(batch[-1][1])
            if size > _EXCHANGE or len(batch) == _KEYS:
                stored += self._put(batch, size)
                batch, size = [], 0
        return stored + self._put(batch, size)

    def _put(self, batch: Sequence[tuple[bytes, bytes]], size: int) -> list[bool]:
        if not batch:
            return []
        fitting = [entry for entry in batch if len(entry[1]) <= _MOST_VALUE]
        answers = self._ask(partial(self._send, entries=fitting), size) if fitting else []
        stored = {entry_id: answer is True for (entry_id, _), answer in zip(fitting, answers or [], strict=False)}
        for (entry_id, value), answer in zip(fitting, answers or [], strict=False):
            self._recent.set(entry_id, answer is True)
            if answer is True:
                self._counters.add(bytes_in=len(value) - HEADER_SIZE)
            else:
                self._trouble(answer)
        if len(fitting) < len(batch):
            self._counters.trouble("an entry is not stored", "a value of a Redis has 512 MiB at most")
        return [stored.get(entry_id, False) for entry_id, _ in batch]

    def _send(self, client: "redis.Redis", entries: Sequence[tuple[bytes, bytes]]) -> list[Any]:
        pipeline = client.pipeline(transaction=False)
        for entry_id, value in entries:
            pipeline.set(self._name(entry_id), value)
        return list(pipeline.execute(raise_on_error=False))

    def remove(self, key: str) -> None:
        entry_id = self._ids.of(key)
        self._recent.set(entry_id, False)
        self._ask(lambda client: client.unlink(self._name(entry_id)))

    def touch(self, keys: Sequence[str]) -> None:
        """In the background."""
        names = [self._name(self._ids.of(key)) for key in keys]
        if not names or self._is_closed or self._breaker.is_open():
            return
        try:
            self._lanes.post(lambda client: client.touch(*names), self._place.timeout, lambda future: None)
        except Refused:
            return

    def clear(self) -> None:
        self._recent.clear()
        cursor: int | None = 0
        while cursor is not None:
            cursor = self._ask(partial(self._clear_some, cursor=cursor))

    def _clear_some(self, client: "redis.Redis", cursor: int) -> int | None:
        """Where to go on; None at the end."""
        cursor, names = client.scan(cursor, match=f"kvc:{self._ids.suffix.hex()}:*", count=_KEYS)
        if names:
            client.unlink(*names)
        return cursor or None

    def stats(self) -> StoreStats:
        return self._counters.stats()

    def close(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            self._recent.clear()
            self._lanes.close()
