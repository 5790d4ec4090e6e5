"""WA: maintaining discrimination and fairness (Zhao et al., CVPR 2020, arXiv 1911.07053): distillation, and then new
classes' weights are made as long as those of the old ones. With l = old classes / all classes seen:

    L = (1 - l) CE(z, y) + l KD(z_old, z'),        KD with T = 2 and no factor T^2, over all old classes together
    after each later task:   W_new <- W_new  mean_c ||w_c|| over old classes / mean_c ||w_c|| over new ones

There is no official code; the loss and clipping are remembered, the alignment is read in PyCIL. The aligned head is the
head itself: it classifies, teaches the next task and goes on learning in it. Biases stay as they are (PyCIL, read).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cilkit.errors import UserError
from cilkit.learners.base import Batch
from cilkit.learners.lwf import distillation
from cilkit.learners.rehearsal import Rehearsal, RehearsalHyper

if TYPE_CHECKING:
    import torch

    from cilkit.data import Task
    from cilkit.learners.heads import TaskHeads


@dataclass(frozen=True)
class WAHyper(RehearsalHyper):
    """The paper on CIFAR-100 (remembered): 250 epochs, lr 0.1, a tenth after 100, 150 and 200, batch 32, weight decay
    2e-4, total 2000. PyCIL (read): 170 epochs, lr 0.1, a tenth after 60, 100 and 140, batch 128."""

    distillation: float = 0.0  # 0: (1 - l) and l, the paper's; > 0: its own weight beside a whole CE. PyCIL: 2 (read)
    distillation_temperature: float = 2.0  # T (PyCIL, read)
    clipping: bool = False  # after every step head weights below 0 become 0: the paper's (remembered), not in PyCIL

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.distillation_temperature <= 0 or self.distillation < 0:
            raise UserError(
                f"distillation_temperature is {self.distillation_temperature:g} and distillation {self.distillation:g}"
                "; expected a temperature above 0 and a weight of 0 or more"
            )


class WA(Rehearsal):
    """Heads: "raw", which is the aligned one, and "nme"."""

    Hyper = WAHyper
    # "pilot": PyCIL. Not followed: 200 epochs and weight decay 5e-4 in its first task.
    RECIPES = {"pilot": {"distillation": 2.0, "weight_decay": 2e-4}}

    @property
    def share(self) -> float:
        """l; 0 in the first task."""
        return self.known / self.seen

    def classification(self, logits: torch.Tensor, labels: torch.Tensor, old: bool = False) -> dict[str, torch.Tensor]:
        from torch.nn.functional import cross_entropy

        weight = 1.0 if self.hyper.distillation else 1 - self.share
        return {"classification": weight * cross_entropy(logits, labels)}

    def distillation(self, logits: torch.Tensor, taught: torch.Tensor) -> dict[str, torch.Tensor]:
        weight = self.hyper.distillation or self.share
        old = logits[:, : taught.shape[1]]  # (batch, known)
        return {"distillation": weight * distillation(old, taught, self.hyper.distillation_temperature)}

    def after_step(self, batch: Batch) -> None:
        if self.hyper.clipping:
            for head in self.raw.tasks:
                head.weight.data.clamp_(min=0)

    def end_task(self, task: Task) -> None:
        if self.known:
            align(self.raw)
        super().end_task(task)


def align(heads: TaskHeads) -> None:
    """Scale the newest head's weights (classes, dim) to the mean length of the older ones'."""
    import torch

    old, new = torch.cat([head.weight.data for head in heads.tasks[:-1]]), heads.tasks[-1].weight.data
    new *= old.norm(dim=1).mean() / new.norm(dim=1).mean()


LEARNER = WA  # what this file's name stands for
