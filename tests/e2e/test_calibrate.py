"""kv-compress -calibrate, against numpy and a second reader of artifacts."""

import contextlib
import re
import time

import artifact_reader
import calibration_model as model
import numpy as np
import pytest
from cli_helpers import File, run, run_ok, start, write_file
from daemon_helpers import Client, wait_for
from load_helpers import memory

THETA = 100000.0  # the sample's


def tensors_of(path):
    """{name: array in binary64} of a cache."""
    file = File(path)
    return {name: file.values(name).astype(np.float64).reshape(shape) for name, _, shape in file.layout}


def calibrate(bin_dir, output, *args):
    """The report and the artifact of a run that must succeed."""
    report = run_ok(bin_dir, "-calibrate", "-output", output, *args)
    return report, artifact_reader.read(output)


def check(artifact, caches, theta, weights=None, start=0):
    """Compares with numpy's."""
    group_heads = int(artifact.metadata["group_heads"])
    for name, tensor in artifact.tensors.items():
        found = [cache[name] for cache in caches]
        if name.endswith("key") and theta:
            found = [model.turned_back(keys, theta, start) for keys in found]
        mean, covariance = model.moments(model.rows_of(found, group_heads, start))
        deviation = np.sqrt(covariance.trace(axis1=1, axis2=2).max())
        np.testing.assert_allclose(tensor.mean, mean, atol=1e-5 * deviation)
        for group, c in enumerate(covariance):
            weight = None if weights is None else weights[name][group]
            expected = model.sigmas(c, weight)
            np.testing.assert_allclose(tensor.sigma[group], expected, rtol=1e-3, atol=1e-3 * expected[0])
            forward, inverse = tensor.forward[group], tensor.inverse[group]
            np.testing.assert_allclose(np.diag(forward @ c @ forward.T), tensor.sigma[group] ** 2, rtol=1e-4, atol=1e-9)
            rotated = forward @ c @ forward.T / expected[0] ** 2
            np.testing.assert_allclose(rotated - np.diag(np.diag(rotated)), 0, atol=2e-3)
            cost = inverse.T @ (np.eye(len(c)) if weight is None else model.metric(weight)) @ inverse
            np.testing.assert_allclose(cost, np.eye(len(c)), atol=1e-2)


def test_inspect_tells_the_id_of_an_artifact(bin_dir, sample, tmp_path):
    report, _ = calibrate(bin_dir, tmp_path / "a.kvcal", "-input", sample, "-rope-theta", THETA, "-group-dim", 64)
    assert run_ok(bin_dir, "-inspect", "-format", "json", tmp_path / "a.kvcal")["artifact"] == report["artifact"]
    assert run(bin_dir, "-inspect", tmp_path / "a.kvcal").stdout.startswith(f"artifact {report['artifact']}\n")
    assert "artifact" not in run_ok(bin_dir, "-inspect", "-format", "json", sample)


@pytest.mark.parametrize("group_dim, group_heads", [(64, 1), (128, 1), (256, 3)])  # of 3 heads of 64
def test_an_artifact_is_what_numpy_makes_of_the_cache(bin_dir, sample, tmp_path, group_dim, group_heads):
    report, artifact = calibrate(bin_dir, tmp_path / "a.kvcal", "-input", sample, "-rope-theta", THETA, "-group-dim",
                                 group_dim)
    assert report["group_heads"] == group_heads and report["tokens"] == 252 and report["layers"] == 21
    assert report["artifact_bytes"] == (tmp_path / "a.kvcal").stat().st_size
    assert re.fullmatch("[0-9a-f]{32}", report["artifact"])
    assert artifact.metadata["rotary"] == "half" and float(artifact.metadata["rotary_theta"]) == THETA
    assert artifact.metadata["rotary_dims"] == "64" and len(artifact.tensors) == 4
    check(artifact, [tensors_of(sample)], THETA)


