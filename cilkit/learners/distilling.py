"""The seam of learners that distil: a loss in two halves, classification and distillation, each of whatever images.

    L = sum classification(read(x), y) + sum distillation(read(x), taught(x)),   x through the network once

A plug-in (synthetic_replay.py) sends further images through the network beside the batch, splits what comes out and
asks for either half again. What needs batch statistics or a pass of the network belongs into `trunk`; `read` is exact
per image.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cilkit.learners.base import Batch, Learner

if TYPE_CHECKING:
    import torch

    from cilkit.backbones import Backbone
    from cilkit.data import Stream
    from cilkit.learners.heads import TaskHeads


@dataclass(frozen=True)
class Teacher:
    """The network as a task found it: eval mode, no gradients."""

    network: Backbone
    heads: TaskHeads


class Distilling(Learner):
    """A learner with heads `raw` whose loss falls into classification and distillation.

    teacher: from the second task on, where it `teaches`; dropped at the task's end.
    """

    teacher: Teacher | None = None

    @property
    def teaches(self) -> bool:
        """Whether a task begins with a copy of the network for a teacher."""
        return True

    def keep_teacher(self) -> None:
        """To be called before the heads grow."""
        copy = self.raw.trainable_copy().requires_grad_(False)
        self.teacher = Teacher(self.backbone.frozen_copy(), copy) if self.known and self.teaches else None

    def trunk(self, images: torch.Tensor, kind: str = "student", network: Backbone | None = None) -> Any:
        """What one pass of the network makes of images (batch, 3, h, w): a tensor or a tuple of them, batch first."""
        return self.embed(images, kind) if network is None else network(images, kind)  # (batch, dim)

    def read(self, trunk: Any, heads: TaskHeads | None = None) -> Any:
        """What the loss is made of: logits (batch, seen)."""
        return (self.raw if heads is None else heads)(trunk)

    def taught(self, images: torch.Tensor) -> Any:
        """The teacher's reading of images: logits (batch, known), without gradients."""
        import torch

        with torch.no_grad():
            return self.read(self.trunk(images, "teacher", self.teacher.network), self.teacher.heads)

    def classification(self, reading: Any, labels: torch.Tensor, old: bool = False) -> dict[str, torch.Tensor]:
        """Terms by name. old: these are replayed images of old classes, whose softmax is over all classes seen."""
        raise NotImplementedError

    def distillation(self, reading: Any, taught: Any) -> dict[str, torch.Tensor]:
        """Terms by name, their weights included."""
        raise NotImplementedError

    def terms(self, reading: Any, batch: Batch) -> dict[str, torch.Tensor]:
        """The loss on the learner's own batch."""
        terms = self.classification(reading, batch.labels)
        if self.teacher is not None:
            terms |= self.distillation(reading, self.taught(batch.images))
        return terms

    def loss(self, batch: Batch) -> dict[str, torch.Tensor]:
        return self.terms(self.read(self.trunk(batch.images)), batch)

    def old_classes_return(self) -> None:
        """A plug-in will replay old classes in this task: heads that would stand still may have to learn."""

    def lengths(self, stream: Stream) -> list[Counter]:
        """Of each task, how many batches of which length its epochs have, for plug-ins that declare companions."""
        return [cuts(len(task.train), self.hyper.batch_size, self.hyper.epochs) for task in stream]

    def shown(self, images: list[int], taught: bool) -> dict[str, int]:
        """Passes by kind of so many images in each task through `trunk` and, from the second task on if taught, through
        `taught`; for plug-ins that declare companions."""
        return {"student": sum(images), "teacher": sum(images[1:]) if taught else 0}


def cuts(images: int, batch_size: int, epochs: int) -> Counter:
    """Length of a batch -> how many of them."""
    whole, rest = divmod(images, batch_size)
    return +(Counter({batch_size: whole * epochs}) + Counter({rest: epochs if rest else 0}))


def split(trunk: Any, lengths: Sequence[int]) -> list[Any]:
    """A trunk cut into rows, part by part."""
    if isinstance(trunk, tuple):
        return list(zip(*(one.split(list(lengths)) for one in trunk), strict=True))
    return list(trunk.split(list(lengths)))
