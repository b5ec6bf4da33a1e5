"""Compressors of low rank on models, tiny ones of random weights: what they observe, measure and write."""

import copy
import json
import math
import re

import kvcompress
import pytest
from kvcompress import InvalidArgument, RotaryEmbedding
from kvcompress.calibration import CompressionConfig, load_model
from kvcompress.calibration._inputs import texts

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

from kvcompress.calibration import (  # noqa: E402 - need PyTorch
    KVSpliceCompressor,
    PCACompressor,
    load_compressor,
    low_rank_run,
    low_rank_statistics,
)
from kvcompress.calibration.low_rank_tuning import fine_tune  # noqa: E402
from kvcompress.calibration.scoring import jackknife_stderr, kl_divergence, score_restored  # noqa: E402

LAYERS, HEADS, READERS, D = 2, 2, 2, 16
LAST_LINES = re.compile(
    r"\nBaseline perplexity:    \d+\.\d\d\nCompressed perplexity:  \d+\.\d\d\nPerplexity degradation: [+-]\d+\.\d\d%\n"
    r"Memory savings:         (\d+\.\d)%\nCalibration time:       \d+\.\ds\n$"
)


@pytest.fixture(scope="module")
def llama():
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(
        vocab_size=64, hidden_size=64, intermediate_size=64, num_hidden_layers=LAYERS, head_dim=D,
        num_attention_heads=HEADS * READERS, num_key_value_heads=HEADS, max_position_embeddings=128,
        initializer_range=0.15)).eval()


@pytest.fixture(scope="module")
def gpt2():
    torch.manual_seed(0)
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(
        vocab_size=64, n_embd=HEADS * D, n_layer=LAYERS, n_head=HEADS, n_positions=128, initializer_range=0.3)).eval()


@pytest.fixture
def rows():
    return list(torch.randint(0, 64, (6, 48), generator=torch.Generator().manual_seed(1)))


