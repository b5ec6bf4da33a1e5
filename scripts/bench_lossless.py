#!/usr/bin/env python3
"""Measures `exact` beside the other lossless chains on real caches: sizes of whole files and of layers 1 and up, single
tensors, tensors of 16 KiB beside the order-0 bound, and its time beside that of `planes|rans` in turns.

usage: bench_lossless.py [--check] [FILE...]     without files: the sample in tests/data

Sizes count frames. Layer 0 is apart because its values depend on the token alone, and so repeat. The bound is the empirical
order-0 entropy of the bytes of 16 KiB, plane by plane, without tables: a plane of n bytes that are noise is some 23 bytes
above it however it is stored. It is compared with payloads and with whole frames. Times are of `kv-compress -sweep`, one
thread, the best of the runs, of the first 2 MiB of tensors that `exact` makes less than 0.3 % smaller than `planes|rans` does:
where matches do not help.

With --check the exit status is 1 where a file or its layers 1 and up are more than 0.3 % larger than by another chain.
"""
import argparse
import json
import math
import pathlib
import struct
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
RANS = "planes(split=auto,delta=auto)|rans"
OTHERS = [RANS, "planes|huffman", "planes|lz4", "planes|zstd(level=1)", "planes|zstd(level=3)",
          *(f"planes(split={split},delta=none)|{coder}" for split in ("bytes", "fields")
            for coder in ("rans", "zstd(level=1)", "zstd(level=3)")), "raw|zstd(level=1)", "raw|zstd(level=3)"]
WIDTHS = {"F16": 2, "BF16": 2, "F32": 4}
SMALL = 16384
TIMED = 2 << 20
FRAME_END, BLOCK_HEAD = 20, 12


def read_tensors(path):
    """{name: (dtype, shape, bytes)}"""
    data = path.read_bytes()
    (size,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8:8 + size])
    header.pop("__metadata__", None)
    return {name: (entry["dtype"], entry["shape"], data[8 + size + entry["data_offsets"][0]:8 + size + entry["data_offsets"][1]])
            for name, entry in header.items()}


def write_tensors(path, tensors):
    header, at = {}, 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(data for _, _, data in tensors.values()))


def run(*command):
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(done.stderr or f"{command[0]} exited with {done.returncode}")
    return done.stdout


def entropy_bytes(plane):
    counts = [plane.count(value) for value in set(plane)]
    return sum(count * math.log2(len(plane) / count) for count in counts) / 8


def order_0_bytes(data, width):
    """Of a value's bytes, or of those of values rotated left by a bit, whichever is less."""
    bits = 8 * width
    words = [int.from_bytes(data[at:at + width], "little") for at in range(0, len(data), width)]
    rotated = [(word << 1 | word >> (bits - 1)) & (1 << bits) - 1 for word in words]
    return min(sum(entropy_bytes(bytes(word >> 8 * plane & 255 for word in each)) for plane in range(width))
               for each in (words, rotated))


class Bench:
    def __init__(self, program, folder):
        self.program, self.folder = program, folder

    def frames(self, path, codec):
        packed = self.folder / "packed"
        run(self.program, "-input", path, "-output", packed, "-codec", codec)
        return {name: data for name, (_, _, data) in read_tensors(packed).items()}

    def sizes(self, path, codec):
        return {name: len(frame) for name, frame in self.frames(path, codec).items()}

    def small(self, tensors):
        """Bound / size for the first 16 KiB of each tensor of layers 1 and up: of all payloads, of the worst, of all frames."""
        cut = {name: (dtype, [1, 1, SMALL // WIDTHS[dtype] // shape[-1], shape[-1]], data[:SMALL])
               for name, (dtype, shape, data) in tensors.items()
               if not name.startswith("layer_0_") and len(data) >= SMALL and SMALL // WIDTHS[dtype] % shape[-1] == 0}
        if not cut:
            return None
        write_tensors(self.folder / "small", cut)
        bounds, payloads, frames = [], [], []
        for name, frame in self.frames(self.folder / "small", "exact").items():
            (head,) = struct.unpack_from("<H", frame, 6)
            bounds.append(order_0_bytes(cut[name][2], WIDTHS[cut[name][0]]))
            payloads.append(len(frame) - head - BLOCK_HEAD - FRAME_END)
            frames.append(len(frame))
        worst = min(bound / payload for bound, payload in zip(bounds, payloads))
        return sum(bounds) / sum(payloads), worst, sum(bounds) / sum(frames)

    def speed(self, tensors, runs):
        """encode and decode, of `planes|rans` in the same runs."""
        write_tensors(self.folder / "plain", tensors)
        best = {}
        for _ in range(runs):
            for row in json.loads(run(self.program, "-sweep", "-input", self.folder / "plain"))["specs"]:
                best.setdefault(row["spec"], []).append((row["encode_gb_per_s"], row["decode_gb_per_s"]))
        exact, rans = ([max(way) for way in zip(*best[spec])] for spec in ("exact", RANS))
        return exact[0] / rans[0], exact[1] / rans[1]


def measure(bench, path, runs):
    """Prints a file's row; whether it is as small as it is to be."""
    tensors = read_tensors(path)
    exact = bench.sizes(path, "exact")
    others = {codec: bench.sizes(path, codec) for codec in OTHERS}
    original = {name: len(data) for name, (_, _, data) in tensors.items()}
    upper = [name for name in tensors if not name.startswith("layer_0_")]
    met, cells = True, []
    for names in (upper, list(tensors)):
        total = sum(original[name] for name in names)
        best = min(sum(sizes[name] for name in names) for sizes in others.values())
        own, rans = sum(exact[name] for name in names), sum(others[RANS][name] for name in names)
        met = met and own <= 1.003 * best
        cells.append(f"{total / rans:.4f}, {total / best:.4f}, {total / own:.4f}")
    worst = min((min(sizes[name] for sizes in others.values()) / exact[name], name) for name in tensors)
    cells.append(f"{worst[0]:.4f} {worst[1]}")
    small = bench.small(tensors)
    cells.append("" if small is None else f"{small[0]:.4f}, {small[1]:.4f}; {small[2]:.4f}")
    alike = {}
    for name in tensors:
        if exact[name] > 0.997 * others[RANS][name] and sum(len(data) for _, _, data in alike.values()) < TIMED:
            alike[name] = tensors[name]
    cells.append("" if not alike or runs == 0 else "{:.2f} / {:.2f}".format(*bench.speed(alike, runs)))
    print(f"| {path.name} | {' | '.join(cells)} |", flush=True)
    return met


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--program", default=str(ROOT / "bin" / "kv-compress"))
    parser.add_argument("--runs", type=int, default=1, help="sweeps for the times; 0: none")
    parser.add_argument("files", nargs="*", type=pathlib.Path,
                        default=[ROOT / "tests" / "data" / "smollm2.256.bf16.safetensors"])
    args = parser.parse_args()
    print("| cache | layers 1 and up: planes\\|rans, best other, exact | whole file | worst tensor: best other / exact "
          "| 16 KiB: bound / payload, worst; bound / frame | encode / decode of planes\\|rans |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(args.program, pathlib.Path(folder))
        met = [measure(bench, path, args.runs) for path in args.files]
    return 1 if args.check and not all(met) else 0


if __name__ == "__main__":
    sys.exit(main())
