"""What Compress makes."""

import math
from dataclasses import dataclass, field

from ._errors import KvCompressError
from ._tensors import Framework
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
    policy: str = ""  # "others": neither key nor value, so it has the profile's codec of others
    nonfinite_blocks: int = 0  # that are stored as they are, for a value that the codec refuses
    rotary: RotaryGain | None = None  # of codecs that find out whether a rotary embedding is better undone
    passed_through: bool = False  # of a dtype that is kept bit for bit whatever the codec; `quality` is None then
    fingerprint: bytes = b""  # that the frame carries

    @property
    def ratio(self) -> float:
        """Bytes of the tensor in its own dtype to bytes of the frame."""
        return self.tensor_bytes / self.frame_bytes

    def __bytes__(self) -> bytes:
        return self.data

    def __len__(self) -> int:
        return len(self.data)


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


def frame_of(data: bytes, report: pb.TensorReport, dtype: str, shape: tuple[int, ...], framework: Framework) -> Frame:
    if report.frame_bytes != len(data):
        raise KvCompressError(f"a frame of {report.frame_bytes} bytes came as {len(data)}")
    found = report.quality
    quality = None
    if report.HasField("quality"):
        quality = Quality(
            rmse=found.rmse, mean_abs_error=found.mean_abs_error,
            snr_db=_snr(found, "snr_db", found.max_error == 0), cosine_similarity=found.cosine_similarity,
            max_error=found.max_error, level=found.level,
            token_snr_db=_snr(found, "token_snr_db", _no_token_error(report.sums)),
        )  # fmt: skip
    return Frame(
        data=data, name=report.name, codec=report.codec, dtype=dtype, shape=shape, tensor_bytes=report.tensor_bytes,
        frame_bytes=report.frame_bytes, quality=quality, violations=tuple(report.violations),
        codec_seconds=report.codec_seconds, framework=framework,
        policy=report.policy,
        nonfinite_blocks=report.nonfinite_blocks,
        rotary=_rotary(report),
        passed_through=report.passed_through,
        fingerprint=report.fingerprint,
    )  # fmt: skip
