"""iCaRL: incremental classifier and representation learning (Rebuffi et al., CVPR 2017), after the released code.

Every task trains on its images and the exemplars, against one sigmoid a class: new classes have their labels for
target, old classes what the network of the task before says (for exemplars too, in place of their own labels). Then
exemplars are herded, and images are classified by the nearest mean of exemplars, in unit-length features of the present
network.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cilkit import precision
from cilkit.errors import UserError
from cilkit.learners.base import Batch, Learner, check_norm_statistics, part
from cilkit.learners.memory import Memory, herd

if TYPE_CHECKING:
    import torch

    from cilkit.data import ImageSet, Stream, Task


@dataclass(frozen=True)
class ICaRLHyper:
    """The official CIFAR-100 values (read) stand in the comments where ours differ: our decision for 32 x 32 images,
    few classes and 10 s a run on one thread."""

    epochs: int = 6  # a task. iCaRL: 70
    milestones: tuple[int, ...] = (4, 5)  # lr is divided by 5 after these epochs. iCaRL: 49 and 63 of 70
    batch_size: int = 32  # iCaRL: 128
    lr: float = 0.05  # iCaRL: 2.0, for a loss that is a mean over 100 outputs; ours is over the classes seen
    slow_rate: float = 1.0  # backbone lr / head lr. iCaRL: 1
    momentum: float = 0.9
    weight_decay: float = 1e-5
    criterion: str = "bce"  # the paper's; "ce": softmax over all classes seen + distillation with T = 2, as PyCIL
    temperature: float = 2.0  # of "ce" only
    distillation: float = 1.0  # weight lambda of the distillation term
    per_class: int = 20  # exemplars kept a class
    total: int = 0  # if > 0: K exemplars in all, ceil(K / seen) a class. iCaRL: 2000
    recipe: str = "digits"  # iCaRL: "icarl_cifar"
    image_size: int = 0  # pixels on a side, for recipes that resize; 0: the backbone's own
    norm_statistics: str = "batch"  # as the paper: exemplars put every class into the batches
    recipe_of: str = "paper"  # whose: see the learner's RECIPES
    leaks: tuple[str, ...] = ()  # known leaks to switch on: this learner has none

    def __post_init__(self) -> None:
        check_norm_statistics(self.norm_statistics)
        if self.criterion not in ("bce", "ce"):
            raise UserError(f"criterion is {self.criterion!r}; expected 'bce' (the paper's) or 'ce'")
        if self.total < 0 or (self.total == 0 and self.per_class < 1):
            raise UserError(f"{self.per_class} exemplars a class and {self.total} in all; iCaRL needs at least one")


class ICaRL(Learner):
    """Heads: "nme", nearest mean of exemplars (the method's), and "raw", the network's own outputs ("hybrid 1")."""

    default_head = "nme"
    Hyper = ICaRLHyper

    def build(self) -> None:
        from cilkit.learners.heads import TaskHeads

        self.raw = TaskHeads(self.backbone.dim)
        self.memory = Memory(self.hyper.per_class, self.hyper.total)
        self.means = np.zeros((0, self.backbone.dim), np.float32)  # of exemplars, unit length

    def begin_task(self, task: Task) -> None:
        """Keep the network as it is for a teacher; add the new classes' outputs. Future classes are unknown (our
        decision: the official code has outputs for them from the start, with target 0)."""
        self.teacher = None
        if self.known:
            teacher, old_heads = self.backbone.frozen_copy(), self.raw.trainable_copy().requires_grad_(False)
            self.teacher = lambda images: old_heads(teacher(images, "teacher"))
        self.raw.grow(len(task.classes), self.seed_init, False, self.backbone.device)

    def optimiser(self, task: Task):
        import torch

        h = self.hyper
        groups = [
            {"params": list(self.raw.parameters()), "lr": h.lr},
            {"params": list(self.backbone.parameters()), "lr": h.lr * h.slow_rate},
        ]
        optimiser = precision.sgd(groups, self.backbone.device, momentum=h.momentum, weight_decay=h.weight_decay)
        return optimiser, torch.optim.lr_scheduler.MultiStepLR(optimiser, list(h.milestones), gamma=0.2)

    def training_set(self, task: Task) -> ImageSet:
        new, kept = task.train, self.memory.of(task.train)
        return new.at(np.append(new.index, kept.index), np.append(new.labels, kept.labels))

    # ------------------------------------------------------------ loss

    def loss(self, batch: Batch) -> dict[str, torch.Tensor]:
        return self.terms(self.logits(batch.images), batch)

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        """The student's outputs (batch, seen)."""
        return self.raw(self.backbone(images, "student"))

    def taught(self, images: torch.Tensor) -> torch.Tensor:
        """The previous network's outputs (batch, known), without gradients."""
        import torch

        with torch.no_grad():
            return self.teacher(images)

    def terms(self, logits: torch.Tensor, batch: Batch) -> dict[str, torch.Tensor]:
        """Classification of real images and, from the second task on, distillation: logits (batch, seen)."""
        first = self.known if self.hyper.criterion == "bce" else 0  # bce: old outputs are distillation's alone
        terms = {"classification": self.classification(logits, batch.labels, first)}
        if self.teacher is not None:
            terms["distillation"] = self.hyper.distillation * self.distillation(logits, self.taught(batch.images))
        return terms

    def classification(self, logits: torch.Tensor, labels: torch.Tensor, first: int = 0) -> torch.Tensor:
        """ "bce": sum over outputs first … seen - 1 against the one-hot label, divided by batch x seen, so that it and
        the distillation add up to the paper's mean over all outputs. "ce": softmax over all classes seen."""
        import torch
        from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

        if self.hyper.criterion == "ce":
            return cross_entropy(logits, labels)
        outputs = torch.arange(first, self.seen, device=labels.device)
        targets = (labels[:, None] == outputs).to(logits.dtype)  # (batch, seen - first)
        return binary_cross_entropy_with_logits(logits[:, first:], targets, reduction="sum") / logits.numel()

    def distillation(self, logits: torch.Tensor, taught: torch.Tensor) -> torch.Tensor:
        """ "bce": old outputs against the teacher's sigmoids, divided by batch x seen. "ce": softened cross-entropy of
        the old classes' softmaxes, T = 2, as PyCIL (read; no T squared)."""
        from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

        student = logits[:, : self.known]
        if self.hyper.criterion == "ce":
            t = self.hyper.temperature
            return cross_entropy(student / t, (taught / t).softmax(1))
        return binary_cross_entropy_with_logits(student, taught.sigmoid(), reduction="sum") / logits.numel()

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
        counts = stream.train.counts
        room = [self.memory.room(task.seen) for task in stream]
        return [
            sum(min(int(counts[label]), room[task.index - 1]) for label in range(task.classes.start)) for task in stream
        ]

    def declared(self, stream: Stream) -> dict[str, int]:
        """Student: task and exemplars, an epoch. Teacher: the same from the second task on. Statistics: the new
        classes' images and the old classes' exemplars, once a task, by the memory's room after it."""
        counts, epochs = stream.train.counts, self.hyper.epochs
        trained = [len(task.train) + kept for task, kept in zip(stream, self.replayed(stream), strict=True)]
        statistics = 0
        for task in stream:
            room = self.memory.room(task.seen)
            statistics += sum(int(counts[label]) for label in task.classes)
            statistics += sum(min(int(counts[label]), room) for label in range(task.classes.start))
        return {
            "student": epochs * sum(trained),
            "teacher": epochs * sum(trained[1:]),
            "statistics": statistics,
            "test": self.declared_tests(stream),
        }

    def stored_bytes(self) -> dict[str, int]:
        return {"exemplars": self.memory.bytes}


def unit(vectors: np.ndarray) -> np.ndarray:
    """Rows (n, dim) scaled to length 1."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


LEARNER = ICaRL  # what this file's name stands for
