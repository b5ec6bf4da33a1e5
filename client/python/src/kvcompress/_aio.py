"""The client for asyncio: the methods of Client, awaited. What they mean is documented there."""

import asyncio
import functools
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Concatenate, TypeVar

from ._channel import Channel
from ._connection import Connection
from ._core import Arguments, Core, Items, Plan, Step, Streaming, Unary, Wait, Work, method_of
from ._errors import DeadlineExceeded, closed
from ._frame import Frame
from ._items import FrameSource, Result, TensorSource
from ._retry import Left
from ._stream import Stream
from ._tensors import Framework

Made = TypeVar("Made")
# At the same time, of one client; more wait for a thread.
_MAX_STREAMS = 64
# Seconds that gRPC needs to end a call whose deadline is over.
_GRACE = 0.2


def _awaited(
    plan: Callable[Concatenate[Core, Arguments], Plan[Result]],
) -> Callable[Concatenate["AsyncClient", Arguments], Coroutine[Any, Any, Result]]:
    """The method that carries out the plan."""

    @method_of(plan)
    async def method(client: "AsyncClient", /, *args: Arguments.args, **options: Arguments.kwargs) -> Result:
        return await client._run(plan(client._core, *args, **options))

    return method


class AsyncClient(Connection):
    """A daemon at `target`, for one event loop: the one of its first call. Otherwise like Client."""

    @functools.cached_property
    def _unaries(self) -> Channel:
        # Streams are gRPC's blocking ones, in threads: where a daemon refuses a stream that is still being sent,
        # grpc.aio raises "Internal error from Core" instead of the daemon's status.
        return self._channel.for_asyncio()

    @functools.cached_property
    def _threads(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(_MAX_STREAMS, thread_name_prefix="kvcompress")

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Cancels calls in flight."""
        self._close()
        self._threads.shutdown(wait=False)
        await self._unaries.close()

    compress = _awaited(Core.compress)
    decompress = _awaited(Core.decompress)
    metrics = _awaited(Core.metrics)
    capabilities = _awaited(Core.capabilities)
    wait_ready = _awaited(Core.wait_ready)

    def compress_many(
        self, tensors: Items[TensorSource], spec: str = "", *, profile: Any = None, timeout: float | None = None
    ) -> AsyncIterator[Frame]:
        """The input may be asynchronous, and is read in the event loop; or not, and is read in a thread."""
        return self._results(self._core.compress_many(tensors, spec, profile, timeout))

    def decompress_many(
        self, frames: Items[FrameSource], *, as_: Framework | None = None, timeout: float | None = None
    ) -> AsyncIterator[tuple[str, Any]]:
        """The input is as for `compress_many`."""
        return self._results(self._core.decompress_many(frames, as_, timeout))

    async def with_retries(self, work: Callable[[float], Awaitable[Result]], *, timeout: float | None = None) -> Result:
        """`work` is a coroutine function, or another one whose result is awaited."""
        result: Result = await self._run(self._core.with_retries(work, timeout))
        return result

    async def _run(self, plan: Plan[Result]) -> Result:
        try:
            step = next(plan)
            while True:
                try:
                    answer = await self._do(step)
                except Exception as error:
                    step = plan.throw(error)
                else:
                    step = plan.send(answer)
        except StopIteration as end:
            result: Result = end.value
            return result

    async def _do(self, step: Step) -> Any:
        match step:
            case Unary():
                return await self._unaries.unary(step.method, step.request, step.timeout)
            case Streaming():
                return [result async for result in self._results(step)]
            case Work():
                return await step.function(step.seconds)
            case Wait():
                return await asyncio.sleep(step.seconds)

    async def _results(self, call: Plan[Streaming[Result]] | Streaming[Result]) -> AsyncIterator[Result]:
        call = call if isinstance(call, Streaming) else await self._run(call)
        call = replace(call, items=_blocking(call.items, asyncio.get_running_loop()))
        stream = await self._in_thread(call.left, self._open, call, undo=Stream.close)
        try:
            while (result := await self._in_thread(call.left, next, stream, None)) is not None:
                yield result
        finally:
            stream.close()

    async def _in_thread(
        self, left: Left, function: Callable[..., Made], *arguments: Any, undo: Callable[[Made], None] | None = None
    ) -> Made:
        """The function keeps the deadline by itself once it has a thread; others may have them all. `undo` gets what it
        made when nobody waits for that any more."""
        if self._core.closed:
            raise closed()
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


def _blocking(items: Items[Any], loop: asyncio.AbstractEventLoop) -> Iterable[Any]:
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
