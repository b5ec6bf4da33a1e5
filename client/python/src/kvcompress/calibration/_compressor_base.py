"""What compressors of low rank have in common."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any, ClassVar

import torch

from .._errors import FailedPrecondition, InvalidArgument
from .._rotary import RotaryEmbedding
from ._linear_map import LinearMap
from ._model_statistics import turned_back
from ._reservoir import Reservoir
from .compression_config import CompressionConfig, Head, HeadConfig, head_key

SAMPLED_ROWS = 10_000  # of each head, over all that is observed
SIDES = ("k", "v")

Pair = tuple[torch.Tensor, torch.Tensor]
Tensors = dict[str, torch.Tensor]


class KVCompressorBase:
    """What compressors have in common. `config` is a CompressionConfig, or the document of one. With a model's `rotary`
    keys are turned back by their positions before they are projected, and turned again once they are restored: the
    channels of keys of all positions have more in common then. Without it they are taken as caches hold them."""

    _PREFIX: ClassVar[str]  # of a head's tensors in a state

    def __init__(
        self,
        config: CompressionConfig | Mapping[str, Any],
        *,
        rotary: RotaryEmbedding | None = None,
        seed: int = 0,
    ):
        self.config = config if isinstance(config, CompressionConfig) else CompressionConfig.of_json(config)
        self.rotary = rotary
        self._seed = seed
        self._seen: set[Head] = set()  # heads of the model, as far as they were observed
        self._samples: dict[Head, Reservoir] | None = None
        self._tensors: dict[Head, Tensors] = {}
        self._maps: dict[Head, tuple[LinearMap, LinearMap]] = {}

    def get_config(self, layer: int, head: int) -> HeadConfig:
        return self.config.head(layer, head)

    def is_enabled(self, layer: int, head: int) -> bool:
        return self.get_config(layer, head).enabled

    def start_calibration(self) -> None:
        """Forgets what was observed before."""
        self._samples = {}
        self._seen = set()

    def observe_kv(
        self,
        layer: int,
        head: int,
        keys: torch.Tensor,
        values: torch.Tensor,
        *,
        positions: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
        weights: Pair | None = None,
    ) -> None:
        """Samples rows of a head. `positions`, [tokens] or [batch, tokens], are 0, 1, ... unless they are given.
        `mask`, [batch, tokens], is False where tokens are padding. `weights`, [batch, tokens] each, are what an error
        in a row of keys, and of values, costs beside the others. InvalidArgument, which names the head, for shapes that
        do not fit."""
        if self._samples is None:
            raise FailedPrecondition("start_calibration comes before observe_kv")
        config = self._checked(layer, head, keys, values, "d")
        of_keys, of_values = weights or (None, None)
        for name, told in (("mask", mask), ("weights[0]", of_keys), ("weights[1]", of_values)):
            if told is not None and told.shape != keys.shape[:2]:
                need = f"keys of {list(keys.shape)} need {list(keys.shape[:2])}"
                raise InvalidArgument(f"{head_key(layer, head)}: {name} is {list(told.shape)}, and {need}")
        self._seen.add((layer, head))
        if not config.enabled:
            return
        keys = self._turned(keys.detach().float(), positions, 1)
        ones = torch.ones(keys.shape[:2])
        rows = torch.cat([side.detach().cpu().float() for side in (keys, values)], dim=-1)
        counts = torch.stack([weight.detach().cpu().float() for weight in weights or (ones, ones)], dim=-1)
        chosen = torch.ones(keys.shape[:2], dtype=torch.bool) if mask is None else mask.cpu().bool()
        if (layer, head) not in self._samples:
            # Of its own for each head, so that the order of heads does not matter.
            self._samples[layer, head] = Reservoir(SAMPLED_ROWS, self._seed + 1_000_003 * layer + head)
        self._samples[layer, head].add(torch.cat((rows, counts), dim=-1)[chosen])

    def observe_like(self, other: "KVCompressorBase") -> None:
        """Takes over what another compressor of the same config has sampled so far, before its calibration ends."""
        self._samples, self._seen = dict(other._samples or {}), set(other._seen)

    def end_calibration(self) -> None:
        """Fits the projections. InvalidArgument, which names the head, for one that was not seen in more rows than its
        rank, and for values that are not finite."""
        if self._samples is None:
            raise FailedPrecondition("start_calibration comes before end_calibration")
        samples, self._samples = self._samples, None
        fitted = {head: self._fit(head, config, samples.get(head)) for head, config in self._enabled()}
        self._take(fitted)

    def compress(
        self,
        layer: int,
        head: int,
        keys: torch.Tensor,
        values: torch.Tensor,
        *,
        positions: torch.Tensor | None = None,
    ) -> Pair:
        """Latents of keys and of values, in their dtypes. `positions` as in observe_kv. FailedPrecondition for a head
        that was neither calibrated nor loaded."""
        if not self._checked(layer, head, keys, values, "d").enabled:
            return keys, values
        key_map, value_map = self._maps_of(layer, head, keys.device)
        turned = self._turned(keys.float(), positions, 1)
        return key_map.latents(turned).to(keys.dtype), value_map.latents(values.float()).to(values.dtype)

    def decompress(
        self,
        layer: int,
        head: int,
        key_latents: torch.Tensor,
        value_latents: torch.Tensor,
        *,
        positions: torch.Tensor | None = None,
    ) -> Pair:
        """Keys and values of what compress gave, with the same `positions`."""
        if not self._checked(layer, head, key_latents, value_latents, "rank").enabled:
            return key_latents, value_latents
        key_map, value_map = self._maps_of(layer, head, key_latents.device)
        keys = self._turned(key_map.restored(key_latents.float()), positions, -1)
        return keys.to(key_latents.dtype), value_map.restored(value_latents.float()).to(value_latents.dtype)

    def state_dict(self) -> dict[str, Any]:
        """For torch.save: the tensors of each head, `config` as its document, and, beyond that, `rotary` and `model`,
        which has the number of layers and of heads."""
        layers, heads = self._model()
        state: dict[str, Any] = {
            f"{self._PREFIX}.L{layer}_H{head}.{name}": tensor
            for (layer, head), tensors in sorted(self._tensors.items())
            for name, tensor in tensors.items()
        }
        return {
            **state,
            "config": self.config.to_json(),
            "rotary": None if self.rotary is None else _rotary_fields(self.rotary),
            "model": {"layers": layers, "heads": heads},
        }

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> None:
        """What state_dict gave. Of a state that says nothing of `rotary`, keys are taken as caches hold them.

        InvalidArgument, which names the head, for tensors that do not fit the config; if `strict`, also for heads of
        the config that are missing, heads that it does not compress, and unknown names."""
        found: dict[Head, Tensors] = {}
        pattern = re.compile(rf"{self._PREFIX}\.L([0-9]{{1,9}})_H([0-9]{{1,9}})\.(.+)")
        for name, value in state.items():
            match = pattern.fullmatch(name)
            if match is not None:
                found.setdefault((int(match[1]), int(match[2])), {})[match[3]] = value
            elif strict and name not in ("config", "rotary", "model"):
                raise InvalidArgument(f"{name!r} is not in a state of {type(self).__name__}")
        fitting: dict[Head, Tensors] = {}
        for head, config in self._enabled():
            if head in found:
                fitting[head] = self._fitting(head_key(*head), config, found.pop(head), strict)
            elif strict:
                raise InvalidArgument(f"{head_key(*head)}: the state does not have it")
        if strict and found:
            raise InvalidArgument(f"{head_key(*min(found))}: the config does not compress it")
        rotary, model = _rotary_of(state.get("rotary")), _model_of(state.get("model"))
        if model is not None and strict:
            self.config.check_fits(*model)
        self.rotary = rotary
        if model is not None:
            self._seen = {(model[0] - 1, model[1] - 1)}
        self._take(fitting)

    def memory_stats(
        self, *, layers: int | None = None, heads: int | None = None, dtype: torch.dtype = torch.float16
    ) -> dict[str, Any]:
        """Values of one token in all layers, before and after, with the heads that the config does not list, and its
        bytes in a cache of `dtype`; and the bytes of the projections, which a model has once. The model's layers and
        heads are those that were observed or loaded; where nothing was, as many as the config's heads need."""
        known = self._model()
        layers, heads = layers or known[0], heads or known[1]
        configs = [self.get_config(layer, head) for layer in range(layers) for head in range(heads)]
        original, compressed = (
            sum(config.d_k + config.d_v for config in configs),
            sum(config.size for config in configs),
        )
        saved = self.config.savings(layers, heads)
        return {
            "total_original_params": original,
            "total_compressed_params": compressed,
            "compression_ratio": original / compressed if compressed else 1.0,
            "memory_savings_pct": 100 * saved,
            "bytes_per_token_original": original * dtype.itemsize,
            "bytes_per_token_compressed": compressed * dtype.itemsize,
            "side_information_bytes": sum(t.nbytes for tensors in self._tensors.values() for t in tensors.values()),
        }

    def _fit(self, head: Head, config: HeadConfig, sample: Reservoir | None) -> Tensors:
        count = 0 if sample is None else len(sample.rows)
        if sample is None or count <= config.rank:
            raise InvalidArgument(
                f"{head_key(*head)}: {count} rows were observed, and a rank of {config.rank} needs more"
            )
        if not sample.rows.isfinite().all():
            raise InvalidArgument(f"{head_key(*head)}: keys or values are not finite")
        both, counts = sample.rows[:, :-2].double(), sample.rows[:, -2:].double()
        tensors: Tensors = {}
        for side, rows, weights in zip(SIDES, (both[:, : config.d_k], both[:, config.d_k :]), counts.T, strict=True):
            tensors |= self._fitted(head, side, rows, weights, config)
        return {name: tensor.float().contiguous() for name, tensor in tensors.items()}

    def _fitted(self, head: Head, side: str, rows: torch.Tensor, weights: torch.Tensor, config: HeadConfig) -> Tensors:
        """The tensors of one side of a head, of rows and what an error in each costs."""
        raise NotImplementedError

    def _shapes(self, config: HeadConfig) -> dict[str, tuple[int, ...]]:
        """Of the tensors of a head."""
        raise NotImplementedError

    def _optional(self, config: HeadConfig) -> tuple[str, ...]:
        """Tensors that a state of others may lack: they are 0."""
        return ()

    def _map(self, tensors: Tensors, side: str) -> LinearMap:
        raise NotImplementedError

    def _take(self, tensors: dict[Head, Tensors]) -> None:
        self._tensors = tensors
        self._maps = {head: (self._map(of_head, "k"), self._map(of_head, "v")) for head, of_head in tensors.items()}

    def _fitting(self, key: str, config: HeadConfig, given: Tensors, strict: bool) -> Tensors:
        """A head's tensors of a state, once they are known to be what this compressor has."""
        shapes = self._shapes(config)
        for name in given:
            if strict and name not in shapes:
                raise InvalidArgument(f"{key}: {name} is not among {', '.join(shapes)}")
        tensors: Tensors = {}
        for name, shape in shapes.items():
            tensor = given.get(name, torch.zeros(shape) if name in self._optional(config) else None)
            if not isinstance(tensor, torch.Tensor):
                raise InvalidArgument(f"{key}: the state has no {name}")
            is_plain = tensor.layout == torch.strided and not (tensor.is_nested or tensor.is_meta)
            if not is_plain or not tensor.is_floating_point():
                raise InvalidArgument(f"{key}: {name} is no plain tensor of floating-point numbers")
            if tuple(tensor.shape) != shape:
                raise InvalidArgument(f"{key}: {name} is {list(tensor.shape)}, the config wants {list(shape)}")
            tensors[name] = tensor.detach().clone().float()
            if not tensors[name].isfinite().all():
                raise InvalidArgument(f"{key}: {name} is not finite")
        return tensors

    def _enabled(self) -> Iterator[tuple[Head, HeadConfig]]:
        return ((head, config) for head, config in sorted(self.config.heads.items()) if config.enabled)

    def _model(self) -> tuple[int, int]:
        """Its layers and heads, as far as they are known."""
        heads = self._seen or set(self.config.heads)
        return max((layer + 1 for layer, _ in heads), default=0), max((head + 1 for _, head in heads), default=0)

    def _maps_of(self, layer: int, head: int, device: torch.device) -> tuple[LinearMap, LinearMap]:
        maps = self._maps.get((layer, head))
        if maps is None:
            raise FailedPrecondition(f"{head_key(layer, head)} is neither calibrated nor loaded")
        if maps[0].mean.device != device:
            maps = maps[0].to(device), maps[1].to(device)
            self._maps[layer, head] = maps
        return maps

    def _turned(self, keys: torch.Tensor, positions: torch.Tensor | None, sense: int) -> torch.Tensor:
        """Back by their positions (1), or again as they were (-1)."""
        if self.rotary is None:
            return keys
        batch, tokens = keys.shape[:2]
        if positions is None:
            positions = torch.arange(tokens, device=keys.device)
        if tuple(positions.shape) not in ((tokens,), (1, tokens), (batch, tokens)):
            need = f"keys of {list(keys.shape)} need {[tokens]} or {[batch, tokens]}"
            raise InvalidArgument(f"positions are {list(positions.shape)}, and {need}")
        return turned_back(keys, self.rotary, sense * positions.to(keys.device))

    def _checked(self, layer: int, head: int, keys: torch.Tensor, values: torch.Tensor, what: str) -> HeadConfig:
        config = self.get_config(layer, head)
        if config.enabled or what == "d":
            wanted = (config.d_k, config.d_v) if what == "d" else (config.rank, config.rank)
            shapes = [tuple(side.shape) for side in (keys, values)]
            fits = all(len(shape) == 3 for shape in shapes) and shapes[0][:2] == shapes[1][:2]
            # What is not listed is of any size.
            if not fits or (config.enabled and (shapes[0][2], shapes[1][2]) != wanted):
                raise InvalidArgument(
                    f"{head_key(layer, head)}: keys and values are {list(keys.shape)} and {list(values.shape)}, not "
                    f"[batch, tokens, {wanted[0]}] and [batch, tokens, {wanted[1]}]"
                )
        return config


def _model_of(numbers: Any) -> tuple[int, int] | None:
    """Layers and heads of a state's `model`."""
    if numbers is None:
        return None
    layers, heads = (numbers.get("layers"), numbers.get("heads")) if isinstance(numbers, Mapping) else (None, None)
    if type(layers) is not int or type(heads) is not int or min(layers, heads) < 0:
        raise InvalidArgument("a state's model has the numbers of layers and of heads")
    return layers, heads


def _rotary_of(fields: Any) -> RotaryEmbedding | None:
    """Of what _rotary_fields gave."""
    if fields is None:
        return None
    try:
        rotary = RotaryEmbedding.of_fields(fields)
        rotary.message()  # refuses what no embedding has
    except TypeError as error:
        raise InvalidArgument(f"a state's rotary is none: {error}") from error
    return rotary


def _rotary_fields(rotary: RotaryEmbedding) -> dict[str, Any]:
    """What RotaryEmbedding.of_fields takes."""
    scaling = None if rotary.scaling is None else rotary.scaling.parameters()
    return {**asdict(rotary), "scaling": scaling}
