#!/usr/bin/env python3
"""Times bin/kv-compress, file to file, on a large KV cache made of the repository's sample.

usage: bench_files.py FOLDER HOST:PORT [--mebibytes 256] [--runs 5] [--output FILE.json]

The file has 32 layers of BF16 keys and values and lies in the page cache. GB/s are 10^9 bytes of BF16 a second of wall
time, start-up, metrics, sync and rename included; the median of the runs counts.
"""
import argparse
import json
import os
import shutil
import statistics
import struct
import subprocess
import time

SAMPLE = "tests/data/smollm2.256.bf16.safetensors"
LAYERS = 32


def make_input(path, size):
    """Tiles the sample's tensors to `size` bytes of tensors; returns the bytes really written."""
    with open(SAMPLE, "rb") as file:
        data = file.read()
    (header_size,) = struct.unpack_from("<Q", data)
    sample = json.loads(data[8 : 8 + header_size])
    sample.pop("__metadata__", None)
    names = sorted(sample)
    begin, end = sample[names[0]]["data_offsets"]
    batch, heads, tokens, dim = sample[names[0]]["shape"]
    copies = max(1, size // (2 * LAYERS * (end - begin)))
    header, chunks = {}, []
    for tensor in range(2 * LAYERS):
        name = names[tensor % len(names)]  # a key and a value in turn
        begin, end = sample[name]["data_offsets"]
        offset = len(chunks) * copies * (end - begin)
        header[f"layer_{tensor // 2}_{name.rpartition('_')[2]}"] = {
            "dtype": sample[name]["dtype"],
            "shape": [batch * copies, heads, tokens, dim],
            "data_offsets": [offset, offset + copies * (end - begin)],
        }
        chunks.append(data[8 + header_size + begin : 8 + header_size + end] * copies)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for chunk in chunks:
            file.write(chunk)
    return os.path.getsize(path)


def seconds_of(runs, work):
    times = []
    for _ in range(runs + 1):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return times[1:]  # the first warms up


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("address")
    parser.add_argument("--mebibytes", type=int, default=256)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--output")
    args = parser.parse_args()
    original, small, back = (os.path.join(args.folder, name) for name in ("in", "small", "back"))
    size = make_input(original, args.mebibytes << 20)

    def run(*flags):
        subprocess.run(["bin/kv-compress", *flags], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    rows = [("cp", lambda: shutil.copyfile(original, back))]
    for name, server in (("embedded", []), ("daemon", ["-server", args.address])):
        compress = [*server, "-input", original, "-output", small]
        decompress = [*server, "-decompress", "-input", small, "-output", back]
        rows.append((f"kv-compress, {name}", lambda flags=compress: run(*flags)))
        rows.append((f"kv-compress -decompress, {name}", lambda flags=decompress: run(*flags)))
    print(f"\n{size / 1e6:.0f} MB of BF16, file to file, {os.cpu_count()} cores")
    print(f"{'':36} {'s':>7} {'GB/s':>7} {'of cp':>7}")
    copy, results = None, []
    for name, work in rows:
        times = seconds_of(args.runs, work)
        seconds = statistics.median(times)
        copy = copy or seconds
        results.append({"name": name, "gb_per_s": [size / each / 1e9 for each in times]})
        print(f"{name:36} {seconds:7.3f} {size / seconds / 1e9:7.2f} {copy / seconds:7.2f}")
    if args.output:
        with open(args.output, "w") as file:
            json.dump({"bytes": size, "rows": results}, file)


if __name__ == "__main__":
    main()
