"""--max-connection-age behind a balancer of connections, as a ClusterIP or a TCP balancer is one."""

import asyncio
import itertools
import threading
import time

import grpc
import pytest
from daemon_helpers import Client, random_array

CLIENTS = 4


class Balancer:
    """Gives each new connection to the next of its daemons."""

    def __init__(self, *daemons):
        self.daemons = list(daemons)
        self._turns = itertools.count()
        self._loop = asyncio.new_event_loop()
        self._server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.address = "127.0.0.1:%d" % self._server.sockets[0].getsockname()[1]
        self._thread = threading.Thread(target=self._loop.run_forever)

    async def _serve(self, reader, writer):
        daemon = self.daemons[next(self._turns) % len(self.daemons)]
        try:
            to_reader, to_writer = await asyncio.open_connection(*daemon.address.rsplit(":", 1))
            await asyncio.gather(self._copy(reader, to_writer), self._copy(to_reader, writer))
        except OSError:
            writer.close()

    @staticmethod
    async def _copy(reader, writer):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.close()

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._server.close()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0.1))
        self._loop.close()

    def channel(self, *_):
        """As a daemon's, of a connection of its own."""
        return grpc.insecure_channel(self.address, options=[("grpc.enable_http_proxy", 0),
                                                            ("grpc.use_local_subchannel_pool", 1)])


@pytest.mark.parametrize("age, evens_out", [("300ms", True), ("0", False)])
def test_load_spreads_over_a_daemon_that_comes_later(daemon, stubs, age, evens_out):
    first, later = daemon("--max-connection-age", age), daemon("--max-connection-age", age)
    tensors = {"t": random_array(1000)}
    with Balancer(first) as balancer:
        clients = [Client(balancer, stubs) for _ in range(CLIENTS)]
        for client in clients:
            client.compress(tensors)
        balancer.daemons.append(later)
        end = time.monotonic() + 4
        while time.monotonic() < end:
            for client in clients:
                assert client.compress(tensors)[2].tensors == 1
    calls = [Client(each, stubs).metrics() for each in (first, later)]
    counts = sorted(sum(sum(method.calls_by_code.values()) for method in each.methods if method.method == "Compress")
                    for each in calls)
    if evens_out:
        assert counts[1] <= 1.5 * counts[0]
    else:
        assert counts[0] == 0
