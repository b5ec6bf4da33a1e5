"""The connector: both of its sides through the life of requests, with paged caches of vLLM's layout on the CPU, and a
real daemon."""

import importlib.metadata
import json
import logging
import os
import subprocess
import threading
import time
from types import SimpleNamespace as Bag

import engines
import kvcompress
import pytest
from engine_runs import pass_with_vllms_classes

torch = pytest.importorskip("torch")
engines.provide_vllm()
from frame_reader import read_frame  # noqa: E402
from kvcompress.adapters._codec import unpack  # noqa: E402
from kvcompress.adapters._vllm_scheduler import PagedChunk  # noqa: E402
from kvcompress.adapters.vllm import KvCompressConnector  # noqa: E402
from kvcompress.store._entry import HEADER_SIZE  # noqa: E402
from paged_engine import BLOCK, CHUNK, HEADS, LAYERS, SIZE, Engine, make_request, output  # noqa: E402
from vllm.v1.kv_cache_interface import ChunkedLocalAttentionSpec  # noqa: E402


@pytest.fixture
def engine(daemon, tmp_path):
    server, made = daemon("--threads", "2"), []

    def start(**options):
        made.append(Engine(options.pop("server", server), tmp_path / "kv", **options))
        return made[-1]

    start.server, start.folder = server, tmp_path / "kv"
    yield start
    for one in made:
        one.close()


def kinds_of(engine):
    return list(engine.worker._worker._caches.kinds[0].values())


def files(engine):
    return sorted(engine.folder.glob("*/*.kvc"))


@pytest.mark.parametrize("server", ["daemon", "in-process"])
@pytest.mark.parametrize("kernel_blocks", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_prompt_is_found_again_by_another_engine(engine, dtype, kernel_blocks, server):
    options = {"server": "in-process"} if server == "in-process" else {}
    options.update(dtype=dtype, kernel_blocks=kernel_blocks)
    first, tokens = engine(**options), list(range(100, 154))
    blocks = list(range(3, 17))
    assert first.prefill(make_request("a", tokens), blocks) == (0, set())
    assert len(files(engine)) == 3  # 48 of 54 tokens
    assert first.scheduler.request_finished_all_groups(make_request("a", tokens), (blocks,)) == (False, None)
    second = engine(**options)
    others = list(range(39, 25, -1))
    assert second.prefill(make_request("b", tokens), others) == (48, set())
    for layer in range(LAYERS):
        assert torch.equal(first.cells(layer, blocks), second.cells(layer, others))
        assert first.cells(layer, blocks[:12]).abs().min() >= 0
        assert first.cells(layer, blocks[:12]).std() > 0.5


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.uint8], ids=str)
def test_a_cache_of_one_byte_elements_is_found_again(engine, dtype):
    first, tokens, blocks = engine(dtype=dtype), list(range(100, 154)), list(range(3, 17))
    first.prefill(make_request("a", tokens), blocks)
    second = engine(dtype=dtype)
    assert second.prefill(make_request("b", tokens), blocks) == (48, set())
    for layer in range(LAYERS):
        one, two = (engine.cells(layer, blocks).contiguous().view(torch.uint8) for engine in (first, second))
        assert torch.equal(one, two)


def test_a_store_that_does_not_know_at_once_is_asked_again(engine, monkeypatch):
    one, tokens = engine(), list(range(60))
    one.prefill(make_request("a", tokens), list(range(1, 16)))
    scheduler, store = one.scheduler, one.scheduler._store
    knows, found = [False, None, True], store.peek_many
    monkeypatch.setattr(store, "peek_many", lambda keys: [answer and knows[-1] for answer in found(keys)])
    assert scheduler.get_num_new_matched_tokens(make_request("b", tokens), 0) == (48, True)
    knows.pop()
    assert scheduler.get_num_new_matched_tokens(make_request("b", tokens), 0) == (None, False)
    assert scheduler.get_num_new_matched_tokens(make_request("b", [7] * 60), 0) == (0, False)
    knows.pop()
    assert scheduler.get_num_new_matched_tokens(make_request("b", tokens), 0) == (0, False)


