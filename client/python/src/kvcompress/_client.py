"""The blocking client."""

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import grpc

from . import _channel
from ._errors import KvCompressError, Unavailable, closed, from_rpc, unanswered
from ._exchange import CompressExchange, DecompressExchange, Exchange
from ._frame import Frame
from ._items import CompressItem, DecompressItem, FrameSource, TensorSource, profile_json
from ._retry import DEFAULT_RETRY, Attempts, Left, RetryPolicy
from ._shared_exchange import shared
from ._shared_memory import Pool
from ._stream import Stream
from ._tensors import Framework
from .v1 import kvcompress_pb2 as pb

Result = TypeVar("Result")
WAIT_READY = RetryPolicy(max_attempts=1 << 30, max_backoff=0.5)


class Client:
    """A daemon at `target`: "HOST:PORT", "unix:/PATH", or any other name that gRPC resolves. Threads may share it.

    `timeout` is in seconds, for each whole call with its retries, and each call can have its own; None: no limit.
    `token` goes with every call: a bearer token, for a daemon that wants one. `retry=NO_RETRY` gives every failure at
    once. Where a daemon on this machine offers shared memory, large tensors go there, unless `shared_memory` is False.
    All methods raise children of KvCompressError.
    """

    def __init__(
        self,
        target: str,
        *,
        timeout: float | None = None,
        credentials: grpc.ChannelCredentials | None = None,
        token: str | None = None,
        retry: RetryPolicy = DEFAULT_RETRY,
        shared_memory: bool = True,
    ):
        self._metadata = _channel.metadata(token, target, credentials is not None)
        options = _channel.channel_options()
        if credentials is None:
            self._channel = grpc.insecure_channel(target, options)
        else:
            self._channel = grpc.secure_channel(target, credentials, options)
        self._timeout = timeout
        self._retry = retry
        self._message_bytes: int | None = None
        self._closed = False
        self._pool = Pool(self._channel, self._metadata, _channel.no_sharing(target, shared_memory))

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Cancels calls in flight."""
        self._closed = True
        self._pool.close()
        self._channel.close()

    @property
    def transport(self) -> str:
        """How the last large tensor went: "shared memory", or "connection" and why."""
        return self._pool.transport

    def compress(
        self,
        tensor: Any,
        spec: str = "",
        *,
        name: str = "tensor",
        axes: Sequence[str] | None = None,
        profile: Any = None,
        timeout: float | None = None,
    ) -> Frame:
        """Compresses a NumPy array or PyTorch tensor of the CPU: float16, bfloat16 or float32, of up to 8 axes.

        `spec` is a codec chain or its name ("": the daemon's default); or `profile` chooses one by `name`: a mapping,
        JSON text or the path of a file. `axes` gives each axis its role: batch, layer, heads, seq, head_dim, other.
        """
        item = CompressItem.of(name, tensor, spec, axes, profile_json(profile, spec))

        def attempt(left: Left) -> Frame:
            most = self._ready(left)
            if item.size() <= most:
                return item.answer(self._unary("CompressTensor", item.request(), left))
            (frame,) = self._stream(CompressExchange(most), [item], left)
            return frame

        return self._retried(attempt, timeout)

    def decompress(
        self,
        frame: Frame | bytes | bytearray | memoryview,
        *,
        out: Any = None,
        as_: Framework | None = None,
        timeout: float | None = None,
    ) -> Any:
        """The tensor of a frame: in `out`, where that is given; else a new one, of the kind that the Frame was made
        from, or of the kind `as_`; of bytes alone, a NumPy array."""
        item = DecompressItem.of(frame, out, as_)

        def attempt(left: Left) -> Any:
            most, size = self._ready(left), item.size()
            if size is not None and size <= most:
                return item.answer(self._unary("DecompressTensor", item.request(), left))[1]
            ((_, tensor),) = self._stream(DecompressExchange(most), [item], left)
            return tensor

        return self._retried(attempt, timeout)

    def compress_many(
        self,
        tensors: Iterable[TensorSource],
        spec: str = "",
        *,
        profile: Any = None,
        timeout: float | None = None,
    ) -> Stream[Frame]:
        """Frames of (name, tensor) or (name, tensor, spec), in order, on one stream.

        The input is read in another thread while frames come out, and only as fast as they are taken: what is in
        flight is bounded by the daemon's windows, not by the input. Nothing is retried. What the input raises is raised
        here, after the frames of what it gave before.
        """
        left = Attempts(self._retry, self._limit(timeout)).left
        text = profile_json(profile, spec)
        most = self._ready(left)
        return self._stream(CompressExchange(most, spec, text), tensors, left)

    def decompress_many(
        self,
        frames: Iterable[FrameSource],
        *,
        as_: Framework | None = None,
        timeout: float | None = None,
    ) -> Stream[tuple[str, Any]]:
        """Names and tensors of frames, of (name, frame), or of (name, frame's bytes, (dtype, shape)), in order, on one
        stream; like `compress_many`. DataLoss for a frame of another dtype ("F16", "BF16", "F32") or shape than its
        Frame or triple says, before memory is taken for its values."""
        left = Attempts(self._retry, self._limit(timeout)).left
        most = self._ready(left)
        return self._stream(DecompressExchange(most, as_), frames, left)

    def metrics(self, *, timeout: float | None = None) -> pb.MetricsResponse:
        """Totals since the daemon's start, live gauges, and its build."""
        return self._retried(self._metrics, timeout)

    def capabilities(
        self, headers: Iterable[pb.CompressHeader] = (), *, timeout: float | None = None
    ) -> pb.CapabilitiesResponse:
        """Codecs, names of codec chains, limits, transports; and of each tensor that is described the most bytes that
        its frame can have."""
        request = pb.CapabilitiesRequest(headers=headers)
        return self._retried(lambda left: self._capabilities(request, left), timeout)

    def wait_ready(self, timeout: float | None = None) -> None:
        """Returns once the daemon answers, does not drain, and is of a version that this package knows."""

        def attempt(left: Left) -> None:
            if self._metrics(left).draining:
                raise Unavailable("the daemon drains")
            self._ready(left)

        self._retried(attempt, timeout, WAIT_READY)

    def _limit(self, timeout: float | None) -> float | None:
        return self._timeout if timeout is None else timeout

    def _retried(
        self,
        attempt: Callable[[Left], Result],
        timeout: float | None,
        policy: RetryPolicy | None = None,
    ) -> Result:
        attempts = Attempts(policy or self._retry, self._limit(timeout))
        while True:
            try:
                return attempt(attempts.left)
            except KvCompressError as error:
                delay = attempts.delay_after(error)
            time.sleep(delay)

    def _ready(self, left: Left) -> int:
        """The most of a payload in one message, from a daemon that was found to be of our version."""
        if self._message_bytes is None:
            said = self._capabilities(pb.CapabilitiesRequest(), left)
            self._pool.learn(said)
            self._message_bytes = _channel.message_bytes(said)
        return self._message_bytes

    def _metrics(self, left: Left) -> pb.MetricsResponse:
        return pb.MetricsResponse.FromString(self._unary("Metrics", b"", left))

    def _capabilities(self, request: pb.CapabilitiesRequest, left: Left) -> pb.CapabilitiesResponse:
        reply = self._unary("Capabilities", request.SerializeToString(), left)
        return pb.CapabilitiesResponse.FromString(reply)

    def _unary(self, method: str, request: bytes, left: Left) -> bytes:
        call = self._channel.unary_unary(_channel.SERVICE + method, _channel.unchanged, _channel.unchanged)
        try:
            reply: bytes | None = call(request, timeout=left(), metadata=self._metadata)
        except grpc.RpcError as error:
            raise from_rpc(error) from None
        except ValueError:
            if self._closed:
                raise closed() from None
            raise
        if reply is None:
            raise unanswered(left())
        return reply

    def _stream(self, exchange: Exchange[Any, Result], items: Iterable[Any], left: Left) -> Stream[Result]:
        if self._closed:
            raise closed()
        call = shared(exchange, items, self._pool, left)
        return Stream(self._channel, call, items, left(), self._metadata)
