"""How far painted images lie from real ones in the features of one network: distances and coverage.

All take features, so that the network is the caller's choice and named beside the number: a Fréchet distance in
Inception features (what papers call FID) and one in another network's cannot be compared, and neither can two with
different numbers of images. Of the distances between all pairs PAIRS are held at a time.
"""

from __future__ import annotations

import numpy as np

from cilkit.errors import UserError

PAIRS = 2**24  # distances held at once: 128 MB


def frechet_distance(real: np.ndarray, fake: np.ndarray) -> float:
    """Squared Fréchet distance of two Gaussians fitted to features (n, dim) and (m, dim); "FID" in Inception features.

    |mu_r - mu_f|^2 + tr(S_r + S_f - 2 (S_r^1/2 S_f S_r^1/2)^1/2), covariances with n - 1 (Heusel et al. 2017, Eq. 6).
    """
    real, fake = _pair(real, fake)
    mean = real.mean(0) - fake.mean(0)  # (dim,)
    one, other = np.atleast_2d(np.cov(real.T)), np.atleast_2d(np.cov(fake.T))  # (dim, dim)
    values, vectors = np.linalg.eigh(one)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T  # (dim, dim): one^(1/2)
    mixed = np.linalg.eigvalsh(root @ other @ root).clip(0)  # (dim,)
    return float(max(0.0, mean @ mean + np.trace(one) + np.trace(other) - 2 * np.sqrt(mixed).sum()))


def kernel_distance(
    real: np.ndarray, fake: np.ndarray, subsets: int = 50, size: int = 500, seed: int = 0
) -> tuple[float, float]:
    """Unbiased squared maximum mean discrepancy under the kernel (x.y / dim + 1)^3: mean and deviation over subsets.

    "KID" in Inception features (Binkowski et al. 2018, Sec. 4). Unlike the Fréchet distance it is not biased by few
    images. size: images of each side in a subset, at most as many as there are.
    """
    real, fake = _pair(real, fake)
    size, rng = min(size, len(real), len(fake)), np.random.default_rng(seed)
    found = [
        _discrepancy(real[rng.permutation(len(real))[:size]], fake[rng.permutation(len(fake))[:size]])
        for _ in range(subsets)
    ]
    return float(np.mean(found)), float(np.std(found))


def _discrepancy(real: np.ndarray, fake: np.ndarray) -> float:
    def kernel(one: np.ndarray, other: np.ndarray) -> np.ndarray:
        return (one @ other.T / real.shape[1] + 1) ** 3  # (size, size)

    n, within = len(real), (kernel(real, real), kernel(fake, fake))
    return float(sum(k.sum() - np.trace(k) for k in within) / (n * (n - 1)) - 2 * kernel(real, fake).mean())


def precision_recall(real: np.ndarray, fake: np.ndarray, k: int = 3) -> tuple[float, float]:
    """(precision, recall) in 0 … 1: the share of fakes inside the real manifold, of real images inside the fakes'.

    A manifold is the union of balls around its points, each reaching to the point's k-th neighbour of the same side
    (Kynkäänniemi et al. 2019, Eq. 2-3). Precision says whether a painting could be real, recall whether every kind of
    real image is painted at all.
    """
    real, fake = _pair(real, fake, more_than=k)
    return _inside(fake, real, k), _inside(real, fake, k)


def _inside(points: np.ndarray, manifold: np.ndarray, k: int) -> float:
    """Share of points within the k-th neighbour's distance of any point of the manifold."""
    reach = np.concatenate([np.partition(d, k, axis=1)[:, k] for d in _distances(manifold, manifold)])  # 0 is itself
    return float(np.concatenate([(d <= reach).any(1) for d in _distances(points, manifold)]).mean())


def _distances(one: np.ndarray, other: np.ndarray):
    """Squared Euclidean distances, some rows at a time: (rows, len(other))."""
    norms, step = (other**2).sum(1), max(1, PAIRS // len(other))
    for start in range(0, len(one), step):
        part = one[start : start + step]
        yield ((part**2).sum(1)[:, None] + norms - 2 * part @ other.T).clip(0)


def _pair(real: np.ndarray, fake: np.ndarray, more_than: int = 1) -> tuple[np.ndarray, np.ndarray]:
    real, fake = np.asarray(real, np.float64), np.asarray(fake, np.float64)
    if real.ndim != 2 or fake.ndim != 2 or real.shape[1] != fake.shape[1]:
        raise UserError(
            f"features of {real.shape[-1]} and {fake.shape[-1]} numbers cannot be compared; use one backbone."
        )
    if min(len(real), len(fake)) <= more_than:
        raise UserError(
            f"{min(len(real), len(fake))} images are too few to compare two sets; give more than {more_than} of each"
        )
    for name, side in (("real", real), ("painted", fake)):
        if not np.isfinite(side).all():
            raise UserError(f"the features of the {name} images are not all finite; check the network that gave them")
    return real, fake
