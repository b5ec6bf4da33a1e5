"""What the daemon tells programs in the trailers of a call that has failed."""

from typing import Any

import grpc

from ._errors import KvCompressError, failure
from ._wire import fields
from .v1 import kvcompress_pb2 as pb

# Daemons of version 0.1.0, which is of this package's major version, give no ErrorReason and know no batches: what they
# mean is known by their words alone, which are written here as they were then. So do they end a call with a batch, of
# which they have taken nothing.
NO_BATCHES = (grpc.StatusCode.INVALID_ARGUMENT.value[0], "message without a payload")


def _reason_in_words(code: grpc.StatusCode, said: str) -> int:
    """Why such a daemon has ended a call by shared memory."""
    is_refusal = code == grpc.StatusCode.FAILED_PRECONDITION and said.startswith("shared memory")
    return pb.SHARED_MEMORY_LOST if is_refusal or code == grpc.StatusCode.NOT_FOUND else 0


def from_rpc(error: grpc.RpcError, own_fault: str = "") -> KvCompressError:
    """The exception for a failed call. `own_fault` says what is wrong with this side's certificate."""
    call: Any = error  # RpcError itself declares none of these methods
    trailers = dict(call.trailing_metadata() or ())
    code, said, described = call.code(), call.details() or "", trailers.get("grpc-status-details-bin", b"")
    reason = _reason(described) if described else _reason_in_words(code, said)
    return failure(code.value[0], said, _pushback(trailers), reason, own_fault)


def _pushback(trailers: dict[str, str | bytes]) -> float | None:
    """Seconds; None where it says not to come again, or nothing."""
    value = trailers.get("grpc-retry-pushback-ms", "")
    text = value if isinstance(value, str) else value.decode("ascii", "replace")
    return int(text) / 1000 if text.isascii() and text.isdigit() and len(text) <= 10 else None


def _reason(status: str | bytes) -> int:
    """The ErrorReason, by the google.rpc.ErrorInfo in the google.rpc.Status; 0 without one that is known."""
    try:
        for number, detail in fields(status if isinstance(status, bytes) else b""):
            described = _fields_of(detail) if number == 3 else {}
            if described.get(1) == b"type.googleapis.com/google.rpc.ErrorInfo":
                info = _fields_of(described.get(2, b""))
                if info.get(2) == b"kvcompress":
                    return pb.ErrorReason.Value(info.get(1, b"").decode("ascii"))
    except (KvCompressError, ValueError):
        pass
    return 0


def _fields_of(message: bytes | memoryview) -> dict[int, bytes]:
    return {number: bytes(value) for number, value in fields(bytes(message))}
