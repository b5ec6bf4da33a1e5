"""What calibration learns, in numpy: means, covariances and principal axes in binary64."""

import numpy as np

SINKS = 4


def turned_back(keys, theta, start=0, interleaved=False):
    """Keys [batch, heads, tokens, dims] without their rotary embedding."""
    tokens, dims = keys.shape[2:]
    angles = np.outer(np.arange(start, start + tokens), theta ** (-np.arange(0, dims, 2) / dims))
    cos, sin = np.cos(angles), np.sin(angles)
    a, b = (keys[..., ::2], keys[..., 1::2]) if interleaved else (keys[..., :dims // 2], keys[..., dims // 2:])
    back = a * cos + b * sin, b * cos - a * sin
    if interleaved:
        return np.stack(back, axis=-1).reshape(keys.shape)
    return np.concatenate(back, axis=-1)


def rows_of(tensors, group_heads, start=0):
    """[groups, rows, dim] of tensors [batch, heads, tokens, dims], without the sinks of sequences that begin at 0."""
    rows = []
    for tensor in tensors:
        batch, heads, _, dims = tensor.shape
        kept = tensor[:, :, SINKS if start == 0 else 0:]
        kept = kept.reshape(batch, heads // group_heads, group_heads, -1, dims)
        rows.append(kept.transpose(1, 0, 3, 2, 4).reshape(heads // group_heads, -1, group_heads * dims).astype(np.float64))
    return np.concatenate(rows, axis=1)


def moments(rows):
    """Mean and covariance of each group."""
    mean = rows.mean(axis=1)
    centered = rows - mean[:, None]
    return mean, centered.transpose(0, 2, 1) @ centered / rows.shape[1]


def root(matrix):
    values, vectors = np.linalg.eigh(matrix)
    return vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T


def metric(weight):
    """The weight that is used: scaled to a trace of dim, and mixed with the identity."""
    dim = len(weight)
    return 0.95 * weight * dim / np.trace(weight) + 0.05 * np.eye(dim)


def sigmas(covariance, weight=None):
    """Deviations of the coefficients, largest first."""
    b = np.eye(len(covariance)) if weight is None else root(metric(weight))
    return np.sqrt(np.maximum(np.linalg.eigvalsh(b @ covariance @ b)[::-1], 0))


def steps(weights):
    """Of each tensor's weights [groups, dim, dim]."""
    logs = np.array([-0.5 * np.log2(np.trace(weight, axis1=1, axis2=2).mean() / weight.shape[1]) for weight in weights])
    return 2 ** (logs - logs.mean())


def bits(variances, error):
    """Bits a value of a Gaussian source at a mean squared error: reverse water-filling."""
    low, high = 0.0, variances.max()
    for _ in range(200):
        level = (low + high) / 2
        low, high = (low, level) if np.minimum(level, variances).mean() > error else (level, high)
    return np.log2(np.maximum(variances / high, 1)).mean() / 2


def int4_error(tensor):
    """The mean squared error of int4(group=64) on rows of 64 values."""
    groups = tensor.reshape(-1, 64)
    scale = np.abs(groups).max(axis=1, keepdims=True) / 7
    scale[scale == 0] = 1
    return ((groups - scale * np.round(groups / scale)) ** 2).mean()
