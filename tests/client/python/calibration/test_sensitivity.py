"""Sensitivity of heads, against the same done by hand; beside Fisher tiers, in words and in numbers."""

import csv
import inspect
import subprocess

import kvcompress
import numpy as np
import pytest
from kvcompress.calibration.sensitivity_report import (
    Row,
    chance,
    correlations,
    plot,
    rank_correlation,
    rows_of,
    sensitivity_text,
    verdict,
    write_table,
)
from safetensors.numpy import load_file, save_file

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from kvcompress.calibration import fisher_metrics, measure_sensitivity  # noqa: E402
from kvcompress.calibration.fisher_report import FisherRun  # noqa: E402

LAYERS, QUERIES, KEYS, DIM, READ = 2, 4, 2, 32, 8
CODEC = "int4(group=32)"


@pytest.fixture(scope="module")
def model():
    torch.set_num_threads(1)
    torch.manual_seed(3)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(
        vocab_size=50, hidden_size=QUERIES * DIM, intermediate_size=48, num_hidden_layers=LAYERS,
        num_attention_heads=QUERIES, num_key_value_heads=KEYS, max_position_embeddings=128,
        initializer_range=0.1)).eval()


@pytest.fixture(scope="module")
def windows():
    return torch.randint(0, 50, (2, 40), generator=torch.Generator().manual_seed(4))


def by_hand(model, windows, program, folder, is_coded):
    """The mean KL where the heads of `is_coded(layer, head, side)` are coded, of caches in float16."""
    total = 0.0
    name_of_cache = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"

    def read(window):
        with torch.no_grad():
            return getattr(model(window[None, :-READ], use_cache=True), name_of_cache)

    for window in windows:
        plain = read(window)
        tensors = {f"layer_{index}_{side}": getattr(layer, f"{side}s").half().numpy()
                   for index, layer in enumerate(plain.layers) for side in ("key", "value")}
        save_file(tensors, folder / "a")
        subprocess.run([program, "-input", folder / "a", "-output", folder / "b", "-codec", CODEC], check=True,
                       capture_output=True)
        subprocess.run([program, "-decompress", "-input", folder / "b", "-output", folder / "c"], check=True,
                       capture_output=True)
        decoded = load_file(folder / "c")
        scores = []
        for takes in (lambda *place: False, is_coded):
            cache = read(window)
            for index, layer in enumerate(cache.layers):
                for side in ("key", "value"):
                    name = f"layer_{index}_{side}"
                    mixed = tensors[name].copy()
                    for head in range(KEYS):
                        if takes(index, head, side):
                            mixed[:, head] = decoded[name][:, head]
                    setattr(layer, f"{side}s", torch.from_numpy(mixed).float())
            with torch.no_grad():
                logits = model(window[None, -READ:-1], **{name_of_cache: cache}, use_cache=True).logits[0]
            scores.append(logits.double().log_softmax(-1).numpy())
        total += float((np.exp(scores[0]) * (scores[0] - scores[1])).sum())
    return total / len(windows) / (READ - 1)


def test_each_head_and_side_alone_and_all_together(model, windows, program, tmp_path):
    done = []
    found = measure_sensitivity(model, windows, CODEC, read_tokens=READ, progress=done.append)
    assert (found.codec, found.cache_dtype) == (CODEC, "float16")
    assert set(found.heads) == {(layer, head) for layer in range(LAYERS) for head in range(KEYS)}
    measured = {"all keys": found.all_heads["keys"].kl, "all values": found.all_heads["values"].kl,
                "all": found.everything.kl}
    expected = {"all keys": lambda layer, head, side: side == "key",
                "all values": lambda layer, head, side: side == "value", "all": lambda *place: True}
    for place in ((0, 0, "key"), (0, 1, "value"), (1, 1, "key"), (1, 0, "value")):
        measured[place] = found.heads[place[:2]][f"{place[2]}s"].kl
        expected[place] = lambda *other, place=place: other == place
    assert measured == pytest.approx({name: by_hand(model, windows, program, tmp_path, takes)
                                      for name, takes in expected.items()}, rel=1e-3)
    assert all(kl > 1e-6 for kl in measured.values())
    assert found.kl((0, 0)) == sum(score.kl for score in found.heads[0, 0].values())
    assert found.everything.tokens == 2 * (READ - 1)
    assert 0 < found.noise_kl < min(measured.values())
    assert done == sorted(done)
    assert done[-1] == 1.0
    assert len(done) == 2 * (2 * LAYERS * KEYS + 3) + 1


def test_a_codec_without_loss_costs_nothing(model, windows, program):
    found = measure_sensitivity(model, windows, "lossless", read_tokens=READ, cache_dtype=torch.bfloat16)
    assert found.everything.kl == 0
    assert {score.kl for sides in found.heads.values() for score in sides.values()} == {0.0}
    assert (found.everything.top1_agreement, found.cache_dtype) == (1.0, "bfloat16")


