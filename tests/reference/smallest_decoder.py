"""A decoder of the byte codec `smallest`, written from docs/format.md alone: it shares nothing with the project's own."""

import struct

import rans_decoder
from data_loss import DataLoss, require
from rans_decoder import SLOTS, Bits

__all__ = ["DataLoss", "decode"]

OCTAVE = (256, 279, 304, 331, 362, 394, 430, 469)


def take_ones(bits, most):
    """The number of ones before a zero."""
    count = 0
    while bits.take(1) == 1:
        count += 1
        require(count <= most, "too many ones")
    return count


def read_levels(data):
    """The levels {byte: l} above 0, the levels of an octave, and what follows them."""
    bits = Bits(data)
    step_bits, rice, first, last = bits.take(2), bits.take(2), bits.take(8), bits.take(8)
    require(first <= last, "the last value is before the first")
    highest, before, levels, symbol = 23 * 2**step_bits, 0, {}, first
    while symbol <= last:
        code = take_ones(bits, 2 * highest) * 2**rice
        code += bits.take(rice)
        level = before - (code + 1) // 2 if code % 2 else before + code // 2
        require(0 <= level <= highest, "a level is out of range")
        if level > 0:
            levels[symbol] = before = level
            symbol += 1
        else:
            more = take_ones(bits, 7)
            symbol += 2**more + bits.take(more)
            require(symbol <= last, "zeros at the end")
    require(first in levels, "a zero at the beginning")
    require(bits.take(bits.left % 8) == 0, "bits after the levels")
    return levels, step_bits, data[len(data) - bits.left // 8:]


def frequencies_of(levels, step_bits):
    weights = {}
    for symbol, level in levels.items():
        octave, part = divmod(level - 1, 2**step_bits)
        weights[symbol] = OCTAVE[part * 2**(3 - step_bits)] << octave
    total = sum(weights.values())
    excess = {symbol: max(0, SLOTS * weight - total) for symbol, weight in weights.items()}
    frequencies, below, given = {}, 0, 0
    for symbol in sorted(weights):
        below += excess[symbol]
        until = below * (SLOTS - len(weights)) // sum(excess.values())
        frequencies[symbol], given = 1 + until - given, until
    return frequencies


def decode_rans(stream, size):
    require(len(stream) > 0 and stream[0] in (4, 64), "lanes")
    levels, step_bits, rest = read_levels(stream[1:])
    if len(levels) == 1:
        require(not rest, "bytes after the only level")
        return bytes(levels) * size
    return rans_decoder.decode_words(frequencies_of(levels, step_bits), rest, stream[0], size)


def read_parts(stream, size):
    """The nine columns of the matches, and the literals."""
    require(len(stream) >= 45, "the sizes of the parts")
    count, *sizes = struct.unpack_from("<11I", stream, 1)
    require(9 * count <= size, "more matches than a stream has")
    rest, parts = stream[45:], []
    for place, coded_size in enumerate(sizes):
        raw_size = count
        if place == 9:
            raw_size = size - sum(low + 256 * middle + 65536 * high for low, middle, high in zip(*parts[3:6]))
        require(coded_size <= min(raw_size, len(rest)), "a part has the wrong size")
        coded, rest = rest[:coded_size], rest[coded_size:]
        parts.append(coded if coded_size == raw_size else decode_rans(coded, raw_size))
    require(not rest, "bytes are left")
    return parts[:9], parts[9]


def decode(stream, size):
    """The `size` bytes that the stream stands for."""
    if stream[:1] != b"\x01":
        return decode_rans(stream, size)
    columns, literals = read_parts(stream, size)
    out, at, distance = bytearray(), 0, 0
    for numbers in zip(*columns):
        count, length, back = (numbers[k] + 256 * numbers[k + 1] + 65536 * numbers[k + 2] for k in (0, 3, 6))
        require(at + count <= len(literals), "the literals end early")
        out += literals[at:at + count]
        at += count
        distance = back or distance
        require(1 <= distance <= len(out) and len(out) + length <= size, "a match is out of range")
        for _ in range(length):
            out.append(out[-distance])
    out += literals[at:]
    require(len(out) == size, "the parts do not come to the size")
    return bytes(out)
