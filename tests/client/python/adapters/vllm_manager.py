"""The tier under vLLM's own classes: its factory, its TieringOffloadingSpec and the TieringOffloadingManager with the
CPU cache in /dev/shm, called as vLLM's scheduler calls them. test_vllm_tier.py runs this where vLLM can be imported."""

import os
import time
import uuid

import pytest

torch = pytest.importorskip("torch")
from process_helpers import stopped  # noqa: E402
from tiering import HEAD_DIM, key_of, offloading_config, row_bytes  # noqa: E402
from traffic import Slowed  # noqa: E402
from vllm.v1.kv_offload.base import LookupResult, Medium, ReqContext, ScheduleEndContext  # noqa: E402
from vllm.v1.kv_offload.factory import OffloadingSpecFactory  # noqa: E402
from vllm.v1.kv_offload.tiering.manager import TieringOffloadingManager  # noqa: E402

ROWS = 8


class Engine:
    """A scheduler's side of vLLM, and in place of a GPU what writes into and reads from the CPU cache."""

    def __init__(self, tiers, **more):
        config = offloading_config(engine_id=uuid.uuid4().hex)
        extra = {"spec_name": "TieringOffloadingSpec", "cpu_bytes_to_use": ROWS * row_bytes(config),
                 "secondary_tiers": tiers, **more}
        config = offloading_config(engine_id=config.engine_id, extra_config=extra)
        self.spec = OffloadingSpecFactory.create_spec(config)
        self.manager = self.spec.get_manager()
        assert type(self.manager) is TieringOffloadingManager
        self.rows = self.spec._scheduler_mmap.base_tensor.view(ROWS, -1)
        self.tier = self.manager.secondary_tiers[0]
        self.longest, self._requests = 0.0, 0

    def call(self, method, *arguments):
        with self.manager.lock:
            begin = time.perf_counter()
            result = getattr(self.manager, method)(*arguments)
            self.longest = max(self.longest, time.perf_counter() - begin)
        return result

    def request(self):
        self._requests += 1
        context = ReqContext(req_id=f"request-{self._requests}")
        self.call("on_new_request", context)
        return context

    def step(self):
        self.call("on_schedule_end", ScheduleEndContext(new_req_ids=(), preempted_req_ids=()))
        time.sleep(0.001)

    def settle(self, seconds=30):
        deadline = time.monotonic() + seconds
        while self.call("has_pending_work"):
            assert time.monotonic() < deadline, "the manager does not come to rest"
            self.step()

    def store(self, values):
        """{key: values of a chunk}; as a request does that computes them. Whether rows were free for them."""
        context, keys = self.request(), list(values)
        output = self.call("prepare_store", keys, context)
        if output is None:
            self.call("on_request_finished", context)
            return False
        for key, row in zip(output.keys_to_store, output.store_spec.chunk_ids, strict=True):
            self.rows[int(row), : len(values[key])] = values[key]
        self.call("complete_store", keys, context)
        self.call("on_request_finished", context)
        return True

    def load(self, keys, seconds=30):
        """{key: values} of a request that looks chunks up until each is there or not, and the answers."""
        context, found, deadline = self.request(), {}, time.monotonic() + seconds
        while len(found) < len(keys):
            assert time.monotonic() < deadline, f"no answer for {len(keys) - len(found)} chunks"
            for key in keys:
                answer = self.call("lookup", key, context)
                if key not in found and answer in (LookupResult.HIT, LookupResult.MISS):
                    found[key] = answer
            self.step()
        hits = [key for key in keys if found[key] is LookupResult.HIT]
        values = {}
        if hits:
            spec = self.call("prepare_load", hits, context)
            values = {key: self.rows[int(row)].clone() for key, row in zip(hits, spec.chunk_ids, strict=True)}
            self.call("complete_load", hits, context)
        self.call("on_request_finished", context)
        return values

    def forget(self):
        self.call("reset_cache")
        self.call("on_reset_flushed")

    def counters(self):
        stats = self.call("get_stats")
        data = {} if stats is None else stats.data["data"]
        return {name.rpartition(":")[2]: sum(values.values()) for name, values in data.items()
                if all(isinstance(value, int | float) for value in values.values())}

    def close(self):
        path = self.spec._scheduler_mmap.mmap_path
        self.tier = self.rows = None
        self.manager.shutdown()
        assert not os.path.exists(path)


def values_of(number):
    """Of a chunk, in bytes."""
    config = offloading_config()
    generator = torch.Generator().manual_seed(number)
    count = config.worker_kv_bytes_per_block // 2
    return torch.randn(count, generator=generator).half().view(torch.int8)


@pytest.fixture
def engine(daemon, tmp_path):
    made, server = [], daemon("--threads", "2")

    def start(**options):
        backpressure = options.pop("backpressure", None)
        tier = {"type": "CompressedTier", "module_path": "kvcompress.adapters.vllm", "target": server.address,
                "timeout": 2, "path": str(tmp_path / "kv"), "codec": "lossless", "head_dim": HEAD_DIM,
                "rotary": {"theta": 1e4}, **options}
        made.append(Engine([tier], **({"backpressure": backpressure} if backpressure else {})))
        return made[-1]

    start.server = server
    yield start
    for one in made:
        one.close()


