"""What goes wrong, and what it is raised as."""

import asyncio
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import kvcompress
import numpy as np
import pytest
from daemon_helpers import Feed, wait_for
from kvcompress.v1 import kvcompress_pb2 as pb
from process_helpers import stopped

pytestmark = pytest.mark.usefixtures("way")

MIB = 1 << 20
FAST = kvcompress.RetryPolicy(initial_backoff=0.01, max_backoff=0.02)


def values(size, dtype=np.float16):
    return np.random.default_rng(1).standard_normal(size).astype(dtype)


class Gate:
    """Items of a call that stays open until it is released."""

    def __init__(self, *items):
        self._items = items
        self._open = threading.Event()

    def release(self):
        self._open.set()

    def __iter__(self):
        yield from self._items
        assert self._open.wait(30)


SIZES = pytest.mark.parametrize("size", [100, 2 * MIB], ids=["one_message", "stream"])


@SIZES
def test_specs_that_are_none(client, size):
    with pytest.raises(kvcompress.InvalidArgument) as error:
        client.compress(values(size), "int9", name="t")
    text = 'tensor "t": unknown codec "int9" (similar: int2, int3, int4, int5, int6, int8)'
    assert str(error.value) == error.value.detail == text
    assert error.value.code == grpc.StatusCode.INVALID_ARGUMENT
    assert isinstance(error.value, ValueError)
    with pytest.raises(kvcompress.InvalidArgument):
        client.compress(values(size), name="")


@SIZES
def test_values_that_a_codec_refuses(client, size):
    for bad in (np.nan, np.inf):
        array = values(size)
        array[57] = bad
        with pytest.raises(kvcompress.InvalidArgument, match="57"):
            client.compress(array, "int4")
        assert client.decompress(client.compress(array, "raw")).tobytes() == array.tobytes()


def test_what_is_no_tensor(client):
    for wrong, text in [
        (np.zeros(3, np.complex128), "dtype complex128 is none that safetensors has: there are bfloat16, bool"),
        (np.array(["a"]), "dtype <U1 is none that safetensors has"),
        ([1.0, 2.0], "expected a NumPy array or a PyTorch tensor, not list"),
        (np.ma.masked_array(values(3), [0, 1, 0]), "not MaskedArray"),
    ]:
        with pytest.raises(kvcompress.InvalidArgument) as error:
            client.compress(wrong)
        assert text in str(error.value)
    with pytest.raises(kvcompress.InvalidArgument, match="unknown axis 'width': use one of other, batch"):
        client.compress(values(3), axes=["width"])
    with pytest.raises(kvcompress.InvalidArgument, match="spec and a profile exclude each other"):
        client.compress(values(3), "raw", profile={"version": 1})
    for wrong in ("text", 5, None):
        with pytest.raises(kvcompress.InvalidArgument, match="expected a Frame or its bytes"):
            client.decompress(wrong)


def test_outputs_that_do_not_fit(client):
    frame = client.compress(values(100), "raw")
    read_only = np.empty(100, np.float16)
    read_only.flags.writeable = False
    for out in (read_only, read_only[::-1], [0] * 100, np.empty(100, ">f2")):
        with pytest.raises(kvcompress.InvalidArgument, match="out must be a writable array"):
            client.decompress(frame, out=out)
    for source in (frame, bytes(frame)):
        for out in (np.empty(99, np.float16), np.empty((10, 10), np.float16), np.empty(100, np.float32)):
            with pytest.raises(kvcompress.InvalidArgument, match=r"out is F\d+ .*, and the tensor F16 \[100\]"):
                client.decompress(source, out=out)
    with pytest.raises(kvcompress.InvalidArgument, match='as_ is "numpy" or "torch"'):
        client.decompress(frame, as_="jax")


