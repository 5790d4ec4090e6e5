"""The classifier of SLCA's code: one linear head a task, logits concatenated in task order."""

from __future__ import annotations

import copy

import torch
from torch import nn

from cilkit.learners.base import derive


class TaskHeads(nn.Module):
    """Linear(dim, n_t) with bias for every task: weight truncated normal with std 0.02, bias 0 (specs read: SLCA)."""

    rows = 1  # of weights for a class

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.tasks = nn.ModuleList()

    @property
    def sizes(self) -> list[int]:
        return [head.out_features // self.rows for head in self.tasks]

    @property
    def current(self) -> nn.Linear:
        return self.tasks[-1]

    def grow(self, classes: int, seed: int, freeze_old: bool, device: torch.device | str = "cpu") -> None:
        """Add a task's head; `freeze_old` decides whether the heads before it still get gradients."""
        self.requires_grad_(not freeze_old).zero_grad()
        generator = torch.Generator().manual_seed(derive(seed, len(self.tasks), "head"))
        self.tasks.append(self.new(classes, generator).to(device))

    def new(self, classes: int, generator: torch.Generator) -> nn.Linear:
        head = nn.Linear(self.dim, classes)
        nn.init.trunc_normal_(head.weight, std=0.02, generator=generator)
        nn.init.zeros_(head.bias)
        return head

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Features (n, dim) to logits of all classes seen (n, seen)."""
        return torch.cat([head(features) for head in self.tasks], dim=1)

    def trainable_copy(self) -> TaskHeads:
        """An independent copy in which every head learns."""
        return copy.deepcopy(self).requires_grad_(True)

    def set_state(self, state: dict[str, torch.Tensor], device: torch.device | str = "cpu") -> None:
        """Take over the heads of a saved state, as many as it has. Heads of these very sizes stay what they are, frozen
        or not, and only take the values."""
        tasks = sum(name.endswith(".weight") for name in state)
        saved = [len(state[f"tasks.{t}.weight"]) // self.rows for t in range(tasks)]
        if saved != self.sizes:
            self.tasks = nn.ModuleList()
            for classes in saved:
                self.grow(classes, 0, False, device)
        self.load_state_dict(state)
