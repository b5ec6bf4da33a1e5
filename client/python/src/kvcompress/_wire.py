"""Messages of protobuf, and the few parts of its encoding that let payloads pass by message objects."""

import functools
from collections.abc import Iterator
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from ._errors import KvCompressError

Parsed = TypeVar("Parsed", bound=Message)
_LENGTH_DELIMITED = 2
_FIXED_SIZES = {1: 8, 5: 4}


@functools.lru_cache(maxsize=256)
def varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def bytes_field(number: int, *parts: bytes | memoryview) -> bytes:
    """One length-delimited field that holds the parts, joined in one copy."""
    size = sum(len(part) for part in parts)
    return b"".join((varint(number << 3 | _LENGTH_DELIMITED), varint(size), *parts))


def _read_varint(message: bytes, at: int) -> tuple[int, int]:
    value = 0
    for index in range(10):
        if at + index >= len(message):
            break
        byte = message[at + index]
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return value & (1 << 64) - 1, at + index + 1
    raise malformed()


def malformed() -> KvCompressError:
    return KvCompressError("the daemon's answer cannot be parsed")


def parsed(kind: type[Parsed], data: bytes | memoryview) -> Parsed:
    try:
        return kind.FromString(bytes(data))
    except DecodeError:
        raise malformed() from None


def fields(message: bytes) -> Iterator[tuple[int, memoryview]]:
    """The length-delimited fields of a message, in order; others are unknown to us and are skipped."""
    view, at = memoryview(message), 0
    while at < len(message):
        tag, at = _read_varint(message, at)
        kind, size = tag & 7, 0
        if kind == _LENGTH_DELIMITED:
            size, at = _read_varint(message, at)
        elif kind == 0:
            _, at = _read_varint(message, at)
        elif kind in _FIXED_SIZES:
            size = _FIXED_SIZES[kind]
        else:  # groups, which proto3 does not have
            raise malformed()
        if tag >> 3 == 0 or size > len(message) - at:
            raise malformed()
        if kind == _LENGTH_DELIMITED:
            yield tag >> 3, view[at : at + size]
        at += size
