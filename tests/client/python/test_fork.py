"""Clients in processes that were made by fork, and in others: each test is a program of its own, for what it forks must
not be pytest."""

import os
import signal
import subprocess
import sys
import textwrap

import pytest
from daemon_helpers import page, page_value, wait_for

# Nothing here is to fail for want of a processor: where a hang is to be told from a slow machine, by minutes.
pytestmark = [pytest.mark.usefixtures("way"), pytest.mark.timeout(400)]

PREFIX = "kvc-fork-"
PROGRAM = """
import asyncio, multiprocessing, os, pathlib, signal, sys, threading, time
import kvcompress
import kvcompress._regions
import numpy as np

kvcompress._regions._PATIENCE = 100
TARGET = sys.argv[1]
LARGE, SMALL = np.ones(2 << 20, np.float16), np.ones(1000, np.float16)
client = kvcompress.Client(TARGET, timeout=100)
asynchronous = kvcompress.AsyncClient(TARGET, timeout=100)

def work(number=0):
    "Through shared memory and by one message."
    assert client.compress(SMALL, "raw").tensor_bytes == SMALL.nbytes
    frame = client.compress(LARGE * number, "raw")
    assert (client.decompress(frame) == LARGE * number).all()
    return client.transport

def await_work(number=0):
    async def both():
        await asynchronous.compress(SMALL, "raw")
        frame = await asynchronous.compress(LARGE * number, "raw")
        assert (await asynchronous.decompress(frame) == LARGE * number).all()
        return asynchronous.transport
    return asyncio.run(both())

def forked(function):
    "The exit code of a child that calls it; 0 for one that returns."
    pid = os.fork()
    if pid == 0:
        try:
            function()
            os._exit(0)
        except BaseException:
            import traceback
            traceback.print_exc()
        finally:
            os._exit(1)
    return pid

def joined(pid, seconds=150):
    deadline = time.monotonic() + seconds
    while (found := os.waitpid(pid, os.WNOHANG))[0] == 0:
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return "it hangs"
        time.sleep(0.01)
    return os.waitstatus_to_exitcode(found[1])

def stop(pid):
    "All of its threads: they stop one after the other, and may answer until then."
    os.kill(pid, signal.SIGSTOP)
    tasks = pathlib.Path(f"/proc/{pid}/task")
    while not all(path.read_text().rsplit(")", 1)[1].split()[0] == "T" for path in tasks.glob("*/stat")):
        time.sleep(0.001)

SHARED = "shared memory"
"""


@pytest.fixture
def server(daemon):
    return daemon("--threads", "2", "--shared-memory", PREFIX)


@pytest.fixture
def run(server, tmp_path, way):
    """Runs a program after PROGRAM, which says "good" at its end."""

    def start(code, before=""):
        path = tmp_path / "program.py"
        path.write_text(before + PROGRAM + textwrap.dedent(code))
        environment = {"PATH": "", "PYTHONDONTWRITEBYTECODE": "1", "KVCOMPRESS_NATIVE": way}
        command = [sys.executable, "-X", "faulthandler", path, server.address, str(server.pid)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
                              start_new_session=True) as process:
            try:
                said, wrong = process.communicate(timeout=300)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGABRT)  # each says where it is
                said, wrong = process.communicate()
        assert process.returncode == 0, f"exit code {process.returncode}: {wrong}{said}"
        assert said.splitlines()[-1:] == ["good"], said + wrong
        return wrong

    return start


@pytest.mark.parametrize("work", ["work", "await_work"])
@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_a_pool_of_processes_of_a_client_that_was_used(run, method, work):
    run(f"""
        if __name__ == "__main__":
            assert {work}(1) == SHARED
            with multiprocessing.get_context("{method}").Pool(2) as pool:
                assert pool.map_async({work}, range(4)).get(150) == [SHARED] * 4
            assert {work}(2) == SHARED
            print("good")
    """)


