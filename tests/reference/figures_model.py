"""The figures of a lossy representation, in binary64, by their definitions in core/quality/quality.h."""

import dataclasses
import math

import numpy as np

SEQ, HEAD_DIM = 4, 5


@dataclasses.dataclass
class Figures:
    rmse: float = 0.0
    mean_abs_error: float = 0.0
    max_error: float = 0.0
    cosine: float = 1.0
    snr_db: float | None = None
    token_snr_db: float | None = None


def decibel(signal, noise):
    return 10 * math.log10(signal / noise) if signal > 0 and noise > 0 else None


def same_bits(x, y):
    bits = f"<u{x.dtype.itemsize}"
    return x.view(bits) == y.view(bits)


def token_deviations(x, shape, axes):
    """The sum of the squared deviations from the means over the tokens of each channel."""
    seq = axes.index(SEQ)
    cube = x.reshape(math.prod(shape[:seq]), shape[seq], math.prod(shape[seq + 1:]))
    return float(((cube - cube.mean(axis=1, keepdims=True)) ** 2).sum())


def has_tokens(shape, axes):
    """Rows of more than 2^16 values have no token figures."""
    return axes.count(SEQ) == 1 and HEAD_DIM in axes and math.prod(shape[axes.index(SEQ) + 1:]) <= 1 << 16


def figures(original, decoded, shape, axes):
    """Of finite originals. Both arrays are flat, in the tensor's dtype."""
    x, y = original.astype(np.float64), decoded.astype(np.float64)
    if len(x) == 0:
        return Figures()
    with np.errstate(invalid="ignore"):
        e = np.where(same_bits(original, decoded), 0.0, x - y)
    found = Figures(rmse=math.sqrt(np.mean(e * e)), mean_abs_error=float(np.abs(e).mean()), max_error=float(np.abs(e).max()))
    x_norm, y_norm = math.sqrt(float(x @ x)), math.sqrt(float(y @ y))
    if y_norm > 2**-16.5 * x_norm > 0:  # below, the daemon's sums tell nothing
        found.cosine = float(x @ y) / x_norm / y_norm
    else:
        found.cosine = 0.0 if e.any() else 1.0
    found.snr_db = decibel(float(((x - x.mean()) ** 2).sum()), float(e @ e))
    if has_tokens(shape, axes):
        found.token_snr_db = decibel(token_deviations(x, shape, axes), token_deviations(e, shape, axes))
    return found
