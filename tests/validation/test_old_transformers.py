"""The oldest and some later transformers that validation/ works with, really installed, in programs of their own."""

import json
import os
import subprocess
import sys

import pytest
import scoring
import torch
from compression_bridge import Spec
from conftest import REPOSITORY, VALIDATION, make_model
from model_inputs import Window, load_model_and_tokenizer

COMMON = ["huggingface-hub==0.36.0", "requests==2.34.2", "urllib3==2.6.3", "charset-normalizer==3.4.4",
          "certifi==2026.1.4"]
# 4.35: tuples; 4.36: two lists, and tuples from models; 4.50: two lists; the installed one: layers.
VERSIONS = {"4.35.2": "0.15.2", "4.36.2": "0.15.2", "4.50.3": "0.21.4"}

PROGRAM = """
import json, sys
import torch, transformers
import cache_view, scoring
from compression_bridge import Spec
from kv_cache_utils import compute_kv_cache_stats, extract_kv_cache, load_kv_cache, save_kv_cache
from model_inputs import Window, load_model_and_tokenizer

folder = sys.argv[1]
model, _ = load_model_and_tokenizer(folder, "cpu")
ids = json.loads(sys.argv[2])
tokenizer = lambda prompt, return_tensors: {"input_ids": torch.tensor([ids[:32]])}
cache, metadata = extract_kv_cache(model, tokenizer, "")
save_kv_cache(cache, folder + "/cache")
loaded, _ = load_kv_cache(folder + "/cache", config=model.config)
with torch.no_grad():
    whole, _ = cache_view.forward(model, torch.tensor([ids]))
    continued, _ = cache_view.forward(model, torch.tensor([ids[32:]]), loaded)
int4, lossless = scoring.score(model, [Window(ids, 32)], [Spec(), Spec("lossless")], torch.float16)
print(json.dumps({
    "version": transformers.__version__, "cache": type(loaded).__name__, "metadata": metadata.to_dict(),
    "off": (continued - whole[:, 32:]).abs().max().item(), "mean": compute_kv_cache_stats(cache)["value_mean"],
    "baseline": int4.baseline_nll, "kl": int4.changes["both"].kl, "lossless": lossless.changes["both"].kl}))
"""


@pytest.fixture(scope="module", params=VERSIONS)
def old(request):
    """A folder with that version of transformers, kept between runs."""
    folder = REPOSITORY / "build" / "python" / f"transformers-{request.param}"
    if not (folder / "done").exists():
        installed = subprocess.run(
            [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--upgrade", "--target", str(folder),
             f"transformers=={request.param}", f"tokenizers=={VERSIONS[request.param]}", *COMMON],
            capture_output=True, text=True)
        if installed.returncode != 0:
            pytest.skip(f"transformers {request.param} cannot be installed here: {installed.stderr.strip()[-200:]}")
        (folder / "done").touch()
    return request.param, folder


def test_old_transformers_measure_the_same(old, tmp_path):
    version, folder = old
    # A head size that differs from hidden_size / heads is newer than 4.35.
    make_model(num_attention_heads=2).save_pretrained(tmp_path)
    ids = torch.randint(0, 64, (48,), generator=torch.Generator().manual_seed(3)).tolist()
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", PROGRAM, str(tmp_path), json.dumps(ids)],
                          env={**os.environ, "PYTHONPATH": f"{folder}:{VALIDATION}"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["version"] == version
    assert found["cache"] == ("tuple" if version.startswith("4.35") else "DynamicCache")
    assert {**found["metadata"], "model_name": ""} == {
        "num_layers": 2, "num_kv_heads": 2, "seq_len": 32, "head_dim": 64, "dtype": "float32", "model_name": ""}
    assert found["off"] < 1e-4 and found["lossless"] == 0
    model, _ = load_model_and_tokenizer(str(tmp_path), "cpu")
    expected = scoring.score(model, [Window(ids, 32)], [Spec()], torch.float16)[0]
    assert found["baseline"] == pytest.approx(expected.baseline_nll, rel=1e-4)
    assert found["kl"] == pytest.approx(expected.changes["both"].kl, rel=0.02)
