"""Chance for a batch, or for a part of it: processes that share a batch draw for the whole of it and keep their rows.

So an image gets the same crop, flip and noise, however many processes there are.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Union

import numpy as np

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Share:
    """The rows of a batch of `total` images that this process prepares; stands where a generator is expected."""

    generator: "torch.Generator"
    total: int
    rows: np.ndarray  # (n,)


Chance = Union["torch.Generator", Share]


def uniform(shape: Sequence[int], chance: Chance, **kind) -> "torch.Tensor":
    """Uniform in 0 … 1, of this shape, whose first dimension is the batch's."""
    import torch

    return _drawn(lambda shape, generator: torch.rand(shape, generator=generator, **kind), shape, chance, 0)


def normal(shape: Sequence[int], chance: Chance) -> "torch.Tensor":
    """Standard normal, of this shape, whose first dimension is the batch's."""
    import torch

    return _drawn(lambda shape, generator: torch.randn(shape, generator=generator), shape, chance, 0)


def integers(below: int, shape: Sequence[int], chance: Chance, batch: int = 0) -> "torch.Tensor":
    """Whole numbers 0 … below - 1, of this shape, whose dimension `batch` is the batch's."""
    import torch

    return _drawn(lambda shape, generator: torch.randint(0, below, shape, generator=generator), shape, chance, batch)


def _drawn(draw: Callable, shape: Sequence[int], chance: Chance, batch: int) -> "torch.Tensor":
    if not isinstance(chance, Share):
        return draw(tuple(shape), chance)
    whole = (*shape[:batch], chance.total, *shape[batch + 1 :])
    return draw(whole, chance.generator)[(slice(None),) * batch + (chance.rows,)]
