"""The tier with a daemon that is killed again and again: no chunk is ever another's, and each miss is counted."""

import random
import threading
import time

import engines
import numpy as np
import pytest

pytest.importorskip("torch")
engines.provide_vllm_tiering()
from tiering import Steps, key_of  # noqa: E402

CHUNKS, LOADS, KILLS = 40, 2000, 20


def test_a_daemon_that_is_killed_while_chunks_are_loaded(daemon, socket_dir, tmp_path):
    address = f"unix:{socket_dir}/d.sock"
    running = [daemon("--listen", address)]
    steps = Steps.of(address, tmp_path / "kv", rows=CHUNKS + 8, streams=3, timeout=0.5)
    cache = steps.cache
    for row in range(CHUNKS):
        cache.fill(row, seed=row)
    keys = [key_of(number) for number in range(CHUNKS)]
    assert steps.store(keys, range(CHUNKS)).success
    truth = cache.rows[:CHUNKS].copy()
    kills, is_over = 0, threading.Event()

    def kill_again_and_again():
        nonlocal kills
        generator = random.Random(1)
        while kills < KILLS and not is_over.is_set():
            time.sleep(generator.uniform(0.05, 0.4))
            running[-1].process.kill()
            running[-1].wait()
            kills += 1
            time.sleep(generator.choice([0.0, 0.8]))  # calls that are made again outlive the first
            running.append(daemon("--listen", address))

    killer = threading.Thread(target=kill_again_and_again)
    killer.start()
    generator, loads, hits, misses = random.Random(2), 0, 0, 0
    try:
        while loads < LOADS or killer.is_alive():
            wanted = generator.sample(range(CHUNKS), 4)
            rows = generator.sample(range(CHUNKS, CHUNKS + 8), 4)
            cache.rows[rows] = 0x5A
            result = steps.load([keys[number] for number in wanted], rows, request=str(loads))
            good = {keys[number] for number in wanted} if result.success else set(result.successful_keys or ())
            for number, row in zip(wanted, rows, strict=True):
                if keys[number] in good:
                    hits += 1
                    assert np.array_equal(cache.rows[row, : len(truth[number])], truth[number])
                else:
                    misses += 1
                    assert (cache.rows[row] == 0x5A).all()
            loads += 4
            if not good:
                time.sleep(0.01)
    finally:
        is_over.set()
        killer.join()
        steps.tier.shutdown()
    assert kills == KILLS
    assert hits > LOADS / 10
    assert misses > 0
    assert sum(steps.failures().values()) == misses
    assert steps.longest < 0.5
    print(f"{loads} loads, {kills} kills: {hits} chunks are right, {misses} are missed, 0 are wrong")
