"""What the tests of the command line share: running it, and reading files without any code of this project."""

import itertools
import json
import os
import struct
import subprocess

import ml_dtypes
import numpy as np

DTYPES = {"F16": np.dtype(np.float16), "BF16": np.dtype(ml_dtypes.bfloat16), "F32": np.dtype(np.float32),
          "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn), "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2)}


def environment(**changes):
    """The tests' own environment, which must not choose a daemon."""
    return {**{key: value for key, value in os.environ.items() if key != "KV_COMPRESS_SERVER"}, **changes}


def run(bin_dir, *args, env=None, **options):
    return subprocess.run([bin_dir / "kv-compress", *map(str, args)], capture_output=True, text=True, timeout=100,
                          env=environment(**(env or {})), **options)


def run_ok(bin_dir, *args, **options):
    """The JSON of a run that must succeed."""
    done = run(bin_dir, *args, **options)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def start(bin_dir, *args, **options):
    return subprocess.Popen([bin_dir / "kv-compress", *map(str, args)],
                            **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": environment(), **options})


class File:
    """A safetensors file, read by the letter of the format."""

    def __init__(self, path):
        data = path.read_bytes()
        (length,) = struct.unpack("<Q", data[:8])
        header = json.loads(data[8:8 + length])
        self.metadata = header.pop("__metadata__", None)
        self.entries = sorted(header.items(), key=lambda item: item[1]["data_offsets"])
        self.layout = [(name, entry["dtype"], entry["shape"]) for name, entry in self.entries]
        self.bytes = {name: data[8 + length:][slice(*entry["data_offsets"])] for name, entry in self.entries}

    def values(self, name):
        """The tensor in its own dtype, flat."""
        return np.frombuffer(self.bytes[name], DTYPES[dict(self.entries)[name]["dtype"]])


def write_file(path, tensors, metadata=None):
    """Writes {name: array} in this order."""
    names = {dtype: name for name, dtype in DTYPES.items()}
    dtype_of = {name: names.get(array.dtype, {"int64": "I64"}.get(str(array.dtype))) for name, array in tensors.items()}
    return write_bytes(path, {name: (dtype_of[name], list(array.shape), array.tobytes())
                              for name, array in tensors.items()}, metadata)


def write_layers(path, source, *numbers, dtype=None):
    """Writes the layers of a cache, in turn and from the first again, as layers of these numbers; in its dtype, or in this one."""
    file = File(source)
    layers = dict.fromkeys(name.rpartition("_")[0] for name, _ in file.entries)
    tensors = {}
    for number, layer in zip(numbers, itertools.cycle(layers)):
        for kind in ("key", "value"):
            values, shape = file.values(f"{layer}_{kind}"), dict(file.entries)[f"{layer}_{kind}"]["shape"]
            tensors[f"layer_{number}_{kind}"] = values.astype(dtype or values.dtype).reshape(shape)
    return write_file(path, tensors, file.metadata)


def write_bytes(path, tensors, metadata=None):
    """Writes {name: (dtype, shape, bytes)} in this order."""
    header, data = {}, b""
    if metadata is not None:
        header["__metadata__"] = metadata
    for name, (dtype, shape, raw) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path
