"""The L2 adapter as LMCache's controllers use it: tasks, events, bitmaps; through LMCache's own plugin loader and
metrics where it is installed."""

import importlib.metadata
import json
import logging
import select
import time

import engines
import kvcompress
import pytest

torch = pytest.importorskip("torch")
engines.provide_lmcache()
from kvcompress.adapters._lmcache_objects import key_text  # noqa: E402
from kvcompress.adapters.lmcache import KvCompressL2Adapter  # noqa: E402
from test_lmcache import Memory, object_key  # noqa: E402

INSTALLED = "lmcache" in importlib.metadata.packages_distributions()
real = pytest.mark.skipif(not INSTALLED, reason="LMCache is not installed")
KV = torch.Size([2, 3, 64, 128])


@pytest.fixture
def adapter(daemon, tmp_path):
    server, made = daemon("--threads", "2"), []

    def start(**options):
        made.append(KvCompressL2Adapter(
            {"target": server.address, "path": str(tmp_path / "kept"), "codec": "lossless", **options}))
        return made[-1]

    start.server = server
    yield start
    for one in made:
        one.close()


@pytest.fixture
def filled(kv_values):
    def make(seed, *shapes, dtype=torch.bfloat16):
        memory = Memory(list(shapes) or [KV], [dtype] * max(1, len(shapes)))
        for index, shape in enumerate(memory.shapes):
            memory.get_tensor(index).copy_(kv_values(tuple(shape), torch.float32, seed + index).to(dtype))
        return memory

    return make


def blank(memory):
    return Memory(memory.shapes, memory.dtypes)


def answer(descriptor, query, seconds=20):
    """Of a task, which an event is sent for."""
    deadline = time.monotonic() + seconds
    assert select.select([descriptor], [], [], seconds)[0]
    while (found := query()) is None:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    return found


def store(one, keys, objects):
    task = one.submit_store_task(keys, objects)
    return answer(one.get_store_event_fd(), lambda: one.pop_completed_store_tasks().get(task))


def look_up(one, keys):
    task = one.submit_lookup_and_lock_task(keys, {})
    return bits(answer(one.get_lookup_and_lock_event_fd(), lambda: one.query_lookup_and_lock_result(task)), keys)


def load(one, keys, objects):
    task = one.submit_load_task(keys, objects)
    return bits(answer(one.get_load_event_fd(), lambda: one.query_load_result(task)), keys)


def bits(bitmap, keys):
    return [bitmap.test(number) for number in range(len(keys))]


def test_objects_are_stored_found_and_loaded(adapter, filled, tmp_path):
    one = adapter()
    keys, objects = [object_key(number) for number in range(4)], [filled(number) for number in range(3)]
    assert look_up(one, keys) == [False] * 4
    result = store(one, keys[:3], objects)
    assert result.is_successful()
    assert 0 < result.bytes_transferred() < 0.95 * sum(len(memory.raw) for memory in objects)
    assert store(one, keys[:3], objects).bytes_transferred() == 0  # they are there
    assert look_up(one, keys) == [True, True, True, False]
    one.submit_unlock(keys)
    targets = [blank(objects[0]) for _ in keys]
    assert load(adapter(), keys, targets) == [True, True, True, False]
    assert all(torch.equal(target.raw, memory.raw) for target, memory in zip(targets, objects, strict=False))
    assert not targets[3].raw.any()
    one.delete(keys[:1])
    assert look_up(one, keys) == [False, True, True, False]
    descriptors = {one.get_store_event_fd(), one.get_lookup_and_lock_event_fd(), one.get_load_event_fd()}
    assert len(descriptors) == 3


@pytest.mark.parametrize("other", [{"model_name": "org/other"}, {"kv_rank": 1}, {"object_group_id": 1},
                                   {"cache_salt": "tenant"}], ids=str)
def test_keys_that_differ_in_anything_are_others(adapter, filled, other):
    one = adapter()
    store(one, [object_key(1)], [filled(1)])
    assert look_up(one, [object_key(1), object_key(1, **other)]) == [True, False]


@pytest.mark.parametrize(("shapes", "dtype"), [
    ([KV], torch.float8_e4m3fn), ([KV], torch.float8_e5m2), ([KV], torch.uint8), ([KV], torch.complex64),
    ([torch.Size([1, 3, 64, 72])], torch.float32), ([torch.Size([5, 7])], torch.bfloat16),
    ([torch.Size([2] * 9)], torch.float16), ([KV, torch.Size([1, 2, 64, 16])], torch.float16)], ids=str)
def test_no_object_is_refused(adapter, filled, shapes, dtype):
    """FP8, states of recurrent layers, and types that frames do not have; what is no key and value bit for bit."""
    one, memory = adapter(codec="int4(group=32)"), filled(1, *shapes, dtype=dtype)
    assert store(one, [object_key(1)], [memory]).is_successful()
    target = blank(memory)
    assert load(one, [object_key(1)], [target]) == [True]
    is_coded = len(shapes[0]) == 4 and shapes[0][0] == 2 and dtype not in (torch.uint8, torch.complex64)
    assert torch.equal(target.raw, memory.raw) != is_coded
    if len(shapes) == 2:
        assert torch.equal(target.get_tensor(1), memory.get_tensor(1))


