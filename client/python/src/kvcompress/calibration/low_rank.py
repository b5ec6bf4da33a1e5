"""Keys and values of fewer channels: each head's are projected to a few, and restored from those.

    compressor = KVSpliceCompressor(CompressionConfig.read("compression_config.json"))
    compressor.start_calibration()
    compressor.observe_kv(layer, head, keys, values)  # of every head, as often as there is something to see
    compressor.end_calibration()
    latents = compressor.compress(layer, head, keys, values)
    restored = compressor.decompress(layer, head, *latents)

Keys and values are [batch, tokens, d] of one key/value head, latents [batch, tokens, rank]. Heads that the config does
not compress pass through. `load_compressor` makes the compressor that a file was saved of.
"""

import json
from collections.abc import Mapping
from os import PathLike
from typing import Any

import torch

from .._errors import FailedPrecondition, InvalidArgument
from ._compressor_base import SIDES, KVCompressorBase, Tensors
from ._linear_map import LinearMap, principal, weighted_principal
from ._whole_file import whole_file
from .compression_config import CompressionConfig, Head, HeadConfig

__all__ = ["KVCompressorBase", "KVSpliceCompressor", "PCACompressor", "load_compressor"]

Path = str | PathLike[str]
# softplus(p) + this is the scale of a channel of latents.
_LEAST_SCALE = 1e-6


class PCACompressor(KVCompressorBase):
    """The principal components of keys and of values, which have the least squared error there is. A head's tensors
    are mean_k, U_k [rank, d_k], mean_v, U_v."""

    _PREFIX = "pca_modules"

    def __init__(self, config: CompressionConfig | Mapping[str, Any], **options: Any):
        super().__init__(config, **options)
        self._spectra: dict[Head, dict[str, torch.Tensor]] = {}

    def save_eigenvalue_spectra(self, path: Path) -> None:
        """As JSON {"layer/head": {eigenvalues_k, eigenvalues_v, cumulative_variance_k, cumulative_variance_v}}, of
        falling eigenvalues. FailedPrecondition for a compressor that was not calibrated itself."""
        if not self._spectra:
            raise FailedPrecondition(
                "eigenvalues are known of a compressor that was calibrated, not of one that was loaded"
            )
        document = {}
        for (layer, head), spectra in sorted(self._spectra.items()):
            shares = {side: (values.cumsum(0) / values.sum().clamp(min=1e-30)) for side, values in spectra.items()}
            document[f"{layer}/{head}"] = {
                **{f"eigenvalues_{side}": values.tolist() for side, values in spectra.items()},
                **{f"cumulative_variance_{side}": values.tolist() for side, values in shares.items()},
            }
        with whole_file(path) as file:
            file.write_text(json.dumps(document, indent=2), encoding="utf-8")

    def _fitted(self, head: Head, side: str, rows: torch.Tensor, weights: torch.Tensor, config: HeadConfig) -> Tensors:
        mean, vectors, values = principal(rows)
        self._spectra.setdefault(head, {})[side] = values
        return {f"mean_{side}": mean, f"U_{side}": vectors[: config.rank]}

    def _shapes(self, config: HeadConfig) -> dict[str, tuple[int, ...]]:
        return {
            "mean_k": (config.d_k,), "mean_v": (config.d_v,),
            "U_k": (config.rank, config.d_k), "U_v": (config.rank, config.d_v),
        }  # fmt: skip

    def _map(self, tensors: Tensors, side: str) -> LinearMap:
        vectors = tensors[f"U_{side}"]
        return LinearMap(tensors[f"mean_{side}"], vectors.T, vectors)


