"""The command line against a daemon: by TCP, by a unix socket, by shared memory, across restarts."""

import os
import signal
import uuid

import numpy as np
import pytest
from cli_helpers import run, run_ok, start, write_file
from daemon_helpers import wait_for


@pytest.fixture
def prefix():
    """Of the keys of shared memory; no object of that prefix may be left."""
    name = f"kvc-test-{uuid.uuid4().hex[:12]}-"
    yield name
    assert [key for key in os.listdir("/dev/shm") if key.startswith(name)] == []


@pytest.fixture(scope="module")
def tensors():
    rng = np.random.default_rng(5)
    return {"layer_0_key": rng.standard_normal((1, 4, 3000, 128)).astype(np.float16),
            "none": np.zeros((2, 0), np.float16), "one": np.float32(2.5).reshape(()),
            "layer_0_value": rng.standard_normal((1, 8, 9000, 128)).astype(np.float32),
            "odd": rng.standard_normal(262145).astype(np.float16)}


def transport(done):
    return [line for line in done.stderr.splitlines() if line.startswith("transport: ")]


@pytest.mark.parametrize("codec", ["int4", "sparse(ratio=0.5)|int8|zstd(level=1)", "raw"])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("unix", [True, False])
def test_every_way_gives_the_same_files(bin_dir, tmp_path, socket_dir, daemon, prefix, tensors, codec, shared, unix):
    path = write_file(tmp_path / "in", tensors)
    flags = ["--shared-memory", prefix] if shared else []
    server = daemon("--threads", "2", "--listen", f"127.0.0.1:0,unix:{socket_dir}/s", *flags)
    address = f"unix:{socket_dir}/s" if unix else server.address
    expected = ["transport: shared memory"] if shared else [
        "transport: connection (the daemon does not offer shared memory)"]
    run_ok(bin_dir, "-input", path, "-output", tmp_path / "local", "-codec", codec)
    done = run(bin_dir, "-input", path, "-output", tmp_path / "remote", "-codec", codec, "-server", address, "-verbose")
    assert (done.returncode, transport(done)) == (0, expected), done.stderr
    assert (tmp_path / "local").read_bytes() == (tmp_path / "remote").read_bytes()
    run_ok(bin_dir, "-decompress", "-input", tmp_path / "local", "-output", tmp_path / "a")
    done = run(bin_dir, "-decompress", "-input", tmp_path / "local", "-output", tmp_path / "b", "-server", address,
               "-verbose")
    assert (done.returncode, transport(done)) == (0, expected), done.stderr
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_errors_through_shared_memory_are_those_of_the_codec(bin_dir, tmp_path, daemon, prefix, tensors):
    server = daemon("--shared-memory", prefix).address
    run_ok(bin_dir, "-input", write_file(tmp_path / "in", tensors), "-output", tmp_path / "packed")
    damaged = bytearray((tmp_path / "packed").read_bytes())
    damaged[-100] ^= 4
    (tmp_path / "damaged").write_bytes(damaged)
    bad = write_file(tmp_path / "bad", {"layer_0_key": np.array([1, np.inf], np.float16)})
    for flags in (["-input", bad], ["-decompress", "-input", tmp_path / "damaged"]):
        local = run(bin_dir, *flags, "-output", tmp_path / "out")
        remote = run(bin_dir, *flags, "-output", tmp_path / "out", "-server", server)
        assert local.returncode == remote.returncode == 1
        assert local.stderr == remote.stderr and local.stderr.startswith("Error: tensor ")


def test_a_daemon_of_the_list_that_is_dead_is_passed_over(bin_dir, sample, tmp_path, daemon):
    alive, dead = daemon(), daemon()
    assert dead.stop() == 0
    run_ok(bin_dir, "-input", sample, "-output", tmp_path / "out", "-server", f"{dead.address},{alive.address}")
    run_ok(bin_dir, "-input", sample, "-output", tmp_path / "local")
    assert (tmp_path / "out").read_bytes() == (tmp_path / "local").read_bytes()


@pytest.mark.parametrize("shared", [True, False])
def test_a_daemon_that_is_started_again_in_the_middle(bin_dir, tmp_path, daemon, prefix, shared):
    values = np.random.default_rng(1).standard_normal((64, 8, 512, 64)).astype(np.float16)
    path = write_file(tmp_path / "in", {f"t{i}": values for i in range(3)})
    flags = ["--threads", "1"] + (["--shared-memory", prefix] if shared else [])
    first = daemon(*flags)
    codec = "raw|zstd(level=6)"
    client = start(bin_dir, "-input", path, "-output", tmp_path / "out", "-codec", codec, "-server", first.address,
                   "-verbose")
    wait_for(lambda: any(item.stat().st_size > 0 for item in tmp_path.glob(".kvcompress-*.tmp")), "output begins")
    first.process.kill()
    first.wait()
    daemon("--listen", first.address, *flags)
    _, stderr = client.communicate(timeout=100)
    assert client.returncode == 0, stderr.decode()
    assert b"; retrying in " in stderr
    run_ok(bin_dir, "-input", path, "-output", tmp_path / "local", "-codec", codec)
    assert (tmp_path / "out").read_bytes() == (tmp_path / "local").read_bytes()


def test_a_client_that_is_killed_leaves_no_shared_memory(bin_dir, tmp_path, daemon, prefix):
    values = np.random.default_rng(1).standard_normal((64, 8, 512, 64)).astype(np.float16)
    path = write_file(tmp_path / "in", {"t": np.tile(values, (4, 1, 1, 1))})
    server = daemon("--threads", "1", "--shared-memory", prefix)
    client = start(bin_dir, "-input", path, "-output", tmp_path / "out", "-codec", "raw|zstd(level=19)", "-server",
                   server.address)
    wait_for(lambda: any(item.stat().st_size > 0 for item in tmp_path.glob(".kvcompress-*.tmp")), "output begins")
    client.send_signal(signal.SIGKILL)
    client.communicate(timeout=30)
