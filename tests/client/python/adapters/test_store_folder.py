"""The store in a folder: what files and their index do when something goes wrong."""

import fcntl
import io
import os
import pathlib
import time

import pytest
from folder_files import SIZE, files, used
from kvcompress.store import SelfChecked, _files, open_store
from kvcompress.store._entry import Parts
from kvcompress.store._index import Index


def test_only_the_owner_may_read_it(folder, store):
    store.put("a", b"1")
    modes = {path: path.stat().st_mode & 0o77 for path in [folder, *folder.rglob("*")]}
    assert len(modes) > 4
    assert not any(modes.values())


def test_a_namespace_has_its_own_keys(folder, store):
    other = open_store(folder, "m")
    store.put("a", b"1")
    assert other.get("a", 10) is None
    other.put("a", b"2")
    assert (store.get("a", 10), other.get("a", 10)) == (b"1", b"2")
    other.remove("a")
    assert store.get("a", 10) == b"1"
    other.clear()
    assert not store.exists("a")
    other.close()


def test_what_was_put_is_there_for_the_next_one(folder, store):
    store.put("a", b"1")
    store.close()
    again = open_store(folder, "n")
    assert again.exists("a")
    assert again.get("a", 10) == b"1"
    assert again.stats().used_bytes == SIZE + 1
    again.close()


def test_others_see_at_once_what_is_put_and_what_goes(folder, store):
    other = open_store(folder, "n")
    assert not other.exists("a")
    store.put("a", b"1")
    assert other.exists("a")
    store.remove("a")
    assert not other.exists("a")
    other.close()


def test_a_read_goes_on_to_the_end(store, monkeypatch):
    """One call of the system gives 2 GiB at most; here it gives 7 bytes."""

    class Short(io.FileIO):
        def read(self, size=-1):
            return super().read(7 if size < 0 else min(size, 7))

        def readinto(self, buffer):
            return super().readinto(memoryview(buffer)[:7])

    def opened(file, mode, buffering=-1, opener=None):
        raw = Short(file, mode, opener=opener)
        return raw if buffering == 0 else io.BufferedReader(raw)

    payload = bytes(range(256)) * 100
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, data: write(file, data[:999]))
    store.put("a", payload)
    monkeypatch.setattr(_files, "open", opened, raising=False)
    assert store.get("a", len(payload)) == payload


