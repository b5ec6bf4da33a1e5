"""Measures the tables of docs/benchmarks.md, "What codecs do to models", and writes them between their marks.

    python measure_table.py [--plot FILE] [--cache FILE]... [--text FILE] MODEL...

A model is measured on what lies in its directory, windows.json (windows of token ids) or eval.txt (a text), else on --text.
Artifacts are learned from the first half of the windows, plain and weighted by what errors cost, and every codec is measured
on the second. A cache is a safetensors file of keys and values.
"""

import argparse
import json
import os
import sys
import tempfile
from dataclasses import dataclass
from typing import Any, Dict, List, Optional, Sequence, Tuple

import report
import torch
from compression_bridge import Spec, find_cli_binary, sweep
from kvcompress.calibration import calibrate, collect_cache, collect_weights
from model_inputs import Window
from results import ValidationResult
from validate_perplexity import DTYPES, Setup, load_model_and_tokenizer, measure, saved_dtype, windows_of

HERE = os.path.dirname(os.path.abspath(__file__))
DOCUMENT = os.path.join(HERE, "..", "docs", "benchmarks.md")
BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"
CODECS = ("lossless", "int8(group=64)", "int4(group=32)", "int4(group=64)", "int4(group=64)|rans",
          "int4(group=64)|zstd(level=1)", "rotated(bits=4)", "kv4", "int3(group=64)", "rotated(bits=3)", "kv3",
          "int2(group=64)", "rotated(bits=2)", "kv2")
BITS = (4, 3, 2)  # of KIVI, and of kv with an artifact
WINDOWS, TEXT_WINDOWS = 96, 48
SPEEDS = ("encode GB/s", "decode GB/s")


def specs(folder: str, artifacts: Dict[str, str]) -> List[Spec]:
    """All that is measured on a model, given a folder for what it needs and the ids of artifacts that lie there, by how they
    were made."""
    return [*map(Spec, CODECS), *(Spec(profile=_kivi(folder, bits), label=f"KIVI, {bits} bits") for bits in BITS),
            *(Spec(f"kv(bits={bits},artifact={artifact})", artifacts=folder, label=f"kv{bits}, {how}")
              for how, artifact in artifacts.items() for bits in BITS)]


@dataclass
class Material:
    """What tables of a model are made of."""

    setup: Setup
    model: Any
    learned: Sequence[Window]
    measured: Sequence[Window]
    folder: str  # of caches and artifacts
    caches: List[str]  # files, of what is learned from
    artifacts: Dict[str, str]  # ids, by how they were made


def prepare(model_name: str, windows: Optional[int], group_dim: int, folder: str, **settings: Any) -> Material:
    """A model, on the CPU, one half of its windows to learn from, the other to measure, and artifacts of the first.

    Args:
        model_name, windows: as of Setup; None: WINDOWS or TEXT_WINDOWS
        group_dim: channels of neighbouring heads that share a basis of the artifact
        folder: for what is written
        settings: further fields of Setup

    Raises:
        ValueError: there is neither a text nor windows, or less than two windows
    """
    setup = _setup(model_name, windows, settings)
    model, tokenizer = load_model_and_tokenizer(model_name, "cpu", setup.dtype)
    found = windows_of(setup, model, tokenizer)
    if len(found) < 2:
        raise ValueError(f"{model_name} has {len(found)} windows: one half is learned from, the other measured")
    learned, measured = found[:len(found) // 2], found[len(found) // 2:]
    caches = [os.path.join(folder, f"cache{number}.safetensors") for number in range(len(learned))]
    for window, path in zip(learned, caches):
        collect_cache(model, [window.ids[:window.prefix_len]], path, dtype=getattr(torch, saved_dtype(setup, model)))
    artifacts = {"calibrated": learn(model, caches, None, group_dim, folder),
                 "calibrated, weighted": learn(model, caches, learned, group_dim, folder)}
    return Material(setup, model, learned, measured, folder, caches, artifacts)


def of_model(model_name: str, windows: Optional[int], group_dim: int, verbose: bool,
             **settings: Any) -> Tuple[List[ValidationResult], Dict[str, Any]]:
    """All codecs on a model, and what -sweep says of a cache of it. Arguments and errors are those of prepare."""
    with tempfile.TemporaryDirectory(prefix="kvcompress-") as folder:
        found = prepare(model_name, windows, group_dim, folder, **settings)
        results = measure(found.model, found.measured, specs(folder, found.artifacts), found.setup, verbose=verbose)
        return results, sweep(found.caches[0])


def model_section(results: Sequence[ValidationResult], speeds: Dict[str, Any]) -> str:
    """One model's results in Markdown."""
    first = results[0]
    head = (f"`{first.model_name}`: {first.windows} windows, {first.tokens} tokens scored, baseline "
            f"{first.baseline_nll:.4f} nats/token (perplexity {first.baseline_perplexity:.4f}); {report.stack(first)}.")
    rows = [[*report.cells(result), *_speeds(speeds.get(result.spec))]
            for result in sorted(results, key=lambda result: -result.bits_per_value)]
    return head + "\n\n" + table((*report.COLUMNS, *SPEEDS), rows)


def cache_section(path: str) -> str:
    """What -sweep says of a cache, in Markdown."""
    found = sweep(path)
    rows = [(figures["bits_per_value"], codec, figures) for codec, figures in found.items() if codec in CODECS]
    return f"`{os.path.basename(path)}`:\n\n" + table(
        ("codec", "bits", "SNR keys", "token SNR keys", "SNR values", *SPEEDS),
        [[codec, f"{bits:.3f}", _decibels(figures["keys"]["snr_db"]), _decibels(figures["keys"]["token_snr_db"]),
          _decibels(figures["values"]["snr_db"]), *_speeds(figures)]
         for bits, codec, figures in sorted(rows, key=lambda row: -row[0])])


def replace(document: str, text: str) -> str:
    """The document with the text between its marks.

    Raises:
        ValueError: the marks are not there
    """
    before, begin, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"no {BEGIN} ... {END} to write between")
    return f"{before}{BEGIN}\n{text}\n{END}{after}"