def test_the_report_promises_the_bits_of_the_sigmas(bin_dir, sample, tmp_path):
    report, artifact = calibrate(bin_dir, tmp_path / "a.kvcal", "-input", sample, "-rope-theta", THETA, "-group-dim", 256)
    cache = tensors_of(sample)
    for row in report["tensors"]:
        name = row["tensor"]
        values = cache[name][:, :, model.SINKS:]
        error = model.int4_error(values)
        assert row["int4_snr_db"] == pytest.approx(10 * np.log10(values.var() / error), abs=0.05)
        turned = model.turned_back(cache[name], THETA) if name.endswith("key") else cache[name]
        _, covariance = model.moments(model.rows_of([turned], report["group_heads"]))
        assert row["channel_bits"] == pytest.approx(model.bits(np.diag(covariance[0]), error), abs=0.01)
        assert row["coefficient_bits"] == pytest.approx(model.bits(artifact.tensors[name].sigma.ravel() ** 2, error), abs=0.01)
    for kind in ("key", "value"):
        rows = [row["coefficient_bits"] for row in report["tensors"] if row["tensor"].endswith(kind)]
        assert report[kind + "s"]["coefficient_bits"] == pytest.approx(np.mean(rows))


def test_groups_of_int4_cross_the_rows_of_short_heads(bin_dir, tmp_path):
    cache = {"layer_0_key": np.random.default_rng(3).normal(size=(1, 2, 700, 32)).astype(np.float32)}
    write_file(tmp_path / "in", cache)
    report, _ = calibrate(bin_dir, tmp_path / "out", "-input", tmp_path / "in", "-group-dim", 64)
    values = cache["layer_0_key"][:, :, model.SINKS:]
    expected = 10 * np.log10(values.var() / model.int4_error(values))
    assert report["tensors"][0]["int4_snr_db"] == pytest.approx(expected, abs=0.05)


def test_weights_set_basis_and_steps(bin_dir, sample, tmp_path):
    random = np.random.default_rng(1)
    weights = {}
    for name in tensors_of(sample):
        factors = random.normal(size=(3, 64, 40)) * random.exponential(size=40) * 10 ** random.uniform(-3, 3)
        weights[name] = (factors @ factors.transpose(0, 2, 1)).astype(np.float32)
    write_file(tmp_path / "weights", weights)
    report, artifact = calibrate(bin_dir, tmp_path / "a.kvcal", "-input", sample, "-rope-theta", THETA, "-group-dim", 64,
                                 "-weights", tmp_path / "weights")
    assert report["weights"] == artifact.metadata["weights"] == "given"
    check(artifact, [tensors_of(sample)], THETA, {name: weight.astype(np.float64) for name, weight in weights.items()})
    for name, step in zip(weights, model.steps(list(weights.values())), strict=True):
        assert artifact.tensors[name].step == pytest.approx(step, rel=1e-5)


def test_compressed_and_several_files_and_threads_give_the_same(bin_dir, sample, tmp_path):
    cache = {name: array.astype(np.float16) for name, array in tensors_of(sample).items()}
    write_file(tmp_path / "a", cache)
    write_file(tmp_path / "b", {name: array[:, :, ::-1] * np.float16(1.5) for name, array in cache.items()})
    write_file(tmp_path / "both", {name: np.concatenate([array, array[:, :, ::-1] * np.float16(1.5)])
                                   for name, array in cache.items()})
    for name in "ab":
        run_ok(bin_dir, "-codec", "lossless", "-input", tmp_path / name, "-output", tmp_path / f"{name}.kvc")
    ids = set()
    for inputs in ("a,b", "both", "a.kvc,b.kvc", "a,b.kvc"):
        for threads in (1, 3):
            paths = ",".join(str(tmp_path / name) for name in inputs.split(","))
            report, artifact = calibrate(bin_dir, tmp_path / "out", "-input", paths, "-rope-theta", THETA, "-threads", threads)
            ids.add(report["artifact"])
    assert len(ids) == 1
    check(artifact, [tensors_of(tmp_path / name) for name in "ab"], THETA)


