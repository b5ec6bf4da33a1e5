from collections.abc import Sequence

from typing_extensions import Buffer

_Error = tuple[int, str] | None

class Codec:
    """MessageCodec of client/python/native. Errors are a number of gRPC's and a text."""

    def __init__(self, threads: int, default_codec: str, artifacts: str) -> None: ...
    @property
    def threads(self) -> int: ...
    def compress(
        self, items: Sequence[tuple[bytes, Buffer]], seconds: float | None
    ) -> tuple[list[tuple[bytes, bytes]], _Error]: ...
    def describe(self, name: str, frame: Buffer) -> tuple[bytes | None, _Error]: ...
    def decompress(
        self, items: Sequence[tuple[bytes, Buffer, Buffer]], seconds: float | None
    ) -> tuple[int, _Error]: ...
    def max_frame_bytes(self, headers: Sequence[bytes]) -> tuple[list[int] | None, _Error]: ...
