"""Shared memory: registration, who may, what happens to it when somebody dies; tensors and frames in regions."""

import contextlib
import os
import pathlib
import signal
import subprocess
import sys
import threading

import grpc
import pytest
from daemon_helpers import MIB, Client, Feed, failure, page, page_value, random_array, wait_for
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from http2_helpers import Forwarder
from shm_helpers import PREFIX, Object, Registration, SharedClient, failure_code, mappings, values

SIZE = 16 * 4096


@pytest.fixture
def server(daemon):
    return daemon("--shared-memory", PREFIX, "--threads", "2")


@pytest.fixture
def client(server, stubs):
    return Client(server, stubs)


@pytest.fixture
def thing():
    with Object("a", SIZE) as made:
        yield made


def figures(server):
    text = page(server.metrics_address)
    return tuple(page_value(text, f"kvcompress_shared_memory_{what}") for what in ("regions", "bytes"))


def reason(call):
    """What google.rpc.ErrorInfo says in the details of a call's status, read by the stock library."""
    (detail,) = rpc_status.from_call(call).details
    info = error_details_pb2.ErrorInfo()
    assert detail.Unpack(info) and info.domain == "kvcompress"
    return info.reason


def answers(stream):
    try:
        stream.status()
    except grpc.RpcError:
        return False
    return True


def test_register_status_unregister(server, client, thing):
    stream = Registration(client)
    begun = stream.begin("r", thing, offset=4096, size=8192)
    assert [(r.name, r.key, r.offset, r.byte_size, r.region) for r in begun.regions] == [
        ("r", thing.key, 4096, 8192, 0)]
    assert stream.status("r")[0].region == 0 and figures(server) == (0, 0)
    thing.memory[4096:4112] = begun.challenge
    region = stream.confirm("r").region
    other = stream.register("other", thing)
    assert {(r.name, r.region) for r in stream.status()} == {("r", region), ("other", other)}
    assert figures(server) == (2, 8192 + SIZE)
    assert mappings(server, thing.key) == 2
    assert [r.name for r in stream.unregister("r")] == ["r"]
    assert mappings(server, thing.key) == 1
    assert [r.name for r in stream.unregister()] == ["other"]
    assert list(stream.status()) == [] and figures(server) == (0, 0)
    stream.close()
    assert mappings(server, thing.key) == 0


def test_off_unless_enabled(daemon, stubs, thing):
    client = Client(daemon(), stubs)
    stream = Registration(client)
    with pytest.raises(grpc.RpcError):
        stream.begin("r", thing)
    assert (stream.call.code(), stream.call.details()) == (
        grpc.StatusCode.FAILED_PRECONDITION, "shared memory is not enabled")
    requests = [client.header("t", [8]), client.pb.CompressRequest(shared_data=client.pb.SharedMemoryRange(byte_size=16))]
    assert failure(client.stub.Compress(iter(requests), timeout=30))[0] == grpc.StatusCode.FAILED_PRECONDITION


@pytest.mark.parametrize("fault, code", [
    (lambda stream, thing: stream.ask(register=stream.pb.SharedMemoryRegister(
        name="r", key="/elsewhere", byte_size=4096)), "PERMISSION_DENIED"),
    (lambda stream, thing: stream.ask(register=stream.pb.SharedMemoryRegister(
        name="r", key=f"/{PREFIX}no-such-object", byte_size=4096)), "NOT_FOUND"),
    (lambda stream, thing: stream.begin("r", thing, size=SIZE + 1), "INVALID_ARGUMENT"),
    (lambda stream, thing: stream.begin("r", thing, offset=SIZE, size=4096), "INVALID_ARGUMENT"),
    (lambda stream, thing: stream.begin("r", thing, offset=100, size=4096), "INVALID_ARGUMENT"),
    (lambda stream, thing: stream.begin("", thing), "INVALID_ARGUMENT"),
    (lambda stream, thing: (stream.begin("r", thing), stream.begin("r", thing)), "ALREADY_EXISTS"),
    (lambda stream, thing: (stream.begin("r", thing), stream.confirm("r")), "PERMISSION_DENIED"),
    (lambda stream, thing: stream.confirm("r"), "NOT_FOUND"),
    (lambda stream, thing: stream.unregister("r"), "NOT_FOUND"),
    (lambda stream, thing: stream.ask(), "INVALID_ARGUMENT"),
])
def test_faults_end_the_stream_and_its_regions(server, client, thing, fault, code):
    stream = Registration(client)
    stream.register("good", thing)
    with pytest.raises(grpc.RpcError) as error:
        fault(stream, thing)
    assert error.value.code().name == code, error.value.details()
    wait_for(lambda: mappings(server, thing.key) == 0, "the end of the mappings")
    assert figures(server) == (0, 0)


