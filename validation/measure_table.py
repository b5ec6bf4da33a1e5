"""Measures the table of docs/benchmarks.md, "What codecs do to models", and writes it between its marks.

    python measure_table.py [--plot FILE] MODEL_DIRECTORY...

A directory holds a model and either windows.json (windows of token ids) or eval.txt (a text).
"""

import argparse
import os
import sys
from typing import Any, List, Optional, Sequence

import report
from compression_bridge import Spec
from results import ValidationResult
from validate_perplexity import CACHE_DTYPES, Setup, validate

HERE = os.path.dirname(os.path.abspath(__file__))
DOCUMENT = os.path.join(HERE, "..", "docs", "benchmarks.md")
BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"
SPECS = tuple(Spec(codec) for codec in (
    "lossless", "int8(group=64)", "int4(group=32)", "int4(group=64)", "int4(group=64)|rans", "int4(group=64)|zstd(level=1)",
    "quant(bits=4,per=channel,symmetric=false)", "rotated(bits=4)", "kv4", "int3(group=64)",
    "quant(bits=3,per=channel,symmetric=false)", "rotated(bits=3)", "kv3", "int2(group=64)",
    "quant(bits=2,per=channel,symmetric=false)", "rotated(bits=2)", "kv2"))


def measure(folder: str, windows: int, verbose: bool, **settings: Any) -> List[ValidationResult]:
    """All SPECS on the model of a directory, on the CPU.

    Args:
        settings: further fields of Setup

    Raises:
        ValueError: the directory has neither windows nor a text
    """
    ids, text = os.path.join(folder, "windows.json"), os.path.join(folder, "eval.txt")
    if os.path.exists(ids):
        setup = Setup(folder, token_windows=ids, windows=windows, **settings)
    elif os.path.exists(text):
        setup = Setup(folder, text=text, windows=windows, **settings)
    else:
        raise ValueError(f"{folder} has neither windows.json nor eval.txt to measure on")
    return validate(SPECS, setup, "cpu", verbose=verbose)


def section(results: Sequence[ValidationResult]) -> str:
    """One model's results in Markdown."""
    first = results[0]
    head = (f"`{first.model_name}`: {first.windows} windows, {first.tokens} tokens scored, baseline "
            f"{first.baseline_nll:.4f} nats/token (perplexity {first.baseline_perplexity:.4f}); {report.stack(first)}.")
    rows = [report.COLUMNS, ["---"] * len(report.COLUMNS), *(report.cells(result) for result in results)]
    return head + "\n\n" + "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)


def replace(readme: str, text: str) -> str:
    """The README with the text between its marks.

    Raises:
        ValueError: the marks are not there
    """
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"no {BEGIN} ... {END} to write between")
    return f"{before}{BEGIN}\n{text}\n{END}{after}"


def main(arguments: Optional[Sequence[str]] = None) -> int:
    parser = argparse.ArgumentParser(description="Measure the table of docs/benchmarks.md.")
    parser.add_argument("models", nargs="+", metavar="MODEL_DIRECTORY")
    parser.add_argument("--windows", type=int, default=96, help="at most so many for each model (default %(default)s)")
    parser.add_argument("--prefix-len", type=int, metavar="TOKENS", help="tokens of each cache (default: what fits the model)")
    parser.add_argument("--cache-dtype", choices=CACHE_DTYPES, default="auto", help="what caches are saved in")
    parser.add_argument("--document", default=DOCUMENT, metavar="FILE", help="with the marks (default docs/benchmarks.md)")
    parser.add_argument("--plot", metavar="OUT.png|OUT.html", help="of the first model")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    args = parser.parse_args(arguments)
    # Before the long work: it would be lost without marks to write it between.
    with open(args.document, encoding="utf-8") as file:
        replace(file.read(), "")
    if args.plot:
        report.check_plot_path(args.plot)
    results = [measure(folder, args.windows, not args.quiet, prefix_len=args.prefix_len, cache_dtype=args.cache_dtype)
               for folder in args.models]
    with open(args.document, encoding="utf-8") as file:
        changed = replace(file.read(), "\n\n".join(map(section, results)))
    with open(args.document, "w", encoding="utf-8") as file:
        file.write(changed)
    if args.plot:
        report.plot(results[0], args.plot)
    return 0


if __name__ == "__main__":
    sys.exit(report.as_program(main))
