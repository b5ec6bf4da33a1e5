"""What a run of the benchmarks has measured, in one form, whichever program measured it.

A run is a dictionary, as it stands in results.json:

    machine     facts of the machine and of the moment
    sections    of each: id, title, text, unit, columns, reference (name of the row that others stand beside, or none), rows
    targets     ratios that are promised: what, value, wanted, met (of the value alone), verdict (verdicts.py), and why
                where it is `not judged`
    disturbances    why the machine was not quiet, where it was not
    absent      what did not take part: name and why

A row has a name, a note where there is something to say of it, and a cell for each column that it has something in:
value, and low and high where the program measured more than once. Cells of columns that are no speeds (ratio, SNR) have a
value alone. A target that counts chains names them.
"""

import json
import re
import statistics

import targets

SPEEDS = ("encode", "decode")
SIZES = ("ratio", "SNR dB", "bytes")  # columns that no noise changes
# The daemon's user CPU, by column what bench_report.py calls it: differences, which noise changes by more than they are.
OUTSIDE = {
    "outside codec, CPU s/GB": "outside_codec_s_per_gb",
    "outside codec and gRPC, CPU s/GB": "outside_codec_and_grpc_s_per_gb",
}


def cell(values):
    """The median of repetitions, and their extremes."""
    values = list(values)
    if len(values) == 1:
        return {"value": values[0]}
    return {"value": statistics.median(values), "low": min(values), "high": max(values)}


def section(name, title, text, unit, columns, rows, reference=None):
    """Bars are drawn of all columns that are speeds or times, unless the section says other ones."""
    bars = [column for column in columns if column not in SIZES and "CPU" not in column]
    return {
        "bars": bars,
        "id": name,
        "title": title,
        "text": text,
        "unit": unit,
        "columns": columns,
        "reference": reference,
        "rows": rows,
    }


def by_name(row):
    """As a reader looks for it: numbers in a name count as numbers."""
    return [(int(word), "") if word.isdecimal() else (0, word) for word in re.split(r"(\d+)", row["name"])]


def by_class(row):
    """Chains that begin with the same codec together, and the fastest of them first."""
    return re.split(r"[(| ]", row["name"])[0], -row["cells"].get("encode", {"value": 0})["value"]


def kernels(raw):
    """Of Google Benchmark's JSON, whose order is random: rows by codec chain with both directions, and the kernels alone."""
    runs = {}
    for run in raw["benchmarks"]:
        if run.get("run_type") == "iteration" and not run.get("error_occurred"):
            runs.setdefault(run["run_name"].split("/")[0], []).append(run["bytes_per_second"] / 1e9)
    chains, alone = {}, []
    for name, speeds in runs.items():
        direction, _, spec = name.partition(" ")
        if direction in SPEEDS:
            chains.setdefault(spec, {})[direction] = cell(speeds)
        else:
            alone.append({"name": name, "cells": {"speed": cell(speeds)}})
    memcpy = next((row["cells"]["speed"] for row in alone if row["name"] == "memcpy"), None)
    alone.sort(key=lambda row: (row["name"] != "memcpy", by_name(row)))
    rows = sorted(({"name": spec, "cells": cells} for spec, cells in chains.items()), key=by_class)
    if memcpy:
        rows.insert(0, {"name": "memcpy", "cells": {way: dict(memcpy) for way in SPEEDS}})
    yield section(
        "kernels",
        "Kernels",
        "One core, 64 MiB of FP16 from memory, beside general compressors on the same bytes.",
        "GB/s",
        ["speed"],
        alone,
        "memcpy",
    )
    yield section(
        "chains",
        "Codec chains",
        "Every example of the registry, block by block on one core, all error figures included, FP16 from memory; by the codec "
        "that a chain begins with, and by speed.",
        "GB/s",
        list(SPEEDS),
        rows,
        "memcpy",
    )


def codecs(raw):
    """Of `kv-compress -sweep`, one result a file."""
    for result in raw:
        rows = [{"name": "memcpy", "cells": {way: {"value": result["memcpy_gb_per_s"]} for way in SPEEDS}}]
        for row in result["specs"]:
            cells = {"ratio": {"value": row["compression_ratio"]}}
            if row["snr_db"] is not None:
                cells["SNR dB"] = {"value": row["snr_db"]}
            cells |= {way: {"value": row[f"{way}_gb_per_s"]} for way in SPEEDS}
            rows.append({"name": row["spec"], "cells": cells})
        name = result["input"].rsplit("/", 1)[-1]
        yield section(
            f"codecs {name}",
            f"Codecs on {name}",
            f"{result['original_size_bytes'] / 1e6:.1f} MB, all bytes of the compressed file counted, one thread.",
            "GB/s",
            ["ratio", "SNR dB", *SPEEDS],
            rows,
            "memcpy",
        )


