"""The measurement: against hand-computed values, against an exact codec, and against an independent measurement."""

import json
import math

import cache_view
import numpy as np
import pytest
import scoring
import torch
from compression_bridge import Spec
from conftest import REPOSITORY, make_model
from kvcompress.calibration.scoring import jackknife_stderr, kl_divergence
from model_inputs import Window, load_model_and_tokenizer, windows_from_json
from safetensors.torch import load_file


def windows(count=6, length=48, prefix_len=32):
    ids = torch.randint(0, 64, (count, length), generator=torch.Generator().manual_seed(2))
    return [Window(row.tolist(), prefix_len) for row in ids]


@pytest.fixture(scope="module")
def scores():
    specs = [Spec(group_size=32), Spec(), Spec("int8"), Spec("lossless"),
             Spec(profile=str(REPOSITORY / "deploy" / "profiles" / "mixed-n2-q10.json"))]
    found = scoring.score(make_model(), windows(), specs, torch.float16)
    return {score.spec: score for score in found}


def test_baseline_is_the_model_s_own_log_likelihood(scores):
    model, total, tokens = make_model(), 0.0, 0
    for ids, prefix_len in windows():
        with torch.no_grad():
            log_probs = torch.log_softmax(model(torch.tensor([ids])).logits[0].double(), dim=-1)
        # Position t predicts token t + 1; the first prediction of the continuation belongs to the prefix.
        for position in range(prefix_len, len(ids) - 1):
            total -= log_probs[position, ids[position + 1]].item()
            tokens += 1
    score = scores["int4(group=64)"]
    assert score.tokens == tokens == 6 * 15
    assert score.baseline_nll == pytest.approx(total / tokens, rel=1e-3)  # the cache is rounded to float16
    assert score.baseline_perplexity == pytest.approx(math.exp(score.baseline_nll))


def test_lossless_changes_exactly_nothing(scores):
    score = scores["lossless"]
    for change in score.changes.values():
        assert (change.delta_nll, change.delta_perplexity, change.kl, change.top1_agreement) == (0, 0, 0, 1)
        assert change.delta_nll_stderr == change.kl_stderr == 0
    assert score.snr_keys_db == score.snr_values_db == score.token_snr_keys_db == math.inf


def test_the_untouched_cache_is_rounded_to_the_saved_type_and_nothing_else():
    exact = scoring.score(make_model(), windows(2), [Spec("lossless")], torch.float32)[0]
    coarse = scoring.score(make_model(), windows(2), [Spec("lossless")], torch.bfloat16)[0]
    assert coarse.changes["both"].kl == exact.changes["both"].kl == 0
    assert coarse.baseline_nll != exact.baseline_nll
    assert exact.original_bytes == 2 * coarse.original_bytes


def test_more_bits_do_less_damage(scores):
    kl = [scores[spec].changes["both"].kl for spec in ("int4(group=64)", "int4(group=32)", "int8", "mixed-n2-q10")]
    assert kl == sorted(kl, reverse=True) and kl[2] > 0
    assert kl[3] == 0, "both layers of this model are lossless in the mixed profile"


def test_keys_and_values_are_told_apart(scores):
    changes = scores["int4(group=64)"].changes
    assert len({change.kl for change in changes.values()}) == 3
    assert all(change.kl > 0 for change in changes.values())
    old, new = [(torch.zeros(1), torch.zeros(1))], [(torch.ones(1), torch.ones(1))]
    assert {part: [tensor.item() for tensor in scoring.mix(old, new, part)[0]] for part in scoring.PARTS} == {
        "both": [1, 1], "keys": [1, 0], "values": [0, 1]}


