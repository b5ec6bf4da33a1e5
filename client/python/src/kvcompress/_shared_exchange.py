"""Calls whose bytes stay in shared memory: messages hold descriptors of them. Small items go in messages all the same.

One half of a call's region is chunks, which input is copied into; the other is buffers, which the daemon puts output
into. gRPC's thread takes free ones and tells the daemon of them; the caller's frees them again by what it answers."""

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator
from typing import Any

import grpc
import numpy as np

from ._errors import KvCompressError, Unavailable
from ._exchange import Call, CompressExchange, Exchange, Parts
from ._items import Item, Result
from ._regions import REGION_BYTES, Region
from ._shared_memory import Pool
from ._wire import bytes_field, fields, malformed, parsed
from .v1 import kvcompress_pb2 as pb

CHUNK_BYTES = 4 << 20
# Of tensor or frame: below this the messages about shared memory cost more than the bytes.
WORTH_BYTES = 2 << 20
_CHUNKS = REGION_BYTES // CHUNK_BYTES // 2


def _goes_to_buffers(item: Item[Any]) -> bool:
    return (item.size() or len(item.data)) >= WORTH_BYTES


def _is_loss(error: KvCompressError) -> bool:
    """Whether the daemon may not have the call's region any more, or not all of it."""
    return error.reason == pb.SHARED_MEMORY_LOST or error.code == grpc.StatusCode.UNAVAILABLE


def after_failure(error: KvCompressError, region: Region, pool: Pool) -> KvCompressError:
    """What to raise for a call with a region that ended with `error`."""
    if not _is_loss(error):
        # The daemon may still be writing to it.
        pool.drop(region)
        return error
    pool.forget(region.link)
    # The call can be made again at once, with other memory or without.
    return error if isinstance(error, Unavailable) else Unavailable(error.detail, error.code, 0.0, error.reason)


class _CopiedParts(Parts):
    """Of memory that is used again: they are copied to the region's scratch."""

    def __init__(self, region: Region):
        super().__init__()
        self._region = region

    def append(self, part: memoryview) -> None:
        scratch, begin = self._region.scratch, self.size
        self.size += len(part)
        if self.size > len(scratch):
            grown = np.empty(max(2 * len(scratch), self.size, CHUNK_BYTES), np.uint8)
            grown[:begin] = scratch[:begin]
            self._region.scratch = scratch = grown
        scratch[begin : self.size] = part

    def join(self) -> bytes:
        size, self.size = self.size, 0
        return self._region.scratch[:size].tobytes()


