"""Future-class replay: painted images of classes that are foreseen, but not met yet, beside every batch.

    L = L_learner(real) + w 1/2 [ CE(z(real), y) + CE(z(foreseen), y') ],   z = (the learner's heads, foreseen outputs)

After FPCIL (Jodelet et al., arXiv 2404.03200): that images of future classes prepare a feature extractor which then
stands still is read (abstract); how it is trained was not read, so that all else is ours. A plug-in for learners that
distil and whose network makes features in one piece: "lwf+future_replay", "icarl+future_replay".

A foreseen class is a name of the image set that is not among those seen; what the stream will bring is never looked at.
Its output stands beside the heads in training alone, goes when its class arrives, and never answers at a test. It is
extra data of a kind that methods without it do not have, and where the image set names the stream's classes, the names
of the classes to come are given away: results must say so.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from cilkit.errors import UserError
from cilkit.learners.base import Batch, derive, part
from cilkit.learners.distilling import Distilling, split
from cilkit.learners.synthetic_replay import companions, draw, rows_by_class

if TYPE_CHECKING:
    import torch

    from cilkit.data import ImageSet, Stream, Task


@dataclass(frozen=True)
class FutureReplayHyper:
    future_weight: float = 1.0  # w [ours]
    future_ratio: float = 1.0  # foreseen images a real one in a batch [ours]
    inherit: bool = False  # a new class's weights begin as those of its foreseen output [ours]
    only_first: bool = False  # foreseen images in the first task alone; then the backbone stands still [read, abstract]

    def __post_init__(self) -> None:
        if min(self.future_weight, self.future_ratio) < 0:
            raise UserError(
                f"future_weight is {self.future_weight:g} and future_ratio {self.future_ratio:g}; expected 0 or more"
            )


class FutureReplay:
    """Mix it in before a learner's class.

    images:   an image set whose classes are found by name.
    foreseen: names of its classes that have an output now. outputs: their weights (foreseen, dim), without bias.
    shown_bytes: pixels of the foreseen classes' images, in the task that had most of them.
    """

    takes_images = True
    Hyper = FutureReplayHyper
    protocols = ("class",)

    @classmethod
    def check_base(cls, base: type) -> None:
        """UserError for a learner without a trunk of features, and for one that takes images already."""
        if getattr(base, "takes_images", False):
            raise UserError(
                f"{base.__name__} takes images already, and a learner takes one set; plug in one of the two"
            )
        if not issubclass(base, Distilling) or base.trunk is not Distilling.trunk:
            raise UserError(
                "future replay needs a loss in two halves over features (learners.distilling.Distilling), and "
                f"{base.__name__} has none; choose a learner such as lwf, icarl, wa or bic"
            )

    def __init__(self, backbone, *, images: ImageSet | None = None, **settings) -> None:
        super().__init__(backbone, **settings)
        self.images, self.foreseen, self.shown_bytes = images, [], 0
        self.outputs = self.outputs_for([])
        if self.looks_ahead and not hasattr(images, "class_names"):
            raise UserError("future replay needs an image set; give images= one, or future_weight 0")

    @property
    def looks_ahead(self) -> bool:
        return bool(self.hyper.future_weight and self.hyper.future_ratio)

    def shows(self, index: int) -> bool:
        """Whether the task at this place is learnt beside foreseen classes, if there are any left."""
        return self.looks_ahead and not (self.hyper.only_first and index)

    def begin_task(self, task: Task) -> None:
        """Classes that arrive lose their foreseen outputs; those still to come keep theirs."""
        super().begin_task(task)
        if not self.looks_ahead:
            return
        if self.hyper.only_first and task.index:
            self.backbone.requires_grad_(False)
            self.norm_statistics = "frozen"
        before = dict(zip(self.foreseen, self.outputs.data, strict=True))
        if self.hyper.inherit:
            for row, label in enumerate(task.classes):
                own = self.raw.current.weight.data[row]
                own.copy_(before.get(task.train.class_names[label], own))
        seen = set(task.train.class_names[: self.seen])
        self.foreseen = [name for name in self.images.class_names if name not in seen] if self.shows(task.index) else []
        self.outputs = self.outputs_for(self.foreseen)
        for row, name in zip(self.outputs.data, self.foreseen, strict=True):
            row.copy_(before.get(name, row))
        self._rows = rows_by_class(self.images, self.foreseen)
        bytes_each = self.images.sizes.astype(np.int64).prod(1) * 3
        self.shown_bytes = max(self.shown_bytes, sum(int(bytes_each[rows].sum()) for rows in self._rows))

    def outputs_for(self, names: list[str]) -> torch.nn.Parameter:
        """A row a name: normal with std 0.02, from (seed_init, name)."""
        import torch

        rows = torch.empty(len(names), self.dim)
        for row, name in zip(rows, names, strict=True):
            generator = torch.Generator().manual_seed(derive(self.seed_init, name, "foreseen"))
            row.normal_(std=0.02, generator=generator)
        return torch.nn.Parameter(rows.to(self.backbone.device))

    def optimiser(self, task: Task):
        """The learner's; foreseen outputs learn as its heads do, at lr."""
        optimiser, schedule = super().optimiser(task)
        if self.foreseen:
            optimiser.add_param_group({"params": [self.outputs], "lr": self.hyper.lr})
        return optimiser, schedule

    def batches(self, task: Task, epoch: int) -> Iterator[Batch]:
        """The learner's own, each with images of foreseen classes beside it, the class uniform; labels count on behind
        the classes seen."""
        real = super().batches(task, epoch)
        if not self.foreseen:
            yield from real
            return
        random = np.random.default_rng(derive(self.seed_data, task.index, epoch, "foreseen"))
        augmented = self.augmenter(task, epoch, "foreseen augmentation")
        for batch in real:
            rows, labels = draw(self._rows, companions(len(batch.labels), self.hyper.future_ratio), random)
            yield replace(batch, extra=augmented(self.images.read(rows, self.recipe.shortest), labels + self.seen))

    def loss(self, batch: Batch) -> dict[str, torch.Tensor]:
        """One student pass over real and foreseen images together."""
        import torch
        from torch.nn.functional import cross_entropy

        later = batch.extra
        if not self.foreseen or not len(later.labels):
            return super().loss(batch)
        both = self.trunk(torch.cat([batch.images, later.images]))
        parts = split(both, [len(batch.images), len(later.images)])
        halves = [
            cross_entropy(torch.cat([self.raw(features), features @ self.outputs.T], dim=1), labels)
            for features, labels in zip(parts, (batch.labels, later.labels), strict=True)
        ]
        return self.terms(self.read(parts[0]), batch) | {"future": self.hyper.future_weight * sum(halves) / 2}

    # ------------------------------------------------------------ keeping and counting

    def state(self) -> dict[str, torch.Tensor]:
        import torch

        if not self.looks_ahead:
            return super().state()
        places = [self.images.class_names.index(name) for name in self.foreseen]
        kept = {"places": torch.tensor(places, dtype=torch.int64), "shown_bytes": torch.tensor(self.shown_bytes)}
        kept["weight"] = self.outputs.data
        return super().state() | {f"foreseen.{name}": value for name, value in kept.items()}

    def load(self, state: dict[str, torch.Tensor]) -> None:
        super().load(state)
        if self.looks_ahead:
            kept = part(state, "foreseen.")
            self.foreseen = [self.images.class_names[place] for place in kept["places"].tolist()]
            self.outputs = self.outputs_for(self.foreseen)
            self.outputs.data.copy_(kept["weight"])
            self.shown_bytes = int(kept["shown_bytes"])

    def declared(self, stream: Stream) -> dict[str, int]:
        """The learner's, and the companions of every batch while there are foreseen classes left."""
        declared = super().declared(stream)
        for task, lengths in zip(stream, self.lengths(stream), strict=True):
            if self.shows(task.index) and set(self.images.class_names) - set(stream.class_names[: task.seen]):
                declared["student"] += sum(companions(n, self.hyper.future_ratio) * k for n, k in lengths.items())
        return declared

    def stored_bytes(self) -> dict[str, int]:
        """The learner's, and the images of all classes that were foreseen in any task, as pixels."""
        kept = super().stored_bytes()
        return kept | {"foreseen images": self.shown_bytes} if self.looks_ahead else kept


PLUGIN = FutureReplay  # what this file's name stands for
