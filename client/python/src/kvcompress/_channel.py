"""gRPC's channels to a daemon: over what, to whom, and with what in every call. Messages are bytes."""

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future

import grpc

from . import _fork, _proof
from ._errors import InvalidArgument, KvCompressError, checked_text
from ._status import from_rpc
from ._target import check_target, is_local
from ._tls import own_fault

_SERVICE = "/kvcompress.v1.KvCompression/"
# Above any message that a daemon sends, and below what would hurt.
_MAX_RECEIVED_MESSAGE = 16 << 20
_OPTIONS = [
    ("grpc.max_receive_message_length", _MAX_RECEIVED_MESSAGE),
    # The daemon stands beside us: a proxy for the web is not asked for it.
    ("grpc.enable_http_proxy", 0),
    # Calls are retried whole by the client; gRPC's own retries would hold on to what was sent.
    ("grpc.enable_retries", 0),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # A daemon that is started again is found again soon.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2000),
    # Connections end with their client, whoever else in this process talks to the same daemon.
    ("grpc.use_local_subchannel_pool", 1),
]


class Answers(Iterator[bytes]):
    """Of one streaming call, as they come. A call whose answers are forgotten is cancelled."""

    def __init__(
        self,
        stream: _fork.Stream,
        call: "grpc._CallIterator[bytes]",
        failure: Callable[[grpc.RpcError], KvCompressError],
    ):
        self._generation = _fork.generation()
        self._stream = stream
        self._call = call
        self._failure = failure

    def __next__(self) -> bytes:
        """KvCompressError where the call has failed."""
        with _fork.gate().receiving(self._stream):
            try:
                return next(self._call)
            except grpc.RpcError as error:
                raise self._failure(error) from None

    def cancel(self) -> None:
        """From any thread."""
        _fork.gate().soon(self._call.cancel)

    def is_active(self) -> bool:
        active: bool = self._call.is_active()
        return active

    def time_remaining(self) -> float | None:
        return self._call.time_remaining()

    def __del__(self) -> None:
        # gRPC's own destructor would cancel in the middle of a fork, too.
        if self._generation == _fork.generation():
            self.cancel()
        else:
            _fork.leave(self._call)


class Channel:
    """A channel to the daemon at `target`, which is made by the first call. InvalidArgument for an address that cannot
    be, for a token that is none, and for one that would leave this machine in plaintext."""

    def __init__(self, target: str, credentials: grpc.ChannelCredentials | None, token: str | None):
        check_target(target)
        if not isinstance(credentials, grpc.ChannelCredentials | None):
            raise InvalidArgument(f"credentials are those of kvcompress.tls, not {type(credentials).__name__}")
        self._target = target
        self._credentials = credentials
        self._metadata = _metadata(token, target, credentials is not None)
        self._made: grpc.Channel | None = None

    def unary(self, method: str, request: bytes, timeout: float | None) -> "Future[bytes | None]":
        """The answer's bytes; None where the daemon has ended the call without one. Cancelling cancels the call. It
        blocks for no longer than `_proof.check`."""
        timeout = _proof.check(timeout)
        with _fork.gate().held():
            begin = self._grpc().unary_unary(_SERVICE + method, _unchanged, _unchanged)
            call = begin.future(request, timeout=timeout, metadata=self._metadata)
            _fork.begun(call)
        answer: Future[bytes | None] = Future()

        def end(_: object) -> None:
            if answer.set_running_or_notify_cancel():
                try:
                    answer.set_result(call.result())
                except grpc.RpcError as error:
                    answer.set_exception(self._failure(error))
                except Exception as error:
                    answer.set_exception(error)

        answer.add_done_callback(lambda done: _fork.gate().soon(call.cancel) if done.cancelled() else None)
        call.add_done_callback(end)
        return answer

    def stream(
        self, method: str, requests: Iterator[bytes], over: Callable[[], None], timeout: float | None = None
    ) -> Answers:
        """Begins a call. gRPC reads `requests` in a thread of its own, and calls `over` at the call's end in any
        thread."""
        timeout = _proof.check(timeout)
        gate, stream = _fork.gate(), _fork.Stream(self._wake)
        held_requests = gate.sending(stream, requests)
        with gate.held():
            begin = self._grpc().stream_stream(_SERVICE + method, _unchanged, _unchanged)
            call: grpc._CallIterator[bytes] = begin(held_requests, timeout=timeout, metadata=self._metadata)
            _fork.begun(call)
        if not call.add_callback(over):
            over()
        return Answers(stream, call, self._failure)

    def close(self) -> None:
        """Cancels calls in flight."""
        if self._made is not None:
            _fork.gate().soon(self._made.close)

    def _wake(self) -> None:
        """Gives gRPC's thread something to do: the end of a call whose time is over."""
        with contextlib.suppress(ValueError):  # of channels that are closed
            begin = self._grpc().unary_unary(_SERVICE + "Capabilities", _unchanged, _unchanged)
            _fork.begun(begin.future(b"", timeout=0))

    def _failure(self, error: grpc.RpcError) -> KvCompressError:
        return from_rpc(error, own_fault(self._credentials))

    def _grpc(self) -> grpc.Channel:
        """Called by one thread at a time."""
        if self._made is None:
            if self._credentials is None:
                self._made = grpc.insecure_channel(self._target, _OPTIONS)
            else:
                self._made = grpc.secure_channel(self._target, self._credentials, _OPTIONS)
            _fork.use_grpc()
        return self._made


def _unchanged(message: bytes) -> bytes:
    """Serializer of messages that are bytes already."""
    return message


def _metadata(token: str | None, target: str, encrypted: bool) -> tuple[tuple[str, str], ...]:
    if token is None:
        return ()
    checked_text("a token", token, is_secret=True)
    if not token or not all("!" <= character <= "~" for character in token):
        raise InvalidArgument("a token is made of printable ASCII characters, without blanks")
    if not encrypted and not is_local(target):
        raise InvalidArgument(
            f"the token would go to {target!r} in plaintext: use credentials, or a daemon of this machine"
        )
    return (("authorization", f"Bearer {token}"),)


def no_sharing(target: str, wanted: bool) -> str:
    """Why memory cannot be shared with the daemon at `target`; "" where it may be possible."""
    if not wanted:
        return "not wanted"
    if not is_local(target):
        return "the daemon is on another machine"
    # The next call may go to another of them.
    return "there is more than one daemon" if "," in target else ""