def test_the_rotation_comes_from_the_flag_or_the_metadata_or_not_at_all(bin_dir, sample, tmp_path):
    cache = {name: array.astype(np.float32) for name, array in tensors_of(sample).items()}
    write_file(tmp_path / "silent", cache)
    write_file(tmp_path / "says", cache, {"rope_theta": "500.5", "rope_pairs": "interleaved", "rope_dims": "32", "rope_offset": "8",
                                          "rope_scaling": '{"type": "linear", "factor": 2.5}'})
    silent = run(bin_dir, "-calibrate", "-input", tmp_path / "silent", "-output", tmp_path / "out")
    assert "keys are taken as they are" in silent.stderr
    as_it_is = artifact_reader.read(tmp_path / "out")
    assert as_it_is.metadata["rotary"] == "none" and "rotary_theta" not in as_it_is.metadata
    check(as_it_is, [cache], None)
    report, _ = calibrate(bin_dir, tmp_path / "out", "-input", tmp_path / "says")
    assert report["rotary"] == {"theta": 500.5, "pairs": "interleaved", "dims": 32, "offset": 8,
                                "scaling": {"rope_type": "linear", "factor": 2.5}}
    scaled = artifact_reader.read(tmp_path / "out").metadata
    assert (scaled["rotary_scaling"], scaled["rotary_factor"]) == ("linear", "2.5") and "rotary_low" not in scaled
    report, _ = calibrate(bin_dir, tmp_path / "out", "-input", tmp_path / "says", "-rope-theta", "9")
    assert report["rotary"] == {"theta": 9.0, "pairs": "half", "dims": 64, "offset": 0, "scaling": None}
    both = f"{tmp_path / 'says'},{tmp_path / 'silent'}"
    refused = run(bin_dir, "-calibrate", "-input", both, "-output", tmp_path / "out")
    assert refused.returncode == 1 and "silent: its metadata's rope_theta" in refused.stderr
    run_ok(bin_dir, "-calibrate", "-input", both, "-output", tmp_path / "out", "-rope-theta", "9")


def test_a_cache_that_begins_later_has_no_sinks(bin_dir, sample, tmp_path):
    cache = {name: array.astype(np.float32) for name, array in tensors_of(sample).items()}
    write_file(tmp_path / "in", cache, {"seq_start": "1000"})
    report, artifact = calibrate(bin_dir, tmp_path / "out", "-input", tmp_path / "in", "-rope-theta", THETA)
    assert report["tokens"] == 256
    check(artifact, [cache], THETA, start=1000)
    report, _ = calibrate(bin_dir, tmp_path / "out", "-input", tmp_path / "in", "-rope-theta", THETA, "-rope-start", 0)
    assert report["tokens"] == 252


def test_other_tensors_are_left_out_and_few_tokens_are_told_of(bin_dir, sample, tmp_path):
    cache = {name: array.astype(np.float32) for name, array in tensors_of(sample).items()}
    write_file(tmp_path / "in", {**cache, "ssm_state": np.zeros((3, 4), np.float32), "ids": np.arange(4)})
    done = run(bin_dir, "-calibrate", "-input", tmp_path / "in", "-output", tmp_path / "out", "-rope-theta", THETA, "-verbose")
    assert done.returncode == 0
    assert "2 tensors are not named" in done.stderr and "252 tokens, fewer than 10000" in done.stderr
    assert re.search(r"^layer_20_value: 252 tokens, at int4's SNR [\d.]+ bits by channels", done.stderr, re.M)


def refusals(cache):
    """(what the cache becomes, the error)"""
    bad = {**cache, "layer_20_value": cache["layer_20_value"].copy()}
    bad["layer_20_value"][0, 1, 9, 5] = np.inf
    return [
        (bad, 'tensor "layer_20_value": NaN or infinity in sequence 0, token 9, head 1'),
        ({**cache, "layer_9_key": cache["layer_10_key"][:, :1]}, 'tensor "layer_9_key": it has 1 heads of 64 channels'),
        ({**cache, "layer_9_key": cache["layer_10_key"][0]}, 'tensor "layer_9_key": its last axis is not head_dim'),
        ({name: array[:, :, :60] for name, array in cache.items()}, "56 tokens are not enough for groups of 64 channels"),
        ({"other": cache["layer_10_key"]}, "there is no tensor to calibrate on: none is named layer_{i}_key or layer_{i}_value")]


