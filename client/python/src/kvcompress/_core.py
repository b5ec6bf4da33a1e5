"""The calls of both clients without I/O: what is sent next, what its answer means, and when a call is made again.

A call is a plan: a generator of steps. A driver carries out one step after the other, and sends the plan what came of
it, or throws the error into it. What the plan returns is the result of the call.
"""

from __future__ import annotations

import functools
import importlib.metadata
import inspect
import math
import time
from collections.abc import AsyncIterable, Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, ParamSpec, TypeVar

import grpc

from ._errors import (
    FailedPrecondition,
    InvalidArgument,
    KvCompressError,
    Unavailable,
    VersionMismatch,
    closed,
    refusing,
    unanswered,
)
from ._exchange import CompressExchange, DecompressExchange, Exchange, compress_exchanges, decompress_exchanges
from ._frame import Frame
from ._items import (
    CompressItem,
    DecompressItem,
    FrameBytes,
    FrameSource,
    Item,
    OnNonfinite,
    Result,
    TensorSource,
    profile_json,
)
from ._retry import WAIT_READY, Attempts, Left, RetryPolicy, checked_seconds
from ._rotary import RotaryEmbedding
from ._tensors import Framework
from ._wire import Parsed, parsed
from .v1 import kvcompress_pb2 as pb

Arguments = ParamSpec("Arguments")
Given = TypeVar("Given")
Method = TypeVar("Method", bound=Callable[..., Any])
Items = Iterable[Given] | AsyncIterable[Given]
# Seconds until a daemon that lacks something is asked again: another one may have taken its place.
_PAUSE = 60.0
# Of a message besides the payload: tags, lengths, a header of the longest name, and some to spare.
_MESSAGE_OVERHEAD = 4096


@dataclass(frozen=True)
class Unary:
    """One message, and the one that answers it: its bytes, or None where the daemon has ended the call without it."""

    method: str
    request: bytes
    timeout: float | None  # seconds


@dataclass(slots=True)
class Message(Generic[Result]):
    """One item, which goes, and comes back, in one message; for a driver that takes items."""

    item: Item[Result]
    left: Left


@dataclass(frozen=True)
class Streaming(Generic[Result]):
    """Items by a stream. As a step, it gives the list of the results."""

    exchange: Exchange[Any, Result]
    items: Any  # what the driver can iterate
    left: Left
    batches: bool = False  # whether the daemon takes small items together
    forget: Callable[[], None] = lambda: None  # to be called where it does not


@dataclass(frozen=True)
class Work:
    """A function of the caller's, which is told how many seconds it has; it gives what that returns."""

    function: Callable[[float], Any]
    seconds: float


@dataclass(frozen=True)
class Wait:
    seconds: float


Step = Message[Any] | Unary | Streaming[Any] | Work | Wait
Plan = Generator[Step, Any, Result]


def carries_item(step: Step) -> bool:
    """Of a call with one: whether it is sent by this step, which others may go before."""
    return isinstance(step, Message | Streaming) or (isinstance(step, Unary) and step.method.endswith("Tensor"))


def method_of(plan: Callable[..., Any]) -> Callable[[Method], Method]:
    """Makes a client's method show the plan's name, text and parameters, and the plan's result as its own."""

    def documented(method: Method) -> Method:
        functools.update_wrapper(method, plan)
        signature = inspect.signature(plan)
        result = str(signature.return_annotation).removeprefix("Plan[").removesuffix("]")
        method.__signature__ = signature.replace(return_annotation=result)  # type: ignore[attr-defined]
        return method

    return documented


def version() -> str:
    """Of this package."""
    return importlib.metadata.version("kvcompress")


