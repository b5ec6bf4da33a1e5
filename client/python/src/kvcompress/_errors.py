"""What calls raise: one tree, with the daemon's own sentence in each."""

import re
from typing import Any

import grpc


class KvCompressError(Exception):
    """Root of all errors of a call. `code` is gRPC's, None where the daemon was not asked; `retry_after` is the seconds
    after which the daemon asks to be called again, None where it does not; `reason` is the ErrorReason that it gives,
    of kvcompress.v1."""

    def __init__(
        self, detail: str, code: grpc.StatusCode | None = None, retry_after: float | None = None, reason: int = 0
    ):
        super().__init__(detail)
        self.detail = detail
        self.code = code
        self.retry_after = retry_after
        self.reason = reason


class InvalidArgument(KvCompressError, ValueError):
    """A tensor, spec, profile or frame that the daemon, or the client before it, does not take."""


class DataLoss(KvCompressError):
    """A frame that is damaged or cut off."""


class FingerprintMismatch(KvCompressError):
    """A frame that has not the fingerprint which its reader expects: another's, or none. It may be whole."""


class ResourceExhausted(KvCompressError):
    """Over a limit, for good, or over the daemon's budget for now: then `retry_after` is set."""


class Unavailable(KvCompressError):
    """The daemon is not there, or drains."""


class DeadlineExceeded(KvCompressError, TimeoutError):
    """The call's timeout has passed."""


class Unimplemented(KvCompressError):
    """A codec, frame version or method that this daemon does not have."""


class FailedPrecondition(KvCompressError):
    """What the call needs is not there, and will not be the next time: it is not enabled in this daemon; the daemon's
    certificate cannot be believed; there is no host of that name; gRPC does not work in a child of a fork."""


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
    grpc.StatusCode.ABORTED: FingerprintMismatch,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ResourceExhausted,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.UNIMPLEMENTED: Unimplemented,
    grpc.StatusCode.FAILED_PRECONDITION: FailedPrecondition,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.CANCELLED: Cancelled,
}


_BY_NUMBER: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}


def from_status(number: int, detail: str) -> KvCompressError:
    """The exception for what the codec in this process says; its numbers are gRPC's."""
    code = _BY_NUMBER[number]
    return _BY_CODE.get(code, KvCompressError)(detail, code)


def mismatch(name: str, found: bytes, expected: bytes) -> FingerprintMismatch:
    """As the codec says it."""
    has = f"fingerprint {found.hex()}" if found else "none"
    text = f'tensor "{name}": frame: it has {has}, not fingerprint {expected.hex()}'
    return FingerprintMismatch(text, grpc.StatusCode.ABORTED)


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


def refusal(what: str, error: BaseException) -> InvalidArgument:
    """`what` and why, for an error that is not of this tree, and which a caller's argument has raised."""
    return InvalidArgument(f"{what}: {error or type(error).__name__}")


class refusing:
    """Raises the refusal for whatever a block raises that is not of this tree."""

    def __init__(self, what: str):
        self._what = what

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, Exception) and not isinstance(error, KvCompressError):
            raise refusal(self._what, error) from error


def checked_text(what: str, value: Any, *, is_secret: bool = False) -> str:
    """The text; InvalidArgument for what is none, or cannot be written in UTF-8."""
    if not isinstance(value, str):
        raise InvalidArgument(f"{what} is text, not {type(value).__name__}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InvalidArgument(f"{what} cannot be written in UTF-8" + ("" if is_secret else f": {value!r}")) from None
    return str(value)


# What gRPC says where it cannot connect, and what that means. No other attempt would end otherwise.
_LASTING = (
    ("certificate has expired", "the daemon's certificate has expired"),
    ("certificate is not yet valid", "the daemon's certificate is not valid yet"),
    ("Hostname Verification Check failed", "the daemon's certificate is for another host"),
    ("is not in peer certificate", "the daemon's certificate is for another host"),
    ("issuer certificate", "the daemon's certificate is of an unknown authority"),
    ("unable to verify the first certificate", "the daemon's certificate is of an unknown authority"),
    ("self signed certificate", "the daemon's certificate is of an unknown authority"),
    ("self-signed certificate", "the daemon's certificate is of an unknown authority"),
    ("CERTIFICATE_VERIFY_FAILED", "the daemon's certificate is refused"),
    ("Domain name not found", "there is no host of that name"),
)
_ADDRESS = re.compile(r"(?:ipv4|ipv6):\S+?(?=: )|(?<=errors resolving )\S+(?=: )")


def _lasting(said: str, own_fault: str) -> KvCompressError | None:
    meaning = next((meaning for text, meaning in _LASTING if text in said), "")
    # A daemon closes connections whose certificate it does not take, and gRPC does not say what else it was told.
    if not meaning and said.startswith("failed to connect") and "Socket closed" in said:
        meaning = own_fault
    if not meaning:
        return None
    found = _ADDRESS.search(said)
    return FailedPrecondition(f"connect to {found[0]}: {meaning}" if found else meaning)


def failure(number: int, said: str, retry_after: float | None, reason: int = 0, own_fault: str = "") -> KvCompressError:
    """The exception for a failed call: by the number of gRPC's code, what gRPC says and what the daemon tells programs.
    `own_fault` says what is wrong with this side's certificate."""
    code = _BY_NUMBER[number]
    if code == grpc.StatusCode.UNAVAILABLE and (lasting := _lasting(said, own_fault)):
        return lasting
    return _BY_CODE.get(code, KvCompressError)(said or code.name, code, retry_after, reason)