def test_workers_that_are_forked_one_after_the_other_from_a_master_that_goes_on(run, server):
    """The order of a server that loads its application first: a worker that ends is replaced."""
    run("""
        assert work(1) == await_work(1) == SHARED
        (region,) = client._pool._idle
        for _ in range(3):
            workers = [forked(lambda: [work(2), await_work(3)]) for _ in range(2)]
            assert work(4) == SHARED
            assert [joined(worker) for worker in workers] == [0, 0]
        assert client._pool._idle == [region]
        print("good")
    """)
    wait_for(lambda: page_value(page(server.metrics_address), "kvcompress_shared_memory_regions") == 0,
             "the end of all regions", seconds=100)


def test_a_child_of_a_child(run):
    run("""
        assert work(1) == SHARED
        def child():
            work(2)
            assert joined(forked(work)) == 0
        assert joined(forked(child)) == 0
        assert joined(forked(lambda: exec("assert joined(forked(work)) == 0"))) == 0
        print("good")
    """)


def test_workers_of_a_data_loader(run):
    pytest.importorskip("torch", reason="torch is not installed")
    run("""
        import torch
        from torch.utils.data import DataLoader, Dataset

        class Frames(Dataset):
            def __len__(self):
                return 6
            def __getitem__(self, index):
                tensor = torch.full((2 << 20,), float(index), dtype=torch.float16)
                return float(client.decompress(client.compress(tensor, "raw"))[-1]), client.transport

        assert work(1) == SHARED
        for context in (None, "fork"):
            loader = DataLoader(Frames(), batch_size=None, num_workers=2, multiprocessing_context=context)
            assert [tuple(found) for found in loader] == [(float(index), SHARED) for index in range(6)]
        assert work(2) == SHARED
        print("good")
    """)


def test_a_timeout_holds_in_a_child(run, server):
    try:
        run("""
            client, asynchronous = kvcompress.Client(TARGET), kvcompress.AsyncClient(TARGET)  # which wait for ever
            assert work(1) == await_work(1) == SHARED
            stop(int(sys.argv[2]))
            def child():
                for call in (lambda: client.compress(SMALL, timeout=0.5),
                             lambda: asyncio.run(asynchronous.compress(LARGE, timeout=0.5))):
                    try:
                        call()
                        sys.exit("a daemon that is stopped has answered")
                    except kvcompress.DeadlineExceeded:
                        pass
            assert joined(forked(child)) == 0
            print("good")
        """)
    finally:
        server.signal(signal.SIGCONT)


def test_forks_while_threads_are_in_calls(run):
    run("""
        over = threading.Event()
        def calls():
            while not over.is_set():
                client.compress(SMALL, "int4")
        def stream(pairs):
            while not over.is_set():
                assert [frame.name for frame in client.compress_many(pairs(), "int4", timeout=60)] == ["a", "b"] * 8
        through_memory = lambda: [("a", LARGE), ("b", SMALL)] * 8
        through_messages = lambda: iter(through_memory())
        threads = [threading.Thread(target=calls) for _ in range(3)]
        threads += [threading.Thread(target=stream, args=(pairs,)) for pairs in (through_memory, through_messages) * 2]
        for thread in threads:
            thread.start()
        try:
            end = time.monotonic() + 20
            forks = 0
            while forks < 3 or time.monotonic() < end:
                children = [forked(lambda: [work(), await_work()]) for _ in range(2)]
                assert [joined(child) for child in children] == [0, 0], f"after {forks} forks"
                forks += 2
        finally:
            over.set()
        for thread in threads:
            thread.join()
        print("good")
    """)


def test_two_forks_one_right_after_the_other(run):
    """gRPC's thread is still to hear that the first is over. Were it to hear it within the second, gRPC would have no
    part in that one."""
    stderr = run("""
        stream = client.compress_many(iter([("a", LARGE), ("b", LARGE)]), "raw")
        next(stream)
        sys.setswitchinterval(10)  # this thread goes on from fork to fork
        children = [forked(work), forked(work)]
        sys.setswitchinterval(0.005)
        assert [joined(child) for child in children] == [0, 0]
        assert [frame.name for frame in stream] == ["b"]
        print("good")
    """, before="""
import os, time
# What is registered first is done last before a fork: other threads go on meanwhile.
os.register_at_fork(before=lambda: time.sleep(0.2))
""")
    assert "skipping fork() handlers" not in stderr


