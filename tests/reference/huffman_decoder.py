"""A decoder of the byte codec `huffman`, written from docs/format.md alone: it shares nothing with the project's own."""

from data_loss import DataLoss, require
from rans_decoder import Bits

__all__ = ["DataLoss", "decode"]

MAX_BITS = 11
PARTS = 4


def read_lengths(data):
    """The lengths {byte: bits of its code}, and what follows them."""
    bits, lengths, symbol, total = Bits(data), {}, 0, 0
    while total < 2**MAX_BITS:
        require(symbol < 256, "the code is not complete")
        length = bits.take(4)
        require(length <= MAX_BITS, "a code is too long")
        if length == 0:
            symbol += bits.take(8) + 1
        else:
            lengths[symbol] = length
            total += 2 ** (MAX_BITS - length)
            symbol += 1
    require(total == 2**MAX_BITS, "more codes than there is room for")
    require(bits.take(bits.left % 8) == 0, "bits after the lengths")
    return lengths, data[len(data) - bits.left // 8:]


def canonical_codes(lengths):
    """{(bits, number): byte}"""
    codes, number, bits = {}, -1, 0
    for length, symbol in sorted((length, symbol) for symbol, length in lengths.items()):
        number = (number + 1) << (length - bits)
        bits = length
        codes[bits, number] = symbol
    return codes


def decode_part(codes, data, size):
    stream = [byte >> i & 1 for byte in data for i in range(8)]
    out, at = bytearray(), 0
    for _ in range(size):
        bits = number = 0
        while (bits, number) not in codes:
            require(at < len(stream), "a part ends early")
            bits, number, at = bits + 1, 2 * number + stream[at], at + 1
        out.append(codes[bits, number])
    require(len(stream) - at < 8 and not any(stream[at:]), "something follows a part's codes")
    return out


def decode(stream, size):
    """The `size` bytes that the stream stands for."""
    if len(stream) == 1:
        return stream * size
    lengths, rest = read_lengths(stream)
    codes = canonical_codes(lengths)
    require(len(rest) >= 4 * (PARTS - 1), "sizes of the parts")
    sizes = [int.from_bytes(rest[4 * k:4 * k + 4], "little") for k in range(PARTS - 1)]
    rest = rest[4 * (PARTS - 1):]
    require(sum(sizes) <= len(rest), "the parts are larger than their stream")
    sizes.append(len(rest) - sum(sizes))
    out, part = bytearray(), -(-size // PARTS)
    for k, part_bytes in enumerate(sizes):
        out += decode_part(codes, rest[:part_bytes], min(size, (k + 1) * part) - min(size, k * part))
        rest = rest[part_bytes:]
    return bytes(out)
