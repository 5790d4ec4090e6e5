"""What methods with herded exemplars share (Rebuffi et al., CVPR 2017): each task trains on its images and the
exemplars, then herds, and images can be classified by the nearest mean of exemplars in unit-length features."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cilkit import precision
from cilkit.errors import UserError
from cilkit.learners.base import check_norm_statistics, part
from cilkit.learners.distilling import Distilling, cuts
from cilkit.learners.memory import Memory, bytes_each, herd

if TYPE_CHECKING:
    import torch

    from cilkit.data import ImageSet, Stream, Task
    from cilkit.learners.heads import TaskHeads


@dataclass(frozen=True)
class RehearsalHyper:
    """Ours, for 32 x 32 images, few classes and 10 s a run on one thread; a method's file names its paper's values."""

    epochs: int = 6  # a task
    milestones: tuple[int, ...] = (4, 5)  # epochs after which lr falls
    batch_size: int = 32
    lr: float = 0.05
    slow_rate: float = 1.0  # backbone lr / head lr
    momentum: float = 0.9
    weight_decay: float = 5e-4
    per_class: int = 20  # exemplars kept a class
    total: int = 0  # if > 0: K exemplars in all, ceil(K / seen) a class
    budget: int = 0  # if > 0: bytes for all exemplars, shared evenly by the classes seen
    recipe: str = "digits"  # transforms, see cilkit.data.transforms
    image_size: int = 0  # pixels on a side, for recipes that resize; 0: the backbone's own
    norm_statistics: str = "batch"  # exemplars put every class into the batches
    recipe_of: str = "paper"  # whose: see the learner's RECIPES
    leaks: tuple[str, ...] = ()  # known leaks to switch on

    def __post_init__(self) -> None:
        check_norm_statistics(self.norm_statistics)
        if min(self.total, self.budget) < 0 or (not self.total and not self.budget and self.per_class < 1):
            raise UserError(
                f"{self.per_class} exemplars a class, {self.total} in all and {self.budget} bytes; this learner needs "
                "at least one a class"
            )


class Rehearsal(Distilling):
    """Heads: "raw", the network's own outputs, and "nme", nearest mean of exemplars.

    memory: the exemplars, best first. means: float32 (seen, dim), of exemplars, unit length.
    decay:  what lr is multiplied by after each milestone.
    """

    Hyper = RehearsalHyper
    decay = 0.1

    def new_heads(self) -> TaskHeads:
        from cilkit.learners.heads import TaskHeads

        return TaskHeads(self.dim)

    def build(self) -> None:
        h = self.hyper
        self.raw = self.new_heads()
        self.memory = Memory(h.per_class, h.total, h.budget)
        self.means = np.zeros((0, self.dim), np.float32)

    def begin_task(self, task: Task) -> None:
        """Keep the network as it is for a teacher; add the new classes' outputs."""
        self.keep_teacher()
        self.memory.each = self.bytes_each(task.train)
        self.memory.room(self.seen)  # a budget too small is said before an epoch is learnt
        self.raw.grow(len(task.classes), self.seed_init, False, self.backbone.device)

    def bytes_each(self, images: ImageSet) -> int:
        """Bytes of one exemplar."""
        return bytes_each(images)

    def optimiser(self, task: Task):
        import torch

        h = self.hyper
        groups = [
            {"params": list(self.raw.parameters()), "lr": h.lr},
            {"params": list(self.backbone.parameters()), "lr": h.lr * h.slow_rate},
        ]
        optimiser = precision.sgd(groups, self.backbone.device, momentum=h.momentum, weight_decay=h.weight_decay)
        return optimiser, torch.optim.lr_scheduler.MultiStepLR(optimiser, list(h.milestones), gamma=self.decay)

    def training_set(self, task: Task) -> ImageSet:
        return self.memory.beside(task.train)

    # ------------------------------------------------------------ exemplars

    def end_task(self, task: Task) -> None:
        """Shrink the memory, herd the new classes' exemplars, take all exemplar means with the present network."""
        self.teacher = None
        self.memory.shrink(self.seen)
        means = []
        if len(self.memory):
            kept = self.memory.of(task.train)
            features = unit(self.features(kept, "statistics"))
            means = [features[kept.labels == label].mean(0) for label in range(self.known)]
        new = task.fresh
        features = unit(self.features(new, "statistics"))  # (n, dim), test transform
        for label in task.classes:
            rows = np.flatnonzero(new.labels == label)
            rows = rows[herd(features[rows], self.memory.room(self.seen))]
            self.memory.add(new.select(rows))
            means.append(features[rows].mean(0))
        self.means = unit(np.stack(means))

    def heads(self):
        import torch
        from torch.nn.functional import normalize

        from cilkit.learners.nearest_mean import nearness_to

        nearness = nearness_to(torch.from_numpy(self.means).to(self.backbone.device))
        return {"nme": lambda features: nearness(normalize(features)), "raw": self.raw}

    # ------------------------------------------------------------ keeping and counting

    def state(self) -> dict[str, torch.Tensor]:
        import torch

        kept = {f"memory.{name}": value for name, value in self.memory.state().items()} | {"means": self.means}
        heads = {f"raw.{name}": value for name, value in self.raw.state_dict().items()}
        return super().state() | heads | {name: torch.from_numpy(value) for name, value in kept.items()}

    def load(self, state: dict[str, torch.Tensor]) -> None:
        super().load(state)
        self.raw.set_state(part(state, "raw."), self.backbone.device)
        self.memory.load({name: value.numpy() for name, value in part(state, "memory.").items()})
        self.means = state["means"].numpy()

    def replayed(self, stream: Stream) -> list[int]:
        """Exemplars that each task trains on: of each class before it, as many as there was room for."""
        return [0, *(self._kept(stream, task.seen, task.seen) for task in list(stream)[:-1])]

    def _kept(self, stream: Stream, classes: int, seen: int) -> int:
        """Exemplars of the first `classes` classes, once `seen` are known."""
        self.memory.each = self.bytes_each(stream.train)
        return int(np.minimum(stream.train.counts[:classes], self.memory.room(seen)).sum())

    def trained(self, stream: Stream) -> list[int]:
        """Images that an epoch of each task goes through."""
        return [len(task.train) + kept for task, kept in zip(stream, self.replayed(stream), strict=True)]

    def lengths(self, stream: Stream) -> list[Counter]:
        return [cuts(images, self.hyper.batch_size, self.hyper.epochs) for images in self.trained(stream)]

    def declared(self, stream: Stream) -> dict[str, int]:
        """Student: task and exemplars, an epoch. Teacher: the same from the second task on. Statistics: the new
        classes' images and the old classes' exemplars, once a task, by the memory's room after it."""
        trained, epochs = self.trained(stream), self.hyper.epochs
        statistics = len(stream.train) + sum(self._kept(stream, task.classes.start, task.seen) for task in stream)
        return {
            "student": epochs * sum(trained),
            "teacher": epochs * sum(trained[1:]) if self.teaches else 0,
            "statistics": statistics,
            "test": self.declared_tests(stream),
        }

    def stored_bytes(self) -> dict[str, int]:
        return {"exemplars": self.memory.bytes}


class Imprinted(Rehearsal):
    """Cosine heads (cosine_heads.py): a later task's weights begin where its classes' features lie, and old ones stand
    still."""

    default_head = "raw"

    def begin_task(self, task: Task) -> None:
        super().begin_task(task)
        if self.known:
            self.raw.fix_old()
            self.imprint(task)

    def imprint(self, task: Task) -> None:
        """New weights from one pass over the new images, as the network before sees them."""
        raise NotImplementedError

    def declared(self, stream: Stream) -> dict[str, int]:
        """Rehearsal's; imprinting reads each new image once more from the second task on."""
        declared = super().declared(stream)
        declared["statistics"] += sum(len(task.fresh) for task in list(stream)[1:])
        return declared


def unit(vectors: np.ndarray) -> np.ndarray:
    """Rows (n, dim) scaled to length 1."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