@pytest.mark.parametrize("number", range(5))
def test_caches_that_do_not_fit_are_refused(bin_dir, sample, tmp_path, number):
    cache = {name: array.astype(np.float32) for name, array in tensors_of(sample).items()}
    bad, error = refusals(cache)[number]
    write_file(tmp_path / "good", cache)
    write_file(tmp_path / "in", bad)
    for inputs in ([tmp_path / "in"], [tmp_path / "good", tmp_path / "in"])[:2 if number < 3 else 1]:
        done = run(bin_dir, "-calibrate", "-input", ",".join(map(str, inputs)), "-output", tmp_path / "out")
        assert done.returncode == 1 and done.stdout == ""
        assert done.stderr.startswith("Error: ") and error in done.stderr and done.stderr.count("\n") == 1
        assert number > 2 or f"{tmp_path / 'in'}: tensor" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["good", "in"]


def test_inputs_that_are_none_are_refused(bin_dir, sample, tmp_path):
    calibrate(bin_dir, tmp_path / "a.kvcal", "-input", sample)
    (tmp_path / "bad").write_bytes(b"short")
    for paths, error in [("gone", "read input: open gone: no such file"), (f"{sample},gone", "Error: read input: open gone: no such file"),
                         (f"{sample},{tmp_path / 'bad'}", f"Error: parse header: {tmp_path / 'bad'}: "),
                         (tmp_path / "a.kvcal", "kvcompress.artifact")]:
        done = run(bin_dir, "-calibrate", "-input", paths, "-output", tmp_path / "out")
        assert done.returncode == 1 and error in done.stderr
    weights = write_file(tmp_path / "weights", {"layer_10_key": np.zeros((3, 64, 64), np.float32)})
    done = run(bin_dir, "-calibrate", "-input", sample, "-output", tmp_path / "out", "-weights", weights)
    assert done.returncode == 1 and "weights: there is none for layer_10_value" in done.stderr


