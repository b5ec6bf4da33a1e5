from collections.abc import Callable, Sequence
from typing import Any

from typing_extensions import Buffer

_Error = tuple[int, str] | None
# A code of gRPC's, a text, after how many seconds the daemon wants to be asked again, and its ErrorReason.
_End = tuple[int, str, float | None, int]

class Codec:
    """MessageCodec of client/python/native. Errors are a number of gRPC's and a text."""

    def __init__(self, threads: int, default_codec: str, artifacts: str) -> None: ...
    @property
    def threads(self) -> int: ...
    def compress(
        self, items: Sequence[tuple[bytes, Buffer]], seconds: float | None
    ) -> tuple[list[tuple[bytes, bytes]], _Error]: ...
    def describe(self, items: Sequence[tuple[bytes, Buffer]]) -> tuple[list[bytes], _Error]: ...
    def decompress(
        self, items: Sequence[tuple[bytes, Buffer, Buffer]], seconds: float | None
    ) -> tuple[int, _Error]: ...
    def max_frame_bytes(self, headers: Sequence[bytes]) -> tuple[list[int] | None, _Error]: ...

class Channel:
    """To a daemon. `tls`: who vouches for it, and this side's certificate and key, in PEM."""

    def __init__(self, target: str, tls: tuple[str, str, str] | None, token: str) -> None: ...
    def close(self) -> None:
        """Cancels its calls."""

class Cancellation:
    """Of a call, by any thread, and before it has begun, too."""

    def __init__(self) -> None: ...
    def cancel(self) -> None: ...

# Of a tensor: header, values, their bytes, most output bytes, place. Of a frame: header, bytes, and what is called with
# its v1::Tensor for the memory that the values go to, and the result.
_Item = tuple[bytes, Buffer, int, int, bytes] | tuple[bytes, Buffer, Callable[[bytes], tuple[Buffer, tuple[str, Any]]]]
_Result = tuple[bytes, bytes] | tuple[str, Any]

class Call:
    """MessageCall of client/python/native."""

    def __init__(
        self,
        channel: Channel,
        items: Sequence[_Item],
        seconds: float | None,
        region: Buffer | None,
        region_number: int,
        output_is_larger: bool,
        batches: bool,
    ) -> None: ...
    def next(self) -> _Result | None: ...
    def end(self) -> _End: ...
    def cancel(self) -> None: ...

def call_with_message(
    channel: Channel,
    item: _Item,
    seconds: float | None,
    cancellation: Cancellation | None,
) -> tuple[_Result | None, _End | None]:
    """Of one item in a message: what Call.next gives, or, where that is None, Call.end."""

# Of a client's channel, its pool and its limits: a method's arguments and options. As PlainCall of _native_calls.py.
_Plain = Callable[
    [Channel, Any, tuple[int, int, float | None], tuple[Any, ...], dict[str, Any], Cancellation | None], tuple[Any, Any]
]
compress: _Plain  # Client.compress
decompress: _Plain

def end(seconds: float) -> None:
    """Of all calls, which are cancelled."""