def test_the_challenge_must_be_the_objects_own(client, thing):
    """Whoever can read a challenge but not write the object gets nowhere."""
    with Object("b", SIZE) as other:
        stream = Registration(client)
        challenge = stream.begin("r", thing).challenge
        stream.begin("other", other)
        other.memory[:16] = challenge
        with pytest.raises(grpc.RpcError) as error:
            stream.confirm("r")
        assert error.value.code() == grpc.StatusCode.PERMISSION_DENIED


def test_a_client_that_cancels_leaves_nothing(server, client, thing):
    stream = Registration(client)
    region = stream.register("r", thing)
    stream.cancel()
    wait_for(lambda: mappings(server, thing.key) == 0 and figures(server) == (0, 0), "the end of the region")
    shared = SharedClient(client, thing, region)
    call = client.stub.Compress(shared.compress_requests("t", random_array(64), 0, 4096, 4096), timeout=30)
    assert failure(call)[0] == grpc.StatusCode.NOT_FOUND
    assert reason(call) == "SHARED_MEMORY_LOST"


def test_a_client_that_is_killed_leaves_nothing(server, client, stubs, thing):
    code = f"""
import sys, time
sys.path[:0] = [{str(pathlib.Path(__file__).parent)!r}, {str(pathlib.Path(stubs.pb.__file__).parents[2])!r}]
import grpc
from kvcompress.v1 import kvcompress_pb2 as pb, kvcompress_pb2_grpc as rpc
from shm_helpers import Object, Registration
class Client:
    pb = pb
    stub = rpc.KvCompressionStub(grpc.insecure_channel({server.address!r}))
thing = Object("killed", {SIZE})
stream = Registration(Client)
stream.register("r", thing)
print(thing.key, flush=True)
time.sleep(100)
"""
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    key = child.stdout.readline().strip()
    try:
        assert mappings(server, key) == 1 and figures(server) == (1, SIZE)
        child.send_signal(signal.SIGKILL)
        child.wait(20)
        wait_for(lambda: mappings(server, key) == 0 and figures(server) == (0, 0), "the end of the region")
    finally:
        child.kill()
        child.wait(20)
        child.stdout.close()
        os.unlink("/dev/shm" + key)


def test_nothing_is_left_of_many_streams_and_regions(server, client, thing):
    def descriptors():
        return len(os.listdir(f"/proc/{server.pid}/fd"))
    client.metrics()
    before = descriptors()
    for number in range(200):
        stream = Registration(client)
        for name in "abc":
            stream.register(name, thing)
        stream.unregister("a")
        if number % 2:
            stream.close()
        else:
            stream.cancel()
    wait_for(lambda: figures(server) == (0, 0) and mappings(server, thing.key) == 0, "no region")
    # Less than one a stream: connections to the metrics page come and go.
    assert descriptors() < before + 20


def test_streams_are_limited(server, client, stubs):
    """Also those of a client that cannot even reach this host's memory: the rest is for those who can."""
    streams = []

    def open_streams(client, count):
        for _ in range(count):
            streams.append(Registration(client))
            streams[-1].status()

    def refusal(client):
        return failure_code(Registration(client).call)
    exhausted = grpc.StatusCode.RESOURCE_EXHAUSTED
    forwarder = Forwarder(server.address, "127.0.0.2")
    try:
        open_streams(client, 192)
        assert refusal(client) == (exhausted, "the limit of 192 shared memory streams of one client is reached")
        server.address = forwarder.address
        other = Client(server, stubs)
        open_streams(other, 64)
        assert refusal(other) == (exhausted, "the limit of 256 shared memory streams is reached")
        assert dict(client.metrics().rejected_by_reason) == {"max_streams_per_client": 1, "max_streams": 1}
        streams.pop(0).cancel()
        wait_for(lambda: answers(Registration(client)), "the place of one that has ended")
    finally:
        for stream in streams:
            stream.cancel()
        forwarder.close()


