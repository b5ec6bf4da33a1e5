"""What encoders of the tensor codecs `quant` and `blocknorm` must make of values, written from docs/format.md alone."""

import ml_dtypes
import numpy as np
from quant_decoder import cells_of
from uniform_decoder import DTYPES, to_values


def dtype_of(values):
    return next(name for name, dtype in DTYPES.items() if dtype == values.dtype)


def magnitude_bits(values):
    """The bits of values without the sign: by these magnitudes compare."""
    bits = values.view(f"<u{values.dtype.itemsize}").astype(np.uint64)
    return bits & np.uint64((1 << (8 * values.dtype.itemsize - 1)) - 1)


def round_up(exact, dtype):
    """Scales as they are stored: the next F16 or bfloat16 up, but no more than the largest finite one."""
    narrow = np.dtype(np.float16 if dtype == "F16" else ml_dtypes.bfloat16)
    largest = narrow.type(ml_dtypes.finfo(narrow).max)
    with np.errstate(over="ignore"):
        scale = np.minimum(exact, np.float32(largest)).astype(narrow)
    below = scale.astype(np.float32) < exact
    bits = scale.view(np.uint16) + (below & (scale < largest)).astype(np.uint16)
    return bits.view(narrow).astype(np.float32)


def by_cell(function, start, cells, values, count):
    result = np.full(count, start, np.float32)
    function.at(result, cells, values)
    return result


def exact_scales(values, cells, count, bits):
    """Symmetric cells' scales before they are rounded."""
    levels = np.float32(2 ** (bits - 1) - 1)
    return by_cell(np.maximum, 0, cells, np.abs(values), count) / levels


def codes_of(values, scales, offsets, lowest, levels):
    with np.errstate(divide="ignore", invalid="ignore"):
        quotient = np.where(scales == 0, values - offsets, (values - offsets) / scales)
    return np.clip(np.rint(quotient), lowest, levels).astype(np.int64)


def quantize_quant(options, values, row):
    """The values that come back for `values`; `row` is the extent of the tensor's last axis."""
    dtype, n, bits = dtype_of(values), len(values), int(options["bits"])
    symmetric = options["symmetric"] == "true"
    outliers = int(float(options["outliers"]) * n)
    kept = np.argsort(-magnitude_bits(values).astype(np.int64), kind="stable")[:outliers]
    x = values.astype(np.float32)
    x[kept] = 0
    cells = cells_of(options, min(row, max(n, 1)), n)
    count = int(cells.max()) + 1 if n else 0
    if symmetric:
        scales, offsets = exact_scales(x, cells, count, bits), np.zeros(count, np.float32)
        lowest, levels = -(2 ** (bits - 1) - 1), 2 ** (bits - 1) - 1
    else:
        x = x + np.float32(0)  # no -0
        offsets = by_cell(np.minimum, np.inf, cells, x, count)
        lowest, levels = 0, 2 ** bits - 1
        scales = (by_cell(np.maximum, -np.inf, cells, x, count) - offsets) / np.float32(levels)
    scales = round_up(scales, dtype)
    codes = codes_of(x, scales[cells], offsets[cells], lowest, levels)
    back = to_values(codes, 0, scales[cells], offsets[cells], dtype)
    back[kept] = values[kept]
    return back


def energies(x, cells, count):
    """In binary32, by 16 sums and a tree."""
    result = np.zeros(count, np.float32)
    with np.errstate(over="ignore"):
        for cell in range(count):
            squares = x[cells == cell] ** 2
            sums = np.zeros(16, np.float32)
            for first in range(0, len(squares), 16):
                part = squares[first:first + 16]
                sums[:len(part)] += part
            for half in (8, 4, 2, 1):
                sums = sums[:half] + sums[half:]
            result[cell] = sums[0]
    return result


def quantize_blocknorm(options, values, row):
    dtype, n, bits, block = dtype_of(values), len(values), int(options["bits"]), int(options["block"])
    row = min(row, max(n, 1))
    row *= -(-32 // row)
    i = np.arange(n)
    cells = i // row * -(-row // block) + i % row // block
    count = int(cells.max()) + 1 if n else 0
    x = values.astype(np.float32)
    exact = exact_scales(x, cells, count, bits)
    scales = round_up(exact, dtype)
    top = min(count, max(1, int(float(options["topk"]) * count)))
    chosen = np.argsort(-energies(x, cells, count), kind="stable")[:top]
    scales[chosen] = exact[chosen]
    levels = 2 ** (bits - 1) - 1
    return to_values(codes_of(x, scales[cells], np.float32(0), -levels, levels), 0, scales[cells], np.float32(0), dtype)
