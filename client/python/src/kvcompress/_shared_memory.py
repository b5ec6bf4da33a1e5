"""The memory that a client shares with a daemon on the same machine: how it is kept for later calls, and given up."""

import atexit
import contextlib
import errno
import logging
import os
import threading
import time
import weakref
from collections import deque
from concurrent import futures

import numpy as np

from . import _fork
from ._channel import Channel
from ._errors import Cancelled, DeadlineExceeded, KvCompressError, ResourceExhausted, Unavailable
from ._regions import REGION_BYTES, Link, Region, can_begin_a_key
from ._retry import Left
from .v1 import kvcompress_pb2 as pb

logger = logging.getLogger(__name__)

# Kept for later calls; what a burst of calls had beyond these is given back.
_MOST_IDLE = 8
_MOST_SCRATCH = 64 << 20
# Seconds until a daemon that refused, or a machine that had no memory left, is tried again.
_PAUSE = 60.0
# From so many losses in a row on, a daemon is left alone for as long. After the first, which one that was started again
# may cost, it is asked at once, and then for each further one twice as late.
_FREE_LOSSES, _MOST_LOSSES = 2, 8


def _why_not(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        size = f"{REGION_BYTES} bytes ({REGION_BYTES >> 20} MiB)"
        return f"/dev/shm has no room for {size}: Docker's --shm-size gives more"
    return str(error)


class Pool:
    """The regions of a client. Threads may share it. Where shared memory cannot be had, `why_not` says why: for good,
    or until the end of a pause."""

    def __init__(self, channel: Channel, why_not: str = ""):
        self.why_not = why_not
        self._paused_until: float | None = None  # time.monotonic(), with a why_not; None: for good
        self.used_last = False  # by the last call that could
        self._channel = channel
        self._prefix = ""  # of keys; empty until the daemon has said
        self._no_offer = ""  # why the daemon has none, as it has said last
        self._lock = threading.Lock()
        self._dropped: deque[Region] = deque()
        self._link: Link | None = None
        self._idle: list[Region] = []
        self._registering = threading.Lock()
        _POOLS.add(self)
        self._used = False  # a region was had from this link
        self._warned = False  # that this machine has too little memory
        self._losses = 0  # since a call went well

    @property
    def is_offered(self) -> bool:
        """As far as is known; again once a pause is over."""
        return not self._no_offer and (not self.why_not or self._is_pause_over())

    @property
    def transport(self) -> str:
        if why_not := self.why_not or self._no_offer:
            return f"connection ({why_not})"
        return "shared memory" if self.used_last else "connection"

    def learn(self, said: pb.CapabilitiesResponse) -> None:
        """What the daemon offers."""
        self._prefix, self._no_offer = said.shared_memory_prefix, ""
        if pb.TRANSPORT_SHARED_MEMORY not in said.transports:
            self._no_offer = "the daemon does not offer shared memory"
        elif not can_begin_a_key(self._prefix, 128):
            self._no_offer = "the daemon asks for keys that cannot be"

    def take(self, left: Left) -> Region | None:
        """Memory for one call, once the daemon's offer is known; None where there is none, or none in time."""
        while self._dropped:
            with contextlib.suppress(IndexError):  # other threads do the same
                self._unregister(self._dropped.pop())
        region = self._take(left)
        self.used_last = region is not None
        return region

    def take_idle(self) -> Region | None:
        """What an earlier call has put back, for another; None where that is not so simple."""
        with self._lock:
            link = self._link
            if not self._idle or self._dropped or link is None or not link.is_alive() or not self.is_offered:
                return None
            self.used_last = True
            return self._idle.pop()

    def _take(self, left: Left) -> Region | None:
        with self._lock:
            if self._no_offer or (self.why_not and not self._resumes()):
                return None
            if self._link is not None and self._used and not self._link.is_alive():
                self._forget()
            if self._idle:
                return self._idle.pop()
            if self._link is None:
                self._link = Link(self._channel)
            link = self._link
        work = self._begin(link)
        try:
            return work.result(left())
        except futures.TimeoutError:
            if not work.cancel():
                work.add_done_callback(self._keep_late)  # for another call
            return None

    def _begin(self, link: Link) -> "futures.Future[Region | None]":
        """Registers in a thread of its own: whoever has not the time waits no longer, and others go on. Not one of an
        executor, which the end of the process would wait for."""
        work: futures.Future[Region | None] = futures.Future()

        def run() -> None:
            with self._registering:
                if work.set_running_or_notify_cancel():
                    try:
                        work.set_result(self._register(link))
                    except BaseException as error:
                        work.set_exception(error)

        threading.Thread(target=run, name="kvcompress-memory", daemon=True).start()
        return work

    def _register(self, link: Link) -> Region | None:
        if link is not self._link:
            return None  # another thread has found that it is lost
        try:
            region = link.register(self._prefix)
        except (Unavailable, DeadlineExceeded, Cancelled) as error:  # the latter by the time that it may take
            # Who finds no daemon has lost nothing.
            self.forget(link, is_loss=not isinstance(error, Unavailable) or link.finds_daemon())
            return None
        except (KvCompressError, OSError) as error:
            self._warn_once(error)
            with self._lock:
                # More calls at a time than there is memory for go without; where there is none at all nobody asks for
                # a while.
                if not (self._used and isinstance(error, ResourceExhausted | OSError)):
                    self._pause(_why_not(error))
                if link is self._link and not link.is_alive():
                    self._forget()  # refusals end the stream
            return None
        with self._lock:
            self._used = True
        return region

    def _warn_once(self, error: Exception) -> None:
        if isinstance(error, OSError) and not self._warned:
            self._warned = True
            logger.warning("calls take the connection, for want of shared memory: %s", _why_not(error))

    def _keep_late(self, work: "futures.Future[Region | None]") -> None:
        region = work.result()
        if region is not None:
            self._keep(region)

    def put_back(self, region: Region) -> None:
        """What the daemon has let go of."""
        if len(region.scratch) > _MOST_SCRATCH:
            region.scratch = np.empty(0, np.uint8)
        with self._lock:
            self._losses = 0
        self._keep(region)

    def _keep(self, region: Region) -> None:
        with self._lock:
            if region.link is self._link and len(self._idle) < _MOST_IDLE:
                self._idle.append(region)
                return
        self._unregister(region)

    def drop(self, region: Region) -> None:
        """What the daemon may still write to. Takes no lock, and no time: it is unregistered later."""
        self._dropped.append(region)

    @staticmethod
    def _unregister(region: Region) -> None:
        if region.link.is_alive():
            region.link.unregister(region)

    def forget(self, link: Link, *, is_loss: bool = True) -> None:
        """What the link registered is gone: the daemon was started again, or has ended the stream."""
        with self._lock:
            if link is self._link:
                self._forget(is_loss=is_loss)

    def _forget(self, *, is_loss: bool = True) -> None:
        if self._link is not None:
            self._link.close()
        self._link, self._idle, self._used = None, [], False
        self._losses = min(self._losses + is_loss, _MOST_LOSSES)
        if is_loss and self._losses > _FREE_LOSSES:
            self._pause("shared memory is lost again and again", _PAUSE / 2 ** (_MOST_LOSSES - self._losses))

    def _pause(self, why: str, seconds: float = _PAUSE) -> None:
        if not self.why_not:
            self.why_not, self._paused_until = why, time.monotonic() + seconds

    def _is_pause_over(self) -> bool:
        until = self._paused_until
        return until is not None and time.monotonic() >= until

    def _resumes(self) -> bool:
        if not self._is_pause_over():
            return False
        self.why_not, self._paused_until = "", None
        return True

    def leave_to_parent(self) -> None:
        """In a child that was made by fork: its memory is not held here, too. Takes no lock, and tells nobody."""
        self._idle, self._dropped = [], deque()

    def close(self) -> None:
        with self._lock:
            if self._link is not None:
                self._link.close()
            self._link, self._idle = None, []
            self._dropped.clear()
            self.why_not, self._paused_until = "the client is closed", None


_POOLS: "weakref.WeakSet[Pool]" = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for pool in list(_POOLS):
        pool.leave_to_parent()
        # Its link, which is the parent's, is not ended by a destructor.
        _fork.leave(pool)
    _POOLS.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


@atexit.register
def _end() -> None:
    """A registration that is under way takes its key with it."""
    for pool in list(_POOLS):
        pool.close()
        if pool._registering.acquire(timeout=1):
            pool._registering.release()
