"""Measures what a compressed KV cache does to a model's perplexity, and compute_perplexity of a whole text.

    python validate_perplexity.py --quick-test
    python validate_perplexity.py --model DIR --text FILE --codec "int4(group=64)"
"""

import argparse
import json
import math
import os
import sys
import tempfile
from dataclasses import dataclass, fields
from typing import Any, Dict, Iterable, List, Optional, Sequence

import report
from compression_bridge import Spec, compress_kv_cache, decompress_kv_cache
from model_inputs import (
    DEFAULT_MODEL,
    LONGEST_WINDOW,
    Window,
    check_not_training,
    load_model_and_tokenizer,
    read_text,
    windows_from_json,
    windows_from_text,
)
from results import Change, ValidationResult

__all__ = ["Change", "Setup", "ValidationResult", "compute_perplexity", "load_model_and_tokenizer", "measure",
           "run_full_validation", "run_quick_test", "saved_dtype", "setup_of", "validate", "windows_of"]

# For --sweep, from mild to severe.
SWEEP = ("lossless", "int8(group=64)", "near-lossless", "mixed", "int6(group=64)", "int5(group=64)", "int4(group=32)",
         "int4(group=64)", "int4(group=128)", "kv4", "rotated(bits=4)", "int3(group=64)", "kv3", "kv2")

DTYPES = ("auto", "float16", "bfloat16", "float32")


@dataclass
class Setup:
    """What is measured, besides the specs."""

    model_name: str = DEFAULT_MODEL  # a hub name, a local directory or a GGUF file
    dtype: str = "auto"  # what the model computes in; "auto": float32 on a CPU, else the type of its weights
    text: Optional[str] = None  # a text file; None: the data set
    token_windows: Optional[str] = None  # a JSON file of token ids in place of a text
    dataset_name: str = "wikitext"
    dataset_config: str = "wikitext-2-raw-v1"
    split: str = "test"
    windows: int = 32  # at most; the data may hold fewer
    prefix_len: Optional[int] = None  # tokens of each cache
    continuation_len: int = 64  # tokens after it, for windows of a text
    cache_dtype: str = "auto"  # "float16", "bfloat16", "float32"; "auto": the type of the weights, float16 for float32


def compute_perplexity(
    model: Any,
    tokenizer: Any,
    dataset_name: str = "wikitext",
    dataset_config: str = "wikitext-2-raw-v1",
    split: str = "test",
    stride: int = 512,
    max_samples: Optional[int] = None,
    verbose: bool = True,
    max_length: Optional[int] = None,
) -> float:
    """Perplexity of a text by a sliding window: each token is scored once, with at least max_length - stride tokens of
    context behind the first window. All tokens weigh alike, however many a window scores.

    Args:
        model: HuggingFace model
        tokenizer: Corresponding tokenizer
        dataset_name: Dataset name, or the path of a text file
        dataset_config: Dataset configuration
        split: Dataset split
        stride: Tokens from one window to the next
        max_samples: Limit number of windows (for quick testing)
        verbose: Show progress
        max_length: Tokens of a window; the model's context, at most 2048, if None

    Returns:
        Perplexity score

    Raises:
        ValueError: stride is not below max_length, the text has fewer than two tokens, or the model is in training mode
        ImportError: a data set without the package `datasets`
    """
    import torch

    check_not_training(model)
    if max_length is None:
        max_length = min(getattr(model.config, "max_position_embeddings", None) or LONGEST_WINDOW, 2048)
    if not 0 < stride < max_length:
        raise ValueError(f"the stride must be between 1 and {max_length - 1}, below the window's {max_length} tokens, "
                         f"not {stride}")
    ids = torch.tensor(tokenizer(read_text(dataset_name, dataset_config, split))["input_ids"], dtype=torch.long)
    if len(ids) < 2:
        raise ValueError(f"{dataset_name} has {len(ids)} tokens: nothing can be predicted")
    # The first window that reaches the end is the last.
    begins = list(range(0, max(len(ids) - max_length, 0) + stride, stride))[:max_samples]
    device = next(model.parameters()).device
    total, tokens, scored_until = 0.0, 0, 0
    for begin in _progress(begins, verbose, "perplexity"):
        end = min(begin + max_length, len(ids))
        window = ids[begin:end].to(device)
        labels = window.clone()
        labels[:scored_until - begin] = -100  # context only
        with torch.no_grad():
            logits = model(input_ids=window[None], use_cache=False).logits[0, :-1].float()
        total += torch.nn.functional.cross_entropy(logits, labels[1:], ignore_index=-100, reduction="sum").item()
        tokens += int((labels[1:] != -100).sum())
        scored_until = end
    return math.exp(total / tokens)


