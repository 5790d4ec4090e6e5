"""Nearest class mean on a frozen backbone (the "NCM" row; `simplecil` is the same idea with cosine similarity).

Nothing is trained: one pass over each task's images gives its class means; an image belongs to the nearest one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cilkit.errors import UserError
from cilkit.learners.base import Learner

if TYPE_CHECKING:
    import torch

    from cilkit.data import Stream, Task


CHUNK = 20_000  # images whose features are held at a time


@dataclass(frozen=True)
class NearestMeanHyper:
    distance: str = "euclidean"  # or "cosine", as SimpleCIL
    recipe: str = "none"  # of the test images, which is what class means are taken from as well
    image_size: int = 0
    recipe_of: str = "paper"  # whose: see the learner's RECIPES
    leaks: tuple[str, ...] = ()  # known leaks to switch on: this learner has none

    def __post_init__(self) -> None:
        if self.distance not in ("euclidean", "cosine"):
            raise UserError(f"distance is {self.distance!r}; expected 'euclidean' or 'cosine'")


class NearestMean(Learner):
    default_head = "means"
    Hyper = NearestMeanHyper
    protocols = ("class", "domain")
    frozen = True

    def build(self) -> None:
        self.backbone.requires_grad_(False)
        self.sums = np.zeros((0, self.dim))  # of features, by class
        self.counts = np.zeros(0, np.int64)

    def end_task(self, task: Task) -> None:
        """Sums, not means, are kept: a class that comes back in another domain is averaged over both."""
        self.sums = np.vstack([self.sums, np.zeros((len(task.classes), self.dim))])
        self.counts = np.append(self.counts, np.zeros(len(task.classes), np.int64))
        for start in range(0, len(task.fresh), CHUNK):
            some = task.fresh.select(slice(start, start + CHUNK))
            self.add(self.features(some, "statistics"), some.labels)

    def add(self, features: np.ndarray, labels: np.ndarray) -> None:
        """Take in some of a task's training images: features float32 (n, dim), stream labels (n,)."""
        if not np.isfinite(features).all():
            raise UserError("the backbone's features hold NaN or infinity: its weights are damaged, or lr was too high")
        features = features.astype(np.float64)
        for label in np.unique(labels):
            self.sums[label] += features[labels == label].sum(0)
            self.counts[label] += np.count_nonzero(labels == label)

    @property
    def means(self) -> np.ndarray:
        """float32 (seen, dim)."""
        return (self.sums / self.counts[:, None]).astype(np.float32)

    def heads(self):
        import torch

        means = torch.from_numpy(self.means).to(self.backbone.device)
        return {"means": cosine_to(means) if self.hyper.distance == "cosine" else nearness_to(means)}

    def state(self) -> dict[str, torch.Tensor]:
        import torch

        return super().state() | {"sums": torch.from_numpy(self.sums), "counts": torch.from_numpy(self.counts)}

    def load(self, state: dict[str, torch.Tensor]) -> None:
        super().load(state)
        self.sums, self.counts = state["sums"].numpy(), state["counts"].numpy()

    def declared(self, stream: Stream) -> dict[str, int]:
        """Each new class's training images once, each test image once."""
        return {"statistics": len(stream.train), "test": self.declared_tests(stream)}

    def stored_bytes(self) -> dict[str, int]:
        return {"class means": self.means.nbytes}


def nearness_to(means: torch.Tensor):
    """Minus half the squared distance to each mean (seen, dim): features (n, dim) to logits (n, seen)."""
    import torch

    return lambda features: -0.5 * torch.cdist(features, means) ** 2


def cosine_to(means: torch.Tensor):
    """Cosine similarity to each mean."""
    from torch.nn.functional import normalize

    return lambda features: normalize(features) @ normalize(means).T


LEARNER = NearestMean  # what this file's name stands for
