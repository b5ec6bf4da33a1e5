"""What is collected of models, tiny ones of random weights, against the models' own weights and definitions."""

import inspect
import json

import kvcompress
import numpy as np
import pytest
from kvcompress import RotaryEmbedding, calibration
from safetensors.numpy import load_file

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from kvcompress.calibration._model_statistics import turned_back  # noqa: E402


@pytest.fixture
def model():
    torch.set_num_threads(1)
    torch.manual_seed(3)
    config = transformers.LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, initializer_range=0.5)
    return transformers.LlamaForCausalLM(config).eval()


@pytest.fixture
def windows():
    return torch.randint(0, 50, (3, 40), generator=torch.Generator().manual_seed(4))


def projected(model, window, name):
    """Keys or queries of the first layer before they are turned, [heads, tokens, head_dim]."""
    layer = model.model.layers[0]
    with torch.no_grad():
        normed = layer.input_layernorm(model.model.embed_tokens(window))
        return getattr(layer.self_attn, name)(normed).unflatten(1, (-1, 8)).transpose(0, 1)


def test_a_cache_calibrates_with_the_rotation_of_its_model(model, windows, program, tmp_path):
    path = tmp_path / "cache.safetensors"
    calibration.collect_cache(model, windows, path)
    tensors = load_file(path)
    assert {tensor.shape for tensor in tensors.values()} == {(3, 2, 40, 8)}
    assert set(tensors) == {f"layer_{layer}_{side}" for layer in range(2) for side in ("key", "value")}
    made = calibration.calibrate([path], tmp_path / "a.kvcal")
    assert made.rotary == RotaryEmbedding(10000.0, dims=8)
    means = load_file(made.output)["layer_0_key.mean"].reshape(2, 8)
    keys = torch.stack([projected(model, window, "k_proj")[:, 4:] for window in windows])
    np.testing.assert_allclose(means, keys.mean((0, 2)), atol=1e-4)


SCALINGS = (
    {"rope_type": "linear", "factor": 4.0},
    {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
     "original_max_position_embeddings": 256},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256},
)


@pytest.mark.parametrize("scaling", SCALINGS, ids=lambda scaling: scaling["rope_type"])
def test_frequencies_are_those_of_the_library(scaling):
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    turning = {"rope_theta": 10000.0, "rope_scaling": scaling}
    if int(transformers.__version__.split(".")[0]) >= 5:
        turning = {"rope_parameters": {"rope_theta": 10000.0, **scaling}}
    config = transformers.LlamaConfig(hidden_size=256, num_attention_heads=4, max_position_embeddings=1024, **turning)
    rotary = RotaryEmbedding.of_config(config)
    if scaling["rope_type"] == "linear":
        expected = 10000.0 ** (-torch.arange(0, 64, 2) / 64) / 4
    else:
        expected, _ = ROPE_INIT_FUNCTIONS[scaling["rope_type"]](config, "cpu")
    np.testing.assert_allclose(rotary.frequencies(64), expected.numpy(), rtol=3e-6)


@pytest.mark.parametrize("scaling", SCALINGS, ids=lambda scaling: scaling["rope_type"])
def test_keys_of_models_with_scaled_rotations_are_turned_back(scaling, model, windows, program, tmp_path):
    config = transformers.LlamaConfig(**{**model.config.to_dict(), "rope_parameters": None, "rope_scaling": None})
    if int(transformers.__version__.split(".")[0]) >= 5:
        config.rope_parameters = {"rope_theta": 10000.0, **scaling}
    else:
        config.rope_scaling = scaling
    scaled = transformers.LlamaForCausalLM(config).eval()
    scaled.load_state_dict(model.state_dict())
    path = tmp_path / "cache.safetensors"
    calibration.collect_cache(scaled, windows, path)
    assert calibration.calibrate([path], tmp_path / "a.kvcal").rotary.scaling.kind == scaling["rope_type"]
    rotary = RotaryEmbedding.of_config(config)
    back = turned_back(torch.from_numpy(load_file(path)["layer_0_key"]), rotary, torch.arange(40))
    expected = torch.stack([projected(scaled, window, "k_proj") for window in windows])
    # yarn scales what attention sees as well, alike in all channels.
    expected = expected * (back.norm() / expected.norm())
    np.testing.assert_allclose(back.numpy(), expected.numpy(), atol=1e-4)


def test_fisher_weights_foretell_what_an_error_costs(model, windows, tmp_path):
    path = tmp_path / "weights.safetensors"
    done = []
    calibration.collect_weights(model, windows[:1], path, kind="fisher", read_tokens=16, samples=400,
                                progress=done.append)
    assert done == [1.0]
    weights = load_file(path)
    window, scale = windows[:1], 2e-3
    generator = torch.Generator().manual_seed(5)
    name = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
    for layer, side in ((0, "keys"), (1, "values")):
        costs = []
        for _ in range(40):
            scores = []
            for part in (0.0, scale):
                with torch.no_grad():
                    held = getattr(model(window[:, :24], use_cache=True), name)
                    tensor = getattr(held.layers[layer], side)
                    noise = torch.randn(tensor[:, :, 4:].shape, generator=generator)
                    tensor[:, :, 4:] += part * noise
                    scores.append(model(window[:, 24:], **{name: held}).logits[0].double().log_softmax(-1))
            costs.append(float((scores[0].exp() * (scores[0] - scores[1])).sum()))
        (weight,) = weights[f"layer_{layer}_{side[:-1]}"]
        assert weight.shape == (16, 16)
        assert np.array_equal(weight, weight.T)
        foretold = 0.5 * scale**2 * 20 * np.trace(weight)
        assert np.mean(costs) == pytest.approx(foretold, rel=0.25)


