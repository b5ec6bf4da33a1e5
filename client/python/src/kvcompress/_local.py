"""The codec in this process, without a daemon: the C++ library as a module of Python, which works without the GIL."""

import functools
import inspect
import itertools
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Concatenate, ParamSpec

from ._core import version
from ._errors import (
    Cancelled,
    FailedPrecondition,
    InvalidArgument,
    KvCompressError,
    from_status,
    late,
    refusing,
)
from ._exchange import compress_exchanges, decompress_exchanges
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
from ._retry import NO_RETRY, Attempts, Left, checked_seconds
from ._rotary import RotaryEmbedding
from ._tensors import Framework
from .v1 import kvcompress_pb2 as pb

try:
    from . import _native
except ImportError as error:
    _native = None  # type: ignore[assignment]
    # Of a module that is not there Python says that an import is circular.
    _why_not = "it was built without" if error.name == __package__ else str(error)

DEFAULT_CODEC = "int4(group=64)"
# Items of a stream that are worked at together: few enough that results come soon, and do not fill the memory.
_MOST_ITEMS, _MOST_BYTES = 256, 64 << 20

Arguments = ParamSpec("Arguments")


class LocalClient:
    """The calls of `Client`, by the codec in this process: the same frames, to the byte, and the same errors. Threads
    may share it, and a process that was forked goes on with it.

    `threads` work at the tensors of `compress_many` and `decompress_many`, 0: one for each CPU; one tensor is worked at
    by the thread that calls. `artifacts` is the directory of artifacts that specs name, `default_codec` what the spec
    "" stands for. `timeout` is in seconds, for each whole call; a tensor that was begun is finished. FailedPrecondition
    where the package was built without the codec."""

    def __init__(
        self,
        *,
        threads: int = 0,
        artifacts: str | os.PathLike[str] | None = None,
        default_codec: str = DEFAULT_CODEC,
        timeout: float | None = None,
    ):
        if _native is None:
            raise FailedPrecondition(
                f"this installation of kvcompress has no codec of its own ({_why_not}): its README says how it is "
                "built, or use a daemon's Client"
            )
        if type(threads) is not int or not 0 <= threads <= 1024:
            raise InvalidArgument(f"threads is {threads!r}, and not a whole number up to 1024")
        with refusing("artifacts is no directory"):
            folder = "" if artifacts is None else os.fspath(artifacts)
        self._settings = (threads, default_codec, folder)
        self._timeout = checked_seconds(timeout)
        self._codec: Any = None
        self._process = 0
        self._is_closed = False
        self._own()

    def __enter__(self) -> "LocalClient":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Calls in flight are finished; others are Cancelled from now on."""
        self._is_closed = True

    @property
    def transport(self) -> str:
        return "in this process"

    def wait_ready(self, timeout: float | None = None) -> None:
        """For what is written for a daemon: the codec is ready."""
        self._left(timeout)
        self._own()

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
    ) -> Frame:
        """As Client.compress."""
        text = profile_json(profile, spec)
        item = CompressItem.of(name, tensor, spec, axes, text, on_nonfinite, rotary, fingerprint)
        made, error = self._own().compress(((item.header, item.elements),), _seconds(self._left(timeout)))
        _check(error)
        ((frame, report),) = made
        return item.frame(frame, report, is_right=True)

    def decompress(
        self,
        frame: Frame | FrameBytes,
        *,
        out: Any = None,
        as_: Framework | None = None,
        fingerprint: bytes | None = None,
        timeout: float | None = None,
    ) -> Any:
        """As Client.decompress."""
        item = DecompressItem.of(frame, out, as_, fingerprint)
        ((_, tensor),) = self._decompressed([item], self._left(timeout))
        return tensor

    def compress_many(
        self,
        tensors: Iterable[TensorSource],
        spec: str = "",
        *,
        profile: Any = None,
        on_nonfinite: OnNonfinite = "error",
        rotary: RotaryEmbedding | None = None,
        timeout: float | None = None,
    ) -> Iterator[Frame]:
        """As Client.compress_many, but the input is read by the thread that takes the frames."""
        prepare = compress_exchanges(spec, profile, on_nonfinite, rotary)(0).prepare
        return self._many(tensors, prepare, self._compressed, self._left(timeout))

    def decompress_many(
        self,
        frames: Iterable[FrameSource],
        *,
        out: Iterable[Any] | None = None,
        as_: Framework | None = None,
        timeout: float | None = None,
    ) -> Iterator[tuple[str, Any]]:
        """As Client.decompress_many, but the input is read by the thread that takes the tensors."""
        prepare = decompress_exchanges(frames, out, as_)(0).prepare
        return self._many(frames, prepare, self._decompressed, self._left(timeout))

    def with_retries(self, work: Callable[[float], Result], *, timeout: float | None = None) -> Result:
        """What `work` returns: here nothing is busy or gone."""
        if not callable(work):
            raise InvalidArgument(f"work is a function, not {type(work).__name__}")
        seconds = self._left(timeout)()
        return work(math.inf if seconds is None else seconds)

    def capabilities(
        self, headers: Iterable[pb.CompressHeader] = (), *, timeout: float | None = None
    ) -> pb.CapabilitiesResponse:
        """Of what a daemon says the version, the default codec, and `max_frame_bytes` of the headers."""
        with refusing("headers are messages of CompressHeader"):
            texts = [header.SerializeToString() for header in headers]
        self._left(timeout)
        sizes, error = self._own().max_frame_bytes(texts)
        _check(error)
        build = pb.BuildInfo(version=version())
        return pb.CapabilitiesResponse(build=build, default_codec=self._settings[1], max_frame_bytes=sizes)

    def _own(self) -> Any:
        """The codec of this process. That of a parent has threads that are not here, and is never destroyed."""
        if self._is_closed:
            raise Cancelled("the client is closed")
        if self._process != os.getpid():
            self._codec, self._process = _native.Codec(*self._settings), os.getpid()
        return self._codec

    def _left(self, timeout: float | None) -> Left:
        return Attempts(NO_RETRY, self._timeout if timeout is None else checked_seconds(timeout)).left

    def _many(
        self,
        sources: Iterable[Any],
        prepare: Callable[[Any], Any],
        work: Callable[[list[Any], Left], Iterator[Result]],
        left: Left,
    ) -> Iterator[Result]:
        if not isinstance(sources, Iterable):
            raise InvalidArgument(f"expected an iterable, not {type(sources).__name__}")
        self._own()
        return itertools.chain.from_iterable(work(items, left) for items in _batches(sources, prepare))

    def _compressed(self, items: list[CompressItem], left: Left) -> Iterator[Frame]:
        made, error = self._own().compress([(item.header, item.elements) for item in items], _seconds(left))
        for item, (frame, report) in zip(items, made, strict=False):
            yield item.frame(frame, report, is_right=True)
        _check(error)

    def _decompressed(self, items: list[DecompressItem], left: Left) -> Iterator[tuple[str, Any]]:
        codec, targets, fault = self._own(), [], None
        described, error = codec.describe([(item.header, item.data) for item in items])
        try:
            for item, tensor in zip(items, described, strict=False):
                targets.append(item.target(tensor))
        except KvCompressError as raised:  # after the items before it
            fault = raised
        ready = [(item.header, item.data, memory) for item, (memory, _) in zip(items, targets, strict=False)]
        done, failure = codec.decompress(ready, _seconds(left))
        for _, result in targets[:done]:
            yield result
        _check(failure)
        if fault is not None:
            raise fault
        _check(error)


@functools.cache
def _shared() -> LocalClient:
    return LocalClient()


def _of_the_process(
    method: Callable[Concatenate[LocalClient, Arguments], Result], says: str
) -> Callable[Arguments, Result]:
    """`method` of the one LocalClient that a process shares, which the first call makes."""

    @functools.wraps(method)
    def call(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        return method(_shared(), *args, **kwargs)

    signature = inspect.signature(method)
    vars(call)["__signature__"] = signature.replace(parameters=list(signature.parameters.values())[1:])
    call.__qualname__, call.__doc__ = method.__name__, says  # the former for pickle
    return call


compress = _of_the_process(
    LocalClient.compress,
    """A Frame of `tensor`, made in this process by the chain `spec`, int4 unless it says otherwise: as
    LocalClient.compress, of a client that the process shares. FailedPrecondition where the package was built without
    the codec.""",
)
decompress = _of_the_process(
    LocalClient.decompress,
    """The tensor of `frame`, an array or a tensor as the frame was made from, in this process: as
    LocalClient.decompress, of a client that the process shares. FailedPrecondition where the package was built without
    the codec.""",
)


def _batches(sources: Iterable[Any], prepare: Callable[[Any], Item[Any]]) -> Iterator[list[Any]]:
    """Items that are worked at together. What a source is wrong about is raised after the items before it."""
    rest = iter(sources)
    while True:
        batch: list[Any] = []
        size = 0
        fault: Exception | None = None
        while len(batch) < _MOST_ITEMS and size < _MOST_BYTES:
            try:
                item = prepare(next(rest))
            except StopIteration:
                break
            except Exception as error:
                fault = error
                break
            batch.append(item)
            size += item.size() or len(item.data)
        if batch:
            yield batch
        if fault is not None:
            raise fault
        if not batch:
            return


def _seconds(left: Left) -> float | None:
    seconds = left()
    if seconds == 0:
        raise late()
    return seconds


def _check(error: tuple[int, str] | None) -> None:
    if error is not None:
        raise from_status(*error)
