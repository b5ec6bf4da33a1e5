"""The range coder of docs/format.md, decoding, written from the document alone."""

from data_loss import DataLoss, require

__all__ = ["DataLoss", "Lane", "end", "lanes_of"]

UNITS = 2**16


class Lane:
    def __init__(self, data):
        require(len(data) % 4 == 0, "a lane is not of words")
        self.words = iter([int.from_bytes(data[i:i + 4], "little") for i in range(0, len(data), 4)])
        self.range = 2**64 - 1
        self.value = self.word() * 2**32 + self.word()

    def word(self):
        word = next(self.words, None)
        require(word is not None, "a lane ends early")
        return word

    def narrow(self, start, size):
        self.value -= start
        self.range = size
        if self.range < 2**32:
            self.range *= 2**32
            self.value = self.value * 2**32 + self.word()

    def symbol(self, starts, find):
        """The symbol with starts[s] <= the probability at hand < starts[s + 1]."""
        unit = self.range // UNITS
        require(self.value < unit * UNITS, "no symbol is there")
        symbol = find(self.value // unit)
        self.narrow(starts[symbol] * unit, (starts[symbol + 1] - starts[symbol]) * unit)
        return symbol

    def bit(self, probability):
        ones = probability * (self.range // UNITS)
        bit = self.value < ones
        self.narrow(*((0, ones) if bit else (ones, self.range - ones)))
        return int(bit)


def lanes_of(stream, size):
    count = 1 if size < 4096 else 4
    head = 4 * (count - 1)
    require(len(stream) >= head, "sizes of the lanes")
    sizes = [int.from_bytes(stream[i:i + 4], "little") for i in range(0, head, 4)]
    require(sum(sizes) <= len(stream) - head, "the lanes are larger than their stream")
    sizes.append(len(stream) - head - sum(sizes))
    lanes, at = [], head
    for lane_bytes in sizes:
        lanes.append(Lane(stream[at:at + lane_bytes]))
        at += lane_bytes
    return lanes


def end(lanes):
    for lane in lanes:
        require(lane.value == 0, "a lane does not end at 0")
        require(next(lane.words, None) is None, "words are left")
