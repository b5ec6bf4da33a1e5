"""What holds of the gRPC of C++ alone, and of the choice between the two."""

import asyncio
import gc
import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import grpc
import kvcompress
import numpy as np
import pytest
import torch
from daemon_helpers import page, page_value, wait_for
from fake_server import FakeServer
from kvcompress import _core, _items, _native_calls
from kvcompress._channel import Channel
from kvcompress._native_calls import NativeChannel, NativeStream
from kvcompress._stream import Stream

MIB = 1 << 20
SMALL, LARGE = np.ones(1000, np.float16), np.ones(4 * MIB, np.float16)
_SETTING = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")
LARGE_PAGES = _SETTING.read_text() if _SETTING.exists() else "[never]"


def way_of(client):
    stream = client.compress_many([("t", SMALL)])
    assert len(list(stream)) == 1
    return {NativeStream: "native", Stream: "python"}[type(stream)]


@pytest.mark.parametrize(("argument", "variable", "way"), [
    (None, None, "native"),
    ("auto", "off", "native"),
    (None, "off", "python"),
    ("off", "require", "python"),
    ("require", "off", "native"),
])
def test_who_chooses(daemon, connect, monkeypatch, argument, variable, way):
    monkeypatch.delenv("KVCOMPRESS_NATIVE", raising=False)
    if variable is not None:
        monkeypatch.setenv("KVCOMPRESS_NATIVE", variable)
    assert way_of(connect(daemon(), native=argument)) == way


def test_choices_that_are_none(connect, monkeypatch):
    with pytest.raises(kvcompress.InvalidArgument, match='native is "auto", "require" or "off", not 1'):
        connect("127.0.0.1:1", native=1)
    monkeypatch.setenv("KVCOMPRESS_NATIVE", "yes")
    with pytest.raises(kvcompress.InvalidArgument, match="not 'yes'"):
        connect("127.0.0.1:1")


def test_a_package_without_the_module(daemon, connect, monkeypatch):
    monkeypatch.setattr(_native_calls, "_native", None)
    server = daemon()
    assert way_of(connect(server)) == "python"
    with pytest.raises(kvcompress.FailedPrecondition, match="no native client"):
        connect(server, native="require")


def test_credentials_of_others_go_python_s_way(connect):
    client = connect("localhost:1", credentials=grpc.ssl_channel_credentials())
    assert not client._takes_items()
    assert connect("localhost:1")._takes_items()


def test_iterators_go_python_s_way(client):
    assert type(client.compress_many(iter([("t", SMALL)]))) is Stream
    assert type(client.compress_many((("t", SMALL),))) is NativeStream


def test_a_stream_that_nobody_works_at_ends_with_its_client(daemon, connect):
    server = daemon()
    client, other = connect(server), connect(server)
    stream = client.compress_many([("t", LARGE)] * 50, "raw")
    next(stream)
    client.close()
    wait_for(lambda: other.metrics().streams_in_flight == 0, "the end of the stream")
    with pytest.raises(kvcompress.Cancelled):
        list(stream)


def test_a_daemon_that_is_back_is_found_by_the_next_calls(daemon, connect, socket_dir):
    """Not after gRPC's own waits, which have grown meanwhile: attempts of one client, each a call without retries."""
    address = f"unix:{socket_dir}/s"
    server = daemon("--listen", address)
    client = connect(address, retry=kvcompress.RetryPolicy(max_attempts=1))
    client.compress(SMALL)
    server.stop()

    def is_found():
        try:
            client.compress(SMALL)
        except kvcompress.Unavailable:
            return False
        return True

    end = time.monotonic() + 3
    while time.monotonic() < end:
        assert not is_found()
        time.sleep(0.05)
    daemon("--listen", address)
    # A call by gRPC's own waits fails within a millisecond, and they take seconds; one that looks itself has 300 ms.
    assert any(is_found() for _ in range(10))


def test_a_daemon_that_takes_no_connection_is_not_asked_by_each_call(daemon, connect):
    server = daemon("--max-connections", "3")
    others = [connect(server, native="off") for _ in range(2)]
    client = connect(server, native="require", retry=kvcompress.NO_RETRY, timeout=5)
    for one in (others[0], client, others[1]):
        one.metrics()
    started = time.monotonic()
    end = started + 2

    def call_again_and_again():
        while time.monotonic() < end:
            with pytest.raises(kvcompress.Unavailable):
                client.compress(SMALL)

    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(call_again_and_again) for _ in range(8)]:
            done.result(60)
    rejected = page_value(
        page(server.metrics_address), 'kvcompress_rejected_requests_total{reason="max_connections"}'
    )
    # A tenth of a second apart, of up to two connections each, beside those that gRPC makes.
    assert 2 <= rejected < 30 * (time.monotonic() - started) + 10
    others[1].close()
    wait_for(lambda: is_served(client), "a connection", 10)


