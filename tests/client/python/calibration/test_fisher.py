"""Fisher metrics of attention, against their definition written out, of models whose attention is known."""

import kvcompress
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from kvcompress.calibration import fisher, fisher_metrics  # noqa: E402

LAYERS, HEADS, TOKENS = 2, 4, 24


def make(kind="Llama", **changes):
    if not hasattr(transformers, f"{kind}Config"):
        pytest.skip(f"transformers {transformers.__version__} has no {kind}")
    torch.set_num_threads(1)
    torch.manual_seed(3)
    sizes = {"GPT2": {"n_embd": 32, "n_layer": LAYERS, "n_head": HEADS, "n_positions": 128},
             "OPT": {"ffn_dim": 48, "word_embed_proj_dim": 32}}
    usual = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
             "num_key_value_heads": 2, "max_position_embeddings": 128, "initializer_range": 0.5, "head_dim": 8}
    settings = sizes[kind] if kind == "GPT2" else {**usual, **sizes.get(kind, {})}
    config = getattr(transformers, f"{kind}Config")(vocab_size=50, **{**settings, **changes})
    if kind == "GPT2":
        config.initializer_range = 0.5
    return transformers.AutoModelForCausalLM.from_config(config).eval()


def without_weights():
    model = make()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    return model


@pytest.fixture
def windows():
    return torch.randint(0, 50, (3, TOKENS), generator=torch.Generator().manual_seed(4))


def told(model, window):
    """Attention as the model's own "eager" tells it, [layers, heads, tokens, tokens], in float64."""
    with torch.no_grad(), fisher._eager(model):
        attentions = model(window[None], output_attentions=True).attentions
    rows = torch.stack(attentions)[:, 0].double().numpy()
    return rows / rows.sum(-1, keepdims=True)


def defined(rows):
    """The metrics of one head, whose rows of all windows are [queries, keys], as the definition reads."""
    matrix = np.mean([np.diag(row) - np.outer(row, row) for row in rows], axis=0)
    values = np.linalg.eigvalsh(matrix)
    kept = values[values > len(values) * np.finfo(float).eps * values[-1]]
    metrics = {"eigmax": values[-1], "trace": np.trace(matrix), "cond": values[-1] / (abs(values[0]) + 1e-8),
               "cond_nonnull": values[-1] / kept[0], "energy_r8": values[-8:].sum() / values.sum(),
               "energy_r16": values[-16:].sum() / values.sum()}
    return {**metrics, **{f"eig_top{index}": value for index, value in enumerate(values[-8:])}}


@pytest.mark.parametrize("kind", ["Llama", "GPT2", "Qwen3", "Gemma2", "OPT"])
def test_heads_have_the_metrics_of_the_definition(kind, windows):
    model = make(kind)
    before = model.config._attn_implementation
    found = fisher_metrics(model, windows)
    assert model.config._attn_implementation == before
    rows = np.stack([told(model, window) for window in windows])
    for layer in range(LAYERS):
        for head in range(HEADS):
            expected = defined(rows[:, layer, head].reshape(-1, TOKENS))
            prefix = f"fisher/layer{layer}/head{head}/"
            of_head = {key.removeprefix(prefix): value for key, value in found.items() if key.startswith(prefix)}
            assert of_head == pytest.approx(expected, rel=1e-6)
            assert of_head["trace"] == pytest.approx(1 - (rows[:, layer, head] ** 2).sum(-1).mean())
            assert of_head["trace"] <= 1 - 1 / TOKENS
            assert of_head["cond"] == pytest.approx(of_head["eigmax"] * 1e8, rel=1e-6), "the null vector is exact"
            assert of_head["eig_top7"] == of_head["eigmax"]


def test_layers_and_the_model_have_means_and_extremes(windows):
    found = fisher_metrics(make(), windows)
    eigmax, cond, trace = (
        np.array([[found[f"fisher/layer{layer}/head{head}/{name}"] for head in range(HEADS)]
                  for layer in range(LAYERS)])
        for name in ("eigmax", "cond", "trace"))
    expected = {
        "fisher/eigmax_global_mean": eigmax.mean(), "fisher/eigmax_global_max": eigmax.max(),
        "fisher/eigmax_global_min": eigmax.min(), "fisher/cond_global_mean": cond.mean(),
        "fisher/cond_global_max": cond.max(), "fisher/trace_global_mean": trace.mean(),
        **{f"fisher/layer{layer}/eigmax_mean": eigmax[layer].mean() for layer in range(LAYERS)},
        **{f"fisher/layer{layer}/eigmax_max": eigmax[layer].max() for layer in range(LAYERS)},
    }
    assert {key: value for key, value in found.items() if "/head" not in key} == pytest.approx(expected)


def test_figures_are_the_same_every_time_and_in_more_than_one_block_of_queries(windows):
    """Nothing is sampled: not the queries, of which all count, nor the tokens."""
    model = make()
    assert fisher_metrics(model, windows) == fisher_metrics(model, windows)
    long = torch.randint(0, 50, (1, 100), generator=torch.Generator().manual_seed(5))
    rows = told(model, long[0])[1, 2]
    assert fisher_metrics(model, long)["fisher/layer1/head2/trace"] == pytest.approx(1 - (rows**2).sum(-1).mean())


def test_every_layer_is_measured(windows):
    """Not the first, the middle and the last alone."""
    found = fisher_metrics(make(num_hidden_layers=6), windows)
    assert sorted(key for key in found if key.endswith("/trace")) == [
        f"fisher/layer{layer}/head{head}/trace" for layer in range(6) for head in range(HEADS)]


def test_uniform_attention_has_the_trace_that_it_must(windows):
    """Without weights every query looks at all tokens before it alike: the trace is 1 - mean(1 / (i + 1))."""
    model = without_weights()
    found = fisher_metrics(model, windows)
    expected = 1 - np.mean(1 / np.arange(1, TOKENS + 1))
    assert found["fisher/trace_global_mean"] == pytest.approx(expected)


def test_short_windows_and_attention_to_one_token_have_fewer_metrics():
    model = without_weights()
    found = fisher_metrics(model, [[1] * 10])
    assert "fisher/layer0/head0/energy_r8" in found
    assert "fisher/layer0/head0/energy_r16" not in found
    assert [f"fisher/layer0/head0/eig_top{index}" in found for index in (0, 7)] == [True, True]
    two = fisher_metrics(model, [[1, 2]])
    assert [f"fisher/layer0/head0/eig_top{index}" in two for index in (1, 2)] == [True, False]
    assert two["fisher/layer0/head0/eigmax"] == pytest.approx(0.25 * 2 / 2)


def test_progress_goes_from_the_first_window_to_all(windows):
    done = []
    fisher_metrics(make(), windows, progress=done.append)
    assert done == [0.25, 0.5, 0.75, 1.0]


def test_what_cannot_be_measured_is_refused(windows):
    model = make()
    for rows, text in (([], "no windows"), ([[1]], "at least 2"), ([[1, 2], [1, 2, 3]], "one length")):
        with pytest.raises(kvcompress.InvalidArgument, match=text):
            fisher_metrics(model, rows)
    with pytest.raises(kvcompress.InvalidArgument, match="training mode"):
        fisher_metrics(make().train(), windows)
    without_attention = transformers.MambaForCausalLM(transformers.MambaConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, state_size=4)).eval()
    with pytest.raises(kvcompress.InvalidArgument, match="MambaForCausalLM does not tell its attention"):
        fisher_metrics(without_attention, windows)
