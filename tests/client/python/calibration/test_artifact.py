"""Artifacts made from Python, by the program itself."""

import stat
import subprocess

import kvcompress
import numpy as np
import pytest
from kvcompress import RotaryEmbedding, calibration
from safetensors.numpy import load_file, save_file

HEADS, DIM, TOKENS, LAYERS = 2, 64, 300, 2


@pytest.fixture
def cache(tmp_path):
    """A file of a cache, of channels that have to do with one another."""
    random = np.random.default_rng(1)
    mix = random.standard_normal((DIM, DIM))
    tensors = {
        f"layer_{layer}_{side}": (random.standard_normal((1, HEADS, TOKENS, DIM)) @ mix).astype(np.float16)
        for layer in range(LAYERS)
        for side in ("key", "value")
    }
    path = tmp_path / "cache.safetensors"
    save_file(tensors, path, metadata={"rope_theta": "500", "rope_pairs": "interleaved"})
    return path


def script(path, text):
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_an_artifact_is_made_and_can_be_used(program, cache, tmp_path):
    output = tmp_path / "model.kvcal"
    done = []
    made = calibration.calibrate([cache], output, progress=done.append)
    assert (made.output, made.artifact_bytes) == (str(output), output.stat().st_size)
    assert (made.tokens, made.layers, made.heads) == (TOKENS - 4, LAYERS, HEADS)
    assert (made.head_dim, made.group_dim) == (DIM, 128)
    assert made.rotary == RotaryEmbedding(500, "interleaved", dims=DIM)
    assert not made.is_weighted
    assert "296 tokens" in made.warnings[0]
    assert {tensor["tensor"] for tensor in made.report["tensors"]} == set(load_file(cache))
    assert done == sorted(done)
    assert all(0 <= part <= 1 for part in done)
    codec = f"transform(bits=3,artifact={made.id})"
    subprocess.run([program, "-input", cache, "-metrics-only", "-codec", codec, "-artifacts", tmp_path], check=True,
                   capture_output=True)


def test_weights_and_flags_reach_the_program(program, cache, tmp_path):
    weights = tmp_path / "weights.safetensors"
    eye = np.eye(DIM, dtype=np.float32) * np.arange(1, DIM + 1, dtype=np.float32)
    save_file({name: np.stack([eye] * HEADS) for name in load_file(cache)}, weights)
    rotary = RotaryEmbedding(10000.0, "half", dims=32, offset=8, start=7)
    made = calibration.calibrate([str(cache), cache], tmp_path / "a.kvcal", weights=weights, group_dim=64, threads=1,
                                 rotary=rotary)
    assert made.rotary == RotaryEmbedding(10000.0, "half", dims=32, offset=8)
    assert made.is_weighted
    assert (made.group_dim, made.tokens) == (64, 2 * TOKENS), "sequences that begin at position 7 have no sinks"


def test_what_cannot_be_is_refused_in_the_programs_words(program, cache, tmp_path):
    output = tmp_path / "a.kvcal"
    for change, text in (({"group_dim": 13}, "-group-dim must be"), ({"weights": tmp_path / "none"}, "no such file"),
                         ({"weights": cache}, "in place of F32"), ({"inputs": [tmp_path / "none"]}, "no such file"),
                         ({"inputs": []}, "-input is required"), ({"inputs": ["a,b"]}, "no commas"),
                         ({"inputs": [""]}, "not a path"), ({"output": tmp_path / "none" / "a"}, "no such file"),
                         ({"rotary": RotaryEmbedding(-1.0)}, "theta")):
        with pytest.raises(kvcompress.InvalidArgument, match=text):
            calibration.calibrate(**{"inputs": [cache], "output": output, **change})
    assert not output.exists()


def test_a_program_that_is_missing_late_or_ended(cache, tmp_path, monkeypatch):
    monkeypatch.delenv("KV_COMPRESS_PATH", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    output = tmp_path / "a.kvcal"
    with pytest.raises(kvcompress.FailedPrecondition, match="KV_COMPRESS_PATH"):
        calibration.calibrate([cache], output)
    with pytest.raises(kvcompress.FailedPrecondition, match="does not run"):
        calibration.calibrate([cache], output, program=cache)
    slow = script(tmp_path / "kv-compress", "exec /bin/sleep 30")
    with pytest.raises(kvcompress.DeadlineExceeded):
        calibration.calibrate([cache], output, timeout=0.2)
    ended = script(tmp_path / "ended", "kill -9 $$")
    with pytest.raises(kvcompress.Cancelled):
        calibration.calibrate([cache], output, program=ended)
    silent = script(tmp_path / "silent", "exit 1")
    with pytest.raises(kvcompress.InvalidArgument, match="no reason"):
        calibration.calibrate([cache], output, program=silent)
    script(slow, "echo 'bar  50% 1 MiB' >&2; exec /bin/sleep 30")

    def stop(part):
        raise ZeroDivisionError(part)

    with pytest.raises(ZeroDivisionError, match=r"0\.5"):
        calibration.calibrate([cache], output, progress=stop)
