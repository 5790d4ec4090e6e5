"""Sequential fine-tuning: every task trains the whole network, and nothing protects what came before.

It is also the first stage of SLCA (Zhang et al., ICCV 2023): with `slow_rate` 1 / 100 it is their slow learner.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cilkit import precision
from cilkit.errors import UserError
from cilkit.learners.base import Batch, Learner, check_norm_statistics, part

if TYPE_CHECKING:
    import torch

    from cilkit.data import Stream, Task


@dataclass(frozen=True)
class FinetuneHyper:
    """SLCA's stage-1 values (read in its code) stand in the comments where ours differ: our decision for 32 x 32
    images, small tasks and 10 s a run on one thread."""

    epochs: int = 4  # a task. SLCA: 20 (CIFAR-100), 50 (ImageNet-R, CUB-200, Cars-196)
    milestones: tuple[int, ...] = (3,)  # epochs after which lr is divided by 10. SLCA: 18 of 20, 40 of 50
    batch_size: int = 32  # SLCA: 128
    lr: float = 0.01  # of the head, and of the backbone times slow_rate (SLCA: 0.01)
    slow_rate: float = 1.0  # backbone lr / head lr; 0 freezes the backbone
    momentum: float = 0.9
    weight_decay: float = 5e-4  # on everything, biases and norms included
    local_softmax: bool = True  # cross-entropy over the current task's classes only; old heads frozen and left out
    recipe: str = "digits"  # transforms, see cilkit.data.transforms. SLCA: "slca_cifar", "slca_imagenet_r" …
    image_size: int = 0  # pixels on a side, for recipes that resize; 0: the backbone's own
    # Batch normalisation in training: "frozen" running statistics, each "batch"'s own, or "auto": frozen where the
    # backbone comes trained. Our decision: the papers' transformers have none that two classes could pull away.
    norm_statistics: str = "auto"
    recipe_of: str = "paper"  # whose: see the learner's RECIPES
    leaks: tuple[str, ...] = ()  # known leaks to switch on: see the learner's leaks

    def __post_init__(self) -> None:
        check_norm_statistics(self.norm_statistics)
        if "softmax_over_all" in self.leaks and not self.local_softmax:
            raise UserError("the leak 'softmax_over_all' changes nothing where local_softmax is False; leave it out")
        if self.slow_rate == 0 and self.norm_statistics == "batch":
            raise UserError("slow_rate 0 freezes the backbone; leave norm_statistics at 'auto' with it")


class Finetune(Learner):
    """One linear head a task on a backbone that goes on learning."""

    Hyper = FinetuneHyper
    protocols = ("class", "domain")
    linear_heads = True
    leaks = {
        "softmax_over_all": "cross-entropy over all classes seen, with the old heads still frozen: the commonest "
        "mistake in stage 1 of SLCA (slca.md, section 12)"
    }

    def build(self) -> None:
        from cilkit.learners.heads import TaskHeads

        self.raw = TaskHeads(self.dim)
        if self.frozen:
            self.backbone.requires_grad_(False)
            self.norm_statistics = "frozen"

    @property
    def frozen(self) -> bool:
        return self.hyper.slow_rate == 0

    def begin_task(self, task: Task) -> None:
        # Where old classes come again (cumulative and domain streams) every head learns, over all classes.
        fresh = self.hyper.local_softmax and task.train.labels.min() >= self.known
        self.local = fresh and not self.leaking("softmax_over_all")
        if task.classes:
            self.raw.grow(len(task.classes), self.seed_init, fresh, self.backbone.device)

    def optimiser(self, task: Task):
        import torch

        h = self.hyper
        groups = [{"params": [p for p in self.raw.parameters() if p.requires_grad], "lr": h.lr}]
        if not self.frozen:
            groups.append({"params": list(self.backbone.parameters()), "lr": h.lr * h.slow_rate})
        optimiser = precision.sgd(groups, self.backbone.device, momentum=h.momentum, weight_decay=h.weight_decay)
        return optimiser, torch.optim.lr_scheduler.MultiStepLR(optimiser, list(h.milestones), gamma=0.1)

    def loss(self, batch: Batch) -> dict[str, torch.Tensor]:
        from torch.nn.functional import cross_entropy

        features = self.embed(batch.images, "student")  # (batch, dim)
        if self.local:
            return {"classification": cross_entropy(self.raw.current(features), batch.labels - self.known)}
        return {"classification": cross_entropy(self.raw(features), batch.labels)}

    def heads(self):
        return {"raw": self.raw}

    def state(self) -> dict[str, torch.Tensor]:
        return super().state() | {f"raw.{name}": value for name, value in self.raw.state_dict().items()}

    def load(self, state: dict[str, torch.Tensor]) -> None:
        super().load(state)
        self.raw.set_state(part(state, "raw."), self.backbone.device)

    def declared(self, stream: Stream) -> dict[str, int]:
        """Every training image once an epoch; the test images."""
        trained = sum(len(task.train) for task in stream)
        return {"student": self.hyper.epochs * trained, "test": self.declared_tests(stream)}


LEARNER = Finetune  # what this file's name stands for
