"""What bench_transport.py makes of its measurements: medians, ratios, tables and verdicts."""

import math
import statistics

MIB = 1 << 20
PATHS = ("tcp", "unix")
# Ratios that a round gives, because all its contestants took their turn in it: the first one's speed in that of the others,
# which of two is that of one after the other.
RATIOS = {
    **{f"sink/socket {path}": (f"sink {path}", f"socket {path}") for path in PATHS},
    **{f"daemon/sink {path}": (f"daemon {path}", f"sink {path}") for path in PATHS},
    "shm/tcp": ("daemon shm", "daemon tcp"),
    "shm/embedded": ("daemon shm", "embedded"),
    **{f"daemon/allowed {path}": (f"daemon {path}", f"sink {path}", "embedded") for path in PATHS},
}


def speed(row):
    """GB/s of tensors."""
    return row["tensor_bytes"] / row["seconds"] / 1e9


def summarize(rows_by_name):
    """Of one cell: each contestant's median speed and its CPU seconds per GB, and the ratios of each round and their
    medians."""
    rounds = [round_of({name: rows[i] for name, rows in rows_by_name.items()})
              for i in range(min(map(len, rows_by_name.values())))]
    ratios = {name: statistics.median(one["ratios"][name] for one in rounds) for name in RATIOS}
    return {"contestants": contestants_of(rows_by_name), "ratios": ratios, "rounds": rounds}


def round_of(row_by_name):
    """What targets are made of, in one round."""
    ratios = {ratio: beside(speed(row_by_name[ours]), [speed(row_by_name[name]) for name in others])
              for ratio, (ours, *others) in RATIOS.items()}
    contestants = contestants_of({name: [row] for name, row in row_by_name.items()})
    outside = {path: contestants[f"daemon {path}"].get("outside_codec_and_grpc_s_per_gb") for path in PATHS}
    return {"ratios": ratios, "outside_codec_and_grpc_s_per_gb": outside}


def contestants_of(rows_by_name):
    contestants = {}
    for name, rows in rows_by_name.items():
        gigabytes = sum(row["tensor_bytes"] for row in rows) / 1e9
        speeds = [speed(row) for row in rows]
        entry = {"gb_per_s": statistics.median(speeds), "min_gb_per_s": min(speeds), "max_gb_per_s": max(speeds)}
        for key in ("client_user", "client_system", "server_user", "server_system"):
            entry[f"{key}_s_per_gb"] = sum(row[key] for row in rows) / gigabytes if gigabytes else None
        coded = sum(row["codec_tensor_bytes"] for row in rows) / 1e9
        if coded:
            entry["codec_s_per_gb"] = sum(row["codec_seconds"] for row in rows) / coded
        contestants[name] = entry
    codec_cpu(contestants)
    return contestants


def beside(ours, others):
    """A speed in that of others, one after the other."""
    return ours * sum(1 / other for other in others) if all(others) else math.inf


def codec_cpu(contestants):
    """User CPU of the daemon outside the codec, and outside the codec and gRPC. The codec's own is what the daemon says, or
    what the embedded codec takes beside it where that is less: the daemon's clock runs on while a thread waits for a core.
    gRPC's is that of the service that does nothing on the same path."""
    embedded = contestants["embedded"]["client_user_s_per_gb"]
    for name, entry in contestants.items():
        if not name.startswith("daemon") or entry["server_user_s_per_gb"] is None or embedded is None:
            continue
        codec = min(embedded, entry.get("codec_s_per_gb", embedded))
        entry["outside_codec_s_per_gb"] = entry["server_user_s_per_gb"] - codec
        sink = contestants.get(name.replace("daemon", "sink"), {}).get("server_user_s_per_gb")
        if sink is not None:
            entry["outside_codec_and_grpc_s_per_gb"] = entry["outside_codec_s_per_gb"] - sink


def targets(results):
    """The ratios that the design promises, each with its verdict. Throughput is judged by the median over the cells of
    tensors of 1 MiB and more, that a stream really is; the table has every cell. Those that a round gives have their
    `rounds`, each over the cells as well, and the `most` that they can be."""
    large = [cell for cell in results["cells"] if cell["tensor_bytes"] >= MIB] or results["cells"]
    found = []

    def judge(what, value, at_least=None, at_most=None, **more):
        met = value >= at_least if at_least is not None else value <= at_most
        wanted = f"at least {at_least}" if at_least is not None else f"at most {at_most}"
        found.append({"what": what, "value": value, "wanted": wanted, "met": met, **more})

    def ratio(name):
        return {"value": statistics.median(cell["ratios"][name] for cell in large), "most": 1,
                "rounds": over_cells(large, lambda one: one["ratios"][name])}

    for path in PATHS:
        judge(f"Compress over {path} / what gRPC that does nothing and the codec allow together",
              **ratio(f"daemon/allowed {path}"), at_least=0.9)
    judge("shared memory / embedded codec", **ratio("shm/embedded"), at_least=0.7)
    for path in PATHS:
        outside = [cell["contestants"][f"daemon {path}"].get("outside_codec_and_grpc_s_per_gb") for cell in large]
        judge(f"daemon's user CPU outside the codec and gRPC, s/GB, {path}",
              statistics.median(value for value in outside if value is not None), at_most=0.08,
              rounds=over_cells(large, lambda one, path=path: one["outside_codec_and_grpc_s_per_gb"][path]))
    latency = results["latency_us"]
    for path in PATHS:
        judge(f"p50 of a 64 KiB CompressTensor / unary call that does nothing, {path}",
              latency[f"daemon, unary {path}"]["p50"] / latency[f"sink, unary {path}"]["p50"], at_most=1.4)
    for name, ways in results["batches"].items():
        for way, calls in ways.items():
            judge(f"CPU of 64 tensors / one of the same bytes, {name}, {way}", calls["cpu_ratio"], at_most=1.3)
    return found


