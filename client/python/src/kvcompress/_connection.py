"""What both clients are made of."""

from collections.abc import Sequence

import grpc

from ._channel import Channel, no_sharing
from ._core import Core, Streaming
from ._errors import closed
from ._items import Result
from ._retry import DEFAULT_RETRY, RetryPolicy
from ._shared_exchange import SharedExchange
from ._shared_memory import Pool
from ._stream import Stream


class Connection:
    """The plans of a client's calls, and the means to carry them out: a channel, and memory that the daemon shares."""

    def __init__(
        self,
        target: str,
        *,
        timeout: float | None = None,
        credentials: grpc.ChannelCredentials | None = None,
        token: str | None = None,
        retry: RetryPolicy = DEFAULT_RETRY,
        shared_memory: bool = True,
    ):
        self._channel = Channel(target, credentials, token)
        self._pool = Pool(self._channel, no_sharing(target, shared_memory))
        self._core = Core(timeout, retry, self._pool.learn)

    @property
    def transport(self) -> str:
        """How the last large tensor went: "shared memory", or "connection" and why."""
        return self._pool.transport

    def _open(self, call: Streaming[Result]) -> Stream[Result]:
        """Begins the call, over shared memory where there is some. Not where items are made one after the other: who
        makes one only when the result of another is there would wait for ever, as buffers come from the same thread."""
        if self._core.closed:
            raise closed()
        region = self._pool.take(call.left) if isinstance(call.items, Sequence) else None
        exchange = call.exchange if region is None else SharedExchange(call.exchange, region, self._pool)
        return Stream(self._channel, exchange, call.items, call.left())

    def _close(self) -> None:
        self._core.closed = True
        self._pool.close()
        self._channel.close()
