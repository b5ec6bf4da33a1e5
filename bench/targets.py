"""Targets that are formed of what programs have measured, not by the programs: of the Python client beside the C++
client and Arrow Flight, and of a store that keeps frames beside one that keeps values as they are."""

import statistics


def python(raw):
    """Of a path the cell that is worst counts."""
    rows = raw["rows"]
    for path in dict.fromkeys(row["path"] for row in rows):
        large = [row for row in rows if row["path"] == path and row["tensor_bytes"] >= 1 << 20]
        small = [row for row in rows if row["path"] == path and row["tensor_bytes"] == 64 << 10]
        if large:
            ratios = {
                f"{row['call']} of {row['tensor_bytes'] >> 20} MiB": _ratios(row["gb_per_s"], row["cpp_gb_per_s"])
                for row in large
            }
            worst = min(ratios, key=lambda call: statistics.median(ratios[call]))
            yield _at_least(
                0.9, f"speed of the Python client / C++ client, {path}, least from 1 MiB: {worst}", ratios[worst]
            )
        if small:
            ratios = {row["call"]: row["cpu_ratios"] for row in small}
            worst = max(ratios, key=lambda call: statistics.median(ratios[call]))
            yield _at_most(
                1.3, f"CPU of the Python client / C++ client, {path}, most at 64 KiB: {worst}", ratios[worst]
            )


def chunk(raw):
    rows = {row["name"]: row for row in raw["rows"]}
    for name, row in rows.items():
        server, _, rest = name.partition(", ")
        path, _, spec = rest.partition(", ")
        peer = {"redis": "redis, raw", "daemon": f"flight, {path}"}.get(server)
        if name == peer or peer not in rows:
            continue
        what = (
            f"Redis with {rest} / raw" if server == "redis" else f"Python client over {path} by {spec} / Arrow Flight"
        )
        for way in ("store", "load"):
            ratios = _ratios(row[way]["gb_per_s"], rows[peer][way]["gb_per_s"])
            yield _at_least(1, f"{what}, {way} of a chunk", ratios)


def _ratios(mine, its):
    """Of each round."""
    return [one / other for one, other in zip(mine, its, strict=True)]


def _at_least(limit, what, rounds):
    """The median of the rounds' own ratios counts."""
    value = statistics.median(rounds)
    return {"what": what, "value": value, "wanted": f"at least {limit}", "met": value >= limit, "rounds": rounds}


def _at_most(limit, what, rounds):
    value = statistics.median(rounds)
    return {"what": what, "value": value, "wanted": f"at most {limit}", "met": value <= limit, "rounds": rounds}
