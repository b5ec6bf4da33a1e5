"""Tensors in pieces of memory that a daemon reads by itself, among others that are sent: each way, with and without
shared memory of the client's own."""

import mmap
import os
import time

import kvcompress
import numpy as np
import pytest
from kvcompress._foreign_memory import ForeignMemory, Pieces
from kvcompress._tensors import TensorView

pytestmark = pytest.mark.usefixtures("way")

MIB = 1 << 20
ROWS, HEADS, SIZE = 400, 60, 64  # [rows, heads, key and value] of float16
FLAGS = ["--threads", "2", "--shared-memory", "kvc-python-", "--foreign-memory", "kvc_foreign_"]


@pytest.fixture(params=[True, False], ids=["shared", "connection"])
def client(request, daemon, connect):
    return connect(daemon(*FLAGS), shared_memory=request.param)


@pytest.fixture
def values():
    return np.random.default_rng(1).standard_normal((ROWS, HEADS, 2 * SIZE)).astype(np.float16)


@pytest.fixture
def foreign(client, values):
    path = f"/dev/shm/kvc_foreign_{os.getpid()}"
    with open(path, "xb") as file:
        file.write(values.tobytes())
    try:
        with open(path, "r+b") as file:
            mapped = mmap.mmap(file.fileno(), 0)
        memory = ForeignMemory(client, memoryview(mapped))
        deadline = time.monotonic() + 10
        while not memory.is_ready():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        yield memory
        memory.close()
    finally:
        os.unlink(path)


def sides(memory, rows):
    """Keys and values of the first rows, as pieces."""
    row, head = HEADS * 2 * SIZE * 2, 2 * SIZE * 2
    for at in (0, SIZE * 2):
        pieces = Pieces(memory, at, rows * HEADS * SIZE * 2, ((rows, row), (HEADS, head)))
        yield TensorView("F16", (rows, HEADS, SIZE), memoryview(b""), "numpy", pieces)


def frames_of(client, tensors):
    return [frame.data for frame in client.compress_many([(str(at), one) for at, one in enumerate(tensors)], "int8")]


# Of tensors of 77 KB, which go in batches, of 0.5 and 3 MB.
@pytest.mark.parametrize("rows", [10, 70, ROWS])
def test_frames_are_those_of_what_is_sent(client, foreign, values, rows):
    kept = [values[:rows, :, :SIZE], values[:rows, :, SIZE:]]
    key, value = sides(foreign, rows)
    small, large = values[:3], np.concatenate([values] * 2)
    for given, meant in (
        ([key, value], kept),
        ([key, value] * 30, kept * 30),
        ([small, key, small, small, value, large, key, small], [
            small, kept[0], small, small, kept[1], large, kept[0], small]),
        ([large, value, large, key], [large, kept[1], large, kept[0]]),
    ):
        assert frames_of(client, given) == frames_of(client, meant)
        assert frames_of(client, iter(given)) == frames_of(client, meant)


def test_one_tensor(client, foreign, values):
    key, _ = sides(foreign, 10)
    assert client.compress(key, "int8").data == client.compress(values[:10, :, :SIZE], "int8").data


def test_pieces_outside_of_the_memory_end_the_call(client, foreign, values):
    beyond = Pieces(foreign, 2, values.nbytes, ((ROWS, HEADS * 4 * SIZE),))
    view = TensorView("F16", (ROWS, HEADS, 2 * SIZE), memoryview(b""), "numpy", beyond)
    with pytest.raises(kvcompress.InvalidArgument, match="range"):
        frames_of(client, [values[:3], view])
    assert len(frames_of(client, [values[:3]])) == 1


@pytest.mark.parametrize("rows", [9, 11])
def test_pieces_that_are_no_tensor_of_this_shape_are_refused(client, foreign, values, rows):
    key, _ = sides(foreign, rows)
    wrong = TensorView(key.dtype, (10, HEADS, SIZE), key.data, key.framework, key.pieces)
    stream = client.compress_many([("a", values[:3]), ("b", wrong)], "int8", timeout=5)
    assert next(stream).name == "a"
    with pytest.raises(kvcompress.InvalidArgument, match=r"pieces of \d+ bytes are no F16 \[10, 60, 64\]"):
        next(stream)
    with pytest.raises(kvcompress.InvalidArgument, match="pieces of"):
        client.compress(wrong, "int8", timeout=5)


def test_memory_that_the_daemon_has_lost_is_an_error_in_its_turn(client, foreign, values):
    key, _ = sides(foreign, 10)
    foreign.close()
    deadline = time.monotonic() + 10
    while foreign._link.is_alive():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    stream = client.compress_many([("a", values[:3]), ("b", key)], "int8")
    assert next(stream).name == "a"
    with pytest.raises(kvcompress.Unavailable, match="has ended the stream"):
        next(stream)
    assert len(frames_of(client, [values[:3]])) == 1
