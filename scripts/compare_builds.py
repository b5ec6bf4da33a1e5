#!/usr/bin/env python3
"""Whether two builds write the same bytes: for a change that must not alter any.

Compresses a corpus (every codec that the builds list, every dtype, odd shapes, empty tensors, NaN where it is taken)
with both, compares files, messages and exit codes, decodes each file with the other build, and has each
command line work through the other build's daemon. Given files are compressed with every spec, too.

Files and whole numbers must be equal. A figure of a message, such as an RMSE, which adds up many values, may differ by
1e-6 of itself: two builds need not add in the same order, some in single precision.

usage: compare_builds.py OLD_BIN_DIR NEW_BIN_DIR [FILE...]
"""

import json
import math
import pathlib
import random
import re
import struct
import subprocess
import sys
import tempfile
import time

SPECS = [
    "int2(group=32)", "int3(group=64)", "int4", "int4(group=32)", "int4(group=128)|rans", "int5", "int6(group=128)", "int8",
    "int4|zstd(level=1)", "int4|huffman", "int8(group=32)|lz4(level=9)", "raw", "raw|zstd", "raw|arithmetic", "raw|cabac",
    "raw|huffman", "raw|rans", "raw|stored", "raw|lz4", "raw|lz4(level=-8)", "planes|rans", "planes(split=fields,delta=token)",
    "planes(split=bytes,delta=xor)|huffman", "planes(split=fields,delta=none)|zstd(level=-1)|rans",
    "clamp|int4", "clamp(limit=2)|int8", "clip(percentile=99)|int4", "clip(percentile=50)|raw", "clip_range|int4",
    "clip_sigma|int8", "truncate|planes|rans", "clamp|cast|planes|rans", "cast(to=bf16)|raw", "sparse|int4",
    "sparse(ratio=0.9)|int8(group=32)|zstd(level=1)", "sparse(ratio=0.2)|planes(split=bytes,delta=token)",
    "quant(bits=10,per=token)", "quant(bits=8,per=block)|rans", "quant(bits=2,per=channel,symmetric=false)",
    "quant(bits=3,per=group,group=128,symmetric=false,outliers=0.01)", "quant(bits=9,per=channel,group=32,layout=bytes)",
    "quant(bits=12,per=group,group=512,outliers=0.005)", "rotated", "rotated(bits=3)|rans", "rotated(bits=4,sinks=4)", "rotated(bits=4,mean=channel,theta=10000)", "blocknorm", "blocknorm(block=32,topk=0.5,bits=4)|rans",
    "bounded(min_snr=30)", "bounded(min_snr=20,max_error=0.05,min_cosine=0.999)|zstd(level=1)",
    "transform(bits=3)", "transform(snr=20,theta=10000,rotary=interleaved)", "transform(step=0.1,trellis=false)|zstd(level=1)",
    "transform(bits=3,theta=500000,scaling=llama3,factor=8)", "transform(step=0.1,theta=1000000,scaling=yarn,factor=4,original=32768)",
    "rotated(mean=channel,theta=10000,scaling=linear,factor=2.5)",
    "exact", "planes(split=coded)|smallest", "int4|smallest", "lossless", "lossless-fast", "near-lossless", "mixed", "kv3", "kv(bits=2.5)", "int4|rans", "clamp|sparse(ratio=0.3)|quant(bits=4)|rans",
]
HEADS_SPECS = ["heads(0-1:int8,2-:int4|rans)", "heads(0:raw,1-:planes|zstd(level=1))",
               "heads(0:int2(group=32),1-:bounded(min_snr=30))|zstd(level=1)"]
NAN_SPECS = ["raw", "fallback|int4", "planes|rans", "clamp|int4", "int4", "quant(bits=4)", "bounded(min_snr=20)", "fallback|transform(bits=3)"]
TOLERANCE = 1e-6
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?")
WHOLE = re.compile(r"-?\d+")
SHAPES = [[1, 3, 70, 24], [1, 2, 256, 64], [2, 5, 33, 40], [1, 4, 90, 32], [1, 2, 130, 64]]
ODD_SHAPES = [[], [0, 4], [1], [127], [129], [7, 131], [3, 5, 11, 13], [140_001]]


def f8_e4m3(x):
    """By the bits of a half that is 256 times smaller; there are no infinities."""
    if not math.isfinite(x):
        return b"\x7f"
    (bits,) = struct.unpack("<H", struct.pack("<e", x / 256))
    return bytes([bits >> 8 & 0x80 | bits >> 7 & 0x7F])


DTYPES = {"F16": lambda x: struct.pack("<e", x), "BF16": lambda x: struct.pack("<f", x)[2:], "F32": lambda x: struct.pack("<f", x),
          "F8_E4M3": f8_e4m3, "F8_E5M2": lambda x: struct.pack("<e", x)[1:]}
OPAQUE = {"U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64, "BOOL": 8, "F64": 64, "C64": 64,
          "F8_E8M0": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8}  # bits
OPAQUE_SHAPES = [[0, 4], [12], [3, 700, 16]]


def values(rng, count):
    """Some with outliers, some that repeat, some constant."""
    kind = rng.randrange(3)
    for i in range(count):
        if kind == 0:
            yield rng.gauss(0, 1) * (40 if rng.random() < 0.002 else 1)
        else:
            yield float(i % 17) - 8 if kind == 1 else 0.375


