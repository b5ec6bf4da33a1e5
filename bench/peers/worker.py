"""One contestant in a process of its own: reads a line for each turn, and answers each with a line of JSON.

usage: worker.py NAME FILE.safetensors

describe           version, bytes of the tensors and of what they become, and the SNR of what comes back (none: the same
                   bits)
encode SECONDS     codes all tensors again and again for at least that long: bytes of tensors, and seconds of CPU, which
                   other work on the machine does not add to
decode SECONDS     the same of decoding
"""

import json
import math
import struct
import sys
import time

import numpy as np
from contestants import CONTESTANTS


def read_tensors(path):
    """The BF16 tensors of a safetensors file of four axes, as bits."""
    with open(path, "rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(size))
        data = file.read()
    tensors = []
    for name, entry in header.items():
        if name != "__metadata__" and entry["dtype"] == "BF16" and len(entry["shape"]) == 4:
            begin, end = entry["data_offsets"]
            tensors.append(np.frombuffer(bytearray(data[begin:end]), np.uint16).reshape(entry["shape"]))
    if not tensors:
        sys.exit(f"{path} holds no BF16 tensor of four axes")
    return tensors


def values(bits):
    return (np.asarray(bits, np.uint32).reshape(-1) << 16).view(np.float32).astype(np.float64)


def describe(codec, tensors, coded, exact):
    errors = signal = 0.0
    for tensor, one in zip(tensors, coded, strict=True):
        back = np.asarray(codec.decode(one, tensor))
        assert back.size == tensor.size, f"{back.size} values came back of {tensor.size}"
        if exact:
            assert np.array_equal(back.reshape(tensor.shape), tensor), (
                "a codec that says it is lossless changed a value"
            )
        signal += float(np.sum(values(tensor) ** 2))
        errors += float(np.sum((values(tensor) - values(back)) ** 2))
    return {
        "version": codec.version,
        "tensor_bytes": sum(tensor.nbytes for tensor in tensors),
        "coded_bytes": sum(codec.size(one) for one in coded),
        "snr_db": None if exact else 10 * math.log10(signal / errors),
    }


def turn(work, size, seconds):
    work()  # warms up
    started, moved = time.process_time(), 0
    while (taken := time.process_time() - started) < seconds or moved == 0:
        work()
        moved += size
    return {"bytes": moved, "seconds": taken}


def main():
    name, path = sys.argv[1:]
    contestant, tensors = CONTESTANTS[name], read_tensors(path)
    answers, sys.stdout = sys.stdout, sys.stderr  # packages that print do not answer for us
    codec = contestant.make()
    coded = [codec.encode(tensor) for tensor in tensors]
    size = sum(tensor.nbytes for tensor in tensors)

    def encode():
        for tensor in tensors:
            codec.encode(tensor)

    def decode():
        for one, tensor in zip(coded, tensors, strict=True):
            codec.decode(one, tensor)

    turns = {
        "describe": lambda: describe(codec, tensors, coded, contestant.exact),
        "encode": lambda seconds: turn(encode, size, seconds),
        "decode": lambda seconds: turn(decode, size, seconds),
    }
    for line in sys.stdin:
        words = line.split()
        print(json.dumps(turns[words[0]](*map(float, words[1:]))), file=answers, flush=True)


if __name__ == "__main__":
    main()
