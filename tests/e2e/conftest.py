"""Fixtures of the end-to-end tests: the built binaries, daemons, and stubs that stock tools make from the .proto."""

import importlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import grpc
import pytest
from daemon_helpers import Client

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY / "tests" / "reference"))  # the second decoders


@pytest.fixture(scope="session")
def bin_dir():
    """The folder of kv-compressd and kv-compress: KVC_BIN_DIR, or bin/ of the repository."""
    path = pathlib.Path(os.environ.get("KVC_BIN_DIR", REPOSITORY / "bin"))
    assert (path / "kv-compressd").exists(), f"{path}/kv-compressd is not built"
    return path


@pytest.fixture(scope="session")
def sample():
    """What a model that people use holds, SmolLM2-135M, BF16: layers 10 and 20, [1, 3, 256, 64]. Its metadata say how keys turn."""
    return REPOSITORY / "tests" / "data" / "smollm2.256.bf16.safetensors"


@pytest.fixture(scope="session")
def f16_cache():
    """A cache of another type and shape, FP16: 6 layers from layer 0 on, [1, 2, 256, 64]. Its metadata say nothing of turning."""
    return REPOSITORY / "tests" / "data" / "docs.256.f16.safetensors"


@pytest.fixture(scope="session")
def kv_dir():
    """More and larger caches, beside the checkout where there are any."""
    path = REPOSITORY.parent / "shared" / "kv"
    if not path.is_dir():
        pytest.skip(f"no {path}")
    return path


class Stubs:
    """The modules that stock tools generate, as the Python client's package has them: messages in `pb`, the client in
    `rpc`."""

    def __init__(self):
        self.pb = importlib.import_module("kvcompress.v1.kvcompress_pb2")
        self.rpc = importlib.import_module("kvcompress.v1.kvcompress_pb2_grpc")


@pytest.fixture(scope="session")
def stubs():
    return Stubs()


@pytest.fixture
def socket_dir():
    """A folder for unix sockets: pytest's own can be too deep for the 107 bytes of a socket's path."""
    with tempfile.TemporaryDirectory(prefix="kvc-") as folder:
        yield pathlib.Path(folder)


class Daemon:
    """A kv-compressd on ports of the system's choice."""

    def __init__(self, bin_dir, folder, *flags, env=None):
        port_file = folder / "ports.json"
        self.log_path = folder / "log"
        with open(self.log_path, "wb") as log:
            self.process = subprocess.Popen(
                [bin_dir / "kv-compressd", "--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0",
                 "--port-file", port_file, *flags],
                stderr=log, stdout=log, env={**os.environ, **(env or {})})
        deadline = time.monotonic() + 30
        while not port_file.exists():
            assert self.process.poll() is None, f"the daemon ended: {self.log()}"
            assert time.monotonic() < deadline, f"the daemon does not start: {self.log()}"
            time.sleep(0.01)
        ports = json.loads(port_file.read_text())
        self.address = ports["listen"][0]
        self.listen = ports["listen"]
        self.metrics_address = ports["metrics"]
        self._channels = []

    @property
    def pid(self):
        return self.process.pid

    def log(self):
        return self.log_path.read_text()

    def channel(self, *options, credentials=None):
        options = [("grpc.enable_http_proxy", 0), *options]
        if credentials is None:
            channel = grpc.insecure_channel(self.address, options=options)
        else:
            channel = grpc.secure_channel(self.address, credentials, options=options)
        self._channels.append(channel)
        return channel

    def signal(self, number):
        self.process.send_signal(number)

    def wait(self, timeout=30):
        return self.process.wait(timeout)

    def stop(self):
        """SIGTERM, and the exit code."""
        for channel in self._channels:
            channel.close()
        if self.process.poll() is None:
            self.process.terminate()
        return self.wait()


@pytest.fixture
def daemon(bin_dir, tmp_path_factory):
    """Starts daemons: daemon("--threads", "2"). Each that still runs at the end must stop cleanly."""
    started = []

    def start(*flags, env=None):
        started.append(Daemon(bin_dir, tmp_path_factory.mktemp("daemon"), *flags, env=env))
        return started[-1]

    yield start
    running = [daemon for daemon in started if daemon.process.poll() is None]
    try:
        for daemon in running:
            assert daemon.stop() == 0, daemon.log()
    finally:
        for daemon in running:
            if daemon.process.poll() is None:
                daemon.process.kill()
                daemon.wait()


@pytest.fixture
def client(daemon, stubs):
    return Client(daemon("--threads", "2"), stubs)