def write_file(path, tensors, seed, odd=lambda x: x):
    rng, header, body, at = random.Random(seed), {"__metadata__": {"made": "by seed"}}, [], 0
    for name, dtype, shape in tensors:
        count = math.prod(shape)
        if dtype in OPAQUE:
            data = bytes(rng.choices(b"\x00\x00\x01\x7f\xff", k=count * OPAQUE[dtype] // 8))
        else:
            data = b"".join(DTYPES[dtype](odd(x)) for x in values(rng, count))
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(data)]}
        body.append(data)
        at += len(data)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(body))
    return path


def make_corpus(folder):
    caches = [(f"layer_{i}_{kind}", dtype, shape) for i, (dtype, shape) in enumerate(zip(DTYPES, SHAPES, strict=True))
              for kind in ("key", "value")]
    odd = [(f"odd_{dtype}_{i}", dtype, shape) for dtypes, shapes in ((DTYPES, ODD_SHAPES), (OPAQUE, OPAQUE_SHAPES))
           for dtype in dtypes for i, shape in enumerate(shapes)]
    rng = random.Random(7)
    return (write_file(folder / "caches.safetensors", caches, 1), write_file(folder / "odd.safetensors", odd, 2),
            write_file(folder / "nan.safetensors", odd, 3, lambda x: x if rng.random() < 0.98 else rng.choice([float("nan"), float("inf")])))


def run(program, *args):
    result = subprocess.run([program, *map(str, args)], capture_output=True, text=True)
    # Times, paths and how bytes travelled are a run's own.
    text = re.sub(r'^.*("[a-z_]*(time|seconds|_ms|speed|throughput|mbps)[a-z_]*"|transport).*$', "", result.stdout + result.stderr, flags=re.M)
    return result.returncode, re.sub(r"\S*\.(old|new)\b", "OUT", text)


def same_text(old, new):
    """Whether messages are equal, but for the last digits of figures."""
    return NUMBER.split(old) == NUMBER.split(new) and all(map(same_number, NUMBER.findall(old), NUMBER.findall(new)))


def same_number(old, new):
    are_whole = WHOLE.fullmatch(old) and WHOLE.fullmatch(new)
    return old == new if are_whole else math.isclose(float(old), float(new), rel_tol=TOLERANCE)


def same_outcome(old, new):
    """Of ((exit code, message), bytes of the file)."""
    return (old[0][0], old[1]) == (new[0][0], new[1]) and same_text(old[0][1], new[0][1])


class Daemon:
    def __init__(self, bin_dir, folder):
        ports = folder / "ports.json"
        ports.unlink(missing_ok=True)
        self._process = subprocess.Popen([bin_dir / "kv-compressd", "--listen", "127.0.0.1:0", "--metrics-listen", "",
                                          "--shared-memory", "kvcompress-", "--log-level", "error", "--port-file", ports])
        while not ports.exists():
            if self._process.poll() is not None:
                sys.exit("compare_builds.py: a daemon did not start")
            time.sleep(0.05)
        self.address = json.loads(ports.read_text())["listen"][0]

    def __enter__(self):
        return self.address

    def __exit__(self, *_):
        self._process.terminate()
        self._process.wait()


def main():
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    old, new = (pathlib.Path(argument).resolve() for argument in sys.argv[1:3])
    faults = []
    cases = refused = 0
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        caches, odd, nan = make_corpus(folder)
        known = set(re.findall(r"^  ([a-z0-9]+) +\S", run(new / "kv-compress", "-codec", "help")[1].split("A codec spec")[1], re.M))
        used = set(re.findall(r"[a-z][a-z0-9]*", " ".join(SPECS + HEADS_SPECS + NAN_SPECS)))
        faults += [f"no spec of the corpus has {codec}" for codec in sorted(known - used)]
        work = [(file, spec) for file in (caches, odd, *map(pathlib.Path, sys.argv[3:])) for spec in SPECS]
        work += [(caches, spec) for spec in HEADS_SPECS] + [(nan, spec) for spec in NAN_SPECS]
        with Daemon(old, folder) as old_daemon, Daemon(new, folder) as new_daemon:
            for file, spec in work:
                cases += 1
                outcomes = {}
                for tag, build, daemon in (("old", old, new_daemon), ("new", new, old_daemon)):
                    out, far = folder / f"x.{tag}", folder / f"y.{tag}"
                    for path in (out, far):
                        path.unlink(missing_ok=True)
                    outcome = run(build / "kv-compress", "-input", file, "-output", out, "-codec", spec)
                    remote = run(build / "kv-compress", "-input", file, "-output", far, "-codec", spec, "-server", daemon)
                    read = lambda path: path.read_bytes() if path.exists() else None
                    if remote[0] != outcome[0] or read(out) != read(far):
                        faults.append(f"{file.name} {spec}: {tag} and the other build's daemon differ: {remote}")
                    outcomes[tag] = (outcome, read(out))
                if not same_outcome(outcomes["old"], outcomes["new"]):
                    faults.append(f"{file.name} {spec}: {outcomes['old'][0]} / {outcomes['new'][0]}")
                refused += outcomes["old"][1] is None
                if outcomes["old"][1] is not None and outcomes["new"][1] is not None:
                    back = [folder / "a.old", folder / "b.new"]
                    run(old / "kv-compress", "-decompress", "-input", folder / "x.new", "-output", back[0])
                    run(new / "kv-compress", "-decompress", "-input", folder / "x.old", "-output", back[1], "-server", old_daemon)
                    if back[0].read_bytes() != back[1].read_bytes():
                        faults.append(f"{file.name} {spec}: decoded values differ")
    print("\n".join(faults), file=sys.stderr)
    print(f"{cases} files of {len(SPECS) + len(HEADS_SPECS)} specs compared ({refused} of them refused), {len(faults)} differ")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
