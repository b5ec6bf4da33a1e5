"""LMCache's own server on the CPU, with the L2 plugin and with the serde: a worker stores keys and values through one
server, and loads them through another one, which has nothing in memory."""

import importlib.metadata
import time

import pytest

if "lmcache" not in importlib.metadata.packages_distributions():
    pytest.skip("LMCache is not installed: its server is run here", allow_module_level=True)
torch = pytest.importorskip("torch")
from lmcache_server import BLOCK, CHUNK, Server, Worker  # noqa: E402
from process_helpers import stopped  # noqa: E402

CHUNKS = 3
TOKENS = list(range(CHUNKS * CHUNK))
HALF = CHUNKS * CHUNK // BLOCK  # blocks


@pytest.fixture
def start(tmp_path):
    """Makes a server and its worker: start(l2)."""
    servers = []

    def make(l2, **options):
        servers.append(Server(l2, tmp_path, **options))
        return servers[-1], Worker(servers[-1])

    yield make
    for server in servers:
        server.stop()


@pytest.fixture
def plugin(daemon, tmp_path):
    def make(**options):
        told = {"path": str(tmp_path / "kv"), "target": make.daemon.address, "head_dim": 64, "timeout": 2, **options}
        return {"type": "plugin", "module_path": "kvcompress.adapters.lmcache", "class_name": "KvCompressL2Adapter",
                "adapter_params": told}

    make.daemon = daemon("--threads", "2")
    return make


def fill(worker, kv_values):
    for seed, layer in enumerate(worker.layers.values()):
        layer[:, :HALF] = kv_values((2, HALF, BLOCK, *layer.shape[3:]), torch.bfloat16, seed)


def stored_and_loaded(start, l2, folder, kv_values, **options):
    """How many chunks another server had, the layers, with what was stored in the first blocks and what was loaded in
    those after them, and the first server's log."""
    server, worker = start(l2, **options)
    fill(worker, kv_values)
    assert worker.store(TOKENS, 0)
    deadline = time.monotonic() + 30
    while sum(path.suffix in (".kvc", ".data") for path in folder.rglob("*")) < CHUNKS:
        assert time.monotonic() < deadline, server.log()
        time.sleep(0.05)
    worker.close()
    server.stop()
    first_log = server.log()
    server, other = start(l2, **options)
    fill(other, kv_values)
    layers = list(other.layers.values())
    found = other.load(TOKENS, HALF)
    assert other.load(list(range(1000, 1000 + CHUNK)), 0) == 0
    other.close()
    return found, layers, first_log


def errors(layers):
    """The largest of each layer, of what was loaded."""
    return [(layer[:, :HALF].float() - layer[:, HALF : 2 * HALF].float()).abs().max() for layer in layers]


@pytest.mark.parametrize(("codec", "least", "most"), [("lossless", 0, 0), ("int8(group=64)", 1e-6, 0.05)])
def test_the_plugin_gives_back_what_was_stored(start, plugin, tmp_path, kv_values, codec, least, most):
    found, layers, _ = stored_and_loaded(start, plugin(codec=codec), tmp_path / "kv", kv_values)
    assert found == CHUNKS
    assert all(least <= error <= most for error in errors(layers))


@pytest.mark.parametrize(
    ("codec", "hits", "more"),
    [("int8(group=64)", CHUNKS, {}), ("lossless", 0, {}), ("lossless", CHUNKS, {"padded_to": 0.95})],
)
def test_the_serde_gives_back_what_has_the_size_that_was_estimated(
    start, plugin, tmp_path, kv_values, codec, hits, more
):
    """What is shorter LMCache's `fs` takes for a miss, of which the log tells, unless it is padded."""
    serde = {"type": "kvcompress", "target": plugin.daemon.address, "codec": codec, "on_nonfinite": "error", **more}
    l2 = {"type": "fs", "base_path": str(tmp_path / "fs"), "serde": serde}
    found, layers, log = stored_and_loaded(start, l2, tmp_path / "fs", kv_values, module="kvcompress.adapters.lmcache")
    assert found == hits
    assert ("shorter than was estimated" in log) == (hits == 0)
    assert not hits or all((error == 0) == (codec == "lossless") and error < 0.05 for error in errors(layers))


def test_a_stopped_daemon_is_a_miss_and_the_server_goes_on(start, plugin, tmp_path, kv_values):
    l2 = plugin(codec="lossless")
    stored_and_loaded(start, l2, tmp_path / "kv", kv_values)
    server, worker = start(l2)
    with stopped(plugin.daemon.process):
        assert worker.load(TOKENS, HALF) == 0
        assert worker.store(TOKENS[:CHUNK], 0)  # in the server's memory
        assert worker.load(TOKENS[:CHUNK], HALF) == 1
    assert server.process.poll() is None
    worker.close()
