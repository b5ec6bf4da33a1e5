"""kv-compressd with more streams than it has memory for. KVC_TIER=long: with tensors of a GiB."""

import os
import statistics
import time

import pytest
from daemon_helpers import MIB, Client, random_array, wait_for
from http2_helpers import Forwarder
from load_helpers import Load, expected_hashes, load, memory

STREAMS = 64
LONG = os.environ.get("KVC_TIER") == "long"
# What the process needs besides what it promises to streams: code, threads' stacks, connections.
RSS_OVERHEAD = 150 * MIB


@pytest.mark.parametrize("decompress", [False, True])
def test_the_output_that_load_keeps_is_what_it_hashes(bin_dir, decompress):
    flags = {"calls": 2, "tensor_bytes": 300_000, "decompress": decompress}
    kept = [outcome["hashes"] for outcome in load(bin_dir, "local", streams=2, keep=True, **flags)]
    assert kept == expected_hashes(bin_dir, 2, **flags)


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


@pytest.mark.parametrize("codec", ["raw|zstd(level=19)", "raw|cabac|cabac|cabac"], ids=["zstd", "cabac"])
def test_a_neighbour_does_not_wait_behind_another_clients_slow_streams(daemon, stubs, bin_dir, codec):
    """As many streams as one client may have, each with blocks that take long: 190 of them made a tensor of 1 MiB wait
    for a block of each."""
    server = daemon("--threads", "2", "--memory-budget", "4GiB")
    own, address = Client(server, stubs), server.address
    forwarder = Forwarder(server.address, "127.0.0.2")
    server.address = forwarder.address
    neighbour = Client(server, stubs, ("grpc.use_local_subchannel_pool", 1))
    values = random_array(MIB // 2)
    request = stubs.pb.CompressTensorRequest(header=neighbour.header("t", values.shape).header, data=values.tobytes())

    def seconds():
        start = time.monotonic()
        neighbour.stub.CompressTensor(request, timeout=60)
        return time.monotonic() - start
    seconds()
    with Load(bin_dir, address, streams=150, tensor_bytes=8 * MIB, calls=100, codec=codec,
              shared_connection=True):
        wait_for(lambda: own.metrics().jobs_queued >= 300, "a queue of slow blocks", 60)
        waits = [seconds() for _ in range(5)]
        assert own.metrics().jobs_queued >= 300
    forwarder.close()
    print(f"median {statistics.median(waits) * 1e3:.0f} ms, worst {max(waits) * 1e3:.0f} ms")
    assert statistics.median(waits) < 1 and max(waits) < 3
