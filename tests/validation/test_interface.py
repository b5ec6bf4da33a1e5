"""Every class, function, constant, default and flag of the published interface, written out here."""

import dataclasses
import inspect
import subprocess
import typing

import compression_bridge
import kv_cache_utils
import pytest
import validate_perplexity
from conftest import VALIDATION

REQUIRED = inspect.Parameter.empty

FUNCTIONS = {
    kv_cache_utils: {
        "extract_kv_cache": {"model": REQUIRED, "tokenizer": REQUIRED, "prompt": REQUIRED, "max_length": None,
                             "device": None},
        "save_kv_cache": {"cache": REQUIRED, "path": REQUIRED, "metadata_path": None},
        "load_kv_cache": {"path": REQUIRED, "metadata_path": None, "device": "cpu"},
        "validate_kv_cache_shape": {"cache": REQUIRED, "expected_layers": 22, "expected_kv_heads": 4,
                                    "expected_head_dim": 64},
        "compute_kv_cache_stats": {"cache": REQUIRED},
        "create_kv_cache_from_tensors": {"keys": REQUIRED, "values": REQUIRED},
    },
    compression_bridge: {
        "compress_kv_cache": {"input_path": REQUIRED, "output_path": REQUIRED, "group_size": 64, "sparsity": 0.0,
                              "verbose": False},
        "decompress_kv_cache": {"input_path": REQUIRED, "output_path": REQUIRED, "verbose": False},
        "get_compression_metrics": {"input_path": REQUIRED, "group_size": 64, "verbose": False},
        "find_cli_binary": {},
        "check_cli_available": {},
        "print_metrics_report": {"metrics": REQUIRED, "title": "Compression Metrics"},
    },
    validate_perplexity: {
        "load_model_and_tokenizer": {"model_name": "TinyLlama/TinyLlama-1.1B-Chat-v1.0", "device": None},
        "compute_perplexity": {"model": REQUIRED, "tokenizer": REQUIRED, "dataset_name": "wikitext",
                               "dataset_config": "wikitext-2-raw-v1", "split": "test", "stride": 512,
                               "max_samples": None, "verbose": True},
        "run_full_validation": {"device": None, "threshold": 0.5, "verbose": True},
        "run_quick_test": {"verbose": True},
    },
}

CLASSES = {
    (kv_cache_utils, "KVCacheMetadata"): {"num_layers": int, "num_kv_heads": int, "seq_len": int, "head_dim": int,
                                          "dtype": str, "model_name": str},
    (compression_bridge, "CompressionMetrics"): {
        "compression_ratio": float, "original_size_bytes": int, "compressed_size_bytes": int, "rmse": float,
        "snr_db": float, "cosine_similarity": float, "max_error": float, "quality_level": str,
        "processing_time_ms": float, "passed": bool, "violations": list},
    (validate_perplexity, "ValidationResult"): {
        "baseline_perplexity": float, "compressed_perplexity": float, "delta": float, "delta_percent": float,
        "compression_ratio": float, "rmse": float, "snr_db": float, "cosine_similarity": float, "passed": bool,
        "threshold": float},
}

CONSTANTS = {"TINYLLAMA_NUM_LAYERS": 22, "TINYLLAMA_NUM_KV_HEADS": 4, "TINYLLAMA_NUM_QUERY_HEADS": 32,
             "TINYLLAMA_HEAD_DIM": 64, "TINYLLAMA_HIDDEN_SIZE": 2048, "TINYLLAMA_VOCAB_SIZE": 32000}


@pytest.mark.parametrize("module, name", [(module, name) for module, names in FUNCTIONS.items() for name in names])
def test_functions(module, name):
    wanted = FUNCTIONS[module][name]
    parameters = list(inspect.signature(getattr(module, name)).parameters.values())
    first = parameters[:len(wanted)]
    assert [(parameter.name, parameter.default) for parameter in first] == list(wanted.items())
    assert all(parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD for parameter in first)
    further = [parameter for parameter in parameters[len(wanted):] if parameter.kind is not inspect.Parameter.VAR_KEYWORD]
    assert all(parameter.default is not REQUIRED for parameter in further), "further parameters are optional"


@pytest.mark.parametrize("module, name", CLASSES)
def test_classes(module, name):
    wanted = CLASSES[module, name]
    cls = getattr(module, name)
    fields = dataclasses.fields(cls)
    assert [field.name for field in fields[:len(wanted)]] == list(wanted)
    hints = typing.get_type_hints(cls)
    assert {field: hints[field] for field in wanted} == wanted
    cls(*[None] * len(wanted))  # everything behind them has a default
    if name == "ValidationResult":
        assert cls(*[0.0] * 9).threshold == 0.5
    else:
        assert callable(cls.from_dict)


def test_constants():
    assert {name: getattr(kv_cache_utils, name) for name in CONSTANTS} == CONSTANTS


def test_metadata_goes_to_a_dict_and_back():
    metadata = kv_cache_utils.KVCacheMetadata(22, 4, 128, 64, "float16", "m")
    assert metadata.to_dict() == {"num_layers": 22, "num_kv_heads": 4, "seq_len": 128, "head_dim": 64,
                                  "dtype": "float16", "model_name": "m"}
    assert kv_cache_utils.KVCacheMetadata.from_dict({**metadata.to_dict(), "more": 1}) == metadata


def test_documented_exceptions_are_caught_by_their_published_types():
    assert issubclass(compression_bridge.CompressionError, subprocess.CalledProcessError)


def test_requirements_are_the_published_ranges():
    lines = (VALIDATION / "requirements.txt").read_text().split()
    assert lines == ["torch>=2.0.0", "transformers>=4.35.0", "safetensors>=0.4.0", "datasets>=2.14.0",
                     "numpy>=1.24.0", "tqdm>=4.65.0", "pytest>=7.0.0"]
