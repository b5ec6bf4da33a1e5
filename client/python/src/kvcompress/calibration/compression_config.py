"""Which heads are compressed to which rank: compression_config.json, read, checked and written."""

import json
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from os import PathLike
from typing import Any, Literal, cast, get_args

from .._errors import InvalidArgument

Path = str | PathLike[str]
Algorithm = Literal["kvsplice", "pca", "none"]
Head = tuple[int, int]  # layer, head

_DEFAULT_RANK = 32
_MOST_CHANNELS = 65536  # of a head
_KEY = re.compile(r"(?:layer)?([0-9]{1,9})/(?:head)?([0-9]{1,9})")
_SETTINGS = ("target_memory_reduction", "d_head", "algo_default")
# What a config that was generated tells its reader, and nobody else.
_REPORTED = ("compression_summary", "expected_kv_memory_savings", "actual_memory_reduction", "summary_stats")
_HEAD_FIELDS = ("enabled", "rank", "algo", "d_k", "d_v", "learn_scale_shift")
_HEAD_REPORTED = ("compression_ratio", "reason", "metrics")


@dataclass(frozen=True)
class HeadConfig:
    """What becomes of the keys and values of one head."""

    enabled: bool  # False: they stay as they are
    rank: int  # channels that are left of d_k and of d_v
    algo: Algorithm
    d_k: int
    d_v: int
    learn_scale_shift: bool = True  # of kvsplice

    @property
    def size(self) -> int:
        """Values of a token's keys and values together, as they are kept."""
        return 2 * self.rank if self.enabled else self.d_k + self.d_v


