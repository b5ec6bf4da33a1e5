"""Calls whose bytes stay in shared memory: messages hold descriptors of them. Small items go in messages all the same.

One half of a call's region is chunks, which input is copied into; the other is rooms, which the daemon puts output
into. gRPC's thread takes free ones and tells the daemon of them; the caller's frees them again by what it answers."""

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import grpc
import numpy as np

from ._errors import KvCompressError, Unavailable
from ._exchange import Call, CompressExchange, CompressItem, Exchange, Result, parsed
from ._retry import Left
from ._shared_memory import REGION_BYTES, Bytes, Pool, Region
from ._wire import bytes_field, fields, malformed
from .v1 import kvcompress_pb2 as pb

CHUNK_BYTES = 4 << 20
# Of tensor or frame: below this the messages about shared memory cost more than the bytes.
WORTH_BYTES = 2 << 20
_CHUNKS = REGION_BYTES // CHUNK_BYTES // 2
# Of calls whose regions the daemon does not have any more.
_LOSSES = (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.FAILED_PRECONDITION)


class _Fields(NamedTuple):
    """Numbers of what both responses have, under other names."""

    output: int
    report: int
    shared_output: int
    input_released: int


_COMPRESS_RESPONSE = _Fields(output=1, report=2, shared_output=4, input_released=5)
_DECOMPRESS_RESPONSE = _Fields(output=2, report=3, shared_output=5, input_released=6)


