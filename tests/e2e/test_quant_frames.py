"""A second decoder of quant and blocknorm, written from docs/format.md alone: it must give the bits that ours gives."""

import re
import struct

import ml_dtypes
import numpy as np
import pytest

from cli_helpers import DTYPES, File, run_ok

FIELDS = {1: [1], 2: [2], 3: [2, 1], 4: [4], 5: [4, 1], 6: [4, 2], 7: [4, 2, 1]}  # from the low end of a code
DTYPE_OF_NUMBER = {1: "F16", 2: "BF16", 3: "F32"}


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
    assert at == len(data)
    return np.concatenate(codes)


def read_codes(streams, bits, packed, count):
    if bits > 8:
        high, low = streams
        return high.astype(np.int64) << (bits - 8) | unpack(low, bits - 8, count)
    return unpack(streams[0], bits, count) if packed and bits < 8 else streams[0].astype(np.int64)


def read_indices(data):
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


def quant_cells(options, row, count):
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


def decode_quant(options, streams, dtype, count):
    streams = list(streams)
    symmetric, bits = options["symmetric"] == "true", int(options["bits"])
    row, scales = 1, streams.pop(0)
    if options["per"] in ("token", "channel"):
        row, scales = int(scales[:4].view("<u4")[0]), scales[4:]
    cells = quant_cells(options, row, count)
    scales = read_scales(scales, dtype)
    assert len(scales) == cells.max() + 1
    offsets = np.float32(0) if symmetric else streams.pop(0).view(DTYPES[dtype]).astype(np.float32)[cells]
    code_streams = [streams.pop(0) for _ in range(2 if bits > 8 else 1)]
    codes = read_codes(code_streams, bits, options["layout"] == "packed", count)
    values = to_values(codes, 1 << (bits - 1) if symmetric else 0, scales[cells], offsets, dtype)
    if streams:
        values[read_indices(streams[0])] = streams[1].view(DTYPES[dtype])
    return values


def decode_blocknorm(options, streams, dtype, count):
    row = int(streams[0][:4].view("<u4")[0])
    row *= -(-32 // row)
    block, bits = int(options["block"]), int(options["bits"])
    i = np.arange(count)
    cells = i // row * -(-row // block) + i % row // block
    scales = read_scales(streams[0][4:], dtype)
    exact = streams[2].view(np.float32)
    assert len(exact) == max(1, int(float(options["topk"]) * len(scales)))
    scales[read_indices(streams[1])] = exact
    return to_values(read_codes(streams[3:], bits, True, count), 1 << (bits - 1), scales[cells], np.float32(0), dtype)


def decode_frame(frame):
    """The values of a frame of one tensor codec; checksums are others' business."""
    (header_bytes,) = struct.unpack_from("<H", frame, 6)
    dtype, rank, codec_bytes, block_elements = struct.unpack_from("<BBHI", frame, 8)
    shape = struct.unpack_from(f"<{rank}Q", frame, 16)
    spec = frame[16 + 9 * rank:16 + 9 * rank + codec_bytes].decode()
    name, options = re.fullmatch(r"(\w+)\((.*)\)", spec).groups()
    options = dict(option.split("=") for option in options.split(","))
    dtype = DTYPE_OF_NUMBER[dtype]
    left, at, values = int(np.prod(shape)), header_bytes, []
    while left > 0:
        count = min(left, block_elements)
        (payload_bytes,) = struct.unpack_from("<I", frame, at)
        payload = np.frombuffer(frame, np.uint8, payload_bytes, at + 12)
        at += 12 + payload_bytes
        streams = split(payload, stream_count(name, options))
        decode = {"quant": decode_quant, "blocknorm": decode_blocknorm}[name]
        values.append(decode(options, streams, dtype, count))
        left -= count
    return np.concatenate(values)


def stream_count(name, options):
    codes = 2 if int(options["bits"]) > 8 else 1
    if name == "blocknorm":
        return 3 + codes
    return 1 + (options["symmetric"] == "false") + codes + 2 * (float(options["outliers"]) > 0)


def split(payload, streams):
    sizes = payload[:4 * streams].view("<u4")
    ends = 4 * streams + np.cumsum(sizes, dtype=np.int64)
    assert ends[-1] == len(payload)
    return [payload[end - size:end] for end, size in zip(ends, sizes)]


@pytest.mark.parametrize("spec", [
    "quant(bits=10,per=token)",
    "quant(bits=8,per=block)",
    "quant(bits=2,per=channel,group=64,symmetric=false)",
    "quant(bits=2,per=token,symmetric=false)",
    "quant(bits=7,per=group,group=32,outliers=0.03)",
    "quant(bits=5,per=channel,group=4096,symmetric=false,outliers=0.001,layout=bytes)",
    "quant(bits=12,per=group,group=128,symmetric=false)",
    "quant(bits=11,per=channel,group=128)",
    "blocknorm(block=128,topk=0.02,bits=10)",
    "blocknorm(block=32,topk=0.4,bits=5)",
])
def test_a_decoder_from_the_document_gives_the_same_bits(bin_dir, sample, tmp_path, spec):
    small, back = tmp_path / "small.safetensors", tmp_path / "back.safetensors"
    run_ok(bin_dir, "-input", sample, "-output", small, "-codec", spec)
    run_ok(bin_dir, "-input", small, "-output", back, "-decompress")
    frames, ours = File(small), File(back)
    assert [name for name, *_ in frames.layout] == [name for name, *_ in ours.layout]
    for name, *_ in frames.layout:
        decoded = decode_frame(frames.bytes[name])
        np.testing.assert_array_equal(decoded.view(np.uint16), ours.values(name).view(np.uint16))