def test_a_thread_of_grpc_s_that_is_not_counted_again_yet_is_waited_for(run):
    run("""
        from grpc._cython.cygrpc import _fork_state
        from kvcompress import _fork
        count, gate = _fork_state.active_thread_count, _fork.gate()
        resuming, closed = threading.Thread(target=count.increment), threading.Event()
        closing = threading.Thread(target=lambda: [gate.close(), closed.set(), gate.open()])
        with count._condition:
            resuming.start()
            while not sys._current_frames()[resuming.ident].f_code.co_name == "__enter__":
                time.sleep(0.001)
            closing.start()
            assert not closed.wait(0.5)
        closing.join()
        assert closed.is_set() and not resuming.is_alive()
        print("good")
    """)


def test_a_fork_waits_for_a_thread_that_is_slow_inside(run):
    """A machine that is short of processors takes seconds for what needs none of them otherwise."""
    run("""
        from kvcompress import _fork
        inside, left = threading.Event(), []
        def begin():
            with _fork.gate().held():
                inside.set()
                time.sleep(3)
                left.append(True)
        threading.Thread(target=begin).start()
        inside.wait()
        assert joined(forked(lambda: os._exit(0 if left else 1))) == 0
        print("good")
    """)


def test_forks_of_who_reads_a_stream(run):
    """Its messages fill what daemon and connection hold, and stand still."""
    run("""
        def endless():
            while True:
                yield "a", LARGE
        stream = client.compress_many(endless(), "raw", timeout=None)
        for _, frame in zip(range(4), stream):
            assert frame.name == "a"
            assert joined(forked(work)) == 0
        stream.close()
        print("good")
    """)


def test_a_fork_in_a_signal_handler_of_who_reads_a_stream(run):
    """What it waits for has stopped already: its own thread reads no more until it is over."""
    run("""
        from kvcompress import _fork
        _fork._PATIENCE_INSIDE = 100
        took, over = [], threading.Event()
        def handle(*_):
            began = time.monotonic()
            child = forked(work)
            took.append(time.monotonic() - began)
            assert joined(child) == 0
            over.set()
        signal.signal(signal.SIGUSR1, handle)
        reader = threading.main_thread().ident
        def interrupt():
            while sys._current_frames()[reader].f_code is not threading.Condition.wait.__code__:
                time.sleep(0.001)
            signal.pthread_kill(reader, signal.SIGUSR1)
        def pairs():
            yield "first", SMALL
            begun.wait()
            threading.Thread(target=interrupt).start()
            over.wait(200)
            yield "last", SMALL
        begun = threading.Event()
        stream = client.compress_many(pairs(), "raw", timeout=None)
        assert next(stream).name == "first"
        begun.set()
        assert [frame.name for frame in stream] == ["last"]
        assert took[0] < 50, took
        print("good")
    """)


def test_a_fork_of_a_thread_that_is_inside_waits_for_nobody_but_others(run):
    """In a signal handler, too, while others wait for it."""
    run("""
        from kvcompress import _fork
        _fork._PATIENCE_INSIDE = 100
        assert work(1) == SHARED
        gate = _fork.gate()
        def begin():
            with gate.held():
                pass
        other = threading.Thread(target=begin)
        with gate.held():
            other.start()
            while sys._current_frames()[other.ident].f_code.co_name not in ("wait", "held"):
                time.sleep(0.001)
            began = time.monotonic()
            child = forked(work)
            took = time.monotonic() - began
        assert joined(child) == 0
        other.join(100)
        assert not other.is_alive() and took < 50, took
        print("good")
    """)


def test_a_fork_while_another_thread_looks_whether_an_answer_is_there(run):
    """gRPC's lock of the call is held then, which the child would wait for."""
    run("""
        stream = client.compress_many(iter([("a", LARGE), ("b", LARGE)]), "raw")
        next(stream)
        calls.append(stream._answers._call)
        child = forked(work)
        assert looking.is_set()
        assert joined(child) == 0
        assert [frame.name for frame in stream] == ["b"]
        print("good")
    """, before="""
import os, threading
calls, looking, over = [], threading.Event(), threading.Event()
def look():
    with calls[0]._state.condition:
        looking.set()
        over.wait()
def begin():
    if calls:
        threading.Thread(target=look).start()
        looking.wait()
# What is registered first is done last before a fork.
os.register_at_fork(before=begin, after_in_parent=over.set)
""")


