"""One streaming call, whose results are iterated."""

from collections.abc import Iterable, Iterator
from typing import Any, Generic

from . import _fork
from ._channel import Channel
from ._errors import Cancelled, KvCompressError
from ._exchange import Call
from ._items import Result


class Results(Iterator[Result], Generic[Result]):
    """Of one call, in order. One that is closed, or forgotten, is cancelled."""

    def close(self) -> None:
        """From any thread."""
        raise NotImplementedError


class Stream(Results[Result]):
    """Begins the call at once. gRPC reads `items` in a thread of its own, as fast as the daemon takes them; it takes
    them as fast as results are asked for."""

    def __init__(self, channel: Channel, exchange: Call[Result], items: Iterable[Any], timeout: float | None):
        self._exchange = exchange
        self._generation = _fork.generation()
        try:
            self._answers = channel.stream(exchange.method, _requests(exchange, items), exchange.over, timeout)
        except BaseException:
            exchange.give_up()
            raise

    def __next__(self) -> Result:
        if self._generation != _fork.generation():
            raise Cancelled("the stream belongs to the process that this one was forked from")
        while True:
            try:
                message = next(self._answers)
            except StopIteration:
                self._exchange.finish(self._answers.time_remaining())
                raise
            except KvCompressError as error:
                raise self._exchange.failed(error) from None
            try:
                result = self._exchange.receive(message)
            except BaseException:
                self.close()
                raise
            if result is not None:
                return result

    def close(self) -> None:
        """From any thread."""
        if self._generation != _fork.generation():
            _fork.leave((self._answers, self._exchange))
            return
        self._answers.cancel()
        self._exchange.give_up()

    def __del__(self) -> None:
        if hasattr(self, "_answers"):
            self.close()


def _requests(exchange: Call[Any], items: Iterable[Any]) -> Iterator[bytes]:
    # It holds no reference to the stream, which could not be forgotten otherwise.
    prepared = _prepared(exchange, items)
    try:
        while (item := _following(exchange, prepared)) is not None:
            yield from exchange.send(item)
    except Exception as error:
        exchange.error = error
    yield from exchange.rest()


def _prepared(exchange: Call[Any], items: Iterable[Any]) -> Iterator[Any]:
    for item in items:
        yield exchange.prepare(item)


def _following(exchange: Call[Any], prepared: Iterator[Any]) -> Any:
    """The next item; None at their end. An input may raise anything, SystemExit, too: that would end gRPC's thread, and
    the call would wait for what it sends."""
    try:
        return next(prepared, None)
    except BaseException as error:
        exchange.error = error
        return None
