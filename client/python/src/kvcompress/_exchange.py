"""Both directions of the service without a network: what is sent for an item, and what its answers mean.

An exchange belongs to one call. gRPC's thread asks it for messages while the caller's gives it answers; the two meet in
a deque alone. What an item is wrong about ends the sending and is raised after the answers to the items before it.
"""

import json
import pathlib
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

from google.protobuf.message import DecodeError

from ._errors import DataLoss, InvalidArgument, KvCompressError, unanswered
from ._frame import Frame, frame_of
from ._tensors import Framework, Output, TensorView, check_out, checked_size
from ._wire import bytes_field, fields, malformed, payload_messages
from .v1 import kvcompress_pb2 as pb

_ROLES = ("other", "batch", "layer", "heads", "seq", "head_dim")
_DTYPES = {"F16": pb.DTYPE_F16, "BF16": pb.DTYPE_BF16, "F32": pb.DTYPE_F32}
_DTYPE_NAMES = {number: name for name, number in _DTYPES.items()}
# No codec makes more of a tensor than this, so a peer that sends on is not one of ours.
_MOST_EXPANSION, _MOST_OVERHEAD = 4, 1 << 20


def profile_json(profile: Any, spec: str = "") -> str:
    """JSON text of a profile that is given as a mapping, as text, or as the path of a file; "" for None.
    InvalidArgument where there is a spec, too."""
    if profile is None:
        return ""
    if isinstance(profile, Mapping):
        text = json.dumps(dict(profile))
    elif isinstance(profile, str) and profile.lstrip().startswith("{"):
        text = profile
    else:
        text = pathlib.Path(profile).read_text(encoding="utf-8")
    if spec and text:
        raise InvalidArgument("a spec and a profile exclude each other")
    return text


@dataclass(frozen=True)
class CompressItem:
    view: TensorView
    header: bytes

    @staticmethod
    def of(
        name: str, tensor: Any, spec: str = "", axes: Sequence[str] | None = None, profile: str = ""
    ) -> "CompressItem":
        unknown = [axis for axis in axes or () if axis not in _ROLES]
        if unknown:
            raise InvalidArgument(f"unknown axis {unknown[0]!r}: use one of {', '.join(_ROLES)}")
        view = TensorView.of(tensor)
        roles = [cast(pb.AxisRole, _ROLES.index(axis)) for axis in axes or ()]
        described = pb.Tensor(name=name, dtype=_DTYPES[view.dtype], shape=view.shape, axes=roles)
        header = pb.CompressHeader(tensor=described, codec=spec, profile=profile)
        return CompressItem(view, header.SerializeToString())

    def size(self) -> int:
        return len(self.view.data) + len(self.header)

    def most_frame_bytes(self) -> int:
        return _MOST_EXPANSION * len(self.view.data) + _MOST_OVERHEAD

    def request(self) -> bytes:
        """The whole tensor as one CompressTensorRequest."""
        return bytes_field(1, self.header) + bytes_field(2, self.view.data)

    def frame(self, response: bytes) -> Frame:
        """Of a CompressTensorResponse."""
        found = dict(fields(response))
        return self.frame_of(bytes(found.get(2, b"")), found.get(1, memoryview(b"")))

    def frame_of(self, data: bytes, report: memoryview) -> Frame:
        view = self.view
        return frame_of(data, parsed(pb.TensorReport, report), view.dtype, view.shape, view.framework)


@dataclass(frozen=True)
class DecompressItem:
    name: str
    data: memoryview
    framework: Framework
    expected: tuple[str, tuple[int, ...]] | None = None  # dtype and shape, where they are known
    out: Any = None

    @staticmethod
    def of(frame: Any, out: Any = None, framework: Framework | None = None) -> "DecompressItem":
        """Of a Frame, of a frame's bytes, or of a pair of a name and one of these."""
        name, frame = frame if isinstance(frame, tuple) else (None, frame)
        if out is not None:
            check_out(out)
        if framework not in (None, "numpy", "torch"):
            raise InvalidArgument(f'as_ is "numpy" or "torch", not {framework!r}')
        if isinstance(frame, Frame):
            return DecompressItem(name or frame.name, memoryview(frame.data), framework or frame.framework,
                                  (frame.dtype, frame.shape), out)  # fmt: skip
        if not isinstance(frame, bytes | bytearray | memoryview):
            raise InvalidArgument(f"expected a Frame or its bytes, not {type(frame).__name__}")
        data = memoryview(frame)
        if not data.c_contiguous:
            raise InvalidArgument("the frame's bytes are not contiguous")
        return DecompressItem(name or "tensor", data.cast("B"), framework or "numpy", None, out)

    def header(self) -> bytes:
        return pb.DecompressHeader(name=self.name).SerializeToString()

    def size(self) -> int | None:
        """Bytes of the larger of frame and tensor; None where only the daemon can tell."""
        return None if self.expected is None else max(len(self.data), checked_size(*self.expected))

    def request(self) -> bytes:
        """The whole frame as one DecompressTensorRequest."""
        return bytes_field(1, self.header()) + bytes_field(2, self.data)

    def tensor(self, response: bytes) -> Any:
        """Of a DecompressTensorResponse."""
        found = dict(fields(response))
        output = self.output(found.get(1, memoryview(b"")))
        data = found.get(3, memoryview(b""))
        if len(data) != len(output.data):
            raise malformed()
        output.data[:] = data
        return output.tensor

    def output(self, header: memoryview) -> Output:
        """Room for the tensor that the daemon describes, which must be the one that the frame was made from."""
        described = parsed(pb.Tensor, header)
        dtype, shape = _DTYPE_NAMES.get(described.dtype), tuple(described.shape)
        if dtype is None:
            raise malformed()
        if self.expected not in (None, (dtype, shape)):
            raise DataLoss(f'frame "{self.name}" holds {dtype} {list(shape)}, and not what was compressed')
        checked_size(dtype, shape)
        return Output(dtype, shape, self.framework, self.out)


