"""MAE-CIL's fusion at embedding level: a small network between the features of two depths and the tasks' heads."""

from __future__ import annotations

import copy

import torch
from torch import nn

from cilkit.learners.base import derive, part
from cilkit.learners.heads import TaskHeads


class FusedHeads(nn.Module):
    """Linear heads on an MLP of three layers (2 dim -> dim -> dim -> dim, GELU; third-party) over [deep, shallow]: the
    last `width` features are the shallow ones, brought to dim numbers linearly."""

    def __init__(self, dim: int, width: int, seed: int, device: torch.device | str = "cpu") -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(seed, "fusion"))
            self.expand = nn.Linear(width, dim)
            layers = [nn.Linear(2 * dim, dim), nn.GELU(), nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, dim)]
            self.fusion = nn.Sequential(*layers)
        self.widths, self.linear = [dim, width], TaskHeads(dim)
        self.to(device)

    def grow(self, *arguments, **named) -> None:
        self.linear.grow(*arguments, **named)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Features (n, dim + width) to logits of all classes seen (n, seen)."""
        deep, shallow = features.split(self.widths, dim=1)
        return self.linear(self.fusion(torch.cat([deep, self.expand(shallow)], dim=1)))

    def trainable_copy(self) -> FusedHeads:
        return copy.deepcopy(self).requires_grad_(True)

    def set_state(self, state: dict[str, torch.Tensor], device: torch.device | str = "cpu") -> None:
        self.linear.set_state(part(state, "linear."), device)
        self.load_state_dict(state)