@pytest.fixture
def folder(llama, tmp_path):
    """A model with a tokenizer of letters, and a text."""
    letters = {chr(code): code - 32 for code in range(32, 96)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(letters, unk_token=" "))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(tmp_path / "model")
    llama.save_pretrained(tmp_path / "model")
    (tmp_path / "text.txt").write_text("".join(chr(32 + (7 * i * i + i // 3) % 64) for i in range(1200)))
    write_config(tmp_path / "config.json", 6)
    return tmp_path


def document(rank, layers=LAYERS, heads=HEADS, **fields):
    listed = {f"{layer}/{head}": {"enabled": True, "rank": rank, **fields}
              for layer in range(layers) for head in range(heads)}
    return {"global": {"d_head": D}, "per_layer_head": listed}


def write_config(path, rank, **options):
    path.write_text(json.dumps(document(rank, **options)))
    return path


def run(folder, *flags, dataset="text.txt"):
    return low_rank_run.main([
        "--model", str(folder / "model"), "--config", str(folder / "config.json"), "--output-dir", str(folder / "out"),
        "--calibration-dataset", str(folder / dataset), "--eval-dataset", str(folder / dataset), "--max-length", "48",
        *flags])


def test_what_is_measured_on_is_by_itself_the_other_half_of_what_is_learned_from(folder):
    results = folder / "out" / "calibration_results_pca.json"
    assert run(folder, "--compressor", "pca") == 0
    both = json.loads(results.read_text())
    assert low_rank_run.main([
        "--model", str(folder / "model"), "--config", str(folder / "config.json"), "--output-dir", str(folder / "out"),
        "--calibration-dataset", str(folder / "text.txt"), "--max-length", "48", "--compressor", "pca"]) == 0
    one = json.loads(results.read_text())
    assert one["compressed_perplexity"] == both["compressed_perplexity"]


@pytest.mark.parametrize("name", ["kvsplice", "pca"])
def test_a_run_writes_its_files_and_its_last_five_lines(folder, name, capsys):
    assert run(folder, "--compressor", name) == 0
    told = capsys.readouterr()
    (savings,) = LAST_LINES.search(told.out).groups()
    assert float(savings) == pytest.approx(100 * (1 - 6 / 16), abs=0.1)
    assert "calibration: 100%" in told.err
    assert "measurement: 100%" in told.err
    results = json.loads((folder / "out" / f"calibration_results_{name}.json").read_text())
    assert {"model", "compressor", "config", "baseline_perplexity", "compressed_perplexity", "memory_stats",
            "perplexity_degradation_pct", "calibration_time_sec", "calibration_samples"} <= set(results)
    assert (results["compressor"], results["calibration_samples"]) == (name, 12)
    assert CompressionConfig.of_json(results["config"]).head(1, 1).rank == 6
    stats = results["memory_stats"]
    assert (stats["total_original_params"], stats["total_compressed_params"]) == (128, 48)
    assert (stats["bytes_per_token_original"], stats["bytes_per_token_compressed"]) == (256, 96)
    assert stats["measured_bytes_compressed"] == stats["measured_bytes_original"] * 6 // 16
    assert stats["side_information_bytes"] > 0
    score = results["score"]
    assert score["windows"] == 12
    assert score["kl"] > 10 * results["noise_floor_kl"] > 0
    assert score["delta_perplexity_stderr"] > 0
    assert 0 < score["top1_agreement"] < 1
    assert results["compressed_perplexity"] - results["baseline_perplexity"] == pytest.approx(score["delta_perplexity"])
    assert (results["pca_score"] is None) == (name == "pca")
    assert ("PCA of the same samples" in told.out) == (name == "kvsplice")
    loaded = load_compressor(folder / "out" / f"compressor_{name}.pt")
    assert loaded.rotary == RotaryEmbedding(10000.0)
    keys = torch.randn(1, 5, D)
    assert loaded.compress(1, 0, keys, keys)[0].shape == (1, 5, 6)
    assert loaded.memory_stats()["total_original_params"] == 128


@pytest.mark.parametrize(("kl", "told"), [(0.02, "beats"), (0.04, "does not beat"), (0.03, "does not beat")])
def test_whether_pca_is_beaten_is_said_as_it_is(kl, told):
    score = {"windows": 4, "tokens": 99, "delta_perplexity": 0.1, "delta_perplexity_stderr": 0.01, "kl": kl,
             "kl_stderr": 0.001, "top1_agreement": 0.9}
    text = low_rank_run.report({
        "compressor": "kvsplice", "score": score, "pca_score": {**score, "kl": 0.03}, "cache_dtype": "float16",
        "noise_floor_kl": 1e-7, "baseline_perplexity": 9.0, "compressed_perplexity": 9.1,
        "perplexity_degradation_pct": 1.1, "memory_stats": {"memory_savings_pct": 50.0}, "calibration_time_sec": 2.0})
    assert f"kvsplice {told} PCA of the same samples, whose KL is 3.00e-02" in text.splitlines()


def test_what_cannot_be_run_is_one_line(folder, capsys):
    assert run(folder, dataset="none.txt") == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert re.fullmatch(r"Error: .*none.txt is no file, and data sets need the package .*", last)
    for rank, layers, text in ((17, LAYERS, "layer0/head0: rank 17 is not between 1 and d 16"),
                               (6, 3, "layer2/head0 is not in a model of 2 layers")):
        if rank > D:
            (folder / "config.json").write_text(json.dumps(document(rank)))
        else:
            write_config(folder / "config.json", rank, layers=layers)
        assert run(folder) == 1
        assert f"Error: {text}" in capsys.readouterr().err
    (folder / "text.txt").write_text("short")
    write_config(folder / "config.json", 6)
    assert run(folder) == 1
    assert "at least 8 tokens" in capsys.readouterr().err
    assert not (folder / "out").exists()
    with pytest.raises(SystemExit):
        low_rank_run.main(["--config", "c.json", "--batch-size", "0"])


def test_halves_of_one_file_are_held_apart(folder):
    _, tokenizer = load_model(folder / "model", device="cpu")
    path = str(folder / "text.txt")
    whole = tokenizer((folder / "text.txt").read_text())["input_ids"]
    learned, held_out = (texts(path, tokenizer, 3, 48, part=part) for part in ((0, 0.5), (0.5, 1)))
    assert [row.tolist() for row in learned] == [whole[start : start + 48] for start in (0, 192, 384)]
    assert [row.tolist() for row in held_out] == [whole[start : start + 48] for start in (600, 792, 984)]
    with pytest.raises(InvalidArgument, match="no tokenizer"):
        texts(path, None, 3, 48)


def test_token_ids_take_the_place_of_a_text(folder, rows, capsys):
    (folder / "windows.json").write_text(json.dumps({"windows": [row.tolist() for row in rows]}))
    assert run(folder, "--quiet", dataset="windows.json") == 0
    assert "Measured on 3 texts" in capsys.readouterr().out
    (folder / "windows.json").write_text(json.dumps({"windows": [[1, 2, 3]]}))
    assert run(folder, "--quiet", dataset="windows.json") == 1
    assert "at least 8 token ids" in capsys.readouterr().err


def test_configs_by_query_heads_are_grouped(llama):
    heads = {f"0/{head}": {"enabled": True, "rank": rank} for head, rank in enumerate((4, 6, 2, 3))}
    config = CompressionConfig.of_json({"global": {"d_head": D}, "per_layer_head": heads})
    grouped = low_rank_run.by_key_value_head(config, llama.config)
    assert {head: found.rank for head, found in grouped.heads.items()} == {(0, 0): 6, (0, 1): 3}
    as_it_is = CompressionConfig.of_json(document(5))
    assert low_rank_run.by_key_value_head(as_it_is, llama.config) is as_it_is


class TestCalibration:
    @pytest.mark.parametrize("kind", [PCACompressor, KVSpliceCompressor])
    @pytest.mark.parametrize("family", ["llama", "gpt2"])
    def test_every_head_is_observed_and_full_rank_changes_nothing(self, family, kind, rows, request):
        model = request.getfixturevalue(family)
        rotary = RotaryEmbedding.of_config(model.config)
        assert (rotary is None) == (family == "gpt2")
        found = {}
        for rank in (D, 8, 2):
            compressor = kind(document(rank), rotary=rotary)
            low_rank_run.fit(model, compressor, rows)
            assert compressor.memory_stats()["total_original_params"] == LAYERS * HEADS * 2 * D
            found[rank] = low_rank_run.measure(model, compressor, rows, cache_dtype=torch.float32).score
        assert found[D].kl < 1e-8
        assert found[D].perplexity == pytest.approx(found[D].baseline_perplexity, rel=1e-5)
        assert found[2].kl > found[8].kl > 1e-5

    def test_projections_that_lose_everything_change_the_predictions(self, llama, rows):
        compressor = PCACompressor(document(8))
        low_rank_run.fit(llama, compressor, rows)
        state = compressor.state_dict()
        compressor.load_state_dict({
            name: torch.zeros_like(value) if isinstance(value, torch.Tensor) else value
            for name, value in state.items()})
        measured = low_rank_run.measure(llama, compressor, rows)
        assert measured.score.kl > 0.01
        assert measured.score.perplexity != measured.score.baseline_perplexity

    def test_batches_change_nothing(self, llama, rows):
        states = []
        for size in (1, 4):
            compressor = KVSpliceCompressor(document(4), rotary=RotaryEmbedding(10000.0))
            low_rank_run.fit(llama, compressor, [*rows, torch.arange(20)], batch_size=size)
            states.append(compressor.state_dict())
        for name, value in states[0].items():
            if isinstance(value, torch.Tensor):
                torch.testing.assert_close(value, states[1][name], rtol=2e-2, atol=2e-2)

    def test_weights_are_what_attention_makes_of_errors(self, llama, rows, monkeypatch):
        """By the model's own probabilities, queries and output projections."""
        monkeypatch.setattr(low_rank_statistics, "_QUERY_STRIDE", 1)
        seen = {}

        class Watching(KVSpliceCompressor):
            def observe_kv(self, layer, head, keys, values, *, weights, **options):
                seen[layer, head] = weights
                super().observe_kv(layer, head, keys, values, weights=weights, **options)

            def observe_costs(self, layer, head, key_cost, value_cost):
                seen["cost", layer, head] = key_cost, value_cost

        compressor = Watching(document(4))
        compressor.start_calibration()
        low_rank_statistics.observe_model(llama, [torch.stack(rows[:2])], compressor)
        eager = transformers.LlamaForCausalLM(copy.deepcopy(llama.config)).eval()
        eager.load_state_dict(llama.state_dict())
        eager.set_attn_implementation("eager")
        with torch.no_grad():
            attentions = eager(torch.stack(rows[:2]), output_attentions=True).attentions
        for layer in range(LAYERS):
            shares = attentions[layer].reshape(2, HEADS, READERS, 48, 48)
            for head in range(HEADS):
                p = shares[:, head]
                for_keys, for_values = seen[layer, head]
                torch.testing.assert_close(for_keys, (p * (1 - p)).sum((1, 2)), rtol=1e-3, atol=1e-4)
                torch.testing.assert_close(for_values, p.square().sum((1, 2)), rtol=1e-3, atol=1e-4)
                output = llama.model.layers[layer].self_attn.o_proj.weight.detach()
                readers = output.reshape(64, HEADS, READERS, D)[:, head]
                expected = sum(readers[:, reader].T @ readers[:, reader] for reader in range(READERS))
                torch.testing.assert_close(seen["cost", layer, head][1], expected, rtol=1e-3, atol=1e-4)
        inputs = llama.model.layers[0].input_layernorm(llama.model.embed_tokens(torch.stack(rows[:2])))
        queries = llama.model.layers[0].self_attn.q_proj(inputs).detach().double()
        expected = sum(float(queries[..., head * READERS * D : (head + 1) * READERS * D].square().sum())
                       for head in range(1))
        # Turning changes no length.
        assert float(seen["cost", 0, 0][0].trace()) == pytest.approx(expected, rel=1e-3)

    def test_a_model_in_training_is_refused(self, gpt2, rows):
        gpt2.train()
        try:
            with pytest.raises(InvalidArgument, match="training mode"):
                low_rank_run.fit(gpt2, PCACompressor(document(4)), rows)
        finally:
            gpt2.eval()


class TestFineTuning:
    def test_divergence_falls_and_the_state_is_whole(self, llama, rows):
        compressor = KVSpliceCompressor(document(6), rotary=RotaryEmbedding(10000.0))
        low_rank_run.fit(llama, compressor, rows)
        names = sorted(compressor.state_dict())
        before = low_rank_run.measure(llama, compressor, rows).score.kl
        seen = []
        fine_tune(llama, compressor, rows, 12, progress=lambda steps: seen.extend(steps) or steps)
        assert low_rank_run.measure(llama, compressor, rows).score.kl < 0.9 * before
        assert sorted(seen) == sorted(list(range(6)) * 12)
        state = compressor.state_dict()
        assert sorted(state) == names
        assert not any(value.requires_grad for value in state.values() if isinstance(value, torch.Tensor))
        assert all(parameter.grad is None for parameter in llama.parameters())
        other = KVSpliceCompressor(document(6))
        other.load_state_dict(state)
        keys = torch.randn(1, 5, D)
        assert torch.equal(other.compress(0, 1, keys, keys)[1], compressor.compress(0, 1, keys, keys)[1])

    def test_what_cannot_be_learned_from_is_refused(self, llama, rows):
        compressor = KVSpliceCompressor(document(6))
        for few, text in (([], "at least 8 tokens"), ([rows[0][:7]], "at least 8 tokens"), (rows, "nothing to learn")):
            with pytest.raises(InvalidArgument, match=text):
                fine_tune(llama, compressor, few, 1)

    def test_the_program_does_it(self, folder, capsys):
        assert run(folder, "--epochs", "1", "--calibration-samples", "2") == 0
        assert "learning: 100%" in capsys.readouterr().err
        assert run(folder, "--epochs", "1", "--compressor", "pca") == 1
        assert "--epochs is for kvsplice" in capsys.readouterr().err


class TestScores:
    def test_an_untouched_cache_changes_nothing_and_a_changed_one_is_measured(self, llama, rows):
        def zeroed(pairs):
            return [(torch.zeros_like(key), value) for key, value in pairs]

        (same, other), noise = score_restored(llama, rows, [40] * 6, [lambda pairs: pairs, zeroed], torch.float32)
        assert (same.kl, same.delta_nll, same.top1_agreement, noise) == (0, 0, 1, 0)
        assert (same.tokens, same.windows) == (6 * 7, 6)
        total = kl = 0.0
        with torch.no_grad():
            for row in rows:
                whole = llama(row[None]).logits[0].double().log_softmax(-1)[40:-1]
                total -= float(whole.gather(1, row[41:, None]).sum())
                name = low_rank_run.score_restored.__globals__["_cache_name"](llama)
                cache = getattr(llama(row[None, :40], use_cache=True), name)
                for layer in cache.layers:
                    layer.keys = torch.zeros_like(layer.keys)
                changed = llama(row[None, 40:-1], **{name: cache}).logits[0].double().log_softmax(-1)
                kl += float(torch.nn.functional.kl_div(changed, whole, reduction="sum", log_target=True))
        assert same.baseline_nll == pytest.approx(total / 42, rel=1e-5)
        assert other.kl == pytest.approx(kl / 42, rel=1e-4)

    def test_sliding_layers_that_hold_everything_are_scored_alike_each_time(self, rows):
        torch.manual_seed(0)
        model = transformers.MistralForCausalLM(transformers.MistralConfig(
            vocab_size=64, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, sliding_window=64, initializer_range=0.15)).eval()
        scores, _ = score_restored(model, rows, [40] * 6, [lambda pairs: pairs] * 3, torch.float32)
        assert [score.kl for score in scores] == [0, 0, 0]
        with torch.no_grad():
            whole = torch.cat([
                model(row[None]).logits[0].log_softmax(-1)[40:-1].gather(1, row[41:, None]) for row in rows])
        assert scores[2].baseline_nll == pytest.approx(-float(whole.mean()), rel=1e-5)

    def test_errors_are_by_the_jackknife(self):
        samples = [1.0, 2.0, 4.0, 8.0]
        expected = torch.tensor(samples).std() / 2
        assert jackknife_stderr(lambda some: sum(some) / len(some), samples) == pytest.approx(float(expected))
        assert math.isnan(jackknife_stderr(sum, [1.0]))

    def test_divergences_are_those_of_torch(self):
        a, b = (torch.randn(5, 9).double().log_softmax(-1) for _ in range(2))
        expected = torch.nn.functional.kl_div(b, a, reduction="none", log_target=True).sum(-1)
        torch.testing.assert_close(kl_divergence(a, b), expected)
        a[0, 0] = -math.inf
        assert kl_divergence(a, b).isfinite().all()

    def test_windows_that_leave_nothing_are_refused(self, llama, rows):
        for few, prefix, text in (([], 40, "no windows"), (rows, 47, "leave none to score"), (rows, 0, "leave none")):
            with pytest.raises(kvcompress.InvalidArgument, match=text):
                score_restored(llama, few, [prefix] * len(few), [], torch.float32)
