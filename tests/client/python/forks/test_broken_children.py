"""Children in which gRPC does not work."""

import pytest

# Nothing here is to fail for want of a processor: where a hang is to be told from a slow machine, by minutes.
pytestmark = pytest.mark.timeout(400)


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
