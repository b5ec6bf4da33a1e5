"""Compressors of low rank against their definitions: PCA, KVSplice, what their files hold, what they save."""

import json
import math

import kvcompress
import numpy as np
import pytest
from kvcompress import FailedPrecondition, InvalidArgument, RotaryEmbedding
from kvcompress.calibration import CompressionConfig

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from kvcompress.calibration import (  # noqa: E402 - need PyTorch
    KVSpliceCompressor,
    PCACompressor,
    load_compressor,
    low_rank,
)
from kvcompress.calibration._compressor_base import SAMPLED_ROWS  # noqa: E402
from kvcompress.calibration._reservoir import Reservoir  # noqa: E402

D = 16
BOTH = [PCACompressor, KVSpliceCompressor]


def config(ranks, **fields):
    """Of heads {(layer, head): rank} of 16 channels."""
    heads = {f"{layer}/{head}": {"enabled": True, "rank": rank, **fields} for (layer, head), rank in ranks.items()}
    return {"global": {"d_head": D}, "per_layer_head": heads}


def rows(seed, count=400, batch=1, d=D):
    """Of channels that have to do with one another, about a mean."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(d, d, generator=generator) * torch.logspace(0, -2, d)[:, None]
    return torch.randn(batch, count, d, generator=generator) @ mix + 3 * torch.randn(d, generator=generator)


def calibrated(kind, ranks, *, fields=None, **options):
    made = kind(config(ranks, **(fields or {})), **options)
    made.start_calibration()
    for layer, head in ranks:
        made.observe_kv(layer, head, rows(layer), rows(100 + head))
    made.end_calibration()
    return made


def error(made, layer=0, head=0, **options):
    """Mean squared errors of keys and values."""
    keys, values = rows(layer), rows(100 + head)
    back = made.decompress(layer, head, *made.compress(layer, head, keys, values, **options), **options)
    return [float((a - b).square().mean()) for a, b in zip((keys, values), back, strict=True)]


class TestPca:
    def test_it_is_the_best_projection_there_is(self):
        made = calibrated(PCACompressor, {(0, 0): 5})
        for side, x, found in (("k", rows(0)[0], error(made)[0]), ("v", rows(100)[0], error(made)[1])):
            x = x.double().numpy()
            left = np.linalg.svd(x - x.mean(0), compute_uv=False)[5:]
            assert found == pytest.approx((left**2).sum() / x.size, rel=1e-3), side
            basis = made.state_dict()[f"pca_modules.L0_H0.U_{side}"].double().numpy()
            np.testing.assert_allclose(basis @ basis.T, np.eye(5), atol=1e-5)
            assert (basis[range(5), abs(basis).argmax(1)] > 0).all(), "signs are arbitrary"

    def test_spectra_are_written(self, tmp_path):
        made = calibrated(PCACompressor, {(1, 2): 5})
        path = tmp_path / "spectra.json"
        made.save_eigenvalue_spectra(path)
        ((key, spectra),) = json.loads(path.read_text()).items()
        assert key == "1/2"
        assert sorted(spectra) == ["cumulative_variance_k", "cumulative_variance_v", "eigenvalues_k", "eigenvalues_v"]
        expected = np.linalg.eigvalsh(np.cov(rows(1)[0].double().numpy().T))[::-1]
        np.testing.assert_allclose(spectra["eigenvalues_k"], expected, rtol=1e-4, atol=1e-9)
        np.testing.assert_allclose(spectra["cumulative_variance_k"], expected.cumsum() / expected.sum(), rtol=1e-4)
        with pytest.raises(FailedPrecondition, match="not of one that was loaded"):
            PCACompressor(config({(0, 0): 5})).save_eigenvalue_spectra(path)


class TestKvSplice:
    def test_without_costs_it_is_pca(self):
        for found, best in zip(error(calibrated(KVSpliceCompressor, {(0, 0): 5})),
                               error(calibrated(PCACompressor, {(0, 0): 5})), strict=True):
            assert found == pytest.approx(best, rel=1e-3)

    def test_it_costs_less_than_pca_in_the_measure_that_it_is_told(self):
        cost = rows(7)[0].T @ rows(7)[0] / 400
        made = KVSpliceCompressor(config({(0, 0): 5}))
        made.start_calibration()
        made.observe_kv(0, 0, rows(0), rows(100))
        made.observe_costs(0, 0, cost / 2, torch.eye(D))
        made.observe_costs(0, 0, cost / 2, torch.eye(D))
        made.end_calibration()
        found = {}
        for name, one in (("splice", made), ("pca", calibrated(PCACompressor, {(0, 0): 5}))):
            wrong = rows(0) - one.decompress(0, 0, *one.compress(0, 0, rows(0), rows(100)))[0]
            found[name] = float((wrong @ cost * wrong).mean())
        x = (rows(0)[0] - rows(0)[0].mean(0)).double().numpy()
        root = np.linalg.cholesky(cost.double().numpy())
        best = (np.linalg.svd(x @ root, compute_uv=False)[5:] ** 2).sum() / x.size
        assert found["splice"] == pytest.approx(best, rel=1e-2)
        assert found["splice"] < 0.8 * found["pca"]

    def test_rows_count_by_their_weights(self):
        keys, values = rows(0), rows(100)
        keys[0, 7] = torch.arange(D) * 3.0
        weights = torch.ones(1, 400)
        weights[0, 7] = 1e6
        made = KVSpliceCompressor(config({(0, 0): 2}))
        made.start_calibration()
        made.observe_kv(0, 0, keys, values, weights=(weights, torch.ones(1, 400)))
        made.end_calibration()
        back = made.decompress(0, 0, *made.compress(0, 0, keys, values))[0]
        assert (back - keys)[0, 7].norm() < 0.02 * keys[0, 7].norm()
        plain = calibrated(KVSpliceCompressor, {(0, 0): 2})
        back, _ = plain.decompress(0, 0, *plain.compress(0, 0, keys, values))
        assert (back - keys)[0, 7].norm() > keys[0, 7].norm() / 4

    @pytest.mark.parametrize("learn", [True, False])
    def test_latents_are_scaled_where_the_config_says_so(self, learn):
        made = calibrated(KVSpliceCompressor, {(0, 0): 5}, fields={"learn_scale_shift": learn})
        for latents in made.compress(0, 0, rows(0), rows(100)):
            deviations = latents.std(dim=(0, 1))
            assert torch.allclose(deviations, torch.ones(5), atol=1e-2) == learn
        assert ("compressors.L0_H0.scale_k" in made.state_dict()) == learn

    def test_states_of_the_reference_mean_what_they_mean_there(self):
        generator = torch.Generator().manual_seed(3)
        names = {"W_k_in.weight": (4, D), "W_v_in.weight": (4, D), "W_k_out.weight": (D, 4), "W_v_out.weight": (D, 4),
                 "scale_k": (4,), "shift_k": (4,), "scale_v": (4,), "shift_v": (4,)}
        one = {name: torch.randn(shape, generator=generator) for name, shape in names.items()}
        document = config({(0, 1): 4})
        made = KVSpliceCompressor(document)
        made.load_state_dict({**{f"compressors.L0_H1.{name}": tensor for name, tensor in one.items()},
                              "config": document})
        latents = made.compress(0, 1, rows(0), rows(100))
        back = made.decompress(0, 1, *latents)
        for side, x, z, y in zip("kv", (rows(0), rows(100)), latents, back, strict=True):
            scale = torch.nn.functional.softplus(one[f"scale_{side}"]) + 1e-6
            expected = x @ one[f"W_{side}_in.weight"].T * scale + one[f"shift_{side}"]
            torch.testing.assert_close(z, expected, rtol=1e-4, atol=1e-4)
            restored = (expected - one[f"shift_{side}"]) / scale @ one[f"W_{side}_out.weight"].T
            torch.testing.assert_close(y, restored, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", BOTH)
class TestBoth:
    def test_ranks_differ_within_a_layer_and_other_heads_pass_through(self, kind):
        made = calibrated(kind, {(0, 0): 3, (0, 2): 7})
        for head, rank in ((0, 3), (2, 7)):
            assert [z.shape for z in made.compress(0, head, rows(1), rows(2))] == [(1, 400, rank)] * 2
        keys, values = rows(1, d=24), rows(2)
        assert made.is_enabled(0, 2)
        assert not made.is_enabled(0, 1)
        for through in (made.compress, made.decompress):
            kept = through(0, 1, keys, values)
            assert kept[0] is keys
            assert kept[1] is values

    def test_full_rank_restores_everything(self, kind):
        made = calibrated(kind, {(0, 0): D})
        assert max(error(made)) < 1e-8

    def test_errors_shrink_as_ranks_grow(self, kind):
        errors = [error(calibrated(kind, {(0, 0): rank}))[0] for rank in (2, 4, 8, 12)]
        assert errors == sorted(errors, reverse=True)
        assert errors[0] > 10 * errors[-1]

    def test_latents_have_the_dtype_of_what_they_are_of(self, kind):
        made = calibrated(kind, {(0, 0): 5})
        for dtype in (torch.float16, torch.bfloat16, torch.float64):
            keys, values = rows(0).to(dtype), rows(100).to(dtype)
            latents = made.compress(0, 0, keys, values)
            back = made.decompress(0, 0, *latents)
            assert {tensor.dtype for tensor in (*latents, *back)} == {dtype}
            assert float((back[0] - keys).double().square().mean()) == pytest.approx(error(made)[0], rel=0.3, abs=1e-3)

    def test_keys_are_turned_back_by_their_positions(self, kind):
        """Keys that differ by their rotation alone have one channel pair each once they are turned back."""
        rotary = RotaryEmbedding(100.0)
        angles = torch.arange(400)[:, None] * 100.0 ** (-torch.arange(0, D, 2) / D)
        plain = torch.tensor([2.0, 0.5] * (D // 2)).reshape(1, 1, D) * rows(3, d=1)
        first, second = plain.chunk(2, dim=-1)
        cosine, sine = angles.cos(), angles.sin()
        keys = torch.cat((first * cosine - second * sine, second * cosine + first * sine), -1)
        found = {}
        for name, options in (("turned", {"rotary": rotary}), ("as they are", {})):
            made = kind(config({(0, 0): 1}), **options)
            made.start_calibration()
            made.observe_kv(0, 0, keys, rows(2))
            made.end_calibration()
            back = made.decompress(0, 0, *made.compress(0, 0, keys, rows(2)))[0]
            found[name] = float((back - keys).square().mean() / keys.square().mean())
            if name == "turned":
                single = [made.compress(0, 0, keys[:, i : i + 1], rows(2)[:, i : i + 1], positions=torch.tensor([[i]]))
                          for i in range(5)]
                whole = made.compress(0, 0, keys, rows(2))
                torch.testing.assert_close(torch.cat([z[0] for z in single], 1), whole[0][:, :5], rtol=1e-3, atol=1e-3)
        assert found["turned"] < 1e-6
        assert found["as they are"] > 0.3

    def test_padding_is_not_seen(self, kind):
        keys, values = rows(0, batch=2), rows(100, batch=2)
        mask = torch.ones(2, 400, dtype=torch.bool)
        mask[0, :100] = mask[1, 250:] = False
        padded = [torch.where(mask[:, :, None], side, torch.full_like(side, 1e6)) for side in (keys, values)]
        made, expected = kind(config({(0, 0): 5})), kind(config({(0, 0): 5}))
        for one in (made, expected):
            one.start_calibration()
        made.observe_kv(0, 0, *padded, mask=mask)
        expected.observe_kv(0, 0, keys[mask][None], values[mask][None])
        for one in (made, expected):
            one.end_calibration()
        for found, wanted in zip(error(made), error(expected), strict=True):
            assert found == pytest.approx(wanted)

    def test_a_file_holds_all_of_it(self, kind, tmp_path):
        ranks = {(0, 0): 3, (1, 1): 7}
        made = calibrated(kind, ranks, rotary=RotaryEmbedding(500.0, scaling=kvcompress.RotaryScaling("linear", 4.0)))
        path = tmp_path / "compressor.pt"
        torch.save(made.state_dict(), path)
        for loaded in (kind(config(ranks)), load_compressor(path)):
            loaded.load_state_dict(torch.load(path))
            assert type(loaded) is kind
            assert loaded.rotary == made.rotary
            assert loaded.memory_stats() == made.memory_stats()
            latents = [one.compress(1, 1, rows(5), rows(6)) for one in (made, loaded)]
            for a, b in zip(*latents, strict=True):
                assert torch.equal(a, b)

    def test_states_that_do_not_fit_are_refused_by_the_heads_name(self, kind):
        state = calibrated(kind, {(0, 0): 3, (1, 1): 7}).state_dict()
        (name,) = [name for name in state if name.endswith("L1_H1.mean_v")]
        prefix = name.removesuffix("mean_v")
        tensor = next(name for name in state if name.startswith(prefix))
        for ranks, changed, text in (
            ({(0, 0): 3, (1, 1): 6}, {}, r"layer1/head1: .* the config wants"),
            ({(0, 0): 3, (1, 1): 7, (2, 0): 3}, {}, "layer2/head0: the state does not have it"),
            ({(0, 0): 3}, {}, "layer1/head1: the config does not compress it"),
            ({(0, 0): 3, (1, 1): 7}, {tensor: None}, "layer1/head1: the state has no"),
            ({(0, 0): 3, (1, 1): 7}, {name: torch.full((D,), math.nan)}, "layer1/head1: mean_v is not finite"),
            ({(0, 0): 3, (1, 1): 7}, {f"{prefix}other": torch.zeros(1)}, "layer1/head1: other is not among"),
            ({(0, 0): 3, (1, 1): 7}, {"weights": torch.zeros(1)}, "'weights' is not in a state of"),
        ):
            made = kind(config(ranks))
            with pytest.raises(InvalidArgument, match=text):
                made.load_state_dict({**state, **changed})
            with pytest.raises(FailedPrecondition, match="neither calibrated nor loaded"):
                made.compress(0, 0, rows(0), rows(1))
        loose = kind(config({(0, 0): 3, (2, 0): 3}))
        loose.load_state_dict({**state, "weights": torch.zeros(1)}, strict=False)
        assert loose.compress(0, 0, rows(0), rows(1))[0].shape == (1, 400, 3)

    def test_savings_count_heads_that_are_not_listed(self, kind):
        made = kind(config({(0, 0): 4, (1, 0): 8}))
        made.start_calibration()
        for layer in range(3):
            for head in range(2):
                made.observe_kv(layer, head, rows(layer), rows(head))
        made.end_calibration()
        stats = made.memory_stats(dtype=torch.bfloat16)
        assert stats["total_original_params"] == 6 * 2 * D
        assert stats["total_compressed_params"] == 4 * 2 * D + 2 * 4 + 2 * 8
        assert stats["memory_savings_pct"] == pytest.approx(100 * (1 - 152 / 192))
        assert stats["compression_ratio"] == pytest.approx(192 / 152)
        assert (stats["bytes_per_token_original"], stats["bytes_per_token_compressed"]) == (384, 304)
        assert stats["side_information_bytes"] == sum(
            tensor.nbytes for tensor in made.state_dict().values() if isinstance(tensor, torch.Tensor))
        assert made.memory_stats(layers=30, heads=3)["total_original_params"] == 90 * 2 * D

    def test_what_one_has_observed_others_fit_to(self, kind):
        first = KVSpliceCompressor(config({(0, 0): 2}))
        first.start_calibration()
        first.observe_kv(0, 0, rows(0), rows(100))
        first.observe_costs(0, 0, rows(7)[0].T @ rows(7)[0], torch.eye(D))
        second = kind(config({(0, 0): 5}))
        second.observe_like(first)
        for one in (first, second):
            one.end_calibration()
        alone = kind(config({(0, 0): 5}))
        alone.start_calibration()
        alone.observe_kv(0, 0, rows(0), rows(100))
        if kind is KVSpliceCompressor:
            alone.observe_costs(0, 0, rows(7)[0].T @ rows(7)[0], torch.eye(D))
        alone.end_calibration()
        assert error(second) == error(alone)

    def test_a_head_that_was_not_observed_is_an_error(self, kind):
        made = kind(config({(0, 0): 4, (1, 0): 8}))
        with pytest.raises(FailedPrecondition, match="start_calibration comes before observe_kv"):
            made.observe_kv(0, 0, rows(0), rows(1))
        with pytest.raises(FailedPrecondition, match="start_calibration comes before end_calibration"):
            made.end_calibration()
        made.start_calibration()
        made.observe_kv(0, 0, rows(0), rows(1))
        made.observe_kv(1, 0, rows(0, count=8), rows(1, count=8))
        with pytest.raises(InvalidArgument, match="layer1/head0: 8 rows were observed, and a rank of 8 needs more"):
            made.end_calibration()
        made.start_calibration()
        for layer in range(2):
            made.observe_kv(layer, 0, rows(0) + (math.inf if layer else 0), rows(1))
        with pytest.raises(InvalidArgument, match="layer1/head0: keys or values are not finite"):
            made.end_calibration()

    def test_shapes_that_do_not_fit_are_refused(self, kind):
        made = calibrated(kind, {(0, 0): 3})
        for keys, values in ((rows(0, d=8), rows(1)), (rows(0)[0], rows(1)[0]), (rows(0, count=5), rows(1))):
            with pytest.raises(InvalidArgument, match="layer0/head0: keys and values are"):
                made.compress(0, 0, keys, values)
        with pytest.raises(InvalidArgument, match=r"\[batch, tokens, 3\]"):
            made.decompress(0, 0, rows(0), rows(1))

    def test_what_is_told_of_rows_is_told_of_each(self, kind):
        made = kind(config({(0, 0): 3}), rotary=RotaryEmbedding(100.0))
        made.start_calibration()
        ones, wrong = torch.ones(1, 400), torch.ones(2, 400)
        need = r"and keys of \[1, 400, 16\] need \[1, 400\]"
        for options, name in (({"mask": wrong.bool()}, "mask"), ({"mask": ones.bool()[0]}, "mask"),
                              ({"weights": (wrong, ones)}, r"weights\[0\]"),
                              ({"weights": (ones, wrong)}, r"weights\[1\]")):
            with pytest.raises(InvalidArgument, match=rf"layer0/head0: {name} is \[(2, )?400\], {need}"):
                made.observe_kv(0, 0, rows(0), rows(100), **options)
        with pytest.raises(InvalidArgument, match=r"positions are \[399\], and keys of .* need \[400\] or \[1, 400\]"):
            made.observe_kv(0, 0, rows(0), rows(100), positions=torch.arange(399))
        made.observe_kv(0, 0, rows(0), rows(100), mask=ones.bool(), weights=(ones, ones), positions=torch.arange(400))
        made.end_calibration()


class TestReservoir:
    def test_every_row_has_the_same_chance_and_the_sample_is_bounded(self):
        counts = torch.zeros(60)
        for seed in range(300):
            sample = Reservoir(20, seed)
            for part in torch.arange(60.0).reshape(-1, 1).split((5, 25, 1, 29)):
                sample.add(part)
            assert len(sample.rows) == 20
            assert len(sample.rows.unique()) == 20
            counts += torch.bincount(sample.rows.flatten().long(), minlength=60)
        # 100 each, with a deviation of 8.
        assert counts.min() > 65
        assert counts.max() < 140

    def test_the_same_seed_gives_the_same_sample(self):
        def of(seed):
            sample = Reservoir(10, seed)
            for part in torch.arange(100.0).reshape(-1, 1).split(7):
                sample.add(part)
            return sample.rows.flatten().tolist()

        assert of(1) == of(1) != of(2)

    def test_a_head_keeps_no_more_than_its_rows(self, monkeypatch):
        assert SAMPLED_ROWS == 10_000
        made = PCACompressor(config({(0, 0): 3}))
        made.start_calibration()
        for seed in range(13):
            made.observe_kv(0, 0, rows(seed, count=1000), rows(seed, count=1000))
        (sample,) = made._samples.values()
        assert sample.rows.shape == (10_000, 2 * D + 2)


def test_a_file_that_is_no_state_is_refused(tmp_path):
    path = tmp_path / "compressor.pt"
    for content in (b"", b"none of it", b"\x80\x02."):
        path.write_bytes(content)
        with pytest.raises(InvalidArgument, match="is no state of a compressor"):
            load_compressor(path)
    for state in (3, [3], torch.ones(3), {}, {3: 4, "config": config({})}):
        torch.save(state, path)
        with pytest.raises(InvalidArgument, match="is no state of a compressor"):
            load_compressor(path)
    torch.save({"config": 3}, path)
    with pytest.raises(InvalidArgument, match="JSON object"):
        load_compressor(path)
    with pytest.raises(InvalidArgument, match="No such file"):
        load_compressor(tmp_path / "none")


@pytest.mark.parametrize(("name", "value", "text"), [
    *[("model", model, "model has the numbers of layers and of heads") for model in (
        3, {}, [1, 2], {"layers": "a", "heads": 1}, {"layers": 1.0, "heads": 1}, {"layers": -1, "heads": 1})],
    ("model", {"layers": 1, "heads": 1}, "layer1/head1 is not in a model of 1 layers of 1 key/value heads"),
    *[("rotary", rotary, "rotary") for rotary in (3, [1], {"bogus": 1}, {"theta": "a"}, {"theta": 1e4, "scaling": 3})],
    ("pca_modules.L0_H" + "9" * 5000 + ".U_k", torch.ones(1), "is not in a state of PCACompressor"),
    *[("pca_modules.L1_H1.mean_k", kind(torch.ones(D)), "mean_k is no plain tensor of floating-point numbers")
      for kind in (torch.Tensor.to_sparse, torch.Tensor.int, lambda ones: ones.to(torch.complex64),
                   lambda ones: ones.to("meta"))],
])  # fmt: skip
def test_a_state_that_is_changed_is_refused_in_a_sentence(tmp_path, name, value, text):
    made = calibrated(PCACompressor, {(1, 1): 3}, rotary=RotaryEmbedding(theta=10000.0))
    torch.save({**made.state_dict(), name: value}, tmp_path / "compressor.pt")
    with pytest.raises(InvalidArgument, match=text):
        load_compressor(tmp_path / "compressor.pt")


def test_there_is_one_load_compressor():
    assert low_rank.load_compressor is load_compressor
    assert CompressionConfig.of_json(config({(0, 0): 3})).head(0, 0).rank == 3
