"""A decoder of the tensor codec `rotated`, and what an encoder must make of values, written from docs/format.md alone."""

import functools
import math

import int_decoder
import ml_dtypes
import numpy as np
from data_loss import require
from int_decoder import read_scales
from rotary import turn_forward
from uniform_decoder import DTYPES, unpack

LEVELS = {2: [38, 127], 3: [14, 45, 79, 127], 4: [6, 18, 31, 44, 58, 75, 96, 127]}
BOUNDS = {2: [504], 3: [256, 536, 896], 4: [136, 272, 408, 560, 736, 944, 1232]}
LONGEST_ROW = 1024
SEQ, HEAD_DIM = 4, 5  # roles of axes


@functools.cache
def signs():
    state, drawn = 625341585, []
    for _ in range(2 * LONGEST_ROW):
        state = (1664525 * state + 1013904223) % 2**32
        drawn.append(-1 if state >= 2**31 else 1)
    return np.array(drawn, np.float32)


class Row:
    """What depends on the number D of a row's values."""

    def __init__(self, d):
        p = d.bit_length() - 1
        self.d, self.span, k = d, 2**p, 6 + p // 2
        self.c = np.float32(np.sqrt(1 / self.span))
        self.w = np.float32(512 * np.sqrt(d / self.span))
        self.divisor = self.w * np.float32(2.0 ** (p - k))
        self.level_unit = np.float32(2.0**-k)
        self.first = slice(0, self.span)
        self.second = slice(d - self.span, d)
        self.both = slice(d - self.span, self.span)

    def rotate(self, x):
        v = x * signs()[:self.d]
        v[:, self.first] = hadamard(v[:, self.first])
        if self.span < self.d:
            v[:, self.both] *= self.c * signs()[LONGEST_ROW:][self.both]
            v[:, self.second] = hadamard(v[:, self.second])
        return v

    def rotate_back(self, v):
        v = v.copy()
        if self.span < self.d:
            v[:, self.second] = hadamard(v[:, self.second])
            v[:, self.both] *= self.c * signs()[LONGEST_ROW:][self.both]
        v[:, self.first] = hadamard(v[:, self.first])
        return v * signs()[:self.d]


def hadamard(v):
    """Of each row, whose length is a power of two."""
    h = 1
    while h < v.shape[1]:
        pairs = v.reshape(len(v), -1, 2, h)
        v = np.stack([pairs[:, :, 0] + pairs[:, :, 1], pairs[:, :, 0] - pairs[:, :, 1]], axis=2).reshape(v.shape)
        h *= 2
    return v


