"""A decoder of the byte codec `rans`, written from docs/format.md alone: it shares nothing with the project's own."""

from data_loss import DataLoss, require

__all__ = ["DataLoss", "decode"]

SLOTS = 4096
LOWEST_STATE = 2**15


class Bits:
    """Bits of a byte string, from the low end of each byte up."""

    def __init__(self, data):
        self.number = int.from_bytes(data, "little")
        self.left = 8 * len(data)

    def take(self, count):
        require(count <= self.left, "the frequencies end early")
        value = self.number & ((1 << count) - 1)
        self.number >>= count
        self.left -= count
        return value


def read_frequencies(data):
    """The frequencies {byte: f}, and what follows them."""
    bits, frequencies, symbol = Bits(data), {}, 0
    while sum(frequencies.values()) < SLOTS:
        require(symbol < 256, "the frequencies sum to less than 4096")
        length = bits.take(4)
        require(length <= 13, "a frequency is too long")
        if length == 0:
            symbol += bits.take(8) + 1
        else:
            frequencies[symbol] = 2 ** (length - 1) + bits.take(length - 1)
            symbol += 1
    require(sum(frequencies.values()) == SLOTS, "the frequencies sum to more than 4096")
    require(bits.take(bits.left % 8) == 0, "bits after the frequencies")
    return frequencies, data[len(data) - bits.left // 8:]


def decode(stream, size):
    """The `size` bytes that the stream stands for."""
    require(len(stream) > 0 and stream[0] in (4, 64), "lanes")
    return decode_words(*read_frequencies(stream[1:]), stream[0], size)


def decode_words(frequencies, rest, lanes, size):
    """The `size` bytes of words and states of so many lanes, with frequencies {byte: f}."""
    slot_to_symbol, starts = [], {}
    for symbol, frequency in sorted(frequencies.items()):
        starts[symbol] = len(slot_to_symbol)
        slot_to_symbol += [symbol] * frequency

    require(len(rest) >= 4 * lanes and len(rest) % 2 == 0, "words and states")
    word_bytes, state_bytes = rest[:len(rest) - 4 * lanes], rest[len(rest) - 4 * lanes:]
    words = [int.from_bytes(word_bytes[i:i + 2], "little") for i in range(0, len(word_bytes), 2)]
    states = [int.from_bytes(state_bytes[i:i + 4], "little") for i in range(0, len(state_bytes), 4)]
    require(all(2**15 <= x < 2**31 for x in states), "a state is out of range")

    out = bytearray(size)
    for group in range(0, size, lanes):
        for lane in reversed(range(min(lanes, size - group))):
            x = states[lane]
            symbol = slot_to_symbol[x % SLOTS]
            out[group + lane] = symbol
            x = frequencies[symbol] * (x // SLOTS) + x % SLOTS - starts[symbol]
            if x < LOWEST_STATE:
                require(words, "the words end early")
                x = 2**16 * x + words.pop()
            states[lane] = x
    require(not words, "words are left")
    require(all(x == LOWEST_STATE for x in states), "a state is not the first")
    return bytes(out)
