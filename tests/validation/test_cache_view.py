"""The one view of caches: every published style, real ones of the installed transformers, and what is no cache."""

import copy
from types import SimpleNamespace

import cache_view
import pytest
import torch
from conftest import make_model, make_pairs
from transformers import DynamicCache, LlamaConfig, StaticCache


def layered(pairs):
    return SimpleNamespace(layers=[SimpleNamespace(keys=key, values=value) for key, value in pairs])


def two_lists(pairs):
    return SimpleNamespace(key_cache=[key for key, _ in pairs], value_cache=[value for _, value in pairs])


def legacy(pairs):
    return tuple(pairs)


def legacy_with_more(pairs):
    return [(key, value, None) for key, value in pairs]


def convertible(pairs):
    return SimpleNamespace(to_legacy_cache=lambda: tuple(pairs))


def dynamic(pairs):
    return cache_view.build(pairs)


STYLES = [layered, two_lists, legacy, legacy_with_more, convertible, dynamic]


def equal(some, others):
    return len(some) == len(others) and all(
        torch.equal(a, b) for pair, other in zip(some, others) for a, b in zip(pair, other))


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("batch", [1, 3])
def test_every_style_gives_its_tensors(style, batch):
    pairs = make_pairs(shape=(batch, 2, 16, 64))
    assert equal(cache_view.layers(style(pairs)), pairs)
    assert cache_view.tokens_seen(style(pairs)) == 16


@pytest.mark.parametrize("style", [layered, two_lists, legacy, dynamic])
def test_with_tensors_changes_a_copy_of_the_same_class_and_dtype(style):
    pairs, others = make_pairs(dtype=torch.float32), make_pairs(seed=1)
    cache = style(pairs)
    before = copy.deepcopy(pairs)
    changed = cache_view.with_tensors(cache, others)
    assert type(changed) is type(cache)
    assert equal(cache_view.layers(changed), [(key.float(), value.float()) for key, value in others])
    assert equal(cache_view.layers(cache), before)


def test_with_tensors_refuses_other_shapes(pairs):
    with pytest.raises(ValueError, match=r"layer 0's key is \[1, 2, 15, 64\], the cache's is \[1, 2, 16, 64\]"):
        cache_view.with_tensors(legacy(pairs), make_pairs(shape=(1, 2, 15, 64)))
    with pytest.raises(ValueError, match="1 layers for a cache of 2"):
        cache_view.with_tensors(legacy(pairs), pairs[:1])


def test_a_cache_of_a_pass_with_gradients(model):
    _, cache = cache_view.forward(model, torch.arange(10)[None])
    changed = cache_view.layers(cache_view.with_tensors(cache, cache_view.layers(cache)))
    assert equal(changed, cache_view.layers(cache)) and not changed[0][0].requires_grad


@pytest.mark.parametrize("cache, error, text", [
    ((), ValueError, "has no layers"),
    (DynamicCache(), ValueError, "has no layers"),
    (DynamicCache(config=LlamaConfig(num_hidden_layers=2)), ValueError, "layer 0 of the cache is empty: it has no keys"),
    (two_lists([([], [])]), ValueError, "layer 0 of the cache is empty: it has no keys"),
    (legacy(make_pairs(shape=(1, 2, 0, 64))), ValueError, r"its keys are \[1, 2, 0, 64\]"),
    (legacy(make_pairs(shape=(2, 16, 64))), TypeError, r"layer 0's keys are \[2, 16, 64\], not \[batch, kv_heads"),
    (legacy([([1.0], [1.0])]), TypeError, "keys are a list, not a tensor"),
    ((1, 2), TypeError, "a tuple has a .key, value. pair for each layer"),
    ("text", TypeError, "str is no KV cache"),
    (None, TypeError, "NoneType is no KV cache"),
    (SimpleNamespace(layers=[SimpleNamespace(conv_states=1)]), TypeError, "layer 0 .SimpleNamespace. has no keys"),
    (SimpleNamespace(layers=[SimpleNamespace(_quantized_keys=1)]), TypeError, "quantized by transformers itself"),
])
def test_what_is_no_cache_or_empty(cache, error, text):
    with pytest.raises(error, match=text):
        cache_view.layers(cache)


def test_static_caches_are_cut_to_what_is_used(model):
    ids = torch.randint(0, 64, (2, 12), generator=torch.Generator().manual_seed(1))
    static = StaticCache(config=model.config, max_cache_len=40)
    with torch.no_grad():
        _, dynamic_cache = cache_view.forward(model, ids)
        _, static = cache_view.forward(model, ids, static)
        assert static.layers[0].keys.shape[2] == 40
        for pair, other in zip(cache_view.layers(static), cache_view.layers(dynamic_cache)):
            for a, b in zip(pair, other):
                torch.testing.assert_close(a, b)
        doubled = [(2 * key, 2 * value) for key, value in cache_view.layers(static)]
        changed = cache_view.with_tensors(static, doubled)
    assert equal(cache_view.layers(changed), doubled)
    assert changed.layers[0].keys.shape[2] == 40


def test_static_caches_of_the_two_list_style():
    pairs = make_pairs(shape=(1, 2, 40, 64))
    cache = SimpleNamespace(**vars(two_lists(pairs)), max_cache_len=40, get_seq_length=lambda layer=0: 12)
    assert [key.shape[2] for key, _ in cache_view.layers(cache)] == [12, 12]
    cache.get_seq_length = lambda layer=0: 0
    with pytest.raises(ValueError, match="no token has gone through it"):
        cache_view.layers(cache)


def test_sliding_layers_hold_fewer_tokens_and_go_on_at_the_right_place(sliding):
    ids = torch.randint(0, 64, (2, 24), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        whole, _ = cache_view.forward(sliding, ids)
        _, cache = cache_view.forward(sliding, ids[:, :20])
        pairs = cache_view.layers(cache)
        assert pairs[0][0].shape[2] == 7 and cache_view.tokens_seen(cache) == 20
        put_back = cache_view.with_tensors(cache, pairs)
        rebuilt = cache_view.build(pairs, sliding.config, 20)
        for again in (put_back, rebuilt):
            logits, _ = cache_view.forward(sliding, ids[:, 20:], again)
            torch.testing.assert_close(logits, whole[:, 20:])


def test_a_model_with_other_layers_than_the_cache_is_noticed(sliding):
    model = make_model(num_hidden_layers=3)
    _, cache = cache_view.forward(model, torch.arange(4)[None])
    with pytest.raises(ValueError, match="2 layers for a cache of 3"):
        cache_view.with_tensors(cache, make_pairs(2))