class SharedExchange(Call[Result]):
    """The same as `inner`, which is given the answers as if they had come in messages."""

    def __init__(self, inner: Exchange[Any, Result], region: Region, pool: Pool):
        self.method = inner.method
        self._inner = inner
        if isinstance(inner, CompressExchange):
            inner.parts = _CopiedParts(region)
        self._region = region
        self._pool = pool
        self._has_region = True  # to give back
        self._changed = threading.Condition()
        self._is_over = False
        self._open_to_buffers = 0  # open items whose output goes to buffers
        self._chunks = deque(range(0, _CHUNKS * CHUNK_BYTES, CHUNK_BYTES))
        self._buffers = deque(range(_CHUNKS * CHUNK_BYTES, 2 * _CHUNKS * CHUNK_BYTES, CHUNK_BYTES))
        # What the daemon reads: in which chunk, or in memory that is not ours, and how much.
        self._sent: deque[tuple[int | None, int]] = deque()
        self._released = 0  # bytes of what came back
        self._given: deque[int] = deque()  # buffers that the daemon has
        self._used = 0  # bytes of the first of them

    # Of gRPC's thread.

    def prepare(self, raw: Any) -> Any:
        return self._inner.prepare(raw)

    def send(self, item: Item[Any]) -> Iterator[bytes]:
        if not _goes_to_buffers(item):
            # The daemon reads no bytes, nor what follows them, while it waits for a buffer.
            yield from self.rest()
            if item.pieces is not None:
                with self._changed:
                    self._sent.append((None, item.pieces.size))
            yield from self._inner.send(item)
            return
        with self._changed:
            self._open_to_buffers += 1
        self._inner.open.append(item)
        yield bytes_field(1, item.header + self._inner.to_buffer)
        for at in range(0, len(item.data), CHUNK_BYTES):
            chunk = yield from self._next_chunk()
            if chunk is None:
                return
            part = item.data[at : at + CHUNK_BYTES]
            self._region.bytes[chunk : chunk + len(part)] = part
            with self._changed:
                self._sent.append((chunk, len(part)))
            yield self._describe(3, chunk, len(part))

    def rest(self) -> Iterator[bytes]:
        """Buffers, until no item waits for any."""
        while self._open_to_buffers and (given := self._give_buffer(lambda: not self._open_to_buffers)) is not None:
            yield given

    def _next_chunk(self) -> Generator[bytes, None, int | None]:
        """Where there is a free chunk; None once the call is over. Free buffers are given first."""
        while (given := self._give_buffer(lambda: bool(self._chunks))) is not None:
            yield given
        with self._changed:
            return None if self._is_over else self._chunks.popleft()

    def _give_buffer(self, enough: Callable[[], bool]) -> bytes | None:
        """The message that gives a buffer; None when there is no free one and `enough`, or the call is over."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_over or self._buffers or enough())
            if self._is_over or not self._buffers:
                return None
            buffer = self._buffers.popleft()
            self._given.append(buffer)
        return self._describe(4, buffer, CHUNK_BYTES)

    def _describe(self, number: int, at: int, size: int) -> bytes:
        described = pb.SharedMemoryRange(region=self._region.number, offset=at, byte_size=size)
        return bytes_field(number, described.SerializeToString())

    # Of the caller's.

    def receive(self, message: bytes) -> Result | None:
        inner = self._inner
        if message[:1] == bytes([inner.response.INPUT_RELEASED_FIELD_NUMBER << 3]):
            self._release(parsed(inner.response, message).input_released)
            return None
        to_buffers = bool(inner.open) and _goes_to_buffers(inner.open[0])
        for number, value in fields(message):
            if number == inner.shared_output:
                if not to_buffers or not self._given:
                    raise malformed()
                self._take_output(parsed(pb.SharedMemoryRange, value))
                return None
            if number == inner.output and to_buffers:
                raise malformed()
            if number == inner.report and to_buffers:
                self._end_tensor()
        return inner.receive(message)

    def _take_output(self, where: pb.SharedMemoryRange) -> None:
        buffer = self._given[0]
        fits = where.byte_size <= CHUNK_BYTES - self._used
        if (where.region, where.offset) != (self._region.number, buffer + self._used) or not fits:
            raise malformed()
        output = self._region.bytes[where.offset : where.offset + where.byte_size]
        self._inner.take(self._inner.output, output.data)
        self._used += where.byte_size
        if self._used == CHUNK_BYTES:
            self._free_buffer()

    def _end_tensor(self) -> None:
        """Before its report."""
        if self._used > 0:
            self._free_buffer()
        with self._changed:
            self._open_to_buffers -= 1
            self._changed.notify_all()

    def _free_buffer(self) -> None:
        with self._changed:
            self._buffers.append(self._given.popleft())
            self._used = 0
            self._changed.notify_all()

    def _release(self, total: int) -> None:
        """Chunks that the daemon has read: `total` bytes since the call began."""
        with self._changed:
            while self._sent and total - self._released >= self._sent[0][1]:
                chunk, size = self._sent.popleft()
                self._released += size
                if chunk is not None:
                    self._chunks.append(chunk)
            if total < self._released or (not self._sent and total != self._released):
                raise malformed()
            self._changed.notify_all()

    def finish(self, left: float | None) -> None:
        # The daemon has let go of the region.
        if self._has_region:
            self._has_region = False
            self._pool.put_back(self._region)
        self._inner.error = self.error
        self._inner.finish(left)

    def failed(self, error: KvCompressError) -> KvCompressError:
        if not self._has_region:
            return error
        self._has_region = False
        return after_failure(error, self._region, self._pool)

    def over(self) -> None:
        with self._changed:
            self._is_over = True
            self._changed.notify_all()

    def give_up(self) -> None:
        # The daemon may still be writing to it.
        if self._has_region:
            self._has_region = False
            self._pool.drop(self._region)