def _setup(model_name: str, windows: Optional[int], settings: Dict[str, Any]) -> Setup:
    ids, own = os.path.join(model_name, "windows.json"), os.path.join(model_name, "eval.txt")
    if os.path.exists(ids):
        return Setup(model_name, token_windows=ids, windows=windows or WINDOWS,
                     **{**settings, "text": None, "prefix_len": None})
    text = own if os.path.exists(own) else settings.get("text")
    if text is not None:
        return Setup(model_name, windows=windows or TEXT_WINDOWS, **{**settings, "text": text})
    raise ValueError(f"{model_name} has neither windows.json nor eval.txt to measure on: give --text FILE")


def learn(model: Any, caches: Sequence[str], windows: Optional[Sequence[Window]], group_dim: int, folder: str) -> str:
    """The id of an artifact of caches, weighted by what errors in windows cost, where they are given."""
    if windows is None:
        output = os.path.join(folder, f"plain{group_dim}.kvcal")
        return calibrate(caches, output, group_dim=group_dim, program=find_cli_binary()).id
    weights = os.path.join(folder, "weights.safetensors")
    read = min(len(window.ids) - window.prefix_len for window in windows)
    collect_weights(model, [window.ids for window in windows], weights, group_dim=group_dim, read_tokens=read)
    return calibrate(caches, os.path.join(folder, f"weighted{group_dim}.kvcal"), group_dim=group_dim, weights=weights,
                     program=find_cli_binary()).id


def _kivi(folder: str, bits: int) -> str:
    """A profile of KIVI (Liu et al., 2024): keys by channel, values by token, both with a zero point."""
    path = os.path.join(folder, f"kivi{bits}.json")
    with open(path, "w", encoding="utf-8") as file:
        json.dump({"version": 1, "default": f"quant(bits={bits},per=token,symmetric=false)",
                   "rules": [{"kind": "key", "codec": f"quant(bits={bits},per=channel,symmetric=false)"}]}, file)
    return path


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _decibels(value: Optional[float]) -> str:
    return report.decibels(float("inf") if value is None else value)


def _speeds(figures: Optional[Dict[str, Any]]) -> List[str]:
    return ["", ""] if figures is None else [f"{figures[name]:.2f}" for name in ("encode_gb_per_s", "decode_gb_per_s")]


def main(arguments: Optional[Sequence[str]] = None) -> int:
    parser = argparse.ArgumentParser(description="Measure the tables of docs/benchmarks.md.")
    parser.add_argument("models", nargs="+", metavar="MODEL", help="directory, GGUF file or hub name")
    parser.add_argument("--text", metavar="FILE", help="text for models that have none beside them")
    parser.add_argument("--cache", action="append", default=[], metavar="FILE",
                        help="a cache to measure without a model; may be repeated")
    parser.add_argument("--windows", type=int,
                        help=f"at most so many for each model (default {WINDOWS} of token ids, {TEXT_WINDOWS} of a text)")
    parser.add_argument("--prefix-len", type=int, metavar="TOKENS",
                        help="tokens of each cache of a text (default: what fits the model)")
    parser.add_argument("--dtype", choices=DTYPES, default="auto", help="what models compute in (default float32)")
    parser.add_argument("--cache-dtype", choices=DTYPES, default="auto", help="what caches are saved in")
    parser.add_argument("--group-dim", type=int, default=256, choices=(64, 128, 256),
                        help="channels that share a basis of an artifact (default %(default)s)")
    parser.add_argument("--document", default=DOCUMENT, metavar="FILE", help="with the marks (default docs/benchmarks.md)")
    parser.add_argument("--plot", metavar="OUT.png|OUT.html", help="of the first model")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    args = parser.parse_args(arguments)
    # Before the long work: it would be lost without marks to write it between.
    with open(args.document, encoding="utf-8") as file:
        replace(file.read(), "")
    if args.plot:
        report.check_plot_path(args.plot)
    models = [of_model(name, args.windows, args.group_dim, not args.quiet, text=args.text, prefix_len=args.prefix_len,
                       dtype=args.dtype, cache_dtype=args.cache_dtype) for name in args.models]
    sections = [*(model_section(*model) for model in models), *map(cache_section, args.cache)]
    with open(args.document, encoding="utf-8") as file:
        changed = replace(file.read(), "\n\n".join(sections))
    with open(args.document, "w", encoding="utf-8") as file:
        file.write(changed)
    if args.plot:
        report.plot(models[0][0], args.plot)
    return 0


if __name__ == "__main__":
    sys.exit(report.as_program(main))
