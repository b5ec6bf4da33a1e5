"""What calibration is made of, measured on a model of transformers: its caches, and what errors in them cost it."""

import contextlib
import inspect
import json
from collections.abc import Callable, Iterable, Iterator
from os import PathLike, fspath
from typing import Any, Literal

import torch

from .._errors import InvalidArgument
from .._rotary import RotaryEmbedding
from ._whole_file import whole_file

# The first tokens of a sequence are like no others, and calibration leaves them out.
_SINK_TOKENS = 4
# Positions of a window at which "attention" looks at keys.
_POSITIONS = 4
# Models, by `model_type`, whose keys do not turn: positions are in their embeddings or in the logits.
_WITHOUT_ROTATION = ("bloom", "gpt2", "gpt_bigcode", "gpt_neo", "mpt", "opt")
# Names of the projection of a layer's heads to its output, a torch.nn.Linear or transformers' Conv1D.
_OUTPUT_PROJECTIONS = ("o_proj", "out_proj", "dense", "c_proj", "wo")

Tensors = dict[str, torch.Tensor]
Windows = Iterable[Any]
Path = str | PathLike[str]


def collect_cache(
    model: Any, windows: Windows, path: Path, *, rotary: RotaryEmbedding | None = None, dtype: torch.dtype | None = None
) -> None:
    """Writes the cache of what `model` (transformers' AutoModelForCausalLM) reads, for `calibrate`. `windows` are rows
    of token ids, of one length; each is a sequence of its own, from position 0. The safetensors file at `path` has
    layer_{i}_key and layer_{i}_value, [windows, heads, tokens, head_dim], in `dtype` or the model's, and in its
    metadata the rotary embedding: `rotary`, or that of the model's configuration. Memory holds all of it: several
    files are as good as one.

    InvalidArgument for windows that are none, a model in training mode, and caches that are more than keys and
    values."""
    rows = _rows(windows, 1)
    if len({len(row) for row in rows}) > 1:
        raise InvalidArgument("the windows of a cache are of one length")
    parts: dict[str, list[torch.Tensor]] = {}
    for row in rows:
        for name, tensor in _named(_pairs(_read(model, row))):
            parts.setdefault(name, []).append(tensor.to("cpu", dtype or tensor.dtype))
    _save({name: torch.cat(tensors) for name, tensors in parts.items()}, path, _metadata(model, _rotary(model, rotary)))


def collect_weights(
    model: Any,
    windows: Windows,
    path: Path,
    *,
    kind: Literal["mixed", "fisher", "attention"] = "mixed",
    group_dim: int = 128,
    rotary: RotaryEmbedding | None = None,
    read_tokens: int = 64,
    samples: int = 4,
    seed: int = 0,
    progress: Callable[[float], object] = lambda part: None,
) -> None:
    """Writes what an error in each direction of a model's keys and values costs, the `weights` of `calibrate`: F32
    tensors layer_{i}_key and layer_{i}_value, [groups, channels, channels], of groups of heads as `calibrate` makes
    them with the same `group_dim`. `windows` are rows of token ids, each a sequence from position 0. Keys are taken as
    they are before their rotary embedding, which is `rotary`, or that of the model's configuration.

    "fisher": E[g g^T], where g is the gradient by a cached token of the negative log-likelihood, in nats, of what the
    model says of the last `read_tokens` tokens of each window, which read the cache of those before. Labels are drawn
    from the model, `samples` times, by `seed`: this is Fisher information, twice the Kullback-Leibler divergence of a
    small error. It takes float32 or bfloat16, and memory for a backward pass over `read_tokens` tokens.

    "attention": of keys E[q q^T] over the queries that come later, turned back by the key's position; of values the sum
    of W^T W over the output projections W of the heads that read them. There are no gradients. The two have no common
    unit, so all tensors get the same mean. It needs an attention other than "eager".

    "mixed": half of each, with Fisher's mean for each tensor. Fisher information alone tells what tensors cost beside
    each other, but few windows leave noise in its directions.

    `progress` is told which part is done, from 0 to 1. The first four tokens of each window count for nothing.

    InvalidArgument for windows that are too short, a model in training mode, and one that has no such keys, values,
    queries or projections. Caches of layers are needed, which transformers have from 4.54 on."""
    if kind not in ("mixed", "fisher", "attention"):
        raise InvalidArgument(f'kind is "mixed", "fisher" or "attention", not {kind!r}')
    if read_tokens < 1 or samples < 1:
        raise InvalidArgument(f"read_tokens and samples are at least 1, not {read_tokens} and {samples}")
    rows = _rows(windows, _SINK_TOKENS + 2 + read_tokens)
    turns = _rotary(model, rotary)
    fisher, attention = _Sums(turns, group_dim), _Sums(turns, group_dim)
    generator = torch.Generator().manual_seed(seed)
    modules: set[Any] = set()
    for done, row in enumerate(rows):
        seen = contextlib.nullcontext() if kind == "fisher" else _queries_added(model, modules, attention)
        with seen:
            cache = _read(model, row[:-read_tokens])
        if kind != "attention":
            _add_fisher(model, cache, row[-read_tokens:], samples, generator, fisher)
        progress((done + 1) / len(rows))
    for module in modules:
        _add_projection(module, attention)
    _save(_mixed(fisher.means(), attention.means()), path, {})


