"""The store in a folder on a disk that is full, fails, or has lost something: the index, the filter, the folder."""

import errno
import os
import random
import shutil
import sqlite3
import subprocess
import time

import pytest
from folder_files import SIZE, files, used
from kvcompress.store import _files, _folder, open_store
from kvcompress.store._filter import Filter
from kvcompress.store._index import Index


def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_on_a_full_disk_the_oldest_make_space(store, monkeypatch):
    store.put_many((key, bytes(100)) for key in "abc")
    write, failures = os.write, [2]

    def sometimes(file, data):
        if failures[0]:
            failures[0] -= 1
            full()
        return write(file, data)

    monkeypatch.setattr(os, "write", sometimes)
    failures[0] = 1
    assert store.put("d", bytes(150))
    assert store.exists_many("abcd") == [False, False, True, True]
    assert (store.stats().evicted, store.stats().errors) == (2, 0)
    failures[0] = 2
    assert not store.put("e", bytes(1))
    assert (store.stats().evicted, store.stats().errors) == (3, 1)
    assert store.get("d", 150) == bytes(150)


@pytest.fixture
def small_disk(folder):
    """The folder on a file system of 16 MB."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={16 << 20}", "tmpfs", folder]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.parametrize("capacity", [None, 100_000_000])
def test_a_disk_that_is_full_of_others_costs_misses(small_disk, capacity):
    """The index needs it, too, and so does the filter."""
    store = open_store(small_disk, "n", capacity)
    for number in range(400):
        store.put(f"{number}", bytes([number % 256]) * 100_000)
        if number == 200:  # someone else takes what is left, and what is freed next
            with open(small_disk / "others", "wb") as other:
                os.posix_fallocate(other.fileno(), 0, shutil.disk_usage(small_disk).free)
        for key in (number, number // 2):
            found = store.get(f"{key}", 100_000)
            assert found is None or found == bytes([key % 256]) * 100_000
    assert store.stats().evicted > 200
    assert store.stats().lost == 0
    stored = [number for number in range(400) if store.exists(f"{number}")]
    assert 20 < len(stored) < 160
    assert stored[-1] == 399
    assert all(store.get(f"{number}", 100_000) == bytes([number % 256]) * 100_000 for number in stored)
    store.close()


def test_a_folder_that_someone_removes_is_made_anew(folder, store, monkeypatch):
    monkeypatch.setattr(_folder, "_COMPARE_EVERY", 4)
    store.put("a", b"1")
    shutil.rmtree(folder)
    assert store.get("a", 1) is None
    assert not store.exists("a")
    for number in range(20):
        store.put(f"{number}", b"1")
    assert store.put("b", b"2")
    assert store.get("b", 1) == b"2"
    assert store.stats().entries == len(files(folder)) == 21
    other = open_store(folder, "n")
    assert other.exists_many(["b", "7", "a"]) == [True, True, False]
    other.close()


@pytest.mark.parametrize("seed", range(4))
def test_a_disk_that_fails_now_and_then_raises_nothing_and_gives_nothing_wrong(folder, monkeypatch, seed):
    chance, store = random.Random(seed), open_store(folder, "n", 100 * (SIZE + 100))
    is_bad = [True]

    def failing(call):
        def work(*arguments, **options):
            if is_bad[0] and chance.random() < 0.1:
                raise OSError(chance.choice([errno.EIO, errno.ENOSPC, errno.EACCES]), "an injected fault")
            return call(*arguments, **options)

        return work

    for name in ("open", "write", "pwrite", "replace", "unlink", "scandir", "stat", "fstat"):
        monkeypatch.setattr(os, name, failing(getattr(os, name)))
    for _ in range(1500):
        key = chance.randrange(150)
        chance.choice([
            lambda key=key: store.put(f"{key}", bytes([key]) * (key % 100)),
            lambda key=key: store.put_many((f"{one}", bytes([one]) * (one % 100)) for one in range(key, key + 5)),
            lambda key=key: store.remove(f"{key}"),
            lambda key=key: store.exists_many([f"{key}", f"{key + 1}"]),
            lambda key=key: store.touch([f"{key}"]),
        ])()  # fmt: skip
        found = store.get(f"{key}", 100)
        assert found is None or found == bytes([key]) * (key % 100)
    store.clear()
    store.stats()
    is_bad[0] = False
    assert store.stats().errors > 100
    assert store.put("a", b"1")
    assert store.get("a", 1) == b"1"
    for shard in range(_files.SHARDS):
        store._compare(shard)
    assert store.stats().used_bytes == used(folder) <= 100 * (SIZE + 100)
    store.close()


@pytest.mark.parametrize("trouble", ["gone", "garbage", "cut", "of another version", "gone while it is open"])
def test_an_index_is_made_anew_from_the_files(folder, trouble, monkeypatch):
    store = open_store(folder, "n")
    store.put_many((f"{number}", bytes(100)) for number in range(50))
    path = folder / "index.sqlite"
    if trouble == "gone while it is open":
        monkeypatch.setattr(_folder, "_COMPARE_EVERY", 1)
    else:
        store.close()
    if trouble.startswith("gone"):
        for each in folder.glob("index.sqlite*"):
            each.unlink()
    elif trouble == "garbage":
        path.write_bytes(b"garbage" * 1000)
    elif trouble == "cut":
        path.write_bytes(path.read_bytes()[:5000])
    else:
        database = sqlite3.connect(path)
        database.execute("PRAGMA user_version = 99")
        database.close()
    if trouble != "gone while it is open":
        store = open_store(folder, "n", 60 * (SIZE + 100))
        # Before all is compared, the files are asked.
        assert store.exists("7")
    for number in range(_files.SHARDS):
        store.put("more", bytes(100))
        if number > 5 and store.stats().entries == 51:
            break
    assert store.stats().entries == 51
    assert store.stats().used_bytes == used(folder) == 51 * (SIZE + 100)
    assert all(store.exists_many([f"{number}" for number in range(50)]))
    store.close()


def test_after_a_crash_of_the_machine_the_files_are_compared(folder, store, monkeypatch):
    store.put_many((f"{number}", bytes(100)) for number in range(20))
    store._index.drop([store._ids.of("3")])
    gone = store._path("5")
    gone.unlink()
    store.close()
    monkeypatch.setattr("kvcompress.store._index._boot_id", lambda: "another")
    again = open_store(folder, "n")
    for _ in range(25):
        again.put("more", bytes(100))
    assert again.stats().entries == 20
    assert again.exists_many(["3", "5", "7"]) == [True, False, True]
    again.close()


def test_leaks_are_found_without_a_crash_too(folder, store, monkeypatch):
    monkeypatch.setattr(_folder, "_COMPARE_EVERY", 1)
    store.put("a", bytes(100))
    store._index.drop([store._ids.of("a")])
    assert store.stats().entries == 0
    store.put_many([("b", b""), ("c", b"")])
    for _ in range(5):
        store.put("b", b"")
    assert store.exists("a")
    assert store.stats().used_bytes == used(folder)


def test_a_database_that_someone_holds_costs_a_bounded_wait(folder, store):
    store.put("a", b"1")
    other = sqlite3.connect(folder / "index.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    begin = time.monotonic()
    assert not store.put("b", b"2")
    assert 1 < time.monotonic() - begin < 6
    begin = time.monotonic()
    assert store.exists("a")
    assert not store.exists("b")
    assert store.get("a", 1) == b"1"
    assert time.monotonic() - begin < 1.9  # who writes waits for two seconds
    other.execute("ROLLBACK")
    other.close()
    assert store.put("b", b"2")
    assert store.stats().errors == 1


@pytest.mark.parametrize("capacity", [None, 1, 1 << 30, 1 << 50])
def test_a_filter_knows_or_says_that_it_does_not(folder, capacity):
    folder.mkdir()
    first, second = Filter(folder / "filter", capacity), Filter(folder / "filter", None)
    assert (first.is_new, second.is_new) == (True, False)
    bucket = [b"\1\2\3" + number.to_bytes(5, "big") + bytes(12) for number in range(1 << 24, (1 << 24) + 20)]
    # Tags that a free slot, a full bucket and neighbours could be taken for.
    odd = [b"\7\7\7\7" + tag + bytes(12) for tag in (bytes(4), b"\0\0\0\1", b"\1\0\0\0")]
    odd.append(b"\x97\0\7\7" + b"\xff" * 4 + bytes(12))
    for entry_id in bucket[:15] + odd:
        assert second.has(entry_id) is False
        first.add(entry_id)
        first.add(entry_id)
        assert second.has(entry_id) is True
    assert second.has(bucket[15]) is False
    first.add(bucket[15])
    assert [second.has(entry_id) for entry_id in bucket] == [True] * 15 + [None] * 5
    second.drop(bucket[3])
    assert first.has(bucket[3]) is None
    assert [first.has(entry_id) for entry_id in bucket[:3]] == [True] * 3
    first.fill(0x010, bucket[:15])
    assert [second.has(entry_id) for entry_id in bucket] == [True] * 15 + [False] * 5
    first.fill(0x010, bucket[2:20])
    assert [second.has(entry_id) for entry_id in bucket] == [None] * 2 + [True] * 15 + [None] * 3
    assert all(second.has(entry_id) for entry_id in odd)
    assert os.stat(folder / "filter").st_size == {1: 1 << 18, 1 << 30: 1 << 20}.get(capacity, 1 << 26)
    assert [path.name for path in folder.iterdir()] == ["filter"]
    for one in (first, second):
        one.close()


def test_a_filter_that_is_lost_or_full_costs_no_entry(folder, store, monkeypatch):
    monkeypatch.setattr(_folder, "_COMPARE_EVERY", 1)
    keys = [f"{number}" for number in range(40)]
    store.put_many((key, b"") for key in keys)
    (folder / "filter").unlink()
    other = open_store(folder, "n")
    assert all(other.exists_many([*keys]))
    assert not other.exists("x")
    for _ in range(4):
        store.put("more", b"")
    assert all(store.exists_many([*keys, "more"]))
    assert other.exists("more")
    with open(folder / "filter", "r+b") as file:
        file.write((bytes(60) + b"\xff" * 4) * (1 << 20))
    assert all(store.exists_many(keys))
    assert store.exists("more")
    assert not store.exists("x")
    other.close()


def test_the_index_is_for_any_number_of_ids(folder):
    folder.mkdir()
    index = Index(folder / "index.sqlite")
    ids = [number.to_bytes(20, "big") for number in range(3000)]
    index.add([(entry_id, 1) for entry_id in ids])
    assert index.found([*ids, b"x" * 20]) == set(ids)
    assert index.totals() == (3000, 3000)
    index.add([(ids[0], 5)])
    assert index.totals() == (3000, 3000)
    index.close()
