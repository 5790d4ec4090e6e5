"""Gaussian feature replay: old classes come back as samples in feature space, while a task is learnt.

    L = L_learner(batch) + w CE(W x + b, c),   x ~ N(mu_c, S_c), c uniform over the old classes, over all classes seen

A plug-in for every learner with linear heads: "finetune+gaussian_replay"; of several plug-ins it is the last. Samples
reach the heads alone. As old classes are back, every head learns, and the learner's own softmax is over all classes
seen. PASS (Zhu et al., CVPR 2021) replays class means under noise of one radius, and SLCA samples after a task, for
heads of their own (alignment.py); during a task, with a covariance a class, is ours.

Mean and covariance are those of the network that learnt the class. What the network becomes later they do not follow:
the more a backbone moves, the less its old Gaussians say. Meant for slow or frozen backbones that come trained; one
that learns fast, or from random weights, loses more by the softmax over all classes than the samples give (measured).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count
from typing import TYPE_CHECKING

import numpy as np

from cilkit import precision
from cilkit.errors import UserError
from cilkit.learners.base import Batch, derive, part
from cilkit.learners.statistics import KINDS, ClassStatistics

if TYPE_CHECKING:
    import torch

    from cilkit.data import Stream, Task
    from cilkit.learners.base import Learner

AT_ONCE = 256  # samples of each class that are drawn together: factors are unpacked once for many batches


@dataclass(frozen=True)
class GaussianReplayHyper:
    gaussian_weight: float = 1.0  # w [ours]; PASS: 10, of its prototypes' term [remembered]. 0: off, without statistics
    gaussian_batch: int = 32  # samples beside a batch [ours]
    gaussians: str = "full"  # or "low_rank", "diagonal", "shared": see statistics.py [ours]
    gaussian_rank: int = 16  # of "low_rank" [ours]

    def __post_init__(self) -> None:
        if self.gaussians not in KINDS:
            raise UserError(f"gaussians is {self.gaussians!r}; expected one of {', '.join(KINDS)}")
        if self.gaussian_weight < 0 or self.gaussian_batch < 1:
            raise UserError(
                f"gaussian_weight is {self.gaussian_weight:g} and gaussian_batch {self.gaussian_batch}; expected a "
                "weight of 0 or more and 1 sample or more"
            )


class GaussianReplay:
    """Mix it in before a learner's class. class_gaussians: of every class learnt, as the network then was."""

    Hyper = GaussianReplayHyper
    protocols = ("class",)

    @classmethod
    def check_base(cls, base: type[Learner]) -> None:
        """UserError for a learner without linear heads."""
        if not base.linear_heads:
            raise UserError(
                f"gaussian replay needs linear heads over the features (learners.heads.TaskHeads), and {base.__name__} "
                "has none that last; choose a learner such as finetune, slow_learner, lwf or bic"
            )

    def __init__(self, backbone, **settings) -> None:
        before = type(self).__mro__[: type(self).__mro__.index(GaussianReplay)]
        if any("takes_images" in vars(one) for one in before):
            raise UserError("another plug-in's loss would leave the samples out; name '+gaussian_replay' last")
        super().__init__(backbone, **settings)

    def build(self) -> None:
        super().build()
        self.class_gaussians = ClassStatistics(self.dim, self.hyper.gaussians, self.hyper.gaussian_rank)

    @property
    def samples(self) -> bool:
        """Whether the present task has old classes to sample."""
        return bool(self.hyper.gaussian_weight and self.known)

    def begin_task(self, task: Task) -> None:
        super().begin_task(task)
        if self.samples:
            self.raw.requires_grad_(True)
            self.local = False  # softmax over all classes seen, where a learner has another

    def batches(self, task: Task, epoch: int) -> Iterator[Batch]:
        """The learner's own, each with `extra`: samples (gaussian_batch, dim) and their labels, on the device."""
        real = super().batches(task, epoch)
        if not self.samples:
            return real
        drawn = self.drawn(task, epoch)
        return (replace(batch, extra=replace(next(drawn), extra=batch.extra)) for batch in real)

    def drawn(self, task: Task, epoch: int) -> Iterator[Batch]:
        """Samples without end, every class as often as another; their chance depends on (seed_data, task, epoch)."""
        import torch

        from cilkit.learners.sampling import GaussianSampler

        size, device = self.hyper.gaussian_batch, self.backbone.device
        sampler = GaussianSampler(self.class_gaussians, np.ones(self.known), device)
        each = max(AT_ONCE, -(-size // self.known))

        def draw(block: int) -> Batch:
            seed = derive(self.seed_data, task.index, epoch, block, "gaussians")
            generator = torch.Generator(device).manual_seed(seed)
            features, labels = sampler.draw(each, generator)
            order = torch.randperm(len(labels), generator=generator, device=device)
            return Batch(features[order], labels[order])  # copies: the next draw overwrites `features`

        prepared = precision.on_own_stream(draw, device)
        for block in count():
            found = prepared(block)
            for start in range(0, each * self.known - size + 1, size):  # what is left over is dropped
                rows = slice(start, start + size)
                yield Batch(found.images[rows], found.labels[rows])

    def loss(self, batch: Batch) -> dict[str, torch.Tensor]:
        if not self.samples:
            return super().loss(batch)
        from torch.nn.functional import cross_entropy

        drawn = batch.extra
        logits = self.raw(drawn.images)  # (gaussian_batch, seen)
        term = self.hyper.gaussian_weight * cross_entropy(logits, drawn.labels)
        return super().loss(replace(batch, extra=drawn.extra)) | {"gaussian replay": term}

    def end_task(self, task: Task) -> None:
        """Of each new class, mean and covariance of its training features in the network as it now is."""
        super().end_task(task)
        if not self.hyper.gaussian_weight:
            return
        new = task.fresh
        features = self.features(new, "statistics")  # (n, dim), test transform, eval mode
        for label in task.classes:
            self.class_gaussians.add(features[new.labels == label], new.class_names[label])

    def state(self) -> dict[str, torch.Tensor]:
        import torch

        kept = self.class_gaussians.state()
        return super().state() | {f"gaussians.{name}": torch.from_numpy(value) for name, value in kept.items()}

    def load(self, state: dict[str, torch.Tensor]) -> None:
        super().load(state)
        self.class_gaussians.load({name: value.numpy() for name, value in part(state, "gaussians.").items()})

    def declared(self, stream: Stream) -> dict[str, int]:
        """The learner's, and one pass over each new class's training images for its statistics, with its queries."""
        declared = super().declared(stream)
        kinds = ("statistics", *({"query"} & set(declared))) if self.hyper.gaussian_weight else ()
        return declared | {kind: declared.get(kind, 0) + len(stream.train) for kind in kinds}

    def stored_bytes(self) -> dict[str, int]:
        kept = super().stored_bytes()
        return kept | {"class Gaussians": self.class_gaussians.bytes} if self.hyper.gaussian_weight else kept


PLUGIN = GaussianReplay  # what this file's name stands for
