"""Calls of AsyncClient that threads make as a whole: how they end, with whom, and what is left of them."""

import asyncio
import gc
import subprocess
import sys
import threading
import time
import weakref

import grpc
import kvcompress
import numpy as np
import pytest
from daemon_helpers import page, page_value, wait_for
from fake_server import FakeServer
from kvcompress import _aio
from kvcompress._call_threads import CallThreads
from kvcompress.v1 import kvcompress_pb2 as pb
from process_helpers import stopped

SPEC = "int4(group=64)"
SMALL = np.linspace(-3, 5, 1 << 12, dtype=np.float32).astype(np.float16)
LARGE = np.linspace(-3, 5, 3 << 20, dtype=np.float32).astype(np.float16)
SIZES = pytest.mark.parametrize("array", [SMALL, LARGE], ids=["small", "large"])


@pytest.fixture
def planned(monkeypatch):
    """The names of plans that are carried out."""
    names = []
    run = _aio.AsyncClient._run

    async def watched(client, plan, failed=None):
        names.append(plan.__name__)
        return await run(client, plan, failed)

    monkeypatch.setattr(_aio.AsyncClient, "_run", watched)
    return names


@pytest.fixture
def server(daemon):
    return daemon("--threads", "2", "--shared-memory", "kvc-async-")


def with_client(address, work, **options):
    """Runs work(client), of a client that knows its daemon, and has memory where that shares some."""
    return with_known(address, LARGE, work, **options)


def with_known(address, array, work, **options):
    troubles = []

    async def run():
        asyncio.get_running_loop().set_exception_handler(lambda _, trouble: troubles.append(trouble))
        async with kvcompress.AsyncClient(address, native="require", **{"timeout": 30, **options}) as client:
            await client.compress(array)
            return await work(client)

    result = asyncio.run(run())
    assert troubles == []
    return result


def threads():
    return {thread for thread in threading.enumerate() if thread.name == "kvcompress-call"}


def started(client):
    return len(client._ours().call_threads._all)


class Served:
    """Answers, and then as it is told."""

    def __init__(self):
        self.work = lambda context: None
        self.calls = 0

    def __call__(self, request, context):
        self.calls += 1
        self.work(context)
        return pb.CompressTensorResponse(
            report=pb.TensorReport(name="t", tensor_bytes=SMALL.nbytes, frame_bytes=5), frame=b"frame"
        ).SerializeToString()


def with_served(served, work, **options):
    with FakeServer(kvcompress.__version__, {"CompressTensor": served}) as server:
        return with_known(server.address, SMALL, work, **options)


@SIZES
def test_results_are_those_of_the_blocking_client(server, connect, planned, array):
    async def work(client):
        del planned[:]
        frame = await client.compress(array, SPEC, name="t")
        out = np.zeros_like(array)
        assert await client.decompress(frame, out=out) is out
        assert np.array_equal(out, await client.decompress(frame))
        assert planned == []
        marked = await client.compress(array, SPEC, name="t", fingerprint=b"f")  # which only plans have
        assert np.array_equal(out, await client.decompress(marked, fingerprint=b"f"))
        assert len(planned) == 2
        return frame, out

    frame, out = with_client(server.address, work)
    expected = connect(server).compress(array, SPEC, name="t")
    assert frame.data == expected.data
    assert np.array_equal(out, connect(server).decompress(expected))


def test_more_calls_than_threads(server):
    async def work(client):
        frames = await asyncio.gather(*(client.compress(SMALL * index, "raw") for index in range(60)))
        for index, array in enumerate(await asyncio.gather(*map(client.decompress, frames))):
            assert np.array_equal(array, SMALL * index)
        assert 1 < started(client) <= 16

    with_client(server.address, work)


def test_calls_one_after_another_take_one_thread(server):
    async def work(client):
        for _ in range(20):
            await client.compress(SMALL)
        assert started(client) == 1

    with_client(server.address, work)


@pytest.mark.parametrize("how", ["cancel", "wait_for"])
def test_a_call_ends_with_its_task(how):
    begun, ended = threading.Event(), threading.Event()

    def never(context):
        context.add_callback(ended.set)
        begun.set()
        ended.wait(20)

    served = Served()

    async def work(client):
        served.work = never
        if how == "wait_for":
            with pytest.raises(asyncio.TimeoutError) as error:
                await asyncio.wait_for(client.compress(SMALL), 0.5)
            assert not isinstance(error.value, kvcompress.KvCompressError)
        else:
            task = asyncio.create_task(client.compress(SMALL))
            await asyncio.to_thread(begun.wait, 10)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert await asyncio.to_thread(ended.wait, 10)
        served.work = lambda context: None
        calls = served.calls
        assert (await client.compress(SMALL)).data == b"frame"
        assert served.calls == calls + 1  # the one that was cancelled is not made again

    with_served(served, work)
    assert begun.is_set()