def test_fisher_weights_are_of_keys_before_they_turn(model, windows, tmp_path):
    """A model whose embedding turns hardly at all has the same weights either way; another one has not."""
    kept = {}
    for name, rotary in (("own", None), ("none", RotaryEmbedding(1e30)), ("wrong", RotaryEmbedding(7.0))):
        path = tmp_path / name
        calibration.collect_weights(model, windows, path, kind="fisher", read_tokens=16, rotary=rotary)
        kept[name] = load_file(path)
    for name, weight in kept["own"].items():
        for other in ("none", "wrong"):
            same = np.allclose(weight, kept[other][name], rtol=1e-3, atol=1e-6 * weight.max())
            assert same == name.endswith("value"), name
            assert np.trace(weight[0]) == pytest.approx(np.trace(kept[other][name][0]), rel=1e-4)


def test_attention_weights_are_the_queries_as_keys_meet_them(model, windows, tmp_path):
    path = tmp_path / "weights.safetensors"
    window = windows[0, :8]
    calibration.collect_weights(model, [window], path, kind="attention", group_dim=64, read_tokens=1)
    weights = load_file(path)
    queries = projected(model, window, "q_proj").double().numpy()
    moments = np.zeros((2, 8, 8))
    pair = np.arange(4)
    for key in (4, 5):
        for query in range(key + 1, 7):
            angles = (query - key) * 10000.0 ** (-2.0 * pair / 8)
            first, second = queries[:, query, :4], queries[:, query, 4:]
            turned = np.concatenate([first * np.cos(angles) - second * np.sin(angles),
                                     first * np.sin(angles) + second * np.cos(angles)], axis=1)
            for head in range(4):
                moments[head // 2] += np.outer(turned[head], turned[head]) / (2 * 1.5)
    (weight,) = weights["layer_0_key"]
    assert not weight[:8, 8:].any()
    expected = np.zeros((16, 16))
    expected[:8, :8], expected[8:, 8:] = moments
    np.testing.assert_allclose(weight, expected * 16 / np.trace(expected), rtol=1e-3, atol=1e-4)
    output = model.model.layers[1].self_attn.o_proj.weight.detach().double().numpy()
    first = output[:, :8].T @ output[:, :8] + output[:, 8:16].T @ output[:, 8:16]
    (weight,) = weights["layer_1_value"]
    np.testing.assert_allclose(weight[:8, :8] / np.trace(weight[:8, :8]), first / np.trace(first), atol=1e-5)


def test_mixed_weights_are_half_of_each(model, windows, tmp_path):
    kept = {}
    for kind in ("mixed", "fisher", "attention"):
        calibration.collect_weights(model, windows, tmp_path / kind, kind=kind, read_tokens=16, seed=5)
        kept[kind] = load_file(tmp_path / kind)
    for name, fisher in kept["fisher"].items():
        scale = np.trace(fisher[0]) / 16
        assert scale != pytest.approx(1, rel=0.1)
        expected = (fisher + scale * kept["attention"][name]) / 2
        np.testing.assert_allclose(kept["mixed"][name], expected, rtol=1e-4, atol=1e-6 * scale)


@pytest.mark.parametrize("kind", ["mixed", "fisher", "attention"])
def test_weights_fit_a_calibration(model, windows, program, tmp_path, kind):
    cache, weights = tmp_path / "cache.safetensors", tmp_path / "weights.safetensors"
    calibration.collect_cache(model, windows, cache)
    calibration.collect_weights(model, windows, weights, kind=kind, read_tokens=16, group_dim=64)
    made = calibration.calibrate([cache], tmp_path / "a.kvcal", weights=weights, group_dim=64)
    assert made.is_weighted
    steps = [tensor["step"] for tensor in made.report["tensors"]]
    assert (steps == [1.0] * 4) == (kind == "attention"), json.dumps(steps)


def test_what_cannot_be_collected_is_refused(model, windows, tmp_path):
    path = tmp_path / "weights.safetensors"
    for change, text in (({"windows": []}, "no windows"), ({"windows": windows[:, :20]}, "at least 70"),
                         ({"windows": [[[1]]]}, "of shape"), ({"kind": "none"}, "kind is"),
                         ({"samples": 0}, "at least 1"), ({"read_tokens": 0}, "at least 1")):
        with pytest.raises(kvcompress.InvalidArgument, match=text):
            calibration.collect_weights(**{"model": model, "windows": windows, "path": path, **change})
    with pytest.raises(kvcompress.InvalidArgument, match="one length"):
        calibration.collect_cache(model, [[1, 2], [1]], path)
    with pytest.raises(kvcompress.InvalidArgument, match="training mode"):
        calibration.collect_cache(model.train(), windows, path)
    eager = transformers.LlamaForCausalLM(model.config).eval()
    eager.set_attn_implementation("eager")
    with pytest.raises(kvcompress.InvalidArgument, match="eager"):
        calibration.collect_weights(eager, windows, path, read_tokens=1)
    assert not path.exists()
