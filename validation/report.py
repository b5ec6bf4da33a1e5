"""Results for people: a line, a paragraph, a plot."""

import html
import io
import math
import os
import subprocess
import sys
from typing import Any, Callable, Optional, Sequence

from results import Change, ValidationResult

NOISE = " (noise)"  # follows a divergence that is


def decibels(value: float) -> str:
    return "no loss" if math.isinf(value) else f"{value:.1f} dB"


def as_program(main: Callable[[], int]) -> int:
    """A program's exit code: errors that its user can do something about are one line, as kv-compress writes them, and 1."""
    try:
        return main()
    except (OSError, ValueError, TypeError, ImportError, subprocess.CalledProcessError) as error:
        said = f"Error: {error}"
    # Not above: a progress bar is cleared when the error, which holds its loop, is gone.
    print(said, file=sys.stderr)
    return 1


def line(result: ValidationResult) -> str:
    """One line for --quiet."""
    verdict = "PASSED" if result.passed else "FAILED"
    label = " (synthetic)" if result.synthetic else ""
    if not result.perplexity_measured:
        return f"{verdict}{label} {result.spec}: perplexity not measured, ratio {result.compression_ratio:.3f}"
    return (f"{verdict}{label} {result.spec}: perplexity {result.baseline_perplexity:.4f} -> "
            f"{result.compressed_perplexity:.4f}, change {_with_error(result.delta, result.delta_stderr)}, "
            f"ratio {result.compression_ratio:.3f}")


def paragraph(result: ValidationResult) -> str:
    """Everything that was found, for a terminal."""
    rows = [("Codec", result.spec), ("Model", result.model_name)]
    if result.synthetic:
        rows.append(("Data", "synthetic: shows that the pipeline works, nothing about a trained model"))
    if result.perplexity_measured:
        rows += [
            ("Windows", f"{result.windows}, {result.tokens} tokens scored, cache in {result.cache_dtype}"),
            ("Baseline PPL", f"{result.baseline_perplexity:.4f} ({result.baseline_nll:.4f} nats/token)"),
            ("Compressed PPL", f"{result.compressed_perplexity:.4f}"),
            ("Change", f"{_with_error(result.delta, result.delta_stderr)} ({result.delta_percent:+.3f} %)"),
        ]
        for title, change in (("Keys and values", result.change), ("Keys only", result.keys_only),
                              ("Values only", result.values_only)):
            if change is not None:
                rows.append((title, _change(change) + (NOISE if result.is_noise(change) else "")))
        if result.noise_floor is not None:
            rows.append(("Noise floor", f"{_change(result.noise_floor)}, of {result.versions['model_dtype']} alone"))
    else:
        rows.append(("Perplexity", "not measured: no model ran"))
    rows += [
        ("Ratio", f"{result.compression_ratio:.3f}x, bytes on disk: {result.bits_per_value:.3f} bits a value"),
        ("RMSE", f"{result.rmse:.6f}"),
        ("SNR", decibels(result.snr_db)),
        ("Cosine similarity", f"{result.cosine_similarity:.6f}"),
    ]
    if result.perplexity_measured:
        rows.append(("SNR keys, values", f"{decibels(result.snr_keys_db)}, {decibels(result.snr_values_db)}"))
        rows.append(("Token SNR keys", decibels(result.token_snr_keys_db)))
        verdict = f"the change is {'below' if result.passed else 'not below'} the threshold of {result.threshold}"
    else:
        verdict = f"kv-compress's quality limits are {'kept' if result.passed else 'missed'}"
    rows.append(("Result", f"{'PASSED' if result.passed else 'FAILED'}: {verdict}"))
    return "\n".join(f"{name + ':':<19}{text}" for name, text in rows)


def noise_warning(result: ValidationResult) -> Optional[str]:
    """A sentence where the divergence drowns in the arithmetic's own rounding."""
    change, floor = result.change, result.noise_floor
    if change is None or floor is None or not result.is_noise(change):
        return None
    computed = result.versions["model_dtype"]
    remedy = "" if computed == "float32" else "; measure it with --dtype float32"
    return (f"{result.spec}: its KL of {change.kl:.1e} is less than twice the {floor.kl:.1e} that rounding in {computed} "
            f"makes without a codec{remedy}")


def check_plot_path(path: str, flag: str = "--sweep", kinds: Sequence[str] = (".png", ".html")) -> None:
    """Before a long measurement: whether the plot that a flag asks for can be drawn.

    Raises:
        ValueError: it is to be of another kind
        FileNotFoundError: it would be in a folder that is not there
        ImportError: no matplotlib
    """
    if os.path.splitext(path)[1] not in kinds:
        raise ValueError(f"{flag} writes a {' or a '.join(kinds)} file, not {path}")
    folder = os.path.dirname(path)
    if folder and not os.path.isdir(folder):
        raise FileNotFoundError(f"no such folder: {folder}")
    try:
        import matplotlib  # noqa: F401 - asked for early
    except ImportError as error:
        raise ImportError(f"{flag} draws with matplotlib, which is not installed: pip install matplotlib") from error


def plot(results: Sequence[ValidationResult], path: str) -> None:
    """Perplexity change and KL divergence against size, as a picture, or as a page with the figures below it."""
    figure = _figure(results)
    if path.endswith(".png"):
        figure.savefig(path, dpi=150, bbox_inches="tight")
        return
    with open(path, "w", encoding="utf-8") as file:
        file.write(_page(results, svg_of(figure)))


def svg_of(figure: Any) -> str:
    """A figure of matplotlib as an element of a page."""
    drawing = io.StringIO()
    figure.savefig(drawing, format="svg", bbox_inches="tight")
    svg = drawing.getvalue()
    return svg[svg.index("<svg"):]