def test_memory_of_a_call_that_is_cancelled_is_not_used_again(server, planned):
    async def work(client):
        (region,) = client._pool._idle
        del planned[:]
        with stopped(server.process):
            task = asyncio.create_task(client.compress(LARGE, "raw"))
            await asyncio.sleep(0.3)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert planned == []
            await asyncio.to_thread(wait_for, lambda: client._pool._dropped, "the end of the call")
            assert list(client._pool._dropped) == [region]
        frame = await client.compress(LARGE, "raw")
        assert np.array_equal(await client.decompress(frame), LARGE)
        regions = "kvcompress_shared_memory_regions"
        await asyncio.to_thread(wait_for, lambda: page_value(page(server.metrics_address), regions) == 1, "its end")

    with_client(server.address, work)


@SIZES
@pytest.mark.parametrize("usual", [False, True], ids=["of the call", "of the client"])
def test_a_call_ends_in_time(server, planned, array, usual):
    async def work(client):
        if usual:
            client._core.limits = (*client._core.limits[:2], 0.3)
        del planned[:]
        with stopped(server.process):
            began = time.monotonic()
            with pytest.raises(kvcompress.DeadlineExceeded):
                await client.compress(array, **({} if usual else {"timeout": 0.3}))
            assert 0.2 < time.monotonic() - began < 15
        assert len(planned) == 1  # which the error is given to
        await client.compress(array)

    with_client(server.address, work)


def test_a_failed_attempt_is_counted():
    failures = dict.fromkeys((2, 3, 5, 6, 7), (grpc.StatusCode.RESOURCE_EXHAUSTED, "busy"))

    def busy(context):
        if failure := failures.get(served.calls):
            context.set_trailing_metadata([("grpc-retry-pushback-ms", "1")])
            context.abort(*failure)

    served = Served()
    served.work = busy

    async def work(client):
        assert served.calls == 1
        assert (await client.compress(SMALL)).data == b"frame"  # the third attempt is well
        assert served.calls == 4
        with pytest.raises(kvcompress.ResourceExhausted, match="busy"):
            await client.compress(SMALL)
        assert served.calls == 7

    with_served(served, work, retry=kvcompress.RetryPolicy(3, 0.001))


def test_a_region_that_the_daemon_has_lost(server):
    """A call finds out, and is made again."""

    async def work(client):
        client._pool._idle[0].number ^= 1
        frame = await client.compress(LARGE, "raw")
        assert np.array_equal(await client.decompress(frame), LARGE)
        assert client.transport == "shared memory"

    with_client(server.address, work)


def test_what_a_call_raises_is_raised(server):
    async def work(client):
        frame = await client.compress(SMALL, SPEC)
        for call, error in [
            (client.compress(SMALL, "no such"), kvcompress.InvalidArgument),
            (client.compress(object(), SPEC), kvcompress.InvalidArgument),
            (client.compress(SMALL, timeout=-1), kvcompress.InvalidArgument),
            (client.decompress(kvcompress.Frame(frame.data[:-9] + bytes(9), *vars_of(frame))), kvcompress.DataLoss),
            (client.compress(), TypeError),
        ]:
            with pytest.raises(error):
                await call

    def vars_of(frame):
        return "t", SPEC, "F16", frame.shape, 1, 1, None, (), 0.0

    with_client(server.address, work)


def test_close_ends_calls_in_flight():
    begun = threading.Semaphore(0)

    def slow(context):
        over = threading.Event()
        context.add_callback(over.set)
        begun.release()
        over.wait(20)

    served = Served()

    async def work(client):
        served.work = slow
        tasks = [asyncio.create_task(client.compress(SMALL)) for _ in range(3)]
        for _ in tasks:
            await asyncio.to_thread(begun.acquire)
        late = asyncio.create_task(client.compress(SMALL))
        await asyncio.sleep(0)  # the last may not have begun
        await client.close()
        for task in (*tasks, late):
            with pytest.raises(kvcompress.Cancelled):
                await task
        with pytest.raises(kvcompress.Cancelled, match="the client is closed"):
            await client.compress(SMALL)

    with_served(served, work)


def test_close_ends_calls_that_are_just_beginning(server):
    async def work():
        for round_ in range(20):
            client = kvcompress.AsyncClient(server.address, native="require")
            await client.compress(SMALL)
            await client.compress(LARGE)
            with stopped(server.process):
                tasks = [asyncio.create_task(client.compress(LARGE)) for _ in range(6)]
                for _ in range(round_ % 4):
                    await asyncio.sleep(0)
                if round_ % 5 == 4:
                    await asyncio.sleep(0.001)
                await client.close()
                _, pending = await asyncio.wait(tasks, timeout=10)  # gRPC itself ends them after some 20 s
                assert not pending
            assert {type(task.exception()) for task in tasks} == {kvcompress.Cancelled}

    asyncio.run(work())