class SharedExchange(Call[Result]):
    """The same as `inner`, which is given the answers as if they had come in messages."""

    def __init__(self, inner: Exchange[Any, Result], region: Region, pool: Pool):
        self.method = inner.method
        self._inner: Exchange[Any, Result] = inner
        self._region = region
        self._pool = pool
        self._has_region = True  # to give back
        self._compresses = isinstance(inner, CompressExchange)
        self._fields = _COMPRESS_RESPONSE if self._compresses else _DECOMPRESS_RESPONSE
        self._in_rooms: deque[bool] = deque()  # of the items that are open
        self._open_in_rooms = 0  # how many of them
        self._changed = threading.Condition()
        self._is_over = False
        self._chunks = deque(range(0, _CHUNKS * CHUNK_BYTES, CHUNK_BYTES))
        self._rooms = deque(range(_CHUNKS * CHUNK_BYTES, 2 * _CHUNKS * CHUNK_BYTES, CHUNK_BYTES))
        self._sent: deque[tuple[int, int]] = deque()  # chunks that the daemon reads: where, and how much
        self._given: deque[int] = deque()  # rooms that the daemon has
        self._used = 0  # bytes of the first of them
        self._frame_bytes = 0  # of the frame that comes in, in the region's scratch
        self._released = 0  # bytes of the chunks that came back

    # Of gRPC's thread.

    def send(self, raw: Any) -> Iterator[bytes]:
        item = self._inner.prepare(raw)
        data = item.view.data if isinstance(item, CompressItem) else item.data
        in_rooms = (item.size() or len(data)) >= WORTH_BYTES
        if in_rooms:
            with self._changed:
                self._open_in_rooms += 1
            self._in_rooms.append(True)
            yield from self._send_ranges(item, np.frombuffer(data, np.uint8))
        else:
            # The daemon reads no bytes, nor what is behind them, while it waits for a room.
            yield from self.rest()
            self._in_rooms.append(False)
            yield from self._inner.send(item)

    def _send_ranges(self, item: Any, data: Bytes) -> Iterator[bytes]:
        self._inner.open.append(item)
        # With the field that asks for output in rooms.
        header = item.header + b"\x18\x01" if isinstance(item, CompressItem) else item.header() + b"\x10\x01"
        yield bytes_field(1, header)
        for at in range(0, len(data), CHUNK_BYTES):
            chunk = yield from self._next_chunk()
            if chunk is None:
                return
            part = data[at : at + CHUNK_BYTES]
            self._region.bytes[chunk : chunk + len(part)] = part
            with self._changed:
                self._sent.append((chunk, len(part)))
            yield self._describe(3, chunk, len(part))

    def rest(self) -> Iterator[bytes]:
        """Rooms, until no item waits for any."""
        while self._open_in_rooms and (room := self._next_room(lambda: not self._open_in_rooms)) is not None:
            yield room

    def _next_chunk(self) -> Generator[bytes, None, int | None]:
        """Where there is a free chunk; None once the call is over. Free rooms are given first."""
        while (room := self._next_room(lambda: bool(self._chunks))) is not None:
            yield room
        with self._changed:
            return None if self._is_over else self._chunks.popleft()

    def _next_room(self, enough: Callable[[], bool]) -> bytes | None:
        """The message that gives a room; None when there is no free one and `enough`, or the call is over."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_over or self._rooms or enough())
            if self._is_over or not self._rooms:
                return None
            room = self._rooms.popleft()
            self._given.append(room)
        return self._describe(4, room, CHUNK_BYTES)

    def _describe(self, number: int, at: int, size: int) -> bytes:
        described = pb.SharedMemoryRange(region=self._region.number, offset=at, byte_size=size)
        return bytes_field(number, described.SerializeToString())

    # Of the caller's.

    def receive(self, message: bytes) -> Result | None:
        if message[:1] == bytes([self._fields.input_released << 3]):
            self._release(message)
            return None
        in_rooms = bool(self._in_rooms) and self._in_rooms[0]
        for number, value in fields(message):
            if number == self._fields.shared_output:
                self._take_output(parsed(pb.SharedMemoryRange, value))
                return None
            if number == self._fields.output and in_rooms:
                raise malformed()
            if number == self._fields.report and self._in_rooms:
                self._end_tensor()
        return self._inner.receive(message)

    def _take_output(self, where: pb.SharedMemoryRange) -> None:
        if not self._in_rooms or not self._in_rooms[0] or not self._given:
            raise malformed()
        room = self._given[0]
        fits = where.byte_size <= CHUNK_BYTES - self._used
        if (where.region, where.offset) != (self._region.number, room + self._used) or not fits:
            raise malformed()
        output = self._region.bytes[where.offset : where.offset + where.byte_size]
        if self._compresses:
            self._append(output)
        else:
            self._inner.take(2, output.data)
        self._used += where.byte_size
        if self._used == CHUNK_BYTES:
            self._take_room_back()

    def _append(self, output: Bytes) -> None:
        """Keeps a part of a frame, whose room is used again."""
        region, begin = self._region, self._frame_bytes
        self._frame_bytes += len(output)
        item = self._inner.open[0]
        if not isinstance(item, CompressItem) or self._frame_bytes > item.most_frame_bytes():
            raise malformed()
        if self._frame_bytes > len(region.scratch):
            grown = np.empty(max(2 * len(region.scratch), CHUNK_BYTES), np.uint8)
            grown[:begin] = region.scratch[:begin]
            region.scratch = grown
        region.scratch[begin : self._frame_bytes] = output

    def _end_tensor(self) -> None:
        """Before its report."""
        if not self._in_rooms.popleft():
            return
        if self._used > 0:
            self._take_room_back()
        with self._changed:
            self._open_in_rooms -= 1
            self._changed.notify_all()
        if self._compresses:
            frame, self._frame_bytes = self._region.scratch[: self._frame_bytes], 0
            self._inner.take(1, frame.data)

    def _take_room_back(self) -> None:
        with self._changed:
            self._rooms.append(self._given.popleft())
            self._used = 0
            self._changed.notify_all()

    def _release(self, message: bytes) -> None:
        if self._compresses:
            total = parsed(pb.CompressResponse, message).input_released
        else:
            total = parsed(pb.DecompressResponse, message).input_released
        with self._changed:
            while self._sent and total - self._released >= self._sent[0][1]:
                chunk, size = self._sent.popleft()
                self._released += size
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
        if error.code not in _LOSSES:
            self.give_up()
            return error
        self._has_region = False
        self._pool.forget(self._region.link)
        # The call can be made again at once, with other memory or without.
        return error if isinstance(error, Unavailable) else Unavailable(error.detail, error.code, 0.0)

    def over(self) -> None:
        with self._changed:
            self._is_over = True
            self._changed.notify_all()

    def give_up(self) -> None:
        # The daemon may still be writing to it.
        if self._has_region:
            self._has_region = False
            self._pool.drop(self._region)


def shared(exchange: Exchange[Any, Result], items: Iterable[Any], pool: Pool, left: Left) -> Call[Result]:
    """The call over shared memory, where there is some. Not of items that are made one after the other: whoever makes
    one only when the result of another is there would wait for ever, as rooms come from the same thread."""
    region = pool.take(left) if isinstance(items, Sequence) else None
    return exchange if region is None else SharedExchange(exchange, region, pool)
