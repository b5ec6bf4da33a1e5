"""The HiCache storage inside SGLang itself, which runs a model on the CPU with stand-ins for its kernels.

Skipped where SGLang is not installed; client/python/README.md says how it is."""

import importlib.machinery
import os

import pytest
from engine_runs import HERE, LENGTHS, furthest, loaded, make_model, run, tokens_of

# On disk: where it is not, other tests of the same run may have put its stand-in among the modules.
_IS_INSTALLED = importlib.machinery.PathFinder.find_spec("sglang") is not None
pytestmark = pytest.mark.skipif(not _IS_INSTALLED, reason="SGLang is not installed")

PAGE = 64
PAGES = [length // PAGE for length in LENGTHS]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("model"))


def answers_of(model, storage=None):
    found = os.pathsep.join([str(HERE / "sglang_host"), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {"SGLANG_USE_CPU_ENGINE": "1", "PYTHONPATH": found}
    return run("sglang_run.py", model, environment=environment, storage=storage, files=sum(PAGES))


@pytest.fixture(scope="module")
def computed(model):
    return answers_of(model)


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("codec", "least", "most"), [("lossless", 0, 0.05), ("int4(group=32)", 1e-6, 1)])
def test_a_model_reads_what_another_process_stored(model, computed, daemon, tmp_path, codec, least, most):
    server = daemon("--threads", "2")
    storage = {
        "backend_name": "kvcompress", "module_path": "kvcompress.adapters.sglang", "class_name": "KvCompressStorage",
        "interface_v1": 1, "prefetch_threshold": PAGE, "path": str(tmp_path / "kv"), "target": server.address,
        "codec": codec}
    cold = answers_of(model, storage)
    assert (loaded(cold), tokens_of(cold)) == ([0, 0], tokens_of(computed))
    warm = answers_of(model, storage)
    assert loaded(warm) == [PAGE * pages for pages in PAGES]
    assert least <= furthest(warm, computed) < most
    if codec == "lossless":
        assert tokens_of(warm) == tokens_of(computed)
