"""The adapter of transformers with the library itself, whatever its version: tiny models of random weights, on a real
daemon."""

import concurrent.futures
import inspect
import pickle

import kvcompress
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
from kvcompress.adapters._codec import Codec  # noqa: E402
from kvcompress.adapters.transformers import FrameCache, compress_cache, restore_cache  # noqa: E402
from transformers import (  # noqa: E402
    DynamicCache,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    StaticCache,
    cache_utils,
)

LAYERED = hasattr(cache_utils, "DynamicLayer")
TAKES_LAYERS = "layer_class_to_replicate" in inspect.signature(cache_utils.Cache.__init__).parameters
layered = pytest.mark.skipif(not TAKES_LAYERS, reason="these transformers take no layers of others in caches")
SIZES = {"vocab_size": 101, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
         "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
         "bos_token_id": 1, "eos_token_id": None, "pad_token_id": 0}
WINDOW = 24


def llama(dtype=torch.float32):
    torch.manual_seed(7)
    return LlamaForCausalLM(LlamaConfig(**SIZES)).to(dtype).eval()


def mistral():
    torch.manual_seed(8)
    return MistralForCausalLM(MistralConfig(**SIZES, sliding_window=WINDOW)).eval()


def prompt(batch=2, length=90):
    return torch.randint(2, 100, (batch, length), generator=torch.Generator().manual_seed(3))


def prefilled(model, tokens, cache):
    with torch.no_grad():
        return model(tokens, past_key_values=cache, use_cache=True).past_key_values


def tensors(cache):
    if LAYERED:
        return [(layer.keys, layer.values) for layer in cache.layers]
    return list(zip(cache.key_cache, cache.value_cache, strict=True))


def no_tokens(cache):
    """Keys and values of no token, for each layer, by which it tells what it holds."""
    return [(layer.keys[..., :0, :], layer.values[..., :0, :]) for layer in cache.layers]


