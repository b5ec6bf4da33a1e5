"""What holds in a child that was made by fork: gRPC works there, and nothing of the parent's is touched.

Whoever holds what belongs to one process alone (a channel, a stream, shared memory) notes the generation in which it
was made, and makes it anew in another one. gRPC's threads are gone in a child, and so may be the holders of locks.
"""

import os
import sys
import threading
from contextlib import AbstractContextManager
from typing import Any, ClassVar

_VARIABLE = "GRPC_ENABLE_FORK_SUPPORT"
# gRPC reads it while it is imported, which is why nothing here imports it. Without its support every call in a child
# waits for ever.
if "grpc" not in sys.modules:
    os.environ.setdefault(_VARIABLE, "1")
_IS_SUPPORTED = os.environ.get(_VARIABLE, "").lower() in ("1", "true", "yes")


class _Process:
    """Of this process."""

    generation = 0  # how many forks it is away from the process that imported this module
    has_used_grpc = False  # it, or one that it comes from
    fault = ""
    # With a thread inside gRPC, gRPC gives up its part of a fork.
    gate = threading.RLock()
    # Destructors of what the parent has would wait for locks that nobody will ever release.
    left: ClassVar[list[Any]] = []


def generation() -> int:
    """Another one in each child."""
    return _Process.generation


def gate() -> AbstractContextManager[Any]:
    """To be held while a call is begun or its channel is made, and never while something is awaited: no fork happens
    meanwhile."""
    return _Process.gate


def use_grpc() -> str:
    """Before a channel is made: why gRPC cannot be used in this process; "" where it can."""
    _Process.has_used_grpc = True
    return _Process.fault


def leave(what: Any) -> None:
    """Keeps for good what belongs to another process, so that nothing becomes of it here."""
    _Process.left.append(what)


def _before_fork() -> None:
    _Process.gate.acquire()


def _after_in_parent() -> None:
    _Process.gate.release()


def _after_in_child() -> None:
    _Process.gate = threading.RLock()
    _Process.generation += 1
    if _Process.has_used_grpc and not _IS_SUPPORTED:
        _Process.fault = (
            "gRPC does not work in this process: it was forked from one that had used gRPC without support for that. "
            f"Import kvcompress before grpc, or set {_VARIABLE}=1, or start processes by spawn or forkserver"
        )


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_in_parent, after_in_child=_after_in_child)
