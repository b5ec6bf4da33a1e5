"""Measured sensitivity beside Fisher tiers: one table, one plot, and whether the tiers guide on this model."""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from statistics import fmean
from typing import TYPE_CHECKING

from ._whole_file import whole_file
from .compression_config import Head
from .fisher_tiers import RANKS, Tier, grouped_metrics, tier_of

if TYPE_CHECKING:
    from .sensitivity import Sensitivity

# What the tiers take for granted: the sign of the rank correlation of each with the KL.
ASSUMED = {"trace": 1, "cond": -1, "eigmax": -1, "rank": 1}
_COLUMNS = (
    *("layer", "head", "kl_keys", "kl_keys_stderr", "kl_values", "kl_values_stderr", "kl"),
    *("trace", "cond", "eigmax", "tier", "rank"),
)


@dataclass(frozen=True)
class Row:
    """One key/value head: its KL where it alone is coded, in nats, and its Fisher metrics."""

    layer: int
    head: int
    kl_keys: float
    kl_keys_stderr: float
    kl_values: float
    kl_values_stderr: float
    trace: float
    cond: float
    eigmax: float
    tier: Tier
    rank: int  # of the tier; d_head for a critical head

    @property
    def kl(self) -> float:
        return self.kl_keys + self.kl_values


def rows_of(
    sensitivity: "Sensitivity", fisher: Mapping[Head, Mapping[str, float]], *, queries_per_key: int, d_head: int
) -> list[Row]:
    """Of every head that was measured. `fisher` are the metrics of query heads."""
    grouped = grouped_metrics(fisher, queries_per_key)
    rows = []
    for head, sides in sorted(sensitivity.heads.items()):
        metrics = grouped[head]
        tier = tier_of(metrics)
        keys, values = sides["keys"], sides["values"]
        rows.append(
            Row(
                *head,
                keys.kl,
                keys.kl_stderr,
                values.kl,
                values.kl_stderr,
                metrics["trace"],
                metrics["cond"],
                metrics["eigmax"],
                tier,
                RANKS.get(tier, d_head),
            )
        )
    return rows


def correlations(rows: Sequence[Row]) -> dict[str, dict[str, float | None]]:
    """Spearman's rank correlation of each Fisher metric, and of the tiers' rank, with the KL of keys, of values and of
    both; None where one of the two is the same for all heads."""
    return {
        metric: {
            kl: rank_correlation([getattr(row, metric) for row in rows], [getattr(row, kl) for row in rows])
            for kl in ("kl_keys", "kl_values", "kl")
        }
        for metric in ASSUMED
    }


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Spearman's; equal values share the mean of their ranks. None where all of one side are equal."""
    one, other = _ranks(first), _ranks(second)
    middle = (len(one) + 1) / 2
    products = sum((a - middle) * (b - middle) for a, b in zip(one, other, strict=True))
    squares = [sum((rank - middle) ** 2 for rank in ranks) for ranks in (one, other)]
    return products / math.sqrt(squares[0] * squares[1]) if all(squares) else None


def _ranks(values: Sequence[float]) -> list[float]:
    ordered = sorted(values)
    first = {value: rank for rank, value in reversed(list(enumerate(ordered, 1)))}
    last = {value: rank for rank, value in enumerate(ordered, 1)}
    return [(first[value] + last[value]) / 2 for value in values]


def chance(heads: int) -> float:
    """What the rank correlation of things that have nothing to do with each other stays below, 19 times of 20."""
    return 1.96 / math.sqrt(max(1, heads - 1))


def verdict(rows: Sequence[Row]) -> str:
    """Whether the ranks that the tiers give go with what errors cost."""
    found = correlations(rows)["rank"]["kl"]
    if found is None:
        return "All heads are of one tier, which says nothing of where errors cost most on this model."
    shown = f"rank correlation {found:+.2f}, where chance alone stays within ±{chance(len(rows)):.2f}"
    if found < -chance(len(rows)):
        return f"The tiers mislead on this model: errors cost more in heads that they compress harder ({shown})."
    if found <= chance(len(rows)):
        return f"The tiers do not guide on this model: they are no better than chance ({shown})."
    how = "guide" if found > 0.5 else "guide weakly"
    return f"The tiers {how} on this model: errors cost more in heads to which they leave a higher rank ({shown})."


def write_table(rows: Sequence[Row], path: str | PathLike[str]) -> None:
    """As CSV, by layer and head."""
    with whole_file(path) as table, open(table, "w", encoding="utf-8", newline="") as file:
        lines = csv.writer(file, lineterminator="\n")
        lines.writerow(_COLUMNS)
        for row in rows:
            lines.writerow([getattr(row, column) for column in _COLUMNS])


