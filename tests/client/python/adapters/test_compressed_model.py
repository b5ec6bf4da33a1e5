"""The model that runs on a compressed cache, with the library itself, whatever its version: tiny models of random
weights, and codecs on a real daemon."""

import gc
import itertools

import kvcompress
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
from kvcompress.adapters._codec import Codec  # noqa: E402
from kvcompress.adapters.compressed_model import FAMILIES, CompressedKVModelWrapper  # noqa: E402
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache  # noqa: E402

VERSION = tuple(map(int, transformers.__version__.split(".")[:2]))
LAYERS, HEADS, DIM, WINDOW = 3, 2, 16, 24
SIZES = {"vocab_size": 101, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": LAYERS, "head_dim": DIM,
         "num_attention_heads": 4, "num_key_value_heads": HEADS, "max_position_embeddings": 512, "use_cache": True,
         "bos_token_id": 1, "eos_token_id": 100, "pad_token_id": 0, "initializer_range": 0.1}
GEMMA = {**SIZES, "sliding_window": WINDOW, "query_pre_attn_scalar": DIM}
OF_FAMILY = {
    "gpt2": {"vocab_size": 101, "n_embd": 32, "n_layer": LAYERS, "n_head": HEADS, "n_positions": 512,
             "bos_token_id": 1, "eos_token_id": 100, "pad_token_id": 0, "initializer_range": 0.1},
    "mistral": {**SIZES, "sliding_window": WINDOW},
    "gemma2": GEMMA,
    "gemma3_text": {**GEMMA, "sliding_window_pattern": 2} if VERSION < (4, 53) else {
        **GEMMA, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
}
INSTALLED = [family for family in FAMILIES if family != "qwen3" or VERSION >= (4, 51)]


def made(family, dtype=torch.float32):
    torch.manual_seed(5)
    config = AutoConfig.for_model(family, **OF_FAMILY.get(family, SIZES))
    return AutoModelForCausalLM.from_config(config).to(dtype).eval()


def prompt(batch=2, length=60):
    return torch.randint(2, 100, (batch, length), generator=torch.Generator().manual_seed(3))


def padded(tokens):
    """The first row begins later."""
    mask = torch.ones_like(tokens)
    mask[0, :7] = 0
    return mask


def generate(model, tokens, count=30, **options):
    torch.manual_seed(0)
    with torch.no_grad():
        return model.generate(tokens, **{"max_new_tokens": count, "do_sample": False, "eos_token_id": 100,
                                         "attention_mask": torch.ones_like(tokens), **options})


def logits(model, tokens, **options):
    with torch.no_grad():
        return model(tokens, **{"attention_mask": torch.ones_like(tokens), **options}).logits


class Bases:
    """Latents by random orthonormal bases, of another rank for each head and for keys and values; `seen` counts the
    tokens of each head that were compressed."""

    def __init__(self, ranks=None, scale=1.0, disabled=()):
        self.ranks, self.scale, self.disabled, self.seen = ranks, scale, set(disabled), {}

    def rank(self, layer, head, of_values):
        return DIM if self.ranks is None else self.ranks[(2 * layer + head + of_values) % len(self.ranks)]

    def basis(self, layer, head, of_values):
        generator = torch.Generator().manual_seed(100 * layer + 10 * head + of_values)
        full = torch.linalg.qr(torch.randn(DIM, DIM, generator=generator))[0]
        return full[:, :self.rank(layer, head, of_values)] * self.scale

    def is_enabled(self, layer, head):
        return (layer, head) not in self.disabled

    def compress(self, layer, head, keys, values, *, positions):
        self.seen[layer, head] = self.seen.get((layer, head), 0) + keys.shape[1]
        return keys @ self.basis(layer, head, False), values @ self.basis(layer, head, True)

    def decompress(self, layer, head, keys, values, *, positions):
        return keys @ self.basis(layer, head, False).T, values @ self.basis(layer, head, True).T


def held_by(cache):
    """Bytes of all memory of tensors and frames that the cache's layers keep alive."""
    found, todo, size = set(), list(cache.layers), 0
    while todo:
        at = todo.pop()
        if id(at) in found or isinstance(at, (type, Bases)) or type(at).__module__.startswith("kvcompress._c"):
            continue
        found.add(id(at))
        if isinstance(at, torch.Tensor):
            storage = at.untyped_storage()
            if storage.data_ptr() not in found:
                size += storage.nbytes()
            found.add(storage.data_ptr())
        elif isinstance(at, kvcompress.Frame):
            size += len(at.data)
        elif not callable(at):
            todo.extend(gc.get_referents(at))
    return size


@pytest.mark.parametrize("family", INSTALLED)
class TestFamilies:
    def test_at_full_rank_all_is_as_it_was(self, family):
        model, tokens = made(family), prompt()
        wrapper, mask = CompressedKVModelWrapper(model, Bases(disabled=[(1, 1)])), padded(tokens)
        difference = logits(wrapper, tokens, attention_mask=mask) - logits(model, tokens, attention_mask=mask)
        assert difference[:, 7:].abs().max() < 1e-4
        for options in ({}, {"num_beams": 3}, {"do_sample": True, "num_return_sequences": 2}):
            expected = generate(model, tokens, attention_mask=mask, **options)
            assert torch.equal(generate(wrapper, tokens, attention_mask=mask, **options), expected)
        assert wrapper.memory_stats()["tokens"] == 89

    def test_logits_change_when_nothing_is_kept(self, family):
        model, tokens = made(family), prompt()
        expected = logits(model, tokens)
        nothing = Bases(scale=0.0)
        assert (logits(CompressedKVModelWrapper(model, nothing), tokens) - expected).abs().max() > 0.1
        # Without patch_attention a forward sees its own tokens as they are, and those before as they are restored.
        wrapper = CompressedKVModelWrapper(model, nothing, patch_attention=False)
        cache = wrapper.make_cache()
        first = logits(wrapper, tokens[:, :59], past_key_values=cache)
        last = logits(wrapper, tokens[:, 59:], past_key_values=cache, attention_mask=torch.ones_like(tokens))
        assert torch.allclose(first, expected[:, :59], atol=1e-4)
        assert (last[:, 0] - expected[:, 59]).abs().max() > 0.1

    def test_one_forward_is_step_by_step(self, family):
        wrapper, tokens = CompressedKVModelWrapper(made(family), Bases([3, 7, 12], disabled=[(2, 0)])), prompt()
        whole = logits(wrapper, tokens)
        # Before transformers 4.53 queries of sliding layers see no more than the window of the last of them.
        ends = [50, 51, 52, 60] if VERSION >= (4, 53) else [50, *range(51, 61)]
        cache, parts = wrapper.make_cache(), []
        for begin, end in itertools.pairwise([0, *ends]):
            mask = torch.ones_like(tokens[:, :end])
            parts.append(logits(wrapper, tokens[:, begin:end], past_key_values=cache, attention_mask=mask))
        assert torch.allclose(torch.cat(parts, dim=1), whole, atol=1e-4)

    def test_generation_is_teacher_forcing(self, family):
        wrapper = CompressedKVModelWrapper(made(family), Bases([3, 7, 12]))
        tokens = generate(wrapper, prompt(1))
        assert torch.equal(logits(wrapper, tokens)[:, 59:-1].argmax(-1), tokens[:, 60:])


class Restored(DynamicCache):
    """One forward's cache, which gives what a compressor restores."""

    def __init__(self, compressor):
        super().__init__()
        self.compressor = compressor

    def update(self, keys, values, layer, *_, **__):
        pairs = [(keys[:, head], values[:, head]) for head in range(keys.shape[1])]
        for head, pair in enumerate(pairs):
            if self.compressor.is_enabled(layer, head):
                latents = self.compressor.compress(layer, head, *pair, positions=None)
                pairs[head] = self.compressor.decompress(layer, head, *latents, positions=None)
        return tuple(torch.stack([pair[side] for pair in pairs], dim=1) for side in (0, 1))


class TestLatents:
    def test_attention_sees_what_is_restored(self):
        model, tokens, compressor = made("llama"), prompt(), Bases([3, 7, 12], disabled=[(0, 1)])
        expected = logits(model, tokens, past_key_values=Restored(compressor))
        assert torch.allclose(logits(CompressedKVModelWrapper(model, compressor), tokens), expected, atol=1e-5)

    def test_each_token_is_compressed_once(self):
        compressor = Bases([4], disabled=[(0, 0)])
        wrapper = CompressedKVModelWrapper(made("llama"), compressor)
        assert generate(wrapper, prompt(1)).shape == (1, 90)
        assert compressor.seen == {(layer, head): 89 for layer in range(3) for head in range(2) if layer + head}

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    def test_memory_is_that_of_the_latents(self, dtype):
        compressor = Bases([2, 5], disabled=[(1, 0)])
        as_float = compressor.compress
        compressor.compress = lambda layer, head, *pair, positions: as_float(
            layer, head, *(side.float() for side in pair), positions=positions)
        wrapper = CompressedKVModelWrapper(made("llama", dtype), compressor)
        cache = wrapper.make_cache()
        logits(wrapper, prompt(), past_key_values=cache)
        logits(wrapper, prompt()[:, :1], past_key_values=cache, attention_mask=torch.ones(2, 61))
        # Five heads hold 2 + 5 values of float32 a token, and one is as it was.
        assert cache.held_bytes == 2 * 61 * (5 * 7 * 4 + 2 * DIM * dtype.itemsize) == held_by(cache)
        assert wrapper.memory_stats() == cache.memory_stats()
        original = 2 * 61 * LAYERS * HEADS * 2 * DIM * dtype.itemsize
        assert wrapper.memory_stats() == {
            "tokens": 61, "original_bytes": original, "held_bytes": cache.held_bytes, "raw_bytes": 0,
            "compression_ratio": original / cache.held_bytes,
            "memory_savings_pct": pytest.approx(100 * (1 - cache.held_bytes / original)),
            "bytes_per_token_original": original / 61, "bytes_per_token_compressed": cache.held_bytes / 61}

    @pytest.mark.parametrize("kind", ["PCACompressor", "KVSpliceCompressor"])
    def test_positions_are_those_of_rows_that_are_padded(self, kind):
        """With compressors that turn keys back, of which a shift of positions would leave little."""
        low_rank = pytest.importorskip("kvcompress.calibration.low_rank")
        model, tokens = made("llama"), prompt(3)
        heads = {f"{layer}/{head}": {"enabled": True, "rank": 3 + head} for layer in range(3) for head in range(2)}
        compressor = getattr(low_rank, kind)({"d_head": DIM, "per_layer_head": heads},
                                             rotary=kvcompress.RotaryEmbedding(10000.0))
        cache = DynamicCache()
        logits(model, tokens, past_key_values=cache)
        compressor.start_calibration()
        for layer in range(3):
            pair = (cache.layers[layer].keys, cache.layers[layer].values) if hasattr(cache, "layers") else (
                cache.key_cache[layer], cache.value_cache[layer])
            for head in range(2):
                compressor.observe_kv(layer, head, *(side[:, head] for side in pair))
        compressor.end_calibration()
        wrapper = CompressedKVModelWrapper(model, compressor)
        options = {"return_dict_in_generate": True, "output_logits": True, "count": 20, "min_new_tokens": 20}
        batch, mask = tokens[:2].clone(), torch.ones_like(tokens[:2])
        batch[0] = torch.cat([torch.zeros(25, dtype=torch.long), tokens[0, :35]])
        mask[0, :25] = 0
        alone = generate(wrapper, tokens[:1, :35], **options)
        together = generate(wrapper, batch, attention_mask=mask, **options)
        assert torch.equal(together.sequences[0, 60:], alone.sequences[0, 35:])
        for one, two in zip(alone.logits, together.logits, strict=True):
            assert torch.allclose(one[0], two[0], atol=1e-3)

    def test_rows_and_cropping(self):
        wrapper, tokens = CompressedKVModelWrapper(made("llama"), Bases([3, 7])), prompt()
        cache = wrapper.make_cache()
        logits(wrapper, tokens, past_key_values=cache)
        cache.crop(-20)
        cache.batch_select_indices(torch.tensor([1, 1]))
        cache.batch_repeat_interleave(2)
        assert cache.held_bytes == held_by(cache)
        mask = torch.ones(4, 45)
        after = logits(wrapper, tokens[:1, 40:45].repeat(4, 1), past_key_values=cache, attention_mask=mask)
        other = torch.cat([tokens[1, :40], tokens[0, 40:45]])[None]
        assert torch.allclose(after, logits(wrapper, other)[:, 40:].expand(4, -1, -1), atol=1e-4)
        cache.reset()
        assert (cache.get_seq_length(), cache.held_bytes) == (0, 0)
        assert torch.equal(logits(wrapper, tokens, past_key_values=cache), logits(wrapper, tokens))


@pytest.mark.skipif(VERSION < (4, 56), reason="these transformers take no layers of others in caches")
class TestSlidingLayers:
    @pytest.mark.parametrize("family", ["mistral", "gemma2", "gemma3_text"])
    def test_they_hold_their_windows(self, family):
        wrapper = CompressedKVModelWrapper(made(family), Bases([4]))
        cache = wrapper.make_cache()
        logits(wrapper, prompt(1), past_key_values=cache)
        held = [layer.store.tokens for layer in cache.layers]
        expected = {"mistral": [23, 23, 23], "gemma2": [23, 60, 23], "gemma3_text": [23, 60, 23]}
        assert held == expected[family]
        assert cache.get_seq_length() == 60
        assert cache.held_bytes == held_by(cache)

    def test_of_frames_those_outside_are_dropped(self, client):
        wrapper = CompressedKVModelWrapper(made("mistral"), "lossless", client=client, residual_length=4, page_length=4)
        cache, plain, model = wrapper.make_cache(), DynamicCache(config=wrapper.config), wrapper.model
        for begin in range(0, 60, 6):
            part, mask = prompt(1)[:, begin : begin + 6], torch.ones(1, begin + 6)
            seen = logits(wrapper, part, past_key_values=cache, attention_mask=mask)
            assert torch.allclose(seen, logits(model, part, past_key_values=plain, attention_mask=mask), atol=1e-5)
        assert cache.layers[0].tensor_bytes < 36 * HEADS * 2 * DIM * 4
        assert cache.held_bytes == held_by(cache)

    def test_cropping_needs_the_past(self):
        wrapper = CompressedKVModelWrapper(made("mistral"), Bases([4]))
        cache = wrapper.make_cache()
        logits(wrapper, prompt(1), past_key_values=cache)
        with pytest.raises(kvcompress.InvalidArgument, match="records the past"):
            cache.crop(-1)


class Pages(DynamicCache):
    """Keys and values as a daemon restores them: all tokens but the last `residual`, as soon as `page` more stand
    there, in a frame; of one step all that it makes full."""

    def __init__(self, client, codec, residual, page, rotary):
        super().__init__()
        self.client, self.codec, self.residual, self.page, self.rotary = client, codec, residual, page, rotary
        self.all, self.ends = {}, {}

    def update(self, keys, values, layer, *_, **__):
        old = self.all.get(layer, (keys[..., :0, :], values[..., :0, :]))
        self.all[layer] = tuple(torch.cat(pair, dim=-2) for pair in zip(old, (keys, values), strict=True))
        ends = self.ends.setdefault(layer, [0])
        length = self.all[layer][0].shape[-2]
        if length - ends[-1] > self.residual + self.page:
            ends.append(length - self.residual)
        return tuple(torch.cat([*(self.restored(layer, side, *span) for span in itertools.pairwise(ends)),
                                self.all[layer][side][..., ends[-1]:, :]], dim=-2) for side in (0, 1))

    def restored(self, layer, side, begin, end):
        tensor = self.all[layer][side][..., begin:end, :]
        rotary = kvcompress.RotaryEmbedding(self.rotary, start=begin)
        frame = self.client.compress(tensor, self.codec, name=f"layer_{layer}_{('key', 'value')[side]}", rotary=rotary)
        return self.client.decompress(frame)

    def get_seq_length(self, *_, **__):
        return self.all[0][0].shape[-2] if self.all else 0

    def get_mask_sizes(self, query_length, layer):
        new = query_length if isinstance(query_length, int) else query_length.shape[0]
        return (self.all[layer][0].shape[-2] if layer in self.all else 0) + new, 0


class TestFrames:
    def test_256_tokens_on_kv3_are_teacher_forcing(self, client):
        model, tokens = made("llama"), prompt(1)
        wrapper = CompressedKVModelWrapper(model, "kv3", client=client, residual_length=16, page_length=32)
        cache = wrapper.make_cache()
        made_tokens = generate(wrapper, tokens, count=256, past_key_values=cache, min_new_tokens=256)
        assert made_tokens.shape == (1, 316)
        frames = [segment.frames[0] for segment in cache.layers[2].store.segments]
        assert [frame.codec.partition("start=")[2].rstrip(")") for frame in frames] == [
            "", *map(str, range(44, 275, 33))]
        assert all("theta=10000" in frame.codec for frame in frames)
        # The same tokens, one after the other, on the model itself, with what other calls restore.
        others = Pages(client, "kv3", 16, 32, 10000.0)
        again = [logits(model, tokens, past_key_values=others)[:, -1]]
        for at in range(60, 315):
            mask = torch.ones_like(made_tokens[:, : at + 1])
            again.append(logits(model, made_tokens[:, at : at + 1], past_key_values=others, attention_mask=mask)[:, -1])
        again = torch.cat(again)
        again[:, 100] = -torch.inf  # the end of text, which was not allowed
        assert torch.equal(again.argmax(-1), made_tokens[0, 60:])
        assert cache.held_bytes == held_by(cache) == wrapper.memory_stats()["held_bytes"]
        assert 0 < wrapper.memory_stats()["raw_bytes"] <= 48 * LAYERS * HEADS * DIM * 2 * 4
        print(f"memory held: {wrapper.memory_stats()}")

    def test_a_prompt_is_seen_as_it_is_kept(self, client):
        model, tokens = made("llama"), prompt()
        expected = logits(model, tokens)
        coarse, unseen = (CompressedKVModelWrapper(model, "int4(group=32)", patch_attention=patch, client=client,
                                                   residual_length=8, page_length=8) for patch in (True, False))
        assert (logits(coarse, tokens) - expected)[:, 50].abs().max() > 1e-3
        assert torch.allclose(logits(unseen, tokens), expected, atol=1e-5)
        assert coarse.memory_stats()["held_bytes"] == unseen.memory_stats()["held_bytes"]

    def test_a_profile_and_an_address(self, daemon):
        server = daemon("--threads", "2")
        profile = {"version": 1, "default": "raw", "rules": [{"layers": [1, 1], "codec": "int4(group=32)"}]}
        wrapper = CompressedKVModelWrapper(made("llama"), profile, client=server.address, residual_length=8)
        cache = wrapper.make_cache()
        logits(wrapper, prompt(length=200), past_key_values=cache)
        codecs = [layer.store.segments[0].frames[1].codec.split("(")[0] for layer in cache.layers]
        assert codecs == ["raw", "fallback|int4", "raw"]

    @pytest.mark.parametrize("options", [{}, {"num_beams": 3}], ids=str)
    def test_batches_and_beams(self, client, options):
        model, tokens = made("qwen2"), prompt()
        wrapper = CompressedKVModelWrapper(model, "lossless", client=client, residual_length=4, page_length=8)
        cache, mask = wrapper.make_cache(), padded(tokens)
        found = generate(wrapper, tokens, attention_mask=mask, past_key_values=cache, **options)
        assert torch.equal(found, generate(model, tokens, attention_mask=mask, **options))
        assert cache.held_bytes == held_by(cache)


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_tokens_that_are_taken_back(family):
    model, tokens = made(family), prompt(1, 12).repeat(1, 4)
    wrapper = CompressedKVModelWrapper(model, Bases(disabled=[(1, 1)]))
    expected = generate(model, tokens, prompt_lookup_num_tokens=3, past_key_values=DynamicCache())
    assert torch.equal(generate(wrapper, tokens, prompt_lookup_num_tokens=3), expected)


class Fault(Exception):
    pass


class TestErrors:
    """Compressors that fail within a forward, after some layers have taken its tokens."""

    @pytest.fixture(params=["latents", "frames"])
    def failing(self, request, client, monkeypatch):
        """A wrapper of a model of a family, and what makes its compressor fail after so many calls more."""
        left = []

        def counted(call):
            def run(*args, **options):
                if left and left[0] == 0:
                    raise Fault
                left[:] = [count - 1 for count in left]
                return call(*args, **options)

            return run

        def of(family):
            if request.param == "frames":
                options = {"client": client, "residual_length": 4, "page_length": 4}
                return CompressedKVModelWrapper(made(family), "lossless", **options)
            compressor = Bases([3, 7])
            monkeypatch.setattr(compressor, "compress", counted(compressor.compress))
            monkeypatch.setattr(compressor, "decompress", counted(compressor.decompress))
            return CompressedKVModelWrapper(made(family), compressor)

        if request.param == "frames":
            monkeypatch.setattr(Codec, "compress", counted(Codec.compress))
            monkeypatch.setattr(Codec, "decompress", counted(Codec.decompress))
        yield of, left
        left.clear()

    def all_of(self, cache):
        return [torch.cat(parts, dim=-2) for layer in cache.layers if layer.is_initialized
                for parts in zip(*layer.store.restored(), (layer.keys, layer.values), strict=True)]

    @pytest.mark.parametrize("calls", [0, 1, 3, 5])
    def test_a_forward_that_fails_leaves_the_cache_as_it_was(self, failing, calls):
        of, left = failing
        wrapper, tokens = of("llama"), prompt()
        cache = wrapper.make_cache()
        mask = torch.ones_like(tokens)
        logits(wrapper, tokens[:, :40], past_key_values=cache, attention_mask=mask[:, :40])
        before, held, stats = self.all_of(cache), cache.held_bytes, wrapper.memory_stats()
        left[:] = [calls]
        with pytest.raises(Fault):
            logits(wrapper, tokens[:, 40:], past_key_values=cache, attention_mask=mask)
        left.clear()
        assert cache.get_seq_length() == 40
        assert all(torch.equal(*pair) for pair in zip(before, self.all_of(cache), strict=True))
        assert cache.held_bytes == held == held_by(cache)
        assert wrapper.memory_stats() == stats
        after = logits(wrapper, tokens[:, 40:], past_key_values=cache, attention_mask=mask)
        other = wrapper.make_cache()
        logits(wrapper, tokens[:, :40], past_key_values=other, attention_mask=mask[:, :40])
        assert torch.equal(after, logits(wrapper, tokens[:, 40:], past_key_values=other, attention_mask=mask))

    def test_generation_that_fails_leaves_the_cache_as_it_was(self, failing):
        of, left = failing
        wrapper, tokens = of("llama"), prompt()
        cache = wrapper.make_cache()
        logits(wrapper, tokens[:, :40], past_key_values=cache, attention_mask=torch.ones(2, 40))
        before = self.all_of(cache)
        left[:] = [50]
        with pytest.raises(Fault):
            generate(wrapper, tokens, past_key_values=cache, min_new_tokens=30)
        left.clear()
        assert cache.get_seq_length() == 40
        assert all(torch.equal(*pair) for pair in zip(before, self.all_of(cache), strict=True))

    def test_a_cache_that_cannot_be_brought_back_is_empty_and_the_error_says_so(self, failing, request):
        if VERSION < (4, 56):
            pytest.skip("these transformers take no layers of others in caches")
        of, left = failing
        wrapper, tokens = of("mistral"), prompt()
        cache = wrapper.make_cache()
        logits(wrapper, tokens[:, :40], past_key_values=cache, attention_mask=torch.ones(2, 40))
        before = self.all_of(cache)
        left[:] = [5]
        frames = request.node.callspec.params["failing"] == "frames"
        with pytest.raises(Fault if frames else kvcompress.FailedPrecondition) as failed:
            logits(wrapper, tokens[:, 40:], past_key_values=cache)
        left.clear()
        if frames:
            assert all(torch.equal(*pair) for pair in zip(before, self.all_of(cache), strict=True))
            return
        assert "Fault; the cache cannot be brought back to what it was before, and is empty" in str(failed.value)
        assert isinstance(failed.value.__cause__, Fault)
        assert (cache.get_seq_length(), cache.held_bytes) == (0, 0)
        assert torch.equal(logits(wrapper, tokens, past_key_values=cache), logits(wrapper, tokens))


class TestTheWrapper:
    def test_all_else_is_the_models(self):
        model, tokens = made("llama"), prompt()
        wrapper = CompressedKVModelWrapper(model, Bases([4]))
        assert wrapper.config is model.config
        assert wrapper.device == model.device
        assert wrapper.eval() is wrapper
        with pytest.raises(AttributeError, match="no_such"):
            _ = wrapper.no_such_attribute
        with torch.no_grad():
            with_cache, without = wrapper(tokens), wrapper(tokens, use_cache=False)
        assert with_cache.past_key_values.get_seq_length() == 60
        assert without.past_key_values is None
        assert not {"past_key_values", "cache"} & set(without)
        assert len(wrapper(tokens, use_cache=False, return_dict=False)) == 1
        assert torch.equal(with_cache.logits, without.logits)
        assert wrapper.memory_stats()["tokens"] == 60

    def test_what_it_refuses(self, client):
        model, tokens = made("llama"), prompt()
        other = AutoModelForCausalLM.from_config(AutoConfig.for_model(
            "opt", vocab_size=11, hidden_size=16, num_hidden_layers=1, ffn_dim=16, num_attention_heads=2))
        with pytest.raises(NotImplementedError, match="opt is none of gpt2, llama, qwen2, qwen3, mistral, gemma"):
            CompressedKVModelWrapper(other, Bases())
        of_latents = AutoModelForCausalLM.from_config(AutoConfig.for_model("deepseek_v3", **{
            **SIZES, "num_hidden_layers": 1, "head_dim": None, "moe_intermediate_size": 8, "kv_lora_rank": 16,
            "q_lora_rank": None, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8,
            "first_k_dense_replace": 1}))
        for codec in (Bases(), "kv3"):
            with pytest.raises(NotImplementedError, match="deepseek_v3 is none of gpt2, llama, "):
                CompressedKVModelWrapper(of_latents, codec, client=client if codec == "kv3" else None)
        for compressor, named, why in (("kv3", None, "client"), (Bases(), client, "client"), (5, None, "neither")):
            with pytest.raises(kvcompress.InvalidArgument, match=why):
                CompressedKVModelWrapper(model, compressor, client=named)
        with pytest.raises(kvcompress.InvalidArgument, match="page_length"):
            CompressedKVModelWrapper(model, "kv3", client=client, page_length=-1)
        wrapper = CompressedKVModelWrapper(model, Bases())
        with pytest.raises(kvcompress.InvalidArgument, match="DynamicCache is not compressed"):
            logits(wrapper, tokens, past_key_values=DynamicCache())
        with pytest.raises(kvcompress.InvalidArgument, match="without a cache"):
            generate(wrapper, tokens, use_cache=False)
