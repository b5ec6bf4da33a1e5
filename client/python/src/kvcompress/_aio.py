"""The client for asyncio: the methods of Client, awaited. What they mean is documented there."""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import grpc
import grpc.aio

from . import _channel
from ._client import WAIT_READY
from ._errors import DeadlineExceeded, KvCompressError, Unavailable, closed, from_rpc, unanswered
from ._exchange import CompressExchange, DecompressExchange, Exchange
from ._frame import Frame
from ._items import CompressItem, DecompressItem, FrameSource, TensorSource, profile_json
from ._retry import DEFAULT_RETRY, Attempts, Left, RetryPolicy
from ._shared_exchange import shared
from ._shared_memory import Pool
from ._stream import Stream
from ._tensors import Framework
from .v1 import kvcompress_pb2 as pb

Result = TypeVar("Result")
Made = TypeVar("Made")
# At the same time, of one client; more wait for a thread.
_MAX_STREAMS = 64
# Seconds that gRPC needs to end a call whose deadline is over.
_GRACE = 0.2


class AsyncClient:
    """A daemon at `target`, for the event loop that it was made in. Otherwise like Client."""

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
        self._metadata = _channel.metadata(token, target, credentials is not None)
        options = _channel.channel_options()
        # Streams are gRPC's blocking ones, in threads: where a daemon refuses a stream that is still being sent,
        # grpc.aio puts "Internal error from Core" in the place of the daemon's status.
        if credentials is None:
            self._channel = grpc.aio.insecure_channel(target, options)
            self._stream_channel = grpc.insecure_channel(target, options)
        else:
            self._channel = grpc.aio.secure_channel(target, credentials, options)
            self._stream_channel = grpc.secure_channel(target, credentials, options)
        self._threads = ThreadPoolExecutor(_MAX_STREAMS, thread_name_prefix="kvcompress")
        self._timeout = timeout
        self._retry = retry
        self._message_bytes: int | None = None
        self._closed = False
        self._pool = Pool(self._stream_channel, self._metadata, _channel.no_sharing(target, shared_memory))

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Cancels calls in flight."""
        self._closed = True
        self._pool.close()
        await self._channel.close()
        self._stream_channel.close()
        self._threads.shutdown(wait=False)

    @property
    def transport(self) -> str:
        return self._pool.transport

    async def compress(
        self,
        tensor: Any,
        spec: str = "",
        *,
        name: str = "tensor",
        axes: Sequence[str] | None = None,
        profile: Any = None,
        timeout: float | None = None,
    ) -> Frame:
        item = CompressItem.of(name, tensor, spec, axes, profile_json(profile, spec))

        async def attempt(left: Left) -> Frame:
            most = await self._ready(left)
            if item.size() <= most:
                return item.answer(await self._unary("CompressTensor", item.request(), left))
            (frame,) = [frame async for frame in self._stream(CompressExchange(most), [item], left)]
            return frame

        return await self._retried(attempt, timeout)

    async def decompress(
        self,
        frame: Frame | bytes | bytearray | memoryview,
        *,
        out: Any = None,
        as_: Framework | None = None,
        timeout: float | None = None,
    ) -> Any:
        item = DecompressItem.of(frame, out, as_)

        async def attempt(left: Left) -> Any:
            most, size = await self._ready(left), item.size()
            if size is not None and size <= most:
                return item.answer(await self._unary("DecompressTensor", item.request(), left))[1]
            ((_, tensor),) = [pair async for pair in self._stream(DecompressExchange(most), [item], left)]
            return tensor

        return await self._retried(attempt, timeout)

    async def compress_many(
        self,
        tensors: AsyncIterable[TensorSource] | Iterable[TensorSource],
        spec: str = "",
        *,
        profile: Any = None,
        timeout: float | None = None,
    ) -> AsyncIterator[Frame]:
        """The input may be asynchronous, and is read in the event loop; or not, and is read in a thread."""
        left = Attempts(self._retry, self._limit(timeout)).left
        text = profile_json(profile, spec)
        most = await self._ready(left)
        async for frame in self._stream(CompressExchange(most, spec, text), tensors, left):
            yield frame

    async def decompress_many(
        self,
        frames: AsyncIterable[FrameSource] | Iterable[FrameSource],
        *,
        as_: Framework | None = None,
        timeout: float | None = None,
    ) -> AsyncIterator[tuple[str, Any]]:
        left = Attempts(self._retry, self._limit(timeout)).left
        most = await self._ready(left)
        async for pair in self._stream(DecompressExchange(most, as_), frames, left):
            yield pair

    async def metrics(self, *, timeout: float | None = None) -> pb.MetricsResponse:
        return await self._retried(self._metrics, timeout)

    async def capabilities(
        self, headers: Iterable[pb.CompressHeader] = (), *, timeout: float | None = None
    ) -> pb.CapabilitiesResponse:
        request = pb.CapabilitiesRequest(headers=headers)
        return await self._retried(lambda left: self._capabilities(request, left), timeout)

    async def wait_ready(self, timeout: float | None = None) -> None:
        async def attempt(left: Left) -> None:
            if (await self._metrics(left)).draining:
                raise Unavailable("the daemon drains")
            await self._ready(left)

        await self._retried(attempt, timeout, WAIT_READY)

    def _limit(self, timeout: float | None) -> float | None:
        return self._timeout if timeout is None else timeout

    async def _retried(
        self,
        attempt: Callable[[Left], Awaitable[Result]],
        timeout: float | None,
        policy: RetryPolicy | None = None,
    ) -> Result:
        attempts = Attempts(policy or self._retry, self._limit(timeout))
        while True:
            try:
                return await attempt(attempts.left)
            except KvCompressError as error:
                delay = attempts.delay_after(error)
            await asyncio.sleep(delay)

    async def _ready(self, left: Left) -> int:
        if self._message_bytes is None:
            said = await self._capabilities(pb.CapabilitiesRequest(), left)
            self._pool.learn(said)
            self._message_bytes = _channel.message_bytes(said)
        return self._message_bytes

    async def _metrics(self, left: Left) -> pb.MetricsResponse:
        return pb.MetricsResponse.FromString(await self._unary("Metrics", b"", left))

    async def _capabilities(self, request: pb.CapabilitiesRequest, left: Left) -> pb.CapabilitiesResponse:
        reply = await self._unary("Capabilities", request.SerializeToString(), left)
        return pb.CapabilitiesResponse.FromString(reply)

    async def _unary(self, method: str, request: bytes, left: Left) -> bytes:
        call = self._channel.unary_unary(_channel.SERVICE + method, _channel.unchanged, _channel.unchanged)
        try:
            reply: bytes | None = await call(request, timeout=left(), metadata=self._metadata)
        except grpc.RpcError as error:
            raise from_rpc(error) from None
        except grpc.aio.UsageError:
            if self._closed:
                raise closed() from None
            raise
        if reply is None:
            raise unanswered(left())
        return reply

    async def _stream(
        self,
        exchange: Exchange[Any, Result],
        items: AsyncIterable[Any] | Iterable[Any],
        left: Left,
    ) -> AsyncIterator[Result]:
        if self._closed:
            raise closed()
        source = _blocking(items, asyncio.get_running_loop())
        call = await self._in_thread(left, shared, exchange, source, self._pool, left, undo=lambda call: call.give_up())
        stream = Stream(self._stream_channel, call, source, left(), self._metadata)
        try:
            while (result := await self._in_thread(left, next, stream, None)) is not None:
                yield result
        finally:
            stream.close()

    async def _in_thread(
        self, left: Left, function: Callable[..., Made], *arguments: Any, undo: Callable[[Made], None] | None = None
    ) -> Made:
        """The function keeps the deadline by itself once it has a thread; others may have them all. `undo` gets what it
        made when nobody waits for that any more."""
        work = self._threads.submit(function, *arguments)
        seconds = left()
        try:
            return await asyncio.wait_for(asyncio.wrap_future(work), None if seconds is None else seconds + _GRACE)
        except BaseException as error:
            if undo is not None:
                work.add_done_callback(lambda done: _undo(done, undo))
            # DeadlineExceeded is a TimeoutError, too.
            if isinstance(error, asyncio.TimeoutError) and not isinstance(error, DeadlineExceeded):
                raise DeadlineExceeded("no thread in time: too many streams at once") from None
            raise


def _undo(done: "Future[Made]", undo: Callable[[Made], None]) -> None:
    if not done.cancelled() and done.exception() is None:
        undo(done.result())


def _blocking(items: AsyncIterable[Any] | Iterable[Any], loop: asyncio.AbstractEventLoop) -> Iterable[Any]:
    """The same items for another thread, which waits while the loop makes them."""
    if not isinstance(items, AsyncIterable):
        return items
    iterator = aiter(items)

    async def following() -> Any:
        return await anext(iterator)

    def generate() -> Iterator[Any]:
        while True:
            try:
                yield asyncio.run_coroutine_threadsafe(following(), loop).result()
            except StopAsyncIteration:
                return

    return generate()
