"""Ranks of heads by a compression_config.json, as -profile and calls take it: the coefficients that are left, by an
artifact's own matrices."""

import json

import artifact_reader
import calibration_model as model
import numpy as np
import pytest
from cli_helpers import File, run, run_ok, write_file, write_layers
from daemon_helpers import Client

THETA = 100000.0  # the sample's
BY_HAND = {"global": {"target_memory_reduction": 0.5, "d_head": 64, "algo_default": "kvsplice"},
           "per_layer_head": {"0/0": {"enabled": True, "rank": 8, "algo": "kvsplice", "d_k": 64, "d_v": 64},
                              "layer0/head1": {"enabled": True, "rank": 24},
                              **{f"1/{head}": {"enabled": True, "rank": 16} for head in range(3)},
                              "2/1": {"enabled": False, "rank": 4}}}
RANKS = {0: (8, 24, 64), 1: (16, 16, 16)}  # all others are whole
SINKS = 4  # the first tokens of a sequence, which are left whole


@pytest.fixture
def cache(sample, tmp_path):
    """Three layers with 3 heads, the last like the first. In F32, so that steps and ranks alone change values, not rounding to BF16."""
    return write_layers(tmp_path / "cache.safetensors", sample, 0, 1, 2, dtype=np.float32)


@pytest.fixture
def calibrated(bin_dir, cache, tmp_path):
    """A folder of artifacts, and the id of the one of single heads."""
    (tmp_path / "artifacts").mkdir()
    file = tmp_path / "artifacts" / "model.kvcal"
    report = run_ok(bin_dir, "-calibrate", "-input", cache, "-rope-theta", THETA, "-group-dim", 64, "-output", file)
    return tmp_path / "artifacts", report["artifact"]


def config_file(tmp_path, config):
    path = tmp_path / "compression_config.json"
    path.write_text(config if isinstance(config, str) else json.dumps(config))
    return path


def codecs(bin_dir, path):
    """{name: the codec of its frame} of a compressed file."""
    tensors = run_ok(bin_dir, "-inspect", "-format", "json", path)["tensors"]
    return {tensor["tensor"]: tensor["codec"] for tensor in tensors}


def coefficients(artifact, name, values):
    """[heads, tokens, 64] of a tensor [1, heads, tokens, 64]."""
    turned = model.turned_back(values, THETA) if name.endswith("key") else values
    tensor = artifact.tensors[name]
    return (turned[0] - tensor.mean[:, None]) @ tensor.forward.transpose(0, 2, 1)


def test_a_config_cuts_heads_to_its_ranks(bin_dir, cache, calibrated, tmp_path):
    folder, digest = calibrated
    small, back = tmp_path / "small", tmp_path / "back"
    report = run_ok(bin_dir, "-input", cache, "-output", small, "-profile", config_file(tmp_path, BY_HAND),
                    "-codec", f"transform(step=0.02,artifact={digest})", "-artifacts", folder, "-verbose")
    metrics = report["tensor_metrics"]
    assert report["codec"] == "profile"
    found = codecs(bin_dir, small)
    assert found["layer_0_key"] == f"transform(step=0.02,artifact={digest},ranks=8/24/64)"
    assert found["layer_1_value"] == f"transform(step=0.02,artifact={digest},ranks=16)"
    assert found["layer_2_key"] == f"transform(step=0.02,artifact={digest})"
    run_ok(bin_dir, "-decompress", "-input", small, "-output", back, "-artifacts", folder)
    artifact = artifact_reader.read(folder / "model.kvcal")
    original, decoded = File(cache), File(back)
    for name, _, shape in original.layout:
        before, after = (coefficients(artifact, name, file.values(name).astype(np.float64).reshape(shape))
                         for file in (original, decoded))
        for head, rank in enumerate(RANKS.get(int(name.split("_")[1]), (64, 64, 64))):
            scale = np.abs(before[head]).max()
            np.testing.assert_allclose(after[head, :, :rank], before[head, :, :rank], atol=0.04)  # two steps
            np.testing.assert_allclose(after[head, :SINKS, rank:], before[head, :SINKS, rank:], atol=0.04)
            np.testing.assert_allclose(after[head, SINKS:, rank:], 0, atol=0.005 * scale)
    whole = run_ok(bin_dir, "-input", cache, "-metrics-only", "-codec", f"transform(step=0.02,artifact={digest})",
                   "-artifacts", folder, "-verbose")["tensor_metrics"]
    assert metrics["layer_0_key_snr_db"] < whole["layer_0_key_snr_db"] - 6  # the truncation counts
    assert metrics["layer_2_key_snr_db"] == whole["layer_2_key_snr_db"]


