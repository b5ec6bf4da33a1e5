"""A compressor of low rank, calibrated on a model and measured: the program kvcompress-calibrate-low-rank.

    kvcompress-calibrate-low-rank --model MODEL --compressor kvsplice --config compression_config.json

It shows the compressor the model's keys and values on a text, and then measures what the model says behind a cache of
another text that was compressed and restored. It writes compressor_NAME.pt, of which `load_compressor` makes the
compressor again, and calibration_results_NAME.json.
"""

import argparse
import functools
import io
import itertools
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from .._errors import InvalidArgument
from .._rotary import RotaryEmbedding
from ._compressor_base import KVCompressorBase
from ._inputs import DTYPES, cache_dtype_of, check_tokens, load_model, texts
from ._program import count, ended, natural
from ._whole_file import whole_file
from .compression_config import CompressionConfig
from .low_rank import KVSpliceCompressor, PCACompressor
from .low_rank_statistics import observe_model
from .low_rank_tuning import fine_tune
from .restored import Restored
from .scoring import Score, score_restored

COMPRESSORS: dict[str, type[KVCompressorBase]] = {"kvsplice": KVSpliceCompressor, "pca": PCACompressor}
# Tokens of a measured text that follow its cache, at most a quarter of it.
_CONTINUATION = 64


@dataclass(frozen=True)
class Measured:
    """A compressor on held-out texts, beside PCA of the same samples where it is another one."""

    score: Score
    pca: Score | None
    noise_kl: float  # of the cache's rounding to its dtype alone
    original_bytes: int  # of all measured caches
    latent_bytes: int


def fit(
    model: Any,
    compressor: KVCompressorBase,
    rows: Sequence[torch.Tensor],
    *,
    batch_size: int = 4,
    show_progress: bool = False,
) -> PCACompressor:
    """Calibrates a compressor on what `model` makes of rows of token ids, and gives PCA of the same samples.
    InvalidArgument, which names the head, for a config that the model does not fit."""
    batches = list(_batches(rows, batch_size))
    compressor.start_calibration()
    observe_model(model, batches, compressor, _bar("calibration", show_progress))
    pca = PCACompressor(compressor.config, rotary=compressor.rotary)
    pca.observe_like(compressor)
    for one in (compressor, pca):
        one.end_calibration()
    return pca