def is_served(client):
    try:
        return bool(client.compress(SMALL))
    except kvcompress.Unavailable:
        return False


def test_a_stream_that_is_forgotten_is_cancelled(client):
    next(client.compress_many([("t", LARGE)] * 50, "raw"))
    gc.collect()
    wait_for(lambda: client.metrics().streams_in_flight == 0, "the end of the stream")


def test_tensors_are_let_go_of(client):
    for original in (SMALL, LARGE):
        array = original.copy()
        kept = weakref.ref(array)
        frame = client.compress(array, "raw")
        list(client.compress_many([("t", array)]))
        out = np.empty_like(array)
        gone = weakref.ref(out)
        client.decompress(frame, out=out)
        del array, out
        assert kept() is None
        assert gone() is None


@pytest.mark.parametrize("shared_memory", [False, True])
def test_tensors_with_gaps_are_read_where_they_stand(daemon, connect, monkeypatch, shared_memory):
    whole = np.random.default_rng(1).standard_normal((6, 512, 4, 128)).astype(np.float16)
    tensors = {"pages": whole[:, :300].transpose(0, 2, 1, 3), "every other": whole[::2, ::-1, :, :64],
               "large": np.concatenate([whole] * 4).transpose(2, 0, 1, 3), "small": whole[0, :40, 1],
               "one": whole[:1, :1, :, ::2], "none": whole[:, :0, ::2],
               "again": np.broadcast_to(whole[0, 0], (30, 4, 128))}
    items = [(name, tensor, "lossless") for name, tensor in tensors.items()]
    items += [(f"torch {name}", torch.from_numpy(np.asarray(whole)).transpose(1, 2)[:, :, :300], "lossless")
              for name in ("a", "b")]
    wanted = [frame.data for frame in kvcompress.LocalClient().compress_many(
        (name, np.ascontiguousarray(tensor), spec) for name, tensor, spec in items)]
    client = connect(daemon("--shared-memory", "kvc-python-"), native="require", shared_memory=shared_memory)
    monkeypatch.setattr(np, "ascontiguousarray", None)
    monkeypatch.setattr(torch.Tensor, "contiguous", None)
    assert [frame.data for frame in client.compress_many(items)] == wanted
    assert [client.compress(tensor, spec, name=name).data for name, tensor, spec in items] == wanted


def test_threads_may_ask_one_stream(client):
    stream, found = client.compress_many([(str(index), LARGE[:MIB]) for index in range(40)], "int4"), []

    def take():
        for frame in stream:
            found.append(frame.name)

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found, key=int) == [str(index) for index in range(40)]


PROGRAM = """
import os, pathlib, signal, sys, threading, time
import kvcompress
import numpy as np

client = kvcompress.Client(sys.argv[1], native="require")
TENSORS = {"small": np.ones(1000, np.float16), "large": np.ones(4 << 20, np.float16)}
client.compress(TENSORS["large"])
tensor = TENSORS[sys.argv[2]]
os.kill(int(sys.argv[3]), signal.SIGSTOP)
# Its threads stop one after the other, and may answer until then.
tasks = pathlib.Path(f"/proc/{sys.argv[3]}/task")
while not all(path.read_text().rsplit(")", 1)[1].split()[0] == "T" for path in tasks.glob("*/stat")):
    time.sleep(0.001)
"""


@pytest.fixture(params=[(), ("--shared-memory", "kvc-native-")], ids=["connection", "shared memory"])
def run_without_answers(daemon, request):
    """Runs a program after PROGRAM, whose daemon is stopped."""
    server = daemon(*request.param)

    def run(code, size):
        try:
            return subprocess.run(
                [sys.executable, "-c", PROGRAM + textwrap.dedent(code), server.address, size, str(server.pid)],
                capture_output=True, text=True, timeout=90)
        finally:
            server.signal(signal.SIGCONT)

    return run


@pytest.mark.parametrize("size", ["small", "large"])
def test_an_interrupt_ends_a_call(run_without_answers, size):
    done = run_without_answers("""
        counted = []
        def interrupt():
            while len(counted) < 20:  # others go on while a call waits
                counted.append(time.sleep(0.01))
            os.kill(os.getpid(), signal.SIGINT)
        threading.Thread(target=interrupt).start()
        try:
            client.compress(tensor, "raw")
        except KeyboardInterrupt:
            print("interrupted")
    """, size)
    assert (done.stdout, done.stderr) == ("interrupted\n", "")


