"""Samples of the classes' Gaussians in feature space, all classes at once and a few factors at a time.

One `MultivariateNormal` a class, as in SLCA's code (read), has the same distribution (tested), but multiplies every
sample by the factor on its own and factorises every covariance anew in every epoch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from cilkit.learners.statistics import ClassStatistics

CLASSES = 16  # whose factors stand unpacked at a time: 38 MB at 768 features
COLUMNS = 192  # features a product: what lies above a factor's diagonal blocks is never multiplied


@dataclass
class GaussianSampler:
    """Samples of every class from N(k_c mu_c, S_c), on a device."""

    statistics: ClassStatistics
    scales: np.ndarray  # k_c, (seen,)
    device: torch.device | str = "cpu"

    def __post_init__(self) -> None:
        means = self.statistics.means * self.scales[:, None]
        self._means = torch.from_numpy(means).float().to(self.device)  # (seen, dim)
        self._samples: torch.Tensor | None = None  # one memory for all epochs
        dim, factors = means.shape[1], self.statistics.factors
        rows, columns = torch.tril_indices(dim, dim, device=self.device)
        self._places = rows * dim + columns  # of a packed triangle's numbers in the dense matrix
        self._dense = torch.zeros(min(len(factors), CLASSES), dim, dim, device=self.device)  # zero above the diagonal

    def draw(self, per_class: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Features (seen * per_class, dim) and labels, class after class; the next draw overwrites them. `generator`
        lives on the device."""
        seen, dim = self._means.shape
        if self._samples is None or len(self._samples) != seen * per_class:
            self._samples = torch.empty(seen * per_class, dim, device=self.device)
        samples = self._samples.view(seen, per_class, dim).normal_(generator=generator)  # so far noise
        for start in range(0, seen, CLASSES):
            labels = range(start, min(start + CLASSES, seen))
            some = samples[start : start + CLASSES]
            if self.statistics.factors:
                self._correlate(some, labels)
            else:
                self._spread(some, labels, generator)
            some += self._means[start : start + CLASSES, None]
        labels = torch.arange(seen, device=self.device).repeat_interleave(per_class)
        return self._samples, labels

    def _correlate(self, noise: torch.Tensor, labels: range) -> None:
        """noise (classes, per_class, dim) becomes noise L^T, in place: the last features first, as each needs only the
        noise of those before it."""
        factors, dim = self._factors(labels), noise.shape[2]
        for start in reversed(range(0, dim, COLUMNS)):
            end = min(start + COLUMNS, dim)
            noise[..., start:end] = noise[..., :end] @ factors[:, start:end, :end].mT

    def _factors(self, labels: range) -> torch.Tensor:
        """Dense lower factors (classes, dim, dim); one for all where the covariance is shared."""
        kept = self.statistics.factors
        chosen = kept if self.statistics.kind == "shared" else [kept[label] for label in labels]
        for dense, packed in zip(self._dense, chosen, strict=False):
            dense.view(-1).index_copy_(0, self._places, torch.from_numpy(packed).to(self.device))
        return self._dense[: len(chosen)]

    def _spread(self, noise: torch.Tensor, labels: range, generator: torch.Generator) -> None:
        """noise becomes noise * sqrt(d) + other noise U^T, in place."""
        noise *= self._stack(self.statistics.spreads, labels)[:, None]
        if self.statistics.loadings:
            loadings = self._stack(self.statistics.loadings, labels)  # (classes, dim, rank)
            shape = (*noise.shape[:2], loadings.shape[2])
            noise += torch.randn(shape, generator=generator, device=self.device) @ loadings.mT

    def _stack(self, kept: list[np.ndarray], labels: range) -> torch.Tensor:
        return torch.stack([torch.from_numpy(kept[label]) for label in labels]).to(self.device)