def peers(raw):
    rows = []
    for row in raw["rows"]:
        cells = {"ratio": {"value": row["tensor_bytes"] / row["coded_bytes"]}}
        if row["snr_db"] is not None:
            cells["SNR dB"] = {"value": row["snr_db"]}
        for way in SPEEDS:
            cells[way] = {"value": row[way]["gb_per_s"], "low": row[way]["low"], "high": row[way]["high"]}
        rows.append({"name": row["name"], "version": row["version"], "cells": cells})
    yield section(
        "peers",
        "Beside other codecs",
        f"Tensors of {raw['file']} in cache, called from Python, in turns, one thread each; GB per second of CPU. "
        "Rows without an SNR are lossless.",
        "GB/s",
        ["ratio", "SNR dB", *SPEEDS],
        rows,
        "memcpy",
    )


def chunk(raw):
    rows = []
    for row in raw["rows"]:
        cells = {"bytes": {"value": row["share"]}}
        for way in ("store", "load"):
            cells[way] = cell(row[way]["gb_per_s"])
            cells[f"{way} CPU s/GB"] = {"value": row[way]["cpu_s_per_gb"]}
        rows.append({"name": row["name"], "cells": cells})
    yield section(
        "chunk",
        "One chunk of a cache, stored and loaded",
        "64 tensors of 512 KiB in BF16, from Python: 256 tokens of 32 layers. CPU of the client and the server together, on the "
        "same cores. Arrow Flight moves the same bytes and computes nothing.",
        "GB/s",
        ["bytes", "store", "store CPU s/GB", "load", "load CPU s/GB"],
        rows,
        "redis, raw",
    )


def transport(raw):
    def size(count):
        return f"{count >> 20} MiB" if count >= 1 << 20 else f"{count >> 10} KiB"

    for each in raw["cells"]:
        rows = []
        for name, entry in each["contestants"].items():
            cells = {"speed": {"value": entry["gb_per_s"], "low": entry["min_gb_per_s"], "high": entry["max_gb_per_s"]}}
            for side in ("client", "server"):
                user, system = entry[f"{side}_user_s_per_gb"], entry[f"{side}_system_s_per_gb"]
                if user is not None:
                    cells[f"{side} CPU s/GB"] = {"value": user + system}
            for column, key in OUTSIDE.items():
                if key in entry:
                    cells[column] = {"value": entry[key]}
            allowed = each["ratios"].get(name.replace("daemon", "daemon/allowed"))
            if allowed is not None:
                cells["of allowed"] = {"value": allowed}
            rows.append({"name": name, "cells": cells})
        yield section(
            f"transport {each['streams']} x {each['tensor_bytes']}",
            f"Transports: {each['streams']} streams of {size(each['tensor_bytes'])}",
            "FP16 by int4(group=64), client and server on the same cores. `sink` is gRPC that does nothing, `socket` the "
            "bytes alone, `embedded` the codec without a daemon. Of the daemon, what its speed is of that which `sink` and "
            "`embedded` have one after the other, and its user CPU outside the codec, and outside the codec and gRPC.",
            "GB/s",
            ["speed", "of allowed", "client CPU s/GB", "server CPU s/GB", *OUTSIDE],
            rows,
            "embedded",
        ) | {"bars": ["speed"]}
    yield batches(raw["batches"])
    rows = [
        {"name": name, "cells": {key: {"value": row[key]} for key in ("p50", "p99")}}
        for name, row in raw["latency_us"].items()
    ]
    yield section(
        "latency",
        "One 64 KiB tensor at a time",
        "Microseconds from call to answer.",
        "us",
        ["p50", "p99"],
        rows,
        "sink, unary tcp",
    )


def batches(measured):
    rows = []
    for name, ways in measured.items():
        for way, calls in ways.items():
            many = calls["many"]
            cells = {"speed": {"value": many["gb_per_s"]}}
            cells |= {f"{side} CPU s/GB": {"value": many[f"{side}_cpu_per_gb"]} for side in ("client", "server")}
            cells["CPU beside one tensor"] = {"value": calls["cpu_ratio"]}
            rows.append({"name": f"{name}, {way}", "cells": cells})
    return section(
        "batches",
        "Many small tensors",
        "64 tensors of 512 KiB in one call of the C++ client, and the CPU of client and daemon together beside that of one "
        "tensor of the same bytes.",
        "GB/s",
        ["speed", "client CPU s/GB", "server CPU s/GB", "CPU beside one tensor"],
        rows,
    )


CALLED_SLOW = " (called slow)"


