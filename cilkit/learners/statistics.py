"""Per-class mean and covariance of features, as SLCA keeps them (specs, section 6)."""

from __future__ import annotations

import numpy as np

from cilkit.errors import UserError

JITTER = 1e-4  # added to the covariance's diagonal (SLCA's code, read)


class ClassStatistics:
    """One mean and one covariance a class, taken once, when the class is new, and never refreshed.

    Computed in float64: arithmetic mean, unbiased covariance (n - 1) + 1e-4 I. Kept as float64 means (classes, dim) and
    the covariances' lower triangles in float32 (classes, dim (dim + 1) / 2), half of what full matrices would take.
    """

    def __init__(self, dim: int) -> None:
        self.means = np.zeros((0, dim))
        self.packed = np.zeros((0, dim * (dim + 1) // 2), np.float32)

    def __len__(self) -> int:
        return len(self.means)

    @property
    def bytes(self) -> int:
        return self.means.nbytes + self.packed.nbytes

    def add(self, features: np.ndarray, name: str = "") -> None:
        """Append the next class: its features (n, dim), two images at least."""
        if len(features) < 2:
            raise UserError(f"class {name or len(self)!r} has {len(features)} image; a covariance needs two or more")
        features = features.astype(np.float64)
        covariance = np.cov(features, rowvar=False) + JITTER * np.eye(features.shape[1])
        self.means = np.vstack([self.means, features.mean(0)])
        self.packed = np.vstack([self.packed, pack(covariance)])

    def covariance(self, label: int) -> np.ndarray:
        """float64 (dim, dim), symmetric."""
        return unpack(self.packed[label], self.means.shape[1])


def pack(matrix: np.ndarray) -> np.ndarray:
    """The lower triangle of a symmetric matrix (dim, dim), float32 (dim (dim + 1) / 2,)."""
    return matrix[np.tril_indices(len(matrix))].astype(np.float32)


def unpack(triangle: np.ndarray, dim: int) -> np.ndarray:
    """The symmetric matrix, float64 (dim, dim), of a packed lower triangle."""
    matrix = np.zeros((dim, dim))
    rows, columns = np.tril_indices(dim)
    matrix[rows, columns] = matrix[columns, rows] = triangle
    return matrix
