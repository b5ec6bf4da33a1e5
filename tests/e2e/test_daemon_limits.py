"""kv-compressd and clients that go away, wait, or want too much."""

import subprocess
import sys
import threading
import time

import grpc
import numpy as np
import pytest
from daemon_helpers import MIB, SERVICE, Client, Feed, failure, page, page_value, random_array, wait_for
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from http2_helpers import PREFACE, SETTINGS, Sender, connect, frame, open_call
from load_helpers import load
from safetensors.numpy import load_file


def test_a_cancelled_call_leaves_nothing_behind(client):
    for i in range(10):
        feed = Feed(client.header("t", [16 * MIB], "int4|zstd(level=3)"), client.data(bytes(2 * MIB + i)))
        call = client.stub.Compress(feed, timeout=30)
        if i % 2:
            next(call)
        wait_for(lambda: client.metrics().bytes_in_flight > 0, "bytes in flight")
        call.cancel()
        feed.close()
        client.wait_until_idle()
    assert client.calls_by_code("Compress", 10) == {"CANCELLED": 10}


def test_a_client_that_is_killed_leaves_nothing_behind(client, daemon, stubs):
    victim = Client(daemon(), stubs)
    address = victim.stub.Compress._channel.target().decode()
    # A generator that never ends keeps the call open.
    code = (
        "import grpc, sys, time\n"
        "def requests():\n"
        "    yield bytes.fromhex(sys.argv[1])\n"
        "    yield bytes.fromhex(sys.argv[2])\n"
        "    print('sent', flush=True)\n"
        "    time.sleep(60)\n"
        f"list(grpc.insecure_channel('{address}').stream_stream('/{SERVICE}/Compress')(requests()))\n"
    )
    header = victim.header("t", [MIB]).SerializeToString().hex()
    data = victim.data(bytes(1000)).SerializeToString().hex()
    process = subprocess.Popen([sys.executable, "-c", code, header, data], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"sent\n"
    wait_for(lambda: victim.metrics().streams_in_flight == 1, "the stream")
    process.kill()
    process.wait()
    victim.wait_until_idle()


def test_deadlines_hold(client):
    feed = Feed(client.header("t", [16 * MIB]), client.data(bytes(MIB)))
    start = time.monotonic()
    call = client.stub.Compress(feed, timeout=0.5)
    code, _, _ = failure(call)
    feed.close()
    assert code == grpc.StatusCode.DEADLINE_EXCEEDED
    assert time.monotonic() - start < 5
    client.wait_until_idle()
    calls = client.calls_by_code("Compress", 1)
    assert sum(calls.values()) == 1 and set(calls) <= {"DEADLINE_EXCEEDED", "CANCELLED"}


def retry_delay_ms(call):
    """What google.rpc.RetryInfo says in the details of a call's status, read by the stock library."""
    (detail,) = rpc_status.from_call(call).details
    info = error_details_pb2.RetryInfo()
    assert detail.Unpack(info)
    return info.retry_delay.ToMilliseconds()


def test_max_streams(daemon, stubs):
    client = Client(daemon("--max-streams", "2"), stubs)
    feeds = [Feed(), Feed()]
    calls = [client.stub.Compress(feed, timeout=30) for feed in feeds]
    wait_for(lambda: client.metrics().streams_in_flight == 2, "two streams")
    refused = client.stub.Decompress(iter([]), timeout=30)
    assert failure(refused) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "the limit of 2 streams is reached", [])
    assert ("grpc-retry-pushback-ms", "100") in [tuple(pair) for pair in refused.trailing_metadata()]
    assert retry_delay_ms(refused) == 100
    for feed in feeds:
        feed.close()
    assert [list(call)[0].stream.tensors for call in calls] == [0, 0]
    wait_for(lambda: client.metrics().streams_in_flight == 0, "no stream")
    assert list(client.stub.Compress(iter([]), timeout=30))[0].stream.tensors == 0
    assert client.metrics().rejected_by_reason["max_streams"] == 1


def test_a_client_that_calls_too_often(daemon, stubs):
    client = Client(daemon("--max-call-rate-per-client", "20"), stubs)
    metrics = stubs.pb.MetricsRequest()
    started, answered, refused = time.monotonic(), 0, []
    for i in range(200):
        try:
            if i % 2:
                client.stub.Metrics(metrics, timeout=10)
            else:
                list(client.stub.Compress(iter([]), timeout=10))
            answered += 1
        except grpc.RpcError as error:
            refused.append(error)
    seconds = time.monotonic() - started
    assert 20 <= answered <= 20 + 20 * seconds + 1
    for call in refused:
        assert (call.code(), call.details()) == (
            grpc.StatusCode.RESOURCE_EXHAUSTED, "the limit of 20 calls a second of one client is reached")
        pushback = int(dict(call.trailing_metadata())["grpc-retry-pushback-ms"])
        assert pushback == retry_delay_ms(call) and 1 <= pushback <= 50
    time.sleep(1.05)
    assert client.metrics().rejected_by_reason["max_call_rate_per_client"] == len(refused) > 100


