"""The artifact of a model: what calibration learns of its keys and values, for codecs that are told of it by its id.

    collect_cache(model, windows, "cache.safetensors")
    collect_weights(model, windows, "weights.safetensors", group_dim=256)
    made = calibrate(["cache.safetensors"], "model.kvcal", weights="weights.safetensors", group_dim=256)
    client.compress(keys, f"kv(bits=3,artifact={made.id})", name="layer_0_key")

The program kv-compress does the work, without a daemon. `load_model` gives a model, `read_text` what it reads.
`load_model`, `collect_cache` and `collect_weights` need PyTorch and transformers, `calibrate` neither. `fisher_metrics`
measures what heads are like, `measure_sensitivity` what errors in them cost, `CompressionConfig` says which are
compressed to which rank; `PCACompressor` and `KVSpliceCompressor` do that.
"""

import importlib
from typing import TYPE_CHECKING, Any

from ._artifact import Calibration, calibrate
from ._inputs import load_model, read_text
from .compression_config import CompressionConfig, HeadConfig

if TYPE_CHECKING:
    from ._model_statistics import collect_cache, collect_weights
    from .fisher import fisher_metrics
    from .low_rank import KVCompressorBase, KVSpliceCompressor, PCACompressor, load_compressor
    from .sensitivity import measure_sensitivity

__all__ = [
    "Calibration",
    "CompressionConfig",
    "HeadConfig",
    "KVCompressorBase",
    "KVSpliceCompressor",
    "PCACompressor",
    "calibrate",
    "collect_cache",
    "collect_weights",
    "fisher_metrics",
    "load_compressor",
    "load_model",
    "measure_sensitivity",
    "read_text",
]

# What needs PyTorch, by the module that has it, which is imported when it is asked for.
_MODULES = {
    **dict.fromkeys(("collect_cache", "collect_weights"), "_model_statistics"),
    "fisher_metrics": "fisher",
    **dict.fromkeys(("KVCompressorBase", "KVSpliceCompressor", "PCACompressor", "load_compressor"), "low_rank"),
    "measure_sensitivity": "sensitivity",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = importlib.import_module(f".{_MODULES[name]}", __name__)
    except ImportError as error:
        raise ImportError(
            f"kvcompress.calibration.{name} needs PyTorch and transformers ({error}): "
            "pip install './client/python[transformers]' from a checkout"
        ) from error
    return getattr(module, name)
