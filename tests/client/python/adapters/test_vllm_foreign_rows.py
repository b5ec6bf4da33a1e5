"""The tier with a CPU cache that is a file of /dev/shm, as vLLM's is: the daemon reads rows where they stand."""

import logging
import os
import threading
import time

import engines
import kvcompress
import numpy as np
import pytest

torch = pytest.importorskip("torch")
engines.provide_vllm_tiering()
from kvcompress import _foreign_memory  # noqa: E402
from kvcompress.adapters._vllm_geometry import Part  # noqa: E402
from tiering import Steps, key_of, offloading_config  # noqa: E402

pytestmark = pytest.mark.usefixtures("way")

FLAGS = ["--threads", "2", "--shared-memory", "kvc-python-", "--foreign-memory", "kvc_offload_"]
LOGGER = _foreign_memory.__name__


@pytest.fixture
def start(daemon, tmp_path):
    """Makes tiers, as Steps, whose cache is a file: start(server, codec="lossless", ...)."""
    made, paths = [], []

    def make(server, config=None, *, named=True, **options):
        path = f"/dev/shm/kvc_offload_{os.getpid()}_{len(paths)}.mmap" if named else None
        paths.append(path)
        made.append(Steps.of(server.address, tmp_path / "kv", config, cache_file=path, **options))
        return made[-1]

    yield make
    for steps in made:
        steps.tier.shutdown()
    for path in filter(None, paths):
        os.unlink(path)


def wait_until(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def foreign_of(steps):
    return steps.tier._rows._foreign


def refuse_to_gather(*_):
    raise AssertionError("rows are gathered here")


@pytest.mark.parametrize("config", [
    offloading_config(), offloading_config(dtype="bfloat16", blocks=4), offloading_config(workers=2, blocks=2),
    offloading_config(dtype="float32"), offloading_config(canonical_layout=True)],
    ids=["one", "blocks", "workers", "f32", "canonical"])
@pytest.mark.parametrize("codec", ["lossless", "int8(group=64)"])
def test_frames_are_those_of_gathered_rows(start, daemon, monkeypatch, tmp_path, config, codec):
    server = daemon(*FLAGS)
    here = start(server, config, codec=codec)
    copied = start(server, config, codec=codec, named=False, path=str(tmp_path / "copied"))
    wait_until(foreign_of(here).is_ready)
    assert not foreign_of(copied).is_ready()
    keys = [key_of(number) for number in range(3)]
    for row in range(3):
        here.cache.fill(row, seed=row)
    copied.cache.rows[:3] = here.cache.rows[:3]
    before = here.cache.rows.copy()
    assert copied.store(keys, range(3)).success
    with monkeypatch.context() as patch:
        patch.setattr(Part, "gather", refuse_to_gather)
        assert here.store(keys, range(3)).success
    assert np.array_equal(here.cache.rows, before)
    names = [key.hex() for key in keys]
    stored = [list(steps.tier._store.get_many(names, 1 << 24)) for steps in (here, copied)]
    assert None not in stored[0]
    assert stored[0] == stored[1]
    assert here.load(keys, [5, 6, 7]).success
    assert copied.load(keys, [5, 6, 7]).success
    assert np.array_equal(here.cache.rows[5:], copied.cache.rows[5:])


@pytest.mark.parametrize("flags", [FLAGS[:2], FLAGS[:4], [*FLAGS[:5], "another_"]], ids=["off", "none", "another"])
def test_a_daemon_that_does_not_offer_it_is_sent_copies(start, daemon, monkeypatch, caplog, flags):
    monkeypatch.setattr(_foreign_memory, "_PAUSE", 0.05)
    caplog.set_level(logging.INFO, LOGGER)
    steps = start(daemon(*flags))
    steps.cache.fill(0, seed=1)
    for number in range(5):
        assert steps.store([key_of(number)], [0]).success
        time.sleep(0.1)
    assert not foreign_of(steps).is_ready()
    wait_until(lambda: not foreign_of(steps)._is_asking)
    said = [record.message for record in caplog.records if record.name == LOGGER]
    assert len(said) == 1
    assert "has no --foreign-memory that kvc_offload_" in said[0]


def test_memory_that_has_no_name_any_more_is_sent_as_copies(start, daemon, caplog):
    caplog.set_level(logging.INFO, LOGGER)
    steps = start(daemon(*FLAGS), named=False)
    steps.cache.fill(0, seed=1)
    assert steps.store([key_of(0)], [0]).success
    wait_until(lambda: "no part of an object" in caplog.text)


def test_another_object_of_the_name_is_not_taken_for_it(start, daemon, tmp_path, caplog):
    caplog.set_level(logging.INFO, LOGGER)
    steps = start(daemon(*FLAGS))
    foreign = foreign_of(steps)
    (path,) = [f"/dev/shm/{name}" for name in os.listdir("/dev/shm") if name.startswith(f"kvc_offload_{os.getpid()}")]
    os.unlink(path)
    with open(path, "xb") as other:
        other.truncate(len(steps.cache.rows) * steps.cache.rows.shape[1])
    assert not foreign.is_ready()
    wait_until(lambda: not foreign._is_asking)
    assert not foreign.is_ready()
    assert "no part of an object" in caplog.text


def test_a_daemon_that_was_started_again_is_sent_copies_until_it_has_the_memory(start, daemon, socket_dir, monkeypatch):
    monkeypatch.setattr(_foreign_memory, "_PAUSE", 0.05)
    address = ["--listen", f"unix:{socket_dir}/d.sock"]
    first = daemon(*FLAGS, *address)
    steps = start(first, target=address[1], timeout=2)
    wait_until(foreign_of(steps).is_ready)
    steps.cache.fill(0, seed=1)
    assert steps.store([key_of(0)], [0]).success
    first.process.kill()
    first.wait()
    daemon(*FLAGS, *address)
    numbers = iter(range(1, 10000))
    wait_until(lambda: steps.store([key_of(next(numbers))], [0]).success)
    wait_until(foreign_of(steps).is_ready)
    monkeypatch.setattr(Part, "gather", refuse_to_gather)
    last = key_of(10000)
    assert steps.store([last], [0]).success
    assert steps.load([last], [4]).success
    assert np.array_equal(steps.cache.rows[0], steps.cache.rows[4])


def test_what_was_read_after_it_was_given_up_is_not_stored(start, daemon, monkeypatch):
    steps = start(daemon(*FLAGS), timeout=0.2)
    wait_until(foreign_of(steps).is_ready)
    steps.cache.fill(0, seed=1)
    hangs, reached, ended = threading.Event(), threading.Event(), threading.Event()
    many = kvcompress.Client.compress_many

    def slow(*arguments, **options):
        reached.set()
        hangs.wait(30)
        try:
            return list(many(*arguments, **{**options, "timeout": 20}))
        finally:
            ended.set()

    monkeypatch.setattr(kvcompress.Client, "compress_many", slow)
    steps.submit([key_of(0)], [0], load=False)
    assert reached.wait(10)
    (result,) = steps.finish()
    assert not result.success
    steps.cache.fill(0, seed=2)  # the row is another chunk's by now
    hangs.set()
    assert ended.wait(20)
    steps.tier.drain_jobs()
    time.sleep(0.3)
    assert steps.tier._store.exists_many([key_of(0).hex()]) == [False]
