"""Streams whose clients stand still, and those that are only slow."""

import threading
import time

import grpc
import numpy as np
import pytest
from daemon_helpers import MIB, SERVICE, Client, Feed, failure, random_array, wait_for
from http2_helpers import PREFACE, SETTINGS, Sender, connect, frame, open_call
from shm_helpers import PREFIX, Object, Registration

IDLE = (grpc.StatusCode.DEADLINE_EXCEEDED,
        "the stream has stood still for longer than 1000 ms: no message has come whole, although it was the client's turn")


def test_clients_that_stand_still(daemon, stubs):
    """Before the first header, within a tensor, within a frame, between two tensors."""
    client = Client(daemon("--stream-idle-timeout", "1s"), stubs)
    frames, _, _ = client.compress({"t": random_array(300_000)})
    stub = client.stub
    beginnings = [
        (stub.Compress, []),
        (stub.Compress, [client.header("a", [1000]), client.data(bytes(100))]),
        (stub.Decompress, [client.frame_header("a"), client.frame(frames["t"][:200_000])]),
        (stub.Compress, [client.header("a", [1000]), client.data(bytes(2000))]),
    ]
    start = time.monotonic()
    feeds = [Feed(*requests) for _, requests in beginnings]
    calls = [method(feed, timeout=30) for (method, _), feed in zip(beginnings, feeds, strict=True)]
    for call in calls:
        assert failure(call)[:2] == IDLE
    assert 1 <= time.monotonic() - start < 10
    for feed in feeds:
        feed.close()
    client.wait_until_idle()
    assert dict(client.metrics().rejected_by_reason) == {"stream_idle": 4}
    assert client.calls_by_code("Compress", 4) == {"OK": 1, "DEADLINE_EXCEEDED": 3}


def test_a_buffer_that_stands_after_input_which_is_not_read(daemon, stubs):
    """The output fills the window without a buffer, and messages with bytes are not read until it has one."""
    server = daemon("--stream-idle-timeout", "1s", "--shared-memory", PREFIX)
    client = Client(server, stubs)
    with Object("late", MIB) as thing:
        registration = Registration(client)
        region = registration.register("late", thing)

        def requests():
            header = client.header("t", [32 * MIB], "raw")
            header.header.frame_to_buffer = True
            yield header
            for _ in range(64):
                yield client.data(bytes(MIB))
            yield stubs.pb.CompressRequest(frame_buffer=stubs.pb.SharedMemoryRange(region=region, byte_size=MIB))

        assert failure(client.stub.Compress(requests(), timeout=30))[:2] == IDLE
        registration.close()
    client.wait_until_idle()


def test_a_message_that_never_ends(daemon, stubs):
    server = daemon("--stream-idle-timeout", "1s")
    client = Client(server, stubs)
    sender = Sender(server.address)
    sender.open(1, f"/{SERVICE}/Compress")
    message = b"\0" + (4_000_000).to_bytes(4, "big") + bytes(3_999_999)
    assert sender.send(1, message) == len(message)
    assert client.metrics().streams_in_flight == 1
    wait_for(lambda: client.metrics().streams_in_flight == 0, "the stream's end")
    assert client.calls_by_code("Compress", 1) == {"DEADLINE_EXCEEDED": 1}
    sender.connection.close()


@pytest.mark.parametrize("method", ["Decompress", "DecompressTensor"])
def test_answers_that_nobody_takes_are_given_up(daemon, stubs, method):
    server = daemon("--stream-idle-timeout", "200ms")
    client = Client(server, stubs)
    frames, _, _ = client.compress({"t": np.zeros(MIB, np.float16)}, codec="raw|zstd")
    header = stubs.pb.DecompressHeader(name="t")
    if method == "Decompress":
        messages = [client.frame_header("t"), client.frame(frames["t"])]
    else:
        messages = [stubs.pb.DecompressTensorRequest(header=header, frame=frames["t"])]
    no_window = b"\x00\x04" + (0).to_bytes(4, "big")  # SETTINGS_INITIAL_WINDOW_SIZE
    connection = connect(server.address)
    connection.sendall(PREFACE + frame(SETTINGS, no_window) + frame(SETTINGS, flags=1) +
                       open_call(1, f"/{SERVICE}/{method}"))
    for message in messages:
        body = message.SerializeToString()
        end_stream = int(message is messages[-1])
        connection.sendall(frame(0, b"\0" + len(body).to_bytes(4, "big") + body, end_stream, 1))
    wait_for(lambda: client.metrics().bytes_in_flight > 0, "an answer")
    client.wait_until_idle()
    assert client.metrics().rejected_by_reason["stream_idle"] == 1
    connection.close()


def test_slow_clients_are_served(daemon, stubs):
    """Each moves one message within the time; all together take several times as long. What a reader takes is told to
    the daemon in larger steps."""
    client = Client(daemon("--stream-idle-timeout", "1s"), stubs)
    values = random_array(MIB)

    def slowly(requests):
        for request in requests:
            time.sleep(0.4)
            yield request
    requests = client.compress_requests({"t": values}, chunk=MIB // 4)
    sent = list(client.stub.Compress(slowly(requests), timeout=60))
    assert sent[-1].stream.tensors == 1
    taken = []
    for response in client.stub.Compress(client.compress_requests({"t": random_array(4 * MIB)}, codec="raw"), timeout=60):
        taken.append(response)
        time.sleep(0.3)
    assert taken[-1].stream.tensors == 1 and len(taken) > 8
    assert "stream_idle" not in client.metrics().rejected_by_reason


def test_who_waits_for_the_daemon_is_not_idle(daemon, stubs):
    """One thread, a slow codec, blocks of other streams before it: longer than the time."""
    client = Client(daemon("--stream-idle-timeout", "1s", "--threads", "1"), stubs)
    seconds, failures = [], []

    def call():
        start = time.monotonic()
        feed = Feed(*client.compress_requests({"t": random_array(4 * MIB)}, codec="raw|zstd(level=19)"))
        try:
            for response in client.stub.Compress(feed, timeout=60):
                if response.WhichOneof("payload") == "tensor":
                    seconds.append(time.monotonic() - start)
                    feed.close()
        except grpc.RpcError as error:
            failures.append(error.details())
    threads = [threading.Thread(target=call) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == [] and len(seconds) == 8 and max(seconds) > 1.5


def test_registrations_may_be_silent(daemon, stubs):
    client = Client(daemon("--stream-idle-timeout", "200ms", "--shared-memory", PREFIX), stubs)
    stream = Registration(client)
    with Object("silent", 4096) as thing:
        stream.register("a", thing)
        time.sleep(1)  # five times the time
        stream.register("b", thing)
    stream.cancel()


def test_no_limit(daemon, stubs):
    client = Client(daemon("--stream-idle-timeout", "0"), stubs)
    feed = Feed(client.header("a", [1000]))
    call = client.stub.Compress(feed, timeout=30)
    time.sleep(0.5)
    feed.send(client.data(bytes(2000)))
    feed.close()
    assert list(call)[-1].stream.tensors == 1
