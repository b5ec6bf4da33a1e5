"""Both adapters of vLLM inside vLLM itself, which runs a model on the CPU.

Skipped where vLLM for the CPU is not installed; client/python/README.md says how it is. The model is a small one of
random weights, or the one in the folder KVC_ENGINE_MODEL, which then reads docs/format.md."""

import pytest
from engine_runs import LENGTHS, furthest, loaded, make_model, run, tokens_of

CHUNK = 64
WHOLE = [length // CHUNK * CHUNK for length in LENGTHS]


def _needed():
    try:
        from vllm.platforms import current_platform
    except ImportError:
        return "vLLM is not installed"
    return None if current_platform.is_cpu() else "vLLM is not built for the CPU"


pytestmark = pytest.mark.skipif(_needed() is not None, reason=str(_needed()))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("model"))


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


def answers_of(model, transfer=None):
    return run("vllm_run.py", model, transfer=transfer)


@pytest.fixture(scope="module")
def computed(model):
    return answers_of(model)


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("transfer", [connector, tier])
def test_a_model_answers_alike_from_what_another_process_stored(model, computed, daemon, tmp_path, transfer):
    server = daemon("--threads", "2")
    told = transfer(server.address, str(tmp_path / "kv"), "lossless")
    cold = answers_of(model, told)
    assert (loaded(cold), tokens_of(cold)) == ([0, 0], tokens_of(computed))
    warm = answers_of(model, told)
    assert (loaded(warm), tokens_of(warm)) == (WHOLE, tokens_of(computed))
    assert furthest(warm, computed) < 0.05


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("transfer", [connector, tier])
def test_a_lossy_codec_is_what_the_model_reads(model, computed, daemon, tmp_path, transfer):
    server = daemon("--threads", "2")
    told = transfer(server.address, str(tmp_path / "kv"), "int4(group=32)")
    assert tokens_of(answers_of(model, told)) == tokens_of(computed)
    warm = answers_of(model, told)
    assert loaded(warm) == WHOLE
    assert 0 < furthest(warm, computed) < 1
