"""The tier: chunks of a CPU cache of vLLM's layout, stored and loaded through a real daemon, with its faults."""

import pathlib
import threading
import time

import engines
import kvcompress
import numpy as np
import pytest
from engine_runs import pass_with_vllms_classes

torch = pytest.importorskip("torch")
engines.provide_vllm_tiering()
from kvcompress.adapters._codec import pack, unpack  # noqa: E402
from kvcompress.adapters._vllm_geometry import groups_of, head_dims_of  # noqa: E402
from kvcompress.adapters.vllm_tier import CompressedTier  # noqa: E402
from process_helpers import stopped  # noqa: E402
from tiering import HEAD_DIM, HEADS, LAYERS, TOKENS, Steps, key_of, offloading_config, row_bytes  # noqa: E402


@pytest.fixture
def start(daemon, tmp_path):
    """Makes tiers, as Steps, with a cache of their own: start(codec="lossless", ...)."""
    made, servers = [], []

    def make(config=None, *, server=None, rows=8, **options):
        if server is None and not servers:
            servers.append(daemon("--threads", "2"))
        made.append(Steps.of((server or servers[0]).address, tmp_path / "kv", config, rows=rows, **options))
        return made[-1]

    yield make
    for steps in made:
        steps.tier.shutdown()


def store_of(steps):
    return steps.tier._store


@pytest.mark.parametrize("config", [
    offloading_config(), offloading_config(dtype="bfloat16", blocks=4), offloading_config(workers=2, blocks=2),
    offloading_config(dtype="float32"), offloading_config(canonical_layout=True),
    offloading_config(names="model.layers.{}.mixer")], ids=["one", "blocks", "workers", "f32", "canonical", "mamba"])
def test_chunks_come_back_in_other_rows_of_another_engine(start, config):
    one, two = start(config), start(config)
    keys = [key_of(number) for number in range(4)]
    for row in range(4):
        one.cache.fill(row, seed=row)
    assert one.store(keys, [0, 1, 2, 3]).success
    assert [two.lookup(key) for key in [*keys, key_of(9)]] == ["HIT"] * 4 + ["MISS"]
    result = two.load(keys, [7, 5, 3, 1])
    assert (result.success, result.successful_keys) == (True, None)
    assert result.transfer_bytes == 4 * row_bytes(config)
    for row, other in enumerate([7, 5, 3, 1]):
        assert torch.equal(one.cache.pages(row).view(torch.uint8), two.cache.pages(other).view(torch.uint8))
    assert not two.cache.rows[[0, 2, 4, 6]].any()


def test_keys_and_values_are_what_the_codec_sees(start):
    """With a codec that loses, by a bound that holds for channels and not for anything mixed."""
    config = offloading_config(blocks=2, workers=2)
    one, two = start(config, codec="int8(group=64)"), start(config, codec="int8(group=64)")
    one.cache.fill(0, seed=1)
    one.store([key_of(0)], [0])
    two.load([key_of(0)], [0])
    (group,) = two.tier._groups.values()
    assert [part.name for part in group.parts] == ["layers_key", "layers_value"]
    assert group.kinds[0].shape == (LAYERS, 2 * HEADS, 2 * TOKENS, HEAD_DIM)
    row = torch.from_numpy(one.cache.rows[0])
    key = group.parts[0].gather(row, torch.empty(len(row), dtype=torch.uint8))
    pages = one.cache.pages(0)
    for layer in range(LAYERS):
        for head in range(2 * HEADS):
            worker, inner = divmod(head, HEADS)
            expected = pages[worker, layer, :, inner, :, :HEAD_DIM].reshape(2 * TOKENS, HEAD_DIM)
            assert torch.equal(key[layer, head], expected)
    error = (one.cache.pages(0).float() - two.cache.pages(0).float()).abs().max()
    assert 0 < error < 0.05
    stats = one.tier.get_stats().data["data"]
    stored = {name.rpartition("kvcompress_")[2]: sum(values.values()) for name, values in stats.items()}
    assert stored["stored_frame_bytes"] < 0.7 * stored["stored_value_bytes"]


@pytest.mark.parametrize("more", [
    {"names": "model.layers.{}.mixer"}, {"names": "model.layers.{}.linear_attn.attn"}, {"dtype": "nvfp4"},
    {"kv_cache_layout": "BLHNC"}, {"canonical_layout": True}, {"replicated_layout": True},
    {"worker_kv_bytes_per_block": LAYERS * HEADS * TOKENS * 2 * HEAD_DIM * 2 + 64}], ids=str)