def test_registrations_are_calls_too(daemon, stubs):
    stub = Client(daemon("--max-call-rate-per-client", "2", "--shared-memory", "kvc-e2e-rates-"), stubs).stub
    codes = []
    for _ in range(10):
        try:
            list(stub.SharedMemory(iter([]), timeout=10))
            codes.append(grpc.StatusCode.OK)
        except grpc.RpcError as error:
            codes.append(error.code())
    assert codes.count(grpc.StatusCode.OK) <= 4
    assert set(codes) == {grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED}


def test_buffers_without_shared_memory(client):
    """Nothing waits for buffers that cannot come."""
    header = client.header("t", [1000])
    header.header.frame_to_buffer = True
    assert failure(client.stub.Compress(Feed(header, client.data(bytes(2000))), timeout=10))[:2] == (
        grpc.StatusCode.FAILED_PRECONDITION, "shared memory is not enabled")


@pytest.mark.parametrize("codec, elements, budget, refused", [
    ("raw|zstd", 10 * MIB, 64 * MIB, 7),
    ("int4", 60_000, MIB, 4),  # made where the call came in, without a thread of the pool
])
def test_answers_that_nobody_takes_stay_charged(daemon, stubs, codec, elements, budget, refused):
    """Of single tensors, to clients that do not let them be sent."""
    server = daemon("--memory-budget", str(budget))
    client = Client(server, stubs)
    frames, _, _ = client.compress({"t": np.zeros(elements, np.float16)}, codec=codec)
    request = stubs.pb.DecompressTensorRequest(header=stubs.pb.DecompressHeader(name="t"), frame=frames["t"])
    body = request.SerializeToString()
    data = b"\0" + len(body).to_bytes(4, "big") + body
    assert len(data) < 65_536  # the window of a connection
    no_window = b"\x00\x04" + (0).to_bytes(4, "big")  # SETTINGS_INITIAL_WINDOW_SIZE
    connections = [connect(server.address) for _ in range(10)]
    for connection in connections:
        connection.sendall(PREFACE + frame(SETTINGS, no_window) + frame(SETTINGS, flags=1))
        connection.sendall(open_call(1, f"/{SERVICE}/DecompressTensor"))
        for at in range(0, len(data), 16384):
            connection.sendall(frame(0, data[at:at + 16384], int(at + 16384 >= len(data)), 1))
    wait_for(lambda: client.metrics().rejected_by_reason["memory_budget"] == refused, "refusals")
    wait_for(lambda: client.metrics().streams_in_flight == 0, "the answers")
    assert 0.85 * budget <= client.metrics().bytes_in_flight <= budget
    for connection in connections:
        connection.close()
    client.wait_until_idle()


def test_whoever_retries_as_told_gets_everything_done(daemon, bin_dir):
    server = daemon("--max-call-rate-per-client", "50")
    started = time.monotonic()
    outcomes = load(bin_dir, server.address, streams=4, calls=25, attempts=100, tensor_bytes=1 << 16, inputs=1)
    assert [outcome["codes"] for outcome in outcomes] == [{"OK": 25}] * 4
    assert time.monotonic() - started >= 0.9  # the first 50 at once


def test_memory_budget(daemon, stubs):
    client = Client(daemon("--memory-budget", "1MiB", "--threads", "1"), stubs)
    feed = Feed(client.header("a", [200_000]), client.data(bytes(262_144)))
    call = client.stub.Compress(feed, timeout=30)
    assert next(call).frame  # a block has come, and gives way to nobody
    wait_for(lambda: client.metrics().bytes_in_flight == 800_000, "the first tensor's memory")
    refused = client.stub.Compress(iter([client.header("b", [140_000])]), timeout=30)
    text = ("the stream needs 560000 bytes (546.9 KiB) of memory, other streams hold 800000 bytes (781.2 KiB) of the "
            "--memory-budget of 1048576 bytes (1 MiB)")
    assert failure(refused) == (grpc.StatusCode.RESOURCE_EXHAUSTED, text, [])
    assert ("grpc-retry-pushback-ms", "100") in [tuple(pair) for pair in refused.trailing_metadata()]
    assert retry_delay_ms(refused) == 100
    hopeless = client.stub.Compress(iter([client.header("c", [MIB])]), timeout=30)
    text = "the stream needs 4194304 bytes (4 MiB) of memory, the whole --memory-budget is 1048576 bytes (1 MiB)"
    assert failure(hopeless) == (grpc.StatusCode.RESOURCE_EXHAUSTED, text, [])
    assert "grpc-retry-pushback-ms" not in dict(hopeless.trailing_metadata())
    assert rpc_status.from_call(hopeless) is None
    call.cancel()
    feed.close()
    client.wait_until_idle()
    assert dict(client.metrics().rejected_by_reason) == {"memory_budget": 1, "tensor_too_large": 1}
    client.compress({"d": random_array(100_000)})


