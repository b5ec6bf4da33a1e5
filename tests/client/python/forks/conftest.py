"""Fixtures of the tests of forks: each test is a program of its own, for what it forks must not be pytest."""

import os
import signal
import subprocess
import sys
import textwrap

import pytest

PREFIX = "kvc-fork-"
PROGRAM = """
import asyncio, multiprocessing, os, pathlib, signal, sys, threading, time
import kvcompress
import kvcompress._regions
import numpy as np

kvcompress._regions._PATIENCE = 100
TARGET = sys.argv[1]
LARGE, SMALL = np.ones(2 << 20, np.float16), np.ones(1000, np.float16)
client = kvcompress.Client(TARGET, timeout=100)
asynchronous = kvcompress.AsyncClient(TARGET, timeout=100)

def work(number=0):
    "Through shared memory and by one message."
    assert client.compress(SMALL, "raw").tensor_bytes == SMALL.nbytes
    frame = client.compress(LARGE * number, "raw")
    assert (client.decompress(frame) == LARGE * number).all()
    return client.transport

def await_work(number=0):
    async def both():
        await asynchronous.compress(SMALL, "raw")
        frame = await asynchronous.compress(LARGE * number, "raw")
        assert (await asynchronous.decompress(frame) == LARGE * number).all()
        return asynchronous.transport
    return asyncio.run(both())

def forked(function):
    "The exit code of a child that calls it; 0 for one that returns."
    pid = os.fork()
    if pid == 0:
        try:
            function()
            os._exit(0)
        except BaseException:
            import traceback
            traceback.print_exc()
        finally:
            os._exit(1)
    return pid

def joined(pid, seconds=150):
    deadline = time.monotonic() + seconds
    while (found := os.waitpid(pid, os.WNOHANG))[0] == 0:
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return "it hangs"
        time.sleep(0.01)
    return os.waitstatus_to_exitcode(found[1])

def stop(pid):
    "All of its threads: they stop one after the other, and may answer until then."
    os.kill(pid, signal.SIGSTOP)
    tasks = pathlib.Path(f"/proc/{pid}/task")
    while not all(path.read_text().rsplit(")", 1)[1].split()[0] == "T" for path in tasks.glob("*/stat")):
        time.sleep(0.001)

SHARED = "shared memory"
"""


@pytest.fixture
def server(daemon):
    return daemon("--threads", "2", "--shared-memory", PREFIX)


@pytest.fixture
def run(server, tmp_path, way):
    """Runs a program after PROGRAM, which says "good" at its end."""

    def start(code, before=""):
        path = tmp_path / "program.py"
        path.write_text(before + PROGRAM + textwrap.dedent(code))
        environment = {"PATH": "", "PYTHONDONTWRITEBYTECODE": "1", "KVCOMPRESS_NATIVE": way}
        command = [sys.executable, "-X", "faulthandler", path, server.address, str(server.pid)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
                              start_new_session=True) as process:
            try:
                said, wrong = process.communicate(timeout=300)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGABRT)  # each says where it is
                said, wrong = process.communicate()
        assert process.returncode == 0, f"exit code {process.returncode}: {wrong}{said}"
        assert said.splitlines()[-1:] == ["good"], said + wrong
        return wrong

    return start
