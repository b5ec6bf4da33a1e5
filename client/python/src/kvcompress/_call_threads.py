"""Threads that make calls for event loops."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, TypeVar

from ._errors import closed

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
        self._lock = threading.Lock()
        self._is_closed = False

    def __del__(self) -> None:
        self._end()  # without the lock, which a thread of a parent's may hold

    def close(self) -> None:
        """Calls that were begun are made to their end; others are refused."""
        with self._lock:
            self._is_closed = True
            self._end()

    def _end(self) -> None:
        for tasks in self._all:
            tasks.put(None)

    def are_busy(self) -> bool:
        return not self._idle and len(self._all) >= self._most

    def run(self, call: Callable[[], Made]) -> "asyncio.Future[Made]":
        """What it gives, in the running loop. A future that is cancelled leaves the call alone."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Made] = loop.create_future()
        with self._lock:  # what comes behind the end of a thread would never be done
            if self._is_closed:
                raise closed()
            tasks = self._idle.pop() if self._idle else self._start()
            tasks.put((call, loop, future))
        return future

    def _start(self) -> _Tasks:
        tasks: _Tasks = SimpleQueue()
        _CallThread(tasks, self._idle).start()
        self._all.append(tasks)
        return tasks


class _CallThread(threading.Thread):
    """Holds nothing of a call, nor the threads' owner, while it waits for the next."""

    def __init__(self, tasks: _Tasks, idle: list[_Tasks]):
        super().__init__(name="kvcompress-call", daemon=True)  # at the end of the process calls are cancelled first
        self.tasks = tasks
        self._idle = idle

    def run(self) -> None:
        while (task := self.tasks.get()) is not None:
            call, loop, future = task
            made: Any = None
            error: BaseException | None = None
            try:
                made = call()
            except StopIteration as raised:  # which no future takes
                error = RuntimeError(f"a call raised {raised!r}")
            except BaseException as raised:
                error = raised
            self._idle.append(self.tasks)
            with contextlib.suppress(Exception):  # of a loop that is closed, by the loop's kind
                loop.call_soon_threadsafe(_complete, future, made, error)
            del task, call, loop, future, made, error


def end(seconds: float) -> None:
    """At the end of the process, once calls are cancelled: waits for the threads. One that asks for the GIL too late is
    ended in the middle of C++, ours or of whoever has made a tensor, and that aborts the process."""
    limit = time.monotonic() + seconds
    threads = [thread for thread in threading.enumerate() if isinstance(thread, _CallThread)]
    for thread in threads:
        thread.tasks.put(None)
    for thread in threads:
        thread.join(max(0.0, limit - time.monotonic()))


def _complete(future: "asyncio.Future[Any]", made: Any, error: BaseException | None) -> None:
    if future.done():  # it was cancelled
        return
    if error is None:
        future.set_result(made)
    else:
        future.set_exception(error)