def run_full_validation(
    device: Optional[str] = None,
    threshold: float = 0.5,
    verbose: bool = True,
    *,
    codec: Optional[str] = None,
    profile: Optional[str] = None,
    group_size: int = 64,
    **setup: Any,
) -> ValidationResult:
    """Perplexity on the untouched and on the restored cache of the same windows, measured (scoring.py says how).

    Args:
        device: Target device (auto-detected if None)
        threshold: Maximum acceptable perplexity delta
        verbose: Show progress
        codec, profile, group_size: as compress_kv_cache
        **setup: fields of Setup, for example model_name="DIR", text="FILE", windows=64

    Returns:
        ValidationResult

    Raises:
        ValueError: the windows, the text and the model do not fit together
        FileNotFoundError, subprocess.CalledProcessError: as compress_kv_cache
    """
    return validate([Spec(codec, profile, group_size)], Setup(**setup), device, threshold, verbose)[0]


def validate(specs: Sequence[Spec], setup: Setup, device: Optional[str] = None, threshold: float = 0.5,
             verbose: bool = True) -> List[ValidationResult]:
    """run_full_validation of several specs over the same windows; the model reads each prefix once."""
    if not verbose:
        _silence_transformers()
    model, tokenizer = load_model_and_tokenizer(setup.model_name, device, setup.dtype)
    return measure(model, windows_of(setup, model, tokenizer), specs, setup, threshold, verbose)


def windows_of(setup: Setup, model: Any, tokenizer: Any) -> List[Window]:
    """The windows that a setup asks for.

    Raises:
        ValueError: the windows, the text and the model do not fit together
        FileNotFoundError: no such text
    """
    if setup.token_windows is not None:
        return windows_from_json(setup.token_windows, setup.windows, setup.prefix_len)
    if setup.text is not None and not os.path.isfile(setup.text):
        raise FileNotFoundError(f"no such text: {setup.text}")
    text = read_text(setup.text or setup.dataset_name, setup.dataset_config, setup.split)
    return windows_from_text(text, tokenizer, model, setup.windows, setup.prefix_len, setup.continuation_len)


def run_quick_test(verbose: bool = True, threshold: float = 0.5, codec: Optional[str] = None,
                   profile: Optional[str] = None, group_size: int = 64) -> ValidationResult:
    """The whole pipeline on synthetic data: no download, no GPU. Says whether things work, nothing about a real model.

    With torch and transformers: a small Llama with random weights, whose perplexity is measured. Without them: a random
    cache through kv-compress and back; the perplexities are NaN, and `passed` is kv-compress's own quality limits.

    Returns:
        ValidationResult with synthetic=True
    """
    spec = Spec(codec, profile, group_size)
    try:
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM
    except ImportError:
        return _quick_test_without_model(spec, threshold, verbose)
    if not verbose:
        _silence_transformers()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(
            vocab_size=256, hidden_size=256, intermediate_size=512, num_hidden_layers=4, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=256)).eval()
        windows = [Window(ids.tolist(), 96) for ids in torch.randint(0, 256, (8, 160))]
    result = measure(model, windows, [spec], Setup(model_name="random weights"), threshold, verbose)[0]
    result.synthetic = True
    return result


def saved_dtype(setup: Setup, model: Any) -> str:
    """The name of the dtype that a setup saves the model's caches in."""
    if setup.cache_dtype != "auto":
        return setup.cache_dtype
    # The configuration has the type of the weights also where the model computes in another.
    stored = getattr(model.config, "dtype" if hasattr(model.config, "dtype") else "torch_dtype", None) or model.dtype
    name = str(stored).removeprefix("torch.")
    return "float16" if name == "float32" else name


