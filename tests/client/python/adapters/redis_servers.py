"""Redis servers of the tests' own."""

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
        self.port = port or free_port()
        self.start()

    def start(self):
        command = [*self.netns, "redis-server", "--bind", self.host, "--port", str(self.port), "--save", ""]
        self.process = subprocess.Popen([*command, "--dir", self.folder, *self.flags], stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 20
        ping = [*self.netns, "redis-cli", "-h", self.host, "-p", str(self.port), "ping"]
        while subprocess.run(ping, capture_output=True).returncode and time.monotonic() < deadline:
            time.sleep(0.05)

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
