"""Measures the table of README.md, and writes it between its marks.

    python measure_table.py MODEL_DIRECTORY...

A directory holds a model and either windows.json (windows of token ids) or eval.txt (a text).
"""

import argparse
import os
import sys
from typing import List, Optional, Sequence

import report
from compression_bridge import Spec
from results import ValidationResult
from validate_perplexity import Setup, validate

HERE = os.path.dirname(os.path.abspath(__file__))
BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"
SPECS = (Spec(group_size=32), Spec(group_size=64), Spec(group_size=128), Spec("int8(group=64)"), Spec("lossless"),
         Spec(profile=os.path.join(HERE, "..", "deploy", "profiles", "mixed-n2-q10.json")))


def measure(folder: str, windows: int, verbose: bool) -> List[ValidationResult]:
    """All SPECS on the model of a directory, on the CPU.

    Raises:
        ValueError: the directory has neither windows nor a text
    """
    ids, text = os.path.join(folder, "windows.json"), os.path.join(folder, "eval.txt")
    if os.path.exists(ids):
        setup = Setup(folder, token_windows=ids, windows=windows)
    elif os.path.exists(text):
        setup = Setup(folder, text=text, windows=windows)
    else:
        raise ValueError(f"{folder} has neither windows.json nor eval.txt to measure on")
    return validate(SPECS, setup, "cpu", verbose=verbose)


def section(results: Sequence[ValidationResult]) -> str:
    """One model's results in Markdown."""
    first = results[0]
    head = (f"`{first.model_name}`: {first.windows} windows, {first.tokens} tokens scored, baseline "
            f"{first.baseline_nll:.4f} nats/token (perplexity {first.baseline_perplexity:.4f}); {report.stack(first)}.")
    rows = [report.COLUMNS, ["---"] * len(report.COLUMNS), *(report.cells(result) for result in results)]
    return head + "\n\n" + "\n".join("| " + " | ".join(row).replace("|rans", "\\|rans") + " |" for row in rows)


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
    parser = argparse.ArgumentParser(description="Measure the table of README.md.")
    parser.add_argument("models", nargs="+", metavar="MODEL_DIRECTORY")
    parser.add_argument("--windows", type=int, default=96, help="at most so many for each model (default %(default)s)")
    parser.add_argument("--readme", default=os.path.join(HERE, "README.md"), metavar="FILE")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    args = parser.parse_args(arguments)
    # Before the long work: it would be lost without marks to write it between.
    with open(args.readme, encoding="utf-8") as file:
        replace(file.read(), "")
    sections = [section(measure(folder, args.windows, not args.quiet)) for folder in args.models]
    with open(args.readme, encoding="utf-8") as file:
        changed = replace(file.read(), "\n\n".join(sections))
    with open(args.readme, "w", encoding="utf-8") as file:
        file.write(changed)
    return 0


if __name__ == "__main__":
    sys.exit(report.as_program(main))