def measure(
    model: Any,
    compressor: KVCompressorBase,
    rows: Sequence[torch.Tensor],
    *,
    pca: PCACompressor | None = None,
    cache_dtype: torch.dtype = torch.float16,
    show_progress: bool = False,
) -> Measured:
    """What the model says behind caches of rows of token ids that were compressed and restored."""
    restorers = [Restored(compressor), *([Restored(pca)] if pca is not None else [])]
    prefixes = [len(row) - min(_CONTINUATION, len(row) // 4) for row in rows]
    bar = _bar("measurement", show_progress)
    scores, noise = score_restored(model, rows, prefixes, restorers, cache_dtype, bar)
    return Measured(
        scores[0], scores[1] if len(scores) > 1 else None, noise, restorers[0].original_bytes, restorers[0].latent_bytes
    )


def run(args: argparse.Namespace) -> None:
    """The program, of its flags."""
    config = CompressionConfig.read(args.config)
    model, tokenizer = load_model(args.model, device=None if args.device == "auto" else args.device, dtype=args.dtype)
    config = by_key_value_head(config, model.config)
    learned, held_out = _both_texts(args, tokenizer)
    check_tokens(model, [*learned, *held_out])
    rotary = None if args.keep_rotation else RotaryEmbedding.of_config(model.config)
    compressor = COMPRESSORS[args.compressor](config, rotary=rotary)
    if args.epochs and not isinstance(compressor, KVSpliceCompressor):
        raise InvalidArgument("--epochs is for kvsplice: the least squared error of pca is found at once")
    begin = time.monotonic()
    pca = fit(model, compressor, learned, batch_size=args.batch_size, show_progress=not args.quiet)
    if args.epochs and isinstance(compressor, KVSpliceCompressor):
        fine_tune(model, compressor, learned, args.epochs, progress=_bar("learning", not args.quiet))
    seconds = time.monotonic() - begin
    dtype = cache_dtype_of(model)
    other = None if args.compressor == "pca" else pca
    measured = measure(model, compressor, held_out, pca=other, cache_dtype=dtype, show_progress=not args.quiet)
    results = results_document(args.model, args.compressor, compressor, measured, dtype)
    results |= {"calibration_time_sec": seconds, "calibration_samples": len(learned)}
    os.makedirs(args.output_dir, exist_ok=True)
    _write(Path(args.output_dir), args.compressor, compressor.state_dict(), results)
    print(report(results))


def _write(folder: Path, name: str, state: dict[str, Any], results: dict[str, Any]) -> None:
    """Both files, or neither."""
    saved = io.BytesIO()  # torch's own errors of files are of other kinds
    torch.save(state, saved)
    with (
        whole_file(folder / f"compressor_{name}.pt") as compressor,
        whole_file(folder / f"calibration_results_{name}.json") as document,
    ):
        compressor.write_bytes(saved.getbuffer())
        document.write_text(json.dumps(_plain(results), indent=2), encoding="utf-8")


def by_key_value_head(config: CompressionConfig, model_config: Any) -> CompressionConfig:
    """A config for the heads that a cache has: one that lists more of them is by query heads, and grouped."""
    text = model_config.get_text_config(decoder=True)
    readers = text.num_attention_heads
    heads = getattr(text, "num_key_value_heads", None) or readers
    if readers > heads and any(heads <= head < readers for _, head in config.heads):
        config = config.grouped(readers // heads)
    config.savings(text.num_hidden_layers, heads)
    return config


def results_document(
    model: str, name: str, compressor: KVCompressorBase, measured: Measured, dtype: torch.dtype
) -> dict[str, Any]:
    score = measured.score
    return {
        "model": model,
        "compressor": name,
        "config": compressor.config.to_json(),
        "baseline_perplexity": score.baseline_perplexity,
        "compressed_perplexity": score.perplexity,
        "perplexity_degradation_pct": 100 * score.delta_perplexity / score.baseline_perplexity,
        "memory_stats": {
            **compressor.memory_stats(dtype=dtype),
            "measured_bytes_original": measured.original_bytes,
            "measured_bytes_compressed": measured.latent_bytes,
        },
        "score": asdict(score),
        "pca_score": None if measured.pca is None else asdict(measured.pca),
        "noise_floor_kl": measured.noise_kl,
        "cache_dtype": str(dtype).removeprefix("torch."),
    }


def report(results: dict[str, Any]) -> str:
    """For a terminal; the last five lines are always these."""
    score, pca = results["score"], results["pca_score"]
    lines = [
        f"Measured on {score['windows']} texts, {score['tokens']} tokens, cache in {results['cache_dtype']}",
        f"Change: {score['delta_perplexity']:+.3f} ± {score['delta_perplexity_stderr']:.3f} of perplexity",
        f"KL: {score['kl']:.2e} ± {score['kl_stderr']:.1e} (noise floor {results['noise_floor_kl']:.1e})",
        f"Top-1 agreement: {100 * score['top1_agreement']:.2f}%",
    ]
    if pca is not None:
        verdict = "beats" if score["kl"] < pca["kl"] else "does not beat"
        lines.append(f"{results['compressor']} {verdict} PCA of the same samples, whose KL is {pca['kl']:.2e}")
    return "\n".join(
        [
            *lines,
            f"Baseline perplexity:    {results['baseline_perplexity']:.2f}",
            f"Compressed perplexity:  {results['compressed_perplexity']:.2f}",
            f"Perplexity degradation: {results['perplexity_degradation_pct']:+.2f}%",
            f"Memory savings:         {results['memory_stats']['memory_savings_pct']:.1f}%",
            f"Calibration time:       {results['calibration_time_sec']:.1f}s",
        ]
    )


def _both_texts(args: argparse.Namespace, tokenizer: Any) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """To learn from, and held out: halves of one file, or the splits of one data set."""
    source = args.calibration_dataset
    held_out = source if args.eval_dataset is None else args.eval_dataset
    is_one_file = source == held_out and os.path.isfile(source)
    first, second = ((0.0, 0.5), (0.5, 1.0)) if is_one_file else ((0.0, 1.0), (0.0, 1.0))
    return (
        texts(source, tokenizer, args.calibration_samples, args.max_length, split="train", part=first),
        texts(held_out, tokenizer, args.eval_samples, args.max_length, split="test", part=second),
    )


def _batches(rows: Sequence[torch.Tensor], size: int) -> Iterable[torch.Tensor]:
    """Of neighbours of one length: nothing is padded."""
    for _, alike in itertools.groupby(rows, key=len):
        row_list = list(alike)
        for first in range(0, len(row_list), size):
            yield torch.stack(row_list[first : first + size])


def _bar(title: str, is_shown: bool) -> Callable[[Iterable[Any]], Iterable[Any]]:
    from tqdm import tqdm

    return functools.partial(tqdm, desc=title, disable=not is_shown)


def _plain(value: Any) -> Any:
    """For JSON, which has no NaN: None."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Calibrate a compressor of low rank on a model, and measure it.")
    add = parser.add_argument
    text = 'a text file, a file "*.json" of token ids, or a data set on the hub (default %(default)s)'
    add("--model", default="gpt2", help="a directory, a GGUF file, or a name on the hub (default %(default)s)")
    add("--compressor", choices=COMPRESSORS, default="kvsplice", help="(default %(default)s)")
    add("--config", required=True, metavar="FILE", help="compression_config.json: which heads get which rank")
    add("--calibration-dataset", default="wikitext", metavar="TEXT", help=text)
    add(
        "--eval-dataset",
        metavar="TEXT",
        help="(default: that to learn from; of one file, the first half is to learn from, the second to measure on)",
    )
    add(
        "--calibration-samples",
        type=count,
        default=1000,
        metavar="N",
        help="texts to learn from (default %(default)s)",
    )
    add("--eval-samples", type=count, default=100, metavar="N", help="texts to measure on (default %(default)s)")
    add("--max-length", type=count, default=512, metavar="TOKENS", help="of each text (default %(default)s)")
    add("--batch-size", type=count, default=4, metavar="N", help="texts that are read at once (default %(default)s)")
    add(
        "--epochs",
        type=natural,
        default=0,
        metavar="N",
        help="of kvsplice: how often it learns on from what the model says of each text, slowly (default %(default)s)",
    )
    add("--output-dir", default="compression_results", help="(default %(default)s)")
    add("--device", default="auto", help="auto, cpu, cuda, ... (default %(default)s)")
    add("--dtype", choices=DTYPES, default="auto", help="that the model computes in (default auto: float32 on a CPU)")
    add("--keep-rotation", action="store_true", help="keys are projected as caches hold them, not turned back first")
    add("--quiet", action="store_true", help="no progress")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """As _program.ended."""
    return ended(run, _arguments(arguments))
