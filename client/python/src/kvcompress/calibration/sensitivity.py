"""What a codec's errors in one head alone do to a model's predictions: sensitivity, measured."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path
from typing import Any, Literal

import torch

from .._errors import InvalidArgument
from ._artifact import _run, find_program
from ._model_statistics import Windows, _metadata, _named, _pairs, _read, _rotary, _rows, _save
from .compression_config import Head
from .scoring import Pairs, Score, score_restored

Side = Literal["keys", "values"]
_SIDES: tuple[Side, Side] = ("keys", "values")
# What is coded together, after the heads one at a time.
_GROUPS: tuple[tuple[Side, ...], ...] = (("keys",), ("values",), _SIDES)
_Restorer = Callable[[Pairs], Pairs]


@dataclass(frozen=True)
class Sensitivity:
    """Of each key/value head of a model, and of all together."""

    codec: str
    heads: dict[Head, dict[Side, Score]]  # where only the keys, or the values, of that head are coded
    all_heads: dict[Side, Score]  # where those of all heads are
    everything: Score  # where all keys and values are
    noise_kl: float  # of the cache's rounding to its dtype alone, which no score counts
    cache_dtype: str

    def kl(self, head: Head) -> float:
        """Of the head's keys and of its values, added."""
        return sum(score.kl for score in self.heads[head].values())


def measure_sensitivity(
    model: Any,
    windows: Windows,
    codec: str = "int4(group=64)",
    *,
    read_tokens: int = 64,
    cache_dtype: torch.dtype = torch.float16,
    artifacts: str | PathLike[str] | None = None,
    program: str | PathLike[str] | None = None,
    progress: Callable[[float], object] = lambda part: None,
) -> Sensitivity:
    """What `model` (transformers' AutoModelForCausalLM) says of the last `read_tokens` tokens of each window, rows of
    token ids, which follow a cache of those before in `cache_dtype`. The cache is compressed by `codec`, a spec, and
    decompressed, as a whole and by the program kv-compress (found as `calibrate` finds it); then the keys or the values
    of one head at a time are put in the place of the untouched ones. That is one pass over `read_tokens` tokens for
    each head and side. `artifacts` is the folder of those that the codec names.

    InvalidArgument for windows that are too short, caches that are more than keys and values, a model in training mode,
    and, in the program's own words, for a codec that it refuses; FailedPrecondition without the program."""
    rows = _rows(windows, read_tokens + 2)
    if read_tokens < 2 or len({len(row) for row in rows}) > 1:
        raise InvalidArgument("sensitivity needs windows of one length, and 2 tokens or more that read the caches")
    with tempfile.TemporaryDirectory() as folder:
        coded = _Coded(model, codec, Path(folder), find_program(program), artifacts)
        shape = [keys.shape[1] for keys, _ in _pairs(_read(model, rows[0][:2]))]
        places = [(layer, head, side) for layer, heads in enumerate(shape) for head in range(heads) for side in _SIDES]
        restorers = [coded.one_head(*place) for place in places] + [coded.all_heads(sides) for sides in _GROUPS]
        prefixes = [len(row) - read_tokens for row in rows]
        counted = _counted(restorers, len(rows), progress)
        scores, noise = score_restored(model, rows, prefixes, counted, cache_dtype)
    progress(1.0)
    heads: dict[Head, dict[Side, Score]] = {}
    for (layer, head, side), score in zip(places, scores, strict=False):
        heads.setdefault((layer, head), {})[side] = score
    keys, values, everything = scores[-len(_GROUPS) :]
    return Sensitivity(
        codec, heads, {"keys": keys, "values": values}, everything, noise, str(cache_dtype).removeprefix("torch.")
    )


class _Coded:
    """Restorers of caches, which put something that was coded in the place of something untouched."""

    def __init__(self, model: Any, codec: str, folder: Path, program: str, artifacts: str | PathLike[str] | None):
        self._metadata = _metadata(model, _rotary(model, None))
        self._command = [program, "-codec", codec]
        self._artifacts = [] if artifacts is None else ["-artifacts", fspath(artifacts)]
        self._folder = folder
        self._untouched: Pairs | None = None
        self._decoded: Pairs = []

    def one_head(self, layer: int, head: int, side: Side) -> _Restorer:
        def restored(pairs: Pairs) -> Pairs:
            index = _SIDES.index(side)
            mixed = [list(pair) for pair in pairs]
            mixed[layer][index] = mixed[layer][index].clone()
            mixed[layer][index][:, head] = self._decode(pairs)[layer][index][:, head]
            return [(keys, values) for keys, values in mixed]

        return restored

    def all_heads(self, sides: Sequence[Side]) -> _Restorer:
        def restored(pairs: Pairs) -> Pairs:
            decoded = self._decode(pairs)
            keys, values = (decoded if side in sides else pairs for side in _SIDES)
            return [(key[0], value[1]) for key, value in zip(keys, values, strict=True)]

        return restored

    def _decode(self, pairs: Pairs) -> Pairs:
        """What the codec makes of a window's cache, which is done once for all of its restorers."""
        if pairs is not self._untouched:
            from safetensors.torch import load_file

            plain, coded, decoded = (fspath(self._folder / name) for name in ("plain", "coded", "decoded"))
            tensors = {name: tensor.cpu().contiguous() for name, tensor in _named(pairs)}
            _save(tensors, plain, self._metadata)
            _run([*self._command, *self._artifacts, "-input", plain, "-output", coded], None, None)
            _run([self._command[0], *self._artifacts, "-decompress", "-input", coded, "-output", decoded], None, None)
            found = load_file(decoded)
            self._decoded = [
                (found[f"layer_{layer}_key"].to(key.device), found[f"layer_{layer}_value"].to(value.device))
                for layer, (key, value) in enumerate(pairs)
            ]
            self._untouched = pairs
        return self._decoded


def _counted(restorers: Sequence[_Restorer], windows: int, progress: Callable[[float], object]) -> list[_Restorer]:
    """The same, which tell `progress` when they are asked."""
    asked = 0

    def counting(restorer: _Restorer) -> _Restorer:
        def restored(pairs: Pairs) -> Pairs:
            nonlocal asked
            asked += 1
            progress(asked / (windows * len(restorers) + 1))
            return restorer(pairs)

        return restored

    return [counting(restorer) for restorer in restorers]
