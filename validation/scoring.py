"""What a compressed cache does to a model's predictions, measured.

For each window of token ids the model reads the prefix; its cache is saved, compressed, decompressed and put back. The model
then reads the rest of the window (teacher forcing) on the untouched and on the restored cache, and both log-likelihoods of
the same tokens are compared. The first token of the continuation is not scored: its prediction was made while the prefix was
read, before the cache was touched.

What rounding does without a codec is measured as well, the noise floor: the same continuation on the untouched cache with
each value moved by one unit in the last place of the type that the model computes in.
"""

import math
import os
import tempfile
from dataclasses import dataclass, field
from typing import Any, Callable, Dict, Iterable, List, Sequence

import cache_view
import torch
from compression_bridge import CompressionMetrics, Spec, compress_kv_cache, decompress_kv_cache
from kv_cache_utils import load_kv_cache, save_kv_cache
from kvcompress.calibration import load_compressor
from kvcompress.calibration.restored import Restored
from kvcompress.calibration.scoring import Score, Tally
from model_inputs import Window, check_not_training, check_windows
from results import Change

# Which tensors of the restored cache replace the untouched ones.
PARTS = ("both", "keys", "values")


@dataclass
class SpecScore:
    """What one spec costs and gives, over all windows."""

    spec: str
    baseline_perplexity: float
    baseline_nll: float  # nats per token
    changes: Dict[str, Change]  # by PARTS
    noise_floor: Change  # of the untouched cache, each value moved by one unit in its last place
    snr_keys_db: float  # 10 log10(variance / mean squared error) over all keys of all windows; infinite without loss
    snr_values_db: float
    token_snr_keys_db: float  # the same of keys less each channel's mean over the tokens, which attention does not see
    original_bytes: int  # of the tensors, in the cache's dtype
    compressed_bytes: int  # of the files on disk, or of latents
    windows: int
    tokens: int  # scored
    metrics: List[CompressionMetrics] = field(default_factory=list)  # for each window

    @property
    def ratio(self) -> float:
        return self.original_bytes / self.compressed_bytes


@dataclass
class _Noise:
    """Sums for the SNRs of one kind of tensor, [batch, heads, tokens, channels]."""

    signal: float = 0.0  # squared distance from each tensor's mean
    error: float = 0.0
    token_signal: float = 0.0  # squared distance from each channel's mean over the tokens
    token_error: float = 0.0

    def add(self, original: torch.Tensor, restored: torch.Tensor) -> None:
        original, restored = original.double(), restored.double()
        self.signal += (original - original.mean()).square().sum().item()
        error = original - restored
        self.error += error.square().sum().item()
        self.token_signal += (original - original.mean(-2, keepdim=True)).square().sum().item()
        self.token_error += (error - error.mean(-2, keepdim=True)).square().sum().item()

    @property
    def db(self) -> float:
        return math.inf if self.error == 0 else 10 * math.log10(self.signal / self.error)

    @property
    def token_db(self) -> float:
        if self.token_error == 0:
            return math.inf
        return 10 * math.log10(self.token_signal / self.token_error) if self.token_signal > 0 else math.nan


