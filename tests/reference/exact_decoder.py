"""A decoder of the tensor codec `exact`, written from docs/format.md alone: it shares nothing with the project's own."""

import struct

import planes_decoder
import smallest_decoder
from data_loss import require
from frame_reader import read_frame, split_payload


def decode(stream, count, width):
    """The bytes of `count` values of `width` bytes, (split, delta), and for each plane the coder's number or None."""
    require(len(stream) > 0, "an empty stream")
    split, delta, at = stream[0] % 2, stream[0] // 2, 1
    distance = b"\0\0\0\0"
    if delta:
        distance, at = stream[at:at + 4], at + 4
    require(len(stream) >= at + 4 * (width - 1), "the sizes of the planes")
    sizes = struct.unpack_from(f"<{width - 1}I", stream, at)
    at += 4 * (width - 1)
    planes, coders = [], []
    for size in (*sizes, len(stream) - at - sum(sizes)):
        require(0 <= size <= count and at + size <= len(stream), "a plane has the wrong size")
        coded, at = stream[at:at + size], at + size
        coders.append(coded[0] if size < count else None)
        planes.append(coded if size == count else smallest_decoder.decode(coded, count))
    planes += [b""] * (planes_decoder.PLANES - width)
    values, mode = planes_decoder.decode([bytes([split, delta]) + distance, *planes], count, width)
    return values, mode, coders


def decode_frame(frame):
    """The values' bytes, and (mode, coders) of each block."""
    read = read_frame(frame)
    require(read.codec == "exact", "not a frame of exact alone")
    values, told = [], []
    for payload, count in read.blocks:
        (_, stream), = split_payload(payload, 1)
        block, *how = decode(stream, *planes_decoder.words_of(read.dtype, count))
        values.append(block)
        told.append(how)
    return b"".join(values), told
