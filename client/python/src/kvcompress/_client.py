"""The blocking client."""

import time
from collections.abc import Callable, Iterable
from concurrent import futures
from typing import Any, Concatenate

from ._connection import Connection
from ._core import Arguments, Core, Message, Plan, Step, Streaming, Unary, Wait, Work, carries_item, method_of
from ._errors import KvCompressError, late
from ._frame import Frame
from ._items import FrameSource, OnNonfinite, Result, TensorSource
from ._native_calls import PlainCall, plain_compress, plain_decompress
from ._retry import GRACE
from ._rotary import RotaryEmbedding
from ._stream import Results
from ._tensors import Framework


def _blocking(
    plan: Callable[Concatenate[Core, Arguments], Plan[Result]], plain: PlainCall | None = None
) -> Callable[Concatenate["Client", Arguments], Result]:
    """The method that carries out the plan; but for calls that `plain` makes, once the daemon is known."""

    @method_of(plan)
    def method(client: "Client", /, *args: Arguments.args, **options: Arguments.kwargs) -> Result:
        own, failed = client._own, None
        if plain is not None and own.is_known():
            result: Result | None
            result, failed = own.plainly(plain, args, options)
            if result is not None:
                return result
        return client._run(plan(client._core, *args, **options), failed)

    return method


class Client(Connection):
    """A daemon at `target`: "HOST:PORT", "unix:/PATH", or any other name that gRPC resolves. Threads may share it.

    `timeout` is in seconds, for each whole call with its retries, and each call can have its own; None: no limit.
    `token` goes with every call: a bearer token, for a daemon that wants one. `retry=NO_RETRY` gives every failure at
    once. Where a daemon on this machine offers shared memory, large tensors go there, unless `shared_memory` is False.
    All methods raise children of KvCompressError.
    """

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Cancels calls in flight."""
        self._close()

    compress = _blocking(Core.compress, plain_compress)
    decompress = _blocking(Core.decompress, plain_decompress)
    metrics = _blocking(Core.metrics)
    capabilities = _blocking(Core.capabilities)
    wait_ready = _blocking(Core.wait_ready)

    def compress_many(
        self,
        tensors: Iterable[TensorSource],
        spec: str = "",
        *,
        profile: Any = None,
        on_nonfinite: OnNonfinite = "error",
        rotary: RotaryEmbedding | None = None,
        timeout: float | None = None,
    ) -> Results[Frame]:
        """Frames of (name, tensor), (name, tensor, spec), (name, tensor, spec, rotary) or (name, tensor, spec, rotary,
        fingerprint), in order, on one stream. What an item has is in place of the call's, but for a spec of None.

        The input is read in another thread while frames come out, and only as fast as they are taken: what is in
        flight is bounded by the daemon's windows, not by the input. Nothing is retried. What the input raises is raised
        here, after the frames of what it gave before.
        """
        return self._open(self._run(self._core.compress_many(tensors, spec, profile, on_nonfinite, rotary, timeout)))

    def decompress_many(
        self,
        frames: Iterable[FrameSource],
        *,
        out: Iterable[Any] | None = None,
        as_: Framework | None = None,
        timeout: float | None = None,
    ) -> Results[tuple[str, Any]]:
        """Names and tensors of frames, of (name, frame), of (name, frame, (dtype, shape)), or of (name, frame, (dtype,
        shape), fingerprint), in order, on one stream; like `compress_many`. What is not known is None. DataLoss for a
        frame of another dtype ("F16", "I64", ...) or shape than its Frame or item says, FingerprintMismatch for one
        that has another fingerprint or none, before memory is taken for its values.

        `out` gives of each frame, in order, what its tensor is written into, as `decompress` has it, or None: memory of
        its own, and no other frame's bytes. What it holds is undefined until its tensor comes."""
        return self._open(self._run(self._core.decompress_many(frames, out, as_, timeout)))

    def with_retries(self, work: Callable[[float], Result], *, timeout: float | None = None) -> Result:
        """What `work` returns, which is called again, as the client's retry policy says, when it raises that the daemon
        is busy or gone: for streams, which are not retried by themselves.

        `work` is given the seconds that are left of `timeout` (infinity without a limit), for the timeouts of its own
        calls. Any other error of it, and the last one, is raised as it is.
        """
        result: Result = self._run(self._core.with_retries(work, timeout))
        return result

    def _run(self, plan: Plan[Result], failed: KvCompressError | None = None) -> Result:
        """`failed`: what the first step that would send an item has come to already."""
        try:
            step = next(plan)
            while True:
                try:
                    if failed is not None and carries_item(step):
                        error, failed = failed, None
                        raise error
                    answer = self._do(step)
                except Exception as error:
                    step = plan.throw(error)
                else:
                    step = plan.send(answer)
        except StopIteration as end:
            result: Result = end.value
            return result

    def _do(self, step: Step) -> Any:
        match step:
            case Message():
                return self._answer_of(step)
            case Unary():
                return self._answer(self._channel.unary(step.method, step.request, step.timeout), step.timeout)
            case Streaming():
                return list(self._open(step))
            case Work():
                return step.function(step.seconds)
            case Wait():
                return time.sleep(step.seconds)

    @staticmethod
    def _answer(answer: "futures.Future[bytes | None]", seconds: float | None) -> bytes | None:
        try:
            return answer.result(None if seconds is None else seconds + GRACE)
        except futures.TimeoutError:
            raise late() from None
        finally:
            answer.cancel()