def measure(model: Any, windows: Sequence[Window], specs: Sequence[Spec], setup: Setup, threshold: float = 0.5,
            verbose: bool = True) -> List[ValidationResult]:
    """validate with a model and windows that are at hand already; of the setup, model_name and cache_dtype count."""
    import scoring
    import torch
    import transformers

    name = saved_dtype(setup, model)
    scores = scoring.score(model, windows, specs, getattr(torch, name),
                           lambda windows: _progress(windows, verbose, "windows"))
    versions = {"torch": torch.__version__, "transformers": transformers.__version__,
                "model_dtype": str(model.dtype).removeprefix("torch."), "device": str(next(model.parameters()).device)}
    results = []
    for score in scores:
        change = score.changes["both"]
        quality = [[getattr(metrics, field) for metrics in score.metrics] for field in
                   ("rmse", "snr_db", "cosine_similarity")]
        rmse, snr_db, cosine = (sum(values) / len(values) for values in quality)
        results.append(ValidationResult(
            baseline_perplexity=score.baseline_perplexity, compressed_perplexity=change.perplexity,
            delta=change.delta_perplexity, delta_percent=100 * change.delta_perplexity / score.baseline_perplexity,
            compression_ratio=score.ratio, rmse=rmse, snr_db=snr_db, cosine_similarity=cosine,
            passed=change.delta_perplexity < threshold, threshold=threshold,
            delta_stderr=change.delta_perplexity_stderr, change=change, keys_only=score.changes["keys"],
            values_only=score.changes["values"], noise_floor=score.noise_floor,
            snr_keys_db=score.snr_keys_db, snr_values_db=score.snr_values_db, token_snr_keys_db=score.token_snr_keys_db,
            baseline_nll=score.baseline_nll, tokens=score.tokens, windows=score.windows, spec=score.spec,
            model_name=os.path.basename(setup.model_name.rstrip("/")), cache_dtype=name, versions=versions))
    return results


def _quick_test_without_model(spec: Spec, threshold: float, verbose: bool) -> ValidationResult:
    import numpy as np
    from safetensors.numpy import save_file

    if verbose:
        print("torch or transformers is not installed: a random cache goes through kv-compress, no model runs")
    random = np.random.default_rng(0)
    tensors = {f"layer_{layer}_{kind}": (0.25 * random.standard_normal((1, 4, 128, 64))).astype(np.float16)
               for layer in range(4) for kind in ("key", "value")}
    with tempfile.TemporaryDirectory(prefix="kvcompress-") as folder:
        plain, packed, back = (os.path.join(folder, name) for name in ("plain", "packed", "back"))
        save_file(tensors, plain)
        metrics = compress_kv_cache(plain, packed, spec.group_size, codec=spec.codec, profile=spec.profile)
        decompress_kv_cache(packed, back)
        ratio = metrics.original_size_bytes / os.path.getsize(packed)
    return ValidationResult(
        baseline_perplexity=math.nan, compressed_perplexity=math.nan, delta=math.nan, delta_percent=math.nan,
        compression_ratio=ratio, rmse=metrics.rmse, snr_db=metrics.snr_db, cosine_similarity=metrics.cosine_similarity,
        passed=metrics.passed, threshold=threshold, spec=str(spec), model_name="none", cache_dtype="float16",
        perplexity_measured=False, synthetic=True)


def _progress(items: Iterable[Any], verbose: bool, title: str) -> Iterable[Any]:
    if not verbose:
        return items
    from tqdm import tqdm

    return tqdm(items, desc=title, leave=False)


def _silence_transformers() -> None:
    from transformers.utils import logging

    logging.set_verbosity_error()
    # Not in all versions.
    getattr(logging, "disable_progress_bar", lambda: None)()


