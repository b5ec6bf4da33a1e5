"""kv_cache_utils: extract, save, load, check, describe."""

import json
import re
import subprocess
from types import SimpleNamespace

import cache_view
import numpy as np
import pytest
import torch
from compression_bridge import compress_kv_cache, decompress_kv_cache, find_cli_binary
from conftest import make_model, make_pairs
from kv_cache_utils import (
    KVCacheMetadata,
    compute_kv_cache_stats,
    create_kv_cache_from_tensors,
    extract_kv_cache,
    load_kv_cache,
    rotary_metadata,
    save_kv_cache,
    validate_kv_cache_shape,
)
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_cache_view import equal
from transformers import DynamicCache, GPT2Config, LlamaConfig


def test_extract(model, tokenizer):
    cache, metadata = extract_kv_cache(model, tokenizer, "Hello, world!")
    assert isinstance(cache, DynamicCache)
    assert metadata == KVCacheMetadata(2, 2, 13, 64, "float32", "LlamaForCausalLM")
    with torch.no_grad():
        _, expected = cache_view.forward(model, torch.tensor(tokenizer("Hello, world!")["input_ids"])[None])
    assert equal(cache_view.layers(cache), cache_view.layers(expected))
    assert extract_kv_cache(model, tokenizer, "Hello, world!", max_length=5, device="cpu")[1].seq_len == 5


def test_what_was_extracted_is_saved_under_its_model_s_name(tmp_path, model, tokenizer):
    cache, metadata = extract_kv_cache(model, tokenizer, "Hello, world!")
    path = str(tmp_path / "cache.safetensors")
    assert save_kv_cache(cache, path) == metadata
    assert load_kv_cache(path)[1].model_name == metadata.model_name == "LlamaForCausalLM"
    assert save_kv_cache(cache, path, model_name="another").model_name == "another"
    assert save_kv_cache(cache_view.layers(cache), path).model_name == "unknown"


def test_a_file_says_what_turned_its_keys(tmp_path, model, tokenizer):
    """In the metadata that kv-compress goes by, of a cache that was extracted and of one whose model is given."""
    cache, _ = extract_kv_cache(model, tokenizer, "Hello, world!")
    path, small = tmp_path / "cache.safetensors", tmp_path / "small.safetensors"
    for saved, options, expected in ((cache, {}, 10000), (cache_view.layers(cache), {}, None),
                                     (cache_view.layers(cache), {"config": LlamaConfig(rope_theta=77.5)}, 77.5),
                                     (cache, {"config": LlamaConfig(rope_theta=77.5)}, 77.5)):
        save_kv_cache(saved, str(path), **options)
        done = subprocess.run([find_cli_binary(), "-input", path, "-output", small, "-codec", "transform(bits=3)"],
                              stdout=subprocess.PIPE, check=True)
        rotary = json.loads(done.stdout)["rotary"]
        assert rotary is None if expected is None else (rotary["theta"], rotary["from"]) == (expected, "metadata")
        assert load_kv_cache(str(small))[1].seq_len == 13


def test_configurations_say_what_turns_keys():
    def of(**fields):
        return rotary_metadata(SimpleNamespace(**fields))

    assert of(rope_theta=500000.0) == of(rope_parameters={"rope_theta": 500000}) == {"rope_theta": "500000"}
    assert of(rope_theta=10000, partial_rotary_factor=0.5, hidden_size=512, num_attention_heads=8) == {
        "rope_theta": "10000", "rope_dims": "32"}
    assert of(rope_theta=10000, partial_rotary_factor=1.0, hidden_size=512) == {"rope_theta": "10000"}
    assert of(rope_theta=10000, partial_rotary_factor=0.5, model_type="glm4", head_dim=128) == {
        "rope_theta": "10000", "rope_dims": "64", "rope_pairs": "interleaved"}
    llama3 = {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8192}
    for scaled in (of(rope_theta=5e5, rope_scaling=llama3), of(rope_parameters={"rope_theta": 5e5, **llama3})):
        assert scaled["rope_theta"] == "500000"
        assert json.loads(scaled["rope_scaling"]).items() >= llama3.items()
    linear = of(rope_theta=1e4, rope_scaling={"type": "linear", "factor": 2.0}, max_position_embeddings=4096)
    assert json.loads(linear["rope_scaling"]) == {
        "rope_type": "linear", "factor": 2.0, "original_max_position_embeddings": 4096}
    assert of(rope_theta=1e4, rope_scaling=None, max_position_embeddings=4096) == {"rope_theta": "10000"}
    for none in ({}, {"rope_theta": None}, {"rope_theta": 1e4, "rope_scaling": {"type": "dynamic", "factor": 2.0}},
                 {"rope_theta": 1e4, "rope_scaling": {"type": "yarn", "factor": 2.0, "truncate": False}},
                 {"rope_theta": 1e4, "kv_lora_rank": 512},
                 {"rope_parameters": {"full_attention": {"rope_theta": 1e6}, "sliding_attention": {"rope_theta": 1e4}}}):
        assert of(**none) == {}
    assert rotary_metadata(None) == {}
    assert rotary_metadata(GPT2Config()) == {"rope_theta": "0"}