def test_chunks_survive_the_cpu_cache_and_the_engine(engine):
    one = engine()
    stored = {key_of(number): values_of(number) for number in range(ROWS)}
    one.store(stored)
    one.settle()
    one.store({key_of(100 + number): values_of(100 + number) for number in range(ROWS)})  # evicts the first
    one.settle()
    two = engine()
    for other in (one, two):
        loaded = other.load([*stored, key_of(999)])
        assert set(loaded) == set(stored)
        for key, values in stored.items():
            assert torch.equal(loaded[key][: len(values)], values)
        assert other.longest < 0.2
    counters = two.counters()
    assert counters["kv_offload_tiering_chunk_hits"] >= ROWS
    assert counters["kv_offload_kvcompress_loaded_value_bytes"] == sum(map(len, stored.values()))
    assert counters["kv_offload_tiering_read_bytes"] == ROWS * row_bytes(offloading_config())


def test_a_reset_drains_and_keeps_what_is_stored(engine):
    one = engine()
    stored = {key_of(number): values_of(number) for number in range(ROWS)}
    one.store(stored)
    one.forget()  # while the stores run
    assert not one.call("has_pending_work")
    loaded = one.load(list(stored))
    for key, values in stored.items():
        assert torch.equal(loaded[key][: len(values)], values)
    one.forget()
    assert set(one.load(list(stored))) == set(stored)


def test_a_promotion_that_fails_in_part_keeps_the_rest_and_ends(engine):
    one = engine()
    stored = {key_of(number): values_of(number) for number in range(4)}
    one.store(stored)
    one.settle()
    one.forget()
    store = one.tier._store
    damaged = bytearray(store.get(key_of(2).hex(), 1 << 30))
    damaged[-9] ^= 4
    store.put(key_of(2).hex(), bytes(damaged))
    loaded = one.load(list(stored))
    assert set(loaded) == {key_of(0), key_of(1), key_of(3)}
    for key, values in loaded.items():
        assert torch.equal(values[: len(stored[key])], stored[key])
    assert one.counters()["kv_offload_tiering_promotion_job_failures"] == 1
    # It is computed again, and stored again.
    one.store({key_of(2): stored[key_of(2)]})
    one.settle()
    one.forget()
    assert set(one.load(list(stored))) == set(stored)


def test_a_daemon_that_is_stopped_or_gone_stops_no_request(engine):
    one = engine(timeout=1)
    stored = {key_of(number): values_of(number) for number in range(4)}
    one.store(stored)
    one.settle()
    one.forget()
    one.longest = 0.0
    begin = time.monotonic()
    with stopped(engine.server.process):
        assert one.load(list(stored)) == {}
        one.store({key_of(50): values_of(50)})
        one.settle()
        assert time.monotonic() - begin < 6
        assert one.longest < 0.9  # one that waited for the daemon would take a second
        one.forget()
    deadline = time.monotonic() + 20
    while set(one.load(list(stored))) != set(stored):
        assert time.monotonic() < deadline
    engine.server.process.kill()
    engine.server.wait()
    one.forget()
    assert one.load(list(stored)) == {}
    one.store({key_of(51): values_of(51)})
    one.settle()


def keep_busy(one, numbers, seconds):
    """Loads what was stored before, and stores new chunks. How many were loaded, each as it was stored."""
    values, end = {key_of(number): values_of(number) for number in numbers}, time.monotonic() + seconds
    hits, number, one.longest = 0, 1000, 0.0
    while time.monotonic() < end:
        for _ in range(3):
            number += 1
            one.store({key_of(number): values_of(number)})
            one.step()
            assert len(one.tier._jobs._open) <= ROWS  # each holds rows of the CPU cache
        for key, found in one.load([key_of(numbers[number % len(numbers)])]).items():
            hits += 1
            assert torch.equal(found[: len(values[key])], values[key])
    assert one.longest < 0.5
    return hits


def begin(one, numbers):
    for number in numbers:
        one.store({key_of(number): values_of(number)})
    one.settle()
    one.forget()


def test_a_daemon_that_runs_a_tenth_of_the_time_stops_no_request(engine):
    one, numbers = engine(), range(4)
    begin(one, numbers)
    with Slowed(engine.server.process):
        assert keep_busy(one, numbers, 3) > 0
    one.settle()
    one.forget()
    assert keep_busy(one, numbers, 0.5) > 0


def test_a_redis_that_is_stopped_and_gone_stops_no_request(engine, tmp_path):
    from redis_servers import Server

    server = Server(tmp_path)
    try:
        one, numbers = engine(path=server.url), range(4)
        begin(one, numbers)
        with stopped(server.process):
            keep_busy(one, numbers, 2)
        deadline = time.monotonic() + 30
        hits = 0
        while not hits:
            assert time.monotonic() < deadline
            one.settle()
            one.forget()  # what the CPU cache has needs no Redis
            hits = keep_busy(one, numbers, 0.5)
        server.stop()
        keep_busy(one, numbers, 1)
        server.start()
        while not one.counters().get("kv_offload_kvcompress_stored_value_bytes"):
            assert time.monotonic() < deadline + 30
            keep_busy(one, numbers, 0.5)
        one.settle()
    finally:
        server.stop()


def test_stores_are_left_out_under_backpressure(engine):
    detector = {"backpressure_cls": "EMABackpressureDetector", "policy_cls": "DropStorePolicy", "high_water_s": 1e-9,
                "low_water_s": 1e-10, "warmup_completions": 1, "decay_half_life_s": 1000.0}
    one = engine(backpressure=detector)
    for number in range(6):
        one.store({key_of(number): values_of(number)})
        one.settle()
    one.forget()
    assert 1 <= len(one.load([key_of(number) for number in range(6)])) < 6


def test_the_factory_finds_metrics_and_labels(engine):
    one = engine()
    definitions = type(one.spec).build_metric_definitions(one.spec.extra_config)
    assert "vllm:kv_offload_kvcompress_load_failures" in definitions
    assert type(one.tier).medium is Medium.STORAGE
    assert one.manager.config_info()[1]["tier"] == "1:CompressedTier"