@SIZES
def test_frames_whose_tensor_is_known(client, size):
    frame = client.compress(values(size), "raw")
    ((name, tensor),) = client.decompress_many([("x", frame.data, ("F16", (size,)))])
    assert (name, tensor.tobytes()) == ("x", values(size).tobytes())
    for other in (("F16", (size + 1,)), ("BF16", (size,)), ("F16", (1, size))):
        with pytest.raises(kvcompress.DataLoss, match=r'frame "x" holds F16 \[\d+\], and not what was compressed'):
            list(client.decompress_many([("x", memoryview(frame.data), other)]))
    with pytest.raises(kvcompress.InvalidArgument, match=r"dtype is one of F16, BF16, F32, .*, not 'C128'"):
        list(client.decompress_many([("x", frame.data, ("C128", (size,)))]))
    for wrong in (("x",), ("x", frame.data, ("F16", (size,)), b"", 4)):
        with pytest.raises(kvcompress.InvalidArgument, match="expected frames, or pairs"):
            list(client.decompress_many([wrong]))


@SIZES
def test_damaged_and_truncated_frames(client, size):
    data = client.compress(values(size), "int4").data
    for end in (0, 7, 30, len(data) // 2, len(data) - 1):
        with pytest.raises(kvcompress.DataLoss) as error:
            client.decompress(data[:end])
        assert error.value.code == grpc.StatusCode.DATA_LOSS
    for at in range(0, len(data), len(data) // 13):
        damaged = bytearray(data)
        damaged[at] ^= 16
        with pytest.raises(kvcompress.DataLoss):
            client.decompress(damaged)


@pytest.fixture(params=["connection", "shared memory", "in process", "asyncio"])
def decoded(request, daemon, connect):
    """Decompresses a list of frames, by whatever makes the calls."""
    server = daemon("--threads", "2", *(["--shared-memory", "kvc-python-"] if request.param == "shared memory" else []))

    async def awaited(frames):
        async with kvcompress.AsyncClient(server.address, timeout=30) as client:
            return [pair async for pair in client.decompress_many(frames)]

    if request.param == "asyncio":
        return lambda frames: asyncio.run(awaited(frames))
    client = kvcompress.LocalClient(threads=2) if request.param == "in process" else connect(server)
    return lambda frames: list(client.decompress_many(frames))


@SIZES
def test_a_truncated_frame_among_others(client, decoded, size):
    """Whether the end of the stream follows it, or the next frame."""
    data = client.compress(values(size), "int4").data
    assert len(decoded([data, data])) == 2
    for end in (0, 7, len(data) // 2, len(data) - 1):
        for frames in ([data, data[:end]], [data[:end], data], [data, data[:end], data]):
            with pytest.raises(kvcompress.DataLoss, match="truncated") as error:
                decoded(frames)
            assert error.value.code == grpc.StatusCode.DATA_LOSS


def test_over_a_limit_is_for_good(daemon, connect):
    client = connect(daemon("--max-tensor-bytes", "2MiB"), retry=kvcompress.RetryPolicy(initial_backoff=20))
    with pytest.raises(kvcompress.ResourceExhausted, match="limit") as error:
        client.compress(values(2 * MIB), timeout=10)
    assert error.value.retry_after is None


def test_nobody_there(socket_dir, connect):
    client = connect(f"unix:{socket_dir}/none", retry=FAST)
    with pytest.raises(kvcompress.Unavailable, match="none"):
        client.compress(values(10))
    with pytest.raises((kvcompress.Unavailable, kvcompress.DeadlineExceeded)):
        client.wait_ready(0.5)


@SIZES
def test_a_daemon_that_is_gone_is_unavailable(daemon, connect, size):
    """At once, and not after waits for a connection, which are 300 ms each, and as long as the time is; where the call
    is made again, when there is no time for that."""
    server, array = daemon(), values(size)
    client = connect(server, retry=kvcompress.NO_RETRY)
    patient = connect(server, retry=kvcompress.RetryPolicy(multiplier=1000, max_backoff=1000))
    frame = client.compress(array)
    patient.compress(array)
    server.signal(signal.SIGKILL)
    server.wait()

    def seconds(call):
        started = time.monotonic()
        with pytest.raises(kvcompress.Unavailable):
            call()
        return time.monotonic() - started

    seconds(lambda: client.compress(array))  # which sees it
    for call in (
        lambda: client.compress(array),
        lambda: client.decompress(frame),
        lambda: list(client.compress_many([("t", array)])),
    ):
        # The quickest of some: any one may be held up by a machine that is busy.
        assert min(seconds(call) for _ in range(5)) < 0.25
    seconds(lambda: patient.compress(array))


def test_a_daemon_that_comes_is_waited_for(daemon, socket_dir, connect):
    client = connect(f"unix:{socket_dir}/s")
    threading.Timer(0.5, lambda: daemon("--listen", f"unix:{socket_dir}/s")).start()
    client.wait_ready(20)
    assert client.compress(values(10))


@SIZES
def test_deadlines(daemon, connect, size):
    server = daemon("--threads", "1")
    client = connect(server, timeout=1)
    client.wait_ready(10)
    with stopped(server.process):
        for call in (lambda: client.compress(values(size)), lambda: list(client.compress_many([("t", values(size))]))):
            started = time.monotonic()
            with pytest.raises(kvcompress.DeadlineExceeded) as error:
                call()
            assert isinstance(error.value, TimeoutError)
            assert 0.9 < time.monotonic() - started < 20


def test_a_daemon_that_drains(daemon, connect):
    server = daemon()
    client, other = connect(server, retry=FAST), connect(server, retry=FAST)
    other.wait_ready(10)
    gate = Gate(("t", values(2 * MIB)))
    frames = client.compress_many(gate)
    next(frames)
    server.signal(signal.SIGTERM)
    wait_for(lambda: other.metrics().draining, "the drain")
    with pytest.raises(kvcompress.Unavailable, match="the server is draining"):
        other.compress(values(10))
    with pytest.raises(kvcompress.Unavailable, match="the daemon drains"):
        other.wait_ready(0.3)
    gate.release()
    assert list(frames) == []
    assert server.wait() == 0


def test_a_busy_daemon_is_asked_again(daemon, connect):
    server = daemon("--memory-budget", "1MiB", "--threads", "1")
    array = values(120_000)
    hasty, patient = connect(server, retry=kvcompress.NO_RETRY), connect(server, timeout=20)
    expected = patient.compress(array).data
    # A stream holds memory for what it has sent of its tensor.
    tensor = pb.Tensor(name="t", dtype=pb.DTYPE_F16, shape=[200_000])
    feed = Feed(pb.CompressRequest(header=pb.CompressHeader(tensor=tensor)), pb.CompressRequest(data=bytes(380_000)))
    call = server.channel().stream_stream(
        "/kvcompress.v1.KvCompression/Compress", pb.CompressRequest.SerializeToString, pb.CompressResponse.FromString
    )(feed, timeout=30)
    next(call)  # of the first block: what was sent has come
    with pytest.raises(kvcompress.ResourceExhausted, match="of the --memory-budget") as error:
        hasty.compress(array)
    assert error.value.retry_after == 0.1
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(patient.compress, array)
        wait_for(lambda: hasty.metrics().rejected_by_reason["memory_budget"] >= 3, "attempts of the patient client")
        assert not waiting.done()
        feed.send(pb.CompressRequest(data=bytes(20_000)))
        feed.close()
        assert list(call)
        assert waiting.result(20).data == expected


def test_what_the_input_raises_comes_after_the_frames_before_it(client):
    class OwnError(Exception):
        pass

    def items():
        yield "a", values(10)
        yield "b", values(2 * MIB)
        raise OwnError("from the input")

    frames = client.compress_many(items())
    assert [next(frames).name, next(frames).name] == ["a", "b"]
    with pytest.raises(OwnError, match="from the input"):
        next(frames)
    frames = client.compress_many([("a", values(10)), ("b", "no tensor")])
    assert next(frames).name == "a"
    with pytest.raises(kvcompress.InvalidArgument, match="not str"):
        next(frames)
    with pytest.raises(kvcompress.InvalidArgument, match="expected pairs"):
        list(client.compress_many([values(10)]))


def test_iterators_are_not_asked_twice(daemon, connect):
    client = connect(daemon("--max-streams", "1"), retry=FAST)
    gate = Gate(("t", values(10)))
    open_stream = client.compress_many(gate)
    next(open_stream)
    asked = []
    with pytest.raises(kvcompress.ResourceExhausted) as error:
        list(client.compress_many(asked.append(i) or ("t", values(10)) for i in range(3)))
    assert error.value.retry_after == 0.1
    assert asked == sorted(set(asked))
    gate.release()
    assert list(open_stream) == []


def test_leaving_early_cancels(client):
    frames = client.compress_many((str(i), values(MIB)) for i in range(1000))
    next(frames)
    frames.close()
    wait_for(lambda: client.metrics().streams_in_flight == 0, "the end of the stream")
    stream = client.compress_many((str(i), values(MIB)) for i in range(1000))
    next(stream)
    client.close()
    with pytest.raises(kvcompress.Cancelled):
        list(stream)


def calls_of(client):
    return [lambda: client.metrics(), lambda: client.wait_ready(), lambda: client.compress(values(10)),
            lambda: client.compress(values(2 * MIB))]


@pytest.mark.parametrize("was_used", [False, True])
def test_a_client_that_is_closed(daemon, was_used):
    server = daemon()
    client = kvcompress.Client(server.address, timeout=20)
    if was_used:
        client.compress(values(2 * MIB))
    client.close()
    for call in [*calls_of(client), lambda: list(client.compress_many([("t", values(10))]))]:
        with pytest.raises(kvcompress.Cancelled, match="the client is closed"):
            call()

    async def work():
        async with kvcompress.AsyncClient(server.address, timeout=20) as client:
            if was_used:
                await client.compress(values(2 * MIB))
        for call in calls_of(client):
            with pytest.raises(kvcompress.Cancelled, match="the client is closed"):
                await call()

    asyncio.run(work())


def test_timeouts_that_are_long_or_none(client):
    for timeout in (1e9, 1e10, 1e30, float("inf"), np.float32(20)):
        assert len(client.compress(values(10), timeout=timeout)) > 0
        assert len(list(client.compress_many([("t", values(10))], timeout=timeout))) == 1
    for timeout in (-1, float("nan"), "5s"):
        with pytest.raises(kvcompress.InvalidArgument, match="a timeout is a number of seconds"):
            client.compress(values(10), timeout=timeout)


def test_asyncio_failures_and_cancellation(daemon):
    server = daemon("--threads", "1")

    async def work():
        async with kvcompress.AsyncClient(server.address, timeout=20, retry=FAST) as client:
            for size in (10, 2 * MIB):
                with pytest.raises(kvcompress.InvalidArgument, match="unknown codec"):
                    await client.compress(values(size), "int9")
                with pytest.raises(kvcompress.DataLoss):
                    await client.decompress((await client.compress(values(size))).data[:-1])
            with stopped(server.process):
                for size in (10, 2 * MIB):
                    task = asyncio.create_task(client.compress(values(size)))
                    await asyncio.sleep(0.2)
                    task.cancel()
                    with pytest.raises(asyncio.CancelledError):
                        await task
                with pytest.raises(kvcompress.DeadlineExceeded):
                    await client.compress(values(10), timeout=0.2)

            async def endless():
                while True:
                    yield "t", values(MIB)

            async for _ in client.compress_many(endless()):
                break
            for _ in range(500):
                if (await client.metrics()).streams_in_flight == 0:
                    return
                await asyncio.sleep(0.02)
            pytest.fail("the stream goes on")

    asyncio.run(work())


def test_an_asyncio_deadline_while_all_threads_are_taken(daemon):
    server = daemon("--max-streams", "100", "--max-streams-per-client", "100")

    async def slow(until):
        await until.wait()
        yield "t", values(10)

    async def work():
        async with kvcompress.AsyncClient(server.address, timeout=20, shared_memory=False) as client:
            await client.wait_ready(10)
            until = asyncio.Event()

            async def hold():
                return [frame async for frame in client.compress_many(slow(until), timeout=30)]

            held = [asyncio.create_task(hold()) for _ in range(64)]
            await asyncio.sleep(1)
            started = time.monotonic()
            with pytest.raises(kvcompress.DeadlineExceeded, match="too many streams at once"):
                await client.compress(values(4 << 20), "raw", timeout=0.5)
            assert time.monotonic() - started < 15  # the others have thirty seconds
            until.set()
            assert all(len(frames) == 1 for frames in await asyncio.gather(*held))

    asyncio.run(work())