def test_a_client_that_is_closed_while_it_hands_a_call_over(server, monkeypatch):
    async def work(client):
        make = _aio.new_cancellation

        def closing():
            thread = threading.Thread(target=lambda: asyncio.run(client.close()))
            thread.start()
            thread.join()
            return make()

        await client.compress(SMALL)
        monkeypatch.setattr(_aio, "new_cancellation", closing)
        with pytest.raises(kvcompress.Cancelled, match="the client is closed"):
            await asyncio.wait_for(client.compress(SMALL), 20)

    with_client(server.address, work)


def test_a_loop_that_is_closed_before_its_call_is_over(server):
    async def known(client):
        await client.compress(SMALL)

    client = kvcompress.AsyncClient(server.address, timeout=30, native="require")
    asyncio.run(known(client))
    for _ in range(3):
        loop = asyncio.new_event_loop()
        task = loop.create_task(client.compress(SMALL))
        with stopped(server.process):
            loop.run_until_complete(asyncio.sleep(0.05))
            assert not task.done()
            loop.close()
        task._log_destroy_pending = False
        wait_for(lambda: client._ours().call_threads._idle, "the end of the call")
        asyncio.run(known(client))
    assert started(client) == 1
    asyncio.run(client.close())


@pytest.mark.parametrize("closes", [False, True])
def test_threads_end_with_their_client(server, closes):
    others = threads()
    client = kvcompress.AsyncClient(server.address, timeout=30, native="require")

    async def work(client):
        await asyncio.gather(*(client.compress(SMALL) for _ in range(5)))

    asyncio.run(work(client))
    assert threads() - others
    if closes:
        asyncio.run(client.close())
    else:
        del client
    # A thread may have something of a call for a moment after that is over.
    wait_for(lambda: gc.collect() >= 0 and not threads() - others, "the end of the threads")


def test_nothing_is_kept_of_a_call(server):
    class Array(np.ndarray):
        pass

    async def work(client):
        tensor = SMALL.copy().view(Array)
        kept = weakref.ref(tensor)
        frame = await client.compress(tensor, "raw")
        with pytest.raises(kvcompress.InvalidArgument):
            await client.compress(tensor, "no such")
        out = (await client.decompress(frame)).view(Array)
        kept_too = weakref.ref(out)
        del tensor, out, frame
        gc.collect()
        await asyncio.to_thread(wait_for, lambda: kept() is None and kept_too() is None, "the end of the arrays")

    with_client(server.address, work)


def test_a_process_ends_while_a_call_is_in_flight(server):
    code = """
import asyncio, sys
import kvcompress
import numpy as np

async def work(address):
    client = kvcompress.AsyncClient(address, native="require")
    arrays = [np.ones(size, np.float16) for size in (1000, 4 << 20)]
    for array in arrays:
        await client.compress(array)
    print("ready", flush=True)
    sys.stdin.readline()
    tasks = [asyncio.create_task(client.compress(array)) for array in arrays]
    await asyncio.sleep(0.3)
    print([task.done() for task in tasks])

asyncio.run(work(sys.argv[1]))
"""
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen([sys.executable, "-c", code, server.address], text=True, **pipes) as process:
        assert process.stdout.readline() == "ready\n"
        with stopped(server.process):
            said = process.communicate("\n", timeout=60)
    assert (process.returncode, *said) == (0, "[False, False]\n", "")


def test_a_process_ends_while_a_thread_is_in_python_under_our_code(server):
    code = """
import asyncio, sys
import kvcompress
import numpy as np

async def work(address):
    client = kvcompress.AsyncClient(address, native="require")
    await client.compress(np.ones(10, np.float16))
    tasks = [asyncio.create_task(client.compress(np.ones(16 << 20, ">f4"), "raw")) for _ in range(2)]
    await asyncio.sleep(0.01)

asyncio.run(work(sys.argv[1]))
"""
    for _ in range(4):
        done = subprocess.run([sys.executable, "-c", code, server.address], capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_thread_that_cannot_be_started_is_no_thread(monkeypatch):
    threads = CallThreads(2)

    def refuse(_):
        raise RuntimeError("can't start new thread")

    async def work():
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            with pytest.raises(RuntimeError):
                threads.run(lambda: 1)
        assert not threads.are_busy()
        assert await threads.run(lambda: 1) == 1

    asyncio.run(work())


def test_what_no_future_takes_is_an_error():
    def stop():
        raise StopIteration

    async def work():
        with pytest.raises(RuntimeError, match="StopIteration"):
            await asyncio.wait_for(CallThreads(1).run(stop), 20)

    asyncio.run(work())