def sensitivity_text(sensitivity: "Sensitivity", rows: Sequence[Row]) -> str:
    """For people: the most sensitive heads first, then tiers and correlations."""
    everything = sensitivity.everything
    together = [
        _with_error(score.kl, score.kl_stderr) for score in (*sensitivity.all_heads.values(), sensitivity.everything)
    ]
    lines = [
        f"KL of the next token, in nats, where one head alone is coded as {sensitivity.codec}",
        f"{everything.windows} windows, {everything.tokens} tokens scored, cache in {sensitivity.cache_dtype}, "
        f"whose own rounding is KL {sensitivity.noise_kl:.1e} (counted nowhere)",
        f"All heads together: keys {together[0]}, values {together[1]}, both {together[2]}",
        "",
        f"{'head':<16}{'KL, keys':>20}{'KL, values':>20}{'trace':>8}{'cond':>10}{'eigmax':>8}  tier       rank",
    ]
    for row in sorted(rows, key=lambda row: -row.kl):
        keys, values = (
            _with_error(kl, error)
            for kl, error in ((row.kl_keys, row.kl_keys_stderr), (row.kl_values, row.kl_values_stderr))
        )
        lines.append(
            f"{f'layer{row.layer}/head{row.head}':<16}{keys:>20}{values:>20}{row.trace:>8.3f}{row.cond:>10.2e}"
            f"{row.eigmax:>8.4f}  {row.tier:<10} {row.rank:>4}"
        )
    return "\n".join([*lines, "", *_tier_lines(rows), "", *_correlation_lines(rows), "", verdict(rows)]) + "\n"


def _with_error(kl: float, error: float) -> str:
    """Of one window there is no error."""
    return f"{kl:.2e}" if math.isnan(error) else f"{kl:.2e} ± {error:.0e}"


def _tier_lines(rows: Sequence[Row]) -> list[str]:
    lines = [f"{'tier':<12}{'heads':>6}{'mean KL, keys':>16}{'mean KL, values':>18}"]
    for tier in ("critical", "moderate", "good", "excellent"):
        heads = [row for row in rows if row.tier == tier]
        if heads:
            keys, values = fmean(row.kl_keys for row in heads), fmean(row.kl_values for row in heads)
            lines.append(f"{tier:<12}{len(heads):>6}{keys:>16.2e}{values:>18.2e}")
    return lines


def _correlation_lines(rows: Sequence[Row]) -> list[str]:
    lines = [f"Rank correlation (Spearman) with the KL, {len(rows)} heads; by chance within ±{chance(len(rows)):.2f}:"]
    lines += [f"{'':<14}{'keys':>8}{'values':>8}{'both':>8}   the tiers assume"]
    for metric, found in correlations(rows).items():
        shown = "".join(f"{'-' if value is None else f'{value:+.2f}':>8}" for value in found.values())
        name = "tier's rank" if metric == "rank" else metric
        lines.append(f"{name:<14}{shown}   {'+' if ASSUMED[metric] > 0 else '-'}")
    return lines


def plot(sensitivity: "Sensitivity", rows: Sequence[Row], path: str | PathLike[str]) -> None:
    """KL against trace and against cond, keys and values apart, a colour for each tier, as .png, .svg or .pdf.
    ImportError without matplotlib."""
    from matplotlib.figure import Figure  # the object interface: no backend of a screen

    figure = Figure(figsize=(11, 8), layout="constrained")
    colours = {"critical": "C3", "moderate": "C1", "good": "C0", "excellent": "C2"}
    panels = figure.subplots(2, 2, sharey="row", sharex="col")
    for line, kl in zip(panels, ("kl_keys", "kl_values"), strict=True):
        for axes, metric in zip(line, ("trace", "cond"), strict=True):
            for tier, colour in colours.items():
                heads = [row for row in rows if row.tier == tier and getattr(row, kl) > 0]
                points = [getattr(row, metric) for row in heads], [getattr(row, kl) for row in heads]
                axes.plot(*points, "o", color=colour, markersize=4, label=f"{tier} ({len(heads)})")
            found = rank_correlation([getattr(row, metric) for row in rows], [getattr(row, kl) for row in rows])
            shown = "none" if found is None else f"{found:+.2f}"
            axes.set(title=f"rank correlation {shown}", yscale="log", xscale="log" if metric == "cond" else "linear")
            axes.set_xlabel(metric)
            axes.set_ylabel(f"KL, {kl.removeprefix('kl_')} of one head coded")
            axes.grid(True, color="0.92")
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    figure.suptitle(f"{sensitivity.codec}, one head at a time, beside Fisher metrics")
    with whole_file(path) as picture:
        figure.savefig(picture, dpi=130)