def test_restored_tensors_are_what_the_program_decoded(tmp_path):
    """With one window, what the file holds explains SNR, ratio and every log-probability."""
    from compression_bridge import compress_kv_cache, decompress_kv_cache
    from kv_cache_utils import save_kv_cache

    model, (window,) = make_model(), windows(1)
    score = scoring.score(model, [window], [Spec()], torch.float16)[0]
    plain, packed, back = (str(tmp_path / name) for name in ("plain", "packed", "back"))
    ids = torch.tensor([window.ids])
    with torch.no_grad():
        _, cache = cache_view.forward(model, ids[:, :32])
        saved = [(key.half(), value.half()) for key, value in cache_view.layers(cache)]
        save_kv_cache(saved, plain, config=model.config)
        metrics = compress_kv_cache(plain, packed)
        decompress_kv_cache(packed, back)
        tensors, decoded = load_file(plain), load_file(back)
        pairs = [(decoded[f"layer_{layer}_key"], decoded[f"layer_{layer}_value"]) for layer in range(2)]
        logits, _ = cache_view.forward(model, ids[:, 32:-1], cache_view.with_tensors(cache, pairs))
    log_probs = torch.log_softmax(logits[0].double(), dim=-1)
    nll = -log_probs[range(15), ids[0, 33:]].mean().item()
    assert math.log(score.changes["both"].perplexity) == pytest.approx(nll, rel=1e-12)
    assert score.ratio == pytest.approx(metrics.compression_ratio)
    signal = error = token_signal = token_error = 0.0
    for name, tensor in tensors.items():
        if name.endswith("key"):
            original, restored = tensor.double().numpy(), decoded[name].double().numpy()
            signal += np.var(original) * original.size
            error += np.square(original - restored).sum()
            lost = original - restored
            token_signal += np.square(original - original.mean(-2, keepdims=True)).sum()
            token_error += np.square(lost - lost.mean(-2, keepdims=True)).sum()
    assert score.snr_keys_db == pytest.approx(10 * math.log10(signal / error))
    assert score.token_snr_keys_db == pytest.approx(10 * math.log10(token_signal / token_error))
    assert math.isnan(score.changes["both"].delta_nll_stderr), "one window tells nothing of the spread"


def test_kl_by_hand():
    half, quarter = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log()
    expected = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    assert kl_divergence(half, quarter).item() == pytest.approx(expected)
    assert kl_divergence(half, half).item() == 0
    never = torch.tensor([[1.0, 0.0]]).log()
    assert kl_divergence(never, half).item() == pytest.approx(math.log(2)), "0 log 0 is 0"
    assert kl_divergence(never, never).item() == 0
    assert kl_divergence(half, never).item() == math.inf
    assert math.isnan(kl_divergence(half, torch.tensor([[math.nan, 0.0]])).item())


def test_jackknife_of_a_mean_is_its_standard_error():
    samples = [1.0, 4.0, 2.0, 8.0]
    found = jackknife_stderr(lambda some: sum(some) / len(some), samples)
    assert found == pytest.approx(np.std(samples, ddof=1) / 2)
    assert math.isnan(jackknife_stderr(lambda some: 0.0, [1.0]))


@pytest.mark.parametrize("given, text", [
    ([], "no windows to measure"),
    ([Window([1, 2, 3], 2)], "a window of 3 tokens and a prefix of 2"),
    ([Window([1, 2, 3], 0)], "a prefix of 0"),
    ([Window([1] * 129, 2)], "a window of 129 tokens does not fit into the model's context of 128"),
    ([Window([1, 2, 64], 1)], "64 is no token of the model, which has 64"),
    ([Window([1, 2, -1], 1)], "-1 is no token"),
    ([Window([1, 2, 3.5], 1)], "3.5 is no token"),
    ([Window("abc", 1)], "'a' is no token"),
])
def test_windows_that_cannot_be_scored(model, given, text):
    with pytest.raises(ValueError, match=text):
        scoring.score(model, given, [Spec()], torch.float16)


def test_a_model_that_trains_is_not_scored():
    with pytest.raises(ValueError, match=r"in training mode, with dropout: call its eval\(\)"):
        scoring.score(make_model().train(), windows(1), [Spec()], torch.float16)


def test_what_is_not_finite_is_no_measurement():
    large = make_model()
    with torch.no_grad():
        large.model.layers[1].self_attn.v_proj.weight.mul_(1e6)
    with pytest.raises(ValueError, match="the cache is not finite in float16: try another --cache-dtype"):
        scoring.score(large, windows(1), [Spec()], torch.float16)
    assert scoring.score(large, windows(1), [Spec("lossless")], torch.float32)[0].changes["both"].kl == 0
    broken = make_model()
    with torch.no_grad():
        broken.lm_head.weight[5] = math.nan
    with pytest.raises(ValueError, match="the model's predictions are not finite"):
        scoring.score(broken, windows(1), [Spec()], torch.float16)


