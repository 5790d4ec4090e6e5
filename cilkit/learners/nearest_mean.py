"""Nearest class mean on a frozen backbone (the "NCM" row; SimpleCIL is the same idea with cosine similarity).

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


@dataclass(frozen=True)
class NearestMeanHyper:
    distance: str = "euclidean"  # or "cosine", as SimpleCIL

    def __post_init__(self) -> None:
        if self.distance not in ("euclidean", "cosine"):
            raise UserError(f"distance is {self.distance!r}; expected 'euclidean' or 'cosine'")


class NearestMean(Learner):
    default_head = "means"
    Hyper = NearestMeanHyper
    frozen = True

    def build(self) -> None:
        self.backbone.requires_grad_(False)
        self.means = np.zeros((0, self.backbone.dim), np.float32)

    def end_task(self, task: Task) -> None:
        chosen = task.train.of_classes(task.classes)
        features = self.features(chosen.images(), "statistics").astype(np.float64)  # (n, dim)
        new = [features[chosen.labels == label].mean(0) for label in task.classes]
        self.means = np.vstack([self.means, np.stack(new)]).astype(np.float32)

    def heads(self):
        import torch

        means = torch.from_numpy(self.means).to(self.backbone.device)
        return {"means": cosine_to(means) if self.hyper.distance == "cosine" else nearness_to(means)}

    def state(self) -> dict[str, torch.Tensor]:
        import torch

        return super().state() | {"means": torch.from_numpy(self.means)}

    def load(self, state: dict[str, torch.Tensor]) -> None:
        super().load(state)
        self.means = state["means"].numpy()

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
