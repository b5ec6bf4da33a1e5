"""Fisher metrics of runs in files, and what they say in words.

A run's metrics have keys: "fisher/METRIC" of the model, "fisher/layer3/METRIC", "fisher/layer3/head0/METRIC" (`fisher`
says what they are). The files are those of the service that logged them: fim_metrics_PROJECT.json, a list of runs, and
fim_summary_PROJECT.csv, a row for each metric.
"""

import csv
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from statistics import fmean
from typing import Any

from .._errors import InvalidArgument
from ._whole_file import whole_file
from .compression_config import Head, head_key

_PREFIX = "fisher/"
_HEAD = re.compile(r"fisher/layer([0-9]{1,9})/head([0-9]{1,9})/([^/]+)")
_COLUMNS = ("run_name", "layer", "head", "metric", "value")
_WIDTH = 80
_BAR = 40


@dataclass(frozen=True)
class FisherRun:
    """One run: its display name, its metrics by their keys, and what else the JSON tells of it."""

    name: str
    metrics: Mapping[str, float]
    config: Mapping[str, Any] = field(default_factory=dict)
    info: Mapping[str, Any] = field(default_factory=dict)
    history: Sequence[Mapping[str, Any]] = ()

    def __post_init__(self) -> None:
        for key, value in self.metrics.items():
            if not math.isfinite(value):
                raise InvalidArgument(f"run {self.name}: {key.removeprefix(_PREFIX)} is {value}, which is no number")

    @property
    def heads(self) -> dict[Head, dict[str, float]]:
        """The metrics of each head that has some, by their names."""
        heads: dict[Head, dict[str, float]] = {}
        for key, value in self.metrics.items():
            if match := _HEAD.fullmatch(key):
                heads.setdefault((int(match[1]), int(match[2])), {})[match[3]] = value
        return dict(sorted(heads.items()))

    @property
    def left_out(self) -> str:
        """What its JSON has not, in words, because of NaN or infinities, which JSON does not know: steps of `history`,
        fields of `config`. Empty where it has all."""
        counts = [
            (len(self.history) - len(self._history), len(self.history), "steps of its history"),
            (len(self.config) - len(self._config), len(self.config), "fields of its config"),
        ]
        return " and ".join(f"{lost} of {all_of} {what}" for lost, all_of, what in counts if lost)

    @property
    def _history(self) -> list[dict[str, Any]]:
        return [dict(row) for row in self.history if _is_finite(row)]

    @property
    def _config(self) -> dict[str, Any]:
        return {name: value for name, value in self.config.items() if _is_finite(value)}

    def to_json(self) -> dict[str, Any]:
        """As files have it, but for what is `left_out`."""
        names = ("entity", "project", "run_name", "display_name", "run_id", "url", "state", "created_at")
        info = {"run_name": self.name, "display_name": self.name, **self.info}
        return {
            "run_info": {name: info.get(name) for name in names},
            "config": self._config,
            "summary_metrics": dict(self.metrics),
            "history": self._history,
        }


