"""The folder of payloads that the connectors of vLLM and SGLang keep."""

import io
import os
import time

import kvcompress
import pytest
from kvcompress.adapters import _store
from kvcompress.adapters._store import Store


def test_a_read_goes_on_to_the_end(tmp_path, monkeypatch):
    """One call of the system gives 2 GiB at most; here it gives 7 bytes."""

    class Short(io.FileIO):
        def read(self, size=-1):
            return super().read(7 if size < 0 else min(size, 7))

        def readinto(self, buffer):
            return super().readinto(memoryview(buffer)[:7])

    def opened(file, mode, buffering=-1):
        raw = Short(file, mode)
        return raw if buffering == 0 else io.BufferedReader(raw)

    store = Store(tmp_path, "n")
    payload = bytes(range(256)) * 100
    store.put("a", payload)
    monkeypatch.setattr(_store, "open", opened, raising=False)
    assert store.get("a", len(payload)) == payload


@pytest.mark.parametrize("capacity", ["5", 0, -1, True, 1e9])
def test_a_capacity_is_a_positive_whole_number(tmp_path, capacity):
    with pytest.raises(kvcompress.InvalidArgument, match=r"capacity_bytes is .*, and not a positive whole number"):
        Store(tmp_path / "kv", "n", capacity)
    assert not (tmp_path / "kv").exists()


@pytest.fixture
def abandoned(tmp_path, monkeypatch):
    """Leaves what a process leaves that is killed while it writes: abandoned(key, size, age in seconds)."""

    def leave(key, size, age):
        store, before = Store(tmp_path, "n"), set(tmp_path.glob("*/*"))

        def killed(*_):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", killed)
            patch.setattr(os, "unlink", lambda _: None)
            with pytest.raises(KeyboardInterrupt):
                store.put(key, bytes(size))
        (left,) = set(tmp_path.glob("*/*")) - before
        os.utime(left, (time.time() - age,) * 2)
        return left

    return leave


def test_what_killed_processes_leave_is_counted_and_goes(tmp_path, abandoned):
    old, young = abandoned("a", 1000, 7200), abandoned("b", 1000, 60)
    store = Store(tmp_path, "n", 1500)
    store.put("c", bytes(400))
    assert old.exists()
    store.put("d", bytes(400))
    assert not old.exists()
    assert [store.exists(key) for key in "abcd"] == [False, False, True, True]
    # Someone may be writing it.
    assert young.exists()
    again = abandoned("a", 1000, 7200)
    store.clear()
    assert not again.exists()
    assert young.exists()
    assert not store.exists("c")
