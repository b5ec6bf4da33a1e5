"""Large tensors by shared memory, where a daemon on this machine offers it."""

import asyncio
import contextlib
import errno
import gc
import itertools
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import kvcompress
import numpy as np
import pytest
from daemon_helpers import page, page_value, wait_for
from fake_server import FakeServer, capabilities
from kvcompress import _regions, _shared_memory
from kvcompress.v1 import kvcompress_pb2 as pb
from process_helpers import stopped

pytestmark = pytest.mark.usefixtures("way")

MIB = 1 << 20
PREFIX = "kvc-python-"
SHARED = "shared memory"


def values(size, seed=1):
    return np.random.default_rng(seed).standard_normal(size).astype(np.float16)


def objects():
    return [path.name for path in pathlib.Path("/dev/shm").iterdir() if path.name.startswith(PREFIX)]


def end_pause(monkeypatch, seconds=61):
    real = time.monotonic
    monkeypatch.setattr(_shared_memory.time, "monotonic", lambda: real() + seconds)


def regions(server):
    return page_value(page(server.metrics_address), "kvcompress_shared_memory_regions")


@pytest.fixture
def much_patience(monkeypatch):
    """With a daemon that registers memory: whoever waits for that waits for as long, and is seen on a slow machine."""
    monkeypatch.setattr(_regions, "_PATIENCE", 60.0)


@contextlib.contextmanager
def deadline_exceeded():
    """By a call that waits for nothing but its own deadline, which is soon."""
    started = time.monotonic()
    with pytest.raises(kvcompress.DeadlineExceeded):
        yield
    assert time.monotonic() - started < 20


@pytest.fixture
def server(daemon):
    yield daemon("--threads", "2", "--shared-memory", PREFIX)
    assert objects() == []


@pytest.fixture
def client(server, connect):
    return connect(server)


# Below a chunk, whole chunks, all of the region and more than it.
SIZES = [MIB + 1, 2 * MIB, 4 * MIB + 7, 20 * MIB]


@pytest.mark.parametrize("spec", ["int4", "raw", "planes|rans"])
def test_the_same_as_over_the_connection(server, connect, client, spec):
    plain = connect(server, shared_memory=False)
    for size in SIZES:
        array = values(size).reshape(-1, 1)
        frame = client.compress(array, spec)
        assert client.transport == SHARED
        expected = plain.compress(array, spec)
        assert (frame.data, frame.quality, frame.shape) == (expected.data, expected.quality, array.shape)
        out = np.empty_like(array)
        assert client.decompress(frame, out=out) is out
        assert (out == plain.decompress(expected)).all()
        assert (client.decompress(frame.data) == out).all()
    assert plain.transport == "connection (not wanted)"


def test_many(server, connect, client):
    sizes = [0, 1, 1000, MIB, 3 * MIB, 0, 12 * MIB, 5, 2 * MIB, 2 * MIB, 4 * MIB, 70_000, 70_000, 5 * MIB]
    arrays = [(f"t{index}", values(size, index)) for index, size in enumerate(sizes)]
    plain = connect(server, shared_memory=False)
    for spec in ("int4", "raw"):
        frames = list(client.compress_many(arrays, spec))
        assert client.transport == SHARED
        assert [frame.data for frame in frames] == [frame.data for frame in plain.compress_many(arrays, spec)]
        for (name, array), (other, expected) in zip(
            client.decompress_many(frames), plain.decompress_many(frames), strict=True
        ):
            assert name == other
            assert (array == expected).all()
    assert list(client.compress_many([])) == []


def test_torch(client):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        tensor = torch.randn(3, MIB, generator=torch.Generator().manual_seed(1)).to(dtype)
        frame = client.compress(tensor.T, "raw")
        assert client.transport == SHARED
        assert torch.equal(client.decompress(frame), tensor.T)


def test_items_that_wait_for_results_go_over_the_connection(client):
    """Their buffers would come from the thread that waits."""
    results = []

    def items():
        for index in range(4):
            assert len(results) == index
            yield f"t{index}", values(8 * MIB)
            wait_for(lambda index=index: len(results) > index, "the result of the item before")

    for frame in client.compress_many(items(), "raw"):
        results.append(frame)
    assert len(results) == 4
    assert client.transport != SHARED


