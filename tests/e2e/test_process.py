"""The programs as processes: a log that nobody reads, descriptors that are closed, signals, threads that are not to be
had."""

import contextlib
import fcntl
import json
import os
import resource
import signal
import subprocess
import time

import grpc
import pytest
from cli_helpers import environment, write_file
from daemon_helpers import Client, Feed, failure_of_raw, page, page_value, random_array, wait_for
from tls_helpers import Authority, refuses, tls_flags

GIB = 1 << 30
DROPPED = "kvcompress_log_lines_dropped_total"


class Started:
    """A daemon that is started with settings of its process, in the terms of the fixture `daemon`."""

    def __init__(self, bin_dir, folder, *flags, **options):
        port_file = folder / "ports.json"
        self.process = subprocess.Popen(
            [bin_dir / "kv-compressd", "--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0",
             "--port-file", port_file, *flags], stdout=subprocess.DEVNULL, **options)
        wait_for(lambda: port_file.exists() or self.process.poll() is not None, "a daemon that serves, or has ended")
        if port_file.exists():
            ports = json.loads(port_file.read_text())
            self.address, self.metrics_address = ports["listen"][0], ports["metrics"]
        self._channels = []

    def channel(self, *options):
        self._channels.append(grpc.insecure_channel(self.address, options=[("grpc.enable_http_proxy", 0), *options]))
        return self._channels[-1]

    def close(self):
        for channel in self._channels:
            channel.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def started(*args, **options):
    server = Started(*args, **options)
    try:
        yield server
    finally:
        server.close()


@pytest.fixture
def full_pipe():
    """(read end, write end) of a pipe that takes nothing more, as behind a log collector that hangs."""
    reader, writer = os.pipe()
    fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, 4096)
    own = os.open(f"/proc/self/fd/{writer}", os.O_WRONLY | os.O_NONBLOCK)  # the daemon's end blocks
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(own, b"\n" * 4096)
    os.close(own)
    yield reader, writer
    os.close(reader)
    with contextlib.suppress(OSError):
        os.close(writer)


def call_in_turn(client, count):
    """Failing calls, each of which leaves a line in the log."""
    for _ in range(count):
        assert failure_of_raw(client.stub.Compress(iter([client.data(b"x")]), timeout=10))


def test_a_log_that_nobody_reads_stops_no_call(bin_dir, tmp_path, stubs, full_pipe):
    reader, writer = full_pipe
    with started(bin_dir, tmp_path, stderr=writer) as server:
        client = Client(server, stubs)
        call_in_turn(client, 2500)
        assert page_value(page(server.metrics_address), DROPPED) > 0
        os.close(writer)
        said, wanted = b"", b"lines of this log were dropped, because nobody read them in time"
        os.set_blocking(reader, False)

        def recovers():
            nonlocal said
            with contextlib.suppress(BlockingIOError):
                while piece := os.read(reader, 65536):
                    said += piece
            return wanted in said and said.count(b"code=INVALID_ARGUMENT") > 1000 and said.endswith(b"\n")
        wait_for(recovers, "a log that goes on")
        told = [line for line in said.decode().splitlines() if wanted.decode() in line]
        assert sum(int(line.rsplit("lines=", 1)[1]) for line in told) == page_value(page(server.metrics_address), DROPPED)


@pytest.mark.parametrize("signals, code", [([signal.SIGTERM], 0), ([signal.SIGTERM, signal.SIGTERM], 143)])
def test_a_log_that_nobody_reads_stops_no_end(bin_dir, tmp_path, stubs, full_pipe, signals, code):
    _, writer = full_pipe
    with started(bin_dir, tmp_path, "--drain-timeout", "1h", stderr=writer) as server:
        client = Client(server, stubs)
        feed = Feed(client.header("t", [1000])) if len(signals) > 1 else None
        call = client.stub.Compress(feed, timeout=60) if feed else None
        if call:
            wait_for(lambda: client.metrics().bytes_in_flight > 0, "the call in flight")
        server.process.send_signal(signals[0])
        for number in signals[1:]:
            wait_for(lambda: client.metrics().draining, "the drain")
            server.process.send_signal(number)
        begun = time.monotonic()
        assert server.process.wait(10) == code
        assert time.monotonic() - begun < 5
        if feed:
            feed.close()


def test_a_log_on_a_full_disk(bin_dir, tmp_path, stubs):
    with open("/dev/full", "w") as full, started(bin_dir, tmp_path, stderr=full) as server:
        call_in_turn(Client(server, stubs), 10)
        wait_for(lambda: page_value(page(server.metrics_address), DROPPED) >= 10, "lines that are counted as dropped")
        server.process.terminate()
        assert server.process.wait(10) == 0


def test_a_log_beyond_the_limit_on_file_sizes(bin_dir, tmp_path, stubs):
    with open(tmp_path / "log", "w") as log, started(bin_dir, tmp_path, stderr=log) as server:
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (1, 1))
        call_in_turn(Client(server, stubs), 3)
        wait_for(lambda: page_value(page(server.metrics_address), DROPPED) >= 3, "lines that are counted as dropped")
        assert server.process.poll() is None


