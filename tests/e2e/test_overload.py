"""kv-compressd with more streams than it has memory for. KVC_TIER=long: with tensors of a GiB."""

import os

import pytest
from daemon_helpers import MIB, Client
from load_helpers import expected_hashes, load, memory

STREAMS = 64
LONG = os.environ.get("KVC_TIER") == "long"
# What the process needs besides what it promises to streams: code, threads' stacks, connections.
RSS_OVERHEAD = 150 * MIB


@pytest.mark.timeout(500)
@pytest.mark.parametrize("shared_connection", [False, True], ids=["connections", "one_connection"])
def test_equal_streams_are_served_equally_within_the_budget(daemon, bin_dir, shared_connection):
    budget = 512 * MIB
    size = 1024 * MIB if LONG and not shared_connection else 64 * MIB
    expected = expected_hashes(bin_dir, STREAMS, tensor_bytes=size)
    server = daemon("--threads", "2", "--memory-budget", str(budget))
    outcomes = load(bin_dir, server.address, 400, streams=STREAMS, tensor_bytes=size, attempts=1000,
                    shared_connection=shared_connection)
    assert [outcome["codes"] for outcome in outcomes] == [{"OK": 1}] * STREAMS
    assert [outcome["hashes"] for outcome in outcomes] == expected
    peak, _ = memory(server.pid)
    assert peak <= budget + RSS_OVERHEAD
    seconds = [outcome["seconds"] for outcome in outcomes]
    assert max(seconds) <= 2 * min(seconds)
    print(f"peak {peak / MIB:.0f} MiB, {min(seconds):.2f} to {max(seconds):.2f} s, "
          f"{sum(outcome['attempts'] for outcome in outcomes)} attempts")


@pytest.mark.parametrize("direction", ["compress", "decompress"])
def test_streams_that_the_budget_refuses_finish_later(daemon, stubs, bin_dir, direction):
    budget = 64 * MIB
    # Few inputs: their frames are held by the process that sends them.
    flags = {"tensor_bytes": 32 * MIB, "inputs": 4, "decompress": direction == "decompress"}
    expected = expected_hashes(bin_dir, STREAMS, **flags)
    server = daemon("--threads", "2", "--memory-budget", str(budget))
    outcomes = load(bin_dir, server.address, streams=STREAMS, attempts=1000, **flags)
    assert [outcome["codes"] for outcome in outcomes] == [{"OK": 1}] * STREAMS
    assert [outcome["hashes"] for outcome in outcomes] == expected
    peak, _ = memory(server.pid)
    assert peak <= budget + RSS_OVERHEAD
    metrics = Client(server, stubs).metrics()
    refusals = sum(outcome["attempts"] for outcome in outcomes) - STREAMS
    assert dict(metrics.rejected_by_reason) == {"memory_budget": refusals} and refusals > 0
    assert (metrics.streams_in_flight, metrics.bytes_in_flight, metrics.jobs_queued) == (0, 0, 0)
    print(f"peak {peak / MIB:.0f} MiB, {refusals} refusals")
