"""Which codec to take for a model and a text: bits, divergence, speed and links, all measured, on one page.

    python decide.py --model DIR --text FILE --max-kl 0.01 --bandwidth 25Gbit/s,100MB/s --output page.html

Predictions on the cache that each codec gives back are compared with those on the untouched one (validate_perplexity.py).
Its speed is measured on a cache of the same text (kv-compress -sweep).
"""

import argparse
import glob
import json
import math
import os
import sys
import tempfile
from dataclasses import dataclass
from typing import Any, Dict, List, Optional, Sequence

import decide_page
import report
from compression_bridge import Spec, artifact_id, measure_codec
from model_inputs import load_model_and_tokenizer
from results import Change, ValidationResult
from tqdm import tqdm
from validate_perplexity import Setup, add_setup_flags, measure, saved_dtype, setup_of, windows_of

# The names that stand for a chain, and budgets between those of kv4, kv3 and kv2.
CODECS = ("lossless", "lossless-fast", "near-lossless", "mixed", "int8", "kv(bits=6)", "kv(bits=5)", "int4", "kv4",
          "kv(bits=3.5)", "kv3", "kv(bits=2.5)", "kv2")
ARTIFACT_BITS = (5, 4, 3, 2)  # of kv with each artifact
PARTS = ("both", "keys", "values")
MACHINE = ("threads", "memcpy_gb_per_s", "bytes_per_token", "chunk_tokens", "context_tokens", "links")


@dataclass
class Candidate:
    """What was measured of one codec."""

    codec: str  # as kv-compress -codec takes it
    result: ValidationResult
    speed: Dict[str, Any]  # one of the `specs` of kv-compress -sweep

    def change(self, part: str) -> Change:
        """What it does to predictions: with keys and values restored, or one of them."""
        result = self.result
        change = {"both": result.change, "keys": result.keys_only, "values": result.values_only}[part]
        assert change is not None, "measured results have all three"
        return change

    def bits(self, part: str) -> float:
        """Bits a value of the files of all windows, or of the frames of keys or values."""
        return self.result.bits_per_value if part == "both" else float(self.speed[part]["bits_per_value"])

    def to_dict(self) -> Dict[str, Any]:
        """For JSON."""
        parts = {part: {"bits_per_value": self.bits(part), "kl": self.change(part).kl,
                        "kl_stderr": _finite(self.change(part).kl_stderr),
                        "is_noise": self.result.is_noise(self.change(part))} for part in PARTS}
        kept = ("encode_gb_per_s", "decode_gb_per_s", "pays_below_bytes_per_second", "links")
        return {"codec": self.codec, "ratio": self.result.compression_ratio, **parts,
                "delta_perplexity": self.result.delta, "delta_perplexity_stderr": _finite(self.result.delta_stderr),
                "top1_agreement": self.change("both").top1_agreement,
                **{name: self.speed[name] for name in kept if name in self.speed}}


@dataclass
class Decision:
    """All codecs, and what they were measured for."""

    candidates: List[Candidate]
    max_kl: float  # nats
    machine: Dict[str, Any]  # MACHINE of kv-compress -sweep, what is there of it

    @property
    def about(self) -> ValidationResult:
        """What is the same for all of them: model, windows, noise floor, versions."""
        return self.candidates[0].result

    def cheapest(self, part: str = "both") -> Optional[Candidate]:
        """The one of fewest bits whose divergence is at most max_kl; None without any."""
        kept = [candidate for candidate in self.candidates if candidate.change(part).kl <= self.max_kl]
        return min(kept, key=lambda candidate: candidate.bits(part), default=None)

    def soonest(self, link: int) -> Optional[Candidate]:
        """The one under max_kl with which a context is loaded soonest; None where it is sooner without any."""
        def saved(candidate: Candidate) -> float:
            return float(candidate.speed["links"][link]["saved_first_token_seconds"]["serial"])

        kept = [candidate for candidate in self.candidates
                if candidate.change("both").kl <= self.max_kl and saved(candidate) > 0]
        return max(kept, key=saved, default=None)

    def to_dict(self) -> Dict[str, Any]:
        """For JSON."""
        about, floor = self.about, self.about.noise_floor
        cheapest = {part: self.cheapest(part) for part in PARTS}
        soonest = {link["bandwidth"]: self.soonest(index) for index, link in enumerate(self.machine.get("links", []))}
        return {
            "model": about.model_name, "windows": about.windows, "tokens": about.tokens, "cache_dtype": about.cache_dtype,
            "versions": about.versions, "baseline_perplexity": about.baseline_perplexity, "max_kl": self.max_kl,
            "noise_floor_kl": None if floor is None else floor.kl, **self.machine,
            "cheapest": {part: found and found.codec for part, found in cheapest.items()},
            "soonest": {link: found and found.codec for link, found in soonest.items()},
            "codecs": [candidate.to_dict() for candidate in self.candidates]}


