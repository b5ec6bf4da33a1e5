"""A model on a cache that is compressed with its own artifact, or by its own compressor."""

import gc
import weakref

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers", minversion="4.54")  # as collect_cache
from kvcompress.adapters.compressed_model import CompressedKVModelWrapper  # noqa: E402
from kvcompress.calibration import PCACompressor, calibrate, collect_cache  # noqa: E402
from transformers import LlamaConfig, LlamaForCausalLM  # noqa: E402


@pytest.fixture
def model():
    torch.manual_seed(5)
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=101, hidden_size=64, intermediate_size=96, num_hidden_layers=2, head_dim=64, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=512, initializer_range=0.2)).eval()


def windows(count, seed):
    return torch.randint(2, 101, (count, 300), generator=torch.Generator().manual_seed(seed))


def test_an_artifact_brings_what_a_model_says_nearer(model, daemon, connect, bin_dir, tmp_path):
    collect_cache(model, windows(6, 1).tolist(), tmp_path / "cache.safetensors")
    artifacts = tmp_path / "artifacts"
    artifacts.mkdir()
    made = calibrate([tmp_path / "cache.safetensors"], artifacts / "model.kvcal", group_dim=64,
                     program=bin_dir / "kv-compress")
    client = connect(daemon("--threads", "2", "--artifacts", artifacts))
    tokens = windows(1, 2)
    errors = {}
    with torch.no_grad():
        expected = model(tokens).logits
        for codec in ("kv3", f"kv(bits=3,artifact={made.id})"):
            cache = (wrapper := CompressedKVModelWrapper(model, codec, client=client)).make_cache()
            errors[codec] = (wrapper(tokens, past_key_values=cache).logits - expected).square().mean().item()
            frames = [frame for layer in cache.layers for frame in layer.store.segments[0].frames]
            assert all((made.id in frame.codec) == ("artifact" in codec) for frame in frames)
            assert sum(map(len, frames)) <= 2 * 2 * 2 * 268 * 64 * 3.3 / 8
    plain, calibrated = errors.values()
    assert 0 < calibrated < 0.8 * plain


def test_a_model_does_not_keep_the_compressors_that_it_was_wrapped_with(model):
    compressor = PCACompressor({"per_layer_head": {}})
    CompressedKVModelWrapper(model, compressor).generate(windows(1, 3), max_new_tokens=2)
    known = weakref.ref(compressor)
    del compressor
    gc.collect()
    assert known() is None
