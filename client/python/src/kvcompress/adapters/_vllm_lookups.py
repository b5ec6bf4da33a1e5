"""Which chunks a store has, asked in a thread of its own: who asks is told at once, or asks again in the next step."""

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

logger = logging.getLogger(__name__)


@dataclass
class _Question:
    asked: float
    found: bool | None = None
    requests: set[str] = field(default_factory=set)


class Lookups:
    """Answers are kept as long as a request asks for them. `patience`: seconds after which one that has not come is
    taken for no. All methods are for one thread at a time."""

    def __init__(self, exists: Callable[[Sequence[bytes]], Sequence[bool]], patience: float):
        self._exists = exists
        self._patience = patience
        self._questions: dict[bytes, _Question] = {}
        self._of_request: dict[str, set[bytes]] = {}
        self._batch: list[tuple[bytes, _Question]] = []
        self._work: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="kvcompress-lookups", daemon=True)
        self._thread.start()

    def lookup(self, key: bytes, request: str) -> bool | None:
        """None: not known yet. What is asked is sent by `flush`."""
        question = self._questions.get(key)
        if question is None:
            question = self._questions[key] = _Question(time.monotonic())
            self._batch.append((key, question))
        question.requests.add(request)
        self._of_request.setdefault(request, set()).add(key)
        if question.found is None and time.monotonic() - question.asked > self._patience:
            return False
        return question.found

    def flush(self) -> None:
        """At the end of a step."""
        if self._batch:
            batch, self._batch = self._batch, []
            self._work.put(lambda: self._answer(batch))

    def later(self, work: Callable[[], object]) -> None:
        """In the thread that asks."""
        self._work.put(work)

    def mark_missing(self, keys: Iterable[bytes]) -> None:
        """What could not be loaded is not found again by the requests that asked for it: they would ask for ever."""
        for key in keys:
            if key in self._questions:
                self._questions[key].found = False

    def forget(self, request: str) -> None:
        for key in self._of_request.pop(request, ()):
            question = self._questions[key]
            question.requests.discard(request)
            if not question.requests:
                del self._questions[key]

    def close(self) -> None:
        """Does not wait for an answer that hangs."""
        self._work.put(None)
        self._thread.join(self._patience)

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            try:
                work()
            except Exception:
                logger.exception("a look-up failed")

    def _answer(self, batch: Sequence[tuple[bytes, _Question]]) -> None:
        answers: Sequence[bool] = [False] * len(batch)
        try:
            answers = self._exists([key for key, _ in batch])
        finally:
            for (_, question), answer in zip(batch, answers, strict=True):
                if question.found is None:
                    question.found = answer