def _is_finite(value: Any) -> bool:
    """Whether all numbers in a value of JSON's kinds are."""
    if isinstance(value, Mapping):
        return all(map(_is_finite, value.values()))
    if isinstance(value, list | tuple):
        return all(map(_is_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


def fisher_only(summary: Mapping[str, Any], run: str) -> dict[str, float]:
    """Of all that a run has logged the Fisher metrics. InvalidArgument for one that is no number; histograms, which are
    objects, are left out."""
    metrics = {}
    for key, value in summary.items():
        if not key.startswith(_PREFIX) or isinstance(value, Mapping | list):
            continue
        try:
            metrics[key] = float(value)
        except (TypeError, ValueError, OverflowError):
            raise InvalidArgument(f"run {run}: {key.removeprefix(_PREFIX)} is {value!r}, which is no number") from None
    return metrics


def read_runs(path: str | PathLike[str]) -> list[FisherRun]:
    """Of a file of either layout. InvalidArgument, which names run and head, for metrics that are no numbers, and for
    files of another kind."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
        return _runs_of_json(json.loads(text)) if text.lstrip()[:1] in ("[", "{") else _runs_of_csv(text)
    except OSError as error:
        raise InvalidArgument(f"{path}: {error.strerror or error}") from error
    except (ValueError, RecursionError, csv.Error) as error:
        raise InvalidArgument(f"{path}: {error}") from error


def write_runs(runs: Sequence[FisherRun], folder: str | PathLike[str], project: str) -> tuple[Path, Path]:
    """Both files, or neither, in a folder that is there: their paths, the JSON's first."""
    as_json, as_csv = Path(folder, f"fim_metrics_{project}.json"), Path(folder, f"fim_summary_{project}.csv")
    with whole_file(as_json) as document, whole_file(as_csv) as table:
        text = json.dumps([run.to_json() for run in runs], indent=2, allow_nan=False)
        document.write_text(text + "\n", encoding="utf-8")
        with open(table, "w", encoding="utf-8", newline="") as file:
            rows = csv.writer(file, lineterminator="\n")
            rows.writerow(_COLUMNS)
            for run in runs:
                for key, value in run.metrics.items():
                    rows.writerow((run.name, *_places(key), repr(value)))
    return as_json, as_csv


def _runs_of_json(document: Any) -> list[FisherRun]:
    if not isinstance(document, list):
        raise InvalidArgument("the JSON of Fisher metrics is a list of runs")
    runs = []
    for run in document:
        if not _is_run(run):
            raise InvalidArgument("a run is an object with run_info, config, summary_metrics and history")
        info = run.get("run_info") or {}
        name = str(info.get("display_name") or info.get("run_name") or "")
        metrics = fisher_only(run["summary_metrics"], name)
        runs.append(FisherRun(name, metrics, run.get("config") or {}, info, run.get("history") or ()))
    return runs


def _is_run(run: Any) -> bool:
    if not isinstance(run, dict) or not isinstance(run.get("summary_metrics"), dict):
        return False
    history = run.get("history") or []
    objects = [run.get("run_info") or {}, run.get("config") or {}, *(history if isinstance(history, list) else [None])]
    return all(isinstance(part, dict) for part in objects)


def _runs_of_csv(text: str) -> list[FisherRun]:
    rows = csv.DictReader(text.splitlines())
    if rows.fieldnames is None or not set(_COLUMNS) <= set(rows.fieldnames):
        raise InvalidArgument(f"Fisher metrics are a JSON list of runs, or CSV with the columns {', '.join(_COLUMNS)}")
    metrics: dict[str, dict[str, Any]] = {}
    for row in rows:
        if any(row[column] is None for column in _COLUMNS):
            raise InvalidArgument(f"line {rows.line_num}: a row has the columns {', '.join(_COLUMNS)}")
        metrics.setdefault(row["run_name"], {})[_key(row["layer"], row["head"], row["metric"])] = row["value"]
    return [FisherRun(name, fisher_only(values, name)) for name, values in metrics.items()]


def _places(key: str) -> tuple[str, str, str]:
    """The layer, the head and the metric of a key, as the CSV writes them."""
    parts = key.split("/")
    if len(parts) == 2:
        return "global", "all", parts[1]
    if len(parts) == 3:
        return parts[1], "all", parts[2]
    return parts[1], parts[2], "/".join(parts[3:])


def _key(layer: str, head: str, metric: str) -> str:
    """The key of a row, whose layers and heads may be numbers alone."""
    parts = []
    if layer != "global":
        parts.append(f"layer{layer}" if layer.isdecimal() else layer)
    if head != "all":
        parts.append(f"head{head}" if head.isdecimal() else head)
    return "/".join(["fisher", *parts, metric])


def summary_text(runs: Sequence[FisherRun]) -> str:
    """fim_summary.txt: each run in words, runs beside each other, heads that stand out, and how to read all that."""
    lines = ["=" * _WIDTH, "FIM (Fisher Information Matrix) Analysis Summary", "=" * _WIDTH, ""]
    lines += ["=== Per-Run FIM Summaries ===", ""]
    for run in runs:
        lines += [*_run_lines(run), ""]
    if len(runs) > 1:
        lines += [*_ratio_lines(runs), ""]
    heads = [(run, head, metrics) for run in runs for head, metrics in run.heads.items()]

    def names(run: FisherRun, head: Head) -> str:
        return head_key(*head) + (f"  ({run.name})" if len(runs) > 1 else "")

    for metric in ("cond", "trace", "eigmax"):
        ranked = sorted((entry for entry in heads if metric in entry[2]), key=lambda entry: -entry[2][metric])
        lines += [f"=== Top 5 by {metric} ===", ""]
        lines += [f"  {_figure(metrics[metric]):>10}  {names(run, head)}" for run, head, metrics in ranked[:5]] + [""]
    return "\n".join([*lines, *_target_lines(heads, names), *_GUIDE]) + "\n"


def _run_lines(run: FisherRun) -> list[str]:
    heads = run.heads
    mean = {
        metric: _mean(run, metric, globally)
        for metric, globally in (
            ("trace", "trace_global_mean"),
            ("eigmax", "eigmax_global_mean"),
            ("cond", "cond_global_mean"),
            ("energy_r8", None),
            ("energy_r16", None),
        )
    }
    ranks = (rank for rank in (8, 16) if (mean[f"energy_r{rank}"] or 0.0) >= 0.9)
    return [
        f"Run: {run.name}",
        f"  Heads: {len(heads)} in {len({layer for layer, _ in heads})} layers",
        f"  Mean trace: {_figure(mean['trace'])}",
        f"  Mean top eigenvalue: {_figure(mean['eigmax'])}",
        f"  Mean cond: {_figure(mean['cond'])}{_words(mean['cond'], _cond_words)}",
        f"  Mean energy_r8: {_figure(mean['energy_r8'])}{_words(mean['energy_r8'], _energy_words)}",
        f"  Mean energy_r16: {_figure(mean['energy_r16'])}{_words(mean['energy_r16'], _energy_words)}",
        f"  Effective rank: {next(ranks, 'above 16, or not logged')} (smallest logged r with mean energy >= 0.9)",
    ]


def _mean(run: FisherRun, metric: str, globally: str | None) -> float | None:
    """Over the heads, or what the run says of all of them; None where it says nothing."""
    values = [metrics[metric] for metrics in run.heads.values() if metric in metrics]
    return fmean(values) if values else run.metrics.get(f"{_PREFIX}{globally}")


def _ratio_lines(runs: Sequence[FisherRun]) -> list[str]:
    lines = ["=== Runs beside each other ===", ""]
    for metric in ("trace", "cond"):
        means = [(mean, run.name) for run in runs if (mean := _mean(run, metric, f"{metric}_global_mean")) is not None]
        if len(means) < 2:
            continue
        (low, lowest), (high, highest) = min(means), max(means)
        ratio = f"{high / low:.2f}x" if low > 0 else "none, the lowest is 0"
        lines.append(f"  Mean {metric}: highest {_figure(high)} ({highest}), lowest {_figure(low)} ({lowest}): {ratio}")
    return lines


def _target_lines(
    heads: Sequence[tuple[FisherRun, Head, Mapping[str, float]]], names: Callable[[FisherRun, Head], str]
) -> list[str]:
    lines = ["=" * _WIDTH, "COMPRESSION TARGETS: Layers/Heads with LOWEST FIM Trace", "=" * _WIDTH, ""]
    traces = sorted(
        ((metrics["trace"], run, head) for run, head, metrics in heads if "trace" in metrics),
        key=lambda entry: (entry[0], entry[2]),
    )
    by_layer: dict[int, list[float]] = {}
    for trace, _, (layer, _) in traces:
        by_layer.setdefault(layer, []).append(trace)
    ranked = sorted((fmean(values), layer) for layer, values in by_layer.items())
    lines += ["Layers by mean trace, lowest first:"]
    for trace, layer in ranked[:12]:
        bar = "#" * round(_BAR * min(max(trace, 0.0), 1.0))
        lines.append(f"  layer{layer:<4} {_figure(trace):>8}  |{bar:<{_BAR}}|")
    lines += ["", "Heads of lowest trace, which compress best by this measure:"]
    lines += [f"  {_figure(trace):>8}  {names(run, head)}" for trace, run, head in traces[:10]]
    lines += ["", "Heads of highest trace, which are to be left alone:"]
    lines += [f"  {_figure(trace):>8}  {names(run, head)}" for trace, run, head in traces[::-1][:5]]
    return [*lines, ""]


def _figure(value: float | None) -> str:
    return "not logged" if value is None else f"{value:.4g}"


def _words(value: float | None, words: Callable[[float], str]) -> str:
    return "" if value is None else f" ({words(value)})"


def _cond_words(cond: float) -> str:
    limits = ((1e3, "well-conditioned"), (1e5, "moderate"), (1e7, "strong"))
    return next((words for limit, words in limits if cond < limit), "extreme")


def _energy_words(energy: float) -> str:
    limits = ((0.95, "very low rank"), (0.9, "low rank"), (0.8, "partly low rank"))
    return next((words for limit, words in limits if energy >= limit), "spread over many directions")


_GUIDE = (
    "=== How to read this ===",
    "",
    "F = mean(diag(p) - p p^T) over the rows p of a head's attention, T x T; its eigenvalues make the metrics.",
    "  trace   1 - mean |p|^2, at most 1 - 1/T: near 1 a head looks at many tokens at once, near 0 at one of them",
    "  eigmax  the largest eigenvalue: how much the direction in which attention varies most has",
    "  cond    eigmax / (smallest + 1e-8). The smallest is 0 for every attention, so that cond is eigmax x 1e8:",
    "          \"cond > 1e7\" says eigmax > 0.1, and \"cond > 1e6\" says eigmax > 0.01",
    "  energy  the part of the trace that the r largest eigenvalues have",
    "The tiers take a high trace as a reason to leave a head alone, and a high cond as one to compress it. Whether",
    "that is so for a model can be measured, which --sensitivity does: these metrics tell of attention alone, and",
    "nothing of what errors in keys and values cost.",
)  # fmt: skip
