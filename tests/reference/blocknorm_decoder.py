"""A decoder of the tensor codec `blocknorm`, written from docs/format.md alone: it shares nothing with the project's own."""

import numpy as np
from data_loss import require
from uniform_decoder import code_stream_count, read_codes, read_indices, read_scales, to_values


def stream_count(options):
    return 3 + code_stream_count(int(options["bits"]))


def decode(options, streams, dtype, count):
    row = int(streams[0][:4].view("<u4")[0])
    row *= -(-32 // row)
    block, bits = int(options["block"]), int(options["bits"])
    i = np.arange(count)
    cells = i // row * -(-row // block) + i % row // block
    scales = read_scales(streams[0][4:], dtype)
    exact = streams[2].view(np.float32)
    require(len(exact) == max(1, int(float(options["topk"]) * len(scales))), "not an exact scale for each of the cells")
    scales[read_indices(streams[1])] = exact
    return to_values(read_codes(streams[3:], bits, True, count), 1 << (bits - 1), scales[cells], np.float32(0), dtype)