def generate(model, tokens, cache, count=40, **options):
    with torch.no_grad():
        mask = torch.ones_like(tokens)
        return model.generate(tokens, attention_mask=mask, past_key_values=cache, max_new_tokens=count,
                              do_sample=False, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_lossless_cache_comes_back_the_same(client, dtype):
    cache = prefilled(llama(dtype), prompt(), DynamicCache())
    before = [(key.clone(), value.clone()) for key, value in tensors(cache)]
    compressed = pickle.loads(pickle.dumps(compress_cache(client, cache, codec="lossless")))
    assert [frame.name for frame in compressed.frames] == [
        f"layer_{index}_{side}" for index in range(3) for side in ("key", "value")]
    assert compressed.frames[0].shape == (2, 2, 90, 16)
    assert compressed.tensor_bytes == sum(key.nbytes + value.nbytes for key, value in before)
    assert compressed.ratio > 1.05
    restored = restore_cache(client, compressed)
    assert isinstance(restored, DynamicCache)
    assert restored.get_seq_length() == 90
    for old, still, new in zip(before, tensors(cache), tensors(restored), strict=True):
        for one, two, three in zip(old, still, new, strict=True):
            assert three.dtype == dtype
            assert torch.equal(one, two)
            assert torch.equal(one, three)


def test_a_turn_goes_on_from_a_restored_cache(client):
    model, tokens = llama(), prompt()
    expected = generate(model, tokens, prefilled(model, tokens[:, :-1], DynamicCache()))
    compressed = compress_cache(client, prefilled(model, tokens[:, :-1], DynamicCache()), codec="lossless")
    assert torch.equal(generate(model, tokens, restore_cache(client, compressed)), expected)


def test_a_profile_chooses_by_layer(client):
    profile = {"version": 1, "default": "int4(group=32)", "rules": [{"layers": [0, 0], "codec": "raw"}]}
    cache = prefilled(llama(), prompt(), DynamicCache())
    try:
        compressed = compress_cache(client, cache, profile=profile)
    except kvcompress.Unimplemented as error:
        pytest.skip(str(error))
    assert [layer.key.codec.split("(")[0] for layer in compressed.layers] == ["raw", "fallback|int4", "fallback|int4"]
    first, *others = tensors(restore_cache(client, compressed))
    assert torch.equal(first[0], tensors(cache)[0][0])
    assert not torch.equal(others[0][0], tensors(cache)[1][0])
    with pytest.raises(kvcompress.InvalidArgument, match="exclude"):
        compress_cache(client, cache, codec="raw", profile=profile)


def test_damage_is_found(client):
    compressed = compress_cache(client, prefilled(llama(), prompt(), DynamicCache()), codec="lossless")
    data = compressed.layers[1].key.data
    object.__setattr__(compressed.layers[1].key, "data", data[:200] + bytes([data[200] ^ 1]) + data[201:])
    with pytest.raises(kvcompress.DataLoss):
        restore_cache(client, compressed)


def test_an_empty_cache(client):
    compressed = compress_cache(client, DynamicCache())
    assert (compressed.frames, compressed.ratio) == ([], 1.0)
    assert restore_cache(client, compressed).get_seq_length() == 0


@layered
def test_sliding_layers_stay_what_they_are(client):
    model, tokens = mistral(), prompt()
    config = model.config
    compressed = compress_cache(client, prefilled(model, tokens[:, :-1], DynamicCache(config=config)), codec="lossless")
    assert compressed.layers[0].sliding_window == WINDOW
    assert compressed.frames[0].shape[2] == WINDOW - 1
    restored = restore_cache(client, compressed)
    assert restored.get_seq_length() == 89
    expected = generate(model, tokens, prefilled(model, tokens[:, :-1], DynamicCache(config=config)))
    assert torch.equal(generate(model, tokens, restored), expected)


def test_keys_are_turned_back(client, turned_keys):
    """Batches of two, whose keys have constants and turn."""
    cache = DynamicCache()
    for layer in range(2):
        keys = torch.stack([turned_keys(2, 96, 32, seed=seed) for seed in (layer, layer + 10)])
        cache.update(keys.half(), torch.randn(keys.shape, generator=torch.Generator().manual_seed(layer)).half(), layer)
    rotary = kvcompress.RotaryEmbedding.of_config(LlamaConfig(**SIZES))
    plain, turned = (compress_cache(client, cache, codec="transform(step=0.5)", rotary=found)
                     for found in (None, rotary))
    assert [layer.key.codec for layer in turned.layers] == ["fallback|transform(step=0.5,theta=10000)"] * 2
    assert [layer.value.codec for layer in turned.layers] == ["fallback|transform(step=0.5)"] * 2
    assert all(two.key.frame_bytes < 0.85 * one.key.frame_bytes for one, two in zip(
        plain.layers, turned.layers, strict=True))
    for before, after in zip(tensors(cache), tensors(restore_cache(client, turned)), strict=True):
        assert 0 < (before[0].float() - after[0].float()).abs().max() < 1


@layered
def test_sliding_layers_tell_where_they_begin(client):
    model = mistral()
    cache = prefilled(model, prompt()[:, :-1], DynamicCache(config=model.config))
    found = compress_cache(client, cache, codec="transform(step=0.5)")
    assert found.frames[0].codec == found.frames[1].codec == f"fallback|transform(step=0.5,start={89 - WINDOW + 1})"


@layered
def test_other_caches_are_refused(client):
    with pytest.raises(kvcompress.InvalidArgument, match="StaticCache"):
        compress_cache(client, StaticCache(config=LlamaConfig(**SIZES), max_cache_len=64))
    odd = DynamicCache()
    odd.layers.append(type("OddLayer", (cache_utils.DynamicLayer,), {})())
    with pytest.raises(kvcompress.InvalidArgument, match="layer 0 is a OddLayer"):
        compress_cache(client, odd)


class TestFrameCache:
    @pytest.mark.parametrize("with_config", [False, True])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    def test_generation_is_that_of_a_dynamic_cache(self, client, dtype, with_config):
        model, tokens = llama(dtype), prompt()
        plain = DynamicCache()
        expected = generate(model, tokens, plain)
        config = model.config if with_config else None
        cache = FrameCache(client, codec="lossless", residual_length=8, config=config)
        assert torch.equal(generate(model, tokens, cache), expected)
        assert cache.get_seq_length() == plain.get_seq_length() == 129
        full = sum(key.nbytes + value.nbytes for key, value in tensors(plain))
        assert cache.held_bytes < 0.97 * full
        assert len(cache.layers[0].store.segments) > 3

    def test_memory_is_that_of_the_codec(self, client):
        model, tokens = llama(torch.float16), prompt(length=200)
        cache = prefilled(model, tokens, FrameCache(client, codec="int4(group=32)", residual_length=8))
        full = sum(key.nbytes + value.nbytes for key, value in tensors(prefilled(model, tokens, DynamicCache())))
        assert cache.held_bytes < full / 2.5

    def test_what_a_lossy_codec_gives_is_near(self, client):
        model, tokens = llama(), prompt()
        with torch.no_grad():
            rows = [model(tokens[:, -1:], past_key_values=prefilled(model, tokens[:, :-1], cache)).logits
                    for cache in (DynamicCache(), FrameCache(client, codec="int8(group=32)", residual_length=8))]
        assert not torch.equal(*rows)
        assert torch.allclose(*rows, atol=0.02)

    def test_beams_and_sliding_layers(self, client):
        model, tokens = llama(), prompt(length=40)
        expected = generate(model, tokens, DynamicCache(), num_beams=3, count=20)
        cache = FrameCache(client, codec="lossless", residual_length=4)
        assert torch.equal(generate(model, tokens, cache, num_beams=3, count=20), expected)
        model = mistral()
        cache = FrameCache(client, codec="lossless", residual_length=4, config=model.config)
        expected = generate(model, tokens, DynamicCache(config=model.config) if TAKES_LAYERS else DynamicCache())
        assert torch.equal(generate(model, tokens, cache), expected)

    @pytest.mark.parametrize("removed", [3, 11, 50, 88])
    def test_cropping_and_rows_are_those_of_a_dynamic_cache(self, client, removed):
        model, tokens = llama(), prompt()
        after = []
        for cache in (DynamicCache(), FrameCache(client, codec="lossless", residual_length=8)):
            prefilled(model, tokens[:, :70], cache)
            prefilled(model, tokens[:, 70:], cache)
            cache.crop(-removed)
            cache.batch_select_indices(torch.tensor([1, 0, 1]))
            cache.batch_repeat_interleave(2)
            assert cache.get_seq_length() == 90 - removed
            with torch.no_grad():
                after.append(model(tokens[:1, :5].repeat(6, 1), past_key_values=cache).logits)
        assert torch.equal(*after)

    def test_keys_are_turned_back_from_where_they_stand(self, client, turned_keys):
        keys, values = turned_keys(2, 300, 16)[None], torch.zeros(1, 2, 300, 16)
        rotary = kvcompress.RotaryEmbedding(5.0)
        sizes = []
        for options in ({}, {"config": LlamaConfig(**SIZES)}, {"config": LlamaConfig(**SIZES), "rotary": rotary}):
            cache = FrameCache(client, codec="transform(step=0.5)", residual_length=20, **options)
            for begin in (0, 100, 200):
                part = slice(begin, begin + 100)
                kept, _ = cache.update(keys[..., part, :], values[..., part, :], 0)
            assert 0 < (kept - keys).abs().max() < 1
            frames = [segment.frames[0] for segment in cache.layers[0].store.segments]
            sizes.append(sum(map(len, frames)))
            theta = {"rotary": ",theta=5", "config": ",theta=10000", "": ""}[list(options)[-1] if options else ""]
            assert [frame.codec for frame in frames] == [
                f"fallback|transform(step=0.5{theta}{start})" for start in ("", ",start=80", ",start=180")]
        assert sizes[1] < 0.9 * min(sizes[0], sizes[2])

    def test_a_reset_cache_is_empty(self, client):
        cache = prefilled(llama(), prompt(), FrameCache(client, codec="raw", residual_length=8))
        cache.reset()
        assert (cache.get_seq_length(), cache.held_bytes) == (0, 0)
        assert prefilled(llama(), prompt(length=30), cache).get_seq_length() == 30

    @pytest.mark.parametrize("failing", ["compress", "decompress"])
    @pytest.mark.parametrize(("layer", "patched"), [(0, False), (2, False), (1, True)])
    def test_after_an_error_crop_brings_all_layers_back(self, client, monkeypatch, failing, layer, patched):
        model, tokens = llama(), prompt()
        cache = FrameCache(client, codec="lossless", residual_length=8, patch_attention=patched)
        prefilled(model, tokens[:, :70], cache)
        before = [cache.update(*pair, index) for index, pair in enumerate(no_tokens(cache))]
        work, calls = getattr(Codec, failing), []

        def fail_once(*args):
            calls.append(args)
            if len(calls) == layer + 1:
                raise kvcompress.DeadlineExceeded("late")
            return work(*args)

        monkeypatch.setattr(Codec, failing, fail_once)
        with pytest.raises(kvcompress.DeadlineExceeded, match="late"):
            prefilled(model, tokens[:, 70:], cache)
        assert [held.get_seq_length() for held in cache.layers] == [90] * layer + [70] * (3 - layer)
        cache.crop(70)
        assert cache.get_seq_length() == 70
        for index, (pair, was) in enumerate(zip(no_tokens(cache), before, strict=True)):
            assert all(torch.equal(*sides) for sides in zip(cache.update(*pair, index), was, strict=True))
        prefilled(model, tokens[:, 70:], cache)
        other = prefilled(model, tokens, DynamicCache())
        for index, (pair, was) in enumerate(zip(no_tokens(cache), tensors(other), strict=True)):
            assert all(torch.allclose(*sides, atol=1e-5) for sides in zip(cache.update(*pair, index), was, strict=True))

    def test_threads_with_a_cache_each_share_a_client(self, client):
        model, tokens = llama(), prompt(batch=1)
        rows = [tokens.roll(shift, dims=1) for shift in range(6)]
        expected = [generate(model, row, DynamicCache()) for row in rows]

        def generated(row):
            return generate(model, row, FrameCache(client, codec="lossless", residual_length=4))

        with concurrent.futures.ThreadPoolExecutor(len(rows)) as pool:
            for found, wanted in zip(pool.map(generated, rows), expected, strict=True):
                assert torch.equal(found, wanted)

    @layered
    def test_latents_of_attention_are_held_as_they_are(self, client):
        """Of MLA, whose keys in a cache are latents that do not turn, or heads of which a part turns."""
        from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

        torch.manual_seed(9)
        model = DeepseekV3ForCausalLM(DeepseekV3Config(
            **{**SIZES, "num_key_value_heads": 4}, moe_intermediate_size=32, kv_lora_rank=32, q_lora_rank=None,
            qk_rope_head_dim=8, qk_nope_head_dim=16, v_head_dim=16, n_routed_experts=4, num_experts_per_tok=2,
            n_group=1, topk_group=1, first_k_dense_replace=3)).eval()
        tokens = prompt(length=40)
        expected = generate(model, tokens, DynamicCache(), count=20)
        for codec in ("lossless", "transform(step=0.000001)"):
            cache = FrameCache(client, codec=codec, residual_length=4, config=model.config)
            assert torch.equal(generate(model, tokens, cache, count=20), expected)
            (first, *_), *_ = (segment.frames for segment in cache.layers[0].store.segments)
            assert "theta" not in first.codec
            assert cache.held_bytes > 0

    def test_a_daemon_that_is_gone_is_an_error_of_generate(self, daemon, connect):
        server = daemon()
        client = connect(server, retry=kvcompress.NO_RETRY)
        cache = prefilled(llama(), prompt(), FrameCache(client, codec="raw", residual_length=8))
        server.stop()
        with pytest.raises(kvcompress.Unavailable):
            prefilled(llama(), prompt(length=1), cache)
        with pytest.raises(kvcompress.InvalidArgument, match="residual_length"):
            FrameCache(client, residual_length=0)
