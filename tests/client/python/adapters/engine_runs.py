"""Processes of their own for engines: models that they run, and tests of ours with their classes."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

HERE = pathlib.Path(__file__).resolve().parent
TEXT = HERE.parents[3] / "docs" / "format.md"
LENGTHS = (200, 330)  # tokens of the prompts


def make_model(folder):
    """(folder, prompts): a small model of random weights, or the one of KVC_ENGINE_MODEL."""
    import torch
    import transformers

    if told := os.environ.get("KVC_ENGINE_MODEL"):
        tokens = transformers.AutoTokenizer.from_pretrained(told)(TEXT.read_text()).input_ids
        return told, [tokens[1000 * number :][:length] for number, length in enumerate(LENGTHS)]
    torch.manual_seed(1)
    config = transformers.LlamaConfig(
        hidden_size=128, intermediate_size=256, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        head_dim=32, vocab_size=512, max_position_embeddings=1024, initializer_range=0.2)
    transformers.LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return str(folder), [torch.randint(512, (length,)).tolist() for length in LENGTHS]


def unpacked_wheels():
    """The folder of KVC_ENGINE_SOURCES; skips the test where there is none."""
    folder = os.environ.get("KVC_ENGINE_SOURCES")
    if not folder:
        pytest.skip("KVC_ENGINE_SOURCES does not name a folder of unpacked wheels")
    return pathlib.Path(folder)


def pass_with_vllms_classes(*files, timeout):
    """Runs tests with the classes of an unpacked wheel in place of stand-ins."""
    environment = {**os.environ, "PYTHONPATH": f"{unpacked_wheels()}:{HERE}"}
    del environment["KVC_ENGINE_SOURCES"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "vllm_imports", *(HERE / name for name in files)]
    done = subprocess.run(command, env=environment, cwd=HERE.parents[3], check=False, capture_output=True, text=True,
                          timeout=timeout)
    assert done.returncode == 0, done.stdout


def run(script, model, *, environment=None, tokens=12, **told):
    """Answers of a new process, whose own caches are empty."""
    folder, prompts = model
    told = {"model": folder, "prompts": prompts, "tokens": tokens, **told}
    done = subprocess.run(
        [sys.executable, HERE / script, json.dumps(told)], check=False, capture_output=True, text=True, timeout=600,
        env={**os.environ, "HF_HUB_OFFLINE": "1", **(environment or {})})
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(next(line for line in reversed(done.stdout.splitlines()) if line.startswith("[{")))


def tokens_of(answers):
    return [answer["tokens"] for answer in answers]


def loaded(answers):
    return [answer["loaded"] for answer in answers]


def furthest(answers, others):
    """Of the log-probabilities of the first tokens, which all have the same tokens before them."""
    return max(abs(one["logprobs"][0] - two["logprobs"][0]) for one, two in zip(answers, others, strict=True))
