"""What every store does, wherever it keeps its entries."""

import os
import threading

import kvcompress
import pytest
from kvcompress.store import open_store

KEYS = ["", "a", "x" * 5000, "\N{SNOWMAN}/../\0", "\ud800"]


@pytest.fixture(params=["folder", "memory"])
def make(request, tmp_path):
    """Opens stores: make(namespace, capacity)."""
    made = []

    def open_one(namespace="n", capacity=None):
        made.append(open_store(tmp_path / "kv" if request.param == "folder" else "memory:", namespace, capacity))
        return made[-1]

    yield open_one
    for store in made:
        store.close()


def test_what_was_put_is_got(make):
    store = make()
    assert store.exists_many(KEYS) == [False] * len(KEYS)
    assert store.get_many(KEYS, 100) == [None] * len(KEYS)
    payloads = [f"{number}".encode() * number for number in range(len(KEYS))]
    assert store.put_many(zip(KEYS, payloads, strict=True)) == [True] * len(KEYS)
    assert store.exists_many([*KEYS, "b"]) == [True] * len(KEYS) + [False]
    assert store.peek_many(["a", "b"]) == [True, False]
    assert store.get_many([*KEYS, "b"], 100) == [*payloads, None]
    stats = store.stats()
    size = sum(map(len, payloads))
    assert (stats.hits, stats.misses, stats.bytes_in, stats.bytes_out) == (5, 6, size, size)
    assert (stats.evicted, stats.lost, stats.errors, stats.entries) == (0, 0, 0, 5)
    assert stats.used_bytes >= size


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_a_payload_is_free_again_after_it_was_put(make, kind):
    store, memory = make(), bytearray(range(256))
    store.put("a", kind(memory))
    memory[:] = bytes(256)
    assert store.get("a", 256) == bytes(range(256))


def test_a_payload_may_come_in_pieces(make):
    store, pieces = make(), (b"1", bytearray(b"23"), b"", memoryview(b"4567"))
    assert store.put_many([("a", pieces), ("b", ()), ("c", b"89")]) == [True] * 3
    assert store.get_many(["a", "b", "c"], 7) == [b"1234567", b"", b"89"]
    assert store.get("a", 6) is None
    assert (store.stats().bytes_in, store.stats().lost) == (9, 1)


def test_pieces_above_the_capacity_are_not_stored(make):
    store = make(capacity=5_000_000)
    assert not store.put("a", (bytes(3_000_000), bytes(3_000_000)))
    assert store.put("b", (bytes(2_000_000), bytes(2_000_000)))


def test_a_put_replaces(make):
    store = make()
    assert store.put("a", bytes(1000))
    assert store.put("a", b"new")
    assert store.get("a", 1000) == b"new"
    assert store.stats().entries == 1
    assert store.put_many([("b", b"1"), ("b", b"2")]) == [True, True]
    assert store.get("b", 1) == b"2"


def test_more_than_can_be_is_lost(make):
    store = make()
    store.put("a", bytes(101))
    assert store.get("a", 100) is None
    assert not store.exists("a")
    assert (store.stats().lost, store.stats().misses) == (1, 1)


def test_what_is_removed_is_gone(make):
    store = make()
    store.put_many([("a", b"1"), ("b", b"2"), ("c", b"3")])
    store.remove("a")
    store.remove("b")
    store.remove("never there")
    assert store.exists_many(["a", "b", "c"]) == [False, False, True]
    store.clear()
    assert not store.exists("c")
    assert (store.stats().entries, store.stats().used_bytes) == (0, 0)


@pytest.mark.parametrize("way", ["got", "touched", "put again"])
def test_what_was_used_least_lately_goes_first(make, way):
    store = make(capacity=4000)
    assert store.put_many((key, bytes(900)) for key in "abcd") == [True] * 4
    if way == "got":
        store.get("a", 900)
    elif way == "touched":
        store.touch(["a", "never there"])
    else:
        store.put("a", bytes(900))
    assert store.put("e", bytes(900))
    assert store.exists_many("abcde") == [True, False, True, True, True]
    assert store.stats().evicted == 1
    assert store.put("f", bytes(1700))
    assert store.exists_many("abcdef") == [True, False, False, False, True, True]
    assert store.stats().used_bytes <= 4000


