"""A decoder of the tensor codec `transform`, written from docs/format.md alone: it shares nothing with the project's own."""

import dataclasses
import functools
import math
from collections import defaultdict

import numpy as np
import rotary
from data_loss import require
from elementary import exp2, half_normal
from frame_reader import take_leb128
from range_decoder import Lane
from uniform_decoder import DTYPES

F32 = np.float32
STRIP = 32
# By their ids, as artifact_reader reads them: frames have the id alone.
ARTIFACTS = {}
NEXT = [(0, 2), (2, 0), (1, 3), (3, 1)]
ESCAPE = None


@dataclasses.dataclass
class Segment:
    tokens: int
    channels: int
    position: int
    whole: bool
    turned: bool = False
    special: dict = dataclasses.field(default_factory=dict)  # token: (e, g)
    classes: list = dataclasses.field(default_factory=list)
    means: list = dataclasses.field(default_factory=list)
    group: int | None = None  # the first of those whose basis it has


class ShortLane(Lane):
    """A lane whose words have their highest byte first, without the zeros at the end."""

    def __init__(self, text):
        require(not text or text[-1], "zeros at the end of the side information")
        text += bytes(-len(text) % 4)
        super().__init__(b"".join(text[i:i + 4][::-1] for i in range(0, len(text), 4)))

    def word(self):
        return next(self.words, 0)