@pytest.mark.parametrize("size", ["small", "large"])
def test_a_process_ends_while_a_thread_is_in_a_call(run_without_answers, size):
    done = run_without_answers("""
        threading.Thread(target=lambda: client.compress(tensor, "raw"), daemon=True).start()
        time.sleep(0.3)
    """, size)
    assert done.returncode == 0, done.stderr


def chunk():
    """Tensors of many sizes: of none, of a few, of several messages, all smaller than what goes alone."""
    random = np.random.default_rng(1)
    shapes = [(0,), (1,), (3, 5), (64,), (2, 4, 64), (1 << 16,), (1 << 19,)] * 40
    return [(f"layer_{i}_key", random.standard_normal(shape).astype(np.float16)) for i, shape in enumerate(shapes)]


@pytest.mark.parametrize("shared_memory", [False, True])
def test_many_small_tensors_come_back_as_one_by_one(daemon, connect, shared_memory):
    server = daemon("--shared-memory", "kv-batch-test-")
    client, alone = connect(server, native="require", shared_memory=shared_memory), connect(server, native="off")
    tensors = chunk()
    frames = list(client.compress_many(tensors, "int4(group=64)"))
    expected = list(alone.compress_many(tensors, "int4(group=64)"))
    assert [(frame.name, frame.data) for frame in frames] == [(frame.name, frame.data) for frame in expected]
    assert [frame.quality for frame in frames] == [frame.quality for frame in expected]
    for (name, values), (_, exact) in zip(client.decompress_many(frames), alone.decompress_many(frames), strict=True):
        assert values.shape == exact.shape, name
        np.testing.assert_array_equal(values, exact, err_msg=name)


def test_an_error_among_many_names_its_tensor_after_the_results_before_it(daemon, connect):
    client = connect(daemon(), native="require")
    tensors = chunk()
    tensors[100] = ("broken", np.full(70000, np.nan, np.float16))
    results = client.compress_many(tensors, "int4(group=64)")
    assert [next(results).name for _ in range(100)] == [name for name, _ in tensors[:100]]
    with pytest.raises(kvcompress.InvalidArgument, match="broken"):
        next(results)
    frames = list(client.compress_many(chunk(), "int4(group=64)"))
    frames[77] = bytes(frames[77])[:-9] + bytes(9)
    with pytest.raises(kvcompress.DataLoss):
        list(client.decompress_many(frames))


def test_small_tensors_share_messages_where_the_daemon_says_so(daemon, connect, monkeypatch):
    """A daemon of before says nothing, and gets them one by one."""
    server, asked = daemon(), []
    begin = NativeStream._begin

    def watched(stream, batches):
        asked.append(batches)
        return begin(stream, batches)

    monkeypatch.setattr(NativeStream, "_begin", watched)
    expected = [bytes(frame) for frame in connect(server).compress_many(chunk(), "int4(group=64)")]
    parse = _core._message_bytes

    def of_before(said):
        said.limits.max_batch_tensors = 0
        return parse(said)

    monkeypatch.setattr(_core, "_message_bytes", of_before)
    assert [bytes(frame) for frame in connect(server).compress_many(chunk(), "int4(group=64)")] == expected
    assert asked == [True, False]


def test_a_message_of_a_task_that_is_cancelled_ends():
    begun, ended = threading.Event(), threading.Event()

    def never(_, context):
        context.add_callback(ended.set)
        begun.set()
        ended.wait(20)
        return b""

    async def work(address):
        async with kvcompress.AsyncClient(address, timeout=60, native="require") as client:
            task = asyncio.create_task(client.compress(SMALL, "raw"))
            await asyncio.to_thread(begun.wait, 10)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await asyncio.to_thread(ended.wait, 10)

    with FakeServer(_core.version(), unary={"CompressTensor": never}) as server:
        asyncio.run(work(server.address))
    assert begun.is_set()


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, GeneratorExit])
def test_memory_of_a_call_that_does_not_begin_is_given_back(daemon, connect, error):
    server = daemon("--shared-memory", "kvc-native-")
    client = connect(server, native="require")
    frame = client.compress(SMALL, "raw")

    def ends():
        yield None
        raise error

    class Ends(list):
        def __iter__(self):
            yield "t", SMALL
            raise error

    for _ in range(12):
        with pytest.raises(error):
            client.decompress_many([frame, frame], out=ends())
        with pytest.raises(error):
            client.compress_many(Ends([1, 2]), "raw")
        assert page_value(page(server.metrics_address), "kvcompress_shared_memory_regions") == 1
    assert len(list(client.decompress_many([frame, frame]))) == 2


