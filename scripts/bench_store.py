#!/usr/bin/env python3
"""Measures what a folder of many cached payloads can be indexed with, the file system alone, SQLite, or LMDB, and the
store as it is. Prints a row.

usage: bench_store.py {sqlite,lmdb,files,store} [--entries N] [--folder DIR]

What is measured lies in a temporary folder, or stays in DIR, which is filled once. The entries of `sqlite` and `lmdb`
have no files, those of `files` are empty ones, and those of the store have 1 KB. LMDB needs the package lmdb.
"""

import argparse
import os
import pathlib
import random
import tempfile
import time

from kvcompress.store import open_store
from kvcompress.store._index import Index

_ASKED = 2000  # times each operation is measured


def each(operation, count=_ASKED):
    """Median and 99.9th percentile, in microseconds."""
    taken = []
    for number in range(count):
        begin = time.perf_counter()
        operation(number)
        taken.append(time.perf_counter() - begin)
    taken.sort()
    return taken[count // 2] * 1e6, taken[count * 999 // 1000] * 1e6


def seconds(operation):
    begin = time.perf_counter()
    result = operation()
    return time.perf_counter() - begin, result


def ids(count, seed=0):
    made = random.Random(seed)
    return [made.randbytes(20) for _ in range(count)]


def memory_mib():
    text = pathlib.Path("/proc/self/status").read_text()
    anonymous = next(line for line in text.splitlines() if line.startswith("RssAnon"))
    return int(anonymous.split()[1]) / 1024


def disk_mib(folder, pattern="*"):
    return sum(path.stat().st_blocks * 512 for path in folder.glob(pattern) if path.is_file()) / (1 << 20)


def row(name, **values):
    print(f"{name:8}", *(f"{key.replace('_', ' ')} {value}" for key, value in values.items()), sep="  ", flush=True)


def times(pair):
    return f"{pair[0]:.1f} us (99.9%: {pair[1]:.0f})"


class Sqlite:
    def __init__(self, folder):
        self.path = folder / "index.sqlite"
        self.open()

    def open(self):
        self.index = Index(self.path)
        self.index.totals()

    def close(self):
        self.index.close()

    def fill(self, some):
        for at in range(0, len(some), 10000):
            self.index.add([(each, 100_000) for each in some[at : at + 10000]])

    def exists(self, entry):
        return entry in self.index.found([entry])

    def exists_many(self, some):
        return len(self.index.found(some))

    def put(self, entry):
        self.index.admit([(entry, 100_000)], None, (), print)

    def evict(self, entry):
        self.index.admit([(entry, 100_000)], self.index.totals()[0], (), lambda _: None)

    def touch(self, some):
        self.index.touch(some)


class Lmdb:
    """Two tables, as an exact order of use needs them: id to (used, size), and used to id."""

    def __init__(self, folder):
        self.path = folder / "index.lmdb"
        self.open()

    def open(self):
        import lmdb

        self.db = lmdb.open(str(self.path), map_size=1 << 34, max_dbs=2, sync=False, subdir=False)
        self.by_id, self.by_use = self.db.open_db(b"id"), self.db.open_db(b"use")
        with self.db.begin(self.by_use) as read:
            cursor = read.cursor()
            self.last = int.from_bytes(cursor.key(), "big") if cursor.last() else 0

    def close(self):
        self.db.close()

    def add(self, write, entry):
        self.last += 1
        used = self.last.to_bytes(8, "big")
        before = write.replace(entry, used + b"\0" * 8, db=self.by_id)
        if before:
            write.delete(before[:8], db=self.by_use)
        write.put(used, entry, db=self.by_use, append=True)

    def fill(self, some):
        for at in range(0, len(some), 10000):
            with self.db.begin(write=True) as write:
                for entry in some[at : at + 10000]:
                    self.add(write, entry)

    def exists(self, entry):
        with self.db.begin(self.by_id) as read:
            return read.get(entry) is not None

    def exists_many(self, some):
        with self.db.begin(self.by_id) as read:
            return sum(read.get(entry) is not None for entry in some)

    def put(self, entry):
        with self.db.begin(write=True) as write:
            self.add(write, entry)

    def evict(self, entry):
        with self.db.begin(write=True) as write:
            self.add(write, entry)
            cursor = write.cursor(self.by_use)
            cursor.first()
            write.delete(cursor.value(), db=self.by_id)
            cursor.delete()

    def touch(self, some):
        with self.db.begin(write=True) as write:
            for entry in some:
                self.add(write, entry)


def measure_index(kind, folder, entries):
    some, others = ids(entries), ids(3 * _ASKED, seed=1)
    if not any(folder.iterdir()):
        index = kind(folder)
        filled, _ = seconds(lambda: index.fill(some))
        index.close()
        row(kind.__name__, fill=f"{filled / entries * 1e6:.1f} us")
    before = memory_mib()
    opened, index = seconds(lambda: kind(folder))
    asked = random.Random(2).sample(some, _ASKED)
    batch = asked[:500] + others[:500]
    index.exists(asked[0])
    row(
        kind.__name__,
        open=f"{opened * 1e3:.2f} ms",
        exists=times(each(lambda number: index.exists(asked[number]))),
        not_there=times(each(lambda number: index.exists(others[number]))),
        of_1000=f"{seconds(lambda: index.exists_many(batch))[0] * 1e3:.2f} us each",
        put=times(each(lambda number: index.put(others[number]))),
        put_and_evict=times(each(lambda number: index.evict(others[_ASKED + number]))),
        touch_256=f"{seconds(lambda: index.touch(asked[:256]))[0] / 256 * 1e6:.1f} us each",
        disk=f"{disk_mib(folder):.0f} MiB",
        memory=f"{memory_mib() - before:.0f} MiB",
    )
    index.close()


def measure_files(folder, entries):
    """No index: what `exists` costs where names are in the kernel's memory, and what one look at all of it costs."""
    names = [folder / each.hex()[:3] / each.hex() for each in ids(entries)]
    if not any(folder.iterdir()):
        for shard in range(4096):
            (folder / f"{shard:03x}").mkdir()
        made, _ = seconds(lambda: [os.close(os.open(name, os.O_CREAT | os.O_WRONLY)) for name in names])
        row("files", make=f"{made / entries * 1e6:.1f} us")
    asked = random.Random(2).sample(names, min(_ASKED, entries))

    def look():
        total = 0
        for shard in os.scandir(folder):
            for file in os.scandir(shard):
                total += file.stat().st_size + 1
        return total

    row(
        "files",
        first=times(each(lambda number: os.path.exists(asked[number]), len(asked))),
        again=times(each(lambda number: os.path.exists(asked[number]), len(asked))),
        look_at_all=f"{seconds(look)[0]:.2f} s",
    )


def measure_store(folder, entries, size=1024):
    capacity = 1 << 40
    if not any(folder.iterdir()):
        store, payload = open_store(folder, "bench", capacity), os.urandom(size)
        filled, _ = seconds(lambda: store.put_many((f"{number}", payload) for number in range(entries)))
        store.close()
        row("store", put_64_at_once=f"{filled / entries * 1e6:.0f} us each")
    before, large = memory_mib(), os.urandom(1 << 20)
    opened, store = seconds(lambda: open_store(folder, "bench", capacity))
    asked = [f"{number}" for number in random.Random(2).sample(range(entries), min(entries, _ASKED))]
    row(
        "store",
        open=f"{opened * 1e3:.2f} ms",
        first=times(each(lambda number: store.exists(asked[number]), len(asked))),
        again=times(each(lambda number: store.exists(asked[number]), len(asked))),
        not_there=times(each(lambda number: store.exists(f"x{number}"))),
        of_1000=f"{seconds(lambda: store.exists_many(asked[:1000]))[0] * 1e3:.2f} us each",
        get_1KB=times(each(lambda number: store.get(asked[number], size), len(asked))),
        put_1KB=times(each(lambda number: store.put(f"y{number}", large[:size]))),
        put_1MB=times(each(lambda number: store.put(f"z{number}", large), 100)),
        get_1MB=times(each(lambda number: store.get(f"z{number}", 1 << 20), 100)),
        replace_1KB=times(each(lambda number: store.put(f"y{number}", large[:size]), 100)),
        memory=f"{memory_mib() - before:.0f} MiB",
        index=f"{disk_mib(folder, 'index*'):.0f} MiB",
    )
    for name, count in (("y", _ASKED), ("z", 100)):
        for number in range(count):
            store.remove(f"{name}{number}")
    store.close()


def main():
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("kind", choices=["sqlite", "lmdb", "files", "store"])
    parse.add_argument("--entries", type=int, default=1_000_000)
    parse.add_argument("--folder", type=pathlib.Path)
    options = parse.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or pathlib.Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if options.kind == "files":
            measure_files(folder, options.entries)
        elif options.kind == "store":
            measure_store(folder, options.entries)
        else:
            measure_index({"sqlite": Sqlite, "lmdb": Lmdb}[options.kind], folder, options.entries)


if __name__ == "__main__":
    main()
