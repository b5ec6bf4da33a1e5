#!/usr/bin/env python3
"""Compresses real caches with every lossless and entropy-coded chain beside zstd on the raw bytes: what the codecs make of
a file, and how fast, in one run of `kv-compress -sweep`.

usage: bench_codecs.py [--check] [--output FILE.json] [FILE...]     without files: the sample in tests/data

With --check the exit status is 1 when a target is missed.
"""
import argparse
import json
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
SPECS = [
    "raw|zstd(level=3)", "raw|zstd(level=19)", "raw|rans", "exact",
    "planes(split=bytes,delta=none)|rans", "planes(split=auto,delta=auto)|rans", "planes(split=auto,delta=auto)|huffman",
    "planes(split=auto,delta=auto)|arithmetic", "planes(split=auto,delta=auto)|cabac",
    "planes(split=auto,delta=auto)|lz4(level=1)", "int4(group=64)", "int4(group=64)|rans", "int4(group=64)|zstd(level=1)",
    "int8(group=64)", "int8(group=64)|rans",
    "quant(bits=10,per=block,group=64,symmetric=true,outliers=0,layout=packed)|rans",
    "kv4", "kv3", "kv2", "rotated(bits=4)", "rotated(bits=3)", "blocknorm(block=128,topk=0.02,bits=10)", "bounded(min_snr=40,max_error=0,min_cosine=0)|rans",
    "transform(bits=2)", "transform(bits=3)", "transform(bits=4)", "transform(bits=3,trellis=false)",
]
LOSSLESS, FAST = SPECS[3:5]


def sweep(program, path):
    done = subprocess.run([program, "-sweep", "-input", path], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(done.stderr.splitlines()[-1] if done.stderr else f"{program} exited with {done.returncode}")
    return json.loads(done.stdout)


def table(result):
    by_spec = {row["spec"]: row for row in result["specs"]}
    memcpy = result["memcpy_gb_per_s"]
    print(f"{pathlib.Path(result['input']).name}: {result['original_size_bytes'] / 1e6:.1f} MB, "
          f"memcpy {memcpy:.1f} GB/s, one thread")
    print(f"{'':76} {'ratio':>6} {'SNR dB':>7} {'encode':>7} {'of memcpy':>9} {'decode':>7} {'of memcpy':>9}")
    for spec in SPECS:
        row = by_spec.get(spec)
        if row is None:
            continue
        snr = "" if row["snr_db"] is None else f"{row['snr_db']:.1f}"
        encode, decode = row["encode_gb_per_s"], row["decode_gb_per_s"]
        print(f"{spec:76} {row['compression_ratio']:6.3f} {snr:>7} {encode:7.2f} {encode / memcpy:9.2f} "
              f"{decode:7.2f} {decode / memcpy:9.2f}")
    return by_spec


def targets(by_spec):
    """(what, whether it is met): size beside general compressors on the same bytes in the same run."""
    ratio = {spec: row["compression_ratio"] for spec, row in by_spec.items()}
    best = max(ratio[LOSSLESS], ratio[FAST])
    for level in (3, 19):
        peer = f"raw|zstd(level={level})"
        if peer in ratio:
            yield f"lossless {best:.3f} above {peer} {ratio[peer]:.3f}", best > ratio[peer]
    huffman = ratio["planes(split=auto,delta=auto)|huffman"]
    for coder in ("arithmetic", "cabac"):
        own = ratio[f"planes(split=auto,delta=auto)|{coder}"]
        yield f"{coder} {own:.3f} at or above huffman {huffman:.3f}", own >= huffman
    yield (f"int4|rans {ratio['int4(group=64)|rans']:.3f} above int4 {ratio['int4(group=64)']:.3f}",
           ratio["int4(group=64)|rans"] > ratio["int4(group=64)"])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--output", type=pathlib.Path, help="of the specs above, the results of the sweeps as JSON")
    parser.add_argument("--program", default=str(ROOT / "bin" / "kv-compress"))
    parser.add_argument("files", nargs="*", default=[str(ROOT / "tests" / "data" / "smollm2.256.bf16.safetensors")])
    args = parser.parse_args()
    missed, results = False, []
    for path in args.files:
        results.append(sweep(args.program, path))
        for what, met in targets(table(results[-1])):
            missed = missed or not met
            print(f"{'met   ' if met else 'MISSED'} {what}")
        print()
    if args.output:
        for result in results:
            result["specs"] = [row for row in result["specs"] if row["spec"] in SPECS]
        args.output.write_text(json.dumps(results) + "\n")
    return 1 if args.check and missed else 0


if __name__ == "__main__":
    sys.exit(main())
