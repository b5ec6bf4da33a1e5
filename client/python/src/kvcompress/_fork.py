"""What holds in a child that was made by fork: gRPC works there, and nothing of the parent's is touched.

Whoever holds what belongs to one process alone (a channel, a stream, shared memory) notes the generation in which it
was made, and makes it anew in another one. gRPC's threads are gone in a child, and so may be the holders of locks.

A thread inside gRPC keeps gRPC from its part of a fork, and the child from gRPC's locks. So all that our threads do
there is done inside the gate, which a fork closes.
"""

import contextlib
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

_VARIABLE = "GRPC_ENABLE_FORK_SUPPORT"
# gRPC reads it while it is imported, which is why nothing here imports it. Without its support every call in a child
# waits for ever.
if "grpc" not in sys.modules:
    os.environ.setdefault(_VARIABLE, "1")
_IS_SUPPORTED = os.environ.get(_VARIABLE, "").lower() in ("1", "true", "yes")
# Seconds that a fork waits for messages that are being sent.
_PATIENCE = 1.0
# For threads inside gRPC, which need nothing but a processor to leave it: a machine that is short of these takes long.
_PATIENCE_INSIDE = 10.0
# Those of streams that are read from go on their way, however slow the daemon is.
_PATIENCE_WITH_READERS = 4.0


# Of a child.
HAD_NO_PART = (
    "gRPC does not work in this process: threads were inside gRPC for longer than the fork waited. Fork while no "
    "stream is being read or written, or start processes by spawn or forkserver"
)


class Stream:
    """What the gate is to know of one: `wake` makes gRPC's thread look up, which sees only then that a fork waits."""

    def __init__(self, wake: Callable[[], object]):
        self.wake = wake


class Gate:
    """A fork waits until nobody is inside, and lets nobody in meanwhile."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._forking: int | None = None  # the thread that forks
        self._is_closed = False  # to all; while a thread forks, messages are held before, too
        # Threads inside, as often as they are: one that begins a call or makes a channel, and those that do other work.
        self._beginning: list[int] = []
        self._working: list[int] = []
        self._sending: set[Stream] = set()
        self._receiving: dict[int, Stream] = {}  # by threads
        self._later: list[Callable[[], object]] = []

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """While a channel is made, and a call begun, by one thread at a time; never while something is awaited."""
        thread = threading.get_ident()
        with self._changed:
            # Who waits here for another is not inside, or a fork of that one would wait for both.
            self._changed.wait_for(lambda: self._is_open() and set(self._beginning) <= {thread})
            self._beginning.append(thread)
        try:
            yield
        finally:
            self._leave(self._beginning)

    @contextlib.contextmanager
    def beside(self) -> Iterator[None]:
        """As `held`, but others may be inside, too: for what may never end."""
        with self._changed:
            self._changed.wait_for(self._is_open)
            self._working.append(threading.get_ident())
        try:
            yield
        finally:
            self._leave(self._working)

    @contextlib.contextmanager
    def receiving(self, stream: Stream) -> Iterator[None]:
        """While gRPC is asked for the next message of `stream`, and until that is there. A fork waits for the question
        alone, after which the thread sleeps in a Condition."""
        thread = threading.get_ident()
        with self._changed:
            self._changed.wait_for(self._is_open)
            self._receiving[thread] = stream
        try:
            yield
        finally:
            with self._at_the_end():
                self._receiving.pop(thread, None)

    def sending(self, stream: Stream, messages: Iterator[bytes]) -> Iterator[bytes]:
        """The same messages, of `stream`, for a thread of gRPC's, which asks for the next when the last is sent. When
        that happens while a fork begins, gRPC's threads lock each other out."""
        for message in messages:
            with self._changed:
                self._changed.wait_for(lambda: self._forking is None)
                self._sending.add(stream)
            try:
                yield message
            finally:
                with self._at_the_end():
                    self._sending.discard(stream)

    def soon(self, work: Callable[[], object]) -> None:
        """Does it inside; after the fork, where the gate is closed. For what destructors do, too: in gRPC's threads,
        which a fork waits for."""
        with self._changed:
            if not self._is_open():
                self._later.append(work)
                return
            self._working.append(threading.get_ident())
        try:
            work()
        finally:
            self._leave(self._working)

    def close(self) -> None:
        """By the thread that forks. Whatever is not over in time goes on: gRPC may not work in the child."""
        with self._changed:
            if self._forking == threading.get_ident():
                return
            self._changed.wait_for(lambda: self._forking is None)
            self._forking = threading.get_ident()
            self._look_until(lambda: not _is_resuming())
            # Results are taken meanwhile, or the daemon would take no messages.
            self._changed.wait_for(lambda: not self._sending, _PATIENCE)
            self._changed.wait_for(lambda: self._sending.isdisjoint(self._read_by_others()), _PATIENCE_WITH_READERS)
            self._is_closed = True
            self._look_until(self._is_quiet)
            still = list(self._sending)
        # Once it waits for the fork's end, messages that are sent after all do no harm.
        for stream in still:
            stream.wake()

    def open(self) -> None:
        with self._changed:
            self._forking, self._is_closed = None, False
            later, self._later = self._later, []
            self._changed.notify_all()
        for work in later:
            self.soon(work)

    def _look_until(self, is_so: Callable[[], bool]) -> None:
        """Where nobody tells when it is."""
        end = time.monotonic() + _PATIENCE_INSIDE
        while not is_so() and time.monotonic() < end:
            self._changed.wait(0.001)

    def _read_by_others(self) -> Iterator[Stream]:
        """Than this thread."""
        return (stream for thread, stream in self._receiving.items() if thread != threading.get_ident())

    def _is_open(self) -> bool:
        return not self._is_closed or self._forking == threading.get_ident()

    @contextlib.contextmanager
    def _at_the_end(self) -> Iterator[None]:
        if self is not gate():  # but a parent's, whose lock may be held for good
            yield
            return
        with self._changed:
            yield
            self._changed.notify_all()

    def _leave(self, threads: list[int]) -> None:
        with self._at_the_end():
            threads.remove(threading.get_ident())

    def _is_quiet(self) -> bool:
        """But for this thread, which forks: what it was at, in a signal handler's middle, goes on after that."""
        this, frames = threading.get_ident(), sys._current_frames()
        return all(thread == this for thread in self._beginning + self._working) and all(
            frames[thread].f_code is threading.Condition.wait.__code__ for thread in self._receiving if thread != this
        )


