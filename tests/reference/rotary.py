"""Rotary position embedding, written from docs/format.md alone."""

import math

import numpy as np
from elementary import exp2, log2

F32 = np.float32


def frequency(theta, dims, pair):
    """In units of 2^-64 of a turn."""
    turns = exp2(-(2 * pair / dims) * log2(theta)) * float.fromhex("0x1.45f306dc9c883p-3")
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


def turn_forward(values, theta, interleaved, first):
    """Values [tokens, heads, dims], the first token at position `first`."""
    tokens, _, dims = values.shape
    frequencies = [frequency(theta, dims, i) for i in range(dims // 2)]
    phases = [[((first + t) * f % 2**64) >> 32 for f in frequencies] for t in range(tokens)]
    cos, sin = (table[:, None, :] for table in cos_sin(phases))
    pairs = (slice(0, dims, 2), slice(1, dims, 2)) if interleaved else (slice(0, dims // 2), slice(dims // 2, dims))
    a, b = (values[:, :, part] for part in pairs)
    out = np.empty_like(values)
    out[:, :, pairs[0]] = a * cos - b * sin
    out[:, :, pairs[1]] = b * cos + a * sin
    return out