def test_a_cache_whose_first_tokens_are_gone_says_where_it_begins(tmp_path, sliding):
    with torch.no_grad():
        _, cache = cache_view.forward(sliding, torch.arange(30)[None])
    held = cache_view.layers(cache)[0][0].shape[2]
    assert held < 30
    path = str(tmp_path / "cache.safetensors")
    save_kv_cache(cache, path, config=sliding.config)
    with safe_open(path, framework="pt") as file:
        assert file.metadata()["seq_start"] == str(30 - held)
        assert file.metadata()["rope_theta"] == "10000"


def test_a_cache_is_created_from_tensors(pairs):
    cache = create_kv_cache_from_tensors([key for key, _ in pairs], (value for _, value in pairs))
    assert isinstance(cache, DynamicCache) and equal(cache_view.layers(cache), pairs)
    key = pairs[0][0]
    for keys, values, error, text in (([], [], ValueError, "no layers"), ([key], [], ValueError, "keys of 1 layers"),
                                      ([key[0]], [key], TypeError, r"not \[batch"), ([key], [None], ValueError, "empty")):
        with pytest.raises(error, match=text):
            create_kv_cache_from_tensors(keys, values)


@pytest.mark.parametrize("prompt, text", [(["one", "two"], "the batch size is 2"), ("", "the prompt has no tokens")])
def test_extract_takes_one_prompt_with_tokens(model, tokenizer, prompt, text):
    with pytest.raises(ValueError, match=text):
        extract_kv_cache(model, tokenizer, prompt)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("batch", [1, 3])
def test_save_and_load_keep_every_bit(tmp_path, dtype, batch):
    pairs = make_pairs(shape=(batch, 2, 16, 64), dtype=dtype)
    path = tmp_path / "cache.safetensors"
    saved = save_kv_cache(cache_view.build(pairs), str(path), model_name="m")
    assert saved == KVCacheMetadata(2, 2, 16, 64, str(dtype).removeprefix("torch."), "m")
    assert json.loads((tmp_path / "cache.metadata.json").read_text()) == saved.to_dict()
    assert sorted(load_file(path)) == ["layer_0_key", "layer_0_value", "layer_1_key", "layer_1_value"]
    cache, metadata = load_kv_cache(str(path))
    assert metadata == saved and isinstance(cache, DynamicCache)
    loaded = cache_view.layers(cache)
    assert equal(loaded, pairs) and loaded[0][0].dtype == dtype


@pytest.mark.parametrize("name", ["float8_e4m3fn", "float8_e5m2"])
def test_values_of_eight_bits_are_saved_loaded_checked_and_described(tmp_path, name):
    if not hasattr(torch, name):
        pytest.skip(f"this PyTorch has no {name}")
    dtype = getattr(torch, name)
    pairs = [(key.to(dtype), value.to(dtype)) for key, value in make_pairs()]
    path, small = str(tmp_path / "cache.safetensors"), str(tmp_path / "small.safetensors")
    saved = save_kv_cache(pairs, path, model_name="m")
    assert saved.dtype == name
    compress_kv_cache(path, small, codec="lossless")
    for source in (path, small):
        cache, metadata = load_kv_cache(source)
        assert metadata == saved
        loaded = cache_view.layers(cache)
        assert loaded[0][0].dtype == dtype
        assert equal([[tensor.view(torch.uint8) for tensor in pair] for pair in loaded],
                     [[tensor.view(torch.uint8) for tensor in pair] for pair in pairs])
        assert validate_kv_cache_shape(cache, 2, 2, 64) == (True, [])
        stats = compute_kv_cache_stats(cache)
        assert (stats["dtype"], stats["total_bytes"]) == (name, stats["total_elements"])
        assert stats["value_min"] == min(tensor.float().min().item() for pair in pairs for tensor in pair)