def decide(setup: Setup, codecs: Sequence[str] = CODECS, max_kl: float = 0.01, artifacts: Optional[str] = None,
           bandwidth: Sequence[str] = (), context_tokens: Optional[int] = None, threads: int = 1,
           device: Optional[str] = None, verbose: bool = True) -> Decision:
    """Measures codecs on the model and the text of a setup.

    Args:
        artifacts: directory of artifacts; kv with each of them is measured, too
        bandwidth, context_tokens, threads: as measure_codec
        verbose: progress on standard error

    Raises:
        ValueError: windows, text and model do not fit together
        OSError, subprocess.CalledProcessError: as validate_perplexity.validate
    """
    import torch
    from kvcompress.calibration import collect_cache

    specs = [Spec(codec, artifacts=artifacts) for codec in codecs]
    paths = sorted(glob.glob(os.path.join(glob.escape(artifacts), "*.kvcal"))) if artifacts is not None else []
    if artifacts is not None and not paths:
        raise FileNotFoundError(f"no artifacts (*.kvcal) in {artifacts}")
    for path in paths:
        named = artifact_id(path)
        specs += [Spec(f"kv(bits={bits},artifact={named})", artifacts=artifacts) for bits in ARTIFACT_BITS]
    model, tokenizer = load_model_and_tokenizer(setup.model_name, device, setup.dtype)
    windows = windows_of(setup, model, tokenizer)
    # Before predictions, which take longer: what kv-compress refuses is known at once.
    with tempfile.TemporaryDirectory(prefix="kvcompress-") as folder:
        cache = os.path.join(folder, "cache.safetensors")
        collect_cache(model, [list(windows[0].ids[:windows[0].prefix_len])], cache,
                      dtype=getattr(torch, saved_dtype(setup, model)))
        found = [measure_codec(cache, str(spec.codec), artifacts, threads, bandwidth, context_tokens)
                 for spec in tqdm(specs, desc="speeds", leave=False, disable=not verbose)]
    results = measure(model, windows, specs, setup, verbose=verbose)
    machine: Dict[str, Any] = {name: found[0][name] for name in MACHINE if name in found[0]}
    candidates = [Candidate(str(spec.codec), result, swept["specs"][0])
                  for spec, result, swept in zip(specs, results, found)]
    candidates.sort(key=lambda candidate: candidate.bits("both"))
    return Decision(candidates, max_kl, machine)


def _finite(value: float) -> Optional[float]:
    return value if math.isfinite(value) else None


def _arguments(arguments: Optional[Sequence[str]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Find the cheapest codec for a model, a text and a divergence.")
    add = parser.add_argument
    add_setup_flags(parser)
    add("--cpu", action="store_true", help="force CPU mode")
    add("--codec", action="append", metavar="SPEC", help=f"in place of {', '.join(CODECS)}; may be repeated")
    add("--artifacts", metavar="DIR", help="directory of artifacts (*.kvcal) of the model, which kv is measured with, too")
    add("--max-kl", type=float, default=0.01, metavar="NATS", help="divergence that is allowed (default %(default)s)")
    add("--bandwidth", default="", metavar="RATE,...", help="links that caches go over, for example 25Gbit/s,3GB/s")
    add("--context-tokens", type=int, metavar="TOKENS", help="loaded before the first token of an answer (default 32768)")
    add("--threads", type=int, default=1, help="of the codecs, for their speeds; 0: one for each CPU (default %(default)s)")
    add("--output", required=True, metavar="PAGE.html", help="the page; the figures go beside it, to PAGE.json")
    add("--quiet", action="store_true", help="no progress, and the decision alone")
    parsed = parser.parse_args(arguments)
    if not 0 <= parsed.max_kl < math.inf:
        parser.error("--max-kl must be 0 or more, and finite")
    if not all(codec.strip() for codec in parsed.codec or CODECS):
        parser.error("--codec must name a codec")
    if parsed.windows is not None and parsed.windows < 1:
        parser.error("--windows must be at least 1")
    return parsed


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """The command line; 0 where a codec keeps the divergence, 1 where none does or after an error, 2 for a bad flag."""
    args = _arguments(arguments)
    report.check_plot_path(args.output, "--output", (".html",))
    decision = decide(setup_of(args), args.codec or CODECS, args.max_kl, args.artifacts,
                      [link for link in args.bandwidth.split(",") if link], args.context_tokens, args.threads,
                      "cpu" if args.cpu else None, not args.quiet)
    figures = os.path.splitext(args.output)[0] + ".json"
    texts = {args.output: decide_page.page(decision), figures: json.dumps(decision.to_dict(), indent=2, allow_nan=False)}
    for path, text in texts.items():
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
    if not args.quiet:
        print(decide_page.table(decision) + "\n")
    print("\n".join(decide_page.verdict(decision)))
    if not args.quiet:
        print(f"\n{args.output} has the plot, {figures} all figures")
    return 0 if decision.cheapest() is not None else 1


if __name__ == "__main__":
    sys.exit(report.as_program(main))
