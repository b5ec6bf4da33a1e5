"""Memory that a daemon on the same machine maps, too, and the stream on which it is registered."""

import contextlib
import mmap
import os
import queue
import re
import secrets
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ._channel import Channel
from ._errors import KvCompressError, Unavailable
from ._wire import parsed
from .v1 import kvcompress_pb2 as pb

# Small enough that what goes through it is still in a cache when it is read.
REGION_BYTES = 16 << 20
# Seconds for the daemon to answer.
_PATIENCE = 5.0

Bytes = np.ndarray[Any, np.dtype[np.uint8]]


@dataclass(eq=False)
class Region:
    """Registered memory: `bytes` here, `number` for the daemon."""

    name: str
    number: int
    bytes: Bytes
    link: "Link"
    # Of this process alone: where a frame grows. Fresh memory of this size costs more than what is done with it.
    scratch: Bytes = field(default_factory=lambda: np.empty(0, np.uint8))


def can_begin_a_key(text: str, most: int) -> bool:
    """Whether the name of a file may begin so, with as many characters at most."""
    return len(text) <= most and re.fullmatch(r"[A-Za-z0-9._-]+", text) is not None


def _open_nameless(folder: str) -> int | None:
    """A descriptor of a new file that no path leads to; None where the system cannot make one."""
    try:
        return os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError:
        return None


@contextlib.contextmanager
def _fresh_memory(path: str) -> Iterator[int]:
    """A descriptor of fresh memory that others can open by its path meanwhile. The path comes last: what ends this
    process while the memory is made leaves nothing."""
    nameless = _open_nameless(os.path.dirname(path))
    linked = nameless is None
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600) if nameless is None else nameless
    try:
        # Where not all of it can be had, a later write would end this process by a signal.
        os.posix_fallocate(file, 0, REGION_BYTES)
        if not linked:
            # With a folder to begin at, or Python would make a link to the link.
            os.link(f"/proc/self/fd/{file}", path, src_dir_fd=file, follow_symlinks=True)
            linked = True
        yield file
    finally:
        os.close(file)
        if linked:
            with contextlib.suppress(FileNotFoundError):  # the daemon has removed it
                os.unlink(path)


class Link:
    """The stream on which memory is registered, by one thread at a time; the daemon answers questions one after the
    other. What it registered lives as long as it does."""

    def __init__(self, channel: Channel):
        self._channel = channel
        self._sending = threading.Lock()
        self._sent = 0
        self._answered = 0
        self._key_prefix = ""  # of this stream's keys, once the daemon has been asked
        self.output_is_larger = False  # than the native module reckons: the daemon is of another version
        questions: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._questions = questions
        self._over = over = threading.Event()

        def end() -> None:
            over.set()
            questions.put(None)  # the thread that waits for them ends with the call

        self._answers = channel.stream("SharedMemory", iter(questions.get, None), end)

    def is_alive(self) -> bool:
        return not self._over.is_set()

    def finds_daemon(self) -> bool:
        """Whether anybody answers, if not here: what a stream ends with does not tell."""
        with contextlib.suppress(ValueError):  # of a channel that is closed meanwhile
            return not isinstance(self._channel.unary("Capabilities", b"", _PATIENCE).exception(), Unavailable)
        return True

    def close(self) -> None:
        self._answers.cancel()

    def register(self, prefix: str) -> Region:
        """Fresh memory. Its key is gone once the daemon has it, and the daemon removes it when this process is killed
        before. OSError where this machine has none left."""
        if not self._key_prefix:
            own = self._ask(pb.SharedMemoryRequest(status=pb.SharedMemoryStatus())).own_key_prefix
            if own and not can_begin_a_key(own, 200):
                raise KvCompressError("the daemon asks for keys that cannot be")
            self._key_prefix = own or prefix
        name = self._key_prefix + secrets.token_hex(16)
        with _fresh_memory(f"/dev/shm/{name}") as file:
            asked = pb.SharedMemoryRegister(name=name, key=f"/{name}", byte_size=REGION_BYTES)
            challenge = self._ask(pb.SharedMemoryRequest(register=asked)).challenge
            memory = np.frombuffer(mmap.mmap(file, REGION_BYTES), np.uint8)
        memory[: len(challenge)] = np.frombuffer(challenge[:REGION_BYTES], np.uint8)
        return Region(name, self._confirm(name), memory, self)

    def register_foreign(self, asked: pb.SharedMemoryRegister, lock: Callable[[int], None]) -> int:
        """An object of another program's: its number for the daemon. `lock` locks the byte at an offset."""
        lock(self._ask(pb.SharedMemoryRequest(register_foreign=asked)).lock_offset)
        return self._confirm(asked.name)

    def _confirm(self, name: str) -> int:
        """The daemon's number of the memory."""
        confirmed = self._ask(pb.SharedMemoryRequest(confirm=pb.SharedMemoryConfirm(name=name))).regions
        if len(confirmed) != 1 or confirmed[0].name != name or confirmed[0].region == 0:
            raise KvCompressError("the daemon's answer is not about the memory that was confirmed")
        return confirmed[0].region

    def unregister(self, region: Region) -> None:
        """Does not wait for the answer."""
        self._send(pb.SharedMemoryRequest(unregister=pb.SharedMemoryUnregister(name=region.name)))

    def _send(self, question: pb.SharedMemoryRequest) -> int:
        with self._sending:
            self._questions.put(question.SerializeToString())
            self._sent += 1
            return self._sent

    def _ask(self, question: pb.SharedMemoryRequest) -> pb.SharedMemoryResponse:
        timer = threading.Timer(_PATIENCE, self._answers.cancel)
        timer.daemon = True
        timer.start()
        try:
            number = self._send(question)
            while True:  # past the answers that nobody waited for
                answer = next(self._answers)
                self._answered += 1
                if self._answered == number:
                    return parsed(pb.SharedMemoryResponse, answer)
        except StopIteration:
            raise Unavailable("the daemon has ended the stream that registers shared memory") from None
        finally:
            timer.cancel()