class Side:
    """The side information's coder, with the contexts by name."""

    def __init__(self, text):
        self.lane = ShortLane(text)
        self.contexts = defaultdict(lambda: (2**21, 0))

    def bit(self, name):
        q, n = self.contexts[name]
        bit = self.lane.bit(2 * (q // 128) + 1)
        step = 2**17 // (2 * n + 3)
        q += step * (2**22 - 1 - q) // 2**16 if bit else -step * q // 2**16
        self.contexts[name] = q, min(n + 1, 255)
        return bit

    def even_bits(self, count):
        value = 0
        for _ in range(count):
            value = 2 * value + self.lane.bit(2**15)
        return value

    def number(self, model):
        length = 0
        while length < 28 and self.bit((model, "L", length)):
            length += 1
        value = 1
        for _ in range(length):
            value = 2 * value + (self.bit((model, "S", 2**length + value)) if length <= 3 else self.even_bits(1))
        return value - 1

    def signed(self, model):
        v = self.number(model)
        return (v + 1) // 2 if v % 2 else -v // 2

    def end(self):
        require(next(self.lane.words, None) is None, "the side information does not end")


def cut(count, tokens, channels, first):
    segments, place, left = [], first, count
    while left:
        position, within = divmod(place, channels)
        if within or left < channels:
            segment = Segment(1, min(left, channels - within), position, False)
        else:
            segment = Segment(min(tokens - position, left // channels), channels, position, True)
        segments.append(segment)
        left -= segment.tokens * segment.channels
        place = (place + segment.tokens * segment.channels) % (tokens * channels)
    return segments


def read_segment(side, segment, before):
    segment.turned = side.bit("turned")
    has_means = side.bit("has_means")
    token = -1
    for _ in range(side.number("special_count")):
        token += 1 + side.number("special_gap")
        e, g = side.number("step_shift"), side.signed("class_shift")
        require(token < segment.tokens and e <= 3 and -100 <= g <= 100, "a special token")
        segment.special[token] = e, g
    repeats = int(before is not None and before.channels == segment.channels and side.bit("repeats"))
    for c in range(segment.channels):
        expected = before.classes[c] if repeats else segment.classes[-1] if c else 0
        segment.classes.append(expected + side.signed(("class", repeats)))
        require(-12 <= segment.classes[-1] <= 88, "a class")
        mean = 0
        if has_means:
            shift = min(max((segment.classes[-1] + 13 - 2 * (segment.tokens.bit_length() - 1)) // 4, 0), 20)
            mean = (before.means[c] if repeats else 0) + side.signed(("mean", repeats)) * 2**shift
            require(abs(mean) <= 2**24, "a mean")
        segment.means.append(mean)


@functools.cache
def table(j, quantizer):
    """Of each slot the symbol and its first slot, and of each symbol the frequency; the reach."""
    s = exp2(j * 0.25)
    end = (lambda k: 2 * k + 1) if quantizer == 0 else (lambda k: 2 * k if k else 0.45)
    frequencies = {}
    for k in range(1, 64):
        f = math.floor(4096 * (half_normal(end(k) / s) - half_normal(end(k - 1) / s)) + 0.5)
        if f == 0:
            break
        frequencies[k] = frequencies[-k] = f
    reach = len(frequencies) // 2
    frequencies = {0: 4095 - sum(frequencies.values()), **frequencies, ESCAPE: 1}
    slots = []
    for symbol, f in frequencies.items():
        slots += [(symbol, len(slots))] * f
    return slots, frequencies, reach


class Words:
    def __init__(self, data, lanes):
        require(len(data) >= 4 * lanes and len(data) % 2 == 0, "words and states")
        cut_at = len(data) - 4 * lanes
        self.words = np.frombuffer(data[:cut_at], "<u2").tolist()
        self.states = np.frombuffer(data[cut_at:], "<u4").tolist()
        require(all(2**15 <= x < 2**31 for x in self.states), "a state is out of range")

    def symbol(self, lane, slots, frequencies):
        x = self.states[lane]
        symbol, start = slots[x % 4096]
        x = frequencies[symbol] * (x // 4096) + x % 4096 - start
        if x < 2**15:
            require(self.words, "the words end early")
            x = 2**16 * x + self.words.pop()
        self.states[lane] = x
        return symbol

    def low_bits(self, lane, count):
        x = self.states[lane]
        value, x = x % 2**count, x // 2**count
        if x < 2**15:
            require(self.words, "the words end early")
            x = 2**16 * x + self.words.pop()
        self.states[lane] = x
        return value

    def pass_turn(self):
        """After a token: with more lanes than a strip has channels, the next one has the others."""
        if len(self.states) > STRIP:
            self.states = self.states[STRIP:] + self.states[:STRIP]

    def end(self):
        require(not self.words and all(x == 2**15 for x in self.states), "the words do not end at the first state")


def read_token(words, side, coding, states, lanes, trellis):
    """The points of a token of a strip; `coding` has a table class and low bits for each channel."""
    count = len(coding)
    quantizers = [states[c] // 2 if trellis else 0 for c in range(count)]
    symbols, low = [ESCAPE] * count, [0] * count
    for group in range(0, count, lanes):
        channels = range(group, min(group + lanes, count))[::-1]
        for c in channels:
            slots, frequencies, _ = table(coding[c][0], quantizers[c])
            symbols[c] = words.symbol(c - group, slots, frequencies)
        for c in channels:
            low[c] = words.low_bits(c - group, max(coding[c][1] - 12, 0))
        for c in channels:
            lower = min(coding[c][1], 12)
            low[c] = 2**lower * low[c] + words.low_bits(c - group, lower)
    words.pass_turn()
    points = []
    for c, k in enumerate(symbols):
        if k is ESCAPE:
            k = side.number("escapes") + table(coding[c][0], quantizers[c])[2] + 1
            k = -k if side.even_bits(1) else k
        k = k * 2 ** coding[c][1] + low[c]
        require(abs(k) < 2**23, "a value is too large")
        points.append(2 * k - (np.sign(k) if quantizers[c] else 0))
        states[c] = NEXT[states[c]][k % 2]
    return points


def coding_of(channel_class, e, g):
    own = min(max(channel_class + 4 * e + g, -12), 88)
    low_bits = max(0, -((20 - own) // 4))
    return own - 4 * low_bits, low_bits


def read_values(segment, words, side, lanes, unit, trellis):
    values = np.zeros((segment.tokens, segment.channels), F32)
    means = np.array(segment.means, np.int64).astype(F32) * (unit / F32(2))
    for first in range(0, segment.channels, STRIP):
        classes = segment.classes[first:first + STRIP]
        states = [0] * len(classes)
        for t in range(segment.tokens):
            e, g = segment.special.get(t, (0, 0))
            coding = [coding_of(own, e, g) for own in classes]
            points = np.array(read_token(words, side, coding, states, lanes, trellis), np.int64).astype(F32)
            values[t, first:first + STRIP] = points * (unit / F32(2**e)) + means[first:first + STRIP]
    return values


class Basis:
    """What a block has of an artifact."""

    def __init__(self, artifact, subject, arrangement):
        self.heads, self.head_dim, self.group_heads = (int(artifact.metadata[key]) for key in ("heads", "head_dim", "group_heads"))
        self.dim = artifact.group_dim
        self.groups = self.heads // self.group_heads
        self.arrangement = arrangement
        require(arrangement <= 1 + self.groups and (arrangement or not subject), "the arrangement")
        self.tensor = artifact.tensors.get(f"layer_{subject // 2}_{'value' if subject % 2 else 'key'}") if arrangement else None
        require(not arrangement or self.tensor, "the artifact has no such tensor")
        self.gathers = arrangement > 1 and self.group_heads > 1

    def check(self, channels, tokens, first, head_dim, count):
        require(not self.arrangement or (
            head_dim == self.head_dim and channels == (self.heads * self.head_dim if self.arrangement == 1 else self.dim) and
            not (self.gathers and (first or count % (tokens * channels)))), "the layout is not the artifact's")

    def of(self, part, segment):
        """This part of the groups of a segment."""
        return getattr(self.tensor, part)[segment.group:segment.group + segment.channels // self.dim].astype(F32)

    def expected(self, segment, unit):
        """A segment with what is expected of this one."""
        classes = []
        for sigma in self.of("sigma", segment).ravel():
            with np.errstate(over="ignore", under="ignore"):
                ratio = sigma / unit * (sigma / unit)
            own = -12
            if ratio > 2.0**-7:
                mantissa, exponent = math.frexp(min(float(ratio), 2.0**100))
                own = 2 * (exponent - 1) + (2 * mantissa >= float.fromhex("0x1.306fep+0")) + (2 * mantissa >= float.fromhex("0x1.ae89fap+0"))
            classes.append(min(max(own, -12), 88))
        return Segment(segment.tokens, segment.channels, 0, True, classes=classes, means=[0] * segment.channels)

    def values(self, segment, coefficients):
        out = np.zeros_like(coefficients)
        for group, inverse in enumerate(self.of("inverse", segment)):
            channels = slice(group * self.dim, (group + 1) * self.dim)
            own = coefficients[:, channels]
            for k in range(self.dim):
                out[:, channels] += own[:, k:k + 1] * inverse[:, k]
        return out + self.of("mean", segment).ravel()

    def scattered(self, values):
        """Head after head, where these follow one another."""
        if not self.gathers:
            return values
        return values.reshape(len(values), self.group_heads, self.head_dim).transpose(1, 0, 2)


def with_artifact(options):
    """The options with what the artifact says of the rotary embedding."""
    if "artifact" not in options:
        return options, None
    artifact = ARTIFACTS[options["artifact"]]
    if artifact.metadata["rotary"] == "none":
        return options, artifact
    said = {"theta": "rotary_theta", "rotary": "rotary", "rotary_dims": "rotary_dims", "rotary_offset": "rotary_offset",
            "scaling": "rotary_scaling", "factor": "rotary_factor", "low": "rotary_low", "high": "rotary_high",
            "original": "rotary_original"}
    of_artifact = {own: artifact.metadata[key] for own, key in said.items() if key in artifact.metadata}
    return {**options, **of_artifact}, artifact


def turning_channels(options, head_dim):
    theta, offset, dims = float(options.get("theta", 0)), int(options.get("rotary_offset", 0)), int(options.get("rotary_dims", 0))
    if theta == 0 or offset >= head_dim or dims > head_dim - offset:
        return slice(0, 0)
    return slice(offset, offset + (dims or head_dim - offset) // 2 * 2)


def decode_coded(options, form, side, words, dtype, count):
    require(len(side) >= 4, "the step")
    step = np.frombuffer(side[:4], "<f4")[0]
    (channels, rest), side = take_leb128(side[4:]), None
    tokens, rest = take_leb128(rest)
    first, rest = take_leb128(rest) if form & 2 else (0, rest)
    head_dim, rest = take_leb128(rest) if form & 4 else (channels, rest)
    options, artifact = with_artifact(options)
    basis = None
    if artifact:
        subject, rest = take_leb128(rest)
        arrangement, rest = take_leb128(rest)
        basis = Basis(artifact, subject, arrangement)
        basis.check(channels, tokens, first, head_dim, count)
    require(2.0**-100 <= step <= 2.0**102 and min(16, count) <= channels <= 65536 and 1 <= tokens <= 2**48 // channels and
            first < tokens * channels and 1 <= head_dim and channels % head_dim == 0, "the header")
    side = Side(rest)
    trellis = options.get("trellis", "true") == "true"
    unit = step if trellis else step / F32(2)
    segments = cut(count, tokens, channels, first)
    turning = turning_channels(options, head_dim)
    place = first
    for before, segment in zip([None, *segments], segments):
        if basis and basis.arrangement and segment.whole:
            segment.group = 0 if basis.arrangement == 1 else (basis.arrangement - 2 + place // (tokens * channels)) % basis.groups
            before = basis.expected(segment, unit)
        place += segment.tokens * segment.channels
        read_segment(side, segment, before)
        require(not segment.turned or (segment.whole and turning.stop > turning.start), "nothing turns")
    lanes = min(2 ** int(math.log2(max(count // 4096, 1))) * (2 if count >= 32768 else 1), 64)
    words = Words(words, lanes)
    out = []
    for segment in segments:
        values = read_values(segment, words, side, lanes, unit, trellis)
        if segment.group is not None:
            values = basis.values(segment, values)
        if segment.turned:
            heads = values.reshape(segment.tokens, -1, head_dim)
            heads[:, :, turning] = rotary.turn_forward(
                heads[:, :, turning], options, int(options.get("start", 0)) + segment.position)
        out.append((values if segment.group is None else basis.scattered(values)).reshape(-1))
    side.end()
    words.end()
    most = F32(np.finfo(np.float16).max if dtype == "F16" else float.fromhex("0x1.fep127") if dtype == "BF16" else np.finfo(F32).max)
    return np.clip(np.concatenate(out), -most, most).astype(DTYPES[dtype])


def decode(options, streams, dtype, count):
    side, words = (bytes(stream) for stream in streams)
    if count == 0:
        require(not side and not words, "bytes of no values")
        return np.zeros(0, DTYPES[dtype])
    require(side and side[0] in (0, 1, 3, 5, 7), "the form")
    if side[0]:
        return decode_coded(options, side[0], side[1:], words, dtype, count)
    require(len(side) == 1 + count * DTYPES[dtype].itemsize and not words, "stored values have the wrong size")
    return np.frombuffer(side[1:], DTYPES[dtype])
