"""Frames of the codec `transform`, decoded by code that was written from docs/format.md alone: it must give the bits that
ours gives."""

import artifact_reader
import ml_dtypes
import numpy as np
import pytest
import transform_decoder
from chain_decoder import decode_frame
from cli_helpers import File, run, run_ok, write_file

SPECS = pytest.mark.parametrize("spec", [
    "transform(bits=3,theta=10000)",
    "transform(step=0.02,theta=10000)",
    "transform(step=0.3,trellis=false)",
    "transform(snr=15,theta=500000,rotary=interleaved,rotary_dims=32,start=100000)",
    "transform(step=4,sinks=false)",
    "transform(step=0.0002,trellis=false)",
    "transform(step=0.1,theta=500000,scaling=llama3,factor=8,original=128,start=40)",
    "transform(step=0.1,theta=10000,rotary=interleaved,scaling=yarn,factor=4,low=2,high=20,original=512)",
    "transform(step=0.1,theta=10000,scaling=linear,factor=2.5,start=1000)",
])


def keys(shape, seed):
    """Rows with means and deviations of their channels, sinks and a token that is no token like the others."""
    random = np.random.default_rng(seed)
    channels = (shape[1], 1, shape[3])
    values = random.standard_normal(shape) * random.uniform(0.01, 3, channels) + 10 * random.standard_normal(channels)
    values[:, :, 0] *= 30
    values[:, :, shape[2] // 2] *= 12
    return values.astype(np.float32)


def check(bin_dir, tmp_path, path, spec, *args):
    small, back = tmp_path / "small.safetensors", tmp_path / "back.safetensors"
    run_ok(bin_dir, "-input", path, "-output", small, "-codec", spec, *args)
    run_ok(bin_dir, "-input", small, "-output", back, "-decompress", *args)
    for name, *_ in File(small).layout:
        decoded = decode_frame(File(small).bytes[name])
        assert decoded.tobytes() == bytes(File(back).bytes[name]), name


@SPECS
def test_a_decoder_from_the_document_gives_the_same_bits(bin_dir, tmp_path, spec):
    path = write_file(tmp_path / "in", {
        "layer_0_key": keys((1, 2, 90, 64), 1).astype(np.float16),
        "layer_1_key": keys((1, 3, 24, 80), 2).astype(ml_dtypes.bfloat16),
        "layer_1_value": keys((2, 1, 17, 48), 3),
        "layer_2_key": (keys((1, 1, 40, 32), 4) / 20).clip(-400, 400).astype(ml_dtypes.float8_e4m3fn),
        "rows": keys((1, 1, 30, 20), 5).reshape(30, 20),
        "few": np.arange(5, dtype=np.float32),
        "zeros": np.zeros((1, 1, 40, 64), np.float16),
    })
    check(bin_dir, tmp_path, path, spec)


# So many values that the entropy coder has 2, 4, 16, 32 lanes and 64.
@pytest.mark.parametrize("tokens", [65, 130, 257, 511, 601, 1033])
@pytest.mark.parametrize("spec", ["transform(step=0.05)", "transform(step=0.3,trellis=false)", "transform(step=0.0002)"])
def test_blocks_of_each_number_of_lanes_have_the_same_bits(bin_dir, tmp_path, spec, tokens):
    path = write_file(tmp_path / "in", {"layer_0_key": keys((1, 2, tokens, 64), 7)})
    check(bin_dir, tmp_path, path, spec)


def with_artifact(bin_dir, tmp_path, path, *args):
    """The id of an artifact of this cache, which the second decoder gets, too."""
    (tmp_path / "artifacts").mkdir(exist_ok=True)
    file = tmp_path / "artifacts" / "model.kvcal"
    report = run_ok(bin_dir, "-calibrate", "-input", path, "-output", file, *args)
    transform_decoder.ARTIFACTS[report["artifact"]] = artifact_reader.read(file)
    return report["artifact"]


@pytest.mark.parametrize("group_dim", [64, 128])
@pytest.mark.parametrize("spec", ["bits=3", "step=0.05,trellis=false", "snr=20,start=7"])
@pytest.mark.parametrize("rope", [(), ("-rope-theta", "10000"),
                                  ("-rope-theta", "500", "-rope-pairs", "interleaved", "-rope-dims", "16", "-rope-offset", "8"),
                                  ("-rope-theta", "10000", "-rope-scaling",
                                   '{"type": "yarn", "factor": 4, "original_max_position_embeddings": 100}')])
def test_frames_with_an_artifact_have_the_same_bits(bin_dir, tmp_path, spec, group_dim, rope):
    path = write_file(tmp_path / "in", {
        "layer_0_key": keys((2, 4, 90, 32), 1).astype(np.float16),
        "layer_2_key": keys((1, 4, 151, 32), 2).astype(ml_dtypes.bfloat16),
        "layer_2_value": keys((1, 4, 140, 32), 3),
        "layer_3_value": (keys((1, 4, 140, 32), 4) / 20).clip(-400, 400).astype(ml_dtypes.float8_e4m3fn),
    })
    artifact = with_artifact(bin_dir, tmp_path, path, "-group-dim", group_dim, *rope)
    check(bin_dir, tmp_path, path, f"transform({spec},artifact={artifact})", "-artifacts", tmp_path / "artifacts")


def test_weights_make_bases_that_are_not_orthogonal(bin_dir, tmp_path):
    path = write_file(tmp_path / "in", {"layer_0_key": keys((1, 2, 300, 64), 1).astype(np.float16)})
    factors = np.random.default_rng(1).standard_normal((2, 64, 3))
    write_file(tmp_path / "weights", {"layer_0_key": (factors @ factors.transpose(0, 2, 1)).astype(np.float32)})
    artifact = with_artifact(bin_dir, tmp_path, path, "-group-dim", 64, "-weights", tmp_path / "weights", "-rope-theta", 10000)
    check(bin_dir, tmp_path, path, f"transform(step=0.02,artifact={artifact})", "-artifacts", tmp_path / "artifacts")


def test_an_artifact_that_is_not_there_is_named(bin_dir, tmp_path):
    path = write_file(tmp_path / "in", {"layer_0_key": keys((1, 2, 300, 64), 1).astype(np.float16)})
    artifact = with_artifact(bin_dir, tmp_path, path, "-rope-theta", 10000)
    spec = f"transform(bits=2,artifact={artifact})"
    run_ok(bin_dir, "-input", path, "-output", tmp_path / "small", "-codec", spec, "-artifacts", tmp_path / "artifacts")
    assert artifact in run(bin_dir, "-inspect", tmp_path / "small").stdout
    (tmp_path / "artifacts" / "model.kvcal").rename(tmp_path / "moved.kvcal")
    for decompress in (["-decompress", "-input", tmp_path / "small"], ["-codec", spec, "-input", path]):
        for args, error in [((), "no directory of artifacts"), (("-artifacts", tmp_path / "artifacts"), f"into {tmp_path}/artifacts")]:
            done = run(bin_dir, *decompress, "-output", tmp_path / "back", *args)
            assert done.returncode == 1 and artifact in done.stderr and error in done.stderr
    assert not (tmp_path / "back").exists()
    run_ok(bin_dir, "-decompress", "-input", tmp_path / "small", "-output", tmp_path / "back", "-artifacts", tmp_path)


def test_values_that_do_not_shrink_are_stored(bin_dir, tmp_path):
    path = write_file(tmp_path / "in", {"layer_0_key": keys((1, 1, 20, 64), 6).astype(np.float16)})
    check(bin_dir, tmp_path, path, "transform(step=0.000001)")