def test_what_is_wrong_with_an_item_is_raised_after_the_results_before_it(client):
    bad = values(3 * MIB)
    bad[2 * MIB] = np.nan
    for wrong, error in ((bad, kvcompress.InvalidArgument), (np.zeros(4, np.complex128), kvcompress.InvalidArgument)):
        frames = client.compress_many([("a", values(6 * MIB)), ("b", wrong), ("c", values(6 * MIB))])
        assert next(frames).name == "a"
        with pytest.raises(error):
            list(frames)
    frame = client.compress(values(6 * MIB), "raw")
    damaged = bytearray(frame.data)
    damaged[len(damaged) // 2] ^= 1
    with pytest.raises(kvcompress.DataLoss):
        client.decompress(damaged)
    assert client.transport == SHARED
    assert (client.decompress(frame) == values(6 * MIB)).all()


def test_an_artifact_that_the_daemon_lacks_costs_no_memory(client):
    spec = f"kv(bits=3,artifact={'0' * 32})"
    tensor = values((1, 8, 2048, 128))
    client.compress(tensor, "raw")
    for _ in range(2 * _shared_memory._MOST_LOSSES):
        with pytest.raises(kvcompress.FailedPrecondition, match="artifact 0"):
            list(client.compress_many([("layer_0_key", tensor)], spec))
        with pytest.raises(kvcompress.FailedPrecondition, match="artifact 0"):
            client.compress(tensor, spec, name="layer_0_key")
        assert client.transport == SHARED


def test_calls_side_by_side(server, client):
    arrays = [values(3 * MIB, seed) for seed in range(12)]
    errors = []

    def work(array):
        try:
            for _ in range(3):
                assert (client.decompress(client.compress(array, "raw")) == array).all()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(array,)) for array in arrays]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not errors
    assert 1 <= regions(server) <= 8  # what is kept


def test_streams_that_nobody_finishes_leave_nothing(server, connect):
    client = connect(server)
    items = [("t", values(6 * MIB))] * 4
    for index in range(6):
        stream = client.compress_many(items, "raw")
        if index % 3:
            next(stream)
        if index % 2:
            stream.close()
        del stream
        gc.collect()
        assert regions(server) <= 2
    assert len(client.compress(values(2 * MIB))) > 0
    assert client.transport == SHARED
    threads = [thread for thread in threading.enumerate() if "consum" in thread.name.lower()]
    assert len(threads) <= 2
    client.close()
    wait_for(lambda: regions(server) == 0, "the end of all regions")


def test_a_deadline(server, client):
    client.compress(values(2 * MIB))
    with stopped(server.process), deadline_exceeded():
        client.compress(values(16 * MIB), "raw", timeout=1)
    assert len(client.compress(values(2 * MIB))) > 0


def test_a_deadline_while_memory_is_registered(server, client, much_patience):
    """What comes too late is for the next call."""
    client.wait_ready(10)
    with stopped(server.process), deadline_exceeded():
        client.compress(values(2 * MIB), timeout=0.3)
    wait_for(lambda: len(client._pool._idle) == 1, "the memory")
    assert len(client.compress(values(2 * MIB))) > 0
    assert client.transport == SHARED
    assert regions(server) == 1


def test_calls_that_a_stopped_daemon_leaves_unfinished_cost_later_ones_no_time(server, client, much_patience):
    array = values(16 * MIB)
    client.compress(array, "raw")
    calls = [
        lambda: client.compress(array, "raw", timeout=0.5),
        lambda: list(client.compress_many([("t", array)], "raw", timeout=0.5)),
    ]
    with stopped(server.process):
        for call in 2 * calls:
            with deadline_exceeded():
                call()
    assert len(client.compress(values(2 * MIB))) > 0


