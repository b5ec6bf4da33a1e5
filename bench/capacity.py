#!/usr/bin/env python3
"""What compressing caches costs a node, and what it saves: how many cores each codec needs to fill a link, and what the
link is worth then. Everything is linear in figures that were measured on one machine.

usage: capacity.py collect FOLDER            what the model needs of a run's codecs.json, kernels.json and scale.json, as JSON
                                             (a codec's speed is the slower of a real cache's and of values from memory)
       capacity.py tables FILE [options]     the tables of docs/capacity.md, from that JSON; docs/capacity.json is one
"""

import argparse
import json
import math
import pathlib
import sys

WAYS = ("encode", "decode")
CODECS = [
    "exact",
    "int8(group=64)",
    "int8(group=64)|rans",
    "int4(group=64)",
    "int4(group=64)|rans",
    "int4(group=64)|zstd(level=1)",
    "rotated(bits=4)",
    "rotated(bits=3)",
    "kv4",
    "kv3",
    "kv2",
]
MEASURED_WITH = "int4(group=64)"  # the codec of scale.json
LARGE = 16 << 20  # bytes of tensors whose cost a byte does not depend on their size


def collect(folder):
    swept, kernels, scale = (
        json.loads((folder / f"{name}.json").read_text()) for name in ("codecs", "kernels", "scale")
    )
    by_spec = {row["spec"]: row for row in swept[0]["specs"]}
    chains = speeds(kernels)
    codecs = {
        spec: {
            "ratio": by_spec[spec]["compression_ratio"],
            **{
                f"{way}_gb_per_s": min(by_spec[spec][f"{way}_gb_per_s"], chains.get((way, spec), math.inf))
                for way in WAYS
            },
        }
        for spec in CODECS
    }
    return {
        "machine": {key: scale["machine"][key] for key in ("cpu", "cores", "daemon")},
        "codecs": codecs,
        "moving_s_per_gb": {"in the process": 0.0, **moving(scale["cells"], codecs[MEASURED_WITH]["encode_gb_per_s"])},
    }


def speeds(kernels):
    """GB/s of the chains that the benchmark of kernels takes block by block from memory, by direction and spec: the best
    repetition, which others on the machine disturbed least."""
    found = {}
    for run in kernels["benchmarks"]:
        way, _, spec = run["run_name"].removesuffix("/real_time").partition(" ")
        if run.get("run_type") == "iteration" and way in WAYS:
            found[way, spec] = max(found.get((way, spec), 0), run["bytes_per_second"] / 1e9)
    return found


def moving(cells, encode_gb_per_s):
    """CPU seconds that client and daemon take for a GB of tensors besides the codec, by path: the median of the cells of
    large tensors."""
    found = {}
    for cell in cells:
        if cell["tensor_bytes"] >= LARGE:
            cost = cell["client_s_per_gb"] + cell["server_s_per_gb"] - 1 / encode_gb_per_s
            found.setdefault(cell["path"], []).append(max(0.0, cost))
    return {path: sorted(costs)[len(costs) // 2] for path, costs in found.items()}


def cores_to_fill(link, ratio, speed, cost):
    """Cores that keep a link of `link` GB/s full of compressed bytes, at `speed` GB/s of tensors a core and `cost` CPU
    seconds a GB for moving them."""
    return link * ratio * (1 / speed + cost)


def gain(link, ratio, speed, cost, cores):
    """How many times as fast tensors cross the link as raw: `ratio` where the cores suffice, below 1 where it does not
    pay."""
    return min(ratio, cores / (1 / speed + cost) / link)


def pays_below(speed, cost, cores):
    """GB/s of the link above which raw tensors are faster, however well the codec compresses."""
    return cores / (1 / speed + cost)


def short(value):
    """One decimal where the next whole number is far."""
    return f"{value:.0f}" if value >= 10 else f"{value:.1f}"


def markdown(header, rows):
    return "\n".join(f"| {' | '.join(row)} |" for row in [header, ["---"] * len(header), *rows]) + "\n"


def cell_name(spec):
    return "`" + spec.replace("|", "\\|") + "`"


def table(measured, path, way, link, budgets):
    """Of one direction, `encode` or `decode`, on one path: rows of codecs, fastest first."""
    cost = measured["moving_s_per_gb"][path]
    header = ["codec", "ratio", "GB/s a core", "cores to fill it", "GB/s then"]
    header += [f"{cores} core{'s' if cores > 1 else ''}" for cores in budgets] + [f"pays below, {budgets[-1]} cores"]
    rows = []
    for spec, codec in sorted(measured["codecs"].items(), key=lambda item: -item[1][f"{way}_gb_per_s"]):
        speed, ratio = codec[f"{way}_gb_per_s"], codec["ratio"]
        row = [cell_name(spec), f"{ratio:.2f}", f"{1 / (1 / speed + cost):.2f}"]
        row += [short(cores_to_fill(link, ratio, speed, cost)), short(ratio * link)]
        row += [f"{gain(link, ratio, speed, cost, cores):.2f}" for cores in budgets]
        rows.append([*row, f"{8 * pays_below(speed, cost, budgets[-1]):.0f} Gb/s"])
    return markdown(header, rows)


def moving_table(measured):
    rows = [[path, f"{cost:.2f}"] for path, cost in measured["moving_s_per_gb"].items()]
    return markdown(["path", "CPU s/GB besides the codec, client and daemon"], rows)


def tables(measured, link_gbit, budgets, path):
    link = link_gbit / 8
    facts = measured["machine"]
    yield f"Measured on {facts['cpu']}, {facts['cores']} cores, with {facts['daemon']}.\n\n" + moving_table(measured)
    for way, verb in (("encode", "Storing"), ("decode", "Loading")):
        yield f"{verb} over {link_gbit} Gb/s, {path}:\n\n" + table(measured, path, way, link, budgets)


def positive(text):
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


def numbers(text):
    return [positive(word) for word in text.split(",")]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["collect", "tables"])
    parser.add_argument("at", type=pathlib.Path, help="the folder of a run, or the file that `collect` has made of one")
    parser.add_argument("--link-gbit", type=positive, default=200, help="Gb/s, a whole number")
    parser.add_argument("--cores", type=numbers, default=[8, 16, 32, 64], help="budgets, with commas: 8,16,32,64")
    parser.add_argument(
        "--path", default="shared memory", help="how tensors reach the codec: `in the process`, `unix socket`, `shared memory`"
    )
    args = parser.parse_args()
    try:
        if args.what == "collect":
            print(json.dumps(collect(args.at), indent=1))
            return
        measured = json.loads(args.at.read_text())
        paths = measured["moving_s_per_gb"]
        if args.path not in paths:
            parser.error(f"{args.at} has no path {args.path!r}; it has: {', '.join(paths)}")
        text = "\n".join(tables(measured, args.link_gbit, args.cores, args.path))
    except OSError as error:
        parser.error(f"{error.filename}: {error.strerror}")
    except (ValueError, TypeError, LookupError) as error:
        parser.error(f"{args.at} is nothing that `{args.what}` reads: {type(error).__name__}: {error}")
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
