"""What a child that was made by fork, or otherwise, can do with its parent's client."""

import signal

import pytest
from daemon_helpers import page, page_value, wait_for

# Nothing here is to fail for want of a processor: where a hang is to be told from a slow machine, by minutes.
pytestmark = pytest.mark.timeout(400)


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
