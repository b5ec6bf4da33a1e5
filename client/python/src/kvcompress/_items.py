"""One tensor or one frame of the caller's: what is sent for it, and what its answer means."""

import functools
import json
import operator
import pathlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar, cast, get_args

from ._errors import DataLoss, InvalidArgument, KvCompressError, checked_text, mismatch, refusal, refusing
from ._foreign_memory import Pieces
from ._frame import Frame, check_report, frame_of
from ._rotary import RotaryEmbedding, rotary_message
from ._tensors import Framework, Output, TensorView, checked_size, dense
from ._wire import bytes_field, fields, malformed, parsed, varint
from .v1 import kvcompress_pb2 as pb

Result = TypeVar("Result")
FrameBytes = bytes | bytearray | memoryview
_FRAME_TYPES = get_args(FrameBytes)
# What iterables of the caller may give. A spec of None is the call's. A fingerprint is what the tensor's frame carries.
TensorSource = (
    tuple[str, Any]
    | tuple[str, Any, str | None]
    | tuple[str, Any, str | None, RotaryEmbedding | None]
    | tuple[str, Any, str | None, RotaryEmbedding | None, bytes | None]
)
# Dtype and shape, and the fingerprint, are those that a frame must have.
DtypeAndShape = tuple[str, tuple[int, ...]]
FrameSource = (
    Frame
    | FrameBytes
    | tuple[str, Frame | FrameBytes]
    | tuple[str, Frame | FrameBytes, DtypeAndShape | None]
    | tuple[str, Frame | FrameBytes, DtypeAndShape | None, bytes | None]
)

_ROLES = ("other", "batch", "layer", "heads", "seq", "head_dim")
_DTYPES = {name.removeprefix("DTYPE_"): cast(pb.DType, number) for name, number in pb.DType.items() if number}
_DTYPE_NAMES = {number: name for name, number in _DTYPES.items()}
OnNonfinite = Literal["error", "lossless"]
_ON_NONFINITE = {"error": pb.ON_NONFINITE_ERROR, "lossless": pb.ON_NONFINITE_LOSSLESS}
# No codec makes more of a tensor than this, so a peer that sends on is not one of ours.
# The native module reads both here.
MOST_EXPANSION, MOST_OVERHEAD = 4, 1 << 20
_MOST_FINGERPRINT_BYTES = 64
# What a compression config tells its reader, and nobody else.
_REPORTS = ("compression_summary", "expected_kv_memory_savings", "actual_memory_reduction", "summary_stats")
_HEAD_REPORTS = ("compression_ratio", "reason", "metrics")


def profile_json(profile: Any, spec: str = "") -> str:
    """JSON text of a profile that is given as a mapping, as text, or as the path of a file; "" for None.
    InvalidArgument for what is none of these or cannot be read, and where there is a spec, too, unless the profile is a
    compression config: that says ranks alone, for a spec with an artifact, and its reports are left out."""
    if profile is None:
        return ""
    with refusing("the profile cannot be read"):
        if isinstance(profile, Mapping):
            text = json.dumps(dict(profile))
        elif isinstance(profile, str) and profile.lstrip().startswith("{"):
            text = checked_text("a profile", profile)
        else:
            text = pathlib.Path(profile).read_text(encoding="utf-8")
    ranks = _ranks_json(text)
    if spec and text and ranks is None:
        raise InvalidArgument("a spec and a profile exclude each other")
    return text if ranks is None else ranks


def _ranks_json(text: str) -> str | None:
    """A compression config without what tells only how it was made, as headers take 64 KiB; None: another profile."""
    faults: list[Any] = []  # which the daemon names better

    def of_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        fields = dict(pairs)
        faults.extend([fields] * (len(pairs) - len(fields)))
        return fields

    try:
        config = json.loads(text, object_pairs_hook=of_pairs, parse_constant=faults.append)
    except ValueError:
        return None
    heads = config.get("per_layer_head") if isinstance(config, dict) else None
    if not isinstance(heads, dict):
        return None
    if faults or not all(isinstance(head, dict) for head in heads.values()):
        return text
    ranks = {key: _without(_HEAD_REPORTS, head) for key, head in heads.items()}
    return json.dumps({**_without(_REPORTS, config), "per_layer_head": ranks}, separators=(",", ":"))


def _without(names: Sequence[str], fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name not in names}


def on_nonfinite_of(name: str) -> pb.OnNonfinite:
    """Its number; InvalidArgument for a name that it does not have."""
    if not isinstance(name, str) or name not in _ON_NONFINITE:
        raise InvalidArgument(f'on_nonfinite is "error" or "lossless", not {name!r}')
    return _ON_NONFINITE[name]


