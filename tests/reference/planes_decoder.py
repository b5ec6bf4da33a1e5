"""A decoder of the tensor codec `planes`, written from docs/format.md alone: it shares nothing with the project's own."""

import struct

import numpy as np
from data_loss import require
from frame_reader import BITS, read_frame, split_payload

PLANES = 4


def words_of(dtype, count):
    """How many words a block of `count` elements has, and the bytes of one: those of 8 bytes are two."""
    size = -(-BITS[dtype] // 8)
    width = min(size, 4)
    return count * size // width, width


def decode(streams, count, width):
    """The bytes of `count` values of `width` bytes, and the numbers of split and delta."""
    sizes = tuple(len(stream) for stream in streams)
    require(sizes == (6, *(count if p < width else 0 for p in range(PLANES))), "a stream has the wrong size")
    split, delta, distance = struct.unpack("<BBI", streams[0])
    require(split <= 1 and delta <= 2, "an unknown mode")
    bits = 8 * width
    words = sum(np.frombuffer(streams[1 + p], np.uint8).astype(np.uint64) << np.uint64(bits - 8 - 8 * p) for p in range(width))
    if delta:
        require(1 <= distance < count, "the distance is not in the block")
        for begin in range(distance, count, distance):
            here = words[begin:begin + distance]
            before = words[begin - distance:begin][:len(here)]
            words[begin:begin + distance] = here + before if delta == 1 else here ^ before
            words[begin:begin + distance] &= np.uint64((1 << bits) - 1)
    else:
        require(distance == 0, "a distance without a delta")
    if split:
        words = words >> np.uint64(1) | (words & np.uint64(1)) << np.uint64(bits - 1)
    return words.astype(f"<u{width}").tobytes(), (split, delta)


def decode_frame(frame):
    """The values' bytes, and the (split, delta) of each block."""
    read = read_frame(frame)
    require(read.codec.startswith("planes(split=") and "|" not in read.codec, "not a frame of planes alone")
    blocks = [decode([stream for _, stream in split_payload(payload, 1 + PLANES)], *words_of(read.dtype, count))
              for payload, count in read.blocks]
    return b"".join(values for values, _ in blocks), [mode for _, mode in blocks]
