"""A calibrated compressor learns on from what the model says behind its caches."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from .._errors import InvalidArgument
from ._model_statistics import _pairs, _read
from .low_rank import KVSpliceCompressor
from .restored import Restored
from .scoring import continued

# Of each tensor's mean magnitude: the first step of Adam, which falls to 0.
_LEARNING_RATE = 3e-3
_LEAST_TOKENS = 8  # of a text


def fine_tune(
    model: Any,
    compressor: KVSpliceCompressor,
    rows: Sequence[torch.Tensor],
    epochs: int,
    *,
    seed: int = 0,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = lambda texts: texts,
) -> None:
    """Lowers the Kullback-Leibler divergence between what `model` says behind its own cache and behind the restored
    one, over `epochs` of rows of token ids: all means and projections together, by Adam, each row cut at random between
    a quarter and three quarters. It takes memory for a backward pass over the rest of a row.

    InvalidArgument for rows of fewer than 8 tokens, and a compressor that compresses nothing."""
    if any(len(row) < _LEAST_TOKENS for row in rows) or not rows:
        raise InvalidArgument(f"texts of at least {_LEAST_TOKENS} tokens are needed")
    tensors = compressor.learned_tensors()
    if not tensors:
        raise InvalidArgument("the config compresses no head, so that there is nothing to learn")
    rates = [_LEARNING_RATE * max(float(tensor.detach().abs().mean()), 1e-6) for tensor in tensors]
    groups = [{"params": [tensor], "lr": rate} for tensor, rate in zip(tensors, rates, strict=True)]
    optimizer = torch.optim.Adam(groups)
    generator = torch.Generator().manual_seed(seed)
    steps = [index for _ in range(epochs) for index in torch.randperm(len(rows), generator=generator).tolist()]
    with torch.enable_grad():
        for done, index in enumerate(progress(steps)):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * (1 - done / len(steps))
            row = rows[index].to(model.device)
            cut = int(torch.randint(len(row) // 4, 3 * len(row) // 4, (), generator=generator))
            compressor.refresh()
            gradients = torch.autograd.grad(_divergence(model, compressor, row, cut), tensors, allow_unused=True)
            for tensor, gradient in zip(tensors, gradients, strict=True):
                tensor.grad = gradient
            optimizer.step()
    compressor.end_learning()


def _divergence(model: Any, compressor: KVSpliceCompressor, row: torch.Tensor, cut: int) -> torch.Tensor:
    """Of the tokens that follow the first `cut`, which make the cache."""
    cache = _read(model, row[:cut])
    pairs = _pairs(cache)
    with torch.no_grad():
        baseline = continued(model, cache, pairs, row[cut:])
    other = continued(model, cache, Restored(compressor)(pairs), row[cut:])
    return (baseline.exp() * (baseline - other)).sum(-1).mean()
