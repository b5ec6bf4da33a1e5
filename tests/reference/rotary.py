"""Rotary position embedding, written from docs/format.md alone."""

import math

import numpy as np
from elementary import exp2, log2

F32 = np.float32


TURNS_PER_RADIAN = float.fromhex("0x1.45f306dc9c883p-3")


def scaling_of(options):
    """What a spec's options say of it: kind, factor, low, high, original; None."""
    kind = options.get("scaling", "none")
    if kind == "none":
        return None
    usual = {"linear": (0, 0, 0), "llama3": (1, 4, 8192), "yarn": (1, 32, 0)}[kind]
    numbers = [float(options.get(key, 0)) or own for key, own in zip(("low", "high", "original"), usual)]
    return kind, float(options["factor"]), *map(float, numbers)


def kept(scaling, theta, dims, pair, turns):
    """How much of a pair's turns is not slowed down."""
    kind, _, low, high, original = scaling
    if kind == "linear":
        return 0.0
    if kind == "llama3":
        return min(max((original * turns - low) / (high - low), 0.0), 1.0)

    def pair_of(times):
        return dims * log2(original * TURNS_PER_RADIAN / times) / (2 * log2(theta))

    first = max(math.floor(pair_of(high)), 0)
    last = min(math.ceil(pair_of(low)), dims - 1)
    if last == first:
        last += 0.001
    return 1 - min(max((pair - first) / (last - first), 0.0), 1.0)


def frequency(theta, scaling, dims, pair):
    """In units of 2^-64 of a turn."""
    turns = exp2(-(2 * pair / dims) * log2(theta)) * TURNS_PER_RADIAN
    if scaling:
        share = kept(scaling, theta, dims, pair, turns)
        turns = turns * ((1 - share) / scaling[1] + share)
    return int(math.ldexp(turns, 64))


def horner(terms, z):
    total = np.full_like(z, terms[0])
    for term in terms[1:]:
        total = total * z + term
    return total


def cos_sin(phases):
    """Of phases in units of 2^-32 of a turn."""
    phases = np.asarray(phases, np.int64)
    quarter = (phases + 2**29) % 2**32 >> 30
    rest = (phases - (quarter << 30) + 2**31) % 2**32 - 2**31
    x = rest.astype(F32) * F32(float.fromhex("0x1.921fb6p-30"))
    z = x * x
    inverse = [F32(1) / F32(math.factorial(n)) for n in range(11)]
    s = horner([inverse[9], -inverse[7], inverse[5], -inverse[3], F32(1)], z) * x
    c = horner([-inverse[10], inverse[8], -inverse[6], inverse[4], -inverse[2], F32(1)], z)
    return np.choose(quarter, [c, -s, -c, s]), np.choose(quarter, [s, c, -s, -c])


def turn_forward(values, options, first):
    """Values [tokens, heads, dims], the first token at position `first`, by a spec's options."""
    tokens, _, dims = values.shape
    scaling, interleaved = scaling_of(options), options.get("rotary") == "interleaved"
    frequencies = [frequency(float(options["theta"]), scaling, dims, i) for i in range(dims // 2)]
    phases = [[((first + t) * f % 2**64) >> 32 for f in frequencies] for t in range(tokens)]
    cos, sin = (table[:, None, :] for table in cos_sin(phases))
    pairs = (slice(0, dims, 2), slice(1, dims, 2)) if interleaved else (slice(0, dims // 2), slice(dims // 2, dims))
    a, b = (values[:, :, part] for part in pairs)
    out = np.empty_like(values)
    out[:, :, pairs[0]] = a * cos - b * sin
    out[:, :, pairs[1]] = b * cos + a * sin
    return out
