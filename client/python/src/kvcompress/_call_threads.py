"""Threads that make calls for event loops."""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, TypeVar

Made = TypeVar("Made")
# What to do, and for which future of which loop; None: nothing any more.
_Tasks = SimpleQueue[tuple[Callable[[], Any], asyncio.AbstractEventLoop, "asyncio.Future[Any]"] | None]


class CallThreads:
    """At most `most` threads, started when they are needed, of which each makes one call at a time: none waits behind
    another. They end with this object. Not those of an executor: its futures and queues take as long as half of a small
    call."""

    def __init__(self, most: int):
        self._most = most
        self._all: list[_Tasks] = []  # of each thread
        self._idle: list[_Tasks] = []  # the last to become so comes first, as its memory is in a cache

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Calls that were begun are made to their end."""
        for tasks in self._all:
            tasks.put(None)

    def are_busy(self) -> bool:
        return not self._idle and len(self._all) >= self._most

    def run(self, call: Callable[[], Made]) -> "asyncio.Future[Made]":
        """What it gives, in the running loop. A future that is cancelled leaves the call alone."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Made] = loop.create_future()
        try:
            tasks = self._idle.pop()
        except IndexError:
            tasks = self._start()
        tasks.put((call, loop, future))
        return future

    def _start(self) -> _Tasks:
        tasks: _Tasks = SimpleQueue()
        # The end of the process waits for calls, but for no thread.
        thread = threading.Thread(target=_work, args=(tasks, self._idle), name="kvcompress-call", daemon=True)
        thread.start()
        self._all.append(tasks)
        return tasks


def _work(tasks: _Tasks, idle: list[_Tasks]) -> None:
    """Holds nothing of a call, nor the threads' owner, while it waits for the next."""
    while (task := tasks.get()) is not None:
        call, loop, future = task
        made, error = None, None
        try:
            made = call()
        except BaseException as raised:
            error = raised
        idle.append(tasks)
        with contextlib.suppress(RuntimeError):  # of a loop that is closed
            loop.call_soon_threadsafe(_complete, future, made, error)
        del task, call, loop, future, made, error


def _complete(future: "asyncio.Future[Any]", made: Any, error: BaseException | None) -> None:
    if future.done():  # it was cancelled
        return
    if error is None:
        future.set_result(made)
    else:
        future.set_exception(error)
