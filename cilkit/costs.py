"""What a run costs, before it is run: floating-point operations of each pass, counted, times the declared images.

A multiplication and an addition are two operations. Counted is what goes through the backbone; heads, alignment, ridge
regression and the reading of images come on top (under a hundredth for a ViT-B/16, ridge regression in 10,000
dimensions aside).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cilkit.backbones import Backbone
    from cilkit.data import Stream, Task
    from cilkit.learners import Learner

BACKWARD = ("student", "fisher")  # kinds of passes that are followed by a backward pass
OWN_WAY = ("student", "statistics", "test")  # kinds that read an image the learner's way: with its prompts, adapters …


@dataclass(frozen=True)
class Cost:
    """images: by kind of pass, as the learner declares them. flops: of one image, by kind, backward pass included."""

    images: dict[str, int]
    flops: dict[str, int]

    @property
    def total(self) -> int:
        return sum(count * self.flops[kind] for kind, count in self.images.items())

    def hours(self, rate: float) -> float:
        """At a rate in operations a second that somebody states: derived, never measured."""
        return self.total / rate / 3600


def meta(arch: str, model_args: dict[str, Any] | None = None) -> Backbone:
    """A backbone without numbers, on torch's meta device: nothing is computed, operations can still be counted. Not for
    networks with batch normalisation, whose running statistics are looked at."""
    import torch

    from cilkit import backbones

    with torch.device("meta"):
        return backbones.create(arch, model_args=model_args)


def counted(learner: Learner, stream: Stream) -> Cost:
    """The cost of a stream. The learner, fresh, is used up by this."""
    images = {kind: count for kind, count in learner.declared(stream).items() if count}
    flops = per_image(learner, stream[0], int(stream[0].train.sizes.max()))
    return Cost(images, {kind: flops[kind] for kind in images})


def per_image(learner: Learner, task: Task, size: int = 0) -> dict[str, int]:
    """Operations of one image, by kind, counted at the beginning of a task. The learner, fresh, is used up by this.

    size: pixels on a side, where neither the transforms nor the backbone have a size of their own.
    """
    from cilkit.backbones import KINDS

    learner.sizes.append(len(task.classes))
    plain, _ = _operations(learner.backbone, learner, "teacher", size)
    learner.begin_task(task)
    forward, backward = _operations(learner.embed if learner.needs else learner.backbone, learner, "student", size)
    return {kind: (forward if kind in OWN_WAY else plain) + backward * (kind in BACKWARD) for kind in KINDS}


def _operations(embed, learner: Learner, kind: str, size: int) -> tuple[int, int]:
    """Operations of one image's forward and backward pass; other kinds' passes on the way (queries) are taken off."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    backbone, n = learner.backbone, 2
    size = learner.recipe.size or backbone.input.size or size
    images = torch.zeros(n, 3, size, size, device=backbone.device)
    before = backbone.forwarded.copy()
    backbone.eval()
    with FlopCounterMode(display=False) as counter:
        features = embed(images, kind)
        forward = counter.get_total_flops()
        if features.requires_grad:
            features.sum().backward()
        backward = counter.get_total_flops() - forward
    others = sum((backbone.forwarded - before).values()) - n
    if others:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            backbone(images[:1], "query")
        forward -= others * counter.get_total_flops()
    return forward // n, backward // n