def test_what_is_no_keys_and_values_is_kept_as_it_is(start, more):
    config = offloading_config(**more)
    one = start(config, codec="int4")
    generator = np.random.default_rng(0)
    one.cache.rows[0] = generator.integers(0, 256, one.cache.rows.shape[1], np.uint8)
    assert one.store([key_of(0)], [0]).success
    assert one.load([key_of(0)], [1]).success
    assert np.array_equal(one.cache.rows[0], one.cache.rows[1])


def test_each_group_has_its_codec(start):
    config = offloading_config(groups=2)
    one = start(config, codec="int4", group_codecs={"1": "lossless"})
    one.cache.fill(0, seed=1)
    keys = [key_of(0, group=0), key_of(0, group=1)]
    assert one.store(keys, [0, 0]).success
    assert one.load(keys, [1, 2]).success
    assert not torch.equal(one.cache.pages(0), one.cache.pages(1))
    assert torch.equal(one.cache.pages(0), one.cache.pages(2))


def test_other_models_layouts_and_names_are_other_chunks(start):
    one = start()
    one.store([key_of(0)], [0])
    assert one.lookup(key_of(0)) == "HIT"
    assert start(offloading_config(model="org/other")).lookup(key_of(0)) == "MISS"
    assert start(offloading_config(layers=LAYERS, heads=HEADS, workers=2)).lookup(key_of(0)) == "MISS"
    assert start(namespace="weights of today").lookup(key_of(0)) == "MISS"
    assert start(codec="int8").lookup(key_of(0)) == "MISS"
    assert start().lookup(key_of(0)) == "HIT"


def test_a_frame_of_another_chunk_is_never_loaded(start, others):
    options, reason = others
    one = start(**options)
    one.cache.fill(0, seed=1)
    one.store([key_of(0)], [0])
    store = store_of(one)
    payload = bytes(store.get(key_of(0).hex(), 1 << 30))
    store.put(key_of(1).hex(), payload)
    result = one.load([key_of(1)], [3])
    assert (result.success, result.successful_keys) == (False, None)
    assert one.failures() == {reason: 1}
    assert not one.cache.rows[3].any()
    assert one.lookup(key_of(1), "later") == "MISS"


def test_a_frame_of_another_layer_is_never_loaded(start):
    """Of a profile, with which each layer is a frame of its own, and all have the same shape."""
    profile = {"version": 1, "default": "lossless"}
    one = start(codec="", profile=profile)
    one.cache.fill(0, seed=1)
    one.store([key_of(0)], [0])
    (group,) = one.tier._groups.values()
    assert [part.name for part in group.parts][:3] == ["layer_0_key", "layer_0_value", "layer_1_key"]
    store = store_of(one)
    frames = [frame for _, frame, _ in unpack(store.get(key_of(0).hex(), 1 << 30), group.kinds)]
    frames[0], frames[2] = frames[2], frames[0]
    store.put(key_of(0).hex(), pack_bytes(frames))
    assert not one.load([key_of(0)], [3]).success
    assert one.failures() == {"foreign": 1}
    assert not one.cache.rows[3].any()


def pack_bytes(frames):
    class Bytes:
        def __init__(self, data):
            self.data = bytes(data)

        def __len__(self):
            return len(self.data)

    return pack([Bytes(frame) for frame in frames])


def test_what_is_damaged_is_missed_alone(start):
    one = start()
    keys = [key_of(number) for number in range(5)]
    for row in range(5):
        one.cache.fill(row, seed=row)
    one.store(keys, range(5))
    store = store_of(one)
    whole = bytes(store.get(keys[1].hex(), 1 << 30))
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    store.put(keys[1].hex(), bytes(flipped))
    store.put(keys[2].hex(), bytes(store.get(keys[2].hex(), 1 << 30))[:-7])
    store.remove(keys[4].hex())
    before = one.cache.rows[:5].copy()
    one.cache.rows[5:] = 7
    result = one.load(keys, [0, 5, 6, 3, 7])
    assert not result.success
    assert set(result.successful_keys) == {keys[0], keys[3]}
    assert one.failures() == {"damaged": 2, "absent": 1}
    assert (one.cache.rows[5:] == 7).all()
    assert np.array_equal(one.cache.rows[[0, 3]], before[[0, 3]])
    assert [one.lookup(key, "later") for key in keys] == ["HIT", "MISS", "MISS", "HIT", "MISS"]


