"""A timeout of 0 has passed before the call begins: the same for every client and every way."""

import kvcompress
import numpy as np
import pytest

SMALL, LARGE = np.ones(1000, np.float16), np.ones(2 << 20, np.float16)
CALLS = {
    "compress": lambda client, frame: client.compress(SMALL, timeout=0),
    "compress a large one": lambda client, frame: client.compress(LARGE, timeout=0),
    "decompress": lambda client, frame: client.decompress(frame, timeout=0),
    "compress a list": lambda client, frame: list(client.compress_many([("t", SMALL)], timeout=0)),
    "compress an iterator": lambda client, frame: list(client.compress_many(iter([("t", SMALL)]), timeout=0)),
    "compress nothing": lambda client, frame: list(client.compress_many([], timeout=0)),
    "decompress many": lambda client, frame: list(client.decompress_many([frame], timeout=0)),
    "decompress none": lambda client, frame: list(client.decompress_many(iter([]), timeout=0)),
    "capabilities": lambda client, frame: client.capabilities(timeout=0),
    "wait_ready": lambda client, frame: client.wait_ready(timeout=0),
    "with_retries": lambda client, frame: client.with_retries(lambda seconds: pytest.fail("called"), timeout=0),
}


def test_nothing_is_done_in_no_time(anyone):
    frame = anyone.compress(SMALL, "raw")
    for call in CALLS.values():
        with pytest.raises(kvcompress.DeadlineExceeded, match=r"^Deadline Exceeded$"):
            call(anyone, frame)
    assert (anyone.decompress(frame) == SMALL).all()


def test_what_is_wrong_is_said_all_the_same(anyone):
    with pytest.raises(kvcompress.InvalidArgument, match="expected a NumPy array"):
        anyone.compress("text", timeout=0)


def test_a_client_without_time():
    with pytest.raises(kvcompress.DeadlineExceeded):
        kvcompress.Client("127.0.0.1:1", timeout=0).compress(SMALL)