def test_what_cannot_be_measured_is_refused(model, windows, program, monkeypatch, tmp_path):
    for change, text in (({"read_tokens": 1}, "2 tokens or more"), ({"read_tokens": 39}, "at least 41"),
                         ({"windows": [[1] * 20, [1] * 21], "read_tokens": 8}, "one length"),
                         ({"codec": "int99"}, "int99"), ({"windows": []}, "no windows")):
        with pytest.raises(kvcompress.InvalidArgument, match=text):
            measure_sensitivity(**{"model": model, "windows": windows, "codec": CODEC, "read_tokens": READ, **change})
    monkeypatch.delenv("KV_COMPRESS_PATH")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(kvcompress.FailedPrecondition, match="KV_COMPRESS_PATH"):
        measure_sensitivity(model, windows, CODEC, read_tokens=READ)


def test_heads_stand_beside_the_tiers_of_the_query_heads_that_read_them(model, windows, program, tmp_path):
    found = measure_sensitivity(model, windows, CODEC, read_tokens=READ)
    heads = FisherRun("tiny", fisher_metrics(model, windows)).heads
    rows = rows_of(found, heads, queries_per_key=2, d_head=DIM)
    assert [(row.layer, row.head) for row in rows] == sorted(found.heads)
    for row in rows:
        readers = [heads[row.layer, 2 * row.head + reader] for reader in range(2)]
        assert row.trace == max(reader["trace"] for reader in readers)
        assert row.cond == min(reader["cond"] for reader in readers)
        assert (row.kl_keys, row.kl_values) == tuple(
            found.heads[row.layer, row.head][side].kl for side in ("keys", "values"))
        assert row.kl == found.kl((row.layer, row.head))
    write_table(rows, tmp_path / "sensitivity.csv")
    with open(tmp_path / "sensitivity.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert [float(line["kl"]) for line in table] == [row.kl for row in rows]
    assert list(table[0]) == ["layer", "head", "kl_keys", "kl_keys_stderr", "kl_values", "kl_values_stderr", "kl",
                              "trace", "cond", "eigmax", "tier", "rank"]
    text = sensitivity_text(found, rows)
    listed = [line.split()[0] for line in text.splitlines() if line.startswith("layer")]
    assert listed == [f"layer{row.layer}/head{row.head}" for row in sorted(rows, key=lambda row: -row.kl)]
    assert f"{found.everything.kl:.2e} ± {found.everything.kl_stderr:.0e}" in text
    once = measure_sensitivity(model, windows[:1], CODEC, read_tokens=READ)
    alone = sensitivity_text(once, rows_of(once, heads, queries_per_key=2, d_head=DIM))
    assert "±" not in alone.partition("Rank correlation")[0], "one window tells of no error"
    assert verdict(rows) in text
    pytest.importorskip("matplotlib")
    plot(found, rows, tmp_path / "sensitivity.png")
    assert (tmp_path / "sensitivity.png").read_bytes().startswith(b"\x89PNG")


def row(kl, tier, rank, trace=0.5, cond=1e6):
    return Row(0, 0, kl, 0.0, 0.0, 0.0, trace, cond, cond * 1e-8, tier, rank)


def rows_where(order, count=20):
    """Half of the heads of rank 32, half of rank 8; `order` says whether head i of the first half is the worse."""
    moderate = [row(1.0 + index if order(index) else 0.001 / (1 + index), "moderate", 32) for index in range(count)]
    return moderate + [row(0.5 + index / 1e3, "excellent", 8, 0.2, 2e7) for index in range(count)]


@pytest.mark.parametrize(("order", "text"), [
    (lambda index: True, "The tiers guide on this model: "),
    (lambda index: index % 4 > 0, "The tiers guide weakly on this model: "),
    (lambda index: index % 2 == 0, "The tiers do not guide on this model: "),
    (lambda index: False, "The tiers mislead on this model: "),
])
def test_the_verdict(order, text):
    assert verdict(rows_where(order)).startswith(text)


def test_one_tier_says_nothing():
    rows = [row(float(index), "good", 16) for index in range(5)]
    assert "All heads are of one tier" in verdict(rows)
    assert correlations(rows)["rank"] == {"kl_keys": None, "kl_values": None, "kl": None}


def test_rank_correlation():
    assert rank_correlation([1, 2, 3, 4], [10, 20, 30, 1000]) == pytest.approx(1)
    assert rank_correlation([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1)
    # With d the differences of ranks: 1 - 6 sum(d^2) / (n (n^2 - 1)).
    assert rank_correlation([1, 2, 3, 4, 5], [2, 1, 4, 3, 5]) == pytest.approx(1 - 6 * 4 / (5 * 24))
    assert rank_correlation([1, 1, 2, 3], [5, 6, 7, 8]) == pytest.approx(
        np.corrcoef([1.5, 1.5, 3, 4], [1, 2, 3, 4])[0, 1])
    assert rank_correlation([1, 1, 1], [1, 2, 3]) is None
    assert chance(101) == pytest.approx(0.196)