def test_a_file_that_holds_more_than_keys_and_values(tmp_path, pairs):
    path, small, back = (str(tmp_path / f"{name}.safetensors") for name in ("cache", "small", "back"))
    generator = torch.Generator().manual_seed(1)
    others = {
        "positions": torch.arange(16), "mask": torch.ones(16, 16, dtype=torch.bool).tril(), "scale": torch.tensor(0.5),
        "layer_0_indexer": torch.randint(0, 256, (1, 16, 128), generator=generator, dtype=torch.uint8),
        "layer_0_latent": torch.randn(1, 16, 512, generator=generator).half(),
    }
    if hasattr(torch, "float8_e4m3fn"):
        others["layer_0_latent"] = others["layer_0_latent"].to(torch.float8_e4m3fn)
    saved = save_kv_cache(pairs, path)
    with safe_open(path, framework="pt") as file:
        own = file.metadata()
    save_file({**load_file(path), **others}, path, metadata=own)
    compress_kv_cache(path, small, codec="int8(group=64)")
    decompress_kv_cache(small, back)
    restored = load_file(back)
    for name, tensor in others.items():
        assert (restored[name].dtype, restored[name].shape) == (tensor.dtype, tensor.shape)
        if name in ("positions", "mask", "layer_0_indexer"):
            assert torch.equal(restored[name], tensor)
        else:
            assert torch.allclose(restored[name].float(), tensor.float(), atol=0.15)
    for source in (path, small, back):
        cache, metadata = load_kv_cache(source)
        assert metadata == saved
        assert validate_kv_cache_shape(cache, 2, 2, 64) == (True, [])
        assert len(cache_view.layers(cache)) == 2


def test_other_types_become_float32(tmp_path):
    path = str(tmp_path / "cache.safetensors")
    assert save_kv_cache(make_pairs(dtype=torch.float64), path).dtype == "float32"
    assert load_file(path)["layer_0_key"].dtype == torch.float32


def test_shared_and_strided_tensors_are_saved(tmp_path):
    key = make_pairs()[0][0].transpose(1, 2).contiguous().transpose(1, 2)
    path = str(tmp_path / "cache.safetensors")
    save_kv_cache([(key, key), (key, key[:, :, 4:])], path)
    loaded = load_file(path)
    assert torch.equal(loaded["layer_1_value"], key[:, :, 4:]) and torch.equal(loaded["layer_0_value"], key)


def test_metadata_from_elsewhere_or_from_the_tensors(tmp_path, pairs):
    path, sidecar = tmp_path / "cache", tmp_path / "other.json"
    save_kv_cache(pairs, str(path), str(sidecar), model_name="m")
    assert not (tmp_path / "cache.metadata.json").exists()
    assert load_kv_cache(str(path), str(sidecar))[1].model_name == "m"
    assert load_kv_cache(str(path))[1].model_name == "m", "the file knows it, too"
    save_file(load_file(path), tmp_path / "bare")
    assert load_kv_cache(str(tmp_path / "bare"))[1] == KVCacheMetadata(2, 2, 16, 64, "float16", "unknown")
    for content in ("{}", "no json", "[]"):
        sidecar.write_text(content)
        with pytest.raises(ValueError, match=r"the metadata of .*cache is damaged"):
            load_kv_cache(str(path), str(sidecar))
    with pytest.raises(FileNotFoundError):
        load_kv_cache(str(path), str(tmp_path / "none.json"))


def test_a_file_s_own_metadata_go_before_a_sidecar_that_lies_beside_it(tmp_path, pairs):
    path = str(tmp_path / "cache.safetensors")
    save_kv_cache(pairs, path, model_name="old")
    save_kv_cache(make_pairs(3, (1, 2, 8, 64)), path, str(tmp_path / "other.json"), model_name="new")
    _, metadata = load_kv_cache(path)
    assert (metadata.num_layers, metadata.seq_len, metadata.model_name) == (3, 8, "new")
    save_file(load_file(path), path)
    assert load_kv_cache(path, str(tmp_path / "other.json"))[1] == metadata
    assert load_kv_cache(path)[1].model_name == "old"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_compressed_files_load_directly(tmp_path, dtype):
    pairs = make_pairs(shape=(2, 2, 16, 64), dtype=dtype)
    plain, packed = str(tmp_path / "cache.safetensors"), str(tmp_path / "packed.safetensors")
    save_kv_cache(pairs, plain)
    compress_kv_cache(plain, packed, codec="lossless")
    with safe_open(packed, "pt") as file:
        assert file.get_slice("layer_0_key").get_dtype() == "U8"
    cache, metadata = load_kv_cache(packed)
    assert equal(cache_view.layers(cache), pairs) and metadata.seq_len == 16
    compress_kv_cache(plain, packed)
    for pair, original in zip(cache_view.layers(load_kv_cache(packed)[0]), pairs):
        for decoded, tensor in zip(pair, original):
            assert decoded.dtype == dtype and 0 < (decoded - tensor).abs().max() < 0.5


