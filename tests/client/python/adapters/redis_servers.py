"""Redis servers of the tests' own."""

import contextlib
import shutil
import signal
import socket
import subprocess
import time

import pytest

pytest.importorskip("redis", reason="the package redis is not installed: kvcompress[redis]")
if shutil.which("redis-server") is None:
    pytest.skip("redis-server is not installed: scripts/install-deps.sh --test", allow_module_level=True)


class Server:
    def __init__(self, folder, *flags, port=None, host="127.0.0.1", netns=()):
        self.host, self.netns, self.flags, self.folder = host, netns, flags, folder
        # Whoever connects somewhere may be given a free port for its own end before it is taken here.
        for self.port in [port] if port else (free_port() for _ in range(5)):
            if self._starts():
                return
        raise AssertionError("no server starts")

    def start(self):
        assert self._starts()

    def _starts(self):
        """Whether it answers; not where its port is taken."""
        command = [*self.netns, "redis-server", "--bind", self.host, "--port", str(self.port), "--save", ""]
        self.process = subprocess.Popen([*command, "--dir", self.folder, *self.flags], stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 20
        ping = [*self.netns, "redis-cli", "-h", self.host, "-p", str(self.port), "ping"]
        while self.process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                if subprocess.run(ping, capture_output=True, timeout=1).returncode == 0:
                    return self.process.poll() is None
            assert time.monotonic() < deadline, "the server does not answer"
            time.sleep(0.05)
        return False

    @property
    def url(self):
        return f"redis://{self.host}:{self.port}/0"

    def stop(self):
        self.process.send_signal(signal.SIGCONT)
        self.process.kill()
        self.process.wait()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
