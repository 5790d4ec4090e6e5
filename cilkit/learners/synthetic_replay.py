"""Synthetic replay and distillation (SDDR): painted images of old classes beside the real batch, used twice.

    L = L_cls(real) + a L_cls(synthetic) + lambda [ L_dist(real) + b L_dist(synthetic) ]        (specs, section 2)

A plug-in for learners that offer `logits`, `taught`, `terms`, `classification` and `distillation` (iCaRL here). Arms:
none a = b = 0 (bit for bit the learner without the plug-in), distillation a = 0, replay b = 0, both. Synthetic images
never reach herding, exemplar means, validation or accuracy, and no class is shown before its own task is over.

Weights are our decision (the paper's are not known to us): each term is the mean over the concatenated rows, so
a = b = 1 gives the real and the synthetic half equal weight and a = 0 or b = 0 leaves that term as the learner has it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from cilkit.errors import UserError
from cilkit.learners.base import Batch, derive
from cilkit.learners.icarl import ICaRL, ICaRLHyper

if TYPE_CHECKING:
    import torch

    from cilkit.data import ImageSet, Stream, Task


@dataclass(frozen=True)
class SyntheticReplayHyper(ICaRLHyper):
    a: float = 1.0  # weight of classification on synthetic images
    b: float = 1.0  # weight of distillation on synthetic images
    ratio: float = 1.0  # synthetic images a real one in a batch; SDDR: 1 (our reading), 500 stored a class (quoted)


class SyntheticReplay:
    """Mix it in before a learner's class: `class Mine(SyntheticReplay, MyLearner)`."""

    takes_images = True

    def __init__(self, backbone, *, images: ImageSet | None = None, **settings) -> None:
        super().__init__(backbone, **settings)
        self.synthetic = images
        self.shown_bytes = 0  # pixels of the synthetic images that the last task could draw from
        if self.replays and images is None:
            raise UserError("synthetic replay needs images; give images= an image set, or a = b = 0")

    @property
    def replays(self) -> bool:
        return bool((self.hyper.a or self.hyper.b) and self.hyper.ratio)

    def begin_task(self, task: Task) -> None:
        super().begin_task(task)
        if self.replays and self.known:
            self._rows = rows_by_class(self.synthetic, task.train.class_names[: self.known])
            self.shown_bytes = int(self.synthetic.sizes[np.concatenate(self._rows)].astype(np.int64).prod(1).sum() * 3)

    def batches(self, task: Task, epoch: int) -> Iterator[Batch]:
        """The learner's own batches, each with synthetic images beside it from the second task on."""
        real = super().batches(task, epoch)
        if not (self.replays and self.known):
            yield from real
            return
        random = np.random.default_rng(derive(self.seed_data, task.index, epoch, "synthetic"))
        augmented = self.augmenter(task, epoch, "synthetic augmentation")
        for batch in real:
            rows, labels = draw(self._rows, companions(len(batch.labels), self.hyper.ratio), random)
            yield replace(batch, extra=augmented(self.synthetic.read(rows), labels))

    def loss(self, batch: Batch) -> dict[str, torch.Tensor]:
        """One student pass over real and synthetic images together; the terms by name."""
        import torch

        if batch.extra is None or not len(batch.extra.labels):
            return super().loss(batch)
        h, fake = self.hyper, batch.extra
        both = self.logits(torch.cat([batch.images, fake.images]))  # (real + synthetic, seen)
        logits, fake_logits = both.split([len(batch.labels), len(fake.labels)])
        terms = self.terms(logits, batch)
        share = len(fake.labels) / len(batch.labels)
        if h.a:
            term = self.classification(fake_logits, fake.labels)  # over all classes: a label of an old class
            terms["classification"] = terms["classification"] / (1 + h.a * share)
            terms["replay"] = h.a * share / (1 + h.a * share) * term
        if h.b:
            term = h.distillation * self.distillation(fake_logits, self.taught(fake.images))
            terms["distillation"] = terms["distillation"] / (1 + h.b * share)
            terms["synthetic distillation"] = h.b * share / (1 + h.b * share) * term
        return terms

    def declared(self, stream: Stream) -> dict[str, int]:
        """The learner's, and from the second task on the companions of every batch; the teacher sees them if b > 0."""
        declared = super().declared(stream)
        if not self.replays:
            return declared
        h, extra = self.hyper, 0
        for task, kept in list(zip(stream, self.replayed(stream), strict=True))[1:]:
            whole, rest = divmod(len(task.train) + kept, h.batch_size)
            extra += h.epochs * (whole * companions(h.batch_size, h.ratio) + companions(rest, h.ratio))
        return declared | {
            "student": declared["student"] + extra,
            "teacher": declared["teacher"] + (extra if h.b else 0),
        }

    def state(self) -> dict[str, torch.Tensor]:
        import torch

        return super().state() | {"shown_bytes": torch.tensor(self.shown_bytes)}

    def load(self, state: dict[str, torch.Tensor]) -> None:
        super().load(state)
        self.shown_bytes = int(state["shown_bytes"])

    def stored_bytes(self) -> dict[str, int]:
        """The learner's, and the synthetic images of the classes that the last task replayed, as pixels."""
        return super().stored_bytes() | ({"synthetic images": self.shown_bytes} if self.replays else {})


class SyntheticReplayICaRL(SyntheticReplay, ICaRL):
    """SDDR on iCaRL."""

    Hyper = SyntheticReplayHyper


def companions(real: int, ratio: float) -> int:
    """Synthetic images beside a batch of `real` ones."""
    return round(ratio * real)


def rows_by_class(images: ImageSet, class_names: list[str]) -> list[np.ndarray]:
    """Positions of each named class's images. UserError for a class without any."""
    own = np.asarray(images.class_names, object)[images.labels]
    rows = [np.flatnonzero(own == name) for name in class_names]
    for name, found in zip(class_names, rows, strict=True):
        if not len(found):
            raise UserError(f"class {name!r} has no synthetic images; paint some, or use the arm with a = b = 0")
    return rows


def draw(rows: list[np.ndarray], count: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """`count` positions and stream labels: the class uniform over the old ones, then the image uniform in its class."""
    labels = random.integers(len(rows), size=count)
    places = random.random(count)
    positions = [rows[label][int(place * len(rows[label]))] for label, place in zip(labels, places, strict=True)]
    return np.array(positions, np.int64), labels.astype(np.int64)


LEARNER = SyntheticReplayICaRL  # what this file's name stands for
