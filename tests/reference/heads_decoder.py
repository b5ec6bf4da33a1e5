"""A decoder of the tensor codec `heads`, written from docs/format.md alone: it shares nothing with the project's own."""

import struct

import numpy as np
from data_loss import require


def decode(stream, count, width, parts):
    """The bytes of `count` values of `width` bytes. `parts` has, for each range of heads, its first head and what decodes
    its chain: a function of a payload and the number of bytes that it stands for."""
    table = 24 + 4 * len(parts)
    require(len(stream) >= table, "the stream ends in its table")
    stride, heads, phase = struct.unpack_from("<3Q", stream)
    require(stride >= 1 and heads >= 1 and stride * heads <= 2**48 and phase < stride * heads, "no tensor has such heads")
    head = (phase + np.arange(count, dtype=np.uint64)) // np.uint64(stride) % np.uint64(heads)
    owner = np.searchsorted(np.array([first for first, _ in parts], np.uint64), head, side="right") - 1
    values, at = np.zeros((count, width), np.uint8), table
    for number, size in enumerate(struct.unpack_from(f"<{len(parts)}I", stream, 24)):
        mine = owner == number
        plain_bytes = int(mine.sum()) * width
        require(size <= min(plain_bytes, len(stream) - at), "a payload has the wrong size")
        payload = stream[at:at + size]
        at += size
        plain = payload if size == plain_bytes else parts[number][1](payload, plain_bytes)
        values[mine] = np.frombuffer(plain, np.uint8).reshape(-1, width)
    require(at == len(stream), "bytes after the last payload")
    return values.tobytes()
