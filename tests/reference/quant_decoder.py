"""A decoder of the tensor codec `quant`, written from docs/format.md alone: it shares nothing with the project's own."""

import numpy as np
from data_loss import require
from uniform_decoder import DTYPES, code_stream_count, read_codes, read_indices, read_scales, to_values


def stream_count(options):
    codes = code_stream_count(int(options["bits"]))
    return 1 + (options["symmetric"] == "false") + codes + 2 * (float(options["outliers"]) > 0)


def cells_of(options, row, count):
    """The cell of each value."""
    i = np.arange(count)
    if options["per"] == "block":
        return np.zeros(count, np.int64)
    if options["per"] == "group":
        return i // int(options["group"])
    rows = -(-count // row)
    if options["per"] == "channel" and rows >= 16:
        stretches = max(1, rows // int(options["group"]))
        return np.minimum(i // row // int(options["group"]), stretches - 1) * row + i % row
    return i // (row * -(-32 // row))


def decode(options, streams, dtype, count):
    streams = list(streams)
    symmetric, bits = options["symmetric"] == "true", int(options["bits"])
    row, scales = 1, streams.pop(0)
    if options["per"] in ("token", "channel"):
        row, scales = int(scales[:4].view("<u4")[0]), scales[4:]
    cells = cells_of(options, row, count)
    scales = read_scales(scales, dtype)
    require(len(scales) == cells.max() + 1, "not a scale a cell")
    offsets = np.float32(0) if symmetric else streams.pop(0).view(DTYPES[dtype]).astype(np.float32)[cells]
    code_streams = [streams.pop(0) for _ in range(code_stream_count(bits))]
    codes = read_codes(code_streams, bits, options["layout"] == "packed", count)
    values = to_values(codes, 1 << (bits - 1) if symmetric else 0, scales[cells], offsets, dtype)
    if streams:
        values[read_indices(streams[0])] = streams[1].view(DTYPES[dtype])
    return values
