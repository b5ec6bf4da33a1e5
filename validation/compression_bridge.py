"""Runs the kv-compress command line and reads its JSON. Needs nothing but Python."""

import json
import math
import os
import shutil
import subprocess
import sys
import warnings
from dataclasses import dataclass, field
from typing import Any, Dict, List, NamedTuple, Optional, Sequence

BINARY = "kv-compress"


@dataclass
class CompressionMetrics:
    """Metrics returned by kv-compress. What a run did not measure (the loss, when it decompresses) is NaN."""

    compression_ratio: float  # original / compressed, in bytes really written
    original_size_bytes: int  # of the tensors, in their own dtype
    compressed_size_bytes: int  # of the whole file
    rmse: float  # Root Mean Squared Error, mean over the tensors
    snr_db: float  # Signal-to-Noise Ratio (dB), mean over the tensors; infinite when nothing was lost
    cosine_similarity: float  # Cosine similarity (0-1), mean over the tensors
    max_error: float  # Maximum absolute error
    quality_level: str  # EXCELLENT, GOOD, ACCEPTABLE, POOR; UNKNOWN where not measured
    processing_time_ms: float  # Processing time
    passed: bool  # every quality threshold was measured and kept
    violations: list  # List of threshold violations
    codec: str = ""  # the canonical codec spec, or "profile"
    bits_per_value: float = math.nan
    tensor_metrics: dict = field(default_factory=dict)  # flat: layer_0_key_rmse, layer_0_key_snr_db, ...
    token_snr_db: float = math.nan  # SNR of what changes from token to token, mean over the tensors that have one
    warnings: list = field(default_factory=list)  # what kv-compress warns of: keys lost behind constants of channels

    @classmethod
    def from_dict(cls, d: dict) -> "CompressionMetrics":
        """From the JSON of kv-compress; missing keys mean "not measured", further keys are ignored."""
        rmse = _number(d.get("rmse"))
        snr_db = _number(d.get("snr_db"))
        token_snr_db = _number(d.get("token_snr_db"))
        # JSON has no infinity: an SNR of null beside an error of 0 is one.
        if math.isnan(snr_db) and rmse == 0:
            snr_db = math.inf
        if math.isnan(token_snr_db) and rmse == 0 and "token_snr_db" in d:
            token_snr_db = math.inf
        return cls(
            compression_ratio=_number(d.get("compression_ratio")),
            original_size_bytes=int(d.get("original_size_bytes") or 0),
            compressed_size_bytes=int(d.get("compressed_size_bytes") or 0),
            rmse=rmse,
            snr_db=snr_db,
            cosine_similarity=_number(d.get("cosine_similarity")),
            max_error=_number(d.get("max_error")),
            quality_level=d.get("quality_level") or "UNKNOWN",
            processing_time_ms=float(d.get("processing_time_ms") or 0.0),
            passed=bool(d.get("quality_passed", d.get("passed", False))),
            violations=list(d.get("violations") or []),
            codec=d.get("codec") or "",
            bits_per_value=_number(d.get("bits_per_value")),
            tensor_metrics=dict(d.get("tensor_metrics") or {}),
            token_snr_db=token_snr_db,
            warnings=list(d.get("warnings") or []),
        )


class CompressionError(subprocess.CalledProcessError):
    """A run of kv-compress that failed; its text is the reason that kv-compress gave."""

    def __str__(self) -> str:
        lines = (self.stderr or "").strip().splitlines()
        reasons = [line for line in lines if line.startswith("Error: ")] or lines[:1]
        reason = reasons[-1].removeprefix("Error: ") if reasons else "no reason given"
        return f"{BINARY} failed with exit code {self.returncode}: {reason}"


class Spec(NamedTuple):
    """How to compress: a codec spec, a profile file, a compressor of low rank, or INT4 with a group size."""

    codec: Optional[str] = None
    profile: Optional[str] = None
    group_size: int = 64
    artifacts: Optional[str] = None  # the directory of the artifacts that the codec or profile names
    label: Optional[str] = None  # what people read in its place
    compressor: Optional[str] = None  # the file of its state, compressor_NAME.pt; only scoring takes it

    def __str__(self) -> str:
        if self.label is not None:
            return self.label
        if self.profile is not None:
            return os.path.basename(self.profile).removesuffix(".json")
        if self.compressor is not None:
            return os.path.basename(self.compressor).removesuffix(".pt")
        return self.codec or f"int4(group={self.group_size})"


