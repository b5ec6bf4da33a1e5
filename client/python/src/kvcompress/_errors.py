"""What calls raise: one tree, with the daemon's own sentence in each."""

from typing import Any

import grpc


class KvCompressError(Exception):
    """Root of all errors of a call. `code` is gRPC's, None where the daemon was not asked; `retry_after` is the seconds
    after which the daemon asks to be called again, None where it does not."""

    def __init__(self, detail: str, code: grpc.StatusCode | None = None, retry_after: float | None = None):
        super().__init__(detail)
        self.detail = detail
        self.code = code
        self.retry_after = retry_after


class InvalidArgument(KvCompressError, ValueError):
    """A tensor, spec, profile or frame that the daemon, or the client before it, does not take."""


class DataLoss(KvCompressError):
    """A frame that is damaged or cut off."""


class ResourceExhausted(KvCompressError):
    """Over a limit, for good, or over the daemon's budget for now: then `retry_after` is set."""


class Unavailable(KvCompressError):
    """The daemon is not there, or drains."""


class DeadlineExceeded(KvCompressError, TimeoutError):
    """The call's timeout has passed."""


class Unimplemented(KvCompressError):
    """A codec, frame version or method that this daemon does not have."""


class FailedPrecondition(KvCompressError):
    """What the call needs is not enabled in this daemon."""


class Unauthenticated(KvCompressError):
    """The daemon wants a token, and this one is not of its own."""


class Cancelled(KvCompressError):
    """The call was cancelled, or its client closed."""


class VersionMismatch(KvCompressError):
    """The daemon is of another major version than this package."""


_BY_CODE: dict[grpc.StatusCode, type[KvCompressError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidArgument,
    grpc.StatusCode.OUT_OF_RANGE: InvalidArgument,
    grpc.StatusCode.DATA_LOSS: DataLoss,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ResourceExhausted,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.UNIMPLEMENTED: Unimplemented,
    grpc.StatusCode.FAILED_PRECONDITION: FailedPrecondition,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.CANCELLED: Cancelled,
}


def late() -> DeadlineExceeded:
    return DeadlineExceeded("Deadline Exceeded", grpc.StatusCode.DEADLINE_EXCEEDED)


def unanswered(left: float | None) -> KvCompressError:
    """The daemon has ended a call well that it has not answered, `left` seconds before its deadline. When that passes,
    gRPC drops answers that it has already, but not the status that followed them."""
    if left == 0:
        return late()
    return KvCompressError("the daemon ended the call before it had answered all of it")


def closed() -> KvCompressError:
    return Cancelled("the client is closed")


def from_rpc(error: grpc.RpcError) -> KvCompressError:
    """The exception for a failed call of either of gRPC's two Python interfaces."""
    call: Any = error  # both give these methods; RpcError itself declares none
    code: grpc.StatusCode = call.code()
    return _BY_CODE.get(code, KvCompressError)(call.details() or code.name, code, _pushback(call.trailing_metadata()))


def _pushback(trailers: Any) -> float | None:
    """Seconds of the trailer grpc-retry-pushback-ms; None without one, and where it says not to come again."""
    for key, value in trailers or ():
        if key == "grpc-retry-pushback-ms":
            text = value if isinstance(value, str) else value.decode("ascii", "replace")
            if text.isascii() and text.isdigit() and len(text) <= 10:
                return int(text) / 1000
    return None