def test_a_daemon_takes_a_config_beside_a_codec(bin_dir, cache, calibrated, daemon, stubs, tmp_path):
    folder, digest = calibrated
    codec = f"kv(bits=4,artifact={digest})"
    args = ("-input", cache, "-output", tmp_path / "small", "-profile", config_file(tmp_path, BY_HAND), "-codec", codec)
    run_ok(bin_dir, *args, "-artifacts", folder)
    own = (tmp_path / "small").read_bytes()
    serving = daemon("--artifacts", folder)
    run_ok(bin_dir, *args, "-server", serving.address)
    assert (tmp_path / "small").read_bytes() == own
    client = Client(serving, stubs)
    pb = client.pb
    name, array = "layer_0_key", File(cache).values("layer_0_key")
    tensor = pb.Tensor(name=name, dtype=pb.DTYPE_F32, shape=[1, 3, 256, 64])
    header = pb.CompressHeader(tensor=tensor, codec=codec, profile=json.dumps(BY_HAND))
    answer = client.stub.CompressTensor(pb.CompressTensorRequest(header=header, data=array.tobytes()), timeout=30)
    assert answer.frame == File(tmp_path / "small").bytes[name]
    by_default = Client(daemon("--artifacts", folder, "--default-codec", codec), stubs)
    header.codec = ""
    answer = by_default.stub.CompressTensor(pb.CompressTensorRequest(header=header, data=array.tobytes()), timeout=30)
    assert answer.frame == File(tmp_path / "small").bytes[name]


def refusals(digest):
    """(config, codec, the error)"""
    kv = f"kv(bits=4,artifact={digest})"
    listed = {key: {"enabled": True, "rank": 8} for key in ("0/0", "0/1", "0/2", "0/3")}
    return [
        (BY_HAND, None, 'profile: it says ranks alone: give the codec that keeps them, for example -codec "kv(bits=4'),
        (BY_HAND, "int4", 'profile: ranks are of coefficients in an artifact, and "int4(group=64)" has none: give, for example, kv('),
        (BY_HAND, f"kv(bits=4,artifact={digest},ranks=8)", 'has ranks'),
        (BY_HAND, f"heads(0:transform(step=0.1,artifact={digest}),1-:raw)", 'profile: ranks do not reach the chains within "heads(0:'),
        ({"per_layer_head": {"0/0": {"enabled": True, "rank": 80}}}, kv, "profile: layer0/head0: rank 80 is not between 1 and d 64"),
        ({"per_layer_head": {"first": {}}}, kv, 'profile: Invalid key format: "first"'),
        ({"per_layer_head": {"0/0": {"metrics": {"trace": float("nan")}}}}, kv, "in per_layer_head.0/0.metrics.trace"),
        ({"per_layer_head": listed}, kv, 'the config has 4 heads, which are no whole number for each of the 3 heads of "layer_0_key"'),
        ({"d_head": 128, "per_layer_head": {"0/0": {}}}, kv, 'layer0/head0: d_k is 128, and the heads of "layer_0_key" have 64'),
    ]


@pytest.mark.parametrize("number", range(9))
def test_configs_that_do_not_fit_are_refused(bin_dir, cache, calibrated, tmp_path, number):
    folder, digest = calibrated
    config, codec, error = refusals(digest)[number]
    flags = ("-codec", codec) if codec else ()
    done = run(bin_dir, "-input", cache, "-output", tmp_path / "out", "-profile", config_file(tmp_path, config), *flags,
               "-artifacts", folder)
    assert done.returncode == 1 and error in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert not (tmp_path / "out").exists()


def test_ranks_need_an_artifact_of_single_heads(bin_dir, cache, tmp_path):
    report = run_ok(bin_dir, "-calibrate", "-input", cache, "-output", tmp_path / "pairs.kvcal", "-group-dim", 256)
    done = run(bin_dir, "-input", cache, "-metrics-only", "-artifacts", tmp_path,
               "-codec", f"kv(bits=3,artifact={report['artifact']},ranks=8)")
    assert done.returncode == 1
    assert "ranks are of single heads, and the artifact takes 3 together: make one with -calibrate -config" in done.stderr