def score(
    model: Any,
    windows: Sequence[Window],
    specs: Sequence[Spec],
    cache_dtype: torch.dtype,
    progress: Callable[[Iterable[Window]], Iterable[Window]] = lambda windows: windows,
) -> List[SpecScore]:
    """Measures each spec over the same windows. Prefill and baseline are computed once for all specs.

    Args:
        model: a causal language model of transformers
        cache_dtype: what the cache is saved in; the untouched cache is rounded to it too, so that only compression counts
        progress: wraps the loop over windows, as tqdm does

    Raises:
        ValueError: no windows, or one that leaves no token to score or does not fit the model; a model in training mode; a
            cache or predictions that are not finite
        subprocess.CalledProcessError: kv-compress refused
    """
    if not windows:
        raise ValueError("no windows to measure: the text is shorter than one window")
    for window in windows:
        if not 0 < window.prefix_len <= len(window.ids) - 2:
            raise ValueError(f"a window of {len(window.ids)} tokens and a prefix of {window.prefix_len}: "
                             "at least one token before, and two behind the prefix are needed")
    check_windows(windows, model)
    check_not_training(model)
    runs = [_SpecRun(spec) for spec in specs]
    floor: List[Tally] = []
    with torch.no_grad(), tempfile.TemporaryDirectory(prefix="kvcompress-") as folder:
        plain = os.path.join(folder, "cache.safetensors")
        for window in progress(windows):
            ids = torch.tensor([list(window.ids)], device=_device(model))
            _, prefill = cache_view.forward(model, ids[:, :window.prefix_len])
            saved = [(key.to(cache_dtype), value.to(cache_dtype)) for key, value in cache_view.layers(prefill)]
            if not all(tensor.isfinite().all() for pair in saved for tensor in pair):
                raise ValueError(f"the cache is not finite in {str(cache_dtype).removeprefix('torch.')}: try another "
                                 "--cache-dtype")
            untouched = cache_view.with_tensors(prefill, saved)
            moved = cache_view.with_tensors(
                untouched, [(one_unit_off(key), one_unit_off(value)) for key, value in cache_view.layers(untouched)])
            save_kv_cache(saved, plain, config=model.config)
            rest, targets = ids[:, window.prefix_len:-1], ids[0, window.prefix_len + 1:]
            baseline = continuation_log_probs(model, untouched, rest)
            if not baseline[range(len(targets)), targets].isfinite().all():
                raise ValueError("the model's predictions are not finite, without compression")
            floor.append(Tally.of(baseline, continuation_log_probs(model, moved, rest), targets))
            for run in runs:
                restored = run.round_trip(plain, saved)
                for part in PARTS:
                    cache = cache_view.with_tensors(prefill, mix(saved, restored, part))
                    run.add(part, baseline, continuation_log_probs(model, cache, rest), targets)
    return [run.result(len(windows), _change(Score.of(floor))) for run in runs]


def mix(untouched: Sequence[cache_view.Pair], restored: Sequence[cache_view.Pair], part: str) -> List[cache_view.Pair]:
    """The untouched layers with the restored keys, values or both in their place."""
    return [(new[0] if part != "values" else old[0], new[1] if part != "keys" else old[1])
            for old, new in zip(untouched, restored)]


def continuation_log_probs(model: Any, cache: Any, ids: torch.Tensor) -> torch.Tensor:
    """Log-probabilities of the next token after each of `ids` ([1, n]) behind the cache: [n, vocabulary], float64."""
    logits, _ = cache_view.forward(model, ids, cache)
    return torch.log_softmax(logits[0].double(), dim=-1)


def one_unit_off(values: torch.Tensor) -> torch.Tensor:
    """Each value with the last bit of its significand turned over."""
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[values.element_size()]
    return (values.contiguous().view(bits) ^ 1).view(values.dtype)