def checked_fingerprint(fingerprint: Any) -> bytes:
    """b"" for None. InvalidArgument for what is none."""
    if fingerprint is None:
        return b""
    if not isinstance(fingerprint, bytes):
        raise InvalidArgument(f"a fingerprint is bytes, not {type(fingerprint).__name__}")
    if len(fingerprint) > _MOST_FINGERPRINT_BYTES:
        raise InvalidArgument(f"a fingerprint has at most {_MOST_FINGERPRINT_BYTES} bytes, not {len(fingerprint)}")
    return fingerprint


# Characters; no daemon takes longer names and specs, and headers of such are not kept.
_LONGEST_KEPT = 1024


# Headers are often those of a call before, whose parts need no other look.
@functools.lru_cache(maxsize=512)
def _compress_header(
    name: str,
    spec: str,
    dtype: str,
    shape: tuple[int, ...],
    axes: tuple[str, ...],
    fingerprint: bytes,
    on_nonfinite: OnNonfinite,
    profile: str = "",
    rotary: RotaryEmbedding | None = None,
) -> bytes:
    checked_text("a name", name)
    checked_text("a spec", spec)
    for axis in axes:
        if axis not in _ROLES:
            raise InvalidArgument(f"unknown axis {axis!r}: use one of {', '.join(_ROLES)}")
    roles = [cast(pb.AxisRole, _ROLES.index(axis)) for axis in axes]
    described = pb.Tensor(name=name, dtype=_DTYPES[dtype], shape=shape, axes=roles, fingerprint=fingerprint)
    choice = on_nonfinite_of(on_nonfinite)
    header = pb.CompressHeader(
        tensor=described, codec=spec, profile=profile, on_nonfinite=choice, rotary=rotary_message(rotary)
    )
    return header.SerializeToString()


# The field's tag, in front of a varint.
_FRAME_BYTES = varint(pb.DecompressHeader.FRAME_BYTES_FIELD_NUMBER << 3)


@functools.lru_cache(maxsize=256)
def _decompress_header(name: str, fingerprint: bytes) -> bytes:
    checked_text("a name", name)
    return pb.DecompressHeader(name=name or "tensor", fingerprint=fingerprint).SerializeToString()


@functools.lru_cache(maxsize=256)
def _described(message: bytes) -> tuple[str, tuple[int, ...], bytes]:
    """Dtype, shape and fingerprint of a tensor that a daemon describes."""
    tensor = parsed(pb.Tensor, message)
    dtype = _DTYPE_NAMES.get(tensor.dtype)
    if dtype is None:
        raise malformed()
    return dtype, tuple(tensor.shape), tensor.fingerprint


@dataclass
class Item(Generic[Result]):
    header: bytes  # a message, serialized
    elements: memoryview  # of a tensor, as TensorView has them; or a frame's bytes

    @functools.cached_property
    def data(self) -> memoryview:
        """The bytes one after another, for who cannot read them with gaps."""
        return dense(self.elements)

    @property
    def pieces(self) -> Pieces | None:
        """Where the bytes stand, if not in `data`."""
        return None

    def size(self) -> int | None:
        """Bytes that one message must hold, there or back; None where only the daemon can tell, or none can."""
        raise NotImplementedError

    def request(self) -> bytes:
        """All of it in one message."""
        return bytes_field(1, self.header) + bytes_field(2, self.data)

    def answer(self, response: bytes) -> Result:
        """What the answer to `request` holds."""
        raise NotImplementedError


def view_of(tensor: Any) -> TensorView:
    """Of a tensor that is to be sent; InvalidArgument, whatever else is raised meanwhile."""
    with refusing("the tensor cannot be sent"):
        return TensorView.of(tensor)


@dataclass
class CompressItem(Item[Frame]):
    name: str
    view: TensorView
    tensor_bytes: int
    fingerprint: bytes

    @staticmethod
    def of(
        name: str,
        tensor: Any,
        spec: str = "",
        axes: Sequence[str] | None = None,
        profile: str = "",
        on_nonfinite: OnNonfinite = "error",
        rotary: RotaryEmbedding | None = None,
        fingerprint: bytes | None = None,
    ) -> "CompressItem":
        try:
            view = TensorView.of(tensor)
            size = view.size
            if view.pieces and size != checked_size(view.dtype, view.shape):
                # The daemon would wait for the rest.
                raise InvalidArgument(f"pieces of {size} bytes are no {view.dtype} {list(view.shape)}")
            owner = b"" if fingerprint is None else checked_fingerprint(fingerprint)
            described = (name, spec, view.dtype, view.shape, tuple(axes or ()), owner, on_nonfinite)
            is_text = isinstance(name, str) and isinstance(spec, str)
            if profile or rotary is not None or not is_text or len(name) > _LONGEST_KEPT or len(spec) > _LONGEST_KEPT:
                header = _compress_header.__wrapped__(*described, profile, rotary)
            else:
                header = _compress_header(*described)
        except KvCompressError:
            raise
        except Exception as error:
            raise refusal("the tensor cannot be sent", error) from error
        return CompressItem(header, view.data, name, view, size, owner)

    @property
    def pieces(self) -> Pieces | None:
        return self.view.pieces

    def size(self) -> int | None:
        return None if self.view.pieces else self.tensor_bytes + len(self.header)

    def most_frame_bytes(self) -> int:
        return MOST_EXPANSION * self.tensor_bytes + MOST_OVERHEAD

    def answer(self, response: bytes) -> Frame:
        found = dict(fields(response))
        return self.frame(bytes(found.get(2, b"")), bytes(found.get(1, b"")))

    def frame(self, data: bytes, report: bytes, *, is_right: bool = False) -> Frame:
        """Of a daemon's answer, unless the report on it is known to be right."""
        if not is_right:
            check_report(report, data, self.fingerprint)
        view = self.view
        return frame_of(data, report, self.name, view.dtype, view.shape, view.framework, self.fingerprint)