def test_what_has_no_key_is_missed_alone(start, sealing):
    writers = [start(**{**sealing, "seal_key": name}) for name in ("one", "two")]
    for number, one in enumerate(writers):
        one.cache.fill(number, seed=number)
        assert one.store([key_of(number)], [number]).success
    (pathlib.Path(sealing["keys_dir"]) / "two").unlink()
    reader = start(**sealing)
    assert set(reader.load([key_of(0), key_of(1)], [2, 3]).successful_keys) == {key_of(0)}
    assert reader.failures() == {"refused": 1}


def test_what_could_not_be_loaded_is_not_promised_again_to_its_request(start):
    one = start()
    one.store([key_of(0)], [0])
    assert one.lookup(key_of(0), "a") == "HIT"
    store_of(one).remove(key_of(0).hex())
    one.load([key_of(0)], [1], request="a")
    assert one.lookup(key_of(0), "a") == "MISS"
    one.store([key_of(0)], [0])
    assert one.lookup(key_of(0), "a") == "MISS"
    one.tier.on_request_finished(type("Context", (), {"req_id": "a"}))
    assert one.lookup(key_of(0), "a") == "HIT"


def test_a_daemon_that_is_gone_costs_misses_until_it_is_back(start, daemon, socket_dir):
    address = f"unix:{socket_dir}/d.sock"
    server = daemon("--listen", address)
    one = start(target=address, server=server, timeout=1)
    one.cache.fill(0, seed=1)
    one.store([key_of(0)], [0])
    server.process.kill()
    server.wait()
    assert not one.load([key_of(0)], [1]).success
    assert one.failures() == {"daemon": 1}
    assert one.lookup(key_of(0), "b") == "MISS"
    assert not one.store([key_of(1)], [0]).success
    daemon("--listen", address)
    deadline = time.monotonic() + 20
    while one.lookup(key_of(0), "c") == "MISS" or not one.load([key_of(0)], [1], request="c").success:
        assert time.monotonic() < deadline
        one.tier.on_request_finished(type("Context", (), {"req_id": "c"}))
        time.sleep(0.05)
    assert np.array_equal(one.cache.rows[0], one.cache.rows[1])


def test_a_daemon_that_is_stopped_holds_up_nobody(start, daemon):
    server = daemon("--threads", "2")
    one = start(server=server, timeout=1)
    keys = [key_of(number) for number in range(4)]
    one.store(keys, range(4))
    one.longest = 0.0
    with stopped(server.process):
        begin = time.monotonic()
        for key, row in zip(keys, range(4), strict=True):
            one.submit([key], [row + 4], load=True)
            one.submit([key_of(100 + row)], [row], load=False)
        results = one.finish(8)
        assert not any(result.success for result in results)
        assert time.monotonic() - begin < 4
        one.submit(keys, [4, 5, 6, 7], load=True)
        one.tier.drain_jobs()
        assert time.monotonic() - begin < 7
        assert len(list(one.tier.get_finished_jobs())) == 1
        assert not one.tier.has_pending_work()
        assert one.longest < 0.9  # one that waited for the daemon would take a second
    assert sum(one.failures().values()) == 8


def test_a_store_that_hangs_is_given_up_and_writes_nothing_later(start, monkeypatch):
    one = start(timeout=0.2)
    one.cache.fill(0, seed=1)
    one.store([key_of(0)], [0])
    hangs, reached, found = threading.Event(), threading.Event(), store_of(one).get_many

    def slow(*arguments):
        reached.set()
        hangs.wait(30)
        return found(*arguments)

    monkeypatch.setattr(store_of(one), "get_many", slow)
    begin = time.monotonic()
    one.submit([key_of(0)], [3], load=True)
    assert reached.wait(10)
    (result,) = one.finish()
    assert not result.success
    assert 0.4 <= time.monotonic() - begin < 5
    assert one.failures() == {"stuck": 1}
    one.tier.drain_jobs()
    hangs.set()
    time.sleep(0.3)
    assert not one.cache.rows[3].any()
    monkeypatch.undo()
    assert one.load([key_of(0)], [3]).success