def add_setup_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of what is measured, of which setup_of makes a Setup."""
    defaults = Setup()
    add = parser.add_argument
    # The fields of Setup have no default here: setup_of tells them apart by that.
    model = parser.add_mutually_exclusive_group()
    model.add_argument("--model", dest="model_name", metavar="NAME",
                       help=f"hub name or local directory (default {defaults.model_name})")
    model.add_argument("--gguf", dest="model_name", metavar="FILE", help="model in a GGUF file")
    add("--dtype", choices=DTYPES,
        help="type that the model computes in (default auto: float32 on a CPU, else that of its weights)")
    add("--text", metavar="FILE", help="text to measure on, in place of the data set WikiText-2")
    add("--token-windows", metavar="FILE", help='JSON {"prefix_len": P, "windows": [[ids], ...]} in place of a text')
    add("--windows", type=int, help=f"at most so many windows (default {defaults.windows})")
    add("--prefix-len", type=int, metavar="TOKENS", help="tokens of each cache (default: what fits the model)")
    add("--continuation-len", type=int, metavar="TOKENS",
        help=f"tokens read after the prefix (default {defaults.continuation_len})")
    add("--cache-dtype", choices=DTYPES,
        help="type that the cache is saved in (default auto: that of the weights, float16 for float32)")


def setup_of(args: argparse.Namespace) -> Setup:
    """What the flags of add_setup_flags say."""
    return Setup(**_given(args))


def _arguments(arguments: Optional[Sequence[str]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure the perplexity of a model on a compressed KV cache.")
    add = parser.add_argument
    add("--quick-test", action="store_true", help="synthetic data: no model, no download")
    add("--cpu", action="store_true", help="force CPU mode")
    add("--threshold", type=float, default=0.5, help="maximum acceptable perplexity delta (default %(default)s)")
    add("--quiet", action="store_true", help="minimal output: one line for each spec")
    add_setup_flags(parser)
    add("--codec", action="append", default=[], metavar="SPEC", help='for example "int8(group=64)"; may be repeated')
    add("--profile", action="append", default=[], metavar="FILE", help="profile of kv-compress; may be repeated")
    add("--artifacts", metavar="DIR", help="directory of the artifacts that codecs and profiles name")
    add("--low-rank", action="append", default=[], metavar="FILE.pt",
        help="compressor of low rank, of scripts/calibrate_kv_compressor.py; may be repeated")
    add("--group-size", type=int, default=64, help="of INT4, where none of them is given (default %(default)s)")
    add("--json", action="store_true", help="print the result as JSON: an object, or a list for several specs")
    add("--sweep", metavar="OUT.png|OUT.html", help="measure several specs and plot perplexity against size")
    parsed = parser.parse_args(arguments)
    if parsed.windows is not None and parsed.windows < 1:
        parser.error("--windows must be at least 1")
    if parsed.quick_test and (parsed.sweep or parsed.low_rank or len(parsed.codec) + len(parsed.profile) > 1):
        parser.error("--quick-test takes one spec")
    for name in _given(parsed):
        if parsed.quick_test or (parsed.token_windows is not None and name in ("text", "continuation_len")):
            parser.error(f"{'--quick-test' if parsed.quick_test else '--token-windows'} has no use for "
                         f"--{name.removesuffix('_name').replace('_', '-')}")
    return parsed


def _given(args: argparse.Namespace) -> Dict[str, Any]:
    """Those fields of Setup that flags were given for."""
    values = {field.name: getattr(args, field.name, None) for field in fields(Setup)}
    return {name: value for name, value in values.items() if value is not None}


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """The command line; 0 if every spec passed, 1 if not or after an error, 2 for a flag that does not parse."""
    args = _arguments(arguments)
    if args.sweep:
        report.check_plot_path(args.sweep)
    verbose = not (args.quiet or args.json)
    specs = [*(Spec(codec, artifacts=args.artifacts) for codec in args.codec),
             *(Spec(profile=profile, artifacts=args.artifacts) for profile in args.profile),
             *(Spec(compressor=path) for path in args.low_rank)]
    if not specs:
        specs = [Spec(codec) for codec in SWEEP] if args.sweep else [Spec(group_size=args.group_size)]
    if args.quick_test:
        results = [run_quick_test(verbose, args.threshold, specs[0].codec, specs[0].profile, specs[0].group_size)]
    else:
        results = validate(specs, setup_of(args), "cpu" if args.cpu else None, args.threshold, verbose)
    if args.json:
        plain = [result.to_dict() for result in results]
        print(json.dumps(plain[0] if len(plain) == 1 else plain, indent=2))
    else:
        for result in results:
            print(report.line(result) if args.quiet else report.paragraph(result))
    for warning in filter(None, map(report.noise_warning, results)):
        print(f"Warning: {warning}", file=sys.stderr)
    if args.sweep:
        report.plot(results, args.sweep)
    return 0 if all(result.passed for result in results) else 1


if __name__ == "__main__":
    sys.exit(report.as_program(main))