@pytest.mark.parametrize("way", ["require", "off"])
def test_memory_of_a_call_that_finds_no_channel_is_given_back(daemon, connect, monkeypatch, way):
    server = daemon("--shared-memory", "kvc-native-")
    client = connect(server, native=way)
    tensors = [("t", SMALL)]
    expected = [bytes(frame) for frame in client.compress_many(tensors, "raw")]

    def refuse(*_):
        raise kvcompress.ResourceExhausted("no thread is left")

    stream = Channel.stream
    with monkeypatch.context() as patch:
        if way == "require":
            patch.setattr(NativeChannel, "get", refuse)
        else:
            patch.setattr(Channel, "stream", lambda own, method, *rest: (
                refuse() if method == "Compress" else stream(own, method, *rest)))
        for _ in range(12):
            with pytest.raises(kvcompress.ResourceExhausted, match="no thread is left"):
                client.compress_many(tensors, "raw")
    assert [bytes(frame) for frame in client.compress_many(tensors, "raw")] == expected
    assert page_value(page(server.metrics_address), "kvcompress_shared_memory_regions") == 1


def test_an_interrupt_while_memory_is_chosen_comes_before_results(client, monkeypatch):
    """Whoever asks for no more results would never see it."""
    output, interrupts = _items.DecompressItem.output, []

    def interrupted(item, described):
        if item.name == "2":
            interrupts.append(item)
            raise KeyboardInterrupt
        return output(item, described)

    frames = [client.compress(SMALL, "raw", name=str(number)) for number in range(4)]
    monkeypatch.setattr(_items.DecompressItem, "output", interrupted)
    stream = client.decompress_many(frames)

    def take():
        while not interrupts:
            next(stream)

    with pytest.raises(KeyboardInterrupt):
        take()


def run_python(code, *arguments, **environment):
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code), *arguments], capture_output=True, text=True,
                          timeout=60, env={**os.environ, **environment})
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_calls_at_the_end_of_the_process_are_cancelled(daemon):
    said = run_python("""
        import sys
        import kvcompress
        import numpy as np
        from kvcompress import _native

        client, tensor = kvcompress.Client(sys.argv[1], native="require"), np.ones(1000, np.float16)
        stream = client.compress_many([("t", tensor)])
        _native.end(0.1)
        for call in (client.compress, lambda tensor: client.compress_many([("t", tensor)]), lambda _: next(stream)):
            try:
                call(tensor)
            except kvcompress.Cancelled as error:
                print(error)
    """, daemon().address)
    assert said == 3 * "the process ends, and makes no calls any more\n"


def test_a_channel_that_has_no_threads_says_so():
    said = run_python("""
        import os
        import resource
        import kvcompress
        from kvcompress._native_calls import NativeChannel

        channel = NativeChannel("ipv4:127.0.0.1:1", None, None, "require")
        resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
        if os.getuid() == 0:
            os.setuid(65534)  # no limit holds for root
        try:
            channel.get()
        except kvcompress.ResourceExhausted as error:
            print(error)
    """)
    assert said == "start a thread: resource temporarily unavailable\n"


def test_memory_that_calls_free_stays_with_the_process(daemon):
    code = """
import resource, sys
import numpy as np
import kvcompress
arrays = [(str(i), np.full(262144, i, np.float16)) for i in range(64)]
with kvcompress.Client(sys.argv[1], native="require") as client:
    frames = list(client.compress_many(arrays, "raw"))
    for _ in range(3):
        list(client.decompress_many(frames, out=[array for _, array in arrays]))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        list(client.decompress_many(frames, out=[array for _, array in arrays]))
    print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) // 4)
"""
    faults = int(run_python(code, daemon().address))
    assert faults < 1000, faults  # of 8192 pages


@pytest.mark.skipif("[never]" in LARGE_PAGES, reason="this kernel has no large pages")
@pytest.mark.parametrize("local", [False, True])
def test_frames_that_glibc_maps_are_faulted_in_by_large_pages(daemon, local):
    code = """
import resource, sys
import numpy as np
import kvcompress
array = np.ones(20 << 20, np.float16)
with kvcompress.LocalClient() if len(sys.argv) < 2 else kvcompress.Client(sys.argv[1], native="require") as client:
    len(client.compress(array, "raw"))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    len(client.compress(array, "raw"))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    faults = int(run_python(code, *([] if local else [daemon().address])))
    assert faults < 3000, faults  # of 10240 pages
