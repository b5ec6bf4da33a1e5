"""What compressors of low rank learn of a model: its keys and values, and what errors in them cost."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ._compressor_base import KVCompressorBase
from ._model_statistics import _attention, _output_projection, _pairs, _read, turned_back
from .low_rank import KVSpliceCompressor

# Of the queries one in so many is looked at, and of the positions of keys so many.
_QUERY_STRIDE = 4
_KEY_POSITIONS = 4


def observe_model(
    model: Any,
    batches: Sequence[torch.Tensor],
    compressor: KVCompressorBase,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = lambda batches: batches,
) -> None:
    """Shows a compressor, whose calibration has started, what `model` makes of `batches` of token ids, [texts, tokens]
    each, without padding.

    A KVSpliceCompressor also learns what errors cost. Attention takes a key's error e to the logits q e of queries q,
    and from there to the output by p (1 - p), where p is the query's probability of that key; a value's error by p and
    the output projection W. So the rows of keys weigh the sum of p (1 - p) over the queries, those of values that of
    p^2, and directions cost E[q q^T] and W^T W. The first tokens of a text, which attention falls back to, are unlike
    all others, and without these weights they would be lost."""
    if isinstance(compressor, KVSpliceCompressor):
        seen = _Attention(compressor)
        with _attention(model, seen.visit):
            _observe(model, progress(batches), compressor, seen)
        seen.tell_costs()
    else:
        _observe(model, progress(batches), compressor, None)


def _observe(
    model: Any, batches: Iterable[torch.Tensor], compressor: KVCompressorBase, seen: "_Attention | None"
) -> None:
    for batch in batches:
        for layer, (keys, values) in enumerate(_pairs(_read(model, batch))):
            weights = None if seen is None else seen.take_weights(layer)
            for head in range(keys.shape[1]):
                of_head = None if weights is None else (weights[0][:, head], weights[1][:, head])
                compressor.observe_kv(layer, head, keys[:, head], values[:, head], weights=of_head)


@dataclass
class _Attention:
    """What a model's attention tells of its keys and values."""

    compressor: KVSpliceCompressor
    weights: dict[int, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)  # of the batch, by layer
    key_costs: dict[int, torch.Tensor] = field(default_factory=dict)  # by layer, [heads, d, d]
    modules: dict[int, Any] = field(default_factory=dict)

    def visit(self, module: Any, query: torch.Tensor, key: torch.Tensor) -> None:
        """Of one layer, [batch, heads, tokens, head_dim], turned."""
        layer = module.layer_idx
        self.modules[layer] = module
        batch, heads, tokens, head_dim = key.shape
        queries = query.detach().float().reshape(batch, heads, -1, tokens, head_dim)
        for_keys, for_values = torch.zeros(batch, heads, tokens), torch.zeros(batch, heads, tokens)
        later = torch.arange(tokens) > torch.arange(tokens)[::_QUERY_STRIDE, None]
        scaling = getattr(module, "scaling", None) or head_dim**-0.5
        for text in range(batch):
            logits = (
                queries[text, :, :, ::_QUERY_STRIDE] @ key[text].detach().float()[:, None].transpose(2, 3) * scaling
            )
            shares = logits.masked_fill(later.to(logits.device), -torch.inf).softmax(-1)
            for_keys[text], for_values[text] = (shares * (1 - shares)).sum((1, 2)), shares.square().sum((1, 2))
        self.weights[layer] = for_keys, for_values
        cost = self._key_cost(queries.transpose(0, 1).flatten(1, 2))
        self.key_costs[layer] = self.key_costs.get(layer, torch.zeros(())) + cost

    def take_weights(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Of rows of keys and of values, [batch, heads, tokens] each."""
        return self.weights.pop(layer)

    def tell_costs(self) -> None:
        for layer, module in self.modules.items():
            heads, head_dim, _ = self.key_costs[layer].shape
            projection = _output_projection(module)
            readers = projection.reshape(len(projection), heads, -1, head_dim).permute(1, 2, 3, 0)
            value_costs = (readers @ readers.transpose(2, 3)).sum(1)
            for head in range(heads):
                self.compressor.observe_costs(layer, head, self.key_costs[layer][head], value_costs[head])

    def _key_cost(self, queries: torch.Tensor) -> torch.Tensor:
        """The sum of q q^T, [heads, d, d], of queries [heads, texts and readers, tokens, d] as they meet keys before
        these are turned, where the compressor turns them back."""
        rotary, tokens = self.compressor.rotary, queries.shape[2]
        if rotary is None:
            rows = queries[:, :, ::_QUERY_STRIDE].flatten(1, 2)
            return (rows.transpose(1, 2) @ rows).double().cpu()
        positions = sorted({tokens * part // _KEY_POSITIONS for part in range(_KEY_POSITIONS)})
        turned = [
            turned_back(queries[:, :, position::_QUERY_STRIDE], rotary, torch.tensor([position], device=queries.device))
            for position in positions
        ]
        rows = torch.cat([part.flatten(1, 2) for part in turned], dim=1)
        return (rows.transpose(1, 2) @ rows).double().cpu()