def _mixed(fisher: Tensors, attention: Tensors) -> Tensors:
    """The mean of both in shape, with the scale of `fisher`; where there is none, of a mean diagonal of 1. One may be
    empty."""
    scales = {name: _scale(moments) for name, moments in fisher.items()}
    mixed = dict(fisher)
    for name, moments in attention.items():
        alike = moments * (scales.get(name, 1.0) / _scale(moments))
        mixed[name] = (fisher[name] + alike) / 2 if name in fisher else alike
    return {name: moments.float().contiguous() for name, moments in mixed.items()}


def _scale(moments: torch.Tensor) -> float:
    return float(moments.diagonal(dim1=1, dim2=2).mean())


class _Sums:
    """Second moments of what is added, in binary64."""

    def __init__(self, rotary: RotaryEmbedding | None, group_dim: int):
        self._rotary = rotary
        self._group_dim = group_dim
        self._sums: Tensors = {}
        self._counts: dict[str, int] = {}

    def add(self, name: str, rows: torch.Tensor, positions: torch.Tensor) -> None:
        """Of `rows`, [heads, tokens, head_dim]; keys' are turned back by `positions`, [tokens]."""
        rows = rows.detach().to("cpu", torch.float32)
        if name.endswith("_key") and self._rotary is not None:
            rows = turned_back(rows, self._rotary, positions)
        heads, tokens, head_dim = rows.shape
        together = _group_heads(heads, head_dim, self._group_dim)
        groups = rows.reshape(heads // together, together, tokens, head_dim).transpose(1, 2).flatten(2)
        self._add_moments(name, groups.transpose(1, 2) @ groups, tokens)

    def turned_to(self, rows: torch.Tensor, position: int) -> torch.Tensor:
        """`rows` of queries, [..., head_dim], as they meet a key of that position before it is turned."""
        return rows if self._rotary is None else turned_back(rows, self._rotary, torch.tensor([position]))

    def add_heads(self, name: str, moments: torch.Tensor, count: int) -> None:
        """Of each head alone: `moments`, [heads, head_dim, head_dim], are sums of `count`."""
        heads, head_dim, _ = moments.shape
        together = _group_heads(heads, head_dim, self._group_dim)
        groups = torch.zeros(heads // together, together * head_dim, together * head_dim)
        for head in range(heads):
            at = head % together * head_dim
            groups[head // together, at : at + head_dim, at : at + head_dim] = moments[head]
        self._add_moments(name, groups, count)

    def _add_moments(self, name: str, moments: torch.Tensor, count: int) -> None:
        self._sums[name] = self._sums.get(name, torch.zeros(())) + moments.double()
        self._counts[name] = self._counts.get(name, 0) + count

    def means(self) -> Tensors:
        return {name: moments / self._counts[name] for name, moments in self._sums.items()}


def turned_back(rows: torch.Tensor, rotary: RotaryEmbedding, positions: torch.Tensor) -> torch.Tensor:
    """`rows`, [..., tokens, head_dim], before the rotary embedding of their positions, [tokens] or [batch, tokens]."""
    dims = rotary.dims or rows.shape[-1] - rotary.offset
    turning = rows[..., rotary.offset : rotary.offset + dims]
    frequencies = torch.tensor(rotary.frequencies(dims), dtype=torch.float64, device=rows.device)
    angles = positions.to(frequencies)[..., None] * frequencies
    cosine, sine = angles.cos().to(rows.dtype), angles.sin().to(rows.dtype)
    is_half = rotary.pairs == "half"
    first, second = turning.chunk(2, dim=-1) if is_half else (turning[..., ::2], turning[..., 1::2])
    pair = (first * cosine + second * sine, second * cosine - first * sine)
    turned = rows.clone()
    turned[..., rotary.offset : rotary.offset + dims] = (
        torch.cat(pair, dim=-1) if is_half else torch.stack(pair, dim=-1).flatten(-2)
    )
    return turned


def _add_fisher(
    model: Any, cache: Any, read: torch.Tensor, samples: int, generator: torch.Generator, sums: _Sums
) -> None:
    """Of a cache, and the tokens that read it."""
    named = _named(_pairs(cache))
    positions = torch.arange(_SINK_TOKENS, cache.get_seq_length())
    leaves = [tensor.detach().requires_grad_() for _, tensor in named]
    for layer, (key, value) in zip(cache.layers, zip(leaves[::2], leaves[1::2], strict=True), strict=True):
        layer.keys, layer.values = key, value
    with torch.enable_grad():
        reading = {"input_ids": read[None].to(model.device), _cache_name(model): cache}
        scores = model(**reading, use_cache=True).logits[0].float().log_softmax(dim=-1)
    chances = scores.detach().exp().cpu()
    for sample in range(samples):
        labels = torch.multinomial(chances, 1, generator=generator).to(scores.device)
        is_last = sample == samples - 1
        gradients = torch.autograd.grad(-scores.gather(1, labels).sum(), leaves, retain_graph=not is_last)
        for (name, _), gradient in zip(named, gradients, strict=True):
            sums.add(name, gradient[0, :, _SINK_TOKENS:], positions)


@contextlib.contextmanager
def _queries_added(model: Any, modules: set[Any], sums: _Sums) -> Iterator[None]:
    """Of what the model reads meanwhile; its modules of attention come into `modules`."""

    def add(module: Any, query: torch.Tensor, key: torch.Tensor) -> None:
        modules.add(module)
        heads, tokens, head_dim = key.shape[1:]
        queries = query.detach().to("cpu", torch.float32).reshape(heads, -1, tokens, head_dim)
        count = min(_POSITIONS, tokens - 1 - _SINK_TOKENS)
        for position in torch.linspace(_SINK_TOKENS, tokens - 2, count).long().tolist():
            turned = sums.turned_to(queries[:, :, position + 1 :].flatten(1, 2), position)
            sums.add_heads(f"layer_{module.layer_idx}_key", turned.transpose(1, 2) @ turned, turned.shape[1])

    with _attention(model, add):
        yield


def _add_projection(module: Any, sums: _Sums) -> None:
    """Of a module of attention: heads of queries that read the same keys follow one another."""
    projection = _output_projection(module)
    readers = projection.reshape(len(projection), -1, module.num_key_value_groups, module.head_dim).permute(1, 2, 3, 0)
    sums.add_heads(f"layer_{module.layer_idx}_value", (readers @ readers.transpose(2, 3)).sum(1), 1)


@contextlib.contextmanager
def _attention(model: Any, visit: Callable[[Any, torch.Tensor, torch.Tensor], None]) -> Iterator[None]:
    """Meanwhile `visit` is told of each attention of any model: its module, queries and keys, [1, heads, tokens,
    head_dim], turned."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    name = model.config._attn_implementation
    if name not in ALL_ATTENTION_FUNCTIONS:
        raise InvalidArgument(f'queries cannot be seen where attention is {name!r}: load the model with "sdpa"')
    attend = ALL_ATTENTION_FUNCTIONS[name]

    def seen(module: Any, query: torch.Tensor, key: torch.Tensor, *args: Any, **options: Any) -> Any:
        visit(module, query, key)
        return attend(module, query, key, *args, **options)

    ALL_ATTENTION_FUNCTIONS[name] = seen
    try:
        yield
    finally:
        ALL_ATTENTION_FUNCTIONS[name] = attend


def _output_projection(module: Any) -> torch.Tensor:
    """[channels of the model, channels of all heads]."""
    for name in _OUTPUT_PROJECTIONS:
        projection = getattr(module, name, None)
        if projection is not None:
            weight: torch.Tensor = projection.weight.detach().cpu().float()
            return weight.T if type(projection).__name__ == "Conv1D" else weight
    raise InvalidArgument(f"{type(module).__name__} has no output projection of a name that is known")


def _read(model: Any, rows: torch.Tensor) -> Any:
    """The cache of a window, [tokens], or of several, [windows, tokens]."""
    if model.training:
        raise InvalidArgument("the model is in training mode, with dropout: call its eval()")
    inner = model.base_model  # which computes no logits
    with torch.no_grad():
        read = inner(input_ids=(rows if rows.dim() == 2 else rows[None]).to(model.device), use_cache=True)
    return getattr(read, _cache_name(inner))


def _cache_name(model: Any) -> str:
    """What transformers call it, by their version."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


def _pairs(cache: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Keys and values of each layer, [windows, heads, tokens, head_dim]."""
    layers = getattr(cache, "layers", None)
    if layers is None:
        raise InvalidArgument("caches without layers are of a transformers before 4.54")
    tokens = cache.get_seq_length()
    for index, layer in enumerate(layers):
        keys = getattr(layer, "keys", None)
        if not isinstance(keys, torch.Tensor) or keys.dim() != 4 or keys.shape[2] != tokens:
            raise InvalidArgument(f"layer {index} is a {type(layer).__name__} that has not all keys of the window")
    return [(layer.keys, layer.values) for layer in layers]


def _named(pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> list[tuple[str, torch.Tensor]]:
    return [
        (f"layer_{index}_{side}", tensor)
        for index, pair in enumerate(pairs)
        for side, tensor in zip(("key", "value"), pair, strict=True)
    ]


def _rows(windows: Windows, least: int) -> list[torch.Tensor]:
    rows = [torch.as_tensor(window, dtype=torch.long) for window in windows]
    if not rows:
        raise InvalidArgument("there are no windows")
    for row in rows:
        if row.dim() != 1 or len(row) < least:
            raise InvalidArgument(f"a window is a row of at least {least} token ids, not of shape {list(row.shape)}")
    return rows


def _rotary(model: Any, given: RotaryEmbedding | None) -> RotaryEmbedding | None:
    return given or RotaryEmbedding.of_config(model.config)


def _metadata(model: Any, rotary: RotaryEmbedding | None) -> dict[str, str]:
    """As kv-compress reads it."""
    if rotary is None:
        return {"rope_theta": "0"} if model.config.model_type in _WITHOUT_ROTATION else {}
    metadata = {
        "rope_theta": repr(rotary.theta),
        "rope_pairs": rotary.pairs,
        "rope_dims": str(rotary.dims),
        "rope_offset": str(rotary.offset),
    }
    if rotary.scaling is not None:
        metadata["rope_scaling"] = json.dumps(rotary.scaling.parameters())
    return metadata


def _group_heads(heads: int, head_dim: int, group_dim: int) -> int:
    """As calibration groups them: as many as fit and divide the heads."""
    return max((n for n in range(1, heads + 1) if heads % n == 0 and n * head_dim <= group_dim), default=1)


def _save(tensors: Tensors, path: Path, metadata: dict[str, str]) -> None:
    from safetensors.torch import save_file

    with whole_file(path) as file:
        save_file(tensors, fspath(file), metadata=metadata)
