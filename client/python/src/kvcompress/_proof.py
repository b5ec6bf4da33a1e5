"""That gRPC works in a child of a fork: shown before the first call there, by one that cannot be."""

import math
import threading
import time
from collections.abc import Callable

import grpc

from . import _fork
from ._errors import FailedPrecondition, late

# In which gRPC ends a call that cannot be, where it works: a hundredth of a second elsewhere than on a machine that is
# short of processors or memory.
_SECONDS = 10.0
# The most of it that passes from one look to the next: a process that stood still takes none of the rest.
_STEP = 0.1


class _Proof:
    """Of one process. One that has failed stands, until its call ends after all."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a signal handler may call, too
        self._has_begun = False
        self._ended = threading.Event()
        self._looked = 0.0  # when
        self._waited = 0.0  # seconds, by all threads that waited

    def is_there(self) -> bool:
        return self._ended.is_set()

    def check(self, seconds: float | None) -> None:
        end = math.inf if seconds is None else time.monotonic() + seconds
        self._begin()
        while not self.is_there():
            if self._waited >= _SECONDS:
                raise FailedPrecondition(_fork.HAD_NO_PART)
            left = end - time.monotonic()
            if left <= 0:
                raise late()
            self._ended.wait(min(_STEP, left))
            self._look()

    def _begin(self) -> None:
        with self._lock:
            if self._has_begun:
                return
            self._looked = time.monotonic()
            # Not in this thread: what does not work may be locked for good.
            thread = threading.Thread(
                target=_begin_vain_call, args=(self._ended.set,), name="kvcompress-fork", daemon=True
            )
            thread.start()
            self._has_begun = True

    def _look(self) -> None:
        with self._lock:
            now = time.monotonic()
            self._waited += min(now - self._looked, _STEP)
            self._looked = now


_proofs: dict[int, _Proof] = {}  # by generations: another thread of the parent's may have locked its own


def is_needed() -> bool:
    """Whether it is not known that gRPC works in this process: `check` may take seconds."""
    return _fork.generation() > 0 and not _proof().is_there()


def check(seconds: float | None) -> float | None:
    """What is left of `seconds`. FailedPrecondition in a child of a fork in which gRPC does not work; DeadlineExceeded
    where that is not known within `seconds`."""
    if fault := _fork.fault():
        raise FailedPrecondition(fault)
    if not is_needed():
        return seconds
    began = time.monotonic()
    _proof().check(seconds)
    return None if seconds is None else max(seconds - (time.monotonic() - began), 0.0)


def _proof() -> _Proof:
    generation = _fork.generation()
    return _proofs.get(generation) or _proofs.setdefault(generation, _Proof())


def _begin_vain_call(ended: Callable[[], None]) -> None:
    """To an address that nobody listens at: gRPC ends it at once, by all that it needs for others."""
    with _fork.gate().beside():
        channel = grpc.insecure_channel("unix:/", [("grpc.use_local_subchannel_pool", 1)])
        call = channel.unary_unary("/", bytes, bytes).future(b"")
        _fork.begun(call)
    call.add_done_callback(lambda _: ended())
