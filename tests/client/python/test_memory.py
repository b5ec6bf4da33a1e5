"""What calls over many tensors hold at a time."""

import gc
import time
import tracemalloc

import kvcompress
import numpy as np
import pytest

pytestmark = pytest.mark.usefixtures("way")

MIB = 1 << 20
COUNT, SIZE = 128, 4 * MIB
# Windows of the connection and of the daemon, an item of each side and its frame: far from the whole input of 512 MiB.
BOUND = 64 * MIB


class Input:
    """Items that are made when they are asked for, and counted."""

    def __init__(self, make):
        self.made = 0
        self._make = make

    def __iter__(self):
        for _ in range(COUNT):
            self.made += 1
            yield self._make()


@pytest.mark.parametrize("spec", ["raw", "int4"])
def test_compress_many_reads_only_what_it_can_send(client, spec):
    source = Input(lambda: ("t", np.full(SIZE // 2, 1, np.float16)))
    frames = client.compress_many(source, spec)
    next(frames)
    time.sleep(1)
    # int4 makes less of it, so that more tensors fit into the windows.
    assert source.made <= (16 if spec == "raw" else 64)
    tracemalloc.start()
    try:
        count = sum(len(frame) > 0 for frame in frames)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (count, source.made) == (COUNT - 1, COUNT)
    assert peak < BOUND


def test_decompress_many_reads_only_what_it_can_send(client):
    frame = client.compress(np.full(SIZE // 2, 1, np.float16), "raw")
    source = Input(lambda: ("t", bytes(frame)))
    tensors = client.decompress_many(source)
    next(tensors)
    time.sleep(1)
    assert source.made <= 16
    tracemalloc.start()
    try:
        count = sum(tensor.nbytes == SIZE for _, tensor in tensors)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (count, source.made) == (COUNT - 1, COUNT)
    assert peak < BOUND


def test_names_and_specs_that_are_refused_are_not_kept(client):
    array = np.ones((4, 64), np.float16)
    frame = client.compress(array, "raw")
    tracemalloc.start()
    try:
        for number in range(8):
            text = "x" * (MIB + number)
            with pytest.raises(kvcompress.InvalidArgument):
                client.compress(array, "raw", name=text)
            with pytest.raises(kvcompress.InvalidArgument):
                client.compress(array, text)
            with pytest.raises(kvcompress.InvalidArgument):
                list(client.decompress_many([(text, frame)]))
        gc.collect()
        left, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert left < 4 * MIB