def test_what_is_larger_than_the_capacity_is_not_stored_and_costs_nothing(make):
    store = make(capacity=1000)
    store.put("a", bytes(500))
    assert store.put_many([("b", bytes(2000)), ("c", bytes(100))]) == [False, True]
    assert store.exists_many("abc") == [True, False, True]
    assert store.stats().errors == 1


@pytest.mark.parametrize("capacity", ["5", 0, -1, True, 1e9])
def test_a_capacity_is_a_positive_whole_number(tmp_path, capacity):
    for where in (tmp_path / "kv", "memory:", "redis://127.0.0.1:1/0"):
        with pytest.raises(kvcompress.InvalidArgument, match=r"capacity_bytes is .*, and not a positive whole number"):
            open_store(where, "n", capacity)
    assert not (tmp_path / "kv").exists()


@pytest.mark.parametrize("where", ["", "s3://bucket", "http://host/path"])
def test_a_place_is_one_that_there_is(where):
    with pytest.raises(kvcompress.InvalidArgument, match="a store is a folder's path, memory:"):
        open_store(where, "n")


def test_a_closed_store_is_empty(make):
    store = make()
    store.put("a", b"1")
    store.close()
    store.close()
    assert not store.exists("a")
    assert store.get("a", 10) is None
    assert not store.put("a", b"1")
    store.remove("a")
    store.touch(["a"])
    store.clear()


def test_threads_share_a_store(make):
    store, wrong = make(capacity=50_000), []

    def work(seed):
        for number in range(200):
            key = f"{(seed * 7 + number) % 50}"
            store.put(key, key.encode() * 500)
            found = store.get(f"{number % 50}", 1000)
            if found is not None and found != f"{number % 50}".encode() * 500:
                wrong.append(number)
            store.exists_many([f"{other}" for other in range(50)])

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stats = store.stats()
    assert not wrong
    assert stats.errors == stats.lost == 0
    assert stats.used_bytes <= 50_000
    assert stats.hits + stats.misses == 1200


def test_a_child_of_a_fork_has_the_store(make):
    """While threads are inside."""
    store, is_done = make(), threading.Event()
    store.put("a", b"1")

    def work():
        while not is_done.is_set():
            store.put("b", bytes(1000))
            store.get("b", 1000)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(3):
            child = os.fork()
            if child == 0:
                is_well = store.get("a", 1) == b"1" and store.put("c", b"2") and store.exists("c")
                os._exit(0 if is_well else 1)
            assert os.waitpid(child, 0)[1] == 0
    finally:
        is_done.set()
        for thread in threads:
            thread.join()
    assert store.get("a", 1) == b"1"
    assert store.stats().errors == 0


@pytest.mark.parametrize("step", ["pause", "resume"])
def test_a_store_that_fails_in_a_fork_leaves_the_others_alone(make, monkeypatch, caplog, step):
    stores = [make() for _ in range(8)]  # a fork takes them in any order
    broken = stores[3]

    def fail(*_):
        raise OSError("no")

    monkeypatch.setattr(broken, step, fail)
    child = os.fork()
    others = [store for store in stores if store is not broken]
    answers = [bounded(store.put, "a", b"1") for store in others]
    is_well = answers == [True] * len(others)
    if child == 0:
        os._exit(0 if is_well else 1)
    assert is_well
    assert os.waitpid(child, 0)[1] == 0
    assert "OSError: no" in caplog.text
    monkeypatch.undo()
    broken.resume(is_child=False)


def bounded(call, *arguments):
    """What it returns; None where it waits for long."""
    answers = []
    thread = threading.Thread(target=lambda: answers.append(call(*arguments)), daemon=True)
    thread.start()
    thread.join(5)
    return answers[0] if answers else None
