"""kv-compressd and its clients under load: killed, drained, gone, stalled."""

import signal
import socket
import time

import grpc
import pytest
from daemon_helpers import MIB, Client, failure, wait_for
from load_helpers import Load, descriptors, expected_hashes, load

STREAMS = 8
# A second and more of work for all streams together, wherever this runs.
TENSOR = {"tensor_bytes": 512 * MIB, "inputs": 2}


def streams_in_flight(server, stubs, count=STREAMS):
    """Returns once blocks of so many streams have been in the codec."""
    client = Client(server, stubs)
    wait_for(lambda: client.metrics().streams_in_flight == count and client.metrics().bytes_in_flight > 0, "the load")
    return client


def free_port():
    """A TCP port that is free, and that the system gives to nobody who asks for any."""
    first = int(open("/proc/sys/net/ipv4/ip_local_port_range").read().split()[0])
    for port in range(first - 1, 1024, -1):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
                return port
            except OSError:
                continue
    raise AssertionError("no port is free")


def test_clients_of_a_killed_daemon_get_unavailable(daemon, stubs, bin_dir):
    server = daemon("--threads", "2")
    with Load(bin_dir, server.address, streams=STREAMS, **TENSOR) as running:
        streams_in_flight(server, stubs)
        server.signal(signal.SIGKILL)
        server.wait()
        outcomes = running.outcomes(30)
    assert [outcome["codes"] for outcome in outcomes] == [{"UNAVAILABLE": 1}] * STREAMS
    assert all(outcome["error"].startswith(f"daemon {server.address}: ") for outcome in outcomes)


@pytest.mark.parametrize("transport", ["tcp", "unix"])
def test_calls_survive_a_daemon_that_is_killed_and_started_again(daemon, stubs, bin_dir, socket_dir, transport):
    expected = expected_hashes(bin_dir, STREAMS, **TENSOR)
    address = f"127.0.0.1:{free_port()}" if transport == "tcp" else f"unix:{socket_dir}/kvc.sock"
    server = daemon("--threads", "2", "--listen", address)
    with Load(bin_dir, address, streams=STREAMS, attempts=100, **TENSOR) as running:
        for _ in range(2):
            streams_in_flight(server, stubs)
            server.signal(signal.SIGKILL)
            server.wait()
            server = daemon("--threads", "2", "--listen", address)
        outcomes = running.outcomes()
    assert [outcome["codes"] for outcome in outcomes] == [{"OK": 1}] * STREAMS
    assert [outcome["hashes"] for outcome in outcomes] == expected
    assert all(outcome["attempts"] >= 3 for outcome in outcomes)


def test_a_drain_under_load_finishes_what_is_in_flight(daemon, stubs, bin_dir):
    expected = expected_hashes(bin_dir, STREAMS, **TENSOR)
    server = daemon("--threads", "2")
    with Load(bin_dir, server.address, streams=STREAMS, calls=2, **TENSOR) as running:
        client = streams_in_flight(server, stubs)
        server.signal(signal.SIGTERM)
        wait_for(lambda: client.metrics().draining, "the drain")
        assert failure(client.stub.Compress(iter([]), timeout=30))[:2] == (
            grpc.StatusCode.UNAVAILABLE, "the server is draining")
        outcomes = running.outcomes()
    # Of the two calls of each stream the first was in flight.
    assert [outcome["codes"] for outcome in outcomes] == [{"OK": 1, "UNAVAILABLE": 1}] * STREAMS
    assert [outcome["hashes"] for outcome in outcomes] == expected
    assert server.wait() == 0
    assert "drain timeout" not in server.log()


@pytest.mark.parametrize("decompress", [False, True])
def test_a_client_that_is_killed_under_load_leaves_nothing(daemon, stubs, bin_dir, decompress):
    server = daemon("--threads", "2")
    client = Client(server, stubs)
    client.wait_until_idle()
    before = descriptors(server.pid)
    size = TENSOR["tensor_bytes"]
    with Load(bin_dir, server.address, streams=STREAMS, tensor_bytes=size, inputs=1, decompress=decompress) as running:
        streams_in_flight(server, stubs)
        running.kill()
    client.wait_until_idle()
    wait_for(lambda: descriptors(server.pid) <= before, "closed connections")
    name = "Decompress" if decompress else "Compress"
    assert client.calls_by_code(name, STREAMS) == {"CANCELLED": STREAMS}


class StalledReader:
    """A call that sends for ever and takes none of its replies."""

    def __init__(self, server, stubs, timeout):
        # Nothing is buffered on this side beyond HTTP/2's window.
        self.client = Client(server, stubs, ("grpc.http2.lookahead_bytes", 65536), ("grpc.http2.bdp_probe", 0),
                             ("grpc.use_local_subchannel_pool", 1))
        self.sent = 0
        self.call = self.client.stub.Compress(self._requests(), timeout=timeout)

    def _requests(self):
        yield self.client.header("t", [1 << 30], "raw")
        for _ in range(2048):
            self.sent += 1
            yield self.client.data(bytes(MIB))


def settle(readers):
    """Waits until none of the readers has sent anything for a second."""
    last = [None, time.monotonic()]

    def settled():
        now = [reader.sent for reader in readers]
        if now != last[0] or not all(now):
            last[:] = [now, time.monotonic()]
        return time.monotonic() - last[1] > 1
    wait_for(settled, "readers that are no longer read from", 60)


def test_readers_that_stall_hold_their_window_and_slow_nobody(daemon, stubs, bin_dir):
    server = daemon("--threads", "2")
    client = Client(server, stubs)

    def seconds():
        """Of four streams, the best of three runs."""
        runs = [load(bin_dir, server.address, streams=4, tensor_bytes=64 * MIB) for _ in range(3)]
        assert all(outcome["codes"] == {"OK": 1} for run in runs for outcome in run)
        return min(max(outcome["seconds"] for outcome in run) for run in runs)

    alone = seconds()
    readers = [StalledReader(server, stubs, timeout=120) for _ in range(STREAMS)]
    settle(readers)
    metrics = client.metrics()
    # Two windows, input and output, of twelve blocks and the one that overfills them.
    assert metrics.bytes_in_flight == STREAMS * 2 * (12 + 1) * (1 << 18)
    assert (metrics.streams_in_flight, metrics.jobs_queued) == (STREAMS, 0)
    assert max(reader.sent for reader in readers) < 40
    assert seconds() < 2 * alone
    assert client.metrics().streams_in_flight == STREAMS
    # Those that go away are forgotten like any other.
    for reader in readers:
        reader.call.cancel()
    client.wait_until_idle()


def test_the_deadline_of_a_reader_that_stalls_frees_what_it_holds(daemon, stubs):
    server = daemon("--threads", "2")
    client = Client(server, stubs)
    readers = [StalledReader(server, stubs, timeout=3) for _ in range(STREAMS)]
    settle(readers)
    client.wait_until_idle()
    for reader in readers:
        assert reader.call.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    calls = client.calls_by_code("Compress", STREAMS)
    assert sum(calls.values()) == STREAMS and set(calls) <= {"DEADLINE_EXCEEDED", "CANCELLED"}