def hostile_targets(raw):
    """The program's own, with the chains that they count."""
    for target in raw.get("targets", []):
        counted = [
            row
            for row in raw["slow"]
            if row["name"].split()[0] in target["what"].split() and not row["name"].endswith(CALLED_SLOW)
        ]
        chains = [f"{row['name']}, {row['usual']:.3g} GB/s" for row in counted]
        yield target | ({"chains": chains} if chains else {})


def hostile(raw):
    """Of kvc_bench_hostile: chains below their targets, and a row for each chain and direction."""
    rows = []
    for row in raw["slow"]:
        name = row["name"].removesuffix(CALLED_SLOW)
        note = {"note": CALLED_SLOW.strip(" ()")} if name != row["name"] else {}
        rows.append({"name": name, **note, "cells": {"usual": {"value": row["usual"]}}})
    yield section(
        "slow chains",
        "Chains below their targets",
        "One core, usual values in cache: those below 2 GB/s encoded or 4 decoded (half of it without AVX-512). Those that "
        "no help text calls slow are misses.",
        "GB/s",
        ["usual"],
        rows,
    )
    rows = []
    for row in raw["rows"]:
        cells = {"usual": {"value": row["usual"]}}
        cells |= {name: {"value": part} for name, part in row["parts"].items()}
        rows.append({"name": f"{row['direction']} {row['chain']}", "cells": cells})
    yield section(
        "hostile",
        "Values that a client may send",
        "One core: GB/s for values that codecs are made for, and for others the part of this speed that is left.",
        "GB/s",
        ["usual", *raw["rows"][0]["parts"]],
        rows,
    ) | {"bars": ["usual"]}


def instructions(raw):
    rows = [
        {
            "name": f"{row['tensor_bytes'] >> 10} KiB",
            "cells": {name: {"value": row[name]} for name in ("call", "codec", "nothing", "ratio")},
        }
        for row in raw["rows"]
    ]
    yield section(
        "instructions",
        "Instructions of a small call",
        "Of the daemon for one CompressTensor, of these of the codec, and of a gRPC service that does nothing; the ratio is of "
        "what is not the codec to the latter.",
        "instructions",
        ["call", "codec", "nothing", "ratio"],
        rows,
    ) | {"bars": []}


def files(raw):
    rows = [{"name": row["name"], "cells": {"speed": cell(row["gb_per_s"])}} for row in raw["rows"]]
    yield section(
        "files",
        "File to file",
        f"{raw['bytes'] / 1e6:.0f} MB of BF16 in the page cache, start of the process and disk sync included.",
        "GB/s",
        ["speed"],
        rows,
        "cp",
    )


def python(raw):
    rows = [
        {
            "name": f"{row['path']}, {row['tensor_bytes'] >> 10} KiB: {row['call']}",
            "cells": {
                "speed": cell(row["gb_per_s"]),
                "C++": cell(row["cpp_gb_per_s"]),
                "grpcio": cell(row["grpcio_gb_per_s"]),
            },
        }
        for row in raw["rows"]
    ]
    yield section(
        "python",
        "Python client beside the C++ client",
        "FP16 tensors by int4(group=64), one call at a time; the Python client by the gRPC of C++, and by grpcio alone.",
        "GB/s",
        ["speed", "C++", "grpcio"],
        rows,
    )


# Name of a raw result in the folder of a run, and what reads it; in the order of the page.
READERS = {
    "peers": peers,
    "chunk": chunk,
    "codecs": codecs,
    "kernels": kernels,
    "hostile": hostile,
    "transport": transport,
    "instructions": instructions,
    "python": python,
    "files": files,
}


def own_targets(raw):
    """Those that the program has judged itself."""
    return raw.get("targets", []) if isinstance(raw, dict) else []


# Of other programs, what forms their targets.
FORMED = {"chunk": targets.chunk, "python": targets.python, "hostile": hostile_targets}


def read_run(folder):
    """The run whose programs left their results, NAME.json, in a folder. A result that cannot be read, such as that of a
    program which was stopped while it wrote, is absent and costs no other."""
    run = {"machine": json.loads((folder / "machine.json").read_text()), "sections": [], "targets": [], "absent": {}}
    for name, reader in READERS.items():
        path = folder / f"{name}.json"
        if not path.exists():
            run["absent"][name] = "was not measured"
            continue
        try:
            raw = json.loads(path.read_text())
            sections = list(reader(raw))
            formed = list(FORMED.get(name, own_targets)(raw))
        except (ValueError, TypeError, AttributeError, LookupError, ArithmeticError) as error:
            run["absent"][name] = f"{path.name} cannot be read: {type(error).__name__}: {error}"
            continue
        run["sections"] += sections
        run["targets"] += formed
        if isinstance(raw, dict):
            run["absent"] |= raw.get("absent", {})
    return run