def test_a_short_deadline_is_that_of_its_call_alone(server, client, much_patience):
    """Another one, which has the time, gets the memory that both wanted."""
    client.wait_ready(10)
    with ThreadPoolExecutor(1) as patient:
        with stopped(server.process):
            frame = patient.submit(client.compress, values(2 * MIB), "raw", timeout=60)
            time.sleep(0.2)
            for _ in range(2):
                with deadline_exceeded():
                    client.compress(values(2 * MIB), "raw", timeout=0.3)
        assert len(frame.result(60)) > 0
    assert client.transport == SHARED


def test_a_daemon_that_is_started_again(daemon, connect):
    first = daemon("--shared-memory", PREFIX)
    client = connect(first, timeout=30)
    frame = client.compress(values(4 * MIB), "raw")
    assert client.transport == SHARED
    first.signal(signal.SIGKILL)
    first.wait()
    again = daemon("--shared-memory", PREFIX, "--listen", first.address)
    assert (client.decompress(frame) == values(4 * MIB)).all()
    assert len(list(client.compress_many([("t", values(4 * MIB))]))) == 1
    assert client.transport == SHARED
    assert regions(again) >= 1
    client.close()
    assert objects() == []


def test_a_daemon_that_is_away_for_a_while(daemon, connect):
    """As long about as it was away, and not for a minute, calls go over the connection."""
    first = daemon("--shared-memory", PREFIX)
    client = connect(first, timeout=5, retry=kvcompress.NO_RETRY)
    client.compress(values(4 * MIB))
    assert client.transport == SHARED
    first.signal(signal.SIGKILL)
    first.wait()
    for _ in range(20):
        with pytest.raises(kvcompress.Unavailable):
            client.compress(values(4 * MIB))
    daemon("--shared-memory", PREFIX, "--listen", first.address)
    client.wait_ready(10)

    def is_shared():
        client.compress(values(4 * MIB))
        return client.transport == SHARED

    wait_for(is_shared, "shared memory", 45)
    client.close()
    assert objects() == []


def test_daemons_that_do_not_offer_it(daemon, connect):
    client = connect(daemon())
    assert len(client.compress(values(2 * MIB))) > 0
    assert client.transport == "connection (the daemon does not offer shared memory)"


@pytest.mark.parametrize("refuses", ["posix_fallocate", "open"])
def test_machines_without_room_for_it(client, monkeypatch, caplog, refuses):
    no_room = f"/dev/shm has no room for {16 * MIB} bytes (16 MiB): Docker's --shm-size gives more"
    real = getattr(os, refuses)

    def refuse(*arguments, **options):
        if refuses == "open" and not str(arguments[0]).startswith("/dev/shm"):
            return real(*arguments, **options)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, refuses, refuse)
    array = values(2 * MIB)
    assert (client.decompress(client.compress(array, "raw")) == array).all()
    assert client.transport == f"connection ({no_room})"
    monkeypatch.undo()
    client.compress(array)
    assert client.transport == f"connection ({no_room})"
    assert not client._pool.is_offered
    end_pause(monkeypatch)
    assert client._pool.is_offered
    monkeypatch.setattr(os, refuses, refuse)
    client.compress(array)  # is refused anew
    monkeypatch.undo()
    warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warned == [f"calls take the connection, for want of shared memory: {no_room}"]  # once
    end_pause(monkeypatch, 2 * 61)
    client.compress(array)
    assert client.transport == SHARED


def test_a_refusal_is_not_for_ever(daemon, connect, monkeypatch):
    """Of a daemon that takes fewer calls a second than a new client makes."""
    server = daemon("--shared-memory", PREFIX, "--max-call-rate-per-client", "1")
    array = values(2 * MIB)
    client = connect(server, timeout=20)
    client.metrics()
    client.compress(array)
    assert client.transport == "connection (the limit of 1 calls a second of one client is reached)"
    end_pause(monkeypatch)
    time.sleep(1.1)
    client.compress(array)
    assert client.transport == SHARED


def test_a_region_that_the_daemon_has_lost(server, client):
    """A call finds out, and is made again."""
    array = values(2 * MIB)
    client.compress(array)
    (region,) = client._pool._idle
    region.number ^= 1
    frame = client.compress(array, "raw")
    assert (client.decompress(frame) == array).all()
    assert client.transport == SHARED
    client._pool._idle[0].number ^= 1
    with pytest.raises(kvcompress.Unavailable) as error:
        list(client.compress_many([("t", array)]))
    assert error.value.code == grpc.StatusCode.NOT_FOUND
    assert error.value.retry_after == 0


