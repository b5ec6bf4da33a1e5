"""Memory of results, which is used again for others once nobody holds these."""

import gc
import multiprocessing
import subprocess
import sys
import threading

import kvcompress
import numpy as np
import pytest
from kvcompress import _recycled

MIB = 1 << 20


@pytest.fixture(autouse=True)
def spare(monkeypatch):
    fresh = _recycled._Spare()
    monkeypatch.setattr(_recycled, "_spare", fresh)
    monkeypatch.setattr(_recycled._Lent.__del__, "__defaults__", (fresh.give,))
    return fresh


def address(array):
    return array.__array_interface__["data"][0]


def frame_of(seed, size=MIB):
    array = np.random.default_rng(seed).standard_normal(size // 2, np.float32).astype(np.float16)
    return array, kvcompress.LocalClient().compress(array, "raw")


def test_memory_of_a_result_is_that_of_a_later_one(anyone):
    array, frame = frame_of(1)
    first = anyone.decompress(frame)
    where = address(first)
    assert (first == array).all()
    del first
    assert address(anyone.decompress(frame)) == where


def test_what_is_held_in_any_part_is_not_used_again(anyone):
    (one, frame), (_, other) = frame_of(1), frame_of(2)
    part = anyone.decompress(frame)[5:].reshape(-1, 1)[::2].view(np.int16)
    others = [anyone.decompress(other) for _ in range(3)]
    assert (part.view(np.float16).ravel() == one[5::2]).all()
    assert len({address(array) for array in others}) == 3


def test_tensors_of_pytorch_hold_their_memory(anyone):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    whole = torch.randn(MIB // 2).bfloat16()
    frame = kvcompress.LocalClient().compress(whole, "raw")
    found = anyone.decompress(frame)
    where, storage = found.data_ptr(), found.untyped_storage()
    assert torch.equal(found, whole)
    del found
    assert anyone.decompress(frame).data_ptr() != where
    del storage
    others = [anyone.decompress(frame) for _ in range(3)]
    assert where in {other.data_ptr() for other in others}


def test_tensors_of_pytorch_are_no_views():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    client = kvcompress.LocalClient()
    frame = client.compress(torch.randn(MIB // 4), "raw")
    with torch.no_grad():
        found = client.decompress(frame)
    found.detach_()
    found.mul_(torch.ones(1, requires_grad=True))
    assert found.requires_grad


def test_the_end_of_the_process_is_silent():
    code = """
import os
import numpy as np
import kvcompress
client = kvcompress.LocalClient()
os.kept = client.decompress(client.compress(np.zeros(1 << 19, np.float16), "raw"))
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (ended.stdout, ended.stderr) == ("", "")


def test_no_more_is_kept_than_said(spare):
    for size in (MIB, 3 * MIB):
        arrays = [_recycled.memory(size) for _ in range(100)]
        del arrays
        assert spare._bytes == sum(len(memory) for same in spare._idle.values() for memory in same)
        assert 60 * MIB < spare._bytes <= 64 * MIB
    assert set(spare._idle) <= {MIB, 3 * MIB}
    assert spare._idle[3 * MIB]
    large = _recycled.memory(65 * MIB)
    del large
    assert 65 * MIB not in spare._idle


def test_small_results_are_not_kept(spare):
    assert _recycled.memory(127 << 10) is None
    kvcompress.LocalClient().decompress(frame_of(1, 100 << 10)[1])
    assert spare._bytes == 0


def test_a_result_that_ends_while_memory_is_given_is_forgotten(spare):
    memory = _recycled.memory(MIB)
    with spare._lock:
        del memory
        assert _recycled.memory(MIB) is not None
    assert spare._bytes == 0


def test_threads_share_it():
    def work(seed):
        array, frame = frame_of(seed)
        client = kvcompress.LocalClient(threads=1)
        right.append(all((client.decompress(frame) == array).all() for _ in range(30)))

    right = []
    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert right == [True] * 4


def test_a_child_of_a_fork_writes_to_memory_of_its_own():
    array, frame = frame_of(1)
    client = kvcompress.LocalClient()
    held = client.decompress(frame)

    def child(queue):
        held[:] = 0
        queue.put(bool((kvcompress.LocalClient().decompress(frame) == array).all()))

    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=child, args=(queue,))
    process.start()
    assert queue.get(timeout=30)
    process.join()
    assert (held == array).all()
    gc.collect()
