"""Cosine classifiers, where the length of a weight or a feature favours no class: LUCIR's (Hou et al., CVPR 2019) and
PODNet's of several proxies a class (Douillard et al., ECCV 2020)."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn.functional import linear, normalize

from cilkit.learners.heads import TaskHeads


class CosineHeads(TaskHeads):
    """Linear(dim, n_t) without bias for every task, one learnt scale for all; logits are scale x cosine.

    Weights start uniform in +- 1 / sqrt(dim) (LUCIR, read).
    """

    def __init__(self, dim: int, scale: float) -> None:
        super().__init__(dim)
        self.scale = nn.Parameter(torch.tensor(scale))

    def new(self, classes: int, generator: torch.Generator) -> nn.Linear:
        head, bound = nn.Linear(self.dim, classes * self.rows, bias=False), 1 / math.sqrt(self.dim)
        nn.init.uniform_(head.weight, -bound, bound, generator=generator)
        return head

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.scale * self.scores(features)

    def scores(self, features: torch.Tensor) -> torch.Tensor:
        """Cosines (n, seen) of features (n, dim) with the classes' weights, before the scale."""
        weights = torch.cat([head.weight for head in self.tasks])  # (seen, dim)
        return linear(normalize(features), normalize(weights))

    @torch.no_grad()
    def imprint(self, directions: torch.Tensor) -> None:
        """The newest task's weights become `directions` (rows, dim), times the mean length of the older tasks' weights
        (both papers' code, read)."""
        length = torch.cat([head.weight for head in self.tasks[:-1]]).norm(dim=1).mean()
        self.current.weight.copy_(length * directions)

    def fix_old(self) -> None:
        """Only the newest task's weights learn, and the scale. Left out of an optimiser is lr 0 and weight decay 0."""
        self.tasks[:-1].requires_grad_(False)


class ProxyHeads(CosineHeads):
    """`proxies` weights a class; its score is their cosines' mean, weighted by their own softmax (PODNet's LSC).

    stretch: what cosines are multiplied by before: 2 for the released code's - ||a - b||^2 = 2 cos(a, b) - 2 (derived).
    Weights start as Kaiming's normal distribution for linear layers: std 1 / sqrt(dim) (read).
    """

    def __init__(self, dim: int, scale: float, proxies: int, stretch: float = 1.0) -> None:
        super().__init__(dim, scale)
        self.rows, self.stretch = proxies, stretch

    def new(self, classes: int, generator: torch.Generator) -> nn.Linear:
        head = super().new(classes, generator)
        nn.init.normal_(head.weight, std=1 / math.sqrt(self.dim), generator=generator)
        return head

    def scores(self, features: torch.Tensor) -> torch.Tensor:
        cosines = self.stretch * super().scores(features).unflatten(1, (-1, self.rows))  # (n, seen, proxies)
        return (cosines.softmax(2) * cosines).sum(2)
