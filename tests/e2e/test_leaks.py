"""Nothing is left of ten thousand calls, however they end, nor of an hour's."""

import os

import pytest
from daemon_helpers import MIB, Client, page, page_value, wait_for
from load_helpers import Load, descriptors, load, memory
from shm_helpers import Object, Registration

PREFIX = "kvc-e2e-leaks-"
STREAMS = 4


def shared_objects():
    return [name for name in os.listdir("/dev/shm") if name.startswith(PREFIX)]


def shared_mappings(pid):
    with open(f"/proc/{pid}/maps") as maps:
        return [line for line in maps if "/dev/shm/" in line]


class Mix:
    """Calls of every kind on one daemon."""

    def __init__(self, bin_dir, server, client, socket):
        self.bin_dir, self.server, self.client, self.addresses = bin_dir, server, client, [server.address, socket]
        client.wait_until_idle()
        page(server.metrics_address)
        self.files = descriptors(server.pid)

    def calls(self):
        return sum(sum(method.calls_by_code.values()) for method in self.client.metrics().methods
                   if method.method != "Metrics")

    def run(self, calls=65):
        """Small calls, so many on each of 32 streams, and some of all ends that calls have."""
        for decompress in (False, True):
            for address in self.addresses:
                for shared_memory in (False, True):
                    self._load({"OK"}, calls, address=address, decompress=decompress, shared_memory=shared_memory)
        self._load({"INVALID_ARGUMENT"}, 100, codec="int9")
        # Some of these are over in time.
        self._load({"OK", "DEADLINE_EXCEEDED"}, 100, timeout="500us")
        self._registrations(20)

    def disrupt(self):
        """Large calls that are broken off."""
        self._load({"OK", "DEADLINE_EXCEEDED"}, 25, tensor_bytes=4 * MIB, timeout="2ms")
        for shared_memory in (False, True):
            self._killed(shared_memory)

    def _load(self, codes, calls, address=None, **flags):
        flags = {"tensor_bytes": 1 << 16, "inputs": 1, **flags}
        for outcome in load(self.bin_dir, address or self.server.address, streams=STREAMS, calls=calls, **flags):
            assert set(outcome["codes"]) <= codes, outcome

    def _killed(self, shared_memory):
        with Load(self.bin_dir, self.server.address, streams=STREAMS, inputs=1, tensor_bytes=1024 * MIB, calls=1000,
                  shared_memory=shared_memory) as running:
            wait_for(lambda: self.client.metrics().streams_in_flight == STREAMS, "the load")
            assert bool(shared_mappings(self.server.pid)) == shared_memory
            running.kill()
        self.client.wait_until_idle()

    def _registrations(self, count):
        """Of regions whose streams are broken off: before and after they are confirmed."""
        with Object("region", MIB, PREFIX) as thing:
            for index in range(count):
                stream = Registration(self.client)
                if index % 2:
                    stream.register("r", thing)
                else:
                    stream.begin("r", thing)
                stream.cancel()

    def settle(self):
        """The resident bytes of a daemon that has nothing left to do, and holds nothing more than in the beginning."""
        self.client.wait_until_idle()
        wait_for(lambda: not shared_mappings(self.server.pid), "the end of all regions")
        assert page_value(page(self.server.metrics_address), "kvcompress_shared_memory_bytes") == 0
        # Connections end some time after the processes that held them; the client's own and the page's stay or go.
        wait_for(lambda: descriptors(self.server.pid) <= self.files, "closed connections")
        return memory(self.server.pid)[1]


@pytest.fixture
def mix(daemon, stubs, bin_dir, socket_dir):
    socket = f"unix:{socket_dir}/kvc.sock"
    # One arena: what the allocator keeps for each of several threads would look like growth.
    server = daemon("--threads", "2", "--shared-memory", PREFIX, "--listen", socket, "--log-level", "error",
                    env={"MALLOC_ARENA_MAX": "1"})
    yield Mix(bin_dir, server, Client(server, stubs), socket)
    assert shared_objects() == []


def growth_by_round(mix, rounds, **flags):
    """Resident bytes that each round of calls adds, but for the first."""
    resident = []
    for _ in range(rounds):
        mix.run(**flags)
        resident.append(mix.settle())
    growth = [after - before for before, after in zip(resident, resident[1:])]
    print(f"{mix.calls()} calls, {[f'{bytes / 1024:.0f} KiB' for bytes in growth]} more")
    return growth


def test_ten_thousand_calls_leave_nothing(mix):
    growth = growth_by_round(mix, 4)
    assert mix.calls() >= 10_000
    # What leaks grows in every round, and nothing else does: 200 bytes a call would show. Small calls leave the
    # allocator no memory to spare in which a leak could hide.
    assert min(growth) < MIB // 2
    for _ in range(3):
        mix.disrupt()
    mix.settle()


def test_an_hour_of_fifty_calls_a_second_leaves_nothing(mix):
    growth = growth_by_round(mix, 6, calls=940)
    assert mix.calls() >= 180_000
    # Ten bytes a call would show.
    assert min(growth) < 300 * 1024
    assert sum(growth) < 4 * MIB
