"""FOSTER: feature boosting and compression (Wang et al., ECCV 2022, arXiv 2204.04662), after the released code (read).

From the second task on a task has two phases. Boosting: a second extractor, started as a copy of the first, which
stands still, fits what the old network gets wrong. With f = [old features, new features], w1 and w2 the class weights:

    z = W f + b,  u = V f_new + c        W starts from the old head, V anew
    L = CE(z / w1, y) + CE(u, y) + lambda KD(z_old, z')      logit alignment, feature enhancement, T = 2, no factor T^2

z' is the old network's answer. Compression: one network, started as the old one with new rows for the new classes,
learns from the boosted pair alone, by balanced distillation:

    L = - mean over the batch of  sum_c q_c log softmax(s / T)_c,   q = normalised w2 softmax(z / T)
    w_c = (1 - beta) / (1 - beta^n_c), scaled to mean 1; n_c images of class c in the training set

Images are classified by the compressed network: "FOSTER" of the paper's tables; its "B4" keeps the pair (remembered).
Weights of both heads are not rescaled, and old features may speak for new classes, as in the code's CIFAR-100 settings.
Ours: exemplars are herded by the compressed network (the code: by the pair).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from cilkit.errors import UserError
from cilkit.learners.base import Batch, derive, part
from cilkit.learners.distilling import cuts
from cilkit.learners.lwf import distillation
from cilkit.learners.rehearsal import Rehearsal, RehearsalHyper

if TYPE_CHECKING:
    import torch

    from cilkit.backbones import Backbone
    from cilkit.data import Stream, Task
    from cilkit.learners.heads import TaskHeads


@dataclass(frozen=True)
class FosterHyper(RehearsalHyper):
    """Of the released code on CIFAR-100, ten classes a task (read), in the comments. It has lr 0.1, batch 128, weight
    decay 5e-4 and total 2000."""

    epochs: int = 6  # of the first task. FOSTER: 200
    boosting_epochs: int = 6  # FOSTER: 170
    compression_epochs: int = 4  # FOSTER: 130; without weight decay
    milestones: tuple[int, ...] = ()  # of each phase; none: lr falls along half a cosine in each, as in the code
    beta1: float = 0.96  # of w1. FOSTER: from 0.98 in the second task to 0.94 in the tenth
    beta2: float = 0.97  # of w2
    distillation: float = 1.0  # lambda
    distillation_temperature: float = 2.0  # T

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.boosting_epochs, self.compression_epochs) < 1:
            raise UserError(
                f"boosting_epochs is {self.boosting_epochs} and compression_epochs {self.compression_epochs}; FOSTER "
                "needs one of each at least"
            )
        if not (0 <= self.beta1 < 1 and 0 <= self.beta2 < 1) or self.distillation_temperature <= 0:
            raise UserError(
                f"beta1 is {self.beta1:g}, beta2 {self.beta2:g} and distillation_temperature "
                f"{self.distillation_temperature:g}; expected 0 or more and below 1, and a temperature above 0"
            )


class Foster(Rehearsal):
    """Heads: "raw", the compressed network's, and "nme".

    backbone: the new extractor while it boosts, the compressed network from then on.
    pair:     from the second task on, W (2 dim -> seen) and V (dim -> seen); dropped at the task's end.
    boosted:  the new extractor once it stands still, in compression.
    """

    Hyper = FosterHyper
    pair: torch.nn.ModuleDict | None = None
    boosted: Backbone | None = None

    @property
    def boosting(self) -> bool:
        return self.pair is not None and self.boosted is None

    def epochs_of(self, task: Task) -> int:
        return self._epochs_after if task.index else self.hyper.epochs

    @property
    def _epochs_after(self) -> int:
        """Epochs of every task but the first."""
        return self.hyper.boosting_epochs + self.hyper.compression_epochs

    def begin_task(self, task: Task) -> None:
        super().begin_task(task)
        if not self.known:
            return
        import torch
        from torch import nn

        counts = self.training_set(task).counts[: self.seen]
        weigh = lambda beta: torch.from_numpy(class_weights(counts, beta)).to(self.backbone.device)  # noqa: E731
        self.weights = weigh(self.hyper.beta1), weigh(self.hyper.beta2)  # each (seen,)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(self.seed_init, task.index, "boosting"))
            pair = {"W": nn.Linear(2 * self.dim, self.seen), "V": nn.Linear(self.dim, self.seen)}
        self.pair = nn.ModuleDict(pair).to(self.backbone.device)
        with torch.no_grad():
            old = self.teacher.heads.tasks
            self.pair["W"].weight[: self.known, : self.dim] = torch.cat([head.weight for head in old])
            self.pair["W"].bias[: self.known] = torch.cat([head.bias for head in old])

    def optimiser(self, task: Task):
        import torch

        optimiser, _ = super().optimiser(task)
        if self.pair is not None:
            optimiser.add_param_group({"params": list(self.pair.parameters()), "lr": self.hyper.lr})
        return optimiser, torch.optim.lr_scheduler.LambdaLR(optimiser, lambda epoch: self.rate(task, epoch))

    def rate(self, task: Task, epoch: int) -> float:
        """The share of lr in an epoch: each phase begins anew."""
        h, done, epochs = self.hyper, epoch, self.hyper.epochs
        if task.index:
            later = epoch >= h.boosting_epochs
            done, epochs = (epoch - h.boosting_epochs, h.compression_epochs) if later else (epoch, h.boosting_epochs)
        if h.milestones:
            return self.decay ** sum(done >= milestone for milestone in h.milestones)
        return (1 + math.cos(math.pi * done / epochs)) / 2

    def batches(self, task: Task, epoch: int) -> Iterator[Batch]:
        if self.pair is not None and epoch >= self.hyper.boosting_epochs:
            self.compress()
        return super().batches(task, epoch)

    def compress(self) -> None:
        """The new extractor stands still; the backbone starts as the old network again, with a fresh optimiser."""
        if self.boosting:
            self.boosted = self.backbone.frozen_copy()
            self.backbone.load_state_dict(self.teacher.network.state_dict())
            self._optimiser.state.clear()
        for group in self._optimiser.param_groups:
            group["weight_decay"] = 0.0

    # ------------------------------------------------------------ the loss

    def trunk(self, images: torch.Tensor, kind: str = "student", network: Backbone | None = None) -> torch.Tensor:
        """Features (batch, dim); while it boosts (batch, 2 dim), the old network's before the new one's."""
        import torch

        new = super().trunk(images, kind, network)
        if network is not None or not self.boosting:
            return new
        with torch.no_grad():
            old = self.teacher.network(images, "teacher")
        return torch.cat([old, new], dim=1)

    def read(self, trunk: torch.Tensor, heads: TaskHeads | None = None) -> Any:
        """Logits (batch, seen); while it boosts z, u (batch, seen) and z' (batch, known)."""
        if heads is not None or not self.boosting:
            return super().read(trunk, heads)
        old, new = trunk.split(self.dim, dim=1)
        return self.pair["W"](trunk), self.pair["V"](new), self.teacher.heads(old)

    def taught(self, images: torch.Tensor) -> torch.Tensor | None:
        """z (batch, seen), of the boosted pair; while it boosts nothing, for z' is read beside the student's."""
        import torch

        if self.boosting:
            return None
        with torch.no_grad():
            both = [network(images, "teacher") for network in (self.teacher.network, self.boosted)]
            return self.pair["W"](torch.cat(both, dim=1))

    def classification(self, reading: Any, labels: torch.Tensor, old: bool = False) -> dict[str, torch.Tensor]:
        """Compression knows no labels: its term is 0."""
        from torch.nn.functional import cross_entropy

        if self.boosting:
            z, u, _ = reading
            return {
                "classification": cross_entropy(z / self.weights[0], labels),
                "enhancement": cross_entropy(u, labels),
            }
        return {"classification": cross_entropy(reading, labels) if self.pair is None else reading.new_zeros(())}

    def distillation(self, reading: Any, taught: torch.Tensor | None) -> dict[str, torch.Tensor]:
        h = self.hyper
        if self.boosting:
            z, _, before = reading
            term = distillation(z[:, : self.known], before, h.distillation_temperature)
            return {"distillation": h.distillation * term}
        return {"distillation": balanced(reading, taught, self.weights[1], h.distillation_temperature)}

    def end_task(self, task: Task) -> None:
        self.pair = self.boosted = None
        super().end_task(task)

    # ------------------------------------------------------------ keeping and counting

    def state(self) -> dict[str, torch.Tensor]:
        """Within a task the pair as well, and the extractor that boosts once it stands still."""
        within = {"pair.": self.pair, "boosted.": self.boosted}
        kept = [(start, module.state_dict()) for start, module in within.items() if module is not None]
        return super().state() | {start + name: value for start, values in kept for name, value in values.items()}

    def load(self, state: dict[str, torch.Tensor]) -> None:
        super().load(state)
        if self.pair is not None:
            self.pair.load_state_dict(part(state, "pair."))
        if boosted := part(state, "boosted."):
            self.boosted = self.backbone.frozen_copy()
            self.boosted.load_state_dict(boosted)

    def lengths(self, stream: Stream) -> list[Counter]:
        first, *later = self.trained(stream)
        size, after = self.hyper.batch_size, self._epochs_after
        return [cuts(first, size, self.hyper.epochs), *(cuts(images, size, after) for images in later)]

    def shown(self, images: list[int], taught: bool) -> dict[str, int]:
        """The old network sees every image that boosts; where there is distillation, the pair every one of compression:
        two passes."""
        an_epoch = sum(images[1:]) // self._epochs_after
        passes = self.hyper.boosting_epochs + 2 * taught * self.hyper.compression_epochs
        return {"student": sum(images), "teacher": an_epoch * passes}

    def declared(self, stream: Stream) -> dict[str, int]:
        images = [sum(length * count for length, count in lengths.items()) for lengths in self.lengths(stream)]
        return super().declared(stream) | self.shown(images, True)


def class_weights(counts: np.ndarray, beta: float) -> np.ndarray:
    """float32 (classes,): (1 - beta) / (1 - beta^n), scaled to mean 1. A class without images counts as one."""
    weights = (1 - beta) / (1 - beta ** np.maximum(counts, 1).astype(np.float64))
    return (weights / weights.mean()).astype(np.float32)


def balanced(logits: torch.Tensor, taught: torch.Tensor, weights: torch.Tensor, temperature: float) -> torch.Tensor:
    """Cross-entropy of softened logits (batch, seen) against the teacher's, weighed by class (seen,) and normalised."""
    from torch.nn.functional import cross_entropy

    soft = (taught / temperature).softmax(1) * weights
    return cross_entropy(logits / temperature, soft / soft.sum(1, keepdim=True))


LEARNER = Foster  # what this file's name stands for