def test_failed_handshakes_do_not_fill_the_log(daemon, tmp_path):
    ours, clients, stranger = (Authority(tmp_path, name) for name in ("authority", "clients", "stranger"))
    server = daemon(*tls_flags(ours.issue("daemon"), clients))
    pair = stranger.issue("other")
    for _ in range(50):
        assert refuses(server.address, ours, pair)
    wait_for(lambda: "warning grpc" in server.log(), "a line about a handshake")
    assert server.stop() == 0
    assert 1 <= server.log().count("warning grpc") <= 5  # one a source in 10 seconds


# Descriptors.

def standard_streams(pid):
    return [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in range(3)]


def test_no_socket_is_the_daemons_standard_error(bin_dir, tmp_path, stubs):
    port_file = tmp_path / "ports"
    pid = os.fork()
    if pid == 0:  # a child without its standard streams, which subprocess does not start
        for fd in range(3):
            os.close(fd)
        os.execv(bin_dir / "kv-compressd", ["kv-compressd", "--listen", "127.0.0.1:0", "--metrics-listen", "off",
                                           "--port-file", str(port_file)])
    try:
        wait_for(port_file.exists, "a daemon that serves")
        assert standard_streams(pid) == ["/dev/null"] * 3
    finally:
        os.kill(pid, signal.SIGTERM)
        assert os.waitpid(pid, 0)[1] == 0


def test_no_file_is_the_command_lines_standard_error(bin_dir, tmp_path):
    source = write_file(tmp_path / "in.safetensors", {"layer_0_key": random_array((64, 8, 512, 64))})
    pid = os.fork()
    if pid == 0:
        for fd in range(3):
            os.close(fd)
        os.execve(bin_dir / "kv-compress", ["kv-compress", "-input", str(source), "-output", str(tmp_path / "out"),
                                            "-codec", "raw|zstd(level=19)"], environment())
    try:
        wait_for(lambda: list(tmp_path.glob(".kvcompress-*.tmp")), "an output that has begun")
        assert standard_streams(pid) == ["/dev/null"] * 3
    finally:
        os.kill(pid, signal.SIGTERM)
        os.waitpid(pid, 0)


# Threads. Each takes 1 GiB of address space here, of which there is enough for so many: a limit that binds root as well,
# and no other process of the same user counts against it.

def with_threads(count, spare=1.2):
    def limit():
        hard = resource.getrlimit(resource.RLIMIT_STACK)[1]
        resource.setrlimit(resource.RLIMIT_STACK, (GIB, hard))
        resource.setrlimit(resource.RLIMIT_AS, (int(spare * GIB) + count * GIB,) * 2)
    return limit


def test_a_daemon_that_gets_no_threads_says_so(bin_dir, tmp_path):
    outcomes = set()
    for count in (0, 1, 2, 4, 8, 12, 16):
        with open(tmp_path / "log", "w") as log, started(
                bin_dir, tmp_path, "--threads", "4", stderr=log, preexec_fn=with_threads(count)) as server:
            if (tmp_path / "ports.json").exists():
                (tmp_path / "ports.json").unlink()
                server.process.terminate()
                assert server.process.wait(10) == 0
                outcomes.add("serves")
            else:
                said = (tmp_path / "log").read_text()
                assert server.process.wait(10) == 1, (count, said)
                assert said.count("\n") == 1 and said.startswith("kv-compressd: ") and "thread" in said, said
                outcomes.add("ends")
    assert "ends" in outcomes


def test_a_daemon_goes_on_with_the_threads_that_it_gets(bin_dir, tmp_path, stubs):
    with open(tmp_path / "log", "w") as log, started(
            bin_dir, tmp_path, "--threads", "200", stderr=log, preexec_fn=with_threads(60)) as server:
        client = Client(server, stubs)
        frames, _, _ = client.compress({"t": random_array(500_000)}, codec="raw")
        assert list(client.decompress(frames)[0]) == ["t"]
        assert 1 <= client.metrics().threads < 200
        server.process.terminate()
        assert server.process.wait(10) == 0
    assert "fewer codec threads than asked for" in (tmp_path / "log").read_text()


@pytest.mark.parametrize("remote", [False, True])
def test_a_command_line_that_gets_no_threads_says_so(bin_dir, tmp_path, daemon, remote):
    source = write_file(tmp_path / "in.safetensors", {"layer_0_key": random_array((1, 8, 64, 64))})
    flags = ["-server", daemon().address] if remote else ["-threads", "4"]
    outcomes = {}
    for count in (0, 1, 3, 8, 60):
        done = subprocess.run([bin_dir / "kv-compress", "-input", source, "-output", tmp_path / "out", *flags],
                              capture_output=True, text=True, timeout=60, env=environment(),
                              preexec_fn=with_threads(count))
        assert done.returncode in (0, 1), (count, done.stderr)
        if done.returncode == 1:
            assert done.stderr.startswith("Error: ") and "thread" in done.stderr and done.stderr.count("\n") == 1
        outcomes[count] = done.returncode
    assert outcomes[0] == 1 and outcomes[60] == 0, outcomes
    assert remote or outcomes[3] == 0, outcomes  # with fewer than four