def test_more_jobs_than_can_wait_fail_at_once(start, monkeypatch):
    one = start(streams=1)
    goes_on, put = threading.Event(), store_of(one).put_many

    def slow(items):
        goes_on.wait(30)
        return put(items)

    monkeypatch.setattr(store_of(one), "put_many", slow)
    count = 300
    for number in range(count):
        one.submit([key_of(number)], [0], load=False)
    refused = list(one.tier.get_finished_jobs())
    assert 30 <= len(refused) <= count - 256
    assert not any(result.success for result in refused)
    goes_on.set()
    assert all(result.success for result in one.finish(count - len(refused)))


def test_a_load_does_not_wait_for_stores(start, monkeypatch):
    one = start(streams=2)
    one.store([key_of(0)], [0])
    goes_on, put = threading.Event(), store_of(one).put_many
    monkeypatch.setattr(store_of(one), "put_many", lambda items: goes_on.wait(30) and put(items))
    for number in range(1, 6):
        one.submit([key_of(number)], [0], load=False)
    assert one.load([key_of(0)], [1]).success
    goes_on.set()
    assert len(one.finish(5)) == 5


def test_events_and_figures(start):
    one = start(enable_kv_events=True, locality="REMOTE")
    assert one.tier.locality.value == "REMOTE"
    one.store([key_of(0), key_of(1)], [0, 1])
    (event,) = one.tier.take_events()
    assert (event.keys, event.removed, event.medium.value) == ([key_of(0), key_of(1)], False, "STORAGE")
    assert list(one.tier.take_events()) == []
    one.load([key_of(0), key_of(5)], [2, 3])
    declared = CompressedTier.build_metric_definitions({})
    seen = one.tier.get_stats().data["data"]
    for name, values in seen.items():
        assert all(len(labels) == len(declared[name].labelnames) for labels in values)
    assert seen["vllm:kv_offload_kvcompress_load_failures"] == {("absent",): 1}
    assert seen["vllm:kv_offload_kvcompress_loaded_value_bytes"][()] == LAYERS * HEADS * TOKENS * 2 * HEAD_DIM * 2
    silent = start()
    silent.store([key_of(7)], [0])
    assert list(silent.tier.take_events()) == []


def test_positions_are_those_of_the_chunk(start, monkeypatch):
    one = start(offloading_config(blocks=2))
    seen = []
    codec = type(one.tier._transfer._codecs[0])
    compress = codec.compress

    def spy(self, tensors, starts=None, **more):
        seen.append(list(starts))
        return compress(self, tensors, starts, **more)

    monkeypatch.setattr(codec, "compress", spy)
    one.store([key_of(0), key_of(1)], [0, 1], ends={key_of(0): 2 * TOKENS, key_of(1): 4 * TOKENS})
    assert seen == [[0, 0, 2 * TOKENS, 2 * TOKENS]]


@pytest.mark.parametrize(("options", "words"), [
    ({"pathh": "x"}, "unknown option 'pathh'"), ({"head_dim": "128"}, "head_dim is"),
    ({"head_dim": [32, 32]}, "for 2 groups"), ({"group_codecs": ["raw"]}, "group_codecs is"),
    ({"capacity_bytes": 0}, "capacity")])
def test_wrong_options_are_refused(start, options, words):
    with pytest.raises(kvcompress.InvalidArgument, match=words):
        start(**options)


def test_what_a_models_configuration_says_of_heads():
    class Model:
        def __init__(self, **fields):
            self.to_dict = lambda: fields

    config = offloading_config(groups=2)

    def dims(model, told=None):
        return head_dims_of(config, told, model)

    assert dims(Model(head_dim=64, hidden_size=576, num_attention_heads=9)) == [64, 64]
    assert dims(Model(hidden_size=576, num_attention_heads=9)) == [64, 64]
    assert dims(Model(head_dim=None, hidden_size=576, num_attention_heads=9)) == [64, 64]
    assert dims(Model(kv_lora_rank=512, head_dim=64)) == [None, None]
    assert dims(Model(head_dim=192, v_head_dim=128)) == [None, None]
    assert dims(Model(head_dim=256, global_head_dim=512)) == [None, None]
    assert dims(None) == [None, None]
    assert dims(None, [32, None]) == [32, None]
    groups = groups_of(config, row_bytes(config), [32, None], by_layer=False)
    assert [group.tokens for group in groups.values()] == [TOKENS, None]


@pytest.mark.timeout(400)
def test_under_vllms_own_manager():
    """These tests, and those of vllm_manager.py, with the classes of an unpacked wheel in place of stand-ins."""
    pass_with_vllms_classes("vllm_manager.py", "test_vllm_tier.py", timeout=300)