def test_max_tensor_bytes(daemon, stubs):
    larger, smaller = (Client(daemon("--max-tensor-bytes", limit), stubs) for limit in ("1000", "999"))
    pb = larger.pb
    frames, _, _ = larger.compress({"a": random_array(500)}, codec="raw")
    values = random_array(501)
    whole = pb.CompressTensorRequest(header=larger.header("a", [501]).header, data=values.tobytes())
    frame_whole = pb.DecompressTensorRequest(header=pb.DecompressHeader(name="a"), frame=frames["a"])
    for client, calls, text in [
        (larger, [lambda: larger.compress({"a": values}), lambda: larger.stub.CompressTensor(whole, timeout=30)],
         "1002 bytes are above the limit of 1000"),
        (smaller, [lambda: smaller.decompress(frames), lambda: smaller.stub.DecompressTensor(frame_whole, timeout=30)],
         "1000 bytes are above the limit of 999"),
    ]:
        for call in calls:
            with pytest.raises(grpc.RpcError) as error:
                call()
            refusal = (grpc.StatusCode.RESOURCE_EXHAUSTED, f'tensor "a": {text}')
            assert (error.value.code(), error.value.details()) == refusal
        assert dict(client.metrics().rejected_by_reason) == {"tensor_too_large": 2}


def test_a_client_that_does_not_read_is_not_read(daemon, stubs):
    server = daemon("--threads", "2")
    # Nothing is buffered on the client's side beyond HTTP/2's window.
    client = Client(server, stubs, ("grpc.http2.lookahead_bytes", 65536), ("grpc.http2.bdp_probe", 0))
    sent = []

    def requests():
        yield client.header("t", [64 * MIB], "raw")
        for _ in range(128):
            sent.append(1)
            yield client.data(bytes(MIB))

    def resident():
        return page_value(page(server.metrics_address), "process_resident_memory_bytes")

    before = resident()
    call = client.stub.Compress(requests(), timeout=60)
    assert next(call).WhichOneof("payload") == "frame"
    settled = [0, 0]

    def stalled():
        now = len(sent)
        settled[:] = [settled[0] + 1, now] if now == settled[1] else [0, now]
        return settled[0] >= 50
    wait_for(stalled, "a sender that is held back")
    assert len(sent) < 40
    metrics = client.metrics()
    assert metrics.bytes_in_flight == 2 * (12 + 1) * (1 << 18)
    assert metrics.jobs_queued == 0
    assert resident() - before < 48 * MIB
    # And on it goes.
    kinds = [response.WhichOneof("payload") for response in call]
    assert kinds[-2:] == ["tensor", "stream"] and len(sent) == 128


def test_a_frame_that_grows_a_thousand_times_is_held_back(daemon, stubs):
    server = daemon("--threads", "2")
    client = Client(server, stubs, ("grpc.http2.lookahead_bytes", 65536), ("grpc.http2.bdp_probe", 0))
    frame = client.compress({"t": np.zeros(64 * MIB, np.float32)}, codec="raw|zstd(level=3)")[0]["t"]
    assert len(frame) < MIB
    before = page_value(page(server.metrics_address), "process_resident_memory_bytes")
    call = client.stub.Decompress(client.decompress_requests({"t": frame}), timeout=60)
    next(call)
    time.sleep(0.5)
    assert page_value(page(server.metrics_address), "process_resident_memory_bytes") - before < 48 * MIB
    total = sum(len(response.data) for response in call)
    assert total == 256 * MIB


@pytest.mark.parametrize("flags, least, most", [((), 192 << 10, 200 << 10), (("--adaptive-windows",), MIB, 1 << 30)])
def test_the_receive_window_of_a_connection(daemon, stubs, flags, least, most):
    """It takes a tensor of 64 KiB with its header at once, and does not grow however much comes."""
    server = daemon(*flags)
    client = Client(server, stubs)
    sender = Sender(server.address)
    sender.open(1, f"/{SERVICE}/Compress")

    def windows_at_rest():
        while sender.hear():
            pass
        return sender.window(0), sender.window(1)

    assert all(least <= window <= most for window in windows_at_rest())
    # What comes of it fits into the window of our side.
    messages = [client.header("t", [16 * MIB], "int4|zstd(level=1)"), *(client.data(bytes(MIB)) for _ in range(32))]
    for message in messages:
        body = message.SerializeToString()
        data = b"\0" + len(body).to_bytes(4, "big") + body
        assert sender.send(1, data) == len(data)
    assert all(least <= window <= most for window in windows_at_rest())
    wait_for(lambda: client.metrics().codecs[0].tensor_bytes_in == 32 * MIB, "the tensor")
    sender.connection.close()


def test_many_clients_at_once(client, sample):
    tensors = load_file(sample)
    expected = client.compress(tensors)[0]
    results = []

    def work(index):
        frames, _, _ = client.compress(tensors, chunk=10_000 + index)
        arrays, _, _ = client.decompress(frames)
        results.append(frames == expected and len(arrays) == len(tensors))
    threads = [threading.Thread(target=work, args=(index,)) for index in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert results == [True] * 16
    client.wait_until_idle()
