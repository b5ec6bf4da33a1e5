"""What a validation finds, as plain data: no torch here."""

import math
from dataclasses import asdict, dataclass, field
from typing import Any, Dict, Optional


@dataclass
class Change:
    """Predictions on a restored cache beside those on the untouched one. Errors are standard errors over windows, by the
    jackknife."""

    perplexity: float  # exp of the mean NLL, tokens weighted alike
    delta_perplexity: float
    delta_perplexity_stderr: float
    delta_nll: float  # nats per token
    delta_nll_stderr: float
    kl: float  # mean KL(untouched || restored) of the next token's distribution, nats
    kl_stderr: float
    top1_agreement: float  # share of positions where both think the same token most likely


@dataclass
class ValidationResult:
    """Final validation result: the seed's fields, then what explains them."""

    baseline_perplexity: float  # PPL without compression
    compressed_perplexity: float  # PPL with compressed cache, measured on it
    delta: float  # compressed - baseline
    delta_percent: float  # (delta / baseline) * 100
    compression_ratio: float  # tensor bytes in the cache's dtype / bytes of the files on disk, over all windows
    rmse: float  # Root Mean Squared Error, mean over windows
    snr_db: float  # Signal-to-Noise Ratio, mean over windows; infinite when nothing was lost
    cosine_similarity: float  # Cosine similarity, mean over windows
    passed: bool  # delta < threshold
    threshold: float = 0.5  # KVQuant standard
    delta_stderr: float = math.nan  # standard error of delta over windows, by the jackknife
    change: Optional[Change] = None  # keys and values restored
    keys_only: Optional[Change] = None  # only the keys restored, the values untouched
    values_only: Optional[Change] = None
    noise_floor: Optional[Change] = None  # what rounding does without a codec: the untouched cache, each value one unit off
    snr_keys_db: float = math.nan  # over all keys of all windows together
    snr_values_db: float = math.nan
    token_snr_keys_db: float = math.nan  # of the keys less each channel's mean over the tokens
    baseline_nll: float = math.nan  # nats per token
    tokens: int = 0  # scored
    windows: int = 0
    spec: str = ""
    model_name: str = ""
    cache_dtype: str = ""
    perplexity_measured: bool = True  # False: no model ran; perplexities are NaN, passed is kv-compress's own quality limits
    synthetic: bool = False  # True: random weights or values; the figures say that the pipeline works, nothing about a model
    versions: Dict[str, str] = field(default_factory=dict)  # of torch and transformers; dtype and device of the model

    @property
    def bits_per_value(self) -> float:
        """Of a value of the cache, everything in the files counted."""
        return {"float32": 32, "float64": 64}.get(self.cache_dtype, 16) / self.compression_ratio

    def is_noise(self, change: Change) -> bool:
        """Whether a divergence is less than twice what rounding makes without a codec. None at all is no noise."""
        return self.noise_floor is not None and 0 < change.kl < 2 * self.noise_floor.kl

    def __str__(self) -> str:
        """A paragraph with the figures and PASSED or FAILED."""
        import report  # which needs this module

        return report.paragraph(self)

    def to_dict(self) -> Dict[str, Any]:
        """For JSON, which has neither NaN nor infinity: both become None."""
        return _plain(asdict(self))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
