"""Forks while threads are inside of gRPC."""

import pytest

# Nothing here is to fail for want of a processor: where a hang is to be told from a slow machine, by minutes.
pytestmark = pytest.mark.timeout(400)


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
