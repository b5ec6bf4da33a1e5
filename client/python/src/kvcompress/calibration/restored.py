"""What compressors make of whole caches."""

from dataclasses import dataclass

import torch

from ._compressor_base import KVCompressorBase
from .scoring import Pairs


@dataclass
class Restored:
    """What a compressor makes of the caches of a model, and their sizes. Called with the keys and values of all
    layers, it compresses them and gives them back restored."""

    compressor: KVCompressorBase
    original_bytes: int = 0
    latent_bytes: int = 0

    def __call__(self, pairs: Pairs) -> Pairs:
        return [self._layer(layer, keys, values) for layer, (keys, values) in enumerate(pairs)]

    def _layer(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.original_bytes += keys.nbytes + values.nbytes
        restored = []
        for head in range(keys.shape[1]):
            latents = self.compressor.compress(layer, head, keys[:, head], values[:, head])
            self.latent_bytes += sum(side.nbytes for side in latents)
            restored.append(self.compressor.decompress(layer, head, *latents))
        return torch.stack([pair[0] for pair in restored], 1), torch.stack([pair[1] for pair in restored], 1)
