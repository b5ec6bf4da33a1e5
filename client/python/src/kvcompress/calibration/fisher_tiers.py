"""From Fisher metrics to the ranks of heads: tiers, the compression_config.json that they make, and its summary."""

import json
import math
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any, Literal

from .._errors import InvalidArgument
from ._whole_file import whole_file
from .compression_config import CompressionConfig, Head, channels, head_key
from .fisher_report import FisherRun

Tier = Literal["critical", "excellent", "good", "moderate"]
# The tiers that are compressed.
RANKS: dict[Tier, int] = {"excellent": 8, "good": 16, "moderate": 32}
_MISSING = {"trace": 0.5, "cond": 1e3, "eigmax": 0.05}
# Ranks are scaled in steps of one of the largest.
_STEPS = max(RANKS.values())


def tier_of(metrics: Mapping[str, float]) -> Tier:
    """Of a head's `trace` and `cond`; one that is missing counts as 0.5 and 1e3. All bounds are strict."""
    trace, cond = (metrics.get(name, _MISSING[name]) for name in ("trace", "cond"))
    if trace > 0.95:
        return "critical"
    if cond > 1e7 and trace < 0.90:
        return "excellent"
    return "good" if cond > 1e6 else "moderate"


def grouped_metrics(heads: Mapping[Head, Mapping[str, float]], queries_per_key: int) -> dict[Head, dict[str, float]]:
    """Of key/value heads, each of which `queries_per_key` query heads read: the maximum of their traces and eigmax, and
    the minimum of their cond, what is missing counted as in `tier_of`."""
    if queries_per_key < 1:
        raise InvalidArgument(f"queries per key are at least 1, not {queries_per_key}")
    takes = {"trace": max, "cond": min, "eigmax": max}
    grouped = {}
    for layer, group in sorted({(layer, head // queries_per_key) for layer, head in heads}):
        first = group * queries_per_key
        readers = [heads.get((layer, first + reader), {}) for reader in range(queries_per_key)]
        grouped[layer, group] = {
            name: take(reader.get(name, _MISSING[name]) for reader in readers) for name, take in takes.items()
        }
    return grouped


def config_document(
    run: FisherRun, *, target: float = 0.5, d_head: int = 64, queries_per_key: int = 1
) -> dict[str, Any]:
    """The compression_config.json of a run, by key/value heads. Ranks are those of the tiers; where these save less
    than `target`, the part of the channels of all keys and values, ranks are scaled down until they do.

    InvalidArgument for a run without heads, a d_head that no model has, a target that cannot be met, with the most
    that can be, and, with the head's name, a d_head that has no room for a head's rank."""
    channels("d_head", d_head)
    heads = grouped_metrics(run.heads, queries_per_key)
    if not heads:
        raise InvalidArgument(f"run {run.name} has no Fisher metrics of heads")
    tiers = {head: tier_of(metrics) for head, metrics in heads.items()}
    for head, tier in tiers.items():
        if d_head < min(RANKS.values()):
            raise InvalidArgument(f"{head_key(*head)}: d_head {d_head} is below the lowest rank, {min(RANKS.values())}")
        if RANKS.get(tier, d_head) > d_head:
            raise InvalidArgument(
                f"{head_key(*head)}: rank {RANKS[tier]} of its tier, {tier}, is above d_head {d_head}"
            )
    total = _model_heads(run, heads, queries_per_key)
    ranks = _scaled_ranks(tiers, target, d_head, total)
    original = 2 * d_head * total
    compressed = original - sum(2 * (d_head - rank) for rank in ranks.values())
    reduction = 1 - compressed / original
    by_tier = {tier: [head_key(*head) for head in heads if tiers[head] == tier] for tier in ("critical", *RANKS)}
    return {
        "target_memory_reduction": target,
        "d_head": d_head,
        "algo_default": "kvsplice",
        "per_layer_head": {
            head_key(*head): _head_fields(metrics, tiers[head], ranks[head], d_head) for head, metrics in heads.items()
        },
        "compression_summary": by_tier,
        "expected_kv_memory_savings": f"{reduction:.1%}",
        "actual_memory_reduction": reduction,
        "summary_stats": {
            "total_heads": total,
            "critical_heads": len(by_tier["critical"]),
            **{f"{tier}_targets": len(by_tier[tier]) for tier in RANKS},
            "total_original_params": original,
            "total_compressed_params": compressed,
        },
    }


def write_config(document: Mapping[str, Any], path: str | PathLike[str]) -> Path:
    """A config and its summary, or neither: the path of the summary, NAME_summary.txt beside NAME.json. InvalidArgument
    for a name that does not end in .json."""
    if not str(path).endswith(".json"):
        raise InvalidArgument(f"the name of a config ends in .json, of which that of its summary is made: {path}")
    CompressionConfig.of_json(document)
    summary = Path(str(path).removesuffix(".json") + "_summary.txt")
    with whole_file(path) as config, whole_file(summary) as words:
        config.write_text(json.dumps(document, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        words.write_text(config_summary(document, Path(path).name), encoding="utf-8")
    return summary


def config_summary(document: Mapping[str, Any], name: str) -> str:
    """What `config_document` has decided, for people; `name` is that of the config's file."""
    stats, tiers = document["summary_stats"], document["compression_summary"]
    banner = "=" * 60
    lines = [banner, "FIM-Guided KV Cache Compression Configuration", banner, ""]
    lines += [f"Target memory reduction: {document['target_memory_reduction']:.0%}"]
    lines += [f"Expected KV memory savings: {document['expected_kv_memory_savings']}", ""]
    lines += ["=== Compression Summary ===", ""]
    lines += [f"Critical heads (NO compression): {len(tiers['critical'])}"]
    for tier in RANKS:
        lines += [
            f"{tier.capitalize()} targets ({_rank_words(document, tiers[tier], RANKS[tier])}): {len(tiers[tier])}"
        ]
    listed = len(document["per_layer_head"])
    if listed < stats["total_heads"]:
        lines += [f"Heads without metrics (NO compression): {stats['total_heads'] - listed}"]
    lines += ["", f"Total parameters: {stats['total_original_params']:,} → {stats['total_compressed_params']:,} "
              f"({document['actual_memory_reduction']:.1%} reduction)", ""]  # fmt: skip
    for tier, keys in tiers.items():
        if keys:
            lines += [f"{tier.capitalize()} heads:"]
            lines += [f"  {key}: {document['per_layer_head'][key]['reason']}" for key in keys[:5]]
            lines += [f"  ... and {len(keys) - 5} more"] if len(keys) > 5 else []
            lines += [""]
    return "\n".join([*lines, "Usage Instructions", "", *(line.format(name=name) for line in _USAGE)]) + "\n"


_USAGE = (
    "1. Fit a compressor to the model: python scripts/calibrate_kv_compressor.py --model MODEL --config {name}",
    "2. Look at the perplexity that it prints before you use it.",
    "3. Wrap the model: CompressedKVModelWrapper(model, compressor)",
)


def _model_heads(run: FisherRun, heads: Mapping[Head, Any], queries_per_key: int) -> int:
    """All key/value heads of the model: what the run's config says, or as many as the numbers of those listed need."""
    layers, readers = (
        next((run.config[name] for name in names if isinstance(run.config.get(name), int)), 0)
        for names in (("num_hidden_layers", "n_layer"), ("num_attention_heads", "n_head"))
    )
    layers = max(layers, 1 + max(layer for layer, _ in heads))
    return layers * max(readers // queries_per_key, 1 + max(head for _, head in heads))


def _scaled_ranks(tiers: Mapping[Head, Tier], target: float, d_head: int, total: int) -> dict[Head, int]:
    """Those of the tiers, scaled by the largest factor up to 1 that meets the target."""
    if not (math.isfinite(target) and 0 <= target <= 1):
        raise InvalidArgument(f"a target of memory reduction is between 0 and 1, not {target}")
    saved = 0.0
    for step in range(_STEPS, -1, -1):
        ranks = {
            head: d_head if tier == "critical" else max(1, RANKS[tier] * step // _STEPS) for head, tier in tiers.items()
        }
        saved = sum(d_head - rank for rank in ranks.values()) / (d_head * total)
        if saved >= target:
            return ranks
    kept = total - sum(tier != "critical" for tier in tiers.values())
    raise InvalidArgument(
        f"a memory reduction of {target:.1%} cannot be met: at most {math.floor(saved * 1000) / 10}% can, with rank 1 "
        f"in every head but the {kept} of {total} that stay as they are"
    )


def _head_fields(metrics: Mapping[str, float], tier: Tier, rank: int, d_head: int) -> dict[str, Any]:
    if tier == "critical":
        reason = f"CRITICAL: trace={metrics['trace']:.3f} (>0.95)"
    else:
        reason = f"{tier.upper()}: cond={metrics['cond']:.2e}, trace={metrics['trace']:.3f}"
    return {
        "enabled": tier != "critical",
        "rank": rank,
        "algo": "none" if tier == "critical" else "kvsplice",
        "compression_ratio": 1 - rank / d_head,
        "reason": reason,
        "metrics": dict(metrics),
    }


def _rank_words(document: Mapping[str, Any], keys: list[str], usual: int) -> str:
    rank = document["per_layer_head"][keys[0]]["rank"] if keys else usual
    return f"rank={rank}, ~{1 - rank / document['d_head']:.0%} compression"
