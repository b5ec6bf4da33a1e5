"""What Compress makes."""

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ._errors import KvCompressError, Unimplemented
from ._tensors import Framework
from ._wire import parsed
from .v1 import kvcompress_pb2 as pb


@dataclass(frozen=True)
class Quality:
    """Figures of the decoded values against the original ones. SNRs are infinite where nothing was lost.

    `snr_db` is NaN for values without variance (all equal, or one alone) that have an error. `token_snr_db` is the SNR
    of what changes from token to token, which is all that attention sees of keys; NaN for a tensor without tokens (no
    seq or head_dim axis) or that does not change with them. `level` is EXCELLENT, GOOD, ACCEPTABLE or POOR: of keys by
    `token_snr_db`, of values by `snr_db`, of tensors whose name tells neither by the lower one."""

    rmse: float
    mean_abs_error: float
    snr_db: float
    cosine_similarity: float
    max_error: float
    level: str
    token_snr_db: float = math.nan


@dataclass(frozen=True)
class RotaryGain:
    """What undoing the rotary embedding of keys brought, by the variances of their channels: an estimate.

    `undone_share` is the share of values that were turned back: 0 where that makes no channel narrower, and the
    embedding is perhaps a wrong one. `saved_bits_per_value` is over all values of the tensor that can be turned."""

    undone_share: float
    saved_bits_per_value: float


@dataclass(frozen=True)
class Frame:
    """One compressed tensor: its bytes, which stand alone, and the daemon's report."""

    data: bytes = field(repr=False)
    name: str
    codec: str  # canonical spec
    dtype: str  # as safetensors names it: F16, BF16, F32, F8_E4M3, I64, ...
    shape: tuple[int, ...]
    tensor_bytes: int
    frame_bytes: int
    quality: Quality | None
    violations: tuple[str, ...]  # quality thresholds that were missed
    codec_seconds: float  # of the daemon's threads
    framework: Framework = "numpy"  # of the tensor that it was made from
    # A report is read when it is first asked for. A default that stands in the class, as factories do not, would hide
    # that it is not read yet.
    policy: str = field(default_factory=str)  # "others": neither key nor value, so it has the profile's codec of others
    nonfinite_blocks: int = field(default_factory=int)  # stored as they are, for a value that the codec refuses
    # Of codecs that find out whether a rotary embedding is better undone.
    rotary: RotaryGain | None = field(default_factory=lambda: None)
    # Of a dtype that is kept bit for bit whatever the codec; `quality` is None then.
    passed_through: bool = field(default_factory=bool)
    fingerprint: bytes = b""  # that the frame carries

    @property
    def ratio(self) -> float:
        """Bytes of the tensor in its own dtype to bytes of the frame."""
        return self.tensor_bytes / self.frame_bytes

    def __bytes__(self) -> bytes:
        return self.data

    def __len__(self) -> int:
        return len(self.data)

    def __getstate__(self) -> dict[str, Any]:
        _read_report(self.__dict__)
        return self.__dict__

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            _read_report(self.__dict__)
            try:
                return self.__dict__[name]
            except KeyError:
                raise AttributeError(f"a Frame has no attribute {name!r}", name=name, obj=self) from None


def _snr(quality: pb.Quality, field_name: str, is_exact: bool) -> float:
    """An SNR, which a message leaves out where it is infinite, and where there is none."""
    if quality.HasField(field_name):
        return float(getattr(quality, field_name))
    return math.inf if is_exact else math.nan


def _no_token_error(sums: pb.ErrorSums) -> bool:
    return sums.token_deviations > 0 and sums.token_error_deviations == 0


def _rotary(report: pb.TensorReport) -> RotaryGain | None:
    gain = report.rotary
    if not gain.values:
        return None
    return RotaryGain(undone_share=gain.turned / gain.values, saved_bits_per_value=gain.bits / gain.values)


def frame_of(
    data: bytes, report: bytes, name: str, dtype: str, shape: tuple[int, ...], framework: Framework, fingerprint: bytes
) -> Frame:
    """Of a tensor, by a report that is right."""
    frame = object.__new__(Frame)
    frame.__dict__.update(
        data=data, name=name, dtype=dtype, shape=shape, framework=framework, fingerprint=fingerprint, _report=report
    )
    return frame


def check_report(report: bytes, frame: bytes, fingerprint: bytes) -> None:
    """KvCompressError for what cannot be a daemon's report on a frame that is to have the fingerprint."""
    message = parsed(pb.TensorReport, report)
    if message.frame_bytes != len(frame):
        raise KvCompressError(f"a frame of {message.frame_bytes} bytes came as {len(frame)}")
    if message.fingerprint != fingerprint:
        raise Unimplemented("the daemon does not know fingerprints")


def _read_report(fields: dict[str, Any]) -> None:
    """Of a Frame, unless they are all there. In several threads at once it does the same several times."""
    text = fields.get("_report")
    if text is None:
        return
    report = pb.TensorReport.FromString(text)
    fields.update(
        codec=report.codec, tensor_bytes=report.tensor_bytes, frame_bytes=report.frame_bytes,
        quality=_quality(report), violations=tuple(report.violations), codec_seconds=report.codec_seconds,
        policy=report.policy, nonfinite_blocks=report.nonfinite_blocks, rotary=_rotary(report),
        passed_through=report.passed_through,
    )  # fmt: skip
    fields.pop("_report", None)


def _quality(report: pb.TensorReport) -> Quality | None:
    if not report.HasField("quality"):
        return None
    found = report.quality
    return Quality(
        rmse=found.rmse, mean_abs_error=found.mean_abs_error,
        snr_db=_snr(found, "snr_db", found.max_error == 0), cosine_similarity=found.cosine_similarity,
        max_error=found.max_error, level=found.level,
        token_snr_db=_snr(found, "token_snr_db", _no_token_error(report.sums)),
    )  # fmt: skip
