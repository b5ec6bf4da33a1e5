"""Values of a block of the codec `planes`, written from docs/format.md ("planes") alone."""

import struct


def decode(streams, width):
    """The values' bytes. `streams`: the mode and the four planes, as bytes."""
    mode, planes = streams[0], streams[1:]
    split, delta, distance = struct.unpack("<BBI", mode)
    count = len(planes[0])
    assert len(planes) == 4 and [len(plane) for plane in planes] == [count] * width + [0] * (4 - width)
    assert split in (0, 1) and delta in (0, 1, 2)
    assert distance == 0 if delta == 0 else 1 <= distance < count
    bits = 8 * width
    mask = (1 << bits) - 1
    words = [int.from_bytes(row, "big") for row in zip(*planes[:width])]
    for i in range(distance, count if delta else 0):
        before = words[i - distance]
        words[i] = (words[i] + before) & mask if delta == 1 else words[i] ^ before
    if split:
        words = [word >> 1 | (word & 1) << bits - 1 for word in words]
    return b"".join(word.to_bytes(width, "little") for word in words)
