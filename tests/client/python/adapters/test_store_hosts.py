"""One Redis and several hosts, each a network namespace."""

import os
import shutil
import subprocess
import sys

import pytest
from redis_servers import Server

WRITER = """
import sys
from kvcompress.store import open_store
store = open_store(sys.argv[1], "n")
assert all(store.put_many((f"{key}", f"{key}".encode() * 10000) for key in range(200))), store.stats()
"""
READER = """
import sys
from kvcompress.store import open_store
store = open_store(sys.argv[1], "n")
keys = [f"{key}" for key in range(210)]
assert store.exists_many(keys) == [True] * 200 + [False] * 10
found = store.get_many(keys, 40000)
assert [one == key.encode() * 10000 for key, one in zip(keys, found)] == [True] * 200 + [False] * 10
assert store.stats().hits == 200
"""


@pytest.fixture
def hosts():
    """Three network namespaces behind one bridge, as hosts of a network: the names, and their addresses."""
    prefix = f"kvc{os.getpid() % 100000}"
    names, made = [f"{prefix}{letter}" for letter in "abc"], []

    def ip(*arguments):
        return subprocess.run(["ip", *arguments], capture_output=True).returncode == 0

    try:
        if os.geteuid() != 0 or shutil.which("ip") is None or not ip("link", "add", prefix, "type", "bridge"):
            pytest.skip("no network namespaces can be made here")
        made.append(("link", "del", prefix))
        assert ip("link", "set", prefix, "up")
        for number, name in enumerate(names):
            assert ip("netns", "add", name)
            made.append(("netns", "del", name))
            assert ip("link", "add", f"{name}v", "type", "veth", "peer", "name", "eth0", "netns", name)
            made.append(("link", "del", f"{name}v"))
            assert ip("link", "set", f"{name}v", "master", prefix, "up")
            assert ip("-n", name, "address", "add", f"10.213.7.{number + 1}/24", "dev", "eth0")
            assert ip("-n", name, "link", "set", "eth0", "up")
            assert ip("-n", name, "link", "set", "lo", "up")
        yield names, [f"10.213.7.{number + 1}" for number in range(3)]
    finally:
        for command in reversed(made):
            ip(*command)


def test_a_host_gets_what_another_has_put(hosts, tmp_path):
    names, addresses = hosts
    inside = ("ip", "netns", "exec", names[0])
    server = Server(tmp_path, "--protected-mode", "no", host=addresses[0], port=6379, netns=inside)
    try:
        for name, program in ((names[1], WRITER), (names[2], READER)):
            subprocess.run(["ip", "netns", "exec", name, sys.executable, "-c", program, server.url], check=True)
    finally:
        server.stop()


def test_a_network_that_is_cut_costs_a_bounded_wait_and_heals(hosts, tmp_path):
    """Nobody answers, and nobody refuses: packets are lost."""
    names, addresses = hosts
    program = """
import subprocess, sys, time
from kvcompress.store import open_store
store = open_store(sys.argv[1] + "?timeout=0.3", "n")
assert store.put("a", b"1")
subprocess.run(["ip", "link", "set", "eth0", "down"], check=True)
begin = time.monotonic()
assert [store.get("a", 1) for _ in range(100)] == [None] * 100
assert time.monotonic() - begin < 3, time.monotonic() - begin
subprocess.run(["ip", "link", "set", "eth0", "up"], check=True)
deadline = time.monotonic() + 20
while store.get("a", 1) != b"1":
    assert time.monotonic() < deadline
    time.sleep(0.05)
"""
    inside = ("ip", "netns", "exec", names[0])
    server = Server(tmp_path, "--protected-mode", "no", host=addresses[0], port=6379, netns=inside)
    try:
        subprocess.run(["ip", "netns", "exec", names[1], sys.executable, "-c", program, server.url], check=True)
    finally:
        server.stop()
