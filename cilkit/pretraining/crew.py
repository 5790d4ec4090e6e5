"""The processes that train together: who prepares which part of a batch, and how their numbers are added."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Crew:
    """Process `rank` of `size`; alone, nothing is exchanged."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process writes checkpoints and tells of progress."""
        return self.rank == 0

    def rows(self, n: int) -> np.ndarray:
        """This process's part of n images, int64; parts differ by one at most."""
        return np.array_split(np.arange(n), self.size)[self.rank]

    def add(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over all processes, in place."""
        if self.size > 1:
            import torch.distributed

            torch.distributed.all_reduce(values)
        return values

    def take_buffers(self, module: torch.nn.Module) -> None:
        """The first process's buffers (running statistics) for all, before they are tested."""
        if self.size > 1:
            import torch.distributed

            for value in module.buffers():
                torch.distributed.broadcast(value, 0)
