"""BiC: large scale incremental learning with bias correction (Wu et al., CVPR 2019, arXiv 1905.13260), after the
released code (read), on a slow learner. A classifier that learns new classes from many images and old ones from few
exemplars favours the new ones; two numbers put that right.

Stage 1, from the second task on, with l = old classes / all classes seen and the student's logits z as they are:

    L = (1 - l) CE(z, y) + l KD(z_old, z'),        KD with T = 2 and no factor T^2, over all old classes together

z' are the logits of the network before, the newest block of which is corrected by what stage 2 found for it. Stage 2:
the network stands still, and b and g alone are learnt from a small balanced set that stage 1 never showed:

    L = CE([z_old, b z_new + g], y) + 0.1 g^2 / 2

Images are classified with the newest block corrected: older corrections were distilled into the network.

Ours: stage 2 reads logits that were computed once, and shares the pass that herding needs. A new class gives up a tenth
of its room among the exemplars, or of its images where they are fewer, but one at least (released code: each class what
would fit the first task). Exemplars are herded once, as iCaRL's; the released code herds anew after every task. Stage 2
has batch normalisation in eval mode. The optimiser is that of SLCA's first stage; exemplar counts, learning rates and
weights of SLCA's BiC rows were found nowhere (88.45 / 93.37 on Split CIFAR-100, quoted by a third party).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cilkit.errors import UserError
from cilkit.learners.base import derive, part
from cilkit.learners.distilling import Distilling, cuts
from cilkit.learners.lwf import distillation
from cilkit.learners.memory import Memory, herd
from cilkit.learners.slow_learner import SlowLearner, SlowLearnerHyper

if TYPE_CHECKING:
    import torch

    from cilkit.data import ImageSet, Stream, Task


@dataclass(frozen=True)
class BiCHyper(SlowLearnerHyper):
    """Values of the released code (read) in the comments."""

    local_softmax: bool = False  # BiC's cross-entropy is over all classes seen, and every head learns
    weight_decay_tasks: int = 0  # T > 0: weight_decay x T / (t + 1) in task t, as released; 0: the same in all tasks
    per_class: int = 20  # exemplars kept a class, those for validation among them
    total: int = 0  # if > 0: K exemplars in all, ceil(K / seen) a class. BiC: 20 x all classes, 2000 on CIFAR-100
    held_share: float = 0.1  # share of a class's exemplars that stage 2 learns from
    distillation_temperature: float = 2.0  # T
    cumulative: bool = False  # every block keeps its own correction, in student, teacher, stage 2 and test (FACIL)
    bias_epochs: int = 200  # of stage 2
    bias_milestones: tuple[int, ...] = (60, 120, 160, 180)
    bias_lr: float = 0.1  # x batch_size / 256
    offset_decay: float = 0.1  # weight of g^2 / 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.local_softmax:
            raise UserError("BiC's softmax is over all classes by design; leave local_softmax out")
        if not 0 < self.held_share < 1:
            raise UserError(f"held_share is {self.held_share:g}; expected a share between 0 and 1, such as 0.1")
        if self.total < 0 or (self.total == 0 and self.per_class < 2):
            raise UserError(
                f"{self.per_class} exemplars a class and {self.total} in all; BiC needs two a class: one to learn from "
                "and one to validate with"
            )


class BiC(Distilling, SlowLearner):
    """Heads: "corrected", the method's, and "raw", the network's own outputs.

    memory, held: exemplars that stage 1 learns from, and those that only stage 2 ever sees.
    corrections:  float32 (tasks, 2), b and g of every task's block; 1 and 0 while it is learnt.
    """

    default_head = "corrected"
    Hyper = BiCHyper
    protocols = ("class",)
    leaks = {
        "double_softmax": "stage 2 takes the cross-entropy of probabilities: with 100 classes the loss cannot fall "
        "below 3.62 (PyCIL, read)",
        "inverted_mixing": "cross-entropy weighs l and distillation (1 - l) T^2 (mammoth, read)",
    }
    # "pilot": PyCIL. Not followed: mammoth's stage 2 by Adam, its exemplars (first batches, total / t).
    RECIPES = {
        "official_code": {"weight_decay": 1e-4, "weight_decay_tasks": 10},
        "pilot": {"cumulative": True, "bias_epochs": 170, "weight_decay": 2e-4, "leaks": ("double_softmax",)},
        "mammoth": {"bias_epochs": 250, "leaks": ("inverted_mixing",)},
    }

    def build(self) -> None:
        import torch

        super().build()
        self.memory = Memory(self.hyper.per_class, self.hyper.total)
        self.held = Memory(self.hyper.per_class, self.hyper.total)
        self.corrections = torch.zeros((0, 2), device=self.backbone.device)

    def validating(self, seen: int, images: int) -> int:
        """Images a class that stage 2 learns from: a share of its room once `seen` classes are known, or of its images
        where it has fewer."""
        room = self.memory.room(seen)
        if room < 2:
            raise UserError(
                f"total {self.hyper.total} leaves {room} exemplar for each of {seen} classes; BiC needs two a class, "
                f"so more than {seen}"
            )
        return max(1, int(self.hyper.held_share * min(room, images) + 1e-9))

    def begin_task(self, task: Task) -> None:
        import torch

        self.keep_teacher()
        self.taught_with = self.sizes[:-1], self.active()
        super().begin_task(task)
        self.corrections = torch.cat([self.corrections, torch.tensor([[1.0, 0.0]], device=self.backbone.device)])
        self.aside = self.set_aside(task)

    def active(self) -> torch.Tensor:
        """The corrections (tasks, 2) that the network answers with: the newest alone or, if cumulative, all."""
        kept = self.corrections.clone()
        if not self.hyper.cumulative:
            kept[:-1] = kept.new_tensor([1.0, 0.0])
        return kept

    def optimiser(self, task: Task):
        optimiser, schedule = super().optimiser(task)
        for group in optimiser.param_groups:
            group["weight_decay"] *= (self.hyper.weight_decay_tasks or task.index + 1) / (task.index + 1)
        return optimiser, schedule

    # ------------------------------------------------------------ stage 1

    def set_aside(self, task: Task) -> ImageSet:
        """Of each new class, the images that stage 1 never sees; of each old class as many are kept."""
        fewest = min(task.classes, key=lambda label: task.fresh.counts[label])
        images = int(task.fresh.counts[fewest])
        if images < 2:
            raise UserError(
                f"class {task.fresh.class_names[fewest]!r} has {images} training image; BiC needs two a class: one to "
                "learn from and one to validate with"
            )
        count = min([self.validating(self.known or self.seen, images), *map(len, self.held.rows[:1])])
        self.held.rows = [rows[:count] for rows in self.held.rows]
        random = np.random.default_rng(derive(self.seed_data, task.index, "validation"))
        rows = [random.permutation(np.flatnonzero(task.fresh.labels == label))[:count] for label in task.classes]
        return task.fresh.select(np.concatenate(rows))

    def training_set(self, task: Task) -> ImageSet:
        """The task's images and the old classes' exemplars, without what is kept for stage 2."""
        kept, held = self.memory.of(task.train), self.held.of(task.train)
        new = task.train.select(~np.isin(task.train.index, np.append(held.index, self.aside.index)))
        return new.at(np.append(new.index, kept.index), np.append(new.labels, kept.labels))

    def read(self, trunk: torch.Tensor, heads=None) -> torch.Tensor:
        """The student's logits (batch, seen), corrected if cumulative."""
        logits = super().read(trunk, heads)
        return correct(logits, self.sizes, self.corrections) if self.hyper.cumulative and heads is None else logits

    def taught(self, images: torch.Tensor) -> torch.Tensor:
        return correct(super().taught(images), *self.taught_with)  # z', (batch, known)

    @property
    def share(self) -> float:
        """l, the weight of distillation; 0 in the first task."""
        return self.known / self.seen

    def classification(self, logits: torch.Tensor, labels: torch.Tensor, old: bool = False) -> dict[str, torch.Tensor]:
        from torch.nn.functional import cross_entropy

        weight = self.share if self.leaking("inverted_mixing") and self.known else 1 - self.share
        return {"classification": weight * cross_entropy(logits, labels)}

    def distillation(self, logits: torch.Tensor, taught: torch.Tensor) -> dict[str, torch.Tensor]:
        t = self.hyper.distillation_temperature
        weight = (1 - self.share) * t**2 if self.leaking("inverted_mixing") else self.share
        return {"distillation": weight * distillation(logits[:, : self.known], taught, t)}

    # ------------------------------------------------------------ stage 2 and exemplars

    def end_task(self, task: Task) -> None:
        super().end_task(task)
        self.teacher = None
        features = self.features(task.fresh, "statistics")  # (n, dim), test transform
        aside = np.isin(task.fresh.index, self.aside.index)
        if self.known:
            old = self.held.of(task.fresh)
            balanced = np.concatenate([self.features(old, "statistics"), features[aside]])
            self.corrections[-1] = self.stage_two(balanced, np.append(old.labels, task.fresh.labels[aside]), task)
        held = min(len(self.aside) // len(task.classes), self.validating(self.seen, len(task.fresh)))
        learnt = self.memory.room(self.seen) - held
        for label in task.classes:
            own = task.fresh.labels == label
            rows = np.flatnonzero(own & ~aside)
            unit = features[rows] / np.maximum(np.linalg.norm(features[rows], axis=1, keepdims=True), 1e-12)
            self.memory.add(task.fresh.select(rows[herd(unit, learnt)]))
            self.held.add(task.fresh.select(own & aside))
        self.memory.rows = [rows[:learnt] for rows in self.memory.rows]
        self.held.rows = [rows[:held] for rows in self.held.rows]

    def stage_two(self, features: np.ndarray, labels: np.ndarray, task: Task) -> torch.Tensor:
        """b and g (2,) of the newest block, from the features (n, dim) of the balanced set."""
        import torch

        device = self.backbone.device
        with torch.no_grad():
            logits = self.raw(torch.from_numpy(features).to(device))  # (n, seen)
            logits = correct(logits, self.sizes, self.active())  # the newest is 1 and 0 as yet
        seed, doubled = derive(self.seed_data, task.index, "stage 2"), self.leaking("double_softmax")
        return fit_correction(logits, torch.from_numpy(labels).to(device), self.known, self.hyper, seed, doubled)

    def heads(self):
        sizes, corrections = list(self.sizes), self.active()
        return {"raw": self.raw, "corrected": lambda features: correct(self.raw(features), sizes, corrections)}

    # ------------------------------------------------------------ keeping and counting

    def state(self) -> dict[str, torch.Tensor]:
        import torch

        kept = {f"memory.{name}": value for name, value in self.memory.state().items()}
        kept |= {f"held.{name}": value for name, value in self.held.state().items()}
        kept = {name: torch.from_numpy(value) for name, value in kept.items()}
        return super().state() | kept | {"corrections": self.corrections}

    def load(self, state: dict[str, torch.Tensor]) -> None:
        super().load(state)
        for name, memory in (("memory.", self.memory), ("held.", self.held)):
            memory.load({name: value.numpy() for name, value in part(state, name).items()})
        self.corrections = state["corrections"].to(self.backbone.device)

    def gone_through(self, stream: Stream) -> Iterator[tuple[int, int]]:
        """Of each task: images of an epoch, without what is set aside and with the exemplars; images for statistics,
        each new one once, for herding and stage 2, and the old classes' validation images."""
        counts = stream.train.counts
        available = np.zeros(len(counts), np.int64)  # of each class: images that may become exemplars of stage 1
        held = len(stream.train)  # of each old class, for stage 2
        for task in stream:
            known, new = task.classes.start, slice(task.classes.start, task.classes.stop)
            kept = np.minimum(available[:known], self.memory.room(known) - held).sum() if known else 0
            held = min(held, self.validating(known or task.seen, counts[new].min()))
            trained = len(task.train) - held * np.count_nonzero(task.train.counts) + kept
            yield int(trained), len(task.fresh) + held * known
            available[new] = counts[new] - held
            held = min(held, self.validating(task.seen, len(task.fresh)))

    def lengths(self, stream: Stream) -> list[Counter]:
        return [cuts(trained, self.hyper.batch_size, self.hyper.epochs) for trained, _ in self.gone_through(stream)]

    def declared(self, stream: Stream) -> dict[str, int]:
        """Student: every task's images, an epoch; teacher: the same from the second task on; statistics."""
        trained, statistics = zip(*self.gone_through(stream), strict=True)
        epochs = self.hyper.epochs
        passes = {"student": epochs * sum(trained), "teacher": epochs * sum(trained[1:]), "statistics": sum(statistics)}
        return passes | {"test": self.declared_tests(stream)}

    def stored_bytes(self) -> dict[str, int]:
        return super().stored_bytes() | {"exemplars": self.memory.bytes + self.held.bytes}


def correct(logits: torch.Tensor, sizes: list[int], corrections: torch.Tensor) -> torch.Tensor:
    """b z + g for every block of logits (n, seen): sizes are the blocks', corrections (tasks, 2) their b and g."""
    import torch

    blocks = zip(logits.split(list(sizes), dim=1), corrections, strict=True)
    return torch.cat([scale * block + offset for block, (scale, offset) in blocks], dim=1)


def fit_correction(
    logits: torch.Tensor, labels: torch.Tensor, known: int, h: BiCHyper, seed: int = 0, double_softmax: bool = False
) -> torch.Tensor:
    """b and g (2,) that minimise CE([z_old, b z_new + g], y) + offset_decay g^2 / 2 by SGD with momentum 0.9.

    logits: (n, seen), labels: (n,), of a balanced set; the first `known` classes are the old ones.
    """
    import torch
    from torch.nn.functional import cross_entropy

    from cilkit.data.transforms import batches

    found = torch.tensor([1.0, 0.0], device=logits.device, requires_grad=True)
    optimiser = torch.optim.SGD([found], lr=h.bias_lr * h.batch_size / 256, momentum=0.9)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimiser, list(h.bias_milestones), gamma=0.1)
    sizes = [known, logits.shape[1] - known]
    for epoch in range(h.bias_epochs):
        for cut in batches(len(labels), h.batch_size, seed, epoch):
            rows = torch.from_numpy(cut).to(logits.device)
            scale, offset = found
            old, new = logits[rows].split(sizes, dim=1)
            answers = torch.cat([old, scale * new + offset], dim=1)
            answers = answers.softmax(1) if double_softmax else answers
            loss = cross_entropy(answers, labels[rows]) + h.offset_decay * offset.square() / 2
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
        schedule.step()
    return found.detach()


LEARNER = BiC  # what this file's name stands for