def over_cells(cells, value_of):
    """Of each round the median over the cells that have a value in it."""
    by_round = (filter(lambda value: value is not None, map(value_of, rounds))
                for rounds in zip(*(cell["rounds"] for cell in cells)))
    return [statistics.median(values) for values in map(list, by_round) if values]


def beside_one(many, one):
    """A call with many tensors and one with as many bytes in one tensor, and the CPU of client and daemon for the former
    in that for the latter."""
    cpu = [row["client_cpu_per_gb"] + row["server_cpu_per_gb"] for row in (many, one)]
    return {"many": many, "one": one, "cpu_ratio": cpu[0] / cpu[1]}


def size(count):
    for unit, shift in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if count >= 1 << shift:
            return f"{count >> shift} {unit}"
    return str(count)


def align(rows):
    """Rows of texts as columns, right-aligned but for the first three."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(text.ljust(width) if i < 3 else text.rjust(width)
                               for i, (text, width) in enumerate(zip(row, widths))).rstrip() for row in rows) + "\n"


def throughput_table(results):
    rows = [["streams", "tensor", "path", "socket", "sink", "ours", "library", "sink/socket", "ours/sink", "ours/allowed",
             "ours/tcp", "ours/embedded", "client CPU", "daemon CPU", "outside codec", "and gRPC"]]

    def cpu(entry, side):
        user, system = (entry[f"{side}_{kind}_s_per_gb"] for kind in ("user", "system"))
        return "" if user is None else f"{user:.2f}+{system:.2f}"

    def outside(entry, whom):
        value = entry.get(f"outside_{whom}_s_per_gb")
        return "" if value is None else f"{value:.2f}"

    for cell in results["cells"]:
        contestants, ratios = cell["contestants"], cell["ratios"]

        def gb(name):
            return f"{contestants[name]['gb_per_s']:.2f}" if name in contestants else ""

        def of(name):
            return f"{ratios[name]:.2f}" if name in ratios else ""

        for path in (*PATHS, "shm"):
            entry = contestants[f"daemon {path}"]
            rows.append([str(cell["streams"]), size(cell["tensor_bytes"]), path, gb(f"socket {path}"), gb(f"sink {path}"),
                         gb(f"daemon {path}"), gb(f"library {path}"), of(f"sink/socket {path}"), of(f"daemon/sink {path}"),
                         of(f"daemon/allowed {path}"), of(f"{path}/tcp"), of(f"{path}/embedded"), cpu(entry, "client"),
                         cpu(entry, "server"), outside(entry, "codec"), outside(entry, "codec_and_grpc")])
        rows.append([str(cell["streams"]), size(cell["tensor_bytes"]), "shm copy", "", "", "", gb("library copy"), "", "", "",
                     "", "", cpu(contestants["library copy"], "client"), cpu(contestants["library copy"], "server"), "", ""])
        rows.append([str(cell["streams"]), size(cell["tensor_bytes"]), "embedded", "", "", gb("embedded"), gb("local"), "",
                     "", "", "", "", cpu(contestants["embedded"], "client"), "", "", ""])
    facts = results["machine"]
    title = f"GB/s of FP16 tensors, int4(group=64); CPU in s/GB, user+system. {facts['cpu']}, {facts['cores']} cores\n"
    rss = ", ".join(f"{name} {value / MIB:.0f} MiB" for name, value in results["peak_rss_bytes"].items())
    return title + align(rows) + f"peak RSS: {rss}\n"


def latency_table(results):
    rows = [["64 KiB, one at a time", "", "", "calls", "p50 us", "p99 us", "p99.9 us"]]
    for name, row in results["latency_us"].items():
        rows.append([name, "", "", str(row["calls"]), *(f"{row[key]:.0f}" for key in ("p50", "p99", "p99.9"))])
    return align(rows)


def batches_table(results):
    rows = [["64 tensors of 512 KiB", "", "", "GB/s", "client CPU", "daemon CPU", "switches", "CPU / one tensor"]]
    for name, ways in results["batches"].items():
        for way, calls in ways.items():
            many = calls["many"]
            rows.append([name, way, "", f"{many['gb_per_s']:.2f}", f"{many['client_cpu_per_gb']:.2f}",
                         f"{many['server_cpu_per_gb']:.2f}", f"{many['switches']:.0f}", f"{calls['cpu_ratio']:.2f}"])
    return align(rows)
