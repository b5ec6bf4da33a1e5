"""Both directions of the service's streams without a network: what is sent for an item, and what its answers mean.

An exchange belongs to one call. gRPC's thread asks it for messages while the caller's gives it answers; the two meet in
a deque alone. What an item is wrong about ends the sending and is raised after the answers to the items before it.
"""

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import Any, Generic, TypeVar

from ._errors import InvalidArgument, KvCompressError, checked_text, refusing, unanswered
from ._frame import Frame
from ._items import CompressItem, DecompressItem, Item, OnNonfinite, Result, on_nonfinite_of, profile_json
from ._rotary import RotaryEmbedding, rotary_message
from ._tensors import Framework, Output
from ._wire import bytes_field, fields, malformed
from .v1 import kvcompress_pb2 as pb

AnItem = TypeVar("AnItem", bound=Item[Any])
_SHARED_INPUT = pb.CompressRequest.SHARED_DATA_FIELD_NUMBER


class Call(Generic[Result]):
    """One streaming call, as Stream sees it."""

    method: str
    error: BaseException | None = None  # what ended the sending before its time

    def prepare(self, raw: Any) -> Any:
        """The item that a caller's iterable gave."""
        raise NotImplementedError

    def send(self, item: Any) -> Iterator[bytes]:
        """The messages of an item."""
        raise NotImplementedError

    def rest(self) -> Iterator[bytes]:
        """The messages after those of the last item."""
        return iter(())

    def receive(self, message: bytes) -> Result | None:
        """What is complete with this answer."""
        raise NotImplementedError

    def finish(self, left: float | None) -> None:
        """After the last answer, `left` seconds before the deadline: raises what ended the sending, and where answers
        are missing."""
        raise NotImplementedError

    def failed(self, error: KvCompressError) -> KvCompressError:
        """The call ended with this: what to raise."""
        return error

    def over(self) -> None:
        """The call has ended, as gRPC says in one of its threads."""

    def give_up(self) -> None:
        """Nobody asks for further results. Takes no lock, for it is called when a stream is forgotten."""


class Exchange(Call[Result], Generic[AnItem, Result]):
    """One whose bytes go in messages. `message_bytes` is the most of a payload in one."""

    to_buffer: bytes  # what a header says besides, for output in buffers of shared memory
    response: type[pb.CompressResponse] | type[pb.DecompressResponse]
    # Numbers of its fields. Those up to the report are about the oldest open item; others about the stream, or unknown.
    output: int
    report: int
    shared_output: int

    def __init__(self, message_bytes: int):
        self._message_bytes = message_bytes
        self.open: deque[AnItem] = deque()  # items that were sent, and are not answered yet

    def prepare(self, raw: Any) -> AnItem:
        raise NotImplementedError

    def send(self, item: AnItem) -> Iterator[bytes]:
        described = None if item.pieces is None else item.pieces.described()
        self.open.append(item)
        yield bytes_field(1, item.header)
        if described is not None:
            yield bytes_field(_SHARED_INPUT, described)
        for at in range(0, len(item.data), self._message_bytes):
            yield bytes_field(2, item.data[at : at + self._message_bytes])

    def receive(self, message: bytes) -> Result | None:
        result = None
        for number, value in fields(message):
            if number <= self.report:
                if not self.open:
                    raise malformed()
                result = self.take(number, value)
        return result

    def take(self, number: int, value: memoryview) -> Result | None:
        """Field `number` of an answer about the oldest open item."""
        raise NotImplementedError

    def finish(self, left: float | None) -> None:
        if self.error is not None:
            raise self.error
        if self.open:
            raise unanswered(left)


class Parts:
    """A frame that comes in, of parts that stay as they are."""

    def __init__(self) -> None:
        self.size = 0
        self._parts: list[memoryview] = []

    def append(self, part: memoryview) -> None:
        self._parts.append(part)
        self.size += len(part)

    def join(self) -> bytes:
        """All of them; the next part is another frame's."""
        data, self._parts, self.size = b"".join(self._parts), [], 0
        return data