Message = TypeVar(
    "Message", pb.TensorReport, pb.Tensor, pb.SharedMemoryRange, pb.CompressResponse, pb.DecompressResponse
)


def parsed(kind: type[Message], data: bytes | memoryview) -> Message:
    try:
        return kind.FromString(bytes(data))
    except DecodeError:
        raise malformed() from None


Item = TypeVar("Item", CompressItem, DecompressItem)
Result = TypeVar("Result")


class Call(Generic[Result]):
    """One streaming call, as Stream sees it."""

    method: str
    error: BaseException | None = None  # what ended the sending before its time

    def send(self, raw: Any) -> Iterator[bytes]:
        """The messages of one of the caller's items."""
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


class Exchange(Call[Result], Generic[Item, Result]):
    """One whose bytes go in messages. `message_bytes` is the most of a payload in one."""

    item_fields: int  # answers up to this field are about the oldest open item; others about the stream, or unknown

    def __init__(self, message_bytes: int):
        self._message_bytes = message_bytes
        self.open: deque[Item] = deque()  # items that were sent, and are not answered yet

    def prepare(self, raw: Any) -> Item:
        """The item that a caller's iterable gave."""
        raise NotImplementedError

    def send(self, raw: Any) -> Iterator[bytes]:
        item = self.prepare(raw)
        self.open.append(item)
        yield bytes_field(1, item.header if isinstance(item, CompressItem) else item.header())
        data = item.view.data if isinstance(item, CompressItem) else item.data
        yield from payload_messages(2, data, self._message_bytes)

    def receive(self, message: bytes) -> Result | None:
        result = None
        for number, value in fields(message):
            if number <= self.item_fields:
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


class CompressExchange(Exchange[CompressItem, Frame]):
    method = "Compress"
    item_fields = 2

    def __init__(self, message_bytes: int, spec: str = "", profile: str = ""):
        super().__init__(message_bytes)
        self._spec, self._profile = spec, profile
        self._parts: list[memoryview] = []
        self._size = 0

    def prepare(self, raw: Any) -> CompressItem:
        if isinstance(raw, CompressItem):
            return raw
        if not isinstance(raw, tuple) or len(raw) not in (2, 3):
            raise InvalidArgument("expected pairs of a name and a tensor, or triples with a spec")
        spec = raw[2] if len(raw) == 3 else self._spec
        return CompressItem.of(raw[0], raw[1], spec, profile="" if len(raw) == 3 else self._profile)

    def take(self, number: int, value: memoryview) -> Frame | None:
        if number == 1:
            self._parts.append(value)
            self._size += len(value)
            if self._size > self.open[0].most_frame_bytes():
                raise malformed()
            return None
        data, self._parts, self._size = b"".join(self._parts), [], 0
        return self.open.popleft().frame_of(data, value)


class DecompressExchange(Exchange[DecompressItem, tuple[str, Any]]):
    """Results are pairs of a name and a tensor."""

    method = "Decompress"
    item_fields = 3

    def __init__(self, message_bytes: int, framework: Framework | None = None):
        super().__init__(message_bytes)
        self._framework = framework
        self._output: Output | None = None
        self._filled = 0

    def prepare(self, raw: Any) -> DecompressItem:
        return raw if isinstance(raw, DecompressItem) else DecompressItem.of(raw, None, self._framework)

    def take(self, number: int, value: memoryview) -> tuple[str, Any] | None:
        if number == 1:
            self._output, self._filled = self.open[0].output(value), 0
            return None
        if self._output is None:
            raise malformed()
        room = self._output.data
        if number == 2:
            end = self._filled + len(value)
            if end > len(room):
                raise malformed()
            room[self._filled : end] = value
            self._filled = end
            return None
        if self._filled != len(room):
            raise malformed()
        tensor, self._output = self._output.tensor, None
        return self.open.popleft().name, tensor
