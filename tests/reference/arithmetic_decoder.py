"""A decoder of the byte codec `arithmetic`, written from docs/format.md alone."""

import bisect

from range_decoder import DataLoss, end, lanes_of

__all__ = ["DataLoss", "decode"]


def decode(stream, size):
    """The `size` bytes that the stream stands for."""
    lanes = lanes_of(stream, size)
    counts, recent = [0] * 256, [0] * 256
    starts = [256 * s for s in range(257)]
    change = 16
    out = bytearray()
    for i in range(size):
        if i == change:
            if sum(counts) > 2**16:
                counts = [count // 2 for count in counts]
            counts = [count + new for count, new in zip(counts, recent)]
            recent = [0] * 256
            total, below = sum(counts), 0
            for s in range(256):
                starts[s] = s + 65280 * below // total
                below += counts[s]
            change = 2 * change if change < 4096 else change + 4096
        symbol = lanes[i % len(lanes)].symbol(starts, lambda at: bisect.bisect_right(starts, at) - 1)
        recent[symbol] += 1
        out.append(symbol)
    end(lanes)
    return bytes(out)
