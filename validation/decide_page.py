"""The page of decide.py, its table and what it says in words."""

import html
from typing import TYPE_CHECKING, Any, List

import report

if TYPE_CHECKING:
    from decide import Candidate, Decision

TITLES = {"both": "keys and values", "keys": "keys alone", "values": "values alone"}
MARKERS = {"both": "o", "keys": "^", "values": "v"}


def verdict(decision: "Decision") -> List[str]:
    """Sentences: the cheapest codecs under the divergence, and what loads soonest over each link."""
    lines = []
    for part, title in TITLES.items():
        found = decision.cheapest(part)
        of = f"Cheapest with a KL of at most {decision.max_kl:g} nats, {title}"
        lines.append(f"{of}: none of these" if found is None else
                     f"{of}: {found.codec}, {found.bits(part):.2f} bits a value, KL {_kl(found, part)}")
    for index, link in enumerate(decision.machine.get("links", [])):
        soonest = decision.soonest(index)
        of = f"Loads {decision.machine['context_tokens']} tokens soonest over {link['bandwidth']}, under that KL"
        if soonest is None:
            lines.append(f"{of}: no codec, {_time(link['uncompressed_context_seconds'])}")
        else:
            saved = soonest.speed["links"][index]["saved_first_token_seconds"]["serial"]
            lines.append(f"{of}: {soonest.codec}, {_time(link['uncompressed_context_seconds'] - saved)} in place of "
                         f"{_time(link['uncompressed_context_seconds'])}")
    floor = decision.about.noise_floor
    if floor is not None:
        lines.append(f"Rounding alone, without a codec, makes a KL of {floor.kl:.1e}: what is below twice that is noise")
    return lines


def table(decision: "Decision") -> str:
    """The figures of all codecs for a terminal, those of fewest bits first."""
    rows = [columns(decision), *(cells(decision, candidate) for candidate in decision.candidates)]
    widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]))]
    return "\n".join("  ".join([*(cell.rjust(width) for cell, width in zip(row[1:], widths[1:])), row[0]]) for row in rows)


def columns(decision: "Decision") -> List[str]:
    """The heads of the rows that cells makes."""
    links = [f"sooner over {link['bandwidth']}" for link in decision.machine.get("links", [])]
    return ["codec", "bits", "ratio", "KL", "KL, keys", "KL, values", "top-1", "encode GB/s", "decode GB/s", "pays below",
            *links]


def cells(decision: "Decision", candidate: "Candidate") -> List[str]:
    """A row of a table, under columns."""
    speed = candidate.speed
    below = speed["pays_below_bytes_per_second"]["both"]["serial"]
    return [candidate.codec, f"{candidate.bits('both'):.2f}", f"{candidate.result.compression_ratio:.2f}",
            *(_kl(candidate, part) for part in TITLES), f"{100 * candidate.change('both').top1_agreement:.2f} %",
            f"{speed['encode_gb_per_s']:.2f}", f"{speed['decode_gb_per_s']:.2f}",
            f"{8 * below / 1e9:.3g} Gbit/s" if below > 0 else "never",
            *(_time(link["saved_first_token_seconds"]["serial"]) for link in speed.get("links", []))]


def page(decision: "Decision") -> str:
    """One page that loads nothing."""
    about, machine = decision.about, decision.machine
    cheapest = decision.cheapest()
    head = "".join(f"<th>{html.escape(name)}</th>" for name in columns(decision))
    rows = "\n".join(
        f'<tr{" class=chosen" if candidate is cheapest else ""}>'
        + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells(decision, candidate)) + "</tr>"
        for candidate in decision.candidates)
    said = "\n".join(f"<p class=said>{html.escape(line)}</p>" for line in verdict(decision))
    threads = f"{machine['threads']} thread{'' if machine['threads'] == 1 else 's'}"
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Codecs for {html.escape(about.model_name)}</title>
<style>body {{ font: 15px system-ui, sans-serif; margin: 2em; max-width: 100em }} svg {{ max-width: 100%; height: auto }}
table {{ border-collapse: collapse; font-size: 13px; white-space: nowrap }} .wide {{ overflow-x: auto }}
th, td {{ padding: .3em .7em; text-align: right; border-bottom: 1px solid #ddd }}
th:first-child, td:first-child {{ text-align: left }} .said {{ margin: .3em 0 }}
.chosen {{ background: #e8f3e8 }}</style></head>
<body><h1>Codecs for {html.escape(about.model_name)}</h1>
{said}
{report.svg_of(_figure(decision))}
<div class="wide"><table><tr>{head}</tr>
{rows}
</table></div>
<p>{about.windows} windows, {about.tokens} tokens scored, baseline perplexity {about.baseline_perplexity:.4f};
{html.escape(report.stack(about))}. KL is that of the next token's distribution, untouched against restored, in nats; ± is
its standard error over windows. Bits count all bytes on disk, in the plot those of the frames for keys and for values.</p>
<p>Speeds are of {threads}, GB/s of uncompressed values, where copying has {machine['memcpy_gb_per_s']:.1f} GB/s. On links
slower than "pays below" storing a cache and loading it takes less time with the codec than without, if it works before and
after the link; a first token that comes sooner by less than 0 comes later. Where both work at once it pays on faster ones,
too, and the first token comes sooner still.</p>
</body></html>
"""


def _figure(decision: "Decision") -> Any:
    # The object interface: no backend of a screen, no global state.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 6), layout="constrained")
    axes = figure.subplots()
    shown = [candidate for candidate in decision.candidates if candidate.change("both").kl > 0]
    for color, (part, title) in enumerate(TITLES.items()):
        points = [(each.bits(part), each.change(part).kl, _stderr(each, part)) for each in shown if each.change(part).kl > 0]
        if points:
            bits, divergence, errors = zip(*points)
            axes.errorbar(bits, divergence, yerr=errors, fmt=MARKERS[part], color=f"C{color}", label=title, markersize=5,
                          elinewidth=1, alpha=1 if part == "both" else 0.6)
    for candidate in shown:
        axes.annotate(candidate.codec, (candidate.bits("both"), candidate.change("both").kl), textcoords="offset points",
                      xytext=(5, 5), fontsize=8)
    if decision.max_kl > 0:
        axes.axhline(decision.max_kl, color="0.3", linewidth=1, linestyle="--", label=f"allowed: {decision.max_kl:g}")
    floor = decision.about.noise_floor
    # One that is far below all points would leave them no room.
    if floor is not None and shown and 30 * floor.kl > min(each.change(part).kl for each in shown for part in TITLES):
        axes.axhline(floor.kl, color="0.6", linewidth=1, linestyle=":", label="rounding without a codec")
    axes.set_yscale("log")
    axes.set(xlabel="bits a value", ylabel="KL divergence, nats per token", title="Without loss: 0, not shown")
    axes.grid(True, color="0.92")
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.1, y=0.1)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="upper right", frameon=False)
    return figure


def _stderr(candidate: "Candidate", part: str) -> float:
    error = candidate.change(part).kl_stderr
    return error if error == error else 0.0  # unknown for a single window


def _kl(candidate: "Candidate", part: str) -> str:
    change = candidate.change(part)
    if change.kl == 0:
        return "0"
    known = f" ± {change.kl_stderr:.0e}" if change.kl_stderr == change.kl_stderr else ""
    return f"{change.kl:.1e}{known}{report.NOISE if candidate.result.is_noise(change) else ''}"


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if abs(seconds) >= 1 else f"{1e3 * seconds:.0f} ms"
