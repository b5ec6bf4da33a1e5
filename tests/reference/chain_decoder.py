"""A decoder of whole frames of any chain, written from docs/format.md alone: it shares nothing with the project's own."""

import math

import arithmetic_decoder
import blocknorm_decoder
import cabac_decoder
import exact_decoder
import heads_decoder
import huffman_decoder
import int_decoder
import lz4.block
import numpy as np
import planes_decoder
import quant_decoder
import rans_decoder
import rotated_decoder
import smallest_decoder
import transform_decoder
import zstandard
from data_loss import require
from element_types import KINDS, values_in
from frame_reader import read_frame, split_payload
from spec_reader import read_spec
from uniform_decoder import F8, to_f8

BYTE_CODECS = {
    "huffman": huffman_decoder.decode,
    "rans": rans_decoder.decode,
    "arithmetic": arithmetic_decoder.decode,
    "cabac": cabac_decoder.decode,
    "smallest": smallest_decoder.decode,
    "lz4": lambda data, size: lz4.block.decompress(data, uncompressed_size=size),
    "zstd": lambda data, size: zstandard.ZstdDecompressor().decompress(data, max_output_size=size),
}
BOUNDED_MODES = [
    "planes(split=auto,delta=auto)", "int2(group=32)", "int3(group=64)", "int4(group=128)", "int4(group=64)", "int4(group=32)",
    "int5(group=64)", "int6(group=64)", "int8(group=64)", "int8(group=32)",
    "quant(bits=10,per=token,group=64,symmetric=true,outliers=0,layout=packed)",
    "quant(bits=12,per=token,group=64,symmetric=true,outliers=0,layout=packed)",
    *(f"quant(bits={bits},per=channel,group=64,symmetric=false,outliers=0,layout=packed)" for bits in (3, 4, 5, 6, 7, 8, 10, 12)),
]


def stream_count(stage):
    match stage.name:
        case "quant":
            return quant_decoder.stream_count(stage.options)
        case "blocknorm":
            return blocknorm_decoder.stream_count(stage.options)
        case "planes":
            return 1 + planes_decoder.PLANES
        case "rotated":
            return rotated_decoder.stream_count(stage.options)
        case "bounded":
            return 6
        case "transform":
            return 2
        case "raw" | "exact" | "heads":
            return 1
    return 2  # intN


def decode_bounded(streams, dtype, count):
    require(len(streams[0]) == 1 and streams[0][0] < len(BOUNDED_MODES), "an unknown mode")
    mode = read_spec(BOUNDED_MODES[streams[0][0]]).codec
    used = stream_count(mode)
    require(all(len(stream) == 0 for stream in streams[1:len(streams) - used]), "bytes in a stream that the mode has not")
    return decode_streams(mode, streams[len(streams) - used:], dtype, count)


def decode_heads(options, stream, dtype, count):
    width = KINDS[dtype].itemsize
    parts = [(int(label.split("-")[0]),
              lambda payload, size, chain=chain: decode_payload(chain, payload, dtype, size // width).tobytes())
             for label, chain in options.items()]
    return np.frombuffer(heads_decoder.decode(stream, count, width, parts), KINDS[dtype])


def decode_streams(stage, streams, dtype, count, extent=1):
    """The `count` values that the streams of a tensor codec stand for. `extent` is that of the tensor's last axis."""
    if dtype in F8 and stage.name not in ("raw", "planes", "exact", "bounded", "heads"):
        return to_f8(decode_streams(stage, streams, "F16", count, extent), dtype)
    arrays = [np.frombuffer(stream, np.uint8) for stream in streams]
    match stage.name:
        case "raw":
            require(len(streams[0]) == count * KINDS[dtype].itemsize, "the values have the wrong size")
            return np.frombuffer(streams[0], KINDS[dtype])
        case "quant" | "blocknorm" if count == 0:
            return np.zeros(0, KINDS[dtype])
        case "quant":
            return quant_decoder.decode(stage.options, arrays, dtype, count)
        case "blocknorm":
            return blocknorm_decoder.decode(stage.options, arrays, dtype, count)
        case "transform":
            return transform_decoder.decode(stage.options, streams, dtype, count)
        case "planes":
            return np.frombuffer(planes_decoder.decode(streams, *planes_decoder.words_of(dtype, count))[0], KINDS[dtype])
        case "exact":
            return np.frombuffer(exact_decoder.decode(streams[0], *planes_decoder.words_of(dtype, count))[0], KINDS[dtype])
        case "bounded":
            return decode_bounded(streams, dtype, count)
        case "heads":
            return decode_heads(stage.options, streams[0], dtype, count)
        case "rotated":
            return rotated_decoder.decode(stage.options, arrays, dtype, count, extent)
    return int_decoder.decode(stage.name, stage.options, arrays, dtype, count)


def undo_byte_codecs(chain, payload):
    """The streams as transforms and tensor codec made them."""
    streams = len(chain.transforms) + stream_count(chain.codec)
    raw = []
    for row, data in split_payload(payload, streams, len(chain.byte_codecs)):
        for codec, before, after in reversed(list(zip(chain.byte_codecs, row, row[1:]))):
            if after < before:
                data = BYTE_CODECS[codec.name](data, before)
                require(len(data) == before, "a stream has the wrong size")
        raw.append(bytes(data))
    return raw


def decode_payload(chain, payload, dtype, count, extent=1):
    """The values of a block of a tensor, whose last axis has this extent."""
    streams = undo_byte_codecs(chain, payload)
    kept, stored = [], None  # of the values before each sparse with a mask, which go on; the values of a fallback
    for stage, side in zip(chain.transforms, streams):
        require(stage.name in ("sparse", "fallback") or not side, "a side stream that the transform has not")
        if side and stage.name == "fallback":
            require(len(side) == count * KINDS[dtype].itemsize, "stored values have the wrong size")
            stored = np.frombuffer(side, KINDS[dtype])
        elif side:
            require(len(side) == (count + 7) // 8, "the mask has the wrong size")
            mask = np.unpackbits(np.frombuffer(side, np.uint8), bitorder="little").astype(bool)
            require(not mask[count:].any(), "bits after the mask")
            kept.append(mask[:count])
            count = int(mask.sum())
    held = count if stored is None else 0
    values = decode_streams(chain.codec, streams[len(chain.transforms):], dtype, held, extent)
    if stored is not None:
        values = stored
    for mask in reversed(kept):
        whole = np.zeros(len(mask), values.dtype)
        whole[mask] = values
        values = whole
    return values


def decode_frame(frame):
    """The values, flat."""
    read = read_frame(frame)
    chain = read_spec(read.codec)
    extent = read.shape[-1] if read.shape else 1
    blocks = [decode_payload(chain, payload, read.dtype, count, extent) for payload, count in read.blocks]
    values = np.concatenate(blocks) if blocks else np.zeros(0, KINDS[read.dtype])
    require(len(values) == values_in(math.prod(read.shape), read.dtype), "not a value for each element")
    return values
