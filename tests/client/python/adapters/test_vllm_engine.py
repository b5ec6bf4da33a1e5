"""Both adapters of vLLM inside vLLM itself, which runs a model on the CPU.

Skipped where vLLM for the CPU is not installed; client/python/README.md says how it is. The model is a small one of
random weights, or the one in the folder KVC_VLLM_MODEL, which then reads docs/format.md."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

HERE = pathlib.Path(__file__).resolve().parent
TEXT = HERE.parents[3] / "docs" / "format.md"
CHUNK, LENGTHS = 64, (200, 330)


def _needed():
    try:
        from vllm.platforms import current_platform
    except ImportError:
        return "vLLM is not installed"
    return None if current_platform.is_cpu() else "vLLM is not built for the CPU"


pytestmark = pytest.mark.skipif(_needed() is not None, reason=str(_needed()))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """(folder, prompts)."""
    import torch
    import transformers

    if told := os.environ.get("KVC_VLLM_MODEL"):
        tokens = transformers.AutoTokenizer.from_pretrained(told)(TEXT.read_text()).input_ids
        return told, [tokens[1000 * number :][:length] for number, length in enumerate(LENGTHS)]
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(1)
    config = transformers.LlamaConfig(
        hidden_size=128, intermediate_size=256, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        head_dim=32, vocab_size=512, max_position_embeddings=1024, initializer_range=0.2)
    transformers.LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return str(folder), [torch.randint(512, (length,)).tolist() for length in LENGTHS]


def connector(address, path, codec):
    return {"kv_connector": "KvCompressConnector", "kv_connector_module_path": "kvcompress.adapters.vllm",
            "kv_role": "kv_both", "kv_load_failure_policy": "recompute",
            "kv_connector_extra_config": {"path": path, "target": address, "codec": codec, "chunk_tokens": CHUNK}}


def tier(address, path, codec):
    below = {"type": "CompressedTier", "module_path": "kvcompress.adapters.vllm", "path": path, "target": address,
             "codec": codec}
    return {"kv_connector": "OffloadingConnector", "kv_role": "kv_both", "kv_connector_extra_config": {
        "spec_name": "HostTieringSpec", "spec_module_path": "vllm_host_copies", "cpu_bytes_to_use": 1 << 26,
        "block_size": CHUNK, "secondary_tiers": [below]}}


def run(model, transfer, tokens=12):
    """Answers of a new process, whose own caches are empty."""
    folder, prompts = model
    told = {"model": folder, "prompts": prompts, "transfer": transfer, "tokens": tokens}
    done = subprocess.run(
        [sys.executable, HERE / "vllm_run.py", json.dumps(told)], check=False, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def computed(model):
    return run(model, None)


def tokens_of(answers):
    return [answer["tokens"] for answer in answers]


def loaded(answers):
    return [answer["loaded"] for answer in answers]


def furthest(answers, others):
    """Of the log-probabilities of the first tokens, which all have the same tokens before them."""
    return max(abs(one["logprobs"][0] - two["logprobs"][0]) for one, two in zip(answers, others, strict=True))


WHOLE = [length // CHUNK * CHUNK for length in LENGTHS]


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("transfer", [connector, tier])
def test_a_model_answers_alike_from_what_another_process_stored(model, computed, daemon, tmp_path, transfer):
    server = daemon("--threads", "2")
    told = transfer(server.address, str(tmp_path / "kv"), "lossless")
    cold = run(model, told)
    assert (loaded(cold), tokens_of(cold)) == ([0, 0], tokens_of(computed))
    warm = run(model, told)
    assert (loaded(warm), tokens_of(warm)) == (WHOLE, tokens_of(computed))
    assert furthest(warm, computed) < 0.05


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("transfer", [connector, tier])
def test_a_lossy_codec_is_what_the_model_reads(model, computed, daemon, tmp_path, transfer):
    server = daemon("--threads", "2")
    told = transfer(server.address, str(tmp_path / "kv"), "int4(group=32)")
    assert tokens_of(run(model, told)) == tokens_of(computed)
    warm = run(model, told)
    assert loaded(warm) == WHOLE
    assert 0 < furthest(warm, computed) < 1
