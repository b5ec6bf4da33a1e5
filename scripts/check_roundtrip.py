#!/usr/bin/env python3
"""Checks a round trip of a safetensors file by itself, with nothing but Python's standard library.

usage: check_roundtrip.py INPUT COMPRESSED OUTPUT [--bits 4] [--group 64]

COMPRESSED has to hold one U8 tensor per tensor of INPUT and be smaller than it; OUTPUT has to have INPUT's names,
order, dtypes, shapes and metadata, every value within half a step of its group's scale, and tensors of integers and
other types without values bit for bit.
"""
import argparse
import array
import json
import math
import struct
import sys

# What rounding the decoded value to the dtype may add: half a unit in the last place, relative to the value, and the
# same of subnormal ones, of which only those of 8 bits are coarse. All other types are opaque.
ROUNDING = {"F16": (2.0**-11, 0), "BF16": (2.0**-8, 0), "F32": (2.0**-24, 0), "F8_E4M3": (2.0**-4, 2.0**-10),
            "F8_E5M2": (2.0**-3, 2.0**-17)}


def read(path):
    """Returns (metadata, {name: (dtype, shape, bytes)}) in file order."""
    with open(path, "rb") as file:
        data = file.read()
    (header_size,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + header_size])
    metadata = header.pop("__metadata__", None)
    payload = data[8 + header_size :]
    tensors = {}
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        begin, end = entry["data_offsets"]
        tensors[name] = (entry["dtype"], entry["shape"], payload[begin:end])
    return metadata, tensors


def halves(raw):
    return [value for (value,) in struct.iter_unpack("<e", raw)]


def values(dtype, raw):
    if dtype == "F16":
        return halves(raw)
    if dtype == "F8_E5M2":
        return halves(b"".join(bytes((0, byte)) for byte in raw))
    if dtype == "F8_E4M3":  # sign, exponent and mantissa of a half that is 256 times smaller; no infinities
        shifted = b"".join(struct.pack("<H", (byte & 0x80) << 8 | (byte & 0x7F) << 7) for byte in raw)
        return [math.nan if byte & 0x7F == 0x7F else 256 * value for byte, value in zip(raw, halves(shifted))]
    if dtype == "BF16":
        raw = b"".join(b"\0\0" + raw[i : i + 2] for i in range(0, len(raw), 2))
    result = array.array("f", raw)
    if sys.byteorder == "big":
        result.byteswap()
    return result


def half(value):
    """`value` rounded to FP16, as a scale is stored."""
    return struct.unpack("<e", struct.pack("<e", value))[0]


def worst_step(dtype, original, decoded, bits, group):
    """The largest error in steps of the scale, less what rounding to `dtype` explains."""
    top = 2 ** (bits - 1) - 1
    relative, least = ROUNDING[dtype]
    worst = 0.0
    for begin in range(0, len(original), group):
        before, after = original[begin : begin + group], decoded[begin : begin + group]
        scale = half(max(map(abs, before)) / top)
        for x, y in zip(before, after):
            if math.isnan(y):
                return math.inf
            error = max(0.0, abs(x - y) - max(abs(y) * relative, least))
            if error > 0:
                worst = max(worst, error / scale if scale > 0 else math.inf)
    return worst


def faults(args):
    metadata, before = read(args.input)
    _, packed = read(args.compressed)
    metadata_after, after = read(args.output)
    if metadata_after != metadata:
        yield f"metadata: {metadata} became {metadata_after}"
    for what, other in (("compressed", packed), ("output", after)):
        if list(other) != list(before):
            yield f"{what}: the tensors are {list(other)} instead of {list(before)}"
            return
    worst = 0.0
    for name, (dtype, shape, raw) in before.items():
        if packed[name][0] != "U8" or packed[name][1] != [len(packed[name][2])]:
            yield f"{name}: stored as {packed[name][:2]}, not as one-dimensional U8"
        if after[name][:2] != (dtype, shape):
            yield f"{name}: {(dtype, shape)} became {after[name][:2]}"
            continue
        if dtype not in ROUNDING:
            if after[name][2] != raw:
                yield f"{name}: {dtype} is not the same bit for bit"
            continue
        step = worst_step(dtype, values(dtype, raw), values(dtype, after[name][2]), args.bits, args.group)
        worst = max(worst, step)
        if step > 0.5 + 1e-6:
            yield f"{name}: a value is off by {step:.4f} of its group's scale step"
    size, packed_size = (sum(len(t[2]) for t in tensors.values()) for tensors in (before, packed))
    if packed_size >= size:
        yield f"compressed tensors take {packed_size} bytes, the input's take {size}"
    count = sum(math.prod(shape) for _, shape, _ in before.values())
    print(
        f"{len(before)} tensors, {count} values: names, order, dtypes, shapes and metadata equal; "
        f"largest error {worst:.4f} of a scale step; {size / packed_size:.3f} times smaller"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("input")
    parser.add_argument("compressed")
    parser.add_argument("output")
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--group", type=int, default=64)
    found = list(faults(parser.parse_args()))
    for fault in found:
        print(f"FAILED: {fault}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