class Core:
    """The plans of one client. `learn` is given what the daemon says of itself, `takes_items` says whether the driver
    sends items in messages by itself, `shares` whether it has memory for streams that the daemon shares. `closed` is
    set when the client is."""

    def __init__(
        self,
        timeout: float | None,
        retry: RetryPolicy,
        learn: Callable[[pb.CapabilitiesResponse], None],
        takes_items: Callable[[], bool] = lambda: False,
        shares: Callable[[], bool] = lambda: False,
    ):
        self.closed = False
        self._timeout = checked_seconds(timeout)
        self._retry = retry
        self._learn = learn
        self._takes_items = takes_items
        self._shares = shares
        self._message_bytes = 0
        self._alone_bytes = 0
        self._batches = False
        self.ask_again = 0.0  # time.monotonic(): what is known of the daemon holds until then
        self.limits = (0, 0, self._timeout)  # of plain calls, as the module takes them

    def compress(
        self,
        tensor: Any,
        spec: str = "",
        *,
        name: str = "tensor",
        axes: Sequence[str] | None = None,
        profile: Any = None,
        on_nonfinite: OnNonfinite = "error",
        rotary: RotaryEmbedding | None = None,
        fingerprint: bytes | None = None,
        timeout: float | None = None,
    ) -> Plan[Frame]:
        """Compresses a NumPy array or PyTorch tensor of the CPU, of up to 8 axes. Types other than float16, bfloat16,
        float32, float8_e4m3fn and float8_e5m2 are kept bit for bit, whatever codec is asked for (`passed_through`).

        `spec` is a codec chain or its name ("": the daemon's default); or `profile` chooses one by `name`: a mapping,
        JSON text or the path of a file; one that says ranks of heads, a compression config, stands beside a spec with
        an artifact. `axes` gives each axis its role: batch, layer, heads, seq, head_dim, other.
        A value that a lossy codec refuses (NaN, infinity, too large) is InvalidArgument, which names its index; with
        `on_nonfinite="lossless"` the block of 131072 values that it is in is stored as it is. `rotary` is for codecs
        that turn keys back, where neither spec nor profile says it. `fingerprint` says whose the tensor is (model,
        layer, layout, chunk) in at most 64 bytes of your own, which the frame carries.
        InvalidArgument for what is none of these, ResourceExhausted for a tensor over the daemon's limit.
        """
        item = CompressItem.of(name, tensor, spec, axes, profile_json(profile, spec), on_nonfinite, rotary, fingerprint)
        return self._one(item, CompressExchange, timeout)

    def decompress(
        self,
        frame: Frame | FrameBytes,
        *,
        out: Any = None,
        as_: Framework | None = None,
        fingerprint: bytes | None = None,
        timeout: float | None = None,
    ) -> Plan[Any]:
        """The tensor of a frame: in `out`, where that is given; else a new one, of the kind that the Frame was made
        from, or of the kind `as_`; of bytes alone, a NumPy array. DataLoss for a frame that is damaged, or of another
        dtype or shape than its Frame says; InvalidArgument for an `out` that does not fit. With a `fingerprint` a
        frame that has another or none is FingerprintMismatch, before a value is written."""
        item = DecompressItem.of(frame, out, as_, fingerprint)
        _, tensor = yield from self._one(item, DecompressExchange, timeout)
        return tensor

    def compress_many(
        self,
        tensors: Items[TensorSource],
        spec: str,
        profile: Any,
        on_nonfinite: OnNonfinite,
        rotary: RotaryEmbedding | None,
        timeout: float | None,
    ) -> Plan[Streaming[Frame]]:
        return self._many(tensors, compress_exchanges(spec, profile, on_nonfinite, rotary), timeout)

    def decompress_many(
        self, frames: Items[FrameSource], out: Iterable[Any] | None, as_: Framework | None, timeout: float | None
    ) -> Plan[Streaming[tuple[str, Any]]]:
        return self._many(frames, decompress_exchanges(frames, out, as_), timeout)

    def metrics(self, *, timeout: float | None = None) -> Plan[pb.MetricsResponse]:
        """Totals since the daemon's start, live gauges, and its build."""
        return self._retried(lambda left: self._ask("Metrics", pb.MetricsResponse, left), timeout)

    def capabilities(
        self, headers: Iterable[pb.CompressHeader] = (), *, timeout: float | None = None
    ) -> Plan[pb.CapabilitiesResponse]:
        """Codecs, names of codec chains, limits, transports; and, as `max_frame_bytes`, for each tensor that `headers`
        describes the most bytes that its frame can have: at most 4096 tensors. InvalidArgument for one that the daemon
        would not compress."""
        with refusing("headers are messages of CompressHeader"):
            request = pb.CapabilitiesRequest(headers=headers).SerializeToString()
        return self._retried(lambda left: self._ask("Capabilities", pb.CapabilitiesResponse, left, request), timeout)

    def wait_ready(self, timeout: float | None = None) -> Plan[None]:
        """Returns once the daemon answers, does not drain, and is of a version that this package knows. Unavailable or
        DeadlineExceeded when that is not so within `timeout` seconds; VersionMismatch at once."""

        def attempt(left: Left) -> Plan[None]:
            if (yield from self._ask("Metrics", pb.MetricsResponse, left)).draining:
                raise Unavailable("the daemon drains")
            yield from self._ready(left)

        return self._retried(attempt, timeout, WAIT_READY)

    def with_retries(self, work: Callable[[float], Any], timeout: float | None) -> Plan[Any]:
        if not callable(work):
            raise InvalidArgument(f"work is a function, not {type(work).__name__}")

        def attempt(left: Left) -> Plan[Any]:
            seconds = left()
            return (yield Work(work, math.inf if seconds is None else seconds))

        return self._retried(attempt, timeout)

    def _one(self, item: Item[Result], kind: type[Exchange[Any, Result]], timeout: float | None) -> Plan[Result]:
        """By one message where both the item and its result fit into one, else by a stream."""

        def attempt(left: Left) -> Plan[Result]:
            most = self._message_bytes if time.monotonic() < self.ask_again else (yield from self._ready(left))
            size = item.size()
            takes_items = self._takes_items()
            # A tensor of the recommended size is cheaper in a message than in a stream, unless that shares memory, as
            # who takes items does for any size.
            in_message = size is not None and (
                size <= most // 2 or (size <= self._alone_bytes and not (takes_items and self._shares()))
            )
            if in_message and not takes_items:
                return item.answer((yield from self._unary(kind.method + "Tensor", item.request(), left)))
            result: Result
            try:
                if in_message:
                    result = yield Message(item, left)
                else:
                    (result,) = yield Streaming(kind(most), [item], left)
            except Unavailable as error:
                yield from self._explain(error, left)
                raise
            return result

        return self._retried(attempt, timeout)

    def _explain(self, error: Unavailable, left: Left) -> Plan[None]:
        """Raises FailedPrecondition for what another attempt would not mend: who sends items by himself does not know
        why he finds no daemon."""
        if self._takes_items() and error.code == grpc.StatusCode.UNAVAILABLE:
            try:
                yield from self._ask("Capabilities", pb.CapabilitiesResponse, left)
            except FailedPrecondition:
                raise
            except KvCompressError:
                return

    def _many(
        self, items: Items[Any], kind: Callable[[int], Exchange[Any, Result]], timeout: float | None
    ) -> Plan[Streaming[Result]]:
        if not isinstance(items, Iterable | AsyncIterable):
            raise InvalidArgument(f"expected an iterable, not {type(items).__name__}")
        left = self._attempts(timeout).left
        most = yield from self._ready(left)
        return Streaming(kind(most), items, left, batches=self._batches, forget=self._forget)

    def _attempts(self, timeout: float | None, policy: RetryPolicy | None = None) -> Attempts:
        return Attempts(policy or self._retry, self._timeout if timeout is None else checked_seconds(timeout))

    def _retried(
        self, attempt: Callable[[Left], Plan[Result]], timeout: float | None, policy: RetryPolicy | None = None
    ) -> Plan[Result]:
        attempts = self._attempts(timeout, policy)
        while True:
            try:
                return (yield from attempt(attempts.left))
            except KvCompressError as error:
                delay = attempts.delay_after(error)
            yield Wait(delay)

    def _ready(self, left: Left) -> Plan[int]:
        """The most of a payload in one message, from a daemon that was found to be of our version."""
        if time.monotonic() >= self.ask_again:
            said = yield from self._ask("Capabilities", pb.CapabilitiesResponse, left)
            self._learn(said)
            self._message_bytes = _message_bytes(said)
            # With a header.
            largest = min(said.limits.max_message_bytes, self._message_bytes + 2 * _MESSAGE_OVERHEAD)
            self._alone_bytes = largest - _MESSAGE_OVERHEAD
            self.limits = (self._message_bytes // 2, self._alone_bytes, self._timeout)
            self._batches = said.limits.max_batch_tensors > 0
            has_all = self._batches and pb.TRANSPORT_SHARED_MEMORY in said.transports
            self.ask_again = math.inf if has_all else time.monotonic() + _PAUSE
        return self._message_bytes

    def _forget(self) -> None:
        """Another daemon has taken the place of the one that was asked: the next call asks again."""
        self.ask_again = 0.0

    def _ask(self, method: str, kind: type[Parsed], left: Left, request: bytes = b"") -> Plan[Parsed]:
        return parsed(kind, (yield from self._unary(method, request, left)))

    def _unary(self, method: str, request: bytes, left: Left) -> Plan[bytes]:
        if self.closed:
            raise closed()
        try:
            reply: bytes | None = yield Unary(method, request, left())
        except KvCompressError:
            raise
        except Exception:
            # Each of gRPC's two interfaces has an exception of its own for channels that are closed.
            if self.closed:
                raise closed() from None
            raise
        if reply is None:
            raise unanswered(left())
        return reply


def _message_bytes(said: pb.CapabilitiesResponse) -> int:
    """The most of a payload in one message to this daemon. VersionMismatch for a daemon that is not of this package's
    major version."""
    ours, theirs = version(), said.build.version
    if ours.split(".")[0] != theirs.split(".")[0]:
        raise VersionMismatch(f"the daemon is version {theirs or 'unknown'}, and this package {ours}")
    most = said.limits.max_message_bytes - _MESSAGE_OVERHEAD
    if most <= 0 or said.recommended_message_bytes == 0:
        raise KvCompressError("the daemon takes no messages")
    return min(most, said.recommended_message_bytes)
