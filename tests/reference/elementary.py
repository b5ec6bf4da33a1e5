"""The elementary functions of docs/format.md: binary64, in a fixed order."""

import math


def log2(x):
    mantissa, exponent = math.frexp(x)
    m, e = 2 * mantissa, float(exponent - 1)
    if m > float.fromhex("0x1.6a09e667f3bcdp+0"):
        m, e = m / 2, e + 1
    s = (m - 1) / (m + 1)
    z, t = s * s, 1 / 27
    for n in range(25, 0, -2):
        t = t * z + 1 / n
    return e + 2 * s * t * float.fromhex("0x1.71547652b82fep+0")


def exp2(y):
    w = math.floor(y + 0.5)
    r, t = (y - w) * float.fromhex("0x1.62e42fefa39efp-1"), 1.0
    for n in range(18, 0, -1):
        t = r * t / n + 1
    return math.ldexp(t, w)


def half_normal(x):
    """The probability of a Gaussian value of deviation 1 between 0 and x."""
    if x >= 8:
        return 0.5
    z, t, u = x * x, x, x
    for n in range(3, 202, 2):
        t = t * z / n
        u = u + t
    return u * (exp2(z * -float.fromhex("0x1.71547652b82fep-1")) * float.fromhex("0x1.9884533d43651p-2"))