@dataclass(frozen=True)
class CompressionConfig:
    """A compression_config.json. Heads that `heads` does not list stay as they are."""

    heads: Mapping[Head, HeadConfig]
    target_memory_reduction: float = 0.5
    d_head: int = 64
    algo_default: Algorithm = "kvsplice"

    @classmethod
    def read(cls, path: Path) -> "CompressionConfig":
        """Of a file. InvalidArgument, which names the head, for what of_json refuses and for what is given twice."""
        try:
            with open(path, encoding="utf-8") as file:
                document = json.load(file, object_pairs_hook=_without_repetition)
        except OSError as error:
            raise InvalidArgument(f"{path}: {error.strerror or error}") from error
        except (ValueError, RecursionError) as error:
            raise InvalidArgument(f"{path}: {error}") from error
        return cls.of_json(document)

    @classmethod
    def of_json(cls, document: Mapping[str, Any]) -> "CompressionConfig":
        """Of either shape: with target_memory_reduction, d_head and algo_default in `global`, or beside
        `per_layer_head`. A head is "0/3" or "layer0/head3"; without `enabled` it stays as it is, its rank is 32, or
        the head's own d where that is less, its algo the default, its d_k and d_v the config's d_head.

        InvalidArgument, which names the head, for two spellings of one, an unknown algo or field, a rank below 1 or
        above d, an enabled head without an algo, and numbers that are none."""
        settings = _settings(document)
        d_head = channels("d_head", settings.get("d_head", 64))
        algo = _algorithm("algo_default", settings.get("algo_default", "kvsplice"))
        listed = document.get("per_layer_head")
        if not isinstance(listed, Mapping):
            raise InvalidArgument("a compression config has an object per_layer_head")
        heads: dict[Head, HeadConfig] = {}
        for key, fields in listed.items():
            head = _head_of_key(key)
            if head in heads:
                raise InvalidArgument(f"{head_key(*head)} is given twice, the second time as {key!r}")
            heads[head] = _head_config(head_key(*head), fields, d_head, algo)
        target = _finite("target_memory_reduction", settings.get("target_memory_reduction", 0.5))
        return cls(heads, target, d_head, algo)

    def head(self, layer: int, head: int) -> HeadConfig:
        return self.heads.get((layer, head), HeadConfig(False, self.d_head, "none", self.d_head, self.d_head))

    def to_json(self) -> dict[str, Any]:
        """The document of the flat shape, with every field of every head that is listed."""
        return {
            "target_memory_reduction": self.target_memory_reduction,
            "d_head": self.d_head,
            "algo_default": self.algo_default,
            "per_layer_head": {head_key(*head): asdict(config) for head, config in sorted(self.heads.items())},
        }

    def savings(self, layers: int, heads: int) -> float:
        """The part of the keys' and values' channels that is saved in a model of `layers` of `heads` each, those that
        are not listed included. InvalidArgument for heads that such a model has not."""
        self.check_fits(layers, heads)
        pairs = [self.head(layer, head) for layer in range(layers) for head in range(heads)]
        original = sum(config.d_k + config.d_v for config in pairs)
        return 1 - sum(config.size for config in pairs) / original if original else 0.0

    def grouped(self, queries_per_key: int) -> "CompressionConfig":
        """Of a config by query heads the one by key/value heads, each of which `queries_per_key` query heads read. It
        takes the greatest rank of its readers, and stays as it is where one of them does: as the tiers are made, that
        is the tier of the greatest trace and the smallest cond. InvalidArgument for readers of several d or algos."""
        if queries_per_key < 1:
            raise InvalidArgument(f"queries_per_key is at least 1, not {queries_per_key}")
        groups = sorted({(layer, head // queries_per_key) for layer, head in self.heads})
        readers = {
            (layer, group): [self.head(layer, group * queries_per_key + reader) for reader in range(queries_per_key)]
            for layer, group in groups
        }
        grouped = {group: _strictest(head_key(*group), configs) for group, configs in readers.items()}
        return CompressionConfig(grouped, self.target_memory_reduction, self.d_head, self.algo_default)

    def check_fits(self, layers: int, heads: int) -> None:
        """InvalidArgument for heads that a model of `layers` of `heads` each has not."""
        for layer, head in self.heads:
            if layer >= layers or head >= heads:
                raise InvalidArgument(
                    f"{head_key(layer, head)} is not in a model of {layers} layers of {heads} key/value heads"
                )


def head_key(layer: int, head: int) -> str:
    """The name of a head, as configs and errors spell it."""
    return f"layer{layer}/head{head}"


def channels(what: str, value: Any) -> int:
    """`value`, or an InvalidArgument where it is no number of channels that a head can have."""
    if type(value) is not int or not 1 <= value <= _MOST_CHANNELS:
        raise InvalidArgument(f"{what} is an integer from 1 to {_MOST_CHANNELS}, not {value!r}")
    return value


def _without_repetition(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, value in pairs:
        if name in fields:
            raise ValueError(f"{name!r} is given twice")
        fields[name] = value
    return fields


def _settings(document: Any) -> Mapping[str, Any]:
    """Those of the whole config, of either shape."""
    if not isinstance(document, Mapping):
        raise InvalidArgument("a compression config is a JSON object")
    flat = {name: document[name] for name in _SETTINGS if name in document}
    _refuse_unknown("the config", document, (*_SETTINGS, *_REPORTED, "global", "per_layer_head"))
    nested = document.get("global", {})
    if not isinstance(nested, Mapping):
        raise InvalidArgument("global is a JSON object")
    _refuse_unknown("global", nested, _SETTINGS)
    for name in flat:
        if name in nested:
            raise InvalidArgument(f"{name} is given twice, in global and beside it")
    return {**flat, **nested}


def _head_of_key(key: Any) -> Head:
    match = _KEY.fullmatch(key) if isinstance(key, str) else None
    if match is None:
        raise InvalidArgument(f'Invalid key format: {key!r} (a head is "0/3" or "layer0/head3")')
    return int(match[1]), int(match[2])


def _head_config(key: str, fields: Any, d_head: int, algo_default: Algorithm) -> HeadConfig:
    if not isinstance(fields, Mapping):
        raise InvalidArgument(f"{key}: a head is a JSON object")
    _refuse_unknown(key, fields, (*_HEAD_FIELDS, *_HEAD_REPORTED))
    d_k, d_v = (channels(f"{key}: {name}", fields.get(name, d_head)) for name in ("d_k", "d_v"))
    d = min(d_k, d_v)
    rank = fields.get("rank", min(_DEFAULT_RANK, d))
    if type(rank) is not int or not 1 <= rank <= d:
        raise InvalidArgument(f"{key}: rank {rank!r} is not between 1 and d {d}")
    enabled = _boolean(f"{key}: enabled", fields.get("enabled", False))
    algo = _algorithm(f"{key}: algo", fields.get("algo", algo_default))
    if enabled and algo == "none":
        raise InvalidArgument(f'{key}: it is enabled, and its algo is "none"')
    if "compression_ratio" in fields:
        _finite(f"{key}: compression_ratio", fields["compression_ratio"])
    metrics = fields.get("metrics", {})
    if not isinstance(metrics, Mapping):
        raise InvalidArgument(f"{key}: metrics is a JSON object")
    for name, value in metrics.items():
        _finite(f"{key}: {name}", value)
    learn = _boolean(f"{key}: learn_scale_shift", fields.get("learn_scale_shift", True))
    return HeadConfig(enabled, rank, algo, d_k, d_v, learn)


def _strictest(key: str, readers: list[HeadConfig]) -> HeadConfig:
    """Of the query heads of one key/value head."""
    first = readers[0]
    if any((reader.d_k, reader.d_v) != (first.d_k, first.d_v) for reader in readers):
        raise InvalidArgument(f"{key}: the query heads that read it differ in d_k or d_v")
    if not all(reader.enabled for reader in readers):
        return HeadConfig(False, min(first.d_k, first.d_v), "none", first.d_k, first.d_v)
    if len({(reader.algo, reader.learn_scale_shift) for reader in readers}) > 1:
        raise InvalidArgument(f"{key}: the query heads that read it differ in algo or learn_scale_shift")
    return max(readers, key=lambda reader: reader.rank)


def _refuse_unknown(where: str, fields: Mapping[str, Any], known: tuple[str, ...]) -> None:
    for name in fields:
        if name not in known:
            raise InvalidArgument(f"{where}: unknown field {name!r}; there are: {', '.join(known)}")


def _boolean(what: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise InvalidArgument(f"{what} is true or false, not {value!r}")
    return value


def _finite(what: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
        raise InvalidArgument(f"{what} is a number, not {value!r}")
    return float(value)


def _algorithm(what: str, value: Any) -> Algorithm:
    if value not in get_args(Algorithm):
        raise InvalidArgument(f"{what} {value!r} is unknown; there are: {', '.join(get_args(Algorithm))}")
    return cast(Algorithm, value)