def test_sliding_layers_go_on_from_a_compressed_file(tmp_path, sliding):
    ids = torch.randint(0, 64, (2, 24), generator=torch.Generator().manual_seed(1))
    plain, packed = str(tmp_path / "cache.safetensors"), str(tmp_path / "packed.safetensors")
    with torch.no_grad():
        whole, _ = cache_view.forward(sliding, ids)
        _, cache = cache_view.forward(sliding, ids[:, :20])
        assert save_kv_cache(cache, plain).seq_len == 20
        compress_kv_cache(plain, packed, codec="lossless")
        loaded, metadata = load_kv_cache(packed, config=sliding.config)
        assert metadata.seq_len == 20 and cache_view.layers(loaded)[0][0].shape[2] == 7
        logits, _ = cache_view.forward(sliding, ids[:, 20:], loaded)
    torch.testing.assert_close(logits, whole[:, 20:])


def test_a_damaged_compressed_file_is_named_and_refused(tmp_path, sample):
    packed = tmp_path / "packed"
    compress_kv_cache(str(sample), str(packed))
    data = bytearray(packed.read_bytes())
    data[-100] ^= 1
    packed.write_bytes(data)
    with pytest.raises(subprocess.CalledProcessError) as failure:
        load_kv_cache(str(packed))
    assert re.fullmatch('kv-compress failed with exit code 1: tensor "layer_20_value": .*block 0.*', str(failure.value))


def test_files_that_are_no_cache(tmp_path):
    path = tmp_path / "file"
    with pytest.raises(FileNotFoundError, match="no such file: "):
        load_kv_cache(str(path))
    path.write_bytes(b"no safetensors at all")
    with pytest.raises(ValueError, match="file is no whole safetensors file"):
        load_kv_cache(str(path))
    for names, text in (([], "does not hold layer_0_key"), (["a"], "does not hold"), (["layer_0_key"], "in pairs"),
                        (["layer_1_key", "layer_1_value"], "has no tensor layer_0_key")):
        save_file({name: torch.zeros(1, 1, 1, 1) for name in names}, path)
        with pytest.raises(ValueError, match=text):
            load_kv_cache(str(path))


def test_validate_shape(tmp_path):
    tinyllama = make_pairs(22, (1, 4, 3, 64))
    assert validate_kv_cache_shape(tinyllama) == (True, [])
    wrong = [*tinyllama[:20], *make_pairs(1, (1, 32, 3, 60))]
    valid, errors = validate_kv_cache_shape(wrong)
    assert not valid
    assert errors == ["Expected 22 layers, got 21", "Layer 20: expected 4 KV heads, got 32",
                      "Layer 20: expected head_dim 64, got 60"]
    assert validate_kv_cache_shape(make_pairs(10, (1, 4, 3, 64)))[1] == ["Expected 22 layers, got 10"]
    apart = [*tinyllama[:3], (tinyllama[3][0], make_pairs(1, (1, 32, 3, 64))[0][1]), *tinyllama[4:]]
    assert validate_kv_cache_shape(apart)[1] == ["Layer 3, values: expected 4 KV heads, got 32",
                                                 "Layer 3: keys are [1, 4, 3, 64], values [1, 32, 3, 64]"]
    unequal = [(key, value[:, :, :2]) for key, value in tinyllama]
    assert validate_kv_cache_shape(unequal)[1][0] == "Layer 0: keys are [1, 4, 3, 64], values [1, 4, 2, 64]"
    assert validate_kv_cache_shape(()) == (False, ["the cache is empty: it has no layers"])


def test_stats(pairs):
    values = np.concatenate([tensor.double().numpy().ravel() for pair in pairs for tensor in pair])
    stats = compute_kv_cache_stats(cache_view.build(pairs))
    assert {name: stats.pop(name) for name in ("num_layers", "num_kv_heads", "seq_len", "head_dim", "dtype")} == {
        "num_layers": 2, "num_kv_heads": 2, "seq_len": 16, "head_dim": 64, "dtype": "float16"}
    assert stats == pytest.approx({
        "total_elements": values.size, "total_bytes": 2 * values.size, "total_mb": 2 * values.size / 1048576,
        "value_mean": values.mean(), "value_std": values.std(), "value_min": values.min(), "value_max": values.max()})
    batched = compute_kv_cache_stats(make_pairs(shape=(3, 2, 16, 64), dtype=torch.float64))
    assert (batched["total_elements"], batched["dtype"]) == (3 * values.size, "float64")


def test_a_restored_cache_goes_on_like_the_original(tmp_path):
    model = make_model()
    ids = torch.randint(0, 64, (2, 30), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        whole, _ = cache_view.forward(model, ids)
        _, cache = cache_view.forward(model, ids[:, :20])
        save_kv_cache(cache, str(tmp_path / "cache"))
        loaded, _ = load_kv_cache(str(tmp_path / "cache"))
        logits, _ = cache_view.forward(model, ids[:, 20:], loaded)
    torch.testing.assert_close(logits, whole[:, 20:])