def test_a_stream_that_is_forgotten_while_another_thread_forks_is_cancelled_after_it(run, server):
    run("""
        from kvcompress import _fork
        stream = client.compress_many(iter([("a", LARGE)]), "raw")
        next(stream)
        forgotten, closed = threading.Event(), []
        def forget():
            stream.close()
            forgotten.set()
        gate = _fork.gate()
        gate.close()
        threading.Thread(target=forget).start()
        assert forgotten.wait(100), "it waits for the fork"
        assert stream._answers.is_active()
        gate.open()
        assert not stream._answers.is_active()
        assert work(1) == SHARED
        print("good")
    """)


def test_a_child_of_a_fork_that_grpc_had_no_part_in_is_told_at_once(run):
    run("""
        import grpc
        assert work(1) == SHARED
        # A callback keeps gRPC's thread for longer than gRPC waits for it.
        held, over = threading.Event(), threading.Event()
        call = grpc.insecure_channel("unix:/").unary_unary("/").future(b"", timeout=0.5, wait_for_ready=True)
        call.add_done_callback(lambda _: [held.set(), over.wait(200)])
        assert held.wait(100)
        def child():
            for timeout in (0.5, None):
                try:
                    kvcompress.Client(TARGET).compress(LARGE, timeout=timeout)
                    sys.exit("gRPC works")
                except kvcompress.FailedPrecondition as found:
                    assert "threads were inside gRPC" in str(found), found
        assert joined(forked(child)) == 0
        over.set()
        assert work(2) == SHARED
        print("good")
    """)


def test_a_child_whose_grpc_takes_seconds_is_not_told_that_it_does_not_work(run):
    run("""
        from kvcompress import _proof
        assert work(1) == SHARED
        begin = _proof._begin_vain_call
        _proof._begin_vain_call = lambda ended: [time.sleep(4), begin(ended)]
        assert joined(forked(work)) == 0
        print("good")
    """)


def test_a_child_in_which_grpc_does_not_work_and_does_not_say_so_is_told(run):
    run("""
        assert work(1) == SHARED
        def child():
            from grpc._cython.cygrpc import _fork_state
            from kvcompress import _proof
            _fork_state.fork_in_progress = True  # its threads wait for the end of that
            _proof._SECONDS = 1
            for timeout, error in ((0.5, kvcompress.DeadlineExceeded), (None, kvcompress.FailedPrecondition)):
                try:
                    kvcompress.Client(TARGET).compress(LARGE, timeout=timeout)
                    sys.exit("gRPC works")
                except error as found:
                    assert timeout or "threads were inside gRPC" in str(found), found
        assert joined(forked(child)) == 0
        print("good")
    """)


def test_a_child_that_was_told_is_told_at_once_from_then_on(run):
    """Its event loop goes on meanwhile, and gRPC is asked once."""
    run("""
        from kvcompress import _proof
        assert work(1) == await_work(1) == SHARED
        def child():
            import grpc
            asked = []
            grpc.insecure_channel = lambda *_: [asked.append(True), time.sleep(500)]  # locked for good
            _proof._SECONDS = 2
            steps = []
            async def tick():
                while True:
                    await asyncio.sleep(0.01)
                    steps.append(time.monotonic())
            async def calls():
                ticking = asyncio.create_task(tick())
                first, second = await asyncio.gather(asynchronous.metrics(), asynchronous.compress(LARGE),
                                                     return_exceptions=True)
                for error in (first, second):
                    assert "threads were inside gRPC" in str(error), error
                ticking.cancel()
            asyncio.run(calls())
            assert len(steps) > 20, "the loop stood still"
            _proof._STEP = 100  # it would be waited for
            for call in (client.metrics, client.wait_ready, lambda: client.compress(LARGE), lambda: await_work(1),
                         lambda: list(client.compress_many(iter([("a", SMALL)])))) * 2:
                began = time.monotonic()
                try:
                    call()
                    sys.exit("gRPC works")
                except kvcompress.FailedPrecondition as error:
                    assert "threads were inside gRPC" in str(error), error
                assert time.monotonic() - began < 50
            assert len(asked) == 1
            assert sum(thread.name == "kvcompress-fork" for thread in threading.enumerate()) == 1
        assert joined(forked(child)) == 0
        print("good")
    """)


