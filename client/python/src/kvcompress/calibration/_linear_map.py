"""Projections of rows to fewer channels, and how they are fitted, in binary64."""

from dataclasses import dataclass, fields

import torch

# Directions in which errors cost less than this part of the mean are taken to cost so much: what costs nothing could
# not be restored at all.
_LEAST_COST = 1e-6
# Of the mean weight, added to each: few rows have much of all the weight, and are too few to know directions by.
_COMMON_WEIGHT = 0.3


@dataclass(frozen=True)
class LinearMap:
    """Rows [..., d] to latents [..., rank] and back: (x - mean) into * scale + shift, and what undoes the last two,
    then `out` and `mean`."""

    mean: torch.Tensor  # [d]
    into: torch.Tensor  # [d, rank]
    out: torch.Tensor  # [rank, d]
    scale: torch.Tensor | float = 1.0  # [rank]
    shift: torch.Tensor | float = 0.0

    def latents(self, rows: torch.Tensor) -> torch.Tensor:
        return (rows - self.mean) @ self.into * self.scale + self.shift

    def restored(self, latents: torch.Tensor) -> torch.Tensor:
        return ((latents - self.shift) / self.scale) @ self.out + self.mean

    def to(self, device: torch.device) -> "LinearMap":
        parts = {field.name: getattr(self, field.name) for field in fields(self)}
        moved = {name: part.to(device) if isinstance(part, torch.Tensor) else part for name, part in parts.items()}
        return LinearMap(**moved)


def principal(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of [rows, d]: their mean, the eigenvectors of their covariance as rows, [d, d], and its eigenvalues, falling."""
    mean = rows.mean(0)
    centred = rows - mean
    values, vectors = _eigen(centred.T @ centred / (len(rows) - 1))
    return mean, vectors.T, values


def weighted_principal(
    rows: torch.Tensor, weights: torch.Tensor, cost: torch.Tensor, rank: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The mean, `into` and `out` that cost least: the sum of w e cost e^T over rows with the weights w and errors e.
    With cost = S S these are the principal components of rows S, which S's inverse turns back."""
    if not weights.any():
        weights = torch.ones_like(weights)
    weights = weights + _COMMON_WEIGHT * weights.mean()
    share = (weights / weights.sum())[:, None]
    mean = (share * rows).sum(0)
    centred = rows - mean
    values, vectors = _eigen(cost)
    roots = values.clamp(min=_LEAST_COST * float(values.mean()) or 1.0).sqrt()
    root, inverse = (vectors * roots) @ vectors.T, (vectors / roots) @ vectors.T
    _, directions = _eigen(root @ (centred.T @ (share * centred)) @ root)
    kept = directions[:, :rank]
    return mean, root @ kept, kept.T @ inverse


def _eigen(symmetric: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Eigenvalues, falling, none below 0, and eigenvectors as columns, whose greatest component is positive."""
    values, vectors = torch.linalg.eigh(symmetric)
    values, vectors = values.flip(0).clamp(min=0.0), vectors.flip(1)
    greatest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    return values, vectors * greatest.sign()