def test_a_reset_forgets_what_is_stored(engine):
    one, tokens = engine(), list(range(60))
    one.prefill(make_request("a", tokens), list(range(1, 16)))
    assert one.match(make_request("b", tokens)) == 48
    assert one.scheduler.reset_cache() is True
    assert not files(engine)
    assert one.match(make_request("b", tokens)) == 0
    # What is computed afterwards is stored, and found when the worker has forgotten as well.
    assert one.prefill(make_request("b", tokens), list(range(1, 16))) == (0, set())
    assert one.scheduler._scheduler._resets_open == 0
    assert one.match(make_request("c", tokens)) == 48


def test_a_reset_removes_what_is_being_stored(engine):
    one, tokens = engine(), list(range(60))
    save, let_go, held = one.worker._worker._save, threading.Event(), threading.Event()

    def slow(task):
        held.set()
        assert let_go.wait(20)
        return save(task)

    one.worker._worker._save = slow
    one.step(output(new=[(make_request("a", tokens), list(range(1, 16)), 0, 60)]))  # not known: it asked for nothing
    one.match(make_request("a", tokens))
    one.step(output(new=[(make_request("a", tokens), list(range(1, 16)), 0, 60)]))
    assert held.wait(20)
    one.scheduler.reset_cache()
    one.scheduler.reset_cache()
    one.step(output())
    let_go.set()
    while one.scheduler._scheduler._resets_open:
        assert one.match(make_request("b", tokens)) == 0
        one.step(output())
        time.sleep(0.01)  # for the threads that reset
    assert not files(engine)
    assert one.scheduler._scheduler._resets_open == 0


def test_a_prefix_that_is_shared_and_one_that_is_here(engine):
    one = engine()
    tokens = list(range(60))
    one.prefill(make_request("a", tokens), list(range(1, 16)))
    other = make_request("b", tokens[:37] + [999] * 10)
    assert one.match(other) == 32
    # Blocks that the engine has itself are not loaded: here the first five, from the middle of a chunk on.
    two = engine()
    blocks = list(range(20, 32))
    two.compute(other, blocks, 0, 20)
    assert two.prefill(other, blocks, local=20) == (12, set())
    for layer in range(LAYERS):
        assert torch.equal(two.cells(layer, blocks[:8]), one.cells(layer, range(1, 9)))
    # A prompt that is stored as a whole leaves its last token, and with it the last block, to the model.
    assert two.match(make_request("c", tokens[:48])) == 44
    assert two.match(make_request("c", tokens[:48]), 44) == 0
    assert two.prefill(make_request("c", tokens[:48]), list(range(1, 13))) == (44, set())
    assert torch.equal(two.cells(0, range(1, 13)), one.cells(0, range(1, 13)))


def test_prompts_in_pieces_and_generated_tokens(engine):
    one, request = engine(), make_request("a", range(40))
    one.scheduler.update_state_after_alloc(request, None, 0)
    one.run(output(new=[(request, [7, 8], 0, 8)]), [(request, [7, 8], 0, 8)])
    assert not files(engine)
    blocks = [7, 8, 1, 2, 3]
    one.run(output(cached=[(request, [1, 2, 3], 8, 12)]), [(request, blocks, 8, 20)])
    assert len(files(engine)) == 1
    # Preempted, and resumed in other blocks.
    blocks = list(range(20, 30))
    one.run(output(cached=[(request, blocks, 0, 40)], resumed=["a"]), [(request, blocks, 0, 40)])
    assert len(files(engine)) == 2
    blocks += [30, 31]
    for position in range(40, 48):
        # Two more are guessed, and may be wrong.
        request.all_token_ids.append(position)
        new = {40: [30], 44: [31]}.get(position)
        one.run(output(cached=[(request, new, position, 3)]), [(request, blocks, position, position + 1)])
        assert len(files(engine)) == (3 if position == 47 else 2)
    two = engine()
    assert two.prefill(make_request("b", range(50)), list(range(1, 14))) == (48, set())
    assert torch.equal(two.cells(2, range(1, 13)), one.cells(2, blocks))


