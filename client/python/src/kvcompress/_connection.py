"""What both clients are made of."""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import grpc

from . import _fork
from ._call_threads import CallThreads
from ._channel import Channel, no_sharing
from ._core import Core, Message, Streaming
from ._errors import InvalidArgument, KvCompressError, closed
from ._items import Result
from ._native_calls import Choice, NativeChannel, NativeStream, PlainCall
from ._retry import DEFAULT_RETRY, RetryPolicy, checked_seconds
from ._shared_exchange import SharedExchange
from ._shared_memory import Pool
from ._stream import Results, Stream

# Streams of an asyncio client at the same time; more wait for a thread.
_MAX_STREAMS = 64
# Messages with an item, of the same; more go without a thread.
_MAX_MESSAGES = 16


class _Own(NamedTuple):
    """What a client has of its own in one process."""

    generation: int
    channel: Channel
    pool: Pool
    core: Core
    native: NativeChannel
    # Of an asyncio client, for streams and for messages; started when they are needed.
    threads: ThreadPoolExecutor
    call_threads: CallThreads

    def is_known(self) -> bool:
        """Whether the daemon is known to those who make plain calls."""
        return self.native.made is not None and time.monotonic() < self.core.ask_again and not self.core.closed

    def plainly(
        self, plain: PlainCall, args: tuple[Any, ...], options: dict[str, Any], cancellation: Any = None
    ) -> tuple[Any, KvCompressError | None]:
        """The call's result; None, and what it has failed with; or None twice, where it is for the plan to make it,
        with these options."""
        if self.core.closed:
            raise closed()
        result, failure = plain(self.native.made, self.pool, self.core.limits, args, options, cancellation)
        if failure is None:
            return result, None
        end, left, region = failure
        # Those that follow have the rest; one without any would not come to the error.
        options["timeout"] = None if left is None else max(left, 1e-6)
        return None, self.native.plain_failure(end, left, region, self.pool)


class Connection:
    """The plans of a client's calls, and the means to carry them out: a channel, and memory that the daemon shares. In
    a child that was made by fork these are made anew."""

    def __init__(
        self,
        target: str,
        *,
        timeout: float | None = None,
        credentials: grpc.ChannelCredentials | None = None,
        token: str | None = None,
        retry: RetryPolicy = DEFAULT_RETRY,
        shared_memory: bool = True,
        native: Choice | None = None,
    ):
        checked_seconds(timeout)
        if not isinstance(retry, RetryPolicy):
            raise InvalidArgument(f"retry is a RetryPolicy, not {type(retry).__name__}")
        self._arguments = (target, credentials, token, shared_memory, timeout, retry, native)
        self._own = self._make()

    def _make(self) -> _Own:
        target, credentials, token, shared_memory, timeout, retry, native = self._arguments
        channel = Channel(target, credentials, token)
        pool = Pool(channel, no_sharing(target, shared_memory))
        native_channel = NativeChannel(target, credentials, token, native)
        core = Core(timeout, retry, pool.learn, self._takes_items, lambda: pool.is_offered)
        threads = ThreadPoolExecutor(_MAX_STREAMS, thread_name_prefix="kvcompress")
        return _Own(_fork.generation(), channel, pool, core, native_channel, threads, CallThreads(_MAX_MESSAGES))

    def _ours(self) -> _Own:
        own = self._own
        if own.generation == _fork.generation():
            return own
        with _fork.gate().held():
            if self._own is own:
                _fork.leave(own)
                self._own = self._make()
                self._own.core.closed = own.core.closed
            return self._own

    @property
    def _channel(self) -> Channel:
        return self._ours().channel

    @property
    def _pool(self) -> Pool:
        return self._ours().pool

    @property
    def _core(self) -> Core:
        return self._ours().core

    @property
    def _threads(self) -> ThreadPoolExecutor:
        return self._ours().threads

    @property
    def transport(self) -> str:
        """How the last large tensor went: "shared memory", or "connection" and why."""
        return self._pool.transport

    def _takes_items(self) -> bool:
        return self._ours().native.get() is not None

    def _open(self, call: Streaming[Result]) -> Results[Result]:
        """Begins the call, over shared memory where there is some. Not where items are made one after the other: who
        makes one only when the result of another is there would wait for ever, as buffers come from the same thread."""
        own = self._ours()
        if own.core.closed:
            raise closed()
        # Those of any other kind are perhaps made while they are read.
        is_list = isinstance(call.items, (list, tuple))
        is_native = is_list and own.native.get() is not None
        region = own.pool.take(call.left) if is_list or isinstance(call.items, Sequence) else None
        if is_native:
            return NativeStream(
                own.native,
                call.exchange,
                call.items,
                call.left,
                own.pool,
                region=region,
                batches=call.batches,
                forget=call.forget,
            )
        exchange = call.exchange if region is None else SharedExchange(call.exchange, region, own.pool)
        return Stream(own.channel, exchange, call.items, call.left())

    def _answer_of(self, call: Message[Result], cancellation: Any = None) -> Result:
        """By this thread, from beginning to end."""
        own = self._ours()
        if own.core.closed:
            raise closed()
        return own.native.answer(call.item, call.left, cancellation)

    def _close(self) -> None:
        self._core.closed = True
        self._pool.close()
        self._channel.close()
        own = self._ours()
        own.native.close()
        own.threads.shutdown(wait=False)
        own.call_threads.close()
