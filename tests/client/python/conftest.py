"""Fixtures of the Python client's tests: the daemons are those of the end-to-end tests."""

import asyncio
import importlib.util
import pathlib
import sys

import pytest

E2E = pathlib.Path(__file__).resolve().parents[2] / "e2e"
sys.path.insert(0, str(E2E))
_spec = importlib.util.spec_from_file_location("e2e_fixtures", E2E / "conftest.py")
_fixtures = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_fixtures)

bin_dir, daemon, socket_dir, sample, f16_cache = (
    _fixtures.bin_dir,
    _fixtures.daemon,
    _fixtures.socket_dir,
    _fixtures.sample,
    _fixtures.f16_cache,
)

import kvcompress  # noqa: E402


@pytest.fixture(params=["off", "require"], ids=["python", "native"])
def way(request, monkeypatch):
    """By which gRPC the clients of a test make calls with tensors and frames: both behave alike."""
    monkeypatch.setenv("KVCOMPRESS_NATIVE", request.param)
    return request.param


@pytest.fixture
def connect():
    """Makes clients, which are closed at the end: connect(server, timeout=5)."""
    clients = []

    def make(server, **options):
        address = server if isinstance(server, str) else server.address
        clients.append(kvcompress.Client(address, **{"timeout": 30, **options}))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


@pytest.fixture
def client(daemon, connect):
    return connect(daemon("--threads", "2"))


class Awaited:
    """An AsyncClient with the calls of Client."""

    def __init__(self, address):
        self._client = kvcompress.AsyncClient(address, timeout=30)

    def close(self):
        asyncio.run(self._client.close())

    def __getattr__(self, name):
        async def awaited(*arguments, **options):
            return await getattr(self._client, name)(*arguments, **options)

        async def listed(results, *arguments, **options):
            async for result in getattr(self._client, name)(*arguments, **options):
                results.append(result)

        def iterated(*arguments, **options):
            results = []
            try:
                asyncio.run(listed(results, *arguments, **options))
            finally:
                yield from results  # those before an error

        if name.endswith("_many"):
            return iterated
        return lambda *arguments, **options: asyncio.run(awaited(*arguments, **options))


@pytest.fixture(params=["python", "native", "asyncio", "in_process"])
def anyone(request, daemon, connect, monkeypatch):
    """A client of each kind and way: they have the same calls, results and errors."""
    if request.param == "in_process":
        yield kvcompress.LocalClient(threads=2)
        return
    monkeypatch.setenv("KVCOMPRESS_NATIVE", "off" if request.param == "python" else "require")
    server = daemon("--threads", "2", "--shared-memory", "kvc-python-")
    client = Awaited(server.address) if request.param == "asyncio" else connect(server)
    yield client
    client.close()