@pytest.mark.parametrize("checks", [tuple, SelfChecked])
@pytest.mark.parametrize("damage", ["bit", "cut", "longer", "empty", "of another key", "a link", "a pipe", "a folder"])
def test_what_is_not_what_was_stored_is_lost(store, tmp_path, damage, checks):
    """Of a payload that checks itself only what is around it is the store's to check."""
    payload = bytes(range(200))
    store.put_many([("a", checks([payload[:50], payload[50:]])), ("b", payload[::-1])])
    path, other = store._path("a"), store._path("b")
    whole = path.read_bytes()
    path.unlink()
    if damage == "a link":
        (tmp_path / "elsewhere").write_bytes(whole)
        path.symlink_to(tmp_path / "elsewhere")
    elif damage == "a pipe":
        os.mkfifo(path)
    elif damage == "a folder":
        path.mkdir()
    else:
        changed = {"cut": whole[:-1], "longer": whole + b"\0", "empty": b"", "of another key": other.read_bytes()}
        path.write_bytes(changed.get(damage, whole))
    if damage == "bit":
        checked = whole if checks is tuple else whole[:-200]
        for at in range(8 * len(checked)):
            changed = bytearray(whole)
            changed[at // 8] ^= 1 << at % 8
            path.write_bytes(changed)
            assert store.get("a", 200) is None
        assert store.stats().lost == 8 * len(checked)
    else:
        assert store.get("a", 200) is None
        assert store.stats().lost == 1
    assert not store.exists("a")
    assert store.get("b", 200) == payload[::-1]
    if damage != "a folder":
        assert store.put("a", payload)
        assert store.get("a", 200) == payload


def test_what_has_no_file_is_forgotten(store):
    store.put("a", bytes(100))
    store._path("a").unlink()
    assert store.exists("a")
    assert store.get("a", 100) is None
    assert not store.exists("a")
    assert store.stats().used_bytes == 0


def test_an_order_of_use_needs_no_clock(folder, monkeypatch):
    store = open_store(folder, "n", 5 * (SIZE + 100))
    for number, key in enumerate("abcde"):
        monkeypatch.setattr(time, "time", lambda number=number: 1e9 - 1e6 * number)
        store.put(key, bytes(100))
        os.utime(store._path(key), (2e9 - number, 2e9 - number))
    store.get("a", 100)
    for key in "fg":
        store.put(key, bytes(100))
    assert store.exists_many("abcdefg") == [True, False, False, True, True, True, True]
    store.close()


def test_one_put_evicts_a_bounded_number(folder, monkeypatch):
    """A folder that was larger comes down to its capacity little by little."""
    big = open_store(folder, "n")
    big.put_many((f"{number}", b"") for number in range(100))
    big.close()
    monkeypatch.setattr("kvcompress.store._index.MOST_EVICTED", 32)
    small = open_store(folder, "n", 20 * SIZE)
    # Neither does what it was to replace stay.
    assert not small.put("99", b"")
    assert len(files(folder)) == 67
    assert small.stats().used_bytes == used(folder)
    assert [small.put(key, b"") for key in "bcd"] == [False, True, True]
    assert len(files(folder)) == 20
    assert small.stats().used_bytes == used(folder) == 20 * SIZE
    small.close()


@pytest.fixture
def abandoned(folder):
    """Leaves what a process leaves that ends while it writes: abandoned(is_alive) gives its path."""
    held = []

    def leave(is_alive):
        unfinished = _files.Files(folder).write(b"x" * 20, Parts(bytes(1000)))
        held.append(unfinished)
        if not is_alive:
            fcntl.flock(unfinished._descriptor, fcntl.LOCK_UN)
        return unfinished._unfinished

    yield leave
    for unfinished in held:
        unfinished.__exit__()


def test_what_killed_processes_leave_unfinished_goes(folder, abandoned):
    dead, alive = abandoned(is_alive=False), abandoned(is_alive=True)
    store = open_store(folder, "n")
    assert not dead.exists()
    assert alive.exists()
    again = abandoned(is_alive=False)
    os.mkfifo(again.parent / "pipe")  # that nobody writes to
    store.clear()
    assert not (again.parent / "pipe").exists()
    assert not again.exists()
    assert alive.exists()
    store.close()


def test_no_entry_is_looked_at_when_a_folder_is_opened(folder, store, monkeypatch):
    store.put_many((f"{number}", b"") for number in range(300))
    store.close()

    def no(*_, **__):
        raise AssertionError("the folder is scanned")

    monkeypatch.setattr(os, "scandir", no)
    again = open_store(folder, "n")
    assert again.exists("7")
    assert not again.exists("x")
    again.close()


def test_a_look_up_asks_neither_the_index_nor_the_file_system(store, monkeypatch):
    """A scheduler waits for it."""
    store.put_many((f"{number}", b"") for number in range(300))

    def no(*_, **__):
        raise AssertionError("a look-up asks")

    with monkeypatch.context() as patch:
        patch.setattr(Index, "_reading", no)
        for name in ("open", "stat", "fstat", "pread"):
            patch.setattr(os, name, no)
        there = store.exists_many([f"{number}" for number in range(300)])
        not_there = [store.exists(f"x{number}") for number in range(300)]
        peeked = store.peek_many(["7", "x"])
    assert all(there)
    assert not any(not_there)
    assert peeked == [True, False]


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError, match="file"):
        open_store(pathlib.Path(tmp_path / "file" / "kv"), "n")