def test_a_call_too_many_says_when_to_come_again(daemon, stubs):
    client = Client(daemon("--shared-memory", PREFIX, "--max-call-rate-per-client", "1"), stubs)
    client.metrics()
    refused = Registration(client)
    assert failure_code(refused.call) == (
        grpc.StatusCode.RESOURCE_EXHAUSTED, "the limit of 1 calls a second of one client is reached")
    assert 0 < int(dict(refused.call.trailing_metadata())["grpc-retry-pushback-ms"]) <= 1000


def test_a_drain_does_not_wait_for_registrations(server, client, thing):
    stream = Registration(client)
    stream.register("r", thing)
    server.signal(signal.SIGTERM)
    assert failure_code(stream.call) == (grpc.StatusCode.UNAVAILABLE, "the server is draining")
    assert server.wait() == 0


def test_a_call_in_flight_keeps_its_regions_through_a_drain(server, client):
    array = random_array((64, 512))
    with Object("a", MIB) as thing:
        stream = Registration(client)
        shared = SharedClient(client, thing, stream.register("r", thing))
        header, buffer, data = shared.compress_requests("t", array, 0, 512 << 10, 256 << 10)
        feed = Feed(header)
        call = client.stub.Compress(feed, timeout=30)
        wait_for(lambda: client.metrics().bytes_in_flight > 0, "the call in flight")
        server.signal(signal.SIGTERM)
        wait_for(lambda: client.metrics().draining, "the drain")
        assert failure_code(Registration(client).call)[0] == grpc.StatusCode.UNAVAILABLE
        assert [r.name for r in stream.status()] == ["r"]
        feed.send(buffer, data)
        feed.close()
        frame, released, _, report = shared.gather(call, "shared_frame")
        assert report.tensors == 1 and released == array.nbytes and len(frame) == report.frame_bytes
        assert failure_code(stream.call)[0] == grpc.StatusCode.UNAVAILABLE
        assert server.wait() == 0


def test_tensors_and_frames_in_shared_memory(server, client):
    array = random_array((1000, 2048))
    with Object("a", 16 * MIB) as thing:
        stream = Registration(client)
        shared = SharedClient(client, thing, stream.register("r", thing))
        frame, released, reports, _ = shared.compress("t", array, 0, 8 * MIB, 4 * MIB)
        assert released == array.nbytes and reports[0].tensor_bytes == array.nbytes
        assert frame == client.compress({"t": array})[0]["t"], "the frame does not depend on the way"
        data, released, reports, _ = shared.decompress("t", frame, 0, 8 * MIB, 8 * MIB)
        assert released == len(frame) and len(reports) == 1
        assert (values(data, array) == client.decompress({"t": frame})[0]["t"]).all()
        stream.close()


def test_an_object_cut_short_fails_the_call_and_not_the_daemon(server, client):
    """The object goes up and down while it is read and written; other clients never notice."""
    array = random_array((512, 2048))
    with Object("a", 8 * MIB) as thing:
        stream = Registration(client)
        for _ in range(5):
            shared = SharedClient(client, thing, stream.register("r", thing))
            header, buffer, data = shared.compress_requests("t", array, 0, 4 * MIB, 4 * MIB)
            feed = Feed(header, buffer)
            call = client.stub.Compress(feed, timeout=30)
            wait_for(lambda: client.metrics().bytes_in_flight > 0, "the call in flight")
            thing.truncate(4096)
            feed.send(data)
            feed.close()
            code, text = failure_code(call)
            assert code == grpc.StatusCode.FAILED_PRECONDITION, text
            assert reason(call) == "SHARED_MEMORY_LOST"
            thing.truncate(8 * MIB)
            stream.unregister("r")
        assert client.compress({"t": array})[0]["t"]
        client.wait_until_idle()


def test_a_stream_that_gives_too_little_memory_for_its_output(client):
    array = random_array((512, 2048))
    with Object("a", 8 * MIB) as thing:
        stream = Registration(client)
        shared = SharedClient(client, thing, stream.register("r", thing))
        call = client.stub.Compress(shared.compress_requests("t", array, 0, 4 * MIB, 4096), timeout=30)
        assert failure_code(call)[0] == grpc.StatusCode.FAILED_PRECONDITION
        assert reason(call) == "OUTPUT_BUFFERS_TOO_SMALL"


