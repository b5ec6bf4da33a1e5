"""What the tensor codecs `quant` and `blocknorm` share, decoding, written from docs/format.md alone."""

import ml_dtypes
import numpy as np
from data_loss import require

F8 = {"F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn), "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2)}
DTYPES = {"F16": np.dtype(np.float16), "BF16": np.dtype(ml_dtypes.bfloat16), "F32": np.dtype(np.float32)}
FIELDS = {1: [1], 2: [2], 3: [2, 1], 4: [4], 5: [4, 1], 6: [4, 2], 7: [4, 2, 1]}  # from the low end of a code


def unpack(data, bits, count):
    """Packed codes: groups of 128, the last as long as it needs to be in eights; fields in arrays of their own."""
    codes = []
    at = 0
    for first in range(0, count, 128):
        n = min(128, count - first)
        slots = (n + 7) // 8 * 8
        group = np.zeros(slots, np.int64)
        shift = 0
        for width in FIELDS[bits]:
            size = slots * width // 8
            packed = data[at:at + size]
            at += size
            for k in range(8 // width):
                field = (packed >> (k * width)) & ((1 << width) - 1)
                group[k * size:(k + 1) * size] |= field.astype(np.int64) << shift
            shift += width
        codes.append(group[:n])
    require(at == len(data), "codes are left")
    return np.concatenate(codes)


def read_codes(streams, bits, packed, count):
    if bits > 8:
        high, low = streams
        return high.astype(np.int64) << (bits - 8) | unpack(low, bits - 8, count)
    return unpack(streams[0], bits, count) if packed and bits < 8 else streams[0].astype(np.int64)


def code_stream_count(bits):
    return 2 if bits > 8 else 1


def read_indices(data):
    """An index list."""
    indices, at, next_index = [], 0, 0
    while at < len(data):
        gap, shift = 0, 0
        while True:
            byte = int(data[at])
            at += 1
            gap |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        indices.append(next_index + gap)
        next_index = indices[-1] + 1
    return indices


def read_scales(data, dtype):
    return data.view(np.float16 if dtype == "F16" else ml_dtypes.bfloat16).astype(np.float32)


def to_values(codes, zero, scales, offsets, dtype):
    with np.errstate(over="ignore"):
        values = (codes - zero).astype(np.float32) * scales + offsets
    largest = np.float32(ml_dtypes.finfo(DTYPES[dtype]).max)
    return np.clip(values, -largest, largest).astype(DTYPES[dtype])


def to_f8(values, dtype):
    """Of F16, rounded to nearest even and limited to what is finite."""
    largest = np.float32(ml_dtypes.finfo(F8[dtype]).max)
    return np.clip(values.astype(np.float32), -largest, largest).astype(F8[dtype])
