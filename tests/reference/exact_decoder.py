"""A decoder of the tensor codec `exact`, written from docs/format.md alone: it shares nothing with the project's own."""

import struct

import planes_decoder
import smallest_decoder
from data_loss import require
from frame_reader import read_frame, split_payload


def decode(stream, count, width):
    """The bytes of `count` values of `width` bytes, (split, delta), and for each plane the coder's number or None."""
    require(len(stream) > 0, "an empty stream")
    head, at, distance = stream[0], 1, b"\0\0\0\0"
    split, delta, stored = head % 2, head // 2 % 4, [head >> 3 + plane & 1 for plane in range(5)]
    require(not any(stored[width:]), "more planes than a value has bytes")
    if delta:
        distance, at = stream[at:at + 4], at + 4
    coded = width - sum(stored)
    end = len(stream) - 4 * max(0, coded - 1)
    require(at <= end, "the sizes of the planes")
    sizes = list(struct.unpack_from(f"<{max(0, coded - 1)}I", stream, end))
    if coded:
        sizes.append(end - at - sum(sizes) - count * sum(stored))
    planes, coders = [], []
    for is_stored in stored[:width]:
        size = count if is_stored else sizes.pop(0)
        require(0 <= size and at + size <= end and (is_stored or size < count), "a plane has the wrong size")
        plane, at = stream[at:at + size], at + size
        coders.append(None if is_stored else plane[0] if plane else 0)
        planes.append(plane if is_stored else smallest_decoder.decode(plane, count))
    require(at == end, "bytes are left")
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