@pytest.mark.parametrize("what", ["frame", "buffer"])
def test_a_frame_or_its_buffer_cut_off_fails_the_call_and_not_the_daemon(client, what):
    array = random_array((512, 2048))
    frame = client.compress({"t": array}, codec="raw")[0]["t"]
    with Object("a", 8 * MIB) as frames, Object("b", 8 * MIB) as buffers:
        stream = Registration(client)
        of_frames, of_buffers = stream.register("f", frames), stream.register("r", buffers)
        frames.memory[:len(frame)] = frame
        feed = Feed(client.pb.DecompressRequest(header=client.pb.DecompressHeader(name="t", data_to_buffer=True)),
                    client.pb.DecompressRequest(data_buffer=client.pb.SharedMemoryRange(
                        region=of_buffers, offset=4 * MIB, byte_size=4 * MIB)))
        call = client.stub.Decompress(feed, timeout=30)
        wait_for(lambda: client.metrics().streams_in_flight == 1, "the call in flight")
        {"frame": frames, "buffer": buffers}[what].truncate(4096)
        feed.send(client.pb.DecompressRequest(shared_frame=client.pb.SharedMemoryRange(
            region=of_frames, byte_size=len(frame))))
        feed.close()
        assert failure_code(call)[0] == grpc.StatusCode.FAILED_PRECONDITION
        client.wait_until_idle()


@contextlib.contextmanager
def saw(thing):
    """Cuts the object short and makes it long again, as fast as it can. Nobody here may touch its memory meanwhile."""
    stop = threading.Event()

    def run():
        while not stop.is_set():
            thing.truncate(4096)
            thing.truncate(thing.size)
    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


FLIPPER = """
import mmap, os, sys
memory = mmap.mmap(os.open("/dev/shm" + sys.argv[1], os.O_RDWR), 0)
print("begins", flush=True)
while True:
    memory[1] = 0x7e  # NaN
    memory[1] = 0x3c
"""


@pytest.mark.parametrize("codec", ["int4", "heads(0:int8,1-:int4)"])
def test_values_that_change_while_they_are_read_are_the_clients_fault(server, client, codec):
    """A NaN that a codec has refused may be gone when somebody asks where it was."""
    array = random_array((2, 64, 64))
    codes = set()
    with Object("a", MIB) as thing:
        stream = Registration(client)
        shared = SharedClient(client, thing, stream.register("r", thing))
        requests = list(shared.compress_requests("t", array, 0, MIB // 2, MIB // 2, codec))
        requests[0].header.tensor.axes.extend([3, 4, 5])
        flipper = subprocess.Popen([sys.executable, "-c", FLIPPER, thing.key], stdout=subprocess.PIPE)
        try:
            assert flipper.stdout.readline() == b"begins\n"
            for _ in range(1000):
                call = client.stub.Compress(iter(requests), timeout=30)
                with contextlib.suppress(grpc.RpcError):
                    for _ in call:
                        pass
                codes.add(call.code())
        finally:
            flipper.kill()
            flipper.wait()
            flipper.stdout.close()
        stream.close()
    assert grpc.StatusCode.INVALID_ARGUMENT in codes
    assert codes <= {grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION}


def test_an_object_cut_short_at_any_moment(server, client):
    array = random_array((512, 2048))
    expected = client.compress({"t": array})[0]["t"]
    ends = []
    with Object("a", 8 * MIB) as thing:
        stream = Registration(client)
        for _ in range(20):
            shared = SharedClient(client, thing, stream.register("r", thing))
            requests = list(shared.compress_requests("t", array, 0, 4 * MIB, 4 * MIB))
            with saw(thing):
                call = client.stub.Compress(iter(requests), timeout=30)
                try:
                    kinds = [response.WhichOneof("payload") for response in call]
                    ends.append(kinds[-1])
                except grpc.RpcError as error:
                    ends.append(error.code().name)
            stream.unregister("r")
        assert client.compress({"t": array})[0]["t"] == expected
    # "stream": the call was over before the saw came.
    assert set(ends) <= {"stream", "FAILED_PRECONDITION"} and "FAILED_PRECONDITION" in ends, ends


def test_nobody_reads_behind_a_region(client, thing):
    stream = Registration(client)
    region = stream.register("r", thing, size=4096)
    array = random_array(4096)  # 8192 bytes, in an object that has them, behind the region's end
    shared = SharedClient(client, thing, region)
    call = client.stub.Compress(shared.compress_requests("t", array, 0, 0, 4096), timeout=30)
    assert failure(call)[0] == grpc.StatusCode.INVALID_ARGUMENT
    stream.close()
