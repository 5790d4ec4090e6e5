"""Ridge regression on one-hot targets: what RanPAC solves after every task (McDonnell et al., NeurIPS 2023).

    W = (H^T H + lambda I)^-1 H^T Y,    H (n, M) inputs, Y (n, C) targets, W (M, C)

The search over lambda costs one eigendecomposition of the smaller Gram matrix, not a solve for every value: with
H H^T = U diag(s) U^T (n < M; H^T H otherwise) each value is a division by s + lambda. Directions whose s is rounding
noise are left out: without rounding they contribute nothing at any lambda.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

GRID = tuple(10.0**k for k in range(-8, 9))  # read in RanPAC's code


def one_hot(labels: torch.Tensor, classes: int, dtype: torch.dtype) -> torch.Tensor:
    """(n,) labels to (n, classes)."""
    return torch.nn.functional.one_hot(labels, classes).to(dtype)


def losses_dual(
    inputs: torch.Tensor,
    targets: torch.Tensor,
    held_inputs: torch.Tensor,
    held_targets: torch.Tensor,
    grid: Sequence[float] = GRID,
) -> torch.Tensor:
    """Mean squared errors (len(grid),) on held-out samples of the fits to `inputs` (n, M) and `targets` (n, C).

    By W = H^T (H H^T + lambda I)^-1 Y; the way to take where n < M.
    """
    values, vectors = _spectrum(inputs @ inputs.T)  # (r,), (n, r)
    shares = held_inputs @ inputs.T @ vectors  # (held, r)
    return _errors(shares, values, vectors.T @ targets, held_targets, grid)


def losses_primal(
    gram: torch.Tensor,
    cross: torch.Tensor,
    held_inputs: torch.Tensor,
    held_targets: torch.Tensor,
    grid: Sequence[float] = GRID,
) -> torch.Tensor:
    """The same from H^T H (M, M) and H^T Y (M, C), which are summed batch by batch; where n >= M."""
    values, vectors = _spectrum(gram)  # (r,), (M, r)
    return _errors(held_inputs @ vectors, values, vectors.T @ cross, held_targets, grid)


def solve(gram: torch.Tensor, cross: torch.Tensor, value: float) -> torch.Tensor:
    """W (M, C) for one lambda: by Cholesky's factor, or by eigenvectors where rounding leaves it none."""
    shifted = gram.clone()
    shifted.diagonal().add_(value)
    factor, failed = torch.linalg.cholesky_ex(shifted)
    if not failed:
        return torch.cholesky_solve(cross, factor)
    values, vectors = _spectrum(gram)
    return vectors @ ((vectors.T @ cross) / (values + value)[:, None])


def _spectrum(gram: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Eigenvalues (r,) above rounding noise, and their vectors (n, r)."""
    values, vectors = torch.linalg.eigh(gram)
    kept = values > values[-1].clamp_min(0) * len(gram) * torch.finfo(gram.dtype).eps
    return values[kept], vectors[:, kept]


def _errors(shares, values, projected, held_targets, grid) -> torch.Tensor:
    fits = (shares @ (projected / (values + value)[:, None]) for value in grid)
    return torch.stack([torch.mean((fit - held_targets) ** 2) for fit in fits])
