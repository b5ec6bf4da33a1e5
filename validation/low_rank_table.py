"""Measures the tables of docs/low-rank.md, "What ranks cost", and writes them between their marks.

    python low_rank_table.py [--windows N] [--text FILE] MODEL...

Ranks, uniform and by the tiers of Fisher information, and codecs, on models as of measure_table.py: everything is learned
from one half of a model's windows, and measured on the other.
"""

import argparse
import os
import sys
import tempfile
from dataclasses import replace
from typing import Any, Dict, List, Optional, Sequence

import measure_table
import report
import torch
from compression_bridge import Spec
from kvcompress import RotaryEmbedding
from kvcompress.calibration import CompressionConfig, HeadConfig, KVSpliceCompressor, PCACompressor, fisher_metrics
from kvcompress.calibration.fisher_report import FisherRun
from kvcompress.calibration.fisher_tiers import config_document
from kvcompress.calibration.low_rank_statistics import observe_model
from kvcompress.calibration.scoring import score_restored
from measure_table import Material
from results import ValidationResult
from validate_perplexity import measure, saved_dtype

DOCUMENT = os.path.join(measure_table.HERE, "..", "docs", "low-rank.md")
RANKS = (48, 32, 16, 8)
CODECS = ("kv4", "kv3", "kv2")
BITS_AND_RANKS = ((4, 48), (4, 32), (2, 32))  # of codecs that code some coefficients alone
# Name, compressor, whether keys are turned back first.
KINDS = (("PCA of keys as cached", PCACompressor, False), ("PCA", PCACompressor, True),
         ("KVSplice", KVSpliceCompressor, True))
FISHER_WINDOW = 256  # tokens
COLUMNS = ("", "bits", "perplexity change", "KL", "KL, keys only", "KL, values only", "top-1")


def of_model(model_name: str, windows: Optional[int], measured: Optional[int], verbose: bool, **settings: Any) -> str:
    """The table of one model, in Markdown, of at most `measured` windows. Other arguments, and errors, are those of
    measure_table.prepare."""
    with tempfile.TemporaryDirectory(prefix="kvcompress-") as folder:
        found = measure_table.prepare(model_name, windows, 256, folder, **settings)
        found.measured = found.measured[:measured]
        dtype = getattr(torch, saved_dtype(found.setup, found.model))
        rows = [torch.tensor(window.ids) for window in found.measured]
        _, noise = score_restored(found.model, rows, [window.prefix_len for window in found.measured], [], dtype)
        specs = [*_codecs(found), *_low_rank(found)]
        results = measure(found.model, found.measured, specs, found.setup, verbose=verbose)
    first = results[0]
    head = (f"`{first.model_name}`: {first.windows} windows, {first.tokens} tokens scored, baseline perplexity "
            f"{first.baseline_perplexity:.3f}; KL of the cache's rounding to {first.cache_dtype} alone {noise:.1e}; "
            f"{report.stack(first)}.")
    lines = [_cells(result) for result in sorted(results, key=lambda result: -result.bits_per_value)]
    return head + "\n\n" + measure_table.table(COLUMNS, lines)


def _cells(result: ValidationResult) -> List[str]:
    cells = dict(zip(report.COLUMNS, report.cells(result)))
    return [cells["codec"], f"{result.bits_per_value:.2f}", *(cells[name] for name in COLUMNS[2:])]


def _codecs(found: Material) -> List[Spec]:
    artifact = found.artifacts["calibrated, weighted"]
    # Ranks are of single heads.
    of_heads = measure_table.learn(found.model, found.caches, None, 64, found.folder)
    calibrated = [(f"{codec}, calibrated", f"kv(bits={codec[2]},artifact={artifact})") for codec in CODECS]
    ranks = [(f"kv{bits} of rank {rank}, calibrated", f"kv(bits={bits},artifact={of_heads},ranks={rank})")
             for bits, rank in BITS_AND_RANKS]
    return [*map(Spec, CODECS),
            *(Spec(codec, artifacts=found.folder, label=label) for label, codec in [*calibrated, *ranks])]


def _low_rank(found: Material) -> List[Spec]:
    """Compressors of all kinds and ranks, in files."""
    specs: List[Spec] = []
    configs = _configs(found)
    rows = [torch.tensor([window.ids[:window.prefix_len]]) for window in found.learned]
    for is_turned in (False, True):
        rotary = RotaryEmbedding.of_config(found.model.config) if is_turned else None
        observed = KVSpliceCompressor(configs[f"rank {RANKS[0]}"], rotary=rotary)
        observed.start_calibration()
        observe_model(found.model, rows, observed)
        for name, kind, turned in KINDS:
            for title, config in configs.items() if turned == is_turned else ():
                compressor = kind(config, rotary=rotary)
                compressor.observe_like(observed)
                compressor.end_calibration()
                path = os.path.join(found.folder, f"{len(specs)}{is_turned}.pt")
                torch.save(compressor.state_dict(), path)
                specs.append(Spec(compressor=path, label=f"{name}, {title}"))
    return specs


def _configs(found: Material) -> Dict[str, CompressionConfig]:
    """Every head at one rank, and each at that of its tier."""
    text = found.model.config
    readers, head_dim = text.num_attention_heads, getattr(text, "head_dim", text.hidden_size // text.num_attention_heads)
    heads = [(layer, head) for layer in range(text.num_hidden_layers) for head in range(text.num_key_value_heads)]
    whole = HeadConfig(True, head_dim, "kvsplice", head_dim, head_dim)
    configs = {f"rank {rank}": CompressionConfig({head: replace(whole, rank=rank) for head in heads}, d_head=head_dim)
               for rank in RANKS}
    windows = [window.ids[:FISHER_WINDOW] for window in found.learned if len(window.ids) >= FISHER_WINDOW]
    length = min(len(window.ids) for window in found.learned)
    metrics = fisher_metrics(found.model, windows or [window.ids[:length] for window in found.learned])
    document = config_document(FisherRun(found.setup.model_name, metrics), target=0.0, d_head=head_dim,
                               queries_per_key=readers // text.num_key_value_heads)
    return {**configs, "ranks of the tiers": CompressionConfig.of_json(document)}


def main(arguments: Optional[Sequence[str]] = None) -> int:
    parser = argparse.ArgumentParser(description="Measure the tables of docs/low-rank.md.")
    parser.add_argument("models", nargs="+", metavar="MODEL", help="directory, GGUF file or hub name")
    parser.add_argument("--text", metavar="FILE", help="text to measure all of them on")
    parser.add_argument("--windows", type=int, help="at most so many for each model, one half to learn from")
    parser.add_argument("--measured", type=int, metavar="N", help="at most so many of the other half (default all)")
    parser.add_argument("--prefix-len", type=int, metavar="TOKENS",
                        help="tokens of each cache of a text (default: what fits the model)")
    parser.add_argument("--document", default=DOCUMENT, metavar="FILE", help="with the marks (default docs/low-rank.md)")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    args = parser.parse_args(arguments)
    # Before the long work: it would be lost without marks to write it between.
    with open(args.document, encoding="utf-8") as file:
        measure_table.replace(file.read(), "")
    sections = [of_model(name, args.windows, args.measured, not args.quiet, text=args.text, prefix_len=args.prefix_len)
                for name in args.models]
    with open(args.document, encoding="utf-8") as file:
        changed = measure_table.replace(file.read(), "\n\n".join(sections))
    with open(args.document, "w", encoding="utf-8") as file:
        file.write(changed)
    return 0


if __name__ == "__main__":
    sys.exit(report.as_program(main))
