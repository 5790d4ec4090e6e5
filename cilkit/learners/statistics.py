"""Per-class mean and covariance of features, as SLCA keeps them (specs, section 6), whole or cheaper.

| kind      | covariance of a class           | float32 numbers kept            |
|-----------|---------------------------------|---------------------------------|
| full      | its own, S_c                    | dim (dim + 1) / 2 a class       |
| low_rank  | U U^T + diag(d), U (dim, rank)  | dim (rank + 1) a class          |
| diagonal  | diag(S_c)                       | dim a class                     |
| shared    | all classes', pooled            | dim (dim + 1) / 2 in all        |

"full" is the released code's (read). That SLCA's authors name cheaper covariances is remembered; how they are made here
is our decision. Every triangle kept is a lower Cholesky factor L, S = L L^T: made once, when the class is new, for
sampling needs nothing else.
"""

from __future__ import annotations

import numpy as np

from cilkit.errors import UserError, near_name

JITTER = 1e-4  # added to the covariance's diagonal (SLCA's code, read)
KINDS = ("full", "low_rank", "diagonal", "shared")


class ClassStatistics:
    """One mean and one covariance a class, taken once, when the class is new, and never refreshed.

    Computed in float64: arithmetic mean, unbiased covariance (n - 1) + 1e-4 I. Means are kept in float64
    (classes, dim), covariances in float32 as the table above says.

    rank: of "low_rank": the directions with the largest variance; d restores the variance of every feature.
    """

    def __init__(self, dim: int, kind: str = "full", rank: int = 16) -> None:
        if kind not in KINDS:
            raise UserError(f"statistics {kind!r} are unknown{near_name(kind, KINDS)}; known are {', '.join(KINDS)}")
        if kind == "low_rank" and not 1 <= rank <= dim:
            raise UserError(f"rank {rank} does not fit statistics of {dim} features; take 1 … {dim}")
        self.dim, self.kind, self.rank = dim, kind, rank
        self.means = np.zeros((0, dim))
        self.factors: list[np.ndarray] = []  # packed (dim (dim + 1) / 2,); "shared" has one
        self.spreads: list[np.ndarray] = []  # standard deviations (dim,), of "low_rank" and "diagonal"
        self.loadings: list[np.ndarray] = []  # U (dim, rank)
        self.degrees = 0  # sum of n - 1 over the classes that "shared" holds

    def __len__(self) -> int:
        return len(self.means)

    @property
    def bytes(self) -> int:
        return sum(value.nbytes for value in self.state().values())

    def add(self, features: np.ndarray, name: str = "") -> None:
        """Append the next class: its features (n, dim), two images at least. UserError names the class."""
        name = name or str(len(self))
        if len(features) < 2:
            raise UserError(f"class {name!r} has {len(features)} image; a covariance needs two or more")
        if not np.isfinite(features).all():
            raise UserError(f"class {name!r} has features that are not finite: training has diverged; lower lr")
        features = features.astype(np.float64)
        covariance = np.cov(features, rowvar=False).reshape(self.dim, self.dim) + JITTER * np.eye(self.dim)
        getattr(self, f"_add_{self.kind}")(covariance, len(features) - 1, name)
        self.means = np.vstack([self.means, features.mean(0)])

    def covariance(self, label: int) -> np.ndarray:
        """What class `label` is sampled with: float64 (dim, dim), symmetric."""
        if self.factors:
            factor = unpack(self.factors[0 if self.kind == "shared" else label], self.dim)
            return factor @ factor.T
        covariance = np.diag(self.spreads[label].astype(np.float64) ** 2)
        if self.loadings:
            loadings = self.loadings[label].astype(np.float64)
            covariance += loadings @ loadings.T
        return covariance

    def _add_full(self, covariance: np.ndarray, degrees: int, name: str) -> None:
        self.factors.append(pack(cholesky(covariance, name)))

    def _add_shared(self, covariance: np.ndarray, degrees: int, name: str) -> None:
        """Pooled over classes with the weights n_c - 1, as in linear discriminant analysis."""
        if self.factors:
            whole = self.degrees + degrees
            covariance = (self.degrees * self.covariance(0) + degrees * covariance) / whole
        self.factors = [pack(cholesky(covariance, name))]
        self.degrees += degrees

    def _add_diagonal(self, covariance: np.ndarray, degrees: int, name: str) -> None:
        self.spreads.append(np.sqrt(covariance.diagonal()).astype(np.float32))

    def _add_low_rank(self, covariance: np.ndarray, degrees: int, name: str) -> None:
        from scipy.linalg import eigh

        values, vectors = eigh(covariance, subset_by_index=[self.dim - self.rank, self.dim - 1])
        loadings = vectors * np.sqrt(values.clip(0))  # (dim, rank)
        rest = covariance.diagonal() - (loadings**2).sum(1)
        self.spreads.append(np.sqrt(rest.clip(0)).astype(np.float32))
        self.loadings.append(loadings.astype(np.float32))

    def state(self) -> dict[str, np.ndarray]:
        """All that is kept, by flat names."""
        kept = {"means": self.means}
        for part in ("factors", "spreads", "loadings"):
            kept |= {f"{part}.{label}": value for label, value in enumerate(getattr(self, part))}
        return kept | ({"degrees": np.array(self.degrees)} if self.kind == "shared" else {})

    def load(self, state: dict[str, np.ndarray]) -> None:
        self.means = state["means"]
        self.degrees = int(state.get("degrees", 0))
        for part in ("factors", "spreads", "loadings"):
            found = sum(name.startswith(f"{part}.") for name in state)
            setattr(self, part, [state[f"{part}.{label}"] for label in range(found)])


def cholesky(covariance: np.ndarray, name: str = "") -> np.ndarray:
    """Lower factor, float64 (dim, dim), of the covariance rounded to float32; jitter raised tenfold until it exists
    (features that hardly vary beside others that vary much). UserError names the class."""
    import torch

    with np.errstate(over="ignore"):  # said below
        matrix = torch.from_numpy(covariance.astype(np.float32).astype(np.float64))
    eye, jitter = torch.eye(len(matrix), dtype=torch.float64), 0.0
    for _ in range(8):
        factor, failed = torch.linalg.cholesky_ex(matrix + jitter * eye)
        if not failed and factor.isfinite().all():
            return factor.numpy()
        jitter = 10 * jitter or 1e-6 * max(1.0, float(matrix.trace()) / len(matrix))
    raise UserError(f"the feature covariance of class {name!r} has no Cholesky factor, even with jitter; lower lr")


def pack(matrix: np.ndarray) -> np.ndarray:
    """The lower triangle of (dim, dim) row by row, float32 (dim (dim + 1) / 2,)."""
    return matrix[np.tri(len(matrix), dtype=bool)].astype(np.float32)


def unpack(triangle: np.ndarray, dim: int) -> np.ndarray:
    """The lower triangular matrix, float64 (dim, dim), of a packed triangle."""
    matrix = np.zeros((dim, dim))
    matrix[np.tri(dim, dtype=bool)] = triangle
    return matrix