def test_a_child_whose_grpc_works_after_all_is_not_told_any_more(run):
    run("""
        from kvcompress import _proof
        assert work(1) == await_work(1) == SHARED
        def child():
            begin, late = _proof._begin_vain_call, threading.Event()
            _proof._begin_vain_call, _proof._SECONDS = lambda ended: [late.wait(200), begin(ended)], 0.5
            for _ in range(2):
                try:
                    client.metrics()
                    sys.exit("gRPC works")
                except kvcompress.FailedPrecondition:
                    pass
            late.set()
            end = time.monotonic() + 100
            while _proof.is_needed() and time.monotonic() < end:
                time.sleep(0.01)
            assert work(2) == await_work(2) == SHARED
        assert joined(forked(child)) == 0
        print("good")
    """)


def test_short_timeouts_come_to_the_same_end(run):
    run("""
        from kvcompress import _proof
        assert work(1) == SHARED
        def child():
            _proof._begin_vain_call = lambda ended: time.sleep(500)
            _proof._SECONDS = 1
            found = []
            while kvcompress.FailedPrecondition not in found and len(found) < 100:
                try:
                    client.metrics(timeout=0.15)
                except kvcompress.KvCompressError as error:
                    found.append(type(error))
            assert found[0] is kvcompress.DeadlineExceeded and len(found) < 100, found
        assert joined(forked(child)) == 0
        print("good")
    """)


def test_streams_that_are_open_at_a_fork_are_the_parent_s(run):
    run("""
        streams = [client.compress_many([("a", LARGE), ("b", LARGE)], "raw"),
                   client.compress_many(iter([("a", LARGE), ("b", LARGE)]), "raw")]
        for stream in streams:
            next(stream)
        def child():
            for stream in streams:
                try:
                    next(stream)
                    sys.exit("it is not the parent's alone")
                except kvcompress.Cancelled as error:
                    assert "belongs to the process that this one was forked from" in str(error)
            streams.clear()
            work()
        assert joined(forked(child)) == 0
        assert [[frame.name for frame in stream] for stream in streams] == [["b"], ["b"]]
        assert work(1) == SHARED
        print("good")
    """)


def test_a_child_that_ends_by_itself_takes_nothing_of_its_parent_s_along(run):
    run("""
        assert work(1) == SHARED
        pid = os.fork()
        if pid == 0:
            sys.exit(0)
        assert joined(pid) == 0
        pid = os.fork()
        if pid == 0:
            client.close()
            try:
                client.metrics()
            except kvcompress.Cancelled:
                sys.exit(0)
        assert joined(pid) == 0
        assert work(2) == SHARED
        client.close()
        def child():
            try:
                client.metrics()
                sys.exit("a closed client was opened again")
            except kvcompress.Cancelled:
                pass
        assert joined(forked(child)) == 0
        print("good")
    """)


def test_a_child_without_grpc_s_support_for_forks_is_told_at_once(run):
    run("""
        client.close()
        client = kvcompress.Client(TARGET)
        assert joined(forked(lambda: client.metrics())) == 0, "gRPC was not used before"
        assert work(1) == SHARED
        def child():
            for call in (client.metrics, lambda: client.compress(LARGE), lambda: asyncio.run(asynchronous.metrics())):
                try:
                    call()
                    sys.exit("gRPC works")
                except kvcompress.FailedPrecondition as error:
                    assert "GRPC_ENABLE_FORK_SUPPORT=1" in str(error)
        assert joined(forked(child)) == 0
        assert work(2) == SHARED
        print("good")
    """, before="import grpc\n")