def test_asyncio(server):
    arrays = {f"t{index}": values(3 * MIB, index) for index in range(4)}

    async def work():
        async with kvcompress.AsyncClient(server.address, timeout=30) as client:
            frames = await asyncio.gather(*(client.compress(array, "raw", name=name) for name, array in arrays.items()))
            assert client.transport == SHARED
            for frame in frames:
                assert (await client.decompress(frame) == arrays[frame.name]).all()
            together = {name: array async for name, array in client.decompress_many(frames)}
            assert all((together[name] == array).all() for name, array in arrays.items())

    asyncio.run(work())
    wait_for(lambda: regions(server) == 0, "the end of all regions")


def test_an_asyncio_task_that_is_cancelled_while_it_gets_memory_leaves_none(server):
    async def work():
        async with kvcompress.AsyncClient(server.address, timeout=30) as client:
            await client.wait_ready(10)
            with stopped(server.process):
                task = asyncio.create_task(client.compress(values(2 * MIB), "raw"))
                await asyncio.sleep(0.3)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            wait_for(lambda: regions(server) == 1, "the memory")
            await asyncio.sleep(0.2)
            await client.compress(values(2 * MIB), "raw")
            assert client.transport == SHARED
            wait_for(lambda: regions(server) == 1, "the end of the memory that nobody has")

    asyncio.run(work())


def offer(*_):
    return capabilities(
        kvcompress.__version__, transports=[pb.TRANSPORT_SHARED_MEMORY], shared_memory_prefix=PREFIX
    )


@pytest.mark.parametrize("prefix", ["", "../../tmp/kvc-", "a/b", "x" * 129, "kvc\n"])
def test_keys_that_cannot_be(connect, prefix):
    def elsewhere(*_):
        transports = [pb.TRANSPORT_SHARED_MEMORY]
        return capabilities(kvcompress.__version__, transports=transports, shared_memory_prefix=prefix)

    with FakeServer(kvcompress.__version__, {"Capabilities": elsewhere}) as server:
        client = connect(server)
        with pytest.raises(kvcompress.Unimplemented):
            client.compress(values(2 * MIB))
        assert client.transport == "connection (the daemon asks for keys that cannot be)"


def register(requests, _):
    for request in map(pb.SharedMemoryRequest.FromString, requests):
        regions = [pb.SharedMemoryRegion(name=request.confirm.name, region=7)] if request.HasField("confirm") else []
        yield pb.SharedMemoryResponse(challenge=bytes(16), regions=regions).SerializeToString()


ENDS = {
    "unavailable": lambda _, context: context.abort(grpc.StatusCode.UNAVAILABLE, "draining"),
    "at once": lambda *_: iter(()),
    "after an answer": lambda requests, context: itertools.islice(register(requests, context), 1),
}


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
def test_a_daemon_that_ends_each_stream_is_not_asked_without_end(connect, end):
    streams = []

    def shared_memory(requests, context):
        streams.append(requests)
        return end(requests, context)

    with FakeServer(kvcompress.__version__, {"Capabilities": offer}, {"SharedMemory": shared_memory}) as server:
        client = connect(server)
        for _ in range(20):
            with pytest.raises(kvcompress.Unimplemented):
                client.compress(values(2 * MIB))
        assert 3 <= len(streams) < 8
        assert client.transport == "connection (shared memory is lost again and again)"
        client.close()
    assert objects() == []


def keys_under(connect, own):
    """The keys that a client makes for a daemon that says these are its stream's own, and which way its call then
    goes."""
    keys = []

    def register(requests, _):
        for request in map(pb.SharedMemoryRequest.FromString, requests):
            answer = pb.SharedMemoryResponse(challenge=bytes(16))
            if request.HasField("status"):
                answer.own_key_prefix = own
            if request.HasField("register"):
                keys.append(request.register.key)
            if request.HasField("confirm"):
                # Whoever is killed from here on would leave it.
                assert not os.path.exists(f"/dev/shm{keys[-1]}")
                answer.regions.add(name=request.confirm.name, region=7)
            yield answer.SerializeToString()

    with FakeServer(kvcompress.__version__, {"Capabilities": offer}, {"SharedMemory": register}) as server:
        client = connect(server)
        with pytest.raises(kvcompress.Unimplemented):
            client.compress(values(2 * MIB))
        client.close()
        return keys, client.transport


