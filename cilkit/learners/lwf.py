"""LwF: learning without forgetting (Li and Hoiem, ECCV 2016 and TPAMI 2018), on a slow learner.

    L = CE(current task) + lambda KD
    KD = - mean over the batch of  sum_c softmax(z_old / T)_c  log softmax(z / T)_c,   c over all old classes together

z_old are the old classes' logits of the network as the task before left it, in eval mode, on the very same augmented
images of the new task; z those of the student. T = 2, and no factor T^2 (PyCIL, FACIL: read). The paper writes
softmax(z / T) as p^(1 / T) / sum p^(1 / T), which is the same (derived, tested). No exemplars.

SLCA's table has 87.99 / 92.13 on Split CIFAR-100 (remembered): below its slow learner without distillation. The whole
vector of old classes has one softmax here; a softmax for each old task is another choice, and one sigmoid for each
class ("LwF.MC") another method.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cilkit.errors import UserError
from cilkit.learners.base import Batch
from cilkit.learners.distilling import Distilling
from cilkit.learners.slow_learner import SlowLearner, SlowLearnerHyper

if TYPE_CHECKING:
    import torch

    from cilkit.data import Stream, Task


@dataclass(frozen=True)
class LwFHyper(SlowLearnerHyper):
    distillation: float = 1.0  # lambda: FACIL 1, PyCIL 3, mammoth 0.5 (read). 0: the slow learner
    distillation_temperature: float = 2.0  # T (read in all three)
    old_heads: str = "frozen"  # (FACIL): distillation moves the backbone alone; "trained" (PyCIL, one growing head)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.old_heads not in ("frozen", "trained"):
            raise UserError(f"old_heads is {self.old_heads!r}; expected 'frozen' or 'trained'")
        if self.distillation_temperature <= 0 or self.distillation < 0:
            raise UserError(
                f"distillation_temperature is {self.distillation_temperature:g} and distillation {self.distillation:g}"
                "; expected a temperature above 0 and a weight of 0 or more"
            )


class LwF(Distilling, SlowLearner):
    """The slow learner, taught its old answers. distillation = 0 is the slow learner, bit for bit."""

    Hyper = LwFHyper
    # "pilot": PyCIL. Not followed: mammoth warms the new head up, and asks its teacher once, about unaugmented images.
    RECIPES = {
        "pilot": {"distillation": 3.0, "old_heads": "trained"},
        "mammoth": {"distillation": 0.5, "local_softmax": False},
    }

    @property
    def teaches(self) -> bool:
        return bool(self.hyper.distillation)

    def begin_task(self, task: Task) -> None:
        self.keep_teacher()
        super().begin_task(task)
        if self.hyper.old_heads == "trained" and self.hyper.distillation:
            self.raw.requires_grad_(True)

    def loss(self, batch: Batch) -> dict[str, torch.Tensor]:
        if self.teacher is None:
            return SlowLearner.loss(self, batch)
        return super().loss(batch)

    def classification(self, logits: torch.Tensor, labels: torch.Tensor, old: bool = False) -> dict[str, torch.Tensor]:
        """Over the current task's classes alone or, where every head learns, over all (batch, seen)."""
        from torch.nn.functional import cross_entropy

        first = self.known if self.local and not old else 0
        return {"classification": cross_entropy(logits[:, first:], labels - first)}

    def distillation(self, logits: torch.Tensor, taught: torch.Tensor) -> dict[str, torch.Tensor]:
        weight, t = self.hyper.distillation, self.hyper.distillation_temperature
        return {"distillation": weight * distillation(logits[:, : taught.shape[1]], taught, t)}

    def old_classes_return(self) -> None:
        """As in streams where they come again: every head learns, and new images compete with old classes."""
        self.raw.requires_grad_(True)
        self.local = False

    def end_task(self, task: Task) -> None:
        super().end_task(task)
        self.teacher = None

    def declared(self, stream: Stream) -> dict[str, int]:
        """The slow learner's; the teacher sees every batch from the second task on."""
        if not self.teaches:
            return super().declared(stream)
        taught = sum(len(task.train) for task in list(stream)[1:])
        return super().declared(stream) | {"teacher": self.hyper.epochs * taught}


def distillation(logits: torch.Tensor, taught: torch.Tensor, temperature: float) -> torch.Tensor:
    """KD: cross-entropy of the softened answers (batch, known) against the teacher's, mean over the batch."""
    from torch.nn.functional import cross_entropy

    return cross_entropy(logits / temperature, (taught / temperature).softmax(1))


LEARNER = LwF  # what this file's name stands for
