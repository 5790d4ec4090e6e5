"""Deep generative replay (Shin et al., NeurIPS 2017): a generator of one's own, trained task by task, replays.

    after task t:     the generator learns D_t and its own samples of the classes before
    during task t+1:  L = L_cls(real) + a L_cls(samples) + lambda [ L_dist(real) + b L_dist(samples) ]

A plug-in for every learner that distils, by the loss of synthetic_replay.py: "lwf+generative_replay". The paper's
generator is a GAN without classes, whose samples the network before labels ("solver"; remembered); this one is asked
for a class, as DDGR's diffusion model is (Gao and Liu, ICML 2023), and may be labelled either way. It is the only thing
kept, starts from nothing and sees nothing but the stream: no pre-trained generator, no names.

Samples are painted once a task, before it, and used both for replay and for the generator's next lesson. A learner
whose own softmax is over the new classes alone never holds real new images against old classes: with lwf, set
local_softmax to false (on three tasks of digits 92.6 % in place of 62.0 %; lwf alone 79.6; one run each).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from cilkit.errors import UserError
from cilkit.learners.base import Batch, Learner, derive, part
from cilkit.learners.synthetic_replay import Painter, SyntheticReplay, SyntheticReplayHyper, companions

if TYPE_CHECKING:
    import torch

    from cilkit.data import ImageSet, Stream, Task


@dataclass(frozen=True)
class GenerativeReplayHyper(SyntheticReplayHyper):
    """Of the painter all is ours: what a minute or two a task on one thread allow."""

    b: float = 0.0  # the paper replays for classification alone [remembered]
    repaint: bool = True  # always
    painted_per_class: int = 64  # samples of each old class a task [ours]
    labels: str = "condition"  # the class asked for; "solver": what the network before answers (Shin's, remembered)
    painter_steps: int = 300  # of fitting a task. DDGR: 15,000 (read)
    painter_batch: int = 32  # DDGR: 64 (read)
    painter_lr: float = 2e-3  # DDGR: 1e-4 (read), for a network many times as large
    painter_width: int = 16  # channels at full size
    painter_size: int = 0  # pixels on a side that it works in; 0: the images' own. DDGR: 64 (read)
    painter_sampling: int = 20  # DDIM steps an image. DDGR: 250 of 4,000 (read)
    painter_ema: float = 0.99  # of its weights' moving average

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.labels not in ("condition", "solver"):
            raise UserError(f"labels is {self.labels!r}; expected 'condition' or 'solver'")
        if self.source != "classes" or self.new_classes or not self.repaint:
            raise UserError(
                "generative replay paints old classes itself; leave source, new_classes and repaint as they are"
            )
        whole = ("painter_steps", "painter_batch", "painter_sampling")
        for name in whole:
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; expected 1 or more")


class LearningPainter(Painter, Protocol):
    """A painter that starts from nothing. `bytes` is what `state` holds."""

    def fit(self, sets: Sequence[ImageSet], names: Sequence[str], seed: int) -> None:
        """Learn these images, labelled by place in `names`; new names are behind the old ones."""

    def state(self) -> dict[str, torch.Tensor]: ...

    def load(self, state: dict[str, torch.Tensor]) -> None: ...


class GenerativeReplay(SyntheticReplay):
    """images: a `LearningPainter`, which whoever creates the learner makes from its parameters `painter_…`."""

    Hyper = GenerativeReplayHyper
    paints_itself = True

    def __init__(self, backbone, *, images: LearningPainter | None = None, **settings) -> None:
        super().__init__(backbone, images=images, **settings)
        if self.replays and not hasattr(images, "fit"):
            raise UserError("generative replay needs a painter that learns; give none of your own to `cilkit.run`")
        if self.asks_solver and type(self).embed is not Learner.embed:
            raise UserError(
                f"{self.name!r} reads an image in its own way, and labels is 'solver'; set it to 'condition'"
            )

    @property
    def asks_solver(self) -> bool:
        return bool(self.replays and self.hyper.a) and self.hyper.labels == "solver"

    @property
    def teaches(self) -> bool:
        return super().teaches or self.asks_solver

    def loss(self, batch: Batch) -> dict[str, torch.Tensor]:
        if self.asks_solver and batch.extra is not None and len(batch.extra.labels):
            batch = replace(batch, extra=replace(batch.extra, labels=self.answers(batch.extra.images)))
        return super().loss(batch)

    def answers(self, images: torch.Tensor) -> torch.Tensor:
        """The old class (batch,) that the network before sees in each image."""
        import torch

        with torch.no_grad():
            return self.teacher.heads(self.teacher.network(images, "teacher")).argmax(1)

    def end_task(self, task: Task) -> None:
        """The painter learns the task, and of the classes before it what it painted for this task."""
        super().end_task(task)
        if self.replays:
            sets = [task.fresh, self.synthetic] if self.known else [task.fresh]
            seed = derive(self.seed_data, task.index, "painter")
            self.images.fit(sets, task.train.class_names[: self.seen], seed)

    def state(self) -> dict[str, torch.Tensor]:
        kept = self.images.state() if self.replays else {}
        return super().state() | {f"painter.{name}": value for name, value in kept.items()}

    def load(self, state: dict[str, torch.Tensor]) -> None:
        super().load(state)
        if self.replays:
            self.images.load(part(state, "painter."))

    def declared(self, stream: Stream) -> dict[str, int]:
        """Synthetic replay's; the network before also answers for every companion where it is the solver."""
        declared = super().declared(stream)
        if self.asks_solver:
            lengths = [item for lengths in self.lengths(stream)[1:] for item in lengths.items()]
            declared["teacher"] += sum(count * companions(length, self.hyper.ratio) for length, count in lengths)
        return declared


PLUGIN = GenerativeReplay  # what this file's name stands for