class _SpecRun:
    """One spec's sums while the windows go by."""

    def __init__(self, spec: Spec):
        self.spec = spec
        self.metrics: List[CompressionMetrics] = []
        self.compressed_bytes = 0
        self.noise = (_Noise(), _Noise())
        self.compressor = None if spec.compressor is None else load_compressor(spec.compressor)
        self.tallies: Dict[str, List[Tally]] = {part: [] for part in PARTS}

    def round_trip(self, plain: str, saved: Sequence[cache_view.Pair]) -> List[cache_view.Pair]:
        """Compresses the saved file and gives back what comes out of it again."""
        restored = (self._by_file(plain, saved) if self.compressor is None else
                    self._as_latents(saved, Restored(self.compressor)))
        for old, new in zip(saved, restored):
            for noise, original, decoded in zip(self.noise, old, new):
                noise.add(original, decoded)
        return restored

    def _by_file(self, plain: str, saved: Sequence[cache_view.Pair]) -> List[cache_view.Pair]:
        packed, back = plain + ".packed", plain + ".back"
        self.metrics.append(compress_kv_cache(plain, packed, self.spec.group_size, codec=self.spec.codec,
                                              profile=self.spec.profile, artifacts=self.spec.artifacts))
        self.compressed_bytes += os.path.getsize(packed)
        decompress_kv_cache(packed, back, artifacts=self.spec.artifacts)
        return cache_view.layers(load_kv_cache(back, device=str(saved[0][0].device))[0])

    def _as_latents(self, saved: Sequence[cache_view.Pair], restorer: Restored) -> List[cache_view.Pair]:
        restored = restorer(list(saved))
        self.metrics.append(tensor_metrics(saved, restored, restorer.original_bytes, restorer.latent_bytes))
        self.compressed_bytes += restorer.latent_bytes
        return restored

    def add(self, part: str, baseline: torch.Tensor, other: torch.Tensor, targets: torch.Tensor) -> None:
        self.tallies[part].append(Tally.of(baseline, other, targets))

    def result(self, windows: int, noise_floor: Change) -> SpecScore:
        scores = {part: Score.of(tallies) for part, tallies in self.tallies.items()}
        both = scores["both"]
        return SpecScore(
            spec=str(self.spec), baseline_perplexity=both.baseline_perplexity, baseline_nll=both.baseline_nll,
            changes={part: _change(score) for part, score in scores.items()}, noise_floor=noise_floor,
            snr_keys_db=self.noise[0].db, snr_values_db=self.noise[1].db, token_snr_keys_db=self.noise[0].token_db,
            original_bytes=sum(metrics.original_size_bytes for metrics in self.metrics),
            compressed_bytes=self.compressed_bytes, windows=windows, tokens=both.tokens, metrics=self.metrics)


def tensor_metrics(saved: Sequence[cache_view.Pair], restored: Sequence[cache_view.Pair],
                   original_bytes: int, compressed_bytes: int) -> CompressionMetrics:
    """As kv-compress measures a file, of tensors that never were in one: the SNR is the mean over those that have one,
    infinite where nothing was lost. There are no quality limits."""
    rmse, snr_db, cosine, max_error = [], [], [], 0.0
    for old, new in ((old.double(), new.double()) for pairs in zip(saved, restored) for old, new in zip(*pairs)):
        error = (old - new).square().mean().item()
        rmse.append(math.sqrt(error))
        variance = old.var(correction=0).item()
        if error > 0 and variance > 0:
            snr_db.append(10 * math.log10(variance / error))
        cosine.append(torch.nn.functional.cosine_similarity(old.flatten(), new.flatten(), dim=0).item())
        max_error = max(max_error, (old - new).abs().max().item())
    return CompressionMetrics(
        compression_ratio=original_bytes / compressed_bytes, original_size_bytes=original_bytes,
        compressed_size_bytes=compressed_bytes, rmse=sum(rmse) / len(rmse),
        snr_db=sum(snr_db) / len(snr_db) if snr_db else math.nan if any(rmse) else math.inf,
        cosine_similarity=sum(cosine) / len(cosine), max_error=max_error, quality_level="UNKNOWN",
        processing_time_ms=math.nan, passed=False, violations=[])


def _change(score: Score) -> Change:
    return Change(
        perplexity=score.perplexity, delta_perplexity=score.delta_perplexity,
        delta_perplexity_stderr=score.delta_perplexity_stderr, delta_nll=score.delta_nll,
        delta_nll_stderr=score.delta_nll_stderr, kl=score.kl, kl_stderr=score.kl_stderr,
        top1_agreement=score.top1_agreement)


def _device(model: Any) -> torch.device:
    return next(model.parameters()).device
