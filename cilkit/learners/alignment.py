"""Classifier alignment (SLCA, Zhang et al., ICCV 2023, stage 2): all heads learn again, together, from samples of
Gaussians in feature space. A plug-in: it needs heads and class statistics, whatever learner made them.

The official code draws with `MultivariateNormal` in float32, class by class, and factorises every covariance anew in
every epoch. Same distribution here (tested): each covariance is factorised once, in float64, and an epoch's samples are
one batched matrix product.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from cilkit.errors import UserError
from cilkit.learners.base import derive
from cilkit.learners.heads import TaskHeads
from cilkit.learners.statistics import ClassStatistics


def task_index_of_classes(sizes: Sequence[int], legacy: bool = False) -> np.ndarray:
    """int64 (seen,): t_c, the task of each class, by cumulative sizes.

    legacy: the official code's `c // s` with s the *current* task's size: right for equal splits only. On Cars-196
    (9 x 20 + 16) it misplaces 156 classes after the last task and lets k_c reach 1.03 (read, and computed).
    """
    if legacy:
        return np.arange(sum(sizes)) // sizes[-1]
    return np.repeat(np.arange(len(sizes)), sizes)


def mean_scales(sizes: Sequence[int], legacy: bool = False) -> np.ndarray:
    """float64 (seen,): k_c = 0.9 + 0.1 (t_c + 1) / T; 1 for the newest task, 0.9 + 0.1 / T for the oldest."""
    return 0.9 + 0.1 * (task_index_of_classes(sizes, legacy) + 1) / len(sizes)


def cholesky(covariance: np.ndarray) -> np.ndarray:
    """Lower factor, float64 (dim, dim); jitter raised tenfold until it exists (features that hardly vary)."""
    if not np.isfinite(covariance).all():
        raise UserError("a class's feature covariance is not finite: stage 1 has diverged; lower lr")
    jitter = 0.0
    for _ in range(8):
        try:
            return np.linalg.cholesky(covariance + jitter * np.eye(len(covariance)))
        except np.linalg.LinAlgError:
            jitter = 10 * jitter or 1e-6 * max(1.0, float(np.trace(covariance)) / len(covariance))
    raise UserError("a class's feature covariance has no Cholesky factor, even with jitter; lower lr")


@dataclass
class GaussianSampler:
    """Samples of every class from N(k_c mu_c, S_c)."""

    statistics: ClassStatistics
    scales: np.ndarray  # (seen,)
    device: torch.device | str = "cpu"
    factors: dict[int, np.ndarray] = field(default_factory=dict)  # class -> Cholesky factor, filled as needed

    def __post_init__(self) -> None:
        for label in range(len(self.statistics)):
            if label not in self.factors:
                self.factors[label] = cholesky(self.statistics.covariance(label))
        stacked = np.stack([self.factors[label] for label in range(len(self.statistics))])
        self._factors = torch.from_numpy(stacked).float().to(self.device)  # (seen, dim, dim)
        means = self.statistics.means * self.scales[:, None]
        self._means = torch.from_numpy(means).float().to(self.device)  # (seen, dim)

    def draw(self, per_class: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Features (seen * per_class, dim) and labels, class after class."""
        seen, dim = self._means.shape
        noise = torch.randn((seen, per_class, dim), generator=generator).to(self.device)
        samples = self._means[:, None] + noise @ self._factors.mT  # (seen, per_class, dim)
        labels = torch.arange(seen, device=self.device).repeat_interleave(per_class)
        return samples.reshape(-1, dim), labels


def normalised_logits(logits: torch.Tensor, sizes: Sequence[int], temperature: float) -> torch.Tensor:
    """(l / r) / tau, r = mean over tasks of the norm of the task's logits + 1e-7; with gradient."""
    norms = [block.norm(dim=1, keepdim=True) + 1e-7 for block in logits.split(list(sizes), dim=1)]
    return logits / torch.stack(norms).mean(0) / temperature


def align(
    raw: TaskHeads,
    statistics: ClassStatistics,
    *,
    epochs: int = 5,
    per_class: int = 256,
    lr: float = 0.01,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    temperature: float = 0.1,
    legacy_task_index: bool = False,
    seed: int = 0,
    factors: dict[int, np.ndarray] | None = None,
) -> TaskHeads:
    """Aligned copies of the raw heads; the raw heads stay as they are, so nothing is ever "restored".

    Each epoch draws 256 samples a class anew, shuffles them and takes as many steps of 256 as there are classes: SGD
    0.01, momentum 0.9, weight decay 5e-4, cosine over the 5 epochs (all read in SLCA's code). temperature 0: plain
    cross-entropy. After the first task there is nothing to align: an unchanged copy comes back.
    """
    aligned = raw.trainable_copy()
    sizes = raw.sizes
    if len(sizes) < 2 or epochs == 0:
        return aligned.requires_grad_(False)
    device = raw.current.weight.device
    scales = mean_scales(sizes, legacy_task_index)
    sampler = GaussianSampler(statistics, scales, device, {} if factors is None else factors)
    optimiser = torch.optim.SGD(aligned.parameters(), lr=lr, momentum=momentum, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=epochs)
    for epoch in range(epochs):
        generator = torch.Generator().manual_seed(derive(seed, len(sizes), epoch, "alignment"))
        features, labels = sampler.draw(per_class, generator)
        steps = torch.randperm(len(labels), generator=generator).to(device).split(per_class)
        total = 0.0
        for rows in steps:
            logits = aligned(features[rows])
            if temperature:
                logits = normalised_logits(logits, sizes, temperature)
            loss = cross_entropy(logits, labels[rows])
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            total += loss.detach()
        schedule.step()
        mean = float(total) / len(steps)
        if not np.isfinite(mean):
            raise UserError(
                f"the alignment loss is {mean} in epoch {epoch + 1} after task {len(sizes)}; "
                f"lower align_lr (now {lr:g})"
            )
    return aligned.requires_grad_(False)