def test_what_makes_other_values_is_another_prompt(engine):
    one, tokens = engine(), list(range(40))
    image = Bag(identifier="cat", mm_position=Bag(offset=0, length=3))
    one.prefill(make_request("a", tokens, cache_salt="x", mm_features=[image]), list(range(1, 11)))
    found = {"cache_salt": "x", "mm_features": [image]}
    assert one.match(make_request("b", tokens, **found)) == 32
    for change in ({"cache_salt": "y"}, {"mm_features": []}, {"prompt_embeds": torch.ones(1)},
                   {"lora_request": Bag(lora_name="l", lora_path="/l")},
                   {"mm_features": [Bag(identifier="dog", mm_position=image.mm_position)]}):
        changed = make_request("b", tokens, **{**found, **change})
        assert one.match(changed) == 0
    request = make_request("b", tokens, **found)
    for options in ({"codec": "raw"}, {"chunk_tokens": 8}, {"dtype": torch.bfloat16}, {"ranks": 2},
                    {"model": {"quantization": "fp8"}}, {"model": {"hf_overrides": {"rope_theta": 1e6}}}):
        assert engine(**options).match(request) == 0


def test_the_order_of_overrides_is_no_difference(engine):
    one = engine(model={"hf_overrides": {"a": 1, "b": {"c": torch.float16, "d": 2}}})
    one.prefill(make_request("a", range(40)), list(range(1, 11)))
    two = engine(model={"hf_overrides": {"b": {"d": 2, "c": torch.float16}, "a": 1}})
    assert two.match(make_request("b", range(40))) == 32


def test_who_needs_the_output_of_all_tokens_gets_no_hit(engine):
    one = engine()
    one.prefill(make_request("a", range(40)), list(range(1, 11)))
    asking = make_request("b", range(40), skip_reading_prefix_cache=True)
    assert one.match(asking) == 0
    # What it computes is stored nevertheless.
    one.prefill(make_request("c", range(100, 140), skip_reading_prefix_cache=True), list(range(1, 11)))
    assert len(files(engine)) == 4


def test_every_rank_must_have_it(engine):
    first, second = engine(ranks=2), engine(ranks=2, rank=1)
    request = make_request("a", range(40))
    first.prefill(request, list(range(1, 11)))
    assert first.match(request) == 0
    second.prefill(request, list(range(1, 11)))
    assert len(files(engine)) == 4
    assert first.match(request) == 32


def test_what_a_rank_does_not_save_is_no_pair_for_what_others_save(engine, caplog):
    first, second = engine(ranks=2, timeout=1), engine(ranks=2, rank=1)
    for one in (first, second):
        one.prefill(make_request("a", range(40)), list(range(1, 11)))
    store = first.worker._worker._store
    store.remove(first.names(range(40), rank=1)[1])
    request = make_request("b", range(40))
    assert first.match(request) == 16
    first.allocate(request, [], 0)
    engine.server.stop()
    first.run(output(new=[(request, list(range(1, 11)), 0, 40)]))
    assert "not stored" in caplog.text
    assert not store.exists(first.names(range(40))[1])


def test_a_chunk_of_other_tokens_is_never_loaded(engine, caplog, others):
    options, reason = others
    one = engine(**options)
    one.prefill(make_request("a", range(40)), list(range(1, 11)))
    keys, others = one.names(range(40)), one.names(range(100, 140))
    store = one.worker._worker._store
    for key, other in zip(keys, others, strict=True):
        store.put(other, bytes(store.get(key, 1 << 30)))
    before = [cache.clone() for cache in one.caches.values()]
    request, blocks = make_request("b", range(100, 140)), list(range(20, 30))
    assert one.match(request) == 32
    one.stats()
    assert one.load(request, blocks, 32) == set(range(20, 28))
    assert all(torch.equal(*pair) for pair in zip(before, one.caches.values(), strict=True))
    assert one.stats() == {f"load_failures:{reason}": 2}
    assert "fingerprint" in caplog.text
    assert not any(store.exists(other) for other in others)