def energy(x):
    """Of each row, by 16 sums and a tree."""
    padded = np.zeros((len(x), -(-x.shape[1] // 16) * 16), np.float32)
    padded[:, :x.shape[1]] = x * x
    sums = np.zeros((len(x), 16), np.float32)
    for at in range(0, padded.shape[1], 16):
        sums += padded[:, at:at + 16]
    for half in (8, 4, 2, 1):
        sums = sums[:, :half] + sums[:, half:]
    return sums


def row_length(extent):
    return extent if 16 <= extent <= LONGEST_ROW else 128


def rows_of(values, extent):
    """The values as whole rows, and the last one if it is shorter, as arrays of rows of one length each."""
    d = row_length(extent)
    whole = len(values) // d * d
    parts = [values[:whole].reshape(-1, d), values[whole:].reshape(1, -1)]
    return [part for part in parts if part.size]


def largest_magnitude(options):
    return 2.0**118 if options.get("mean") == "channel" else 2.0**120


def stream_count(options):
    return (5 if int(options.get("sinks", 0)) > 0 else 2) + (options.get("mean") == "channel")


def sinks_at(place, count, extent):
    """Which of a block's values are in sinks."""
    period, sinks, first = (int(number) for number in place)
    rows = np.arange(count) // row_length(extent)
    return (first + rows) % period < sinks if period else np.zeros(count, bool)


def place_of(options, shape, axes, first):
    """Rows of a sequence, how many of them are sinks, and which one begins with value `first` of the tensor."""
    row = row_length(shape[-1] if shape else 1)
    if axes.count(SEQ) != 1 or HEAD_DIM not in axes or math.prod(shape) == 0:
        return 0, 0, 0
    axis = axes.index(SEQ)
    channels = math.prod(shape[axis + 1:])
    if shape[-1] != row or channels % row != 0 or channels > 65536:
        return 0, 0, 0
    period = shape[axis] * channels // row
    tokens = min(shape[axis], max(0, int(options.get("sinks", 0)) - int(options.get("start", 0))))
    return period, tokens * channels // row, first // row % period


def signed_levels(magnitudes, negative, bits):
    levels = np.array(LEVELS[bits])[magnitudes]
    return np.where(negative, -levels, levels)


def values_of(row, levels, scales, dtype):
    """Of rows, by their levels with signs and their scales in binary32."""
    largest = np.float32(ml_dtypes.finfo(DTYPES[dtype]).max)
    with np.errstate(over="ignore"):
        x = row.rotate_back(levels.astype(np.float32) * row.level_unit) * scales
    x[np.broadcast_to(scales == 0, x.shape)] = 0
    return np.clip(x, -largest, largest).astype(DTYPES[dtype])


def decode(options, streams, dtype, count, extent):
    """`extent` is that of the tensor's last axis."""
    if options.get("mean") != "channel":
        return decode_plain(options, streams, dtype, count, extent)
    values = decode_plain(options, streams[:-1], "F32", count, extent)
    largest = np.float32(ml_dtypes.finfo(DTYPES[dtype]).max)
    return np.clip(add_means(options, streams[-1].tobytes(), values, dtype, extent), -largest, largest).astype(DTYPES[dtype])


def add_means(options, stream, values, dtype, extent):
    row = row_length(extent)
    require(len(stream) >= 32, "means that are cut off")
    *place, heads = (int(number) for number in np.frombuffer(stream, "<u8", 4))
    period, sinks, first = place
    require(period <= 2**48 and sinks <= period and first < max(1, period) and heads <= 65536, "a place that cannot be")
    require(heads == 0 or len(values) % row == 0, "means of a short row")
    at, kind = 32, np.dtype(np.float16 if dtype == "F16" else ml_dtypes.bfloat16)
    if heads == 0:
        require(len(stream) == at, "means are left")
        return values
    rows, r = values.reshape(-1, row).copy(), 0
    while r < len(rows):
        own = (first + r) % period if period else r
        end = sinks if own < sinks else period
        n = min(len(rows) - r, end - own) if period else len(rows)
        if own >= sinks:
            columns = min(heads, n)
            size = columns * row
            turned = stream[at]
            means = np.frombuffer(stream, kind, size, at + 1).astype(np.float32).reshape(columns, row)
            require(np.isfinite(means).all() and turned <= 1, "means that cannot be")
            at += 1 + 2 * size
            rows[r:r + n] += means[np.arange(n) % columns]
            if turned:
                turn_rows(options, rows[r:r + n], own, heads)
        r += n
    require(at == len(stream), "means are left")
    return rows.reshape(-1)


def turn_rows(options, rows, first, heads):
    dims = int(options.get("rotary_dims", 0)) or rows.shape[1]
    theta = float(options.get("theta", 0))
    require(theta > 0 and dims % 2 == 0 and dims <= rows.shape[1], "rows that cannot turn")
    start = int(options.get("start", 0))
    tokens = (first + np.arange(len(rows))) // heads
    for token in np.unique(tokens):
        own = rows[tokens == token][None, :, :dims]
        rows[tokens == token, :dims] = turn_forward(own, options, start + int(token))[0]


def decode_plain(options, streams, dtype, count, extent):
    """Without means."""
    if len(streams) == 2:
        return decode_rows(options, streams, dtype, count, extent)
    place, row = streams[2].view("<u8"), row_length(extent)
    require(len(place) == 3 and place[0] <= 2**48 and place[1] <= place[0] and place[2] < max(1, place[0]), "a place that cannot be")
    sinks = sinks_at(place, count, extent)
    require(sinks.sum() % row == 0, "a short row that is a sink")
    values = np.empty(count, DTYPES[dtype])
    values[~sinks] = decode_rows(options, streams[:2], dtype, int((~sinks).sum()), extent)
    rows = int(sinks.sum()) // row
    scale_bytes, code_bytes = 2 * -(-row // 64), 8 * -(-row // 8)
    require(len(streams[3]) == rows * scale_bytes and len(streams[4]) == rows * code_bytes, "sinks of the wrong size")
    own = zip(streams[3].reshape(rows, scale_bytes), streams[4].reshape(rows, code_bytes))
    decoded = [int_decoder.decode("int8", {"group": 64}, [scales.copy(), codes], dtype, row) for scales, codes in own]
    values[sinks] = np.concatenate(decoded) if decoded else []
    return values


def decode_rows(options, streams, dtype, count, extent):
    """Those that are no sinks."""
    bits = int(options["bits"])
    codes = unpack(streams[1], bits, count) if count else np.zeros(0, np.int64)
    scales, values = read_scales(streams[0].view("<u2"), "F32"), []
    require(np.isfinite(scales).all(), "a scale that is not finite")
    for part in rows_of(codes, extent):
        levels = signed_levels(part & (2 ** (bits - 1) - 1), part >> (bits - 1), bits)
        require(len(scales) >= len(part), "rows without a scale")
        values.append(values_of(Row(part.shape[1]), levels, scales[:len(part), None], dtype).reshape(-1))
        scales = scales[len(part):]
    require(len(scales) == 0, "scales are left")
    return np.concatenate(values) if values else np.zeros(0, DTYPES[dtype])


def stored_scale(scale):
    """As F16 or bfloat16 hold it, in binary32."""
    with np.errstate(over="ignore"):
        narrow = scale.astype(np.float16).astype(np.float32)
    is_normal = np.isfinite(narrow) & (narrow >= 2.0**-14)
    return np.where(is_normal, narrow, scale.astype(ml_dtypes.bfloat16).astype(np.float32))


def quantize_rows(row, x, bits):
    """Levels with signs and scales of rows x in binary32."""
    with np.errstate(over="ignore", under="ignore"):
        own = energy(x)
    largest = np.abs(x).max(axis=1, keepdims=True)
    exponents = np.where((own >= 2.0**-64) & (own <= 2.0**64) | (largest == 0), 0, np.frexp(largest)[1] - 1)
    x = np.ldexp(x, -exponents)
    norm = np.sqrt(energy(x))
    norm[largest == 0] = 1
    q = np.rint(row.rotate(x) * (row.w / norm)).astype(np.int64)
    magnitudes = np.searchsorted(BOUNDS[bits], np.abs(q), side="right")
    levels = np.array(LEVELS[bits])[magnitudes]
    cross, squares = ((terms * levels).sum(axis=1, keepdims=True).astype(np.float32) for terms in (np.abs(q), levels))
    scales = np.ldexp(cross / squares * norm / row.divisor, exponents)
    scales[largest == 0] = 0
    return signed_levels(magnitudes, q < 0, bits), stored_scale(scales)


def quantize(options, values, extent, sinks):
    """The values that come back for `values`; `sinks` says which of them are in sinks."""
    dtype = next(name for name, kind in DTYPES.items() if kind == values.dtype)
    back, others = np.empty_like(values), []
    for part in rows_of(values[~sinks], extent):
        row = Row(part.shape[1])
        levels, scales = quantize_rows(row, part.astype(np.float32), int(options["bits"]))
        others.append(values_of(row, levels, scales, dtype).reshape(-1))
    back[~sinks] = np.concatenate(others) if others else []
    back[sinks] = quantize_sinks(values[sinks], extent)
    return back


def quantize_sinks(values, extent):
    rows = values.reshape(-1, row_length(extent))
    return np.concatenate([int_decoder.quantize("int8", {"group": 64}, row) for row in rows]) if len(rows) else values
