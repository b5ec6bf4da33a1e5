"""A decoder of the tensor codecs intN, and what an encoder must make of values, written from docs/format.md alone."""

import ml_dtypes
import numpy as np
from data_loss import require
from uniform_decoder import DTYPES, FIELDS

QUIET_NAN = {"F16": 0x7E00, "BF16": 0x7FC0, "F32": 0x7FC00000}


def bits_of(name):
    return int(name.removeprefix("int"))


def fields_of(bits):
    return [8] if bits == 8 else FIELDS[bits]


def groups_of(count, group):
    return [(first, min(group, count - first)) for first in range(0, count, group)]


def unpack_group(data, bits, slots):
    codes, at, shift = np.zeros(slots, np.int64), 0, 0
    for width in fields_of(bits):
        size = slots * width // 8
        for k in range(8 // width):
            field = data[at:at + size].astype(np.int64) >> (k * width) & ((1 << width) - 1)
            codes[k * size:(k + 1) * size] |= field << shift
        at, shift = at + size, shift + width
    return np.where(codes >> (bits - 1), codes - (1 << bits), codes)


def values_of(codes, scale, dtype):
    """What a group's codes stand for."""
    if not np.isfinite(scale):
        return np.full(len(codes), QUIET_NAN[dtype], f"<u{DTYPES[dtype].itemsize}").view(DTYPES[dtype])
    with np.errstate(over="ignore"):
        return (codes.astype(np.float32) * np.float32(scale)).astype(DTYPES[dtype])


def read_scales(bits, dtype):
    """Scales in binary32. In tensors of BF16 and F32 those with the sign bit set are of bfloat16."""
    narrow = bits.view(np.float16).astype(np.float32)
    if dtype == "F16":
        return narrow
    return np.where(bits >> 15, (bits & 0x7FFF).astype(np.uint32) << 16, narrow.view(np.uint32)).view(np.float32)


def decode(name, options, streams, dtype, count):
    bits, group = bits_of(name), int(options["group"])
    scales, codes = streams
    groups = groups_of(count, group)
    require(len(scales) == 2 * len(groups), "not a scale a group")
    values, at = [], 0
    for (_, n), scale in zip(groups, read_scales(scales.view("<u2"), dtype)):
        slots = (n + 7) // 8 * 8
        size = slots * bits // 8
        values.append(values_of(unpack_group(codes[at:at + size], bits, slots)[:n], scale, dtype))
        at += size
    require(at == len(codes), "codes are left")
    return np.concatenate(values) if values else np.zeros(0, DTYPES[dtype])


LARGEST_MAGNITUDE = 2.0**127


def scale_of(largest, qmax, dtype):
    """The scale of a group whose largest magnitude is given, in its own type."""
    quotient = np.float32(largest) / np.float32(qmax)
    with np.errstate(over="ignore"):
        scale = np.float16(quotient)
    if dtype != "F16" and largest > 0 and (np.isinf(scale) or scale < 2.0**-14):
        scale = quotient.astype(ml_dtypes.bfloat16)
    while np.float64(scale) * (qmax + 0.5) < np.float64(largest):
        scale = (scale.view(np.uint16) + np.uint16(1)).view(scale.dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        top = (np.float32(qmax) * np.float32(scale)).astype(DTYPES[dtype])
    if not np.isfinite(top.astype(np.float32)):
        scale = (scale.view(np.uint16) - np.uint16(1)).view(scale.dtype)
    return scale


def quantize(name, options, values):
    """The values that come back for `values`."""
    dtype = next(name for name, kind in DTYPES.items() if kind == values.dtype)
    qmax = 2 ** (bits_of(name) - 1) - 1
    back = np.empty_like(values)
    for first, n in groups_of(len(values), int(options["group"])):
        x = values[first:first + n].astype(np.float32)
        scale = scale_of(np.abs(x).max(), qmax, dtype)
        if scale == 0:
            codes = np.zeros(n, np.int64)
        else:
            quotient = (x / np.float32(scale)).astype(np.float64)  # the quotient is of binary32, the rest exact
            codes = np.clip(np.copysign(np.floor(np.abs(quotient) + 0.5), quotient), -qmax - 1, qmax).astype(np.int64)
        back[first:first + n] = values_of(codes, scale, dtype)
    return back