def _figure(results: Sequence[ValidationResult]) -> Any:
    # The object interface: no backend of a screen, no global state.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5.2), layout="constrained")
    change, divergence = figure.subplots(1, 2, sharex=True)
    ordered = sorted(results, key=lambda result: result.bits_per_value)
    bits = [result.bits_per_value for result in ordered]
    percent = [result.delta_percent for result in ordered]
    errors = [_percent_stderr(result.change) for result in ordered]
    change.axhline(0, color="0.6", linewidth=1)
    change.errorbar(bits, percent, yerr=errors, fmt="o", color="C0", ecolor="C0", capsize=3, markersize=5)
    change.set(xlabel="bits a value, bytes on disk", ylabel="perplexity change, %",
               title="Change with its standard error")
    change.set_yscale("symlog", linthresh=1)  # the worst of a sweep is a thousand times the best
    for marker, color, title, name in (("o", "C0", "keys and values", "change"), ("^", "C1", "keys only", "keys_only"),
                                       ("v", "C2", "values only", "values_only")):
        shown = [(result.bits_per_value, kl) for result in ordered if (kl := _kl(getattr(result, name))) > 0]
        if shown:
            divergence.plot(*zip(*shown), marker, color=color, label=title, markersize=5)
    if divergence.lines:
        divergence.set_yscale("log")
        divergence.legend(loc="upper right", frameon=False)
    divergence.set(xlabel="bits a value, bytes on disk", ylabel="KL divergence, nats per token",
                   title="How far predictions move (without loss: 0, not shown)")
    # Names would cover each other where specs are close: numbers do not, and a list beside the axes explains them.
    for number, (size, height, result) in enumerate(zip(bits, percent, ordered), 1):
        for axes, y in ((change, height), (divergence, _kl(result.change))):
            if axes is change or y > 0:
                axes.annotate(str(number), (size, y), textcoords="offset points", xytext=(-4, 4), ha="right", fontsize=8)
    names = [f"{number:\u2007>2} {result.spec}" for number, result in enumerate(ordered, 1)]
    figure.text(1.01, 0.5, "\n".join(names), fontsize=9, va="center", linespacing=1.5)
    for axes in (change, divergence):
        axes.grid(True, color="0.92")
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(x=0.12, y=0.12)
    first = ordered[0]
    figure.suptitle(f"{first.model_name}: {first.windows} windows, {first.tokens} tokens scored, cache in "
                    f"{first.cache_dtype}, baseline perplexity {first.baseline_perplexity:.3f}", fontsize=11)
    return figure


def _percent_stderr(change: Optional[Change]) -> float:
    """To first order. The error of the absolute change is larger: windows differ in their perplexity, too."""
    return math.nan if change is None else 100 * math.exp(change.delta_nll) * change.delta_nll_stderr


def _kl(change: Optional[Change]) -> float:
    return change.kl if change is not None else 0.0


def _page(results: Sequence[ValidationResult], svg: str) -> str:
    rows = "\n".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells(result)) + "</tr>" for result in results)
    head = "".join(f"<th>{name}</th>" for name in COLUMNS)
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Perplexity against size</title>
<style>body {{ font: 15px system-ui, sans-serif; margin: 2em; max-width: 75em }} svg {{ max-width: 100%; height: auto }}
table {{ border-collapse: collapse; font-size: 13px; white-space: nowrap }}
th, td {{ padding: .3em .7em; text-align: right; border-bottom: 1px solid #ddd }}
th:first-child, td:first-child {{ text-align: left }}</style></head>
<body>{svg}
<table><tr>{head}</tr>
{rows}
</table>
<p>{html.escape(stack(results[0]))}</p></body></html>
"""


COLUMNS = ("codec", "bits", "SNR keys", "token SNR keys", "SNR values", "perplexity change", "nats per token", "KL",
           "KL, keys only", "KL, values only", "top-1")


def cells(result: ValidationResult) -> Sequence[str]:
    """A row of a table, under COLUMNS."""
    change = result.change
    assert change is not None, "only measured results make rows"
    if change.delta_nll == 0 and change.kl == 0:
        delta, nats = "0", "0"
    else:
        delta = f"{_with_error(change.delta_perplexity, change.delta_perplexity_stderr)} ({result.delta_percent:+.3f} %)"
        nats = _with_error(change.delta_nll, change.delta_nll_stderr, 5)
    return (result.spec, f"{result.bits_per_value:.3f}", decibels(result.snr_keys_db), decibels(result.token_snr_keys_db),
            decibels(result.snr_values_db), delta, nats,
            *(_divergence(result, part) for part in (change, result.keys_only, result.values_only)),
            f"{100 * change.top1_agreement:.2f} %")


def _divergence(result: ValidationResult, change: Optional[Change]) -> str:
    if change is None:
        return ""
    return f"{change.kl:.1e}{NOISE if result.is_noise(change) else ''}" if change.kl != 0 else "0"


def stack(result: ValidationResult) -> str:
    """What the figures were made with."""
    versions = result.versions
    floor = "" if result.noise_floor is None else f"; noise floor KL {result.noise_floor.kl:.1e}"
    return (f"torch {versions['torch']}, transformers {versions['transformers']}, model in {versions['model_dtype']} on "
            f"{versions['device']}, cache saved in {result.cache_dtype}{floor}")


def _change(change: Change) -> str:
    return (f"{_with_error(change.delta_nll, change.delta_nll_stderr, 5)} nats/token, KL {change.kl:.1e}, "
            f"top-1 agreement {100 * change.top1_agreement:.2f} %")


def _with_error(value: float, error: float, digits: int = 4) -> str:
    known = "" if math.isnan(error) else f" ± {error:.{digits}f}"
    return f"{value:+.{digits}f}{known}"
