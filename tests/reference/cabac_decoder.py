"""A decoder of the byte codec `cabac`, written from docs/format.md alone."""

from range_decoder import DataLoss, end, lanes_of

__all__ = ["DataLoss", "decode"]


def decode(stream, size):
    """The `size` bytes that the stream stands for."""
    lanes = lanes_of(stream, size)
    contexts = [[(2**21, 0)] * 256 for _ in lanes]
    out = bytearray()
    for i in range(size):
        lane, own, node = lanes[i % len(lanes)], contexts[i % len(lanes)], 1
        while node < 256:
            q, n = own[node]
            bit = lane.bit(2 * (q // 128) + 1)
            step = 2**17 // (2 * n + 3)
            q += step * (2**22 - 1 - q) // 2**16 if bit else -step * q // 2**16
            own[node] = q, min(n + 1, 255)
            node = 2 * node + bit
        out.append(node - 256)
    end(lanes)
    return bytes(out)