def test_a_cache_may_be_larger_than_memory(bin_dir, tmp_path):
    tokens = 4_000_000
    tile = np.random.default_rng(1).normal(size=(1000, 16)).astype(np.float16)
    write_file(tmp_path / "in", {"layer_0_value": np.tile(tile, (tokens // 1000, 1)).reshape(1, 1, tokens, 16)})
    size = (tmp_path / "in").stat().st_size
    peaks = []
    with start(bin_dir, "-calibrate", "-input", tmp_path / "in", "-output", tmp_path / "out") as process:
        while process.poll() is None:
            with contextlib.suppress(KeyError, OSError):  # it has just ended
                peaks.append(memory(process.pid)[0])
            time.sleep(0.005)
    assert process.returncode == 0
    assert len(peaks) > 5 and max(peaks) < size / 2, f"{max(peaks)} bytes for a file of {size}"
    artifact = artifact_reader.read(tmp_path / "out")
    assert artifact.metadata["tokens"] == str(tokens - 4)
    check(artifact, [{"layer_0_value": tile[None, None].astype(np.float64)}], None, start=1)


def test_what_was_learned_holds_for_other_texts(bin_dir, kv_dir, tmp_path):
    """Seven prompts are calibrated on; the eighth takes at int4's SNR what the study of these caches says."""
    theta = 10000.0  # theirs
    cache = tensors_of(kv_dir / "docs.batch8x1024.f16.safetensors")
    write_file(tmp_path / "in", {name: array[1:].astype(np.float16) for name, array in cache.items()})
    _, artifact = calibrate(bin_dir, tmp_path / "out", "-input", tmp_path / "in", "-rope-theta", theta, "-group-dim", 64)
    bits = []
    for name, tensor in artifact.tensors.items():
        if name.startswith("layer_0_"):
            continue
        held_out = cache[name][:1]
        error = model.int4_error(held_out)
        rows = model.rows_of([model.turned_back(held_out, theta) if name.endswith("key") else held_out], 1)
        coefficients = (rows - tensor.mean[:, None]) @ tensor.forward.transpose(0, 2, 1)
        bits.append(model.bits((coefficients ** 2).mean(axis=1).ravel(), error))
    assert np.mean(bits) < 1.6


def test_a_daemon_finds_artifacts_in_its_directory(bin_dir, daemon, stubs, sample, tmp_path):
    (tmp_path / "artifacts").mkdir()
    serving = daemon("--artifacts", tmp_path / "artifacts")
    client = Client(serving, stubs)
    said = client.stub.Capabilities(client.pb.CapabilitiesRequest(), timeout=30)
    assert list(said.artifacts) == []
    report, _ = calibrate(bin_dir, tmp_path / "model.kvcal", "-input", sample, "-rope-theta", THETA)
    codec = f"transform(bits=2,artifact={report['artifact']})"
    server = ("-server", serving.address)
    refused = run(bin_dir, "-input", sample, "-output", tmp_path / "small", "-codec", codec, *server)
    assert refused.returncode == 1 and report["artifact"] in refused.stderr and f"{tmp_path}/artifacts" in refused.stderr
    (tmp_path / "model.kvcal").rename(tmp_path / "artifacts" / "model.kvcal")
    time.sleep(1.1)
    assert list(client.stub.Capabilities(client.pb.CapabilitiesRequest(), timeout=30).artifacts) == [report["artifact"]]
    by_daemon = run_ok(bin_dir, "-input", sample, "-output", tmp_path / "small", "-codec", codec, *server)
    own = run_ok(bin_dir, "-input", sample, "-output", tmp_path / "own", "-codec", codec, "-artifacts", tmp_path / "artifacts",
                 "-rope-start", 7)
    assert own["rotary"] == {"theta": THETA, "pairs": "half", "dims": 64, "offset": 0, "start": 7, "scaling": None,
                             "from": "artifact", "tensors": 0, "undone_tensors": 0, "saved_bits_per_value": 0}
    assert by_daemon["rotary"] is None
    run_ok(bin_dir, "-input", sample, "-output", tmp_path / "own", "-codec", codec, "-artifacts", tmp_path / "artifacts")
    assert (tmp_path / "small").read_bytes() == (tmp_path / "own").read_bytes()
    assert by_daemon["bits_per_value"] < 2.05  # the file's header included
    run_ok(bin_dir, "-decompress", "-input", tmp_path / "small", "-output", tmp_path / "back", *server)
    other = write_file(tmp_path / "other", {"layer_0_key": np.ones((1, 4, 64, 64), np.float16)})
    refused = run(bin_dir, "-input", other, "-output", tmp_path / "small", "-codec", codec, *server)
    assert refused.returncode == 1 and "the artifact is for 3 heads of 64 channels, and this tensor has 4 of 64" in refused.stderr


def test_a_directory_that_cannot_be_read_is_logged_and_may_come_later(bin_dir, daemon, sample, tmp_path):
    serving = daemon("--artifacts", tmp_path / "none")
    warning = "the directory of artifacts cannot be read: codecs that name one are refused until it can"
    wait_for(lambda: warning in serving.log(), "the warning")
    assert f"{tmp_path}/none" in serving.log() and "No such file or directory" in serving.log()
    report, _ = calibrate(bin_dir, tmp_path / "model.kvcal", "-input", sample, "-rope-theta", THETA)
    (tmp_path / "none").mkdir()
    (tmp_path / "model.kvcal").rename(tmp_path / "none" / "model.kvcal")
    run_ok(bin_dir, "-input", sample, "-metrics-only", "-codec", f"kv(artifact={report['artifact']})", "-server", serving.address)
    other = daemon("--artifacts", tmp_path / "none")
    assert warning not in other.log()


def test_a_daemon_without_a_directory_says_so(bin_dir, daemon, sample, tmp_path):
    done = run(bin_dir, "-input", sample, "-output", tmp_path / "small", "-codec", f"transform(bits=2,artifact={'a' * 32})",
               "-server", daemon().address)
    assert done.returncode == 1 and "was given no directory of artifacts" in done.stderr