@dataclass
class DecompressItem(Item[tuple[str, Any]]):
    name: str
    framework: Framework
    expected: DtypeAndShape | None = None  # where they are known
    out: Output | None = None  # of the caller's
    fingerprint: bytes = b""  # that the frame must have

    @staticmethod
    def of(
        source: FrameSource, out: Any = None, framework: Framework | None = None, fingerprint: bytes | None = None
    ) -> "DecompressItem":
        try:
            name, frame, expected = "", source, None
            if isinstance(source, tuple):
                if len(source) not in (2, 3, 4):
                    raise InvalidArgument(
                        "expected frames, or pairs of a name and a frame, perhaps with dtype and shape, and fingerprint"
                    )
                name, frame, expected = source[0], source[1], source[2] if len(source) > 2 else None
                fingerprint = source[3] if len(source) == 4 else fingerprint
            owner = b"" if fingerprint is None else checked_fingerprint(fingerprint)
            if framework not in (None, "numpy", "torch"):
                raise InvalidArgument(f'as_ is "numpy" or "torch", not {framework!r}')
            if isinstance(frame, Frame):
                name, framework = name or frame.name, framework or frame.framework
                expected, frame = (frame.dtype, frame.shape), frame.data
            if expected is not None:
                expected = (expected[0], tuple(map(operator.index, expected[1])))
                if expected[0] not in _DTYPES:
                    raise InvalidArgument(f"a frame's dtype is one of {', '.join(_DTYPES)}, not {expected[0]!r}")
            if not isinstance(frame, _FRAME_TYPES):
                raise InvalidArgument(f"expected a Frame or its bytes, not {type(frame).__name__}")
            is_kept = isinstance(name, str) and len(name) <= _LONGEST_KEPT
            described = (_decompress_header if is_kept else _decompress_header.__wrapped__)(name, owner)
            data = memoryview(frame)
            if not data.c_contiguous:
                raise InvalidArgument("the frame's bytes are not contiguous")
            output = None if out is None else Output.over(out, data)
            header = described + _FRAME_BYTES + varint(data.nbytes)
            data = data.cast("B")
        except KvCompressError:
            raise
        except Exception as error:
            raise refusal("expected a frame", error) from error
        return DecompressItem(header, data, name or "tensor", framework or "numpy", expected, output, owner)

    def size(self) -> int | None:
        return None if self.expected is None else max(self.elements.nbytes, checked_size(*self.expected))

    def answer(self, response: bytes) -> tuple[str, Any]:
        found = dict(fields(response))
        output = self.output(found.get(1, memoryview(b"")))
        data = found.get(3, memoryview(b""))
        if len(data) != len(output.data):
            raise malformed()
        output.data[:] = data
        output.filled()
        return self.name, output.tensor

    def target(self, header: bytes) -> tuple[memoryview, tuple[str, Any]]:
        """The memory of `output`, and the result once it is filled."""
        output = self.output(header)
        return output.elements, (self.name, output.tensor)

    def output(self, header: bytes | memoryview) -> Output:
        """The buffer for the tensor that the daemon describes, which must be the one that the frame was made from."""
        dtype, shape, fingerprint = _described(bytes(header))
        if self.fingerprint not in (b"", fingerprint):  # also of a daemon that does not know fingerprints
            raise mismatch(self.name, fingerprint, self.fingerprint)
        if self.expected not in (None, (dtype, shape)):
            raise DataLoss(f'frame "{self.name}" holds {dtype} {list(shape)}, and not what was compressed')
        if self.out is None:
            return Output.new(dtype, shape, self.framework)
        self.out.check_holds(dtype, shape)
        return self.out
