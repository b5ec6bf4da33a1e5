"""Clients that are ended while they use shared memory: nothing of them may stay in /dev/shm."""

import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from cli_helpers import environment, write_file
from daemon_helpers import Client, Feed, page, page_value, wait_for

LONG = os.environ.get("KVC_TIER") == "long"
SHM = pathlib.Path("/dev/shm")
SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGKILL]

PYTHON_CLIENT = """
import sys
import numpy as np
import kvcompress
client = kvcompress.Client(sys.argv[1], timeout=20)
print("begins", flush=True)
values = np.zeros((4, 8, 1024, 64), np.float16)
while True:
    client.compress(values, name="t", codec="int4")
"""


@pytest.fixture
def prefix():
    name = f"kvc-left-{os.getpid()}-"
    yield name
    for path in SHM.glob(name + "*"):
        path.unlink()


def left(prefix):
    return [path.name for path in SHM.glob(prefix + "*")]


def regions(server):
    return page_value(page(server.metrics_address), "kvcompress_shared_memory_regions")


@pytest.mark.timeout(900)
@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_an_interrupted_command_line_leaves_no_shared_memory(daemon, bin_dir, tmp_path, prefix, number):
    server = daemon("--shared-memory", prefix)
    source = write_file(tmp_path / "in.safetensors", {
        f"layer_{i}_key": np.zeros((1, 8, 1024, 64), np.float16) for i in range(8)})
    choice = random.Random(1)
    ended = 0
    for _ in range(84 if LONG else 25):
        client = subprocess.Popen([bin_dir / "kv-compress", "-server", server.address, "-input", source, "-metrics-only"],
                                  stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment())
        time.sleep(0.01 + 0.1 * choice.random())  # the moment is what the test is about
        client.send_signal(number)
        ended += client.wait(20) != 0
        if number != signal.SIGKILL:
            # Before the daemon can have noticed.
            assert left(prefix) == []
    assert ended > 5
    wait_for(lambda: left(prefix) == [] and regions(server) == 0, "an empty /dev/shm")


@pytest.mark.timeout(900)
@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_an_interrupted_python_client_leaves_no_shared_memory(daemon, tmp_path, prefix, number):
    server = daemon("--shared-memory", prefix)
    choice = random.Random(2)
    for _ in range(84 if LONG else 5):
        client = subprocess.Popen([sys.executable, "-c", PYTHON_CLIENT, server.address], stdout=subprocess.PIPE,
                                  stderr=subprocess.DEVNULL, env=environment())
        assert client.stdout.readline() == b"begins\n"
        time.sleep(0.1 * choice.random())
        client.send_signal(number)
        assert client.wait(20) != 0
        client.stdout.close()
    wait_for(lambda: left(prefix) == [] and regions(server) == 0, "an empty /dev/shm")


def test_an_object_of_a_dead_stream_is_removed(daemon, stubs, prefix):
    """What a client made under its stream's keys, and the daemon never heard of."""
    server = daemon("--shared-memory", prefix)
    client = Client(server, stubs)
    feed = Feed(client.pb.SharedMemoryRequest(status=client.pb.SharedMemoryStatus()))
    call = client.stub.SharedMemory(feed, timeout=30)
    own = next(call).own_key_prefix
    assert own.startswith(prefix) and len(own) == len(prefix) + 33
    (SHM / f"{own}unheard").write_bytes(bytes(4096))
    (SHM / f"{prefix}of-another").write_bytes(bytes(4096))
    call.cancel()
    feed.close()
    wait_for(lambda: left(prefix) == [f"{prefix}of-another"], "the removal")
