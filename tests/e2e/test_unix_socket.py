"""Serving on unix sockets: beside TCP, taking over a dead daemon's socket, permissions, the end."""

import os
import signal
import socket
import stat
import subprocess

import grpc
import numpy as np
import pytest
from daemon_helpers import Client, random_array, wait_for


class Place:
    """A folder for sockets."""

    def __init__(self, path):
        self.path = path
        self.socket = path / "kvc.sock"
        self.address = f"unix:{self.socket}"


@pytest.fixture
def place(socket_dir):
    return Place(socket_dir)


class At:
    """What a Client needs of a daemon: a channel to one of its addresses."""

    def __init__(self, address):
        self.address = address

    def channel(self, *options):
        return grpc.insecure_channel(self.address, options=options)


def run(bin_dir, *args):
    return subprocess.run([bin_dir / "kv-compressd", *map(str, args)], capture_output=True, text=True, timeout=30)


def refusal(bin_dir, address, *flags):
    """The line with which a daemon does not start."""
    result = run(bin_dir, "--listen", address, "--metrics-listen", "off", "--log-level", "error", *flags)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("kv-compressd: ") and result.stderr.count("\n") == 1, result.stderr
    return result.stderr[len("kv-compressd: "):-1]


def test_calls_over_tcp_and_unix_sockets_give_the_same(daemon, stubs, place):
    server = daemon("--listen", f"{place.address},unix:{place.path}/other.sock")
    assert server.listen[1:] == [place.address, f"unix:{place.path}/other.sock"]
    array = {"t": random_array((64, 1000))}
    frames = [Client(At(address), stubs).compress(array)[0] for address in server.listen]
    assert frames[0] == frames[1] == frames[2]
    back, _, _ = Client(At(place.address), stubs).decompress(frames[0])
    assert np.abs(back["t"] - array["t"]).max() < 0.5
    wait_for(lambda: "peer=unix:" in server.log(), "the call's line in the log")


def test_the_socket_goes_with_the_daemon(daemon, place):
    server = daemon("--listen", place.address)
    assert stat.S_ISSOCK(os.stat(place.socket).st_mode)
    assert "plaintext" not in server.log()
    assert server.stop() == 0
    assert not place.socket.exists()


@pytest.mark.parametrize("flags, mode", [((), 0o660), (("--unix-socket-mode", "0606"), 0o606)])
def test_permissions(daemon, place, flags, mode):
    daemon("--listen", place.address, *flags)
    assert stat.S_IMODE(os.stat(place.socket).st_mode) == mode


def test_a_dead_daemons_socket_is_replaced(daemon, stubs, place):
    dead = daemon("--listen", place.address)
    dead.signal(signal.SIGKILL)
    dead.wait()
    assert place.socket.exists()
    daemon("--listen", place.address)
    assert Client(At(place.address), stubs).metrics().uptime_seconds > 0


def test_a_living_daemons_socket_is_not(bin_dir, daemon, stubs, place):
    daemon("--listen", place.address)
    assert refusal(bin_dir, place.address) == f"listen on {place.address}: address already in use"
    assert Client(At(place.address), stubs).metrics().uptime_seconds > 0


def test_nor_is_one_of_somebody_else(bin_dir, place):
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(place.socket))
        other.listen()
        assert refusal(bin_dir, place.address) == f"listen on {place.address}: address already in use"
        assert place.socket.exists()
    place.socket.unlink()
    place.socket.write_text("a file")
    assert refusal(bin_dir, place.address) == f"listen on {place.address}: address already in use"
    assert place.socket.read_text() == "a file"


def test_places_where_no_socket_can_be(bin_dir, place):
    missing = f"unix:{place.path}/none/kvc.sock"
    assert refusal(bin_dir, missing) == f"listen on {missing}: no such file or directory"
    long = f"unix:{place.path}/" + "x" * 107
    result = run(bin_dir, "--listen", long)
    assert result.returncode == 2
    assert result.stderr == f'kv-compressd: --listen: "{long}": expected a path of 1 to 107 bytes behind unix:\n'
    if os.geteuid() != 0:
        place.path.chmod(0o500)
        assert refusal(bin_dir, place.address) == f"listen on {place.address}: permission denied"


def test_a_start_that_fails_leaves_no_socket(bin_dir, daemon, place):
    server = daemon()
    assert refusal(bin_dir, f"{place.address},{server.address}") == f"listen on {server.address}: address already in use"
    assert not place.socket.exists()


def test_healthcheck(bin_dir, daemon, place):
    server = daemon("--listen", place.address)
    for flags in (["--listen", place.address], ["--healthcheck-target", place.address]):
        result = run(bin_dir, "--healthcheck", *flags)
        assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert server.stop() == 0
    result = run(bin_dir, "--healthcheck", "--listen", place.address)
    assert result.returncode == 1 and result.stderr.startswith(f"kv-compressd: {place.address}: ")