def test_a_trained_model_agrees_with_an_independent_measurement(stories):
    """model-stories, 96 windows of 252 tokens: its README gives what another implementation measured."""
    model, tokenizer = load_model_and_tokenizer(str(stories), "cpu")
    assert tokenizer is None
    path = stories / "windows.json"
    score = scoring.score(model, windows_from_json(str(path), 96), [Spec(), Spec("lossless")], torch.float16)
    int4, lossless = score
    assert int4.tokens == 5664 and int4.baseline_nll == pytest.approx(1.159, abs=5e-4)
    both, keys, values = (int4.changes[part] for part in scoring.PARTS)
    assert both.delta_nll == pytest.approx(0.0060, abs=0.0014)
    assert both.delta_nll_stderr == pytest.approx(0.0014, abs=0.0003)
    assert both.kl == pytest.approx(4.6e-3, rel=0.05)
    assert keys.delta_nll == pytest.approx(0.0059, abs=0.0014) and keys.kl == pytest.approx(3.8e-3, rel=0.05)
    assert values.delta_nll == pytest.approx(0.0003, abs=0.0006) and values.kl == pytest.approx(9e-4, rel=0.05)
    assert lossless.changes["both"].delta_nll == lossless.changes["both"].kl == 0
    reference = json.loads(path.read_text())["continuation_nll_f32"]
    for window, expected in zip(windows_from_json(str(path), 96), reference):
        one = scoring.score(model, [window], [Spec("lossless")], torch.float32)[0]
        assert one.baseline_nll == pytest.approx(expected, abs=2e-4)


def test_the_noise_floor_is_what_rounding_does_without_a_codec():
    lossless, int8 = scoring.score(make_model(), windows(), [Spec("lossless"), Spec("int8")], torch.float16)
    floor = lossless.noise_floor
    assert floor == int8.noise_floor, "it is one of the run"
    assert 0 < floor.kl < 1e-10 < int8.changes["both"].kl and lossless.changes["both"].kl == 0
    assert abs(floor.delta_nll) < 1e-6 and 0 < floor.delta_nll_stderr < 1e-6 and floor.top1_agreement == 1
    assert floor.delta_perplexity == pytest.approx(floor.perplexity - lossless.baseline_perplexity)


def test_in_bfloat16_rounding_does_more_than_twelve_bits():
    fine, coarse = scoring.score(make_model().bfloat16(), windows(), [Spec("quant(bits=12)"), Spec("int2")], torch.bfloat16)
    assert 1e-5 < fine.noise_floor.kl < 1e-3 and fine.noise_floor.delta_nll != 0
    assert 0 < fine.changes["both"].kl < 2 * fine.noise_floor.kl < coarse.changes["both"].kl


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_one_unit_off_is_the_smallest_change_of_each_value(dtype):
    values = torch.tensor([[1.0, -1.5, 3.0e-3, 60.0, 0.0]], dtype=dtype).t()[:, 0]  # of no contiguous memory
    off = scoring.one_unit_off(values)
    unit = torch.finfo(dtype).eps * 2.0 ** values.abs().double().log2().floor()
    assert ((off.double() - values.double()).abs()[:4] == unit[:4]).all() and 0 < off[4] < 1e-6
    assert torch.equal(scoring.one_unit_off(off), values)


def test_the_snr_of_latents_is_the_mean_over_the_tensors_that_lost_something():
    key, value = torch.randn(2, 1, 2, 32, 16, generator=torch.Generator().manual_seed(3)).half()
    off = value + (0.1 * value.std()).half()
    found = scoring.tensor_metrics([(key, value)], [(key, off)], 2, 1)
    error = (off.double() - value.double()).square().mean()
    assert found.snr_db == pytest.approx(10 * math.log10(value.double().var(correction=0) / error)) and found.rmse > 0
    assert scoring.tensor_metrics([(key, value)], [(key, value)], 2, 1).snr_db == math.inf
    still = torch.ones_like(value)  # no variance, so no SNR
    assert math.isnan(scoring.tensor_metrics([(still, still)], [(still, still + 1)], 2, 1).snr_db)
