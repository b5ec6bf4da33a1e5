"""What compresses the keys and values of a model, of whatever family, under the name that tutorials import it by."""

from typing import Any

from kvcompress.calibration import KVCompressorBase, KVSpliceCompressor, PCACompressor

__all__ = ["CompressedKVModelWrapper", "KVCompressorBase", "KVSpliceCompressor", "PCACompressor"]


def __getattr__(name: str) -> Any:
    if name != "CompressedKVModelWrapper":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from kvcompress.adapters.compressed_model import CompressedKVModelWrapper

    return CompressedKVModelWrapper