def test_a_damaged_object_is_a_miss_of_its_own(adapter, filled, others):
    """A bit, the end, and another object's frames, whole."""
    options, counter = others
    one = adapter(**options)
    keys, objects = [object_key(number) for number in range(5)], [filled(number) for number in range(5)]
    store(one, keys, objects)
    texts = [key_text(key) for key in keys]
    flip(one._store._path(texts[0]))
    cut(one._store._path(texts[1]))
    one._store.put(texts[2], bytes(one._store.get(texts[3], 1 << 20)))
    targets = [blank(memory) for memory in objects]
    assert load(one, keys, targets) == [False, False, False, True, True]
    assert not any(target.raw.any() for target in targets[1:3])
    assert all(torch.equal(target.raw, memory.raw) for target, memory in zip(targets[3:], objects[3:], strict=True))
    found = one.report_status()
    # The bit is found by the store where frames are sealed, and by the frame's reader elsewhere.
    lost = 2 if options else 1
    wanted = {"loaded": 2, "missing": lost, "damaged": 2 - lost}
    wanted[counter] = wanted.get(counter, 0) + 1
    assert {name: found[name] for name in wanted} == wanted
    assert one._store.stats().lost == lost
    assert look_up(one, keys) == [False, False, False, True, True]
    assert store(one, keys, objects).bytes_transferred() > 0
    assert load(one, keys, targets) == [True] * 5


def flip(path):
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def test_objects_of_another_layout_are_misses(adapter, filled):
    one = adapter()
    store(one, [object_key(1)], [filled(1)])
    assert load(one, [object_key(1)], [Memory([torch.Size([2, 3, 32, 128])], [torch.bfloat16])]) == [False]
    assert one.report_status()["foreign"] == 1


def test_without_a_daemon_all_is_a_miss_and_nothing_is_raised(adapter, filled, caplog):
    one, keys, objects = adapter(timeout=3), [object_key(1), object_key(2)], [filled(1), filled(2)]
    assert store(one, keys[:1], objects[:1]).is_successful()
    adapter.server.stop()
    with caplog.at_level(logging.WARNING):
        assert not store(one, keys, objects).is_successful()
        began = time.monotonic()
        assert load(one, keys, [blank(objects[0]) for _ in keys]) == [False, False]
    assert time.monotonic() - began < 2.5  # it is not waited for again at once
    assert look_up(one, keys) == [True, False]
    assert one.report_status()["is_healthy"]
    assert tuple(one.report_status()[name] for name in ("unsaved", "undecoded", "missing")) == (1, 1, 1)
    assert "chunks undecoded: 1" in caplog.text


def test_one_object_that_the_codec_refuses_does_not_keep_the_others_out(adapter, filled):
    one = adapter(codec="int4", on_nonfinite="error")
    keys, objects = [object_key(1), object_key(2)], [filled(1), filled(2)]
    objects[0].get_tensor(0)[0, 0, 0, 0] = float("nan")
    assert not store(one, keys, objects).is_successful()
    assert look_up(one, keys) == [False, True]


def test_tasks_after_the_end_fail(adapter, filled):
    one = adapter()
    one.close()
    task = one.submit_load_task([object_key(1)], [filled(1)])
    assert bits(one.query_load_result(task), [1]) == [False]
    assert not one.report_status()["is_healthy"]


def test_what_cannot_work_is_said_at_the_start(tmp_path):
    with pytest.raises(kvcompress.InvalidArgument, match="path is missing"):
        KvCompressL2Adapter({})
    with pytest.raises(kvcompress.InvalidArgument, match="unknown option 'pth'"):
        KvCompressL2Adapter({"path": str(tmp_path), "pth": "x"})
    with pytest.raises(kvcompress.InvalidArgument, match="latents is 1"):
        KvCompressL2Adapter({"path": str(tmp_path), "latents": 1})


@real
class TestWithLMCache:
    def spec(self, adapter, tmp_path, **others):
        return {"type": "plugin", "module_path": "kvcompress.adapters.lmcache", "class_name": "KvCompressL2Adapter",
                "adapter_params": {"target": adapter.server.address, "path": str(tmp_path / "kept"),
                                   "codec": "lossless", **others}}

    def test_the_plugin_loader_makes_it(self, adapter, filled, tmp_path):
        import argparse

        from lmcache.v1.distributed.l2_adapters import create_l2_adapter
        from lmcache.v1.distributed.l2_adapters.config import add_l2_adapters_args, parse_args_to_l2_adapters_config

        parser = add_l2_adapters_args(argparse.ArgumentParser())
        args = parser.parse_args(["--l2-adapter", json.dumps(self.spec(adapter, tmp_path, capacity_bytes=1 << 30))])
        (config,) = parse_args_to_l2_adapters_config(args).adapters
        one = create_l2_adapter(config, None)
        try:
            assert type(one) is KvCompressL2Adapter
            assert one.supports_global_eviction
            memory = filled(1)
            assert store(one, [object_key(1)], [memory]).is_successful()
            assert load(one, [object_key(1)], [target := blank(memory)]) == [True]
            assert torch.equal(target.raw, memory.raw)
            assert 0 < one.get_usage().usage_fraction < 1
        finally:
            one.close()

    def test_its_counters_are_among_lmcaches_metrics(self, adapter, filled):
        from opentelemetry import metrics
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import InMemoryMetricReader

        reader = InMemoryMetricReader()
        metrics.set_meter_provider(MeterProvider(metric_readers=[reader]))
        one = adapter()
        store(one, [object_key(1)], [filled(1)])
        found = {metric.name: metric.data.data_points for resource in reader.get_metrics_data().resource_metrics
                 for scope in resource.scope_metrics for metric in scope.metrics}
        assert sum(point.value for point in found["lmcache_mp.kvcompress_saved"]) >= 1
        assert {point.attributes["source"] for point in found["lmcache_mp.kvcompress_frame_bytes"]} >= {"l2"}