def _is_resuming() -> bool:
    """Whether a thread of gRPC's that the fork before this one has stopped has not gone on yet. gRPC takes it for one
    that is still stopped, until it is counted again: it would go on in the middle of this fork."""
    state = getattr(_cython(), "_fork_state", None)
    stopped = getattr(state, "fork_in_progress_condition", None)
    count = getattr(getattr(state, "active_thread_count", None), "_condition", None)
    is_at = {(threading.Condition.wait.__code__, id(stopped)), (threading.Condition.__enter__.__code__, id(count))}
    return any(
        (frame.f_code, id(frame.f_locals["self"])) in is_at
        for frame in sys._current_frames().values()
        if frame.f_code in (threading.Condition.wait.__code__, threading.Condition.__enter__.__code__)
    )


def _cython() -> Any:
    """gRPC's own module, where something has imported it."""
    return sys.modules.get("grpc._cython.cygrpc")


class _Process:
    """Of this process."""

    generation = 0  # how many forks it is away from the process that imported this module
    has_used_grpc = False  # it, or one that it comes from
    fault = ""
    native_generation: int | None = None  # of the process that has used the gRPC of C++
    variable = threading.Lock()
    gate = Gate()
    # Destructors of what the parent has would wait for locks that nobody will ever release.
    left: ClassVar[list[Any]] = []
    calls: ClassVar["weakref.WeakSet[Any]"] = weakref.WeakSet()  # gRPC's states of them, each with a condition


def generation() -> int:
    """Another one in each child."""
    return _Process.generation


def gate() -> Gate:
    """Of this process."""
    return _Process.gate


def fault() -> str:
    """Why gRPC cannot be used in this process; "" where it can."""
    return _Process.fault


def use_grpc() -> None:
    """After a channel was made, which is when gRPC registers what it does before a fork. What is registered later is
    called earlier."""
    if not _Process.has_used_grpc and hasattr(os, "register_at_fork"):
        os.register_at_fork(before=_before_fork)
    _Process.has_used_grpc = True


def use_native() -> bool:
    """Whether this process may use the gRPC of C++, and does. It does not work in children of one that has used it."""
    if _Process.native_generation is None:
        _Process.native_generation = _Process.generation
    return _Process.native_generation == _Process.generation


@contextlib.contextmanager
def without_support() -> Iterator[None]:
    """While another gRPC than grpcio reads the variable: its support for forks would wait, in a fork, for threads that
    are inside calls."""
    with _Process.variable:
        before = os.environ.get(_VARIABLE)
        os.environ[_VARIABLE] = "0"
        try:
            yield
        finally:
            if before is None:
                del os.environ[_VARIABLE]
            else:
                os.environ[_VARIABLE] = before


def begun(call: object) -> None:
    """Of gRPC's, inside the gate. gRPC ends it in a child, for which it takes the call's condition; a thread that waits
    for answers holds that for a moment every 100 ms, and for good in a child whose fork came just then."""
    state = getattr(call, "_state", None)
    if hasattr(state, "reset_postfork_child"):
        _Process.calls.add(state)


def leave(what: Any) -> None:
    """Keeps for good what belongs to another process, so that nothing becomes of it here."""
    _Process.left.append(what)


def _before_fork() -> None:
    _Process.gate.close()


def _after_in_parent() -> None:
    _Process.gate.open()


def _after_in_child() -> None:
    """Before gRPC's part, which is registered later."""
    for state in _Process.calls:
        state.reset_postfork_child()
    leave(_Process.gate)
    _Process.gate = Gate()
    _Process.generation += 1
    if _Process.has_used_grpc and not _IS_SUPPORTED:
        _Process.fault = (
            "gRPC does not work in this process: it was forked from one that had used gRPC without support for that. "
            f"Import kvcompress before grpc, or set {_VARIABLE}=1, or start processes by spawn or forkserver"
        )
    elif getattr(_cython(), "_fork_handler_failed", False):
        _Process.fault = _Process.fault or HAD_NO_PART


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_in_parent, after_in_child=_after_in_child)
