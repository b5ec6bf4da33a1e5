"""Calls of a server that may be slow, stopped or gone: each is waited for within a bound, and a server that fails is
left alone for a while."""

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as WaitTimeout  # Python 3.10 has two
from typing import Any, Generic, TypeVar

Client = TypeVar("Client")
Result = TypeVar("Result")

# Failures in a row after which a server is left alone, and for how many seconds: twice as long each time, to a limit.
_FAILURES, _PAUSE, _LONGEST_PAUSE = 3, 0.5, 15.0
# Calls that wait for a lane; what is asked beyond them fails at once.
_MOST_WAITING = 64


class Refused(Exception):
    """No call was made: the server is left alone, or too many wait for it."""


class Breaker:
    """Whoever `enter`s says by `leave` what became of it. After a pause one alone may try."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._failures = 0
        self._pause = _PAUSE
        self._until = 0.0
        self._is_trying = False

    def is_open(self) -> bool:
        """Whether calls are refused."""
        return self._failures >= _FAILURES and (self._is_trying or time.monotonic() < self._until)

    def enter(self) -> None:
        """Raises Refused."""
        with self.lock:
            if self.is_open():
                raise Refused("the server is left alone for a while")
            self._is_trying = self._failures >= _FAILURES

    def leave(self, is_well: bool) -> None:
        with self.lock:
            self._is_trying = False
            if is_well:
                self._failures, self._pause = 0, _PAUSE
                return
            self._failures += 1
            # Once for all calls that were under way together.
            if self._failures >= _FAILURES and time.monotonic() >= self._until:
                self._until = time.monotonic() + self._pause
                self._pause = min(2 * self._pause, _LONGEST_PAUSE)


class _Job(Generic[Client]):
    def __init__(self, work: Callable[[Client], Any], seconds: float):
        self.work = work
        self.deadline = time.monotonic() + seconds
        self.future: Future[Any] = Future()
        self.client: Client | None = None  # once a lane is at it


class Lanes(Generic[Client]):
    """Threads with a client each, that is made by `connect`; `abort`, called by another thread, ends what a client
    waits for. They end with the process."""

    def __init__(self, count: int, connect: Callable[[], Client], abort: Callable[[Client], None]):
        self._connect = connect
        self._abort = abort
        self._jobs: queue.Queue[_Job[Client] | None] = queue.Queue(_MOST_WAITING)
        self._threads = [threading.Thread(target=self._run, name="kvcompress-store", daemon=True) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    def call(self, work: Callable[[Client], Result], seconds: float) -> Result:
        """What `work` returns or raises; TimeoutError after `seconds`, whatever a client waits for. Refused."""
        job = self._post(work, seconds)
        try:
            return job.future.result(seconds)  # type: ignore[no-any-return]
        except WaitTimeout:
            if not job.future.done() and not job.future.cancel() and job.client is not None:
                self._abort(job.client)
            raise TimeoutError(f"no answer in {seconds:.3g} seconds") from None

    def post(self, work: Callable[[Client], Any], seconds: float, done: Callable[["Future[Any]"], None]) -> None:
        """Without waiting; `done` gets the future, at any time, by a lane. Refused."""
        self._post(work, seconds).future.add_done_callback(done)

    def _post(self, work: Callable[[Client], Any], seconds: float) -> _Job[Client]:
        job = _Job(work, seconds)
        try:
            self._jobs.put_nowait(job)
        except queue.Full:
            raise Refused("too many calls wait for the server") from None
        return job

    def _run(self) -> None:
        client: Client | None = None
        while (job := self._jobs.get()) is not None:
            if not job.future.set_running_or_notify_cancel():
                continue
            try:
                if time.monotonic() > job.deadline:
                    raise TimeoutError("the call has waited too long for another one")
                if client is None:
                    client = self._connect()
                job.client = client
                job.future.set_result(job.work(client))
            except BaseException as error:
                job.future.set_exception(error)
        if client is not None:
            self._abort(client)

    def close(self) -> None:
        """Calls that are waiting are refused, and those that are made end as they do."""
        while True:
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                break
            if job is not None and job.future.set_running_or_notify_cancel():
                job.future.set_exception(Refused("the store is closed"))
        for _ in self._threads:
            self._jobs.put(None)
