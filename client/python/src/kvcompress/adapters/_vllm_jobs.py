"""Jobs that move chunks between an engine's memory and a store: carried out by a few threads, and given up where these
hang, so that who submits never waits, and who drains does not wait for ever."""

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field

logger = logging.getLogger(__name__)


class GivenUp(Exception):
    """The engine's memory is not the task's any more."""


@dataclass(frozen=True)
class Chunk:
    key: bytes
    start: int | None  # position of its first token, where that is known


class Task:
    """Some chunks of one job, which one thread works on together."""

    def __init__(self, chunks: Sequence[Chunk], is_load: bool):
        self.chunks = chunks
        self.is_load = is_load
        self.done: Collection[bytes] = ()  # keys that were moved
        self.failures: dict[bytes, str] = {}  # why others were not
        self._memory = threading.Lock()
        self._is_given_up = False

    @contextlib.contextmanager
    def memory(self) -> Iterator[None]:
        """While the rows are read or written. GivenUp where they are not the task's any more."""
        with self._memory:
            if self._is_given_up:
                raise GivenUp
            yield

    def give_up(self) -> bool:
        """Whether the rows are left alone from now on: not in the middle of being read or written."""
        if not self._memory.acquire(blocking=False):
            return False
        self._is_given_up = True
        self._memory.release()
        return True


@dataclass
class Job:
    """`done` are the keys that were moved, of all of its tasks; `failures` say in a word why others were not."""

    number: int
    is_load: bool
    keys: list[bytes]
    submitted: float = field(default_factory=time.monotonic)
    ended: float = 0.0
    done: list[bytes] = field(default_factory=list)
    failures: dict[bytes, str] = field(default_factory=dict)


class Jobs:
    """`work` carries out a task, and gives the keys that it moved. Loads go before stores, of which `most_storing` are
    worked on at once: 1 keeps them in order. `most_waiting`: tasks of each kind; jobs over that fail at once.
    `patience`: seconds without an end of any task, after which the jobs that have waited as long are given up."""

    def __init__(
        self,
        work: Callable[[Task], Collection[bytes]],
        threads: int,
        most_storing: int,
        most_waiting: int,
        patience: float,
    ):
        self._work = work
        self._most_waiting = most_waiting
        self._patience = patience
        self._changed = threading.Condition()
        self._loads: deque[tuple[Job, Task]] = deque()
        self._stores: deque[tuple[Job, Task]] = deque()
        self._storing = 0
        self._most_storing = most_storing
        self._open: dict[int, tuple[Job, list[Task]]] = {}  # tasks that have not ended
        self._finished: deque[Job] = deque()
        self._last_end = 0.0
        self._is_closed = False
        self._threads = [
            threading.Thread(target=self._run, name=f"kvcompress-jobs-{index}", daemon=True) for index in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, job: Job, tasks: Sequence[Task]) -> None:
        waiting = self._loads if job.is_load else self._stores
        with self._changed:
            taken = not self._is_closed and len(waiting) + len(tasks) <= self._most_waiting
            if taken and tasks:
                self._open[job.number] = (job, list(tasks))
                waiting.extend((job, task) for task in tasks)
                self._changed.notify(len(tasks))
            else:
                self._end(job, "busy")

    def finished(self) -> list[Job]:
        """That have ended since this was last asked."""
        with self._changed:
            self._give_up_stuck()
            ended = list(self._finished)
            self._finished.clear()
        return ended

    def has_open(self) -> bool:
        return bool(self._open) or bool(self._finished)

    def drain(self) -> None:
        """Returns when all jobs have ended, and the engine's memory is left alone."""
        with self._changed:
            while self._open:
                self._changed.wait(min(0.1, self._patience))
                self._give_up_stuck()

    def close(self) -> None:
        """What has not begun fails; what has is waited for, as long as `drain` would."""
        with self._changed:
            self._is_closed = True
            for job, task in [*self._loads, *self._stores]:
                if task.give_up():
                    self._task_ended(job, task)
            self._loads.clear()
            self._stores.clear()
            self._changed.notify_all()
        self.drain()
        for thread in self._threads:
            thread.join(0.5)

    def _run(self) -> None:
        while (next_one := self._take()) is not None:
            job, task = next_one
            try:
                with task.memory():
                    pass
                task.done = self._work(task)
            except GivenUp:
                pass
            except Exception:
                logger.exception("%d chunks are not %s", len(task.chunks), "loaded" if task.is_load else "stored")
                task.failures = {chunk.key: "fault" for chunk in task.chunks}
            with self._changed:
                self._last_end = time.monotonic()
                self._storing -= not task.is_load
                self._task_ended(job, task)
                self._changed.notify_all()

    def _take(self) -> tuple[Job, Task] | None:
        with self._changed:
            while True:
                if self._loads:
                    return self._loads.popleft()
                if self._stores and self._storing < self._most_storing:
                    self._storing += 1
                    return self._stores.popleft()
                if self._is_closed:
                    return None
                self._changed.wait()

    def _task_ended(self, job: Job, task: Task) -> None:
        found = self._open.get(job.number)
        if found is None or task not in found[1]:
            return  # it was given up before
        found[1].remove(task)
        job.done.extend(task.done)
        job.failures.update(task.failures)
        if not found[1]:
            del self._open[job.number]
            self._end(job, "stuck")

    def _end(self, job: Job, otherwise: str) -> None:
        """What was neither moved nor has a failure has this one."""
        job.ended = time.monotonic()
        done = set(job.done)
        job.failures = {key: job.failures.get(key, otherwise) for key in job.keys if key not in done}
        self._finished.append(job)

    def _give_up_stuck(self) -> None:
        now = time.monotonic()
        for job, tasks in list(self._open.values()):
            if now - max(job.submitted, self._last_end) <= self._patience:
                continue
            for task in [task for task in tasks if task.give_up()]:
                logger.warning("%d chunks are given up after %.1f s", len(task.chunks), now - job.submitted)
                self._task_ended(job, task)
                # What has not begun would keep its memory until a thread that hangs comes back.
                with contextlib.suppress(ValueError):
                    (self._loads if job.is_load else self._stores).remove((job, task))