@pytest.mark.parametrize("damage", ["bit", "cut", "gone", "pipe"])
def test_a_damaged_chunk_is_told_and_goes_and_nothing_is_built_on_it(engine, damage, caplog):
    one, tokens = engine(), list(range(64))
    one.prefill(make_request("a", tokens[:36]), list(range(1, 10)))
    path = one.worker._worker._store._path(one.names(tokens)[1])
    data = bytearray(path.read_bytes())
    two = engine()
    request, blocks = make_request("b", tokens), list(range(1, 17))
    assert two.match(request) == 32
    if damage == "bit":
        data[len(data) // 2] ^= 8
    path.unlink()
    if damage in ("bit", "cut"):
        path.write_bytes(data if damage == "bit" else data[:-1])
    elif damage == "pipe":
        os.mkfifo(path)
    with caplog.at_level(logging.WARNING):
        assert two.load(request, blocks, 32) == {5, 6, 7, 8}
    assert two.worker.get_block_ids_with_load_errors() == set()
    assert not path.exists()
    assert len(files(engine)) == 1
    (reason,) = {name for name in two.stats() if name.startswith("load_failures")}
    # A bit in a frame is found when that is decoded, all else by the store.
    assert reason == f"load_failures:{'damaged' if damage == 'bit' else 'absent'}"
    assert not two.cells(0, [5, 6, 7, 8]).any()
    # It asks again, where vLLM has kept nothing of it, and computes; what is stored then is whole.
    assert two.match(request) == 0
    two.run(output(new=[(request, blocks, 16, 48)]), [(request, blocks, 16, 64)])
    assert len(files(engine)) == 4
    assert engine().prefill(make_request("c", [*tokens, 1]), [*blocks, 20]) == (64, set())


def test_without_a_daemon_requests_go_on(engine, caplog):
    one = engine(timeout=1)
    one.prefill(make_request("a", range(20)), list(range(1, 6)))
    engine.server.stop()
    one.stats()
    with caplog.at_level(logging.WARNING):
        assert one.prefill(make_request("b", range(50, 70)), list(range(1, 6))) == (0, set())
        assert "not stored" in caplog.text
        assert one.prefill(make_request("c", range(20)), list(range(1, 6))) == (16, {1, 2, 3, 4})
    assert len(files(engine)) == 1
    assert one.stats() == {"store_failures:daemon": 1, "load_failures:daemon": 1}


def test_a_store_that_hangs_costs_misses_and_keeps_no_memory(engine, monkeypatch):
    one, let_go = engine(timeout=0.4, server="in-process"), threading.Event()
    monkeypatch.setattr(one.worker._worker._store, "put_many", lambda items: let_go.wait(60) and [False for _ in items])
    for number in range(3):
        request, blocks = make_request(str(number), range(100 * number, 100 * number + 20)), list(range(1, 6))
        one.match(request)
        one.step(output(new=[(request, blocks, 0, 20)]), [(request, blocks, 0, 20)])
    one.settle()
    assert one.stats()["store_failures:stuck"] == 3
    assert not one.worker._worker._jobs._stores
    assert max(one.longest.values()) < 5  # no call has waited for it
    let_go.set()


def test_a_latent_is_no_pair(engine):
    one = engine(content=SIZE + 8)
    one.prefill(make_request("a", range(20)), list(range(1, 6)))
    two = engine(content=SIZE + 8)
    assert [kind.shape for kind in kinds_of(two)] == [(1, HEADS, CHUNK, SIZE + 8)] * LAYERS
    assert two.prefill(make_request("a", range(20)), list(range(9, 14))) == (16, set())
    assert torch.equal(one.cells(1, range(1, 5)), two.cells(1, range(9, 13)))


def test_keys_and_values_have_names(engine):
    pages = engine().worker._worker._caches
    names = [f"layer_{layer}_{side}" for layer in range(LAYERS) for side in ("key", "value")]
    assert list(pages.kinds[0]) == names
    taken = pages.take(0, PagedChunk(b"", 0, (1, 0, 3, 2)))
    shapes = [tuple(tensor.shape) for tensor in pages.gather(0, [taken])]
    assert shapes == [kind.shape for kind in pages.kinds[0].values()] == [(1, HEADS, CHUNK, SIZE)] * len(names)


@pytest.mark.parametrize(("content", "config", "turned"), [
    (2 * SIZE, {"rope_parameters": {"rope_theta": 10000.0}}, {}),
    (2 * SIZE, {"rope_theta": 10000.0, "partial_rotary_factor": 0.5, "head_dim": SIZE}, {"dims": SIZE // 2}),
    (96, {"rope_theta": 10000.0, "kv_lora_rank": 64, "qk_rope_head_dim": 32},
     {"pairs": "interleaved", "offset": 64})], ids=["half", "partly", "latent"])
def test_keys_are_turned_back_from_where_they_stand(engine, turned_keys, content, config, turned):
    """Chunks of one prompt, with and without the model's configuration."""
    tokens, chunk, sizes = list(range(128)), 64, {}
    keys = [turned_keys(HEADS, 128, SIZE if content == 2 * SIZE else content, seed=layer, **turned)
            for layer in range(LAYERS)]
    values = torch.randn(HEADS, 128, content - keys[0].shape[-1], generator=torch.Generator().manual_seed(9))

    def compute(caches):
        for layer, cache in enumerate(caches.values()):
            cells = torch.cat([keys[layer], values], dim=-1).to(cache.dtype)
            cache[1 : 1 + 128 // BLOCK] = cells.unflatten(1, (-1, BLOCK)).transpose(0, 1)

    for name, model in (("plain", {}), ("turned", {"hf_text_config": Bag(**config), "hf_config": None})):
        one = engine(model={"quantization": name, **model}, content=content, chunk_tokens=chunk,
                     codec="transform(step=0.5)")
        before = set(files(engine))
        one.compute = lambda *_, one=one: compute(one.caches)
        one.prefill(make_request("a", tokens), list(range(1, 1 + 128 // BLOCK)))
        stored = [path.read_bytes()[HEADER_SIZE:] for path in set(files(engine)) - before]
        specs = [[read_frame(bytes(frame)).codec for _, frame, _ in unpack(data, kinds_of(one))]
                 for data in stored]
        assert sorted(sum("start=64" in spec for spec in found) for found in specs) == [0, len(specs[0])]
        assert [sum("theta=10000" in spec for spec in found) for found in specs] == [LAYERS * (name == "turned")] * 2
        stored = [data for _, data in sorted(zip(specs, stored, strict=True), key=lambda pair: "start" in pair[0][0])]
        sizes[name] = [len(data) for data in stored]
        loaded = one.caches["model.layers.1.self_attn.attn"].clone()
        one.compute = lambda *_: None
        assert one.prefill(make_request("b", [*tokens, 1]), list(range(1, 34))) == (128, set())
        error = (one.caches["model.layers.1.self_attn.attn"].float() - loaded.float()).abs().max()
        assert 0 < error < 1
    assert all(turned < 0.95 * plain for turned, plain in zip(sizes["turned"], sizes["plain"], strict=True)), sizes


def test_an_artifact_is_of_keys_at_their_own_positions(daemon, bin_dir, turned_keys, tmp_path):
    """What it says of the means holds of a later chunk as well, but not of one that is taken for the first."""
    def caches(seed):
        """Of layers that keep their constants, whatever the tokens."""
        noise = torch.randn(LAYERS, 1, HEADS, 256, 2 * SIZE, generator=torch.Generator().manual_seed(seed))
        return {f"layer_{layer}_{side}": (0.1 * noise[layer, ..., part] + (
                    turned_keys(HEADS, 256, SIZE, seed=layer) if side == "key" else 0)).half().contiguous()
                for layer in range(LAYERS) for side, part in (("key", slice(SIZE)), ("value", slice(SIZE, None)))}

    artifacts = tmp_path / "artifacts"
    artifacts.mkdir()
    torch_files = pytest.importorskip("safetensors.torch")
    torch_files.save_file(caches(1), tmp_path / "a.safetensors", metadata={"rope_theta": "10000"})
    done = subprocess.run([bin_dir / "kv-compress", "-calibrate", "-input", tmp_path / "a.safetensors", "-output",
                           artifacts / "model.kvcal"], capture_output=True, text=True, check=True)
    server, cache = daemon("--artifacts", artifacts), caches(2)
    codec = f"transform(step=0.5,artifact={json.loads(done.stdout)['artifact']})"
    sizes = {}
    for name in ("told", "untold"):
        one = Engine(server, tmp_path / "kv", chunk_tokens=64, codec=codec, model={"quantization": name})
        if name == "untold":
            codecs = one.worker._worker._transfer._codecs
            save = codecs[0].compress
            codecs[0] = Bag(compress=lambda named, starts, save=save, **more: save(named, **more))
        for layer, pages in enumerate(one.caches.values()):
            pairs = torch.cat([cache[f"layer_{layer}_key"], cache[f"layer_{layer}_value"]], dim=-1)[0, :, :128]
            pages[1 : 1 + 128 // BLOCK] = pairs.unflatten(1, (-1, BLOCK)).transpose(0, 1)
        one.compute = lambda *_: None
        before = set((tmp_path / "kv").glob("*/*.kvc"))
        one.prefill(make_request("a", range(128)), list(range(1, 1 + 128 // BLOCK)))
        sizes[name] = sum(path.stat().st_size for path in set((tmp_path / "kv").glob("*/*.kvc")) - before)
        one.close()
    assert sizes["told"] < 0.95 * sizes["untold"], sizes


def test_the_option_comes_before_the_model(engine):
    model = {"hf_config": Bag(rope_theta=5e5)}
    assert engine(model=model).worker._codec.rotary == kvcompress.RotaryEmbedding(5e5)
    assert engine(model=model, rotary={"theta": 9, "dims": 8}).worker._codec.rotary == kvcompress.RotaryEmbedding(
        9, dims=8)
    assert engine(model={"hf_config": Bag(n_embd=768)}).worker._codec.rotary is None
    assert engine().worker._codec.rotary is None


def test_what_cannot_work_is_said_at_the_start(engine):
    with pytest.raises(kvcompress.InvalidArgument, match="complex128"):
        engine(dtype=torch.complex128)
    with pytest.raises(kvcompress.InvalidArgument, match="multiple of the block size, 4"):
        engine(chunk_tokens=6)
    with pytest.raises(kvcompress.InvalidArgument, match="unknown option 'codek'"):
        engine(codek="raw")
    with pytest.raises(kvcompress.InvalidArgument, match="capacity_bytes is '5', and not a positive whole number"):
        engine(capacity_bytes="5")
    for rotary in ({"base": 1}, {"theta": 0}, {"theta": 9, "start": 4}, {"theta": 9, "pairs": "both"}, 10000.0):
        with pytest.raises(kvcompress.InvalidArgument, match=r"rotary|pairs"):
            engine(rotary=rotary)
    with pytest.raises(kvcompress.FailedPrecondition, match="hf_overrides is a function"):
        engine(model={"hf_overrides": lambda config: config})
    local = ChunkedLocalAttentionSpec(block_size=BLOCK, num_kv_heads=HEADS, head_size=SIZE, dtype=torch.float16,
                                      attention_chunk_size=8)
    with pytest.raises(kvcompress.FailedPrecondition, match="ChunkedLocalAttentionSpec are not supported"):
        engine(spec=local)
    one = engine()
    with pytest.raises(kvcompress.FailedPrecondition, match=r"\[9, 2, 4, 64\]"):
        one.worker.register_kv_caches(
            dict.fromkeys(one.caches, torch.zeros(9, HEADS, BLOCK, 2 * SIZE, dtype=torch.float16)))
    with pytest.raises(kvcompress.FailedPrecondition, match="different layers"):
        one.worker.register_kv_caches({**one.caches, "model.layers.7.attn": one.cells(0, [0])})
    with pytest.raises(kvcompress.FailedPrecondition, match="SCHEDULER"):
        one.scheduler.wait_for_save()


@pytest.mark.skipif("vllm" not in importlib.metadata.packages_distributions(), reason="vLLM is not installed")
def test_vllm_loads_it_by_its_configuration(tmp_path):
    from vllm.config.kv_transfer import KVTransferConfig
    from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory

    config = KVTransferConfig(
        kv_connector="KvCompressConnector", kv_connector_module_path="kvcompress.adapters.vllm", kv_role="kv_both",
        kv_load_failure_policy="recompute", kv_connector_extra_config={"path": str(tmp_path)})
    assert KVConnectorFactory.get_connector_class(config) is KvCompressConnector
    assert KVConnectorFactory.supports_hma_config(config)


@pytest.mark.timeout(1600)
def test_under_vllms_own_scheduler():
    """These tests, and those of vllm_steps.py, with the classes of an unpacked wheel in place of stand-ins."""
    pass_with_vllms_classes("vllm_steps.py", "test_vllm.py", timeout=1500)
