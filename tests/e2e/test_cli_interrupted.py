"""The command line when a run ends early, and while a long one goes on."""

import os
import pty
import re
import signal
import time

import numpy as np
import pytest
from cli_helpers import run, start, write_file

SLOW_CODEC = "raw|zstd(level=19)"


@pytest.fixture
def slow_input(tmp_path):
    """A file that SLOW_CODEC needs many seconds for."""
    values = np.random.default_rng(1).standard_normal((64, 8, 512, 64)).astype(np.float16)
    return write_file(tmp_path / "slow.safetensors", {"layer_0_key": np.tile(values, (4, 1, 1, 1))})


def wait_for_temporary(folder):
    """Until the output has begun."""
    deadline = time.monotonic() + 30
    while not any(path.stat().st_size > 0 for path in folder.glob(".kvcompress-*.tmp")):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_daemon_that_dies_in_the_middle(bin_dir, tmp_path, slow_input, daemon):
    server = daemon("--threads", "1")
    (tmp_path / "out").write_text("old")
    client = start(bin_dir, "-input", slow_input, "-output", tmp_path / "out", "-codec", SLOW_CODEC,
                   "-server", server.address)
    wait_for_temporary(tmp_path)
    server.process.kill()
    server.wait()
    stdout, stderr = client.communicate(timeout=30)
    assert stderr.decode().startswith(f"Error: daemon {server.address}: ") and stderr.count(b"\n") == 1
    assert (stdout, client.returncode) == (b"", 1)
    assert (tmp_path / "out").read_text() == "old"
    assert not list(tmp_path.glob(".kvcompress-*"))


@pytest.mark.parametrize("remote", [False, True])
def test_a_timeout_that_passes(bin_dir, tmp_path, slow_input, daemon, remote):
    flags = ["-server", daemon("--threads", "1").address] if remote else ["-threads", "1"]
    began = time.monotonic()
    done = run(bin_dir, "-input", slow_input, "-output", tmp_path / "out", "-codec", SLOW_CODEC, "-timeout", "700ms",
               *flags)
    assert (done.stderr, done.returncode) == ("Error: not done within the -timeout of 700ms\n", 1)
    assert 0.6 < time.monotonic() - began < 10
    assert list(tmp_path.iterdir()) == [slow_input]


def test_what_a_killed_run_left_goes_with_the_next_one(bin_dir, sample, tmp_path, slow_input):
    client = start(bin_dir, "-input", slow_input, "-output", tmp_path / "out", "-codec", SLOW_CODEC)
    wait_for_temporary(tmp_path)
    client.kill()
    client.communicate(timeout=30)
    (left,) = tmp_path.glob(".kvcompress-*.tmp")
    assert run(bin_dir, "-input", sample, "-output", tmp_path / "other").returncode == 0
    assert left.exists()
    assert run(bin_dir, "-input", sample, "-output", tmp_path / "out").returncode == 0
    assert not list(tmp_path.glob(".kvcompress-*"))


# Interruption, and the terminal.

@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129),
                                          (signal.SIGQUIT, 131)])
def test_a_signal_leaves_the_old_file_and_no_temporary(bin_dir, tmp_path, slow_input, number, code):
    (tmp_path / "out").write_text("old")
    client = start(bin_dir, "-input", slow_input, "-output", tmp_path / "out", "-codec", SLOW_CODEC)
    wait_for_temporary(tmp_path)
    client.send_signal(number)
    stdout, stderr = client.communicate(timeout=10)
    assert (stdout, stderr, client.returncode) == (b"", b"Error: interrupted\n", code)
    assert (tmp_path / "out").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "slow.safetensors"]


def test_a_reader_that_goes_leaves_no_temporary(bin_dir, tmp_path, slow_input):
    client = start(bin_dir, "-sweep", "-input", slow_input, "-report", tmp_path / "page.html")
    try:
        assert client.stderr.readline().startswith(b"[1/")
        client.stderr.close()
        time.sleep(1)  # more lines
        client.send_signal(signal.SIGTERM)
        assert client.wait(10) == 143
    finally:
        client.kill()
        client.stdout.close()
    assert list(tmp_path.iterdir()) == [slow_input]


def test_a_crash_leaves_the_old_file(bin_dir, tmp_path, slow_input):
    (tmp_path / "out").write_text("old")
    client = start(bin_dir, "-input", slow_input, "-output", tmp_path / "out", "-codec", SLOW_CODEC)
    wait_for_temporary(tmp_path)
    client.kill()
    client.communicate(timeout=10)
    assert (tmp_path / "out").read_text() == "old"


def test_a_progress_bar_on_a_terminal_only(bin_dir, tmp_path, slow_input):
    controller, terminal = pty.openpty()
    client = start(bin_dir, "-input", slow_input, "-output", tmp_path / "out", "-codec", SLOW_CODEC, "-timeout", "1s",
                   stderr=terminal)
    os.close(terminal)
    shown = b""
    while True:
        try:
            shown += os.read(controller, 4096)
        except OSError:  # the terminal's other side is closed
            break
    os.close(controller)
    stdout, _ = client.communicate(timeout=30)
    assert re.search(rb"\rcompress \[[#.]{30}\] +\d+% \d+\.\d MiB, \d+ MiB/s", shown)
    # It is wiped before the error.
    assert shown.endswith(b"\r\x1b[KError: not done within the -timeout of 1s\r\n")
    assert (stdout, client.returncode) == (b"", 1)
