"""Client of kv-compressd, which compresses the key/value caches of language models."""

from . import _fork  # noqa: F401 - before gRPC is imported
from ._aio import AsyncClient
from ._client import Client
from ._core import version
from ._errors import (
    Cancelled,
    DataLoss,
    DeadlineExceeded,
    FailedPrecondition,
    FingerprintMismatch,
    InvalidArgument,
    KvCompressError,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
    Unimplemented,
    VersionMismatch,
)
from ._frame import Frame, Quality, RotaryGain
from ._items import OnNonfinite, profile_json
from ._local import LocalClient, compress, decompress
from ._retry import NO_RETRY, RetryPolicy
from ._rotary import RotaryEmbedding, RotaryScaling
from ._tls import tls

__version__ = version()
__all__ = [
    "NO_RETRY",
    "AsyncClient",
    "Cancelled",
    "Client",
    "DataLoss",
    "DeadlineExceeded",
    "FailedPrecondition",
    "FingerprintMismatch",
    "Frame",
    "InvalidArgument",
    "KvCompressError",
    "LocalClient",
    "OnNonfinite",
    "Quality",
    "ResourceExhausted",
    "RetryPolicy",
    "RotaryEmbedding",
    "RotaryGain",
    "RotaryScaling",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
    "VersionMismatch",
    "__version__",
    "compress",
    "decompress",
    "profile_json",
    "tls",
]