def compress_kv_cache(
    input_path: str,
    output_path: str,
    group_size: int = 64,
    sparsity: float = 0.0,
    verbose: bool = False,
    codec: Optional[str] = None,
    profile: Optional[str] = None,
    artifacts: Optional[str] = None,
) -> CompressionMetrics:
    """Compress a KV cache file.

    Args:
        input_path: Path to input safetensors file
        output_path: Path for output compressed file
        group_size: Quantization group size (32, 64, or 128) of INT4
        sparsity: Sparsification ratio (0.0-1.0, 0=disabled)
        verbose: Show what kv-compress tells of each tensor, on stderr
        codec: Codec spec or name in place of INT4, for example "int8" or "planes|rans"
        profile: JSON file that chooses a codec for each tensor
        artifacts: Directory of the artifacts that the codec or profile names

    Returns:
        CompressionMetrics with quality and performance data, measured on the decoded values

    Raises:
        subprocess.CalledProcessError: If compression fails
        FileNotFoundError: If CLI binary not found
        ValueError: If CLI returns invalid JSON
    """
    return _run(["-input", input_path, "-output", output_path, *_how(group_size, sparsity, codec, profile),
                 *_where(artifacts)], verbose)


def decompress_kv_cache(input_path: str, output_path: str, verbose: bool = False,
                        artifacts: Optional[str] = None) -> CompressionMetrics:
    """Decompress a KV cache file: dtypes, shapes, names, order and metadata are the original's.

    Args:
        input_path: Path to compressed safetensors file
        output_path: Path for output decompressed file
        verbose: Show what kv-compress tells of each tensor, on stderr
        artifacts: Directory of the artifacts that the file's frames name

    Returns:
        CompressionMetrics (sizes and time; the original is not there to compare with)

    Raises:
        as compress_kv_cache; CalledProcessError for a damaged file
    """
    return _run(["-decompress", "-input", input_path, "-output", output_path, *_where(artifacts)], verbose)


def sweep(input_path: str) -> Dict[str, Dict[str, Any]]:
    """What kv-compress -sweep finds of a file: for each codec, or name of a chain, its figures (docs/cli.md lists them).

    Raises:
        as compress_kv_cache
    """
    found = _run_json(["-sweep", "-input", input_path])["specs"]
    return {name: figures for figures in found for name in (figures["spec"], figures["name"]) if name is not None}


def measure_codec(input_path: str, codec: str, artifacts: Optional[str] = None, threads: int = 1,
                  bandwidth: Sequence[str] = (), context_tokens: Optional[int] = None) -> Dict[str, Any]:
    """What kv-compress -sweep finds of a file with one codec: the whole object (docs/cli.md), with one of `specs`.

    Args:
        artifacts: Directory of the artifact that the codec names
        threads: Threads of the codec (0: one for each CPU)
        bandwidth: Links that caches go over, for example "25Gbit/s"
        context_tokens: Tokens that are loaded before the first token of an answer, for these links

    Raises:
        as compress_kv_cache
    """
    flags = ["-codec", codec, "-threads", str(threads), *_where(artifacts)]
    if bandwidth:
        flags += ["-bandwidth", ",".join(bandwidth)]
        flags += [] if context_tokens is None else ["-context-tokens", str(context_tokens)]
    return _run_json(["-sweep", "-input", input_path, *flags])


def artifact_id(path: str) -> str:
    """The id by which codecs name the artifact in a file.

    Raises:
        as compress_kv_cache; ValueError for a file that is none
    """
    found = _run_json(["-inspect", "-format", "json", path]).get("artifact")
    if found is None:
        raise ValueError(f"{path} is no artifact")
    return str(found)


def get_compression_metrics(
    input_path: str,
    group_size: int = 64,
    verbose: bool = False,
    codec: Optional[str] = None,
    profile: Optional[str] = None,
) -> CompressionMetrics:
    """The metrics of compress_kv_cache, without writing a file; arguments and errors as there."""
    return _run(["-input", input_path, "-metrics-only", *_how(group_size, 0.0, codec, profile)], verbose)


