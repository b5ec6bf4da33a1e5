"""What Compress makes."""

from dataclasses import dataclass, field

from ._errors import KvCompressError
from ._tensors import Framework
from .v1 import kvcompress_pb2 as pb


@dataclass(frozen=True)
class Quality:
    """Figures of the decoded values against the original ones. `snr_db` is infinite where nothing was lost; `level` is
    EXCELLENT, GOOD, ACCEPTABLE or POOR."""

    rmse: float
    mean_abs_error: float
    snr_db: float
    cosine_similarity: float
    max_error: float
    level: str


@dataclass(frozen=True)
class Frame:
    """One compressed tensor: its bytes, which stand alone, and the daemon's report."""

    data: bytes = field(repr=False)
    name: str
    codec: str  # canonical spec
    dtype: str  # F16, BF16 or F32
    shape: tuple[int, ...]
    tensor_bytes: int
    frame_bytes: int
    quality: Quality | None
    violations: tuple[str, ...]  # quality thresholds that were missed
    codec_seconds: float  # of the daemon's threads
    framework: Framework = "numpy"  # of the tensor that it was made from

    @property
    def ratio(self) -> float:
        """Bytes of the tensor in its own dtype to bytes of the frame."""
        return self.tensor_bytes / self.frame_bytes

    def __bytes__(self) -> bytes:
        return self.data

    def __len__(self) -> int:
        return len(self.data)


def frame_of(data: bytes, report: pb.TensorReport, dtype: str, shape: tuple[int, ...], framework: Framework) -> Frame:
    if report.frame_bytes != len(data):
        raise KvCompressError(f"a frame of {report.frame_bytes} bytes came as {len(data)}")
    found = report.quality
    quality = None
    if report.HasField("quality"):
        snr = found.snr_db if found.HasField("snr_db") else float("inf")
        quality = Quality(found.rmse, found.mean_abs_error, snr, found.cosine_similarity, found.max_error, found.level)
    return Frame(
        data=data, name=report.name, codec=report.codec, dtype=dtype, shape=shape, tensor_bytes=report.tensor_bytes,
        frame_bytes=report.frame_bytes, quality=quality, violations=tuple(report.violations),
        codec_seconds=report.codec_seconds, framework=framework,
    )  # fmt: skip