class CompressExchange(Exchange[CompressItem, Frame]):
    method = "Compress"
    to_buffer = pb.CompressHeader(frame_to_buffer=True).SerializeToString()
    response = pb.CompressResponse
    output = pb.CompressResponse.FRAME_FIELD_NUMBER
    report = pb.CompressResponse.TENSOR_FIELD_NUMBER
    shared_output = pb.CompressResponse.SHARED_FRAME_FIELD_NUMBER

    def __init__(
        self,
        message_bytes: int,
        spec: str = "",
        profile: str = "",
        on_nonfinite: OnNonfinite = "error",
        rotary: RotaryEmbedding | None = None,
    ):
        super().__init__(message_bytes)
        self._spec, self._profile, self._on_nonfinite, self._rotary = spec, profile, on_nonfinite, rotary
        self.parts = Parts()

    def prepare(self, raw: Any) -> CompressItem:
        if isinstance(raw, CompressItem):
            return raw
        if not isinstance(raw, tuple) or len(raw) not in (2, 3, 4, 5):
            raise InvalidArgument(
                "expected pairs of a name and a tensor, perhaps with a spec, a rotary embedding, and a fingerprint"
            )
        own = raw[2] if len(raw) > 2 else None
        spec, profile = (self._spec, self._profile) if own is None else (own, "")
        rotary = raw[3] if len(raw) > 3 else self._rotary
        return CompressItem.of(
            raw[0],
            raw[1],
            spec,
            profile=profile,
            on_nonfinite=self._on_nonfinite,
            rotary=rotary,
            fingerprint=raw[4] if len(raw) == 5 else None,
        )

    def take(self, number: int, value: memoryview) -> Frame | None:
        if number == self.report:
            return self.open.popleft().frame(self.parts.join(), bytes(value))
        if self.parts.size + len(value) > self.open[0].most_frame_bytes():
            raise malformed()
        self.parts.append(value)
        return None


def compress_exchanges(
    spec: str, profile: Any, on_nonfinite: OnNonfinite, rotary: RotaryEmbedding | None
) -> Callable[[int], CompressExchange]:
    """Makes exchanges of one call, whose arguments are checked at once: InvalidArgument for what is none."""
    text = profile_json(profile, spec)
    checked_text("a spec", spec)
    on_nonfinite_of(on_nonfinite)
    rotary_message(rotary)
    return lambda message_bytes: CompressExchange(message_bytes, spec, text, on_nonfinite, rotary)


class DecompressExchange(Exchange[DecompressItem, tuple[str, Any]]):
    """Results are pairs of a name and a tensor."""

    method = "Decompress"
    to_buffer = pb.DecompressHeader(data_to_buffer=True).SerializeToString()
    response = pb.DecompressResponse
    output = pb.DecompressResponse.DATA_FIELD_NUMBER
    report = pb.DecompressResponse.TENSOR_FIELD_NUMBER
    shared_output = pb.DecompressResponse.SHARED_DATA_FIELD_NUMBER

    def __init__(self, message_bytes: int, framework: Framework | None = None, outputs: Iterator[Any] | None = None):
        """`outputs`: of each item, in order, where its values go; None: to memory of their own."""
        super().__init__(message_bytes)
        self._framework = framework
        self._outputs = itertools.repeat(None) if outputs is None else outputs
        self._output: Output | None = None
        self._filled = 0

    def prepare(self, raw: Any) -> DecompressItem:
        if isinstance(raw, DecompressItem):
            return raw
        try:
            out = next(self._outputs)
        except StopIteration:
            raise InvalidArgument("out has fewer elements than there are frames") from None
        return DecompressItem.of(raw, out, self._framework)

    def take(self, number: int, value: memoryview) -> tuple[str, Any] | None:
        if number < self.output:  # the tensor's description
            self._output, self._filled = self.open[0].output(value), 0
            return None
        if self._output is None:
            raise malformed()
        buffer = self._output.data
        if number == self.output:
            end = self._filled + len(value)
            if end > len(buffer):
                raise malformed()
            buffer[self._filled : end] = value
            self._filled = end
            return None
        if self._filled != len(buffer):
            raise malformed()
        self._output.filled()
        tensor, self._output = self._output.tensor, None
        return self.open.popleft().name, tensor


def decompress_exchanges(
    frames: Any, out: Iterable[Any] | None, framework: Framework | None
) -> Callable[[int], DecompressExchange]:
    """Makes the exchange of one call, whose arguments are checked at once: InvalidArgument for what is none."""
    with refusing("out cannot be iterated"):
        outputs = None if out is None else iter(out)
        if isinstance(frames, Sized) and isinstance(out, Sized) and len(frames) != len(out):
            raise InvalidArgument(f"out has {len(out)} elements for {len(frames)} frames")
    return lambda message_bytes: DecompressExchange(message_bytes, framework, outputs)
