"""Floods of HTTP/2 end at the balancer, configured as deploy/haproxy/haproxy.cfg has it."""

import pathlib
import re
import shutil
import socket
import subprocess

import pytest
from daemon_helpers import MIB, SERVICE, Client, random_array, wait_for
from http2_helpers import CONTINUATION, PREFACE, RST_STREAM, SETTINGS, connect, frame, header_field, open_call
from load_helpers import memory

CONFIGURATION = pathlib.Path(__file__).resolve().parents[2] / "deploy" / "haproxy" / "haproxy.cfg"
HAPROXY = shutil.which("haproxy", path="/usr/sbin:/usr/local/sbin:/usr/local/bin:/usr/bin")
BEGINNING = PREFACE + frame(SETTINGS) + frame(SETTINGS, flags=1)
CANCEL = (8).to_bytes(4, "big")


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def configure(text, replica, port, metrics_port):
    """The same, with one replica and on ports of this machine; no name service is asked."""
    text = re.sub(r"^resolvers .*?\n\n", "", text, flags=re.MULTILINE | re.DOTALL)
    for before, after in [(" resolvers docker init-addr none", ""), ("bind :50051", f"bind 127.0.0.1:{port}"),
                          ("bind :8405", f"bind 127.0.0.1:{metrics_port}"),
                          ("server-template replica 10 kv-compressd:50051", f"server replica {replica} check")]:
        assert text.count(before) == 1, before
        text = text.replace(before, after)
    return text


@pytest.fixture
def balanced(daemon, tmp_path):
    """A daemon, and the address of the balancer before it."""
    assert HAPROXY, "haproxy is not installed: scripts/install-deps.sh --test"
    server = daemon("--memory-budget", "64MiB")
    port = free_port()
    (tmp_path / "haproxy.cfg").write_text(configure(CONFIGURATION.read_text(), server.address, port, free_port()))
    process = subprocess.Popen([HAPROXY, "-db", "-f", tmp_path / "haproxy.cfg"], stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL)
    try:
        yield server, f"127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def serves(server, stubs, address):
    server.address = address
    client = Client(server, stubs, ("grpc.use_local_subchannel_pool", 1))
    return list(client.compress({"t": random_array(1000)}, timeout=10)[0]) == ["t"]


def unfinished_headers():
    yield open_call(1, f"/{SERVICE}/Compress", flags=0)
    for _ in range(1024):
        yield frame(CONTINUATION, b"\0\1x\x7f\x81\xfe\x3f" + bytes(8192), 0, 1) * 32


def small_fields_without_end():
    yield open_call(1, f"/{SERVICE}/Compress", flags=0)
    for _ in range(1024):
        yield frame(CONTINUATION, header_field("x", "y" * 100) * 150, 0, 1) * 16


def calls_without_messages():
    for first in range(1, 200_001, 200):
        yield b"".join(open_call(stream, f"/{SERVICE}/Compress") for stream in range(first, first + 200, 2))


def calls_reset_at_once():
    for first in range(1, 200_001, 200):
        yield b"".join(open_call(stream, f"/{SERVICE}/Compress") + frame(RST_STREAM, CANCEL, 0, stream)
                       for stream in range(first, first + 200, 2))


@pytest.mark.parametrize("flood, peak_mib", [
    (unfinished_headers, 64),
    (small_fields_without_end, 64),
    (calls_without_messages, 64),
    # Those below the balancer's rate of calls come through; the daemon holds them to what it may take.
    (calls_reset_at_once, 64 + 150),
])
def test_floods_end_at_the_balancer(balanced, stubs, flood, peak_mib):
    server, address = balanced

    def is_up():
        try:
            return serves(server, stubs, address)
        except Exception:  # pylint: disable=broad-except  # of any kind, while the balancer begins
            return False
    wait_for(is_up, "the balancer")
    connection = connect(address)
    connection.settimeout(5)
    try:
        connection.sendall(BEGINNING)
        for data in flood():
            connection.sendall(data)
    except OSError:
        pass  # it is not read any more, or closed
    peak, _ = memory(server.pid)
    print(f"{peak / MIB:.0f} MiB")
    assert peak <= peak_mib * MIB
    connection.close()
    wait_for(is_up, "service for an address that is below its rate again")
