"""What codecs do to a model that people use, which `make real-model` has made: bounds that any sane measurement keeps."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
MODEL = REPOSITORY / "build" / "models" / "SmolLM2-135M-Instruct"
# On every Debian.
TEXT = pathlib.Path("/usr/share/common-licenses/GPL-3")
CODECS = ("lossless", "int8(group=64)", "int4(group=64)", "kv4", "kv3")


@pytest.fixture(scope="module")
def results():
    """By codec, of two windows of 256 tokens."""
    flags = [flag for codec in CODECS for flag in ("--codec", codec)]
    done = subprocess.run(
        [sys.executable, "validate_perplexity.py", "--model", MODEL, "--text", TEXT, "--windows", "2", "--prefix-len", "256",
         "--continuation-len", "64", "--threshold", "1e9", "--cpu", "--json", *flags],
        cwd=REPOSITORY / "validation", capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "2"})
    assert done.returncode == 0, done.stderr
    return dict(zip(CODECS, json.loads(done.stdout)))


def test_it_is_a_model_that_reads(results):
    assert results["lossless"]["tokens"] == 2 * 63
    assert 0.01 < results["lossless"]["baseline_nll"] < 4


def test_lossless_changes_nothing(results):
    assert results["lossless"]["change"]["kl"] == results["lossless"]["delta"] == 0


def test_float32_rounds_next_to_nothing(results):
    assert 0 < results["lossless"]["noise_floor"]["kl"] < 1e-9


def test_int4_hurts_more_than_the_recommended_codecs_of_fewer_bits(results):
    kl = {codec: result["change"]["kl"] for codec, result in results.items()}
    assert kl["int4(group=64)"] > 4 * kl["kv4"] > 0 and kl["int4(group=64)"] > kl["kv3"] > kl["kv4"]
    assert kl["int4(group=64)"] > 50 * kl["int8(group=64)"] > 1e3 * results["lossless"]["noise_floor"]["kl"]
    assert results["int4(group=64)"]["keys_only"]["kl"] > results["int4(group=64)"]["values_only"]["kl"]


def test_files_are_of_the_size_that_was_asked_for(results):
    bits = {codec: 16 / result["compression_ratio"] for codec, result in results.items()}
    assert bits["kv3"] == pytest.approx(3, abs=0.06) and bits["kv4"] == pytest.approx(4, abs=0.06)
    assert 10 < bits["lossless"] < 14 and bits["int4(group=64)"] == pytest.approx(4.27, abs=0.05)


def test_the_sample_of_the_tests_is_a_cache_of_it(tmp_path):
    """As tests/data/README.md says how it was made."""
    import torch
    from safetensors.torch import load_file

    manual = (REPOSITORY / "tests" / "data" / "README.md").read_text(encoding="utf-8")
    program = manual.partition("```python\n")[2].partition("```")[0]
    made = tmp_path / "build"
    made.mkdir()
    (made / "models").symlink_to(MODEL.parent)
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True, capture_output=True)
    found = load_file(made / "smollm2.256.bf16.safetensors")
    kept = load_file(REPOSITORY / "tests" / "data" / "smollm2.256.bf16.safetensors")
    assert list(found) == list(kept)
    for name, tensor in kept.items():
        # Rounding to BF16 may fall otherwise on another machine, here and there.
        assert (found[name] == tensor).float().mean() > 0.98
        torch.testing.assert_close(found[name], tensor, rtol=2**-7, atol=2**-7)
