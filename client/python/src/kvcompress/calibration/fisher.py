"""Fisher information of a model's attention: what its heads' probabilities are like, on a text.

Of a query head with causal attention probabilities p_i, one row for each query i of windows of T tokens, the Fisher
matrix of the categorical distribution is F = mean_i(diag(p_i) - p_i p_i^T), [T, T]. Its metrics:

| name | is |
|---|---|
| `eigmax` | the largest eigenvalue |
| `trace` | the sum of all: 1 - mean |p_i|^2, at most 1 - 1/T |
| `cond` | the largest / (abs(the smallest) + 1e-8). The smallest is 0, of the vector of ones: cond is eigmax x 1e8 |
| `cond_nonnull` | the largest / the smallest of those that are not 0 (above T x 2.2e-16 x the largest) |
| `eig_top0` to `eig_top7` | the 8 largest, ascending |
| `energy_r8`, `energy_r16` | the part of the sum that the 8, the 16 largest have |

So a trace near 1 means attention to many tokens at once, and one near 0 attention to one token. Layers have
`eigmax_mean` and `eigmax_max` over their heads; the model has `eigmax_global_mean`, `_max`, `_min`, `cond_global_mean`,
`_max` and `trace_global_mean`.
"""

import contextlib
from collections.abc import Callable, Iterator
from statistics import fmean
from typing import Any

import torch

from .._errors import InvalidArgument
from ._model_statistics import Windows, _rows

# Queries that are taken together. None of them looks at keys after the last of them.
_QUERIES = 64
_TOP = 8
_ENERGY_RANKS = (8, 16)
_LEAST_SUM = 1e-8


def fisher_metrics(
    model: Any, windows: Windows, *, progress: Callable[[float], object] = lambda part: None
) -> dict[str, float]:
    """The metrics of every query head of every layer of `model` (transformers' AutoModelForCausalLM), in float64 over
    all queries of `windows`, rows of token ids of one length T: {"fisher/layer3/head0/trace": 0.71, ...}, and
    "fisher/layer3/METRIC" and "fisher/METRIC" of layers and the model. Attention is "eager" meanwhile; memory holds T x
    T float64 values for each head, beside those of one window. `progress` is told which part is done, from 0 to 1.

    InvalidArgument for windows that are none or of several lengths, a model in training mode, and one that does not
    tell its attention."""
    if model.training:
        raise InvalidArgument("the model is in training mode, with dropout: call its eval()")
    rows = _rows(windows, 2)
    if len({len(row) for row in rows}) > 1:
        raise InvalidArgument("the windows of Fisher information are of one length")
    sums: list[_Moments] = []
    with _eager(model):
        for done, row in enumerate(rows):
            for layer, probabilities in enumerate(_attentions(model, row)):
                if layer == len(sums):
                    sums.append(_Moments(*probabilities.shape[:2]))
                sums[layer].add(probabilities)
            progress((done + 1) / (len(rows) + 1))
    metrics = _summary([[_head_metrics(head) for head in moments.eigenvalues()] for moments in sums])
    progress(1.0)
    return metrics


class _Moments:
    """Of the attention of one layer's heads to `tokens` keys: the sums of p and of p p^T."""

    def __init__(self, heads: int, tokens: int):
        self._means = torch.zeros(heads, tokens, dtype=torch.float64)
        self._squares = torch.zeros(heads, tokens, tokens, dtype=torch.float64)
        self._count = 0

    def add(self, probabilities: torch.Tensor) -> None:
        """Of one window, [heads, queries, keys]."""
        for first in range(0, probabilities.shape[1], _QUERIES):
            end = min(first + _QUERIES, probabilities.shape[1])
            part = probabilities[:, first:end, :end].to("cpu", torch.float64)
            # The rounding of the model's own arithmetic: rows that sum to 1 have the vector of ones as a null vector.
            part = part / part.sum(2, keepdim=True)
            self._means[:, :end] += part.sum(1)
            self._squares[:, :end, :end] += part.transpose(1, 2) @ part
        self._count += probabilities.shape[1]

    def eigenvalues(self) -> list[torch.Tensor]:
        """Of each head's F, ascending."""
        return [
            torch.linalg.eigvalsh((torch.diag(means) - squares) / self._count)
            for means, squares in zip(self._means, self._squares, strict=True)
        ]


def _head_metrics(eigenvalues: torch.Tensor) -> dict[str, float]:
    """Of eigenvalues in ascending order."""
    largest, smallest, total = float(eigenvalues[-1]), float(eigenvalues[0]), float(eigenvalues.sum())
    metrics = {"eigmax": largest, "trace": total, "cond": largest / (abs(smallest) + 1e-8)}
    kept = eigenvalues[eigenvalues > len(eigenvalues) * torch.finfo(torch.float64).eps * largest]
    if len(kept):
        metrics["cond_nonnull"] = largest / float(kept[0])
    top = eigenvalues[-_TOP:].tolist()
    metrics |= {f"eig_top{index}": value for index, value in enumerate(top)}
    if total > _LEAST_SUM:
        for rank in _ENERGY_RANKS:
            if rank <= len(eigenvalues):
                metrics[f"energy_r{rank}"] = float(eigenvalues[-rank:].sum()) / total
    return metrics


def _summary(layers: list[list[dict[str, float]]]) -> dict[str, float]:
    """By the keys under which metrics are stored."""
    summary: dict[str, float] = {}
    for layer, heads in enumerate(layers):
        for head, metrics in enumerate(heads):
            summary |= {f"fisher/layer{layer}/head{head}/{name}": value for name, value in metrics.items()}
        largest = [metrics["eigmax"] for metrics in heads]
        summary[f"fisher/layer{layer}/eigmax_mean"] = fmean(largest)
        summary[f"fisher/layer{layer}/eigmax_max"] = max(largest)
    for name, takes in (("eigmax", (fmean, max, min)), ("cond", (fmean, max)), ("trace", (fmean,))):
        values = [metrics[name] for heads in layers for metrics in heads]
        for take in takes:
            summary[f"fisher/{name}_global_{take.__name__.removeprefix('f')}"] = take(values)
    return summary


def _attentions(model: Any, row: torch.Tensor) -> Iterator[torch.Tensor]:
    """Of each layer [heads, queries, keys], on a window."""
    inner = model.base_model  # which computes no logits
    try:
        with torch.no_grad():
            read = inner(input_ids=row[None].to(model.device), use_cache=False, output_attentions=True)
    except TypeError as error:  # of models that do not know the argument
        raise InvalidArgument(f"{type(model).__name__} does not tell its attention: {error}") from error
    attentions = list(getattr(read, "attentions", None) or ())
    if not attentions:
        raise InvalidArgument(f"{type(model).__name__} does not tell its attention")
    while attentions:
        layer = attentions.pop(0)
        if layer is None or layer.dim() != 4 or layer.shape[2:] != (len(row), len(row)):
            raise InvalidArgument(f"{type(model).__name__} has a layer that does not tell its attention to every token")
        yield layer[0]


@contextlib.contextmanager
def _eager(model: Any) -> Iterator[None]:
    """The model's attention is the one that tells its probabilities."""
    before = model.config._attn_implementation
    _set_attention(model, "eager")
    try:
        yield
    finally:
        _set_attention(model, before)


def _set_attention(model: Any, name: str) -> None:
    if hasattr(model, "set_attn_implementation"):
        model.set_attn_implementation(name)
    else:  # before transformers 4.54; attention looks here
        model.config._attn_implementation = name