class KVSpliceCompressor(KVCompressorBase):
    """Projections that cost the model least, starting from principal components: of errors of keys what they move the
    logits of attention by, of values what they move the layer's output by, as far as `observe_costs` and the weights of
    `observe_kv` tell; where they tell nothing, those components themselves. Latents of calibration have a deviation
    of 1, where the config says learn_scale_shift. A head's tensors are, of k and likewise of v: W_k_in.weight
    [rank, d_k], W_k_out.weight [d_k, rank], scale_k and shift_k [rank], mean_k [d_k]; a state may lack the mean."""

    _PREFIX = "compressors"

    def __init__(self, config: CompressionConfig | Mapping[str, Any], **options: Any):
        super().__init__(config, **options)
        self._costs: dict[Head, list[torch.Tensor]] = {}

    def start_calibration(self) -> None:
        super().start_calibration()
        self._costs = {}

    def observe_like(self, other: KVCompressorBase) -> None:
        super().observe_like(other)
        if isinstance(other, KVSpliceCompressor):
            self._costs = dict(other._costs)

    def observe_costs(self, layer: int, head: int, key_cost: torch.Tensor, value_cost: torch.Tensor) -> None:
        """Adds what errors in the directions of keys, as they are projected, and of values cost: [d, d], symmetric."""
        costs = [cost.detach().cpu().double() for cost in (key_cost, value_cost)]
        known = self._costs.get((layer, head))
        self._costs[layer, head] = costs if known is None else [a + b for a, b in zip(known, costs, strict=True)]

    def learned_tensors(self) -> list[torch.Tensor]:
        """Means and projections, of which gradients are taken until end_learning; scales and shifts cancel. Who changes
        them calls refresh."""
        return [
            tensor.requires_grad_()
            for tensors in self._tensors.values()
            for name, tensor in tensors.items()
            if name.startswith(("W_", "mean_"))
        ]

    def refresh(self) -> None:
        self._take(self._tensors)

    def end_learning(self) -> None:
        self._take(
            {
                head: {name: tensor.detach() for name, tensor in tensors.items()}
                for head, tensors in self._tensors.items()
            }
        )

    def _fitted(self, head: Head, side: str, rows: torch.Tensor, weights: torch.Tensor, config: HeadConfig) -> Tensors:
        known = self._costs.get(head)
        cost = torch.eye(rows.shape[1], dtype=rows.dtype) if known is None else known[SIDES.index(side)]
        mean, into, out = weighted_principal(rows, weights, cost, config.rank)
        tensors = {f"W_{side}_in.weight": into.T, f"W_{side}_out.weight": out.T, f"mean_{side}": mean}
        if config.learn_scale_shift:
            deviations = ((rows - mean) @ into).std(0).clamp(min=1e-4)
            # The inverse of softplus.
            scales = (1 / deviations - _LEAST_SCALE).clamp(min=_LEAST_SCALE)
            tensors[f"scale_{side}"] = scales + (-(-scales).expm1()).log()
            tensors[f"shift_{side}"] = torch.zeros(config.rank)
        return tensors

    def _shapes(self, config: HeadConfig) -> dict[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = {}
        for side, d in zip(SIDES, (config.d_k, config.d_v), strict=True):
            shapes[f"W_{side}_in.weight"], shapes[f"W_{side}_out.weight"] = (config.rank, d), (d, config.rank)
            if config.learn_scale_shift:
                shapes[f"scale_{side}"] = shapes[f"shift_{side}"] = (config.rank,)
            shapes[f"mean_{side}"] = (d,)
        return shapes

    def _optional(self, config: HeadConfig) -> tuple[str, ...]:
        return ("mean_k", "mean_v")

    def _map(self, tensors: Tensors, side: str) -> LinearMap:
        into, out = tensors[f"W_{side}_in.weight"].T, tensors[f"W_{side}_out.weight"].T
        mean, parameter = tensors[f"mean_{side}"], tensors.get(f"scale_{side}")
        if parameter is None:
            return LinearMap(mean, into, out)
        scale = torch.nn.functional.softplus(parameter) + _LEAST_SCALE
        return LinearMap(mean, into, out, scale, tensors[f"shift_{side}"])


def load_compressor(path: Path) -> KVCompressorBase:
    """The compressor whose state_dict torch.save has written to `path`. InvalidArgument for a file that is none, and
    for one that cannot be read."""
    try:
        with open(path, "rb") as file:
            state = torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise InvalidArgument(f"{path}: {error.strerror or error}") from error
    except Exception as error:  # damaged files raise errors of nearly all kinds
        raise InvalidArgument(f"{path} is no state of a compressor: {error}") from error
    if not isinstance(state, Mapping) or not all(isinstance(name, str) for name in state) or "config" not in state:
        raise InvalidArgument(f"{path} is no state of a compressor, which has names, and config among them")
    config = CompressionConfig.of_json(state["config"])
    is_pca = any(name.startswith(PCACompressor._PREFIX + ".") for name in state)
    compressor: KVCompressorBase = PCACompressor(config) if is_pca else KVSpliceCompressor(config)
    compressor.load_state_dict(state)
    return compressor