def test_what_is_neither_key_nor_value_by_its_name_stays_as_it_is(bin_dir, cache, calibrated, tmp_path):
    folder, digest = calibrated
    source = File(cache)
    tensors = {name: source.values(name).reshape(shape) for name, _, shape in source.layout[:2]}
    path = write_file(tmp_path / "in", {**tensors, "ssm_state": np.arange(64, dtype=np.float16)})
    run_ok(bin_dir, "-input", path, "-output", tmp_path / "small", "-profile", config_file(tmp_path, BY_HAND),
           "-codec", f"kv(bits=4,artifact={digest})", "-artifacts", folder)
    found = codecs(bin_dir, tmp_path / "small")
    assert found["ssm_state"] == "exact" and found["layer_0_key"].endswith(",ranks=8/24/64)")


@pytest.mark.parametrize("layers, warns", [((7, 9), True), ((2, 9), False), ((), True)])
def test_a_config_of_other_layers_alone_is_warned_of(bin_dir, cache, calibrated, tmp_path, layers, warns):
    folder, digest = calibrated
    config = {"per_layer_head": {f"{layer}/0": {"enabled": True, "rank": 8} for layer in layers}}
    done = run(bin_dir, "-input", cache, "-metrics-only", "-profile", config_file(tmp_path, config),
               "-codec", f"kv(bits=4,artifact={digest})", "-artifacts", folder)
    assert done.returncode == 0, done.stderr
    warning = "Warning: the config lists no head of a layer that the file has: all heads are kept whole\n"
    assert (warning in done.stderr) == warns, done.stderr


def test_calibration_for_a_config_takes_heads_singly_and_says_what_it_keeps(bin_dir, cache, tmp_path):
    args = ("-calibrate", "-input", cache, "-rope-theta", THETA, "-config", config_file(tmp_path, BY_HAND))
    done = run(bin_dir, *args, "-output", tmp_path / "model.kvcal", "-verbose")
    assert done.returncode == 0, done.stderr
    report, artifact = json.loads(done.stdout), artifact_reader.read(tmp_path / "model.kvcal")
    assert report["group_heads"] == 1 and ".kvcal" not in done.stderr
    rows = {row["tensor"]: row for row in report["tensors"]}
    assert [rows[f"layer_{layer}_key"]["ranks"] for layer in range(3)] == [[8, 24, 64], [16], []]
    for name, row in rows.items():
        power = artifact.tensors[name].sigma.astype(np.float64) ** 2
        ranks = RANKS.get(int(name.split("_")[1]), (64, 64, 64))
        kept = sum(power[head, :rank].sum() for head, rank in enumerate(ranks)) / power.sum()
        assert row["kept_variance"] == pytest.approx(kept, rel=1e-6)
        assert row["ranks"] or row["kept_variance"] == 1
    keys = [row["kept_variance"] for name, row in rows.items() if name.endswith("key")]
    assert report["keys"]["kept_variance"] == pytest.approx(np.mean(keys)) and min(keys) < 0.95
    assert f", ranks 8/24/64 keep {100 * rows['layer_0_key']['kept_variance']:.1f} % of the variance\n" in done.stderr
    without = run_ok(bin_dir, "-calibrate", "-input", cache, "-rope-theta", THETA, "-group-dim", 64,
                     "-output", tmp_path / "same.kvcal")
    assert without["artifact"] == report["artifact"], "ranks are the spec's, not the artifact's"


@pytest.mark.parametrize("heads, error", [
    ({"7/0": {}}, "config: it has heads of layer 7, of which the caches have neither keys nor values"),
    ({"0/0": {"d_k": 32}}, 'config: layer0/head0: d_k is 32, and the heads of "layer_0_key" have 64 channels'),
    ({"0/0": {"rank": 0}}, "config: layer0/head0: rank 0 is not between 1 and d 64"),
    ({f"0/{head}": {} for head in range(4)}, "config: the config has 4 heads"),
])
def test_calibration_refuses_a_config_that_is_not_of_the_caches(bin_dir, cache, tmp_path, heads, error):
    done = run(bin_dir, "-calibrate", "-input", cache, "-output", tmp_path / "out",
               "-config", config_file(tmp_path, {"per_layer_head": heads}))
    assert done.returncode == 1 and error in done.stderr and not (tmp_path / "out").exists()


def test_an_artifact_under_another_name_is_not_found_and_a_warning_says_so(bin_dir, cache, tmp_path):
    done = run(bin_dir, "-calibrate", "-input", cache, "-rope-theta", THETA, "-output", tmp_path / "model.bin")
    warning = "the output is not named *.kvcal: a directory of artifacts (-artifacts) has only such files"
    assert f"Warning: {warning}\n" in done.stderr and warning in json.loads(done.stdout)["warnings"]
