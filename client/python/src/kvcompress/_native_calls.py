"""Calls that carry tensors and frames, by the gRPC of C++, where the package has its module: without the GIL, and
without a copy of what is sent. The thread that asks for results works at the call."""

import atexit
import os
import threading
from collections.abc import Callable, Iterable
from typing import Any, Literal

import grpc

from . import _call_threads, _fork
from ._errors import Cancelled, FailedPrecondition, InvalidArgument, KvCompressError, failure, unanswered
from ._exchange import Exchange
from ._items import CompressItem, Item, Result
from ._regions import Region
from ._retry import Left
from ._shared_exchange import after_failure
from ._shared_memory import Pool
from ._status import NO_BATCHES
from ._stream import Results
from ._tls import own_fault, pem_of
from ._wire import malformed
from .v1 import kvcompress_pb2 as pb

try:
    from . import _native
except ImportError:
    _native = None  # type: ignore[assignment]

Choice = Literal["auto", "require", "off"]
# Makes a call that is like most, of one tensor or frame, from the arguments of a method to its result: by the
# module's channel, the client's pool, Core.limits, the arguments, and a new_cancellation or None. Gives the result and
# None; or None and what the call has failed with: its end, the seconds that were left, and the memory that it had; or
# None twice, where it is not like most, and the plan makes it.
PlainCall = Callable[[Any, Pool, tuple[int, int, float | None], tuple[Any, ...], dict[str, Any], Any], tuple[Any, Any]]
plain_compress: PlainCall | None = _native.compress if _native else None
plain_decompress: PlainCall | None = _native.decompress if _native else None
_VARIABLE = "KVCOMPRESS_NATIVE"
_MALFORMED = -1
# How a call has ended: gRPC's number of a code, or _MALFORMED; a text, seconds to wait, and the ErrorReason.
_End = tuple[int, str, float | None, int]
_WELL: _End = (0, "", None, 0)
# Seconds that the end of the process waits for threads inside calls, which are cancelled then.
_PATIENCE = 2.0


class NativeChannel:
    """Of one client, to the daemon at `target`; made by the first call. Its arguments are those of Channel, which has
    checked them. `native` is "auto", "require" or "off"; None: as the environment says."""

    def __init__(
        self, target: str, credentials: grpc.ChannelCredentials | None, token: str | None, native: Choice | None
    ):
        self._credentials = credentials
        pem = None if credentials is None else pem_of(credentials)
        self._arguments = (target, pem, token or "")
        self._is_wanted = _is_wanted(native, credentials is not None and pem is None)
        self._lock = threading.Lock()
        self.made: Any = None  # as `get`, once that was called

    def get(self) -> Any:
        """The module's channel; None where calls go Python's way: in a child of a fork, too, whose parent had one."""
        if self.made is None and self._is_wanted:
            with self._lock:
                if self.made is None and _fork.use_native():
                    with _fork.without_support():
                        self.made = _native.Channel(*self._arguments)
        return self.made

    def close(self) -> None:
        """Cancels calls in flight."""
        if self.made is not None:
            self.made.close()

    def answer(self, item: Item[Result], left: Left, cancellation: Any = None) -> Result:
        """Of a call with one item, which goes, and comes back, in a message; `cancellation` is a new_cancellation."""
        end: Any
        found, end = _native.call_with_message(self.get(), _parts_of(item), left(), cancellation)
        if found is None:
            raise self.failure(*end) or unanswered(left())
        result: Result = _result_of(item, found)
        return result

    def plain_failure(self, end: _End, left: float | None, region: Region | None, pool: Pool) -> KvCompressError | None:
        """What a plain call has failed with; None where it is to be made again at once, and in another way."""
        if region is not None and _learn_larger_output(end, region):
            pool.drop(region)
            return None
        error = self.failure(*end) or unanswered(left)
        return error if region is None else after_failure(error, region, pool)

    def failure(self, code: int, text: str, retry_after: float | None, reason: int) -> KvCompressError | None:
        """What a call has ended with; None: well."""
        if code == 0:
            return None
        if code == _MALFORMED:
            return malformed()
        return failure(code, text, retry_after, reason, own_fault(self._credentials))


def _learn_larger_output(end: _End, region: Region) -> bool:
    """Where a call with the region has ended so since its output is larger than is reckoned here, those that follow
    know, and this is True."""
    if end[3] != pb.OUTPUT_BUFFERS_TOO_SMALL:
        return False
    region.link.output_is_larger = True
    return True


def _is_wanted(native: Choice | None, has_other_credentials: bool) -> bool:
    choice = os.environ.get(_VARIABLE, "auto") if native is None else native
    if choice not in ("auto", "require", "off"):
        raise InvalidArgument(f'native is "auto", "require" or "off", not {choice!r}')
    if choice == "require" and _native is None:
        raise FailedPrecondition(
            "this installation of kvcompress has no native client: its README says how it is built"
        )
    return choice != "off" and _native is not None and not has_other_credentials


