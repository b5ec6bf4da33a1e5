"""The tier while its daemon runs a tenth of the time, and while its Redis is slow, stopped, gone and back: no call
waits, no row holds what was not asked for, jobs stay bounded, and it is well again afterwards."""

import time

import engines
import pytest

pytest.importorskip("torch")
engines.provide_vllm_tiering()
from kvcompress.adapters import vllm_tier  # noqa: E402
from process_helpers import stopped  # noqa: E402
from tiering import Steps  # noqa: E402
from traffic import Slowed, Traffic  # noqa: E402

SOURCES, TARGETS, STREAMS, MOST_WAITING = 4, 6, 3, 16
SECONDS = 2


@pytest.fixture
def traffic(daemon, tmp_path, monkeypatch):
    """Makes Traffic of a tier with few jobs that may wait, and some chunks stored: traffic(path=...)."""
    monkeypatch.setattr(vllm_tier, "_MOST_WAITING", MOST_WAITING)
    made = []

    def make(path=tmp_path / "kv", **options):
        make.server = daemon("--threads", "2")
        steps = Steps.of(make.server.address, path, rows=SOURCES + TARGETS, streams=STREAMS, timeout=2, **options)
        made.append(steps)
        for row in range(SOURCES):
            steps.cache.fill(row, seed=row)
        found = Traffic(steps, SOURCES)
        found.begin(8)
        return found

    yield make
    for steps in made:
        steps.tier.shutdown()


def check(seen):
    """What holds in any trouble. Stores wait up to their bound, and loads have as many rows as there are."""
    assert seen.wrong == 0
    assert seen.longest < 0.9  # one that waited for a daemon or a Redis would take a second or two
    assert seen.most_open <= MOST_WAITING + STREAMS + 1 + TARGETS
    return seen


def is_well_again(traffic, seconds=30):
    deadline = time.monotonic() + seconds
    while True:
        traffic.settle()
        seen = check(traffic.run(0.5))
        if seen.hits and not seen.misses and seen.stored:
            return
        assert time.monotonic() < deadline, seen


def test_a_slow_daemon(traffic):
    one = traffic()
    with Slowed(traffic.server.process):
        seen = check(one.run(SECONDS))
    assert seen.hits > 0
    assert seen.stored > 0
    assert seen.unstored > 0  # more than the daemon can do is left out
    is_well_again(one)


@pytest.fixture
def redis_server(tmp_path):
    from redis_servers import Server

    server = Server(tmp_path)
    yield server
    server.stop()


def test_a_slow_redis(traffic, redis_server):
    one = traffic(redis_server.url)
    with Slowed(redis_server.process):
        seen = check(one.run(SECONDS))
    assert seen.hits > 0
    is_well_again(one)


def test_a_redis_that_is_stopped_for_seconds(traffic, redis_server):
    from kvcompress.store._redis import _FOUND

    one = traffic(redis_server.url)
    time.sleep(_FOUND)  # until what it has is not believed any more without asking
    with stopped(redis_server.process):
        seen = check(one.run(3))
    assert seen.misses > 0
    assert seen.unstored > 0
    is_well_again(one)


def test_a_redis_that_dies_and_comes_back_empty(traffic, redis_server):
    one = traffic(redis_server.url)
    redis_server.stop()
    seen = check(one.run(SECONDS))
    assert seen.misses > 0
    assert seen.unstored > 0
    redis_server.start()
    deadline = time.monotonic() + 30
    hits = 0
    while not hits:  # what it had is gone: what is stored anew is found
        assert time.monotonic() < deadline
        hits = check(one.run(0.5)).hits
    one.settle()
