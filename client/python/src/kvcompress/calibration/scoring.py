"""What a changed cache does to a model's predictions."""

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .._errors import InvalidArgument
from ._model_statistics import _cache_name, _pairs, _read

Pairs = list[tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class Tally:
    """Sums over the scored tokens of one window."""

    tokens: int
    baseline_nll: float
    nll: float
    kl: float
    agreed: int

    @staticmethod
    def of(baseline: torch.Tensor, other: torch.Tensor, targets: torch.Tensor) -> "Tally":
        """Of log-probabilities [tokens, vocabulary] on the untouched and on the changed cache."""
        rows = torch.arange(len(targets), device=targets.device)
        return Tally(
            tokens=len(targets),
            baseline_nll=-baseline[rows, targets].sum().item(),
            nll=-other[rows, targets].sum().item(),
            kl=kl_divergence(baseline, other).sum().item(),
            agreed=int((baseline.argmax(dim=-1) == other.argmax(dim=-1)).sum()),
        )


@dataclass(frozen=True)
class Score:
    """Of a changed cache beside the untouched one, over windows. Errors are standard errors, by the jackknife."""

    tokens: int
    windows: int
    baseline_nll: float  # nats per token
    delta_nll: float
    delta_nll_stderr: float
    delta_perplexity: float
    delta_perplexity_stderr: float
    kl: float  # mean KL(untouched || changed) of the next token's distribution, nats
    kl_stderr: float
    top1_agreement: float  # share of positions where both think the same token most likely

    @property
    def baseline_perplexity(self) -> float:
        return math.exp(self.baseline_nll)

    @property
    def perplexity(self) -> float:
        return math.exp(self.baseline_nll + self.delta_nll)

    @staticmethod
    def of(windows: Sequence[Tally]) -> "Score":
        def delta_nll(some: Sequence[Tally]) -> float:
            return _mean(some, "nll") - _mean(some, "baseline_nll")

        def delta_perplexity(some: Sequence[Tally]) -> float:
            return math.exp(_mean(some, "nll")) - math.exp(_mean(some, "baseline_nll"))

        def kl(some: Sequence[Tally]) -> float:
            return _mean(some, "kl")

        return Score(
            tokens=sum(window.tokens for window in windows), windows=len(windows),
            baseline_nll=_mean(windows, "baseline_nll"),
            delta_nll=delta_nll(windows), delta_nll_stderr=jackknife_stderr(delta_nll, windows),
            delta_perplexity=delta_perplexity(windows),
            delta_perplexity_stderr=jackknife_stderr(delta_perplexity, windows),
            kl=kl(windows), kl_stderr=jackknife_stderr(kl, windows), top1_agreement=_mean(windows, "agreed"),
        )  # fmt: skip


def kl_divergence(baseline: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """KL(baseline || other) in nats for each row of log-probabilities; rounding below zero is cut."""
    probabilities = baseline.exp()
    terms = torch.where(probabilities == 0, 0.0, probabilities * (baseline - other))  # 0 log 0 is 0
    return terms.sum(dim=-1).clamp(min=0.0)


def jackknife_stderr(estimate: Callable[[Sequence[Any]], float], samples: Sequence[Any]) -> float:
    """Standard error of an estimate by leaving each sample out once; NaN for a single sample."""
    count = len(samples)
    if count < 2:
        return math.nan
    left_out = [estimate([*samples[:index], *samples[index + 1 :]]) for index in range(count)]
    mean = sum(left_out) / count
    return math.sqrt((count - 1) / count * sum((value - mean) ** 2 for value in left_out))


def score_restored(
    model: Any,
    rows: Sequence[torch.Tensor],
    prefix_lens: Sequence[int],
    restorers: Sequence[Callable[[Pairs], Pairs]],
    cache_dtype: torch.dtype,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = lambda windows: windows,
) -> tuple[list[Score], float]:
    """Of each of `restorers`, which give back the keys and values of all layers, [1, heads, tokens, head_dim], in the
    place of those in a cache of `cache_dtype`: what the model says of the tokens that follow the first `prefix_lens`,
    which make that cache, of each row of token ids. The first of those is not scored: it is predicted before the cache
    is touched. And the noise floor: the KL divergence that comes of the cache's rounding to `cache_dtype` alone, which
    no score counts.

    InvalidArgument for rows that leave no token to score, and predictions that are not finite."""
    if not rows:
        raise InvalidArgument("there are no windows to measure")
    tallies: list[list[Tally]] = [[] for _ in restorers]
    rounding: list[Tally] = []
    with torch.no_grad():
        for row, prefix_len in progress(list(zip(rows, prefix_lens, strict=True))):
            if not 0 < prefix_len <= len(row) - 2:
                raise InvalidArgument(f"a window of {len(row)} tokens and a prefix of {prefix_len} leave none to score")
            row = row.to(model.device)
            cache = _read(model, row[:prefix_len])
            exact = _pairs(cache)
            kept: Pairs = [(key.to(cache_dtype), value.to(cache_dtype)) for key, value in exact]
            rest, targets = row[prefix_len:-1], row[prefix_len + 1 :]
            unrounded = continued(model, cache, exact, rest)
            baseline = continued(model, cache, kept, rest)
            if not baseline[range(len(targets)), targets].isfinite().all():
                raise InvalidArgument("the model's predictions are not finite, without compression")
            rounding.append(Tally.of(unrounded, baseline, targets))
            for tally, restored in zip(tallies, restorers, strict=True):
                tally.append(Tally.of(baseline, continued(model, cache, restored(kept), rest), targets))
    return [Score.of(of_one) for of_one in tallies], _mean(rounding, "kl")


def continued(model: Any, cache: Any, pairs: Pairs, rest: torch.Tensor) -> torch.Tensor:
    """Log-probabilities of the next token after each of `rest`, which follow a cache of these keys and values."""
    # A cache of its own for each, since sliding layers count what they have seen.
    fresh = copy.copy(cache)
    fresh.layers = [copy.copy(layer) for layer in cache.layers]
    for layer, (key, value) in zip(fresh.layers, pairs, strict=True):
        layer.keys, layer.values = key.to(layer.keys.dtype), value.to(layer.values.dtype)
    given = {"input_ids": rest[None], _cache_name(model): fresh}
    logits: torch.Tensor = model(**given, use_cache=True).logits
    return torch.log_softmax(logits[0].double(), dim=-1)


def _mean(windows: Sequence[Tally], name: str) -> float:
    total: float = sum(getattr(window, name) for window in windows)
    return total / sum(window.tokens for window in windows)