def new_cancellation() -> Any:
    """By which any thread cancels a call of another, before it has begun, too."""
    return _native.Cancellation()


class NativeStream(Results[Result]):
    """One call with items that are all there. With `batches` small ones go together. A daemon of another version than
    was asked may take them otherwise: then the rest goes one by one in messages; `forget` is called where that knows no
    batches."""

    def __init__(
        self,
        channel: NativeChannel,
        exchange: Exchange[Any, Result],
        sources: Iterable[Any],
        left: Left,
        pool: Pool,
        *,
        region: Region | None = None,
        batches: bool = False,
        forget: Callable[[], None] = lambda: None,
    ):
        self._generation = _fork.generation()
        self._channel, self._left, self._pool, self._region = channel, left, pool, region
        self._call: Any = None
        self._running = threading.Lock()
        self._items: list[Any] = []
        self._places: list[bytes] = []  # of each item that which the daemon reads by itself
        self._error: Exception | None = None  # what the first source is wrong about that is not sent
        self._prepare(exchange, sources)
        self._answered = 0
        self._batches, self._forget, self._is_closed = batches, forget, False
        self._call = self._begin(batches) if self._items else None

    def _prepare(self, exchange: Exchange[Any, Result], sources: Iterable[Any]) -> None:
        try:
            for source in sources:
                item = exchange.prepare(source)
                self._places.append(b"" if item.pieces is None else item.pieces.described())
                self._items.append(item)
        except Exception as error:
            self._error = error

    def _begin(self, batches: bool) -> Any:
        # None holds a reference to the stream, which could not be forgotten otherwise.
        items = [_parts_of(item, place) for item, place in zip(self._items, self._places, strict=True)]
        memory, number = (None, 0) if self._region is None else (self._region.bytes.data, self._region.number)
        output_is_larger = self._region is not None and self._region.link.output_is_larger
        return _native.Call(self._channel.get(), items, self._left(), memory, number, output_is_larger, batches)

    def __next__(self) -> Result:
        if self._generation != _fork.generation():
            raise Cancelled("the stream belongs to the process that this one was forked from")
        with self._running:
            try:
                found, end = self._following()
                if found is None and self._learn(end):
                    self._begin_again()
                    found, end = self._following()
                if found is not None:
                    item = self._items[self._answered]
                    self._answered += 1
                    result: Result = _result_of(item, found)
                    return result
            except BaseException:
                self.close()
                raise
            self._finish(*end)
            raise StopIteration

    def _following(self) -> tuple[Any, _End]:
        """What the module finds next; None at the end of the call, and how that was."""
        found = None if self._call is None else self._call.next()
        return found, _WELL if found is not None or self._call is None else self._call.end()

    def _learn(self, end: _End) -> bool:
        """Where a daemon of another version has ended the call so since it takes items otherwise, the calls that follow
        know, and this is True: the rest can be sent again, plainly."""
        if self._batches and end[:2] == NO_BATCHES:
            self._forget()
            return True
        region = self._region  # which close() in another thread takes away
        return region is not None and _learn_larger_output(end, region)

    def _begin_again(self) -> None:
        self._give_up()
        del self._items[: self._answered], self._places[: self._answered]
        self._answered = 0
        self._batches = False
        self._call = self._begin(False)
        if self._is_closed:  # meanwhile
            self._call.cancel()

    def _finish(self, code: int, text: str, retry_after: float | None, reason: int) -> None:
        """After the last result: raises what the call has ended with."""
        error = self._channel.failure(code, text, retry_after, reason)
        if error is not None and code == _MALFORMED:
            self._give_up()
            raise error
        region, self._region = self._region, None
        if error is not None:
            raise error if region is None else after_failure(error, region, self._pool)
        if region is not None:
            self._pool.put_back(region)
        if self._error is not None:
            raise self._error
        if self._answered < len(self._items):
            raise unanswered(self._left())

    def close(self) -> None:
        """From any thread."""
        if self._generation != _fork.generation():
            _fork.leave((self._call, self._region))
            return
        self._is_closed = True
        if self._call is not None:
            self._call.cancel()
        self._give_up()

    def _give_up(self) -> None:
        # The daemon may still be writing to it.
        region, self._region = self._region, None
        if region is not None:
            self._pool.drop(region)

    def __del__(self) -> None:
        if hasattr(self, "_call"):
            self.close()


def _parts_of(item: Any, place: bytes = b"") -> tuple[Any, ...]:
    """As the module takes items; `place` is what the daemon reads by itself."""
    if isinstance(item, CompressItem):
        return item.header, item.elements, item.tensor_bytes, item.most_frame_bytes(), place
    return item.header, item.elements, item.target


def _result_of(item: Any, found: Any) -> Any:
    """Of what the module has found for it."""
    if not isinstance(item, CompressItem):
        return found
    frame, report = found
    return item.frame(frame, report, is_right=not item.fingerprint)  # the module has compared sizes


@atexit.register
def _end() -> None:
    if _native is not None:
        _native.end(_PATIENCE)
        _call_threads.end(_PATIENCE)