def find_cli_binary() -> str:
    """Find the kv-compress CLI binary.

    Searches in order: the environment variable KV_COMPRESS_PATH, ../bin/kv-compress (relative to this file),
    ./bin/kv-compress (relative to cwd), the system's PATH. Warns when KV_COMPRESS_PATH is set and names no program.

    Returns:
        Path to the CLI binary

    Raises:
        FileNotFoundError: If binary not found
    """
    here = os.path.dirname(os.path.abspath(__file__))
    named = os.environ.get("KV_COMPRESS_PATH")
    places = [os.path.join(os.path.dirname(here), "bin", BINARY), os.path.join(os.getcwd(), "bin", BINARY)]
    if named:
        if _executable(named):
            return named
        warnings.warn(f"KV_COMPRESS_PATH names no program: {named}; looking elsewhere", stacklevel=2)
    for place in places:
        if _executable(place):
            return place
    on_path = shutil.which(BINARY)
    if on_path is None:
        raise FileNotFoundError(f"no {BINARY}: not in {', '.join(places)}, nor on PATH; build it with `make build`, "
                                "or set KV_COMPRESS_PATH to it")
    return on_path


def check_cli_available() -> bool:
    """True if the CLI is found and runs."""
    try:
        return subprocess.run([find_cli_binary(), "-version"], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def print_metrics_report(metrics: CompressionMetrics, title: str = "Compression Metrics") -> None:
    """Print a formatted report of compression metrics.

    Args:
        metrics: CompressionMetrics to display
        title: Report title
    """
    rows = [
        ("Compression ratio", f"{metrics.compression_ratio:.3f}x"),
        ("Original size", f"{metrics.original_size_bytes:,} bytes"),
        ("Compressed size", f"{metrics.compressed_size_bytes:,} bytes"),
        ("RMSE", f"{metrics.rmse:.6f}"),
        ("SNR", f"{metrics.snr_db:.2f} dB"),
        ("Token SNR", f"{metrics.token_snr_db:.2f} dB"),
        ("Cosine similarity", f"{metrics.cosine_similarity:.6f}"),
        ("Max error", f"{metrics.max_error:.6f}"),
        ("Quality", metrics.quality_level),
        ("Time", f"{metrics.processing_time_ms:.1f} ms"),
        ("Passed", "yes" if metrics.passed else "not measured" if metrics.quality_level == "UNKNOWN" else "no"),
    ]
    print(title)
    print("=" * len(title))
    for name, text in rows:
        # A NaN is a figure that this run had no means to measure.
        print(f"{name + ':':<19}{'not measured' if text.startswith('nan') else text}")
    for violation in metrics.violations:
        print(f"  missed: {violation}")
    for warning in metrics.warnings:
        print(f"  warning: {warning}")


def _how(group_size: int, sparsity: float, codec: Optional[str], profile: Optional[str]) -> List[str]:
    """Flags that choose the codec. What excludes what is for kv-compress to say."""
    flags = []
    if codec is not None:
        flags += ["-codec", codec]
    if profile is not None:
        flags += ["-profile", profile]
    if not flags or group_size != 64:
        flags += ["-group-size", str(group_size)]
    if sparsity:
        flags += ["-sparsity", repr(float(sparsity))]
    return flags


def _where(artifacts: Optional[str]) -> List[str]:
    return [] if artifacts is None else ["-artifacts", artifacts]


def _run(args: List[str], verbose: bool) -> CompressionMetrics:
    # With -verbose always, for the figures of each tensor; what it prints is shown only to those who ask.
    return CompressionMetrics.from_dict(_run_json([*args, "-verbose"], verbose))


def _run_json(args: List[str], verbose: bool = False) -> Dict[str, Any]:
    command = [find_cli_binary(), *map(os.fspath, args)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if verbose:
        sys.stderr.write(done.stderr)
    if done.returncode != 0:
        raise CompressionError(done.returncode, command, done.stdout, done.stderr)
    try:
        result = json.loads(done.stdout)
    except json.JSONDecodeError as error:
        raise ValueError(f"{command[0]} printed no valid JSON: {error}") from error
    if not isinstance(result, dict):
        raise ValueError(f"{command[0]} printed JSON that is no object: {done.stdout[:80]!r}")
    return result


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def _executable(path: str) -> bool:
    return os.path.isfile(path) and os.access(path, os.X_OK)