def test_keys_are_those_that_the_daemon_removes(connect):
    (key,), _ = keys_under(connect, PREFIX + "own-")
    assert key.startswith(f"/{PREFIX}own-")
    (key,), _ = keys_under(connect, "")  # of a daemon that has none of a stream's own
    assert key.startswith(f"/{PREFIX}")
    keys, transport = keys_under(connect, "../own")
    assert keys == []
    assert transport.startswith("connection (")


def within(buffer, **changes):
    where = pb.SharedMemoryRange(region=7, offset=buffer.offset, byte_size=100)
    for name, value in changes.items():
        setattr(where, name, value)
    return pb.CompressResponse(shared_frame=where)


LIES = {
    "another region": lambda buffer: within(buffer, region=8),
    "before the buffer": lambda buffer: within(buffer, offset=0),
    "after its beginning": lambda buffer: within(buffer, offset=buffer.offset + 1),
    "beyond its end": lambda buffer: within(buffer, byte_size=buffer.byte_size + 1),
    "a frame without an end": lambda buffer: within(buffer, byte_size=buffer.byte_size),
    "more than all memory": lambda buffer: within(buffer, offset=(1 << 64) - 1, byte_size=(1 << 64) - 1),
    "input that was not given": lambda buffer: pb.CompressResponse(input_released=1 << 40),
    "bytes that were not asked for": lambda buffer: pb.CompressResponse(frame=b"x"),
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
def test_what_a_daemon_says_of_memory_is_checked(connect, lie):
    def compress(requests, _):
        for request in map(pb.CompressRequest.FromString, requests):
            if request.HasField("frame_buffer"):
                yield lie(request.frame_buffer).SerializeToString()

    with FakeServer(
        kvcompress.__version__, {"Capabilities": offer}, {"SharedMemory": register, "Compress": compress}
    ) as server:
        client = connect(server)
        with pytest.raises(kvcompress.KvCompressError) as error:
            client.compress(values(2 * MIB))
        assert str(error.value) == "the daemon's answer cannot be parsed"
        assert client.transport == SHARED
        client.close()
    assert objects() == []


@pytest.mark.parametrize(("spec", "buffers"), [("int4(group=64)", 1), ("lossless", 4)])
def test_a_call_gives_what_its_frames_can_fill_and_has_said_all_before_an_answer(connect, spec, buffers):
    given = []

    def compress(requests, context):
        requests = [pb.CompressRequest.FromString(request) for request in requests]  # ends where the client has
        given.extend(request for request in requests if request.HasField("frame_buffer"))
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, "as a test wants it")

    with FakeServer(
        kvcompress.__version__, {"Capabilities": offer}, {"SharedMemory": register, "Compress": compress}
    ) as server:
        client = connect(server, native="require", timeout=10)
        with pytest.raises(kvcompress.InvalidArgument, match="as a test wants it"):
            client.compress(values(3 * MIB // 2), spec)
        client.close()
    assert len(given) == buffers


def test_a_process_that_ends_does_not_wait_for_memory(server):
    code = f"""
import numpy as np, sys, kvcompress, kvcompress._regions
kvcompress._regions._PATIENCE = 600
client = kvcompress.Client({server.address!r})
client.wait_ready(60)
print("ready", flush=True)
sys.stdin.readline()
try:
    client.compress(np.ones(2 << 20, np.float16), timeout=0.3)
except kvcompress.DeadlineExceeded:
    print("in time")
"""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", code], **pipes) as child:
        assert child.stdout.readline() == "ready\n"
        with stopped(server.process):
            assert child.communicate("go\n", timeout=60) == ("in time\n", None)
            assert child.returncode == 0
    assert objects() == []
