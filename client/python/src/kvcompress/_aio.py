"""The client for asyncio: the methods of Client, awaited. What they mean is documented there."""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from typing import Any, Concatenate, TypeVar

from . import _proof
from ._connection import Connection
from ._core import Arguments, Core, Items, Message, Plan, Step, Streaming, Unary, Wait, Work, carries_item, method_of
from ._errors import DeadlineExceeded, KvCompressError, closed, late
from ._frame import Frame
from ._items import FrameSource, OnNonfinite, Result, TensorSource
from ._native_calls import PlainCall, new_cancellation, plain_compress, plain_decompress
from ._retry import GRACE, Left
from ._rotary import RotaryEmbedding
from ._stream import Results
from ._tensors import Framework

Made = TypeVar("Made")
# Of methods: what else is given is for plans, which a thread would only hand the call back to.
_PLAIN_OPTIONS = frozenset(("tensor", "spec", "name", "frame", "out", "timeout"))


def _awaited(
    plan: Callable[Concatenate[Core, Arguments], Plan[Result]], plain: PlainCall | None = None
) -> Callable[Concatenate["AsyncClient", Arguments], Coroutine[Any, Any, Result]]:
    """The method that carries out the plan; but for calls that `plain` makes, once the daemon is known."""

    @method_of(plan)
    async def method(client: "AsyncClient", /, *args: Arguments.args, **options: Arguments.kwargs) -> Result:
        own, failed = client._ours(), None
        may_be = own.is_known() and not own.call_threads.are_busy() and _PLAIN_OPTIONS.issuperset(options)
        if plain is not None and may_be:
            result: Result | None
            result, failed = await client._in_call_thread(own.plainly, plain, args, options)
            if result is not None:
                return result
        return await client._run(plan(client._core, *args, **options), failed)

    return method


class AsyncClient(Connection):
    """Like Client, for any event loop. It can be made outside of one."""

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Cancels calls in flight."""
        self._close()

    compress = _awaited(Core.compress, plain_compress)
    decompress = _awaited(Core.decompress, plain_decompress)
    metrics = _awaited(Core.metrics)
    capabilities = _awaited(Core.capabilities)
    wait_ready = _awaited(Core.wait_ready)

    def compress_many(
        self,
        tensors: Items[TensorSource],
        spec: str = "",
        *,
        profile: Any = None,
        on_nonfinite: OnNonfinite = "error",
        rotary: RotaryEmbedding | None = None,
        timeout: float | None = None,
    ) -> AsyncIterator[Frame]:
        """The input may be asynchronous, and is read in the event loop; or not, and is read in a thread."""
        return self._results(self._core.compress_many(tensors, spec, profile, on_nonfinite, rotary, timeout))

    def decompress_many(
        self,
        frames: Items[FrameSource],
        *,
        out: Iterable[Any] | None = None,
        as_: Framework | None = None,
        timeout: float | None = None,
    ) -> AsyncIterator[tuple[str, Any]]:
        """The input is as for `compress_many`. A thread may write `out` for a moment after the call was cancelled."""
        return self._results(self._core.decompress_many(frames, out, as_, timeout))

    async def with_retries(self, work: Callable[[float], Awaitable[Result]], *, timeout: float | None = None) -> Result:
        """`work` is a coroutine function, or another one whose result is awaited."""
        result: Result = await self._run(self._core.with_retries(work, timeout))
        return result

    async def _run(self, plan: Plan[Result], failed: KvCompressError | None = None) -> Result:
        """`failed`: what the first step that would send an item has come to already."""
        try:
            step = next(plan)
            while True:
                try:
                    if failed is not None and carries_item(step):
                        error, failed = failed, None
                        raise error
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
            case Message():
                return await self._message(step)
            case Unary():
                return await self._unary(step)
            case Streaming():
                return await self._list(step)
            case Work():
                return await step.function(step.seconds)
            case Wait():
                return await asyncio.sleep(step.seconds)

    async def _unary(self, call: Unary) -> bytes | None:
        left = call.timeout
        if _proof.is_needed():
            left = await self._in_thread(lambda: call.timeout, _proof.check, left)
        return await _within(left, self._channel.unary(call.method, call.request, left), late)

    def _takes_items(self) -> bool:
        return not self._ours().call_threads.are_busy() and super()._takes_items()

    async def _message(self, call: Message[Result]) -> Result:
        if self._core.closed:
            raise closed()
        return await self._in_call_thread(self._answer_of, call)

    async def _in_call_thread(self, function: Callable[..., Made], *arguments: Any) -> Made:
        """The function is given a new_cancellation, too, and keeps the deadline by itself."""
        cancellation = new_cancellation()
        try:
            return await self._ours().call_threads.run(partial(function, *arguments, cancellation))
        except BaseException:
            cancellation.cancel()
            raise

    async def _list(self, call: Streaming[Result]) -> list[Result]:
        """By one thread, from the beginning of the call to its end."""
        work = _Listing(self, call)
        try:
            return await self._in_thread(call.left, work.run)
        except BaseException:
            work.close()
            raise

    async def _results(self, call: Plan[Streaming[Result]] | Streaming[Result]) -> AsyncIterator[Result]:
        call = call if isinstance(call, Streaming) else await self._run(call)
        call = replace(call, items=_blocking(call.items, asyncio.get_running_loop()))
        stream = await self._in_thread(call.left, self._open, call, undo=lambda stream: stream.close())
        try:
            while (result := await self._in_thread(call.left, next, stream, None)) is not None:
                yield result
        finally:
            stream.close()

    async def _in_thread(
        self,
        left: Left,
        function: Callable[..., Made],
        *arguments: Any,
        undo: Callable[[Made], None] | None = None,
    ) -> Made:
        """The function keeps the deadline by itself once it has a thread; others may have them all. `undo` gets what it
        made when nobody waits for that any more."""
        if self._core.closed:
            raise closed()
        work = self._threads.submit(function, *arguments)
        try:
            return await _within(left(), work, lambda: DeadlineExceeded("no thread in time: too many streams at once"))
        except BaseException:
            if undo is not None:
                work.add_done_callback(lambda done: _undo(done, undo))
            raise


class _Listing:
    """Of all results of a call, in a thread."""

    def __init__(self, client: AsyncClient, call: Streaming[Any]):
        self._client = client
        self._call = call
        self._results: Results[Any] | None = None
        self._is_closed = False

    def run(self) -> list[Any]:
        self._results = self._client._open(self._call)
        if self._is_closed:
            self._results.close()
        return list(self._results)

    def close(self) -> None:
        """In another thread."""
        self._is_closed = True
        if self._results is not None:
            self._results.close()


async def _within(seconds: float | None, work: "Future[Made]", late: Callable[[], DeadlineExceeded]) -> Made:
    try:
        return await asyncio.wait_for(asyncio.wrap_future(work), None if seconds is None else seconds + GRACE)
    except asyncio.TimeoutError as error:
        # DeadlineExceeded is a TimeoutError, too: of the work itself.
        if isinstance(error, DeadlineExceeded):
            raise
        raise late() from None


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
