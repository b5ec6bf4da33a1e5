"""One folder and several processes, which end at any moment."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest
from kvcompress.store import _files, open_store

CAPACITY = 2_000_000
# Puts and gets keys 0 to 399, each payload told by its key; ends with 1 where it gets what is another's.
WORKER = """
import random, sys
from kvcompress.store import open_store
folder, seed, count, capacity = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
store, chance = open_store(folder, "n", capacity), random.Random(seed)
print("ready", flush=True)
for _ in range(count):
    key = chance.randrange(200)
    payload = bytes([key]) * (key % 40 + 1) * 1000
    if chance.random() < 0.6:
        store.put_many([(f"{key}", payload), (f"{key + 200}", bytes([key]) * 10)])
    found = store.get(f"{key}", 40_000)
    assert found is None or bytes(found) == bytes([key]) * len(found), key
stats = store.stats()
print(stats, flush=True)
assert stats.lost == stats.errors == 0, stats
"""


@pytest.fixture
def start(tmp_path):
    """Starts a worker: start(seed, count)."""
    workers = []

    def make(seed, count):
        arguments = [sys.executable, "-c", WORKER, str(tmp_path / "kv"), str(seed), str(count), str(CAPACITY)]
        workers.append(subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True))
        assert workers[-1].stdout.readline() == "ready\n"
        return workers[-1]

    yield make
    for worker in workers:
        worker.kill()
        worker.wait()
        worker.stdout.close()


def used(folder):
    total = 0
    for path in folder.glob("*/*.kvc"):
        try:
            total += path.stat().st_size
        except FileNotFoundError:
            continue
    return total


def test_a_capacity_holds_while_several_write(start, tmp_path):
    workers, most = [start(seed, 400) for seed in range(3)], 0
    while any(worker.poll() is None for worker in workers):
        # Some may be counted twice, before and after they were put again, so the last look alone is exact.
        most = max(most, used(tmp_path / "kv"))
        time.sleep(0.05)
    assert [worker.returncode for worker in workers] == [0, 0, 0]
    assert most > CAPACITY / 2
    store = open_store(tmp_path / "kv", "n", CAPACITY)
    stats = store.stats()
    assert stats.used_bytes == used(tmp_path / "kv") <= CAPACITY
    assert stats.entries == len(list((tmp_path / "kv").glob("*/*.kvc")))
    assert not list((tmp_path / "kv" / "unfinished").iterdir())
    store.close()


def test_processes_that_are_killed_leave_whole_entries_or_none(start, tmp_path):
    folder, chance = tmp_path / "kv", random.Random(1)
    for number in range(6):
        first, second = start(2 * number, 10**6), start(2 * number + 1, 10**6)
        time.sleep(chance.uniform(0.01, 0.25))
        first.kill()
        time.sleep(chance.uniform(0, 0.05))
        second.kill()
        assert first.wait() == second.wait() == -signal.SIGKILL
        store = open_store(folder, "n", CAPACITY)
        assert not list((folder / "unfinished").iterdir())
        # The index may have entries whose files are gone, and lacks none: all space is accounted for.
        files = {bytes.fromhex(path.stem) for path in folder.glob("*/*.kvc")}
        assert files <= store._index.between(bytes(20), b"\xff" * 20)
        assert used(folder) <= CAPACITY
        for key in range(200):
            found = store.get(f"{key}", 40_000)
            assert found is None or (len(found) > 0 and found == bytes([key]) * len(found))
        assert store.stats().lost == store.stats().errors == 0
        store.close()
    store = open_store(folder, "n", CAPACITY)
    for shard in range(_files.SHARDS):
        store._compare(shard)
    assert store.put("199", b"1")
    assert store.stats().entries == len(list(folder.glob("*/*.kvc")))
    assert used(folder) <= CAPACITY
    store.close()


def test_a_process_that_is_stopped_inside_costs_a_bounded_wait(tmp_path):
    store = open_store(tmp_path / "kv", "n", CAPACITY)
    store.put("a", b"1")
    child = os.fork()
    if child == 0:
        with store._index._writing():
            os.kill(os.getpid(), signal.SIGSTOP)
        os._exit(0)
    try:
        assert os.WIFSTOPPED(os.waitpid(child, os.WUNTRACED)[1])
        begin = time.monotonic()
        assert not store.put("b", b"2")
        assert 1 < time.monotonic() - begin < 6
        begin = time.monotonic()
        assert store.exists_many(["a", "b"]) == [True, False]
        assert store.get("a", 1) == b"1"
        assert time.monotonic() - begin < 1.9  # who writes waits for two seconds
    finally:
        os.kill(child, signal.SIGCONT)
        os.waitpid(child, 0)
    assert store.put("b", b"2")
    store.close()
