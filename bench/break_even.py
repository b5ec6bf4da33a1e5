"""When compressing pays: the time to move a cache raw over a link, beside that of compressing, moving and decompressing
it."""

# GB/s of links and disks that caches go over.
LINKS = {
    "10 Gb/s": 1.25,
    "25 Gb/s": 3.125,
    "NVMe, 3 GB/s": 3.0,
    "NVMe, 7 GB/s": 7.0,
    "100 Gb/s": 12.5,
    "200 Gb/s": 25.0,
}
CORES = (1, 2)


def speed_up(ratio, encode, decode, link, pipelined):
    """Of a store and a load, against both raw: `ratio` is bytes before to after, the others GB/s of tensor; `link`
    carries either. Pipelined, codec and link work at the same time and the slower one counts; serially one waits for the
    other."""
    join = max if pipelined else lambda *times: sum(times)
    moved = 1 / (ratio * link)
    return 2 / link / (join(1 / encode, moved) + join(moved, 1 / decode))


def tables(section):
    """Speed-ups of the codecs of a section that says ratio, encode and decode, on cores that share the work evenly: a
    table for each number of cores, serially and pipelined, whose rows have one number a link."""
    swept = [row for row in section["rows"] if row["cells"].get("ratio", {"value": 0})["value"] > 1]

    def row(cells, cores, pipelined):
        ratio, encode, decode = (cells[column]["value"] for column in ("ratio", "encode", "decode"))
        return {name: speed_up(ratio, encode * cores, decode * cores, link, pipelined) for name, link in LINKS.items()}

    return [
        {
            "cores": cores,
            "pipelined": pipelined,
            "rows": [{"name": one["name"], "links": row(one["cells"], cores, pipelined)} for one in swept],
        }
        for cores in CORES
        for pipelined in (False, True)
    ]
