"""EWC: elastic weight consolidation (Kirkpatrick et al., PNAS 2017, arXiv 1612.00796), on a slow learner.

    L(theta) = CE(theta) + (lambda / 2) sum_i F_i (theta_i - theta*_i)^2                               (paper, eq. 3)

theta is the backbone; theta* is where the last task left it. Old heads stay frozen, and the softmax sees the current
task's classes only (FACIL, read). No exemplars. After each task the diagonal of the Fisher information

    F_new = mean over images x of  (d log p(y | x) / d theta)^2,   one image at a time, y its label,

joins the old one: F <- a F + (1 - a) F_new (FACIL, read; the paper keeps a penalty for each task, as is remembered).
The square of a batch's mean gradient is no Fisher information: up to as many times too small as the batch has images
(reported in three projects' issues, read). It is here as `fisher = "batch"`, because PyCIL and FACIL compute it.

No recipe for a pre-trained transformer was found; SLCA's table has 89.30 / 92.31 on Split CIFAR-100 (remembered), half
a point from its slow learner without the penalty. Plain gradient steps are stable while lr x slow_rate x lambda x F
stays below 2 (derived); above that the penalty is the first loss to diverge.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cilkit.errors import UserError
from cilkit.learners.base import Batch, derive, part
from cilkit.learners.slow_learner import SlowLearner, SlowLearnerHyper

if TYPE_CHECKING:
    import torch

    from cilkit.data import ImageSet, Stream, Task

CHOICES = {
    "fisher": ("each", "weighted", "batch"),
    "fisher_labels": ("true", "sampled", "argmax"),
    "merge": ("average", "classes", "sum"),
}


@dataclass(frozen=True)
class EWCHyper(SlowLearnerHyper):
    """PyCIL, FACIL and mammoth: values read in their code. Ours, where no name stands: our decision."""

    penalty: float = 100.0  # lambda: PyCIL 1000, FACIL 5000; search 1e1 … 1e6 with one-image gradients. 0: slow learner
    fisher: str = "each"  # image's gradient squared; "weighted" by p(y | x) (mammoth); "batch": its mean gradient's
    fisher_images: int = 200  # of a task at most, drawn without replacement; 0: all. ViT-B: 1000 (our decision)
    fisher_labels: str = "true"  # (PyCIL, mammoth), "sampled" from the network (the Fisher itself), "argmax" (FACIL)
    fisher_ceiling: float = 0.0  # no element of F_new above this. PyCIL 1e-4; 0: none
    merge: str = "average"  # F <- a F + (1 - a) F_new; "classes": a = old classes / all; "sum": F + F_new (mammoth)
    old_share: float = 0.5  # a of "average" (FACIL)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise UserError(f"{name} is {getattr(self, name)!r}; expected one of {', '.join(map(repr, known))}")
        if not 0 <= self.old_share <= 1 or min(self.penalty, self.fisher_ceiling, self.fisher_images) < 0:
            raise UserError(
                f"old_share is {self.old_share:g}, penalty {self.penalty:g}, fisher_ceiling {self.fisher_ceiling:g}, "
                f"fisher_images {self.fisher_images}; expected old_share in 0 … 1 and nothing below 0"
            )


class EWC(SlowLearner):
    """The slow learner, held back where the tasks before were sensitive. penalty = 0 is the slow learner, bit for bit.

    fisher, anchor: F and theta*, by parameter of the backbone.
    """

    Hyper = EWCHyper
    # "pilot": PyCIL. Not followed: its Fisher information is taken in training mode and over all logits.
    RECIPES = {
        "pilot": {"penalty": 1000.0, "fisher": "batch", "fisher_ceiling": 1e-4, "merge": "classes", "fisher_images": 0},
        "mammoth": {"fisher": "weighted", "merge": "sum", "local_softmax": False, "fisher_images": 0},
    }

    def build(self) -> None:
        super().build()
        self.fisher: dict[str, torch.Tensor] = {}
        self.anchor: dict[str, torch.Tensor] = {}

    @property
    def protects(self) -> bool:
        return self.hyper.penalty > 0 and not self.frozen

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        """theta: the backbone's parameters that learn, in the network's order."""
        return {name: value for name, value in self.backbone.named_parameters() if value.requires_grad}

    def loss(self, batch: Batch) -> dict[str, torch.Tensor]:
        terms = super().loss(batch)
        if self.fisher:
            terms["penalty"] = self.hyper.penalty / 2 * elastic(self.weights, self.anchor, self.fisher)
        return terms

    def end_task(self, task: Task) -> None:
        super().end_task(task)
        if not self.protects:
            return
        new = self.information(task)
        share = self.share(task)
        for name, old in self.fisher.items():
            new[name] = share[0] * old + share[1] * new[name]
        self.fisher = new
        self.anchor = {name: value.detach().clone() for name, value in self.weights.items()}

    def share(self, task: Task) -> tuple[float, float]:
        """What F and F_new are multiplied by when they are added."""
        keep = {
            "average": self.hyper.old_share,
            "classes": self.known / (self.known + (len(task.classes) or self.seen)),
        }
        return (1.0, 1.0) if self.hyper.merge == "sum" else (keep[self.hyper.merge], 1 - keep[self.hyper.merge])

    # ------------------------------------------------------------ Fisher information

    def information(self, task: Task) -> dict[str, torch.Tensor]:
        """F_new by parameter: test transform, eval mode, float32."""
        import torch

        h, images = self.hyper, self.asked(task)
        self.backbone.eval()
        squares = {name: torch.zeros_like(value, dtype=torch.float32) for name, value in self.weights.items()}
        generator = torch.Generator().manual_seed(derive(self.seed_data, task.index, "fisher labels"))
        size = h.batch_size if h.fisher == "batch" else 1
        for batch in self.seen_once(images):
            for pixels, labels in zip(batch.images.split(size), batch.labels.split(size), strict=True):
                score = self.log_likelihood(pixels, labels, generator)
                gradients = torch.autograd.grad(score, list(self.weights.values()), materialize_grads=True)
                for total, gradient in zip(squares.values(), gradients, strict=True):
                    total.add_(gradient.float().square(), alpha=len(labels) / len(images))
        limit = h.fisher_ceiling or torch.inf
        return {name: value.clamp_(max=limit) for name, value in squares.items()}

    def asked(self, task: Task) -> ImageSet:
        """The images that F_new is a mean over."""
        images, limit = task.train, self.hyper.fisher_images
        if not limit or len(images) <= limit:
            return images
        random = np.random.default_rng(derive(self.seed_data, task.index, "fisher images"))
        return images.select(np.sort(random.permutation(len(images))[:limit]))

    def seen_once(self, images: ImageSet) -> Iterator[Batch]:
        """Batches of these images, in order and without augmentation."""
        import torch

        from cilkit.data import loading

        device = self.backbone.device
        cuts = np.split(np.arange(len(images)), range(self.hyper.batch_size, len(images), self.hyper.batch_size))

        def prepare(pixels, labels) -> Batch:
            return Batch(self.recipe.test(pixels, device), torch.from_numpy(labels).to(device))

        return loading.prefetched(images, cuts, prepare, loading.ahead_for(images, device), self.recipe.shortest)

    def log_likelihood(self, images: torch.Tensor, labels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Mean log p(y | x) of images (b, 3, h, w), in the softmax that the task is learnt with."""
        import torch
        from torch.nn.functional import cross_entropy

        features = self.embed(images, "fisher")
        local = self.local
        logits = (self.raw.current(features) if local else self.raw(features)).float()  # (b, classes)
        if self.hyper.fisher_labels == "true":
            labels = labels - self.known if local else labels
        elif self.hyper.fisher_labels == "argmax":
            labels = logits.detach().argmax(1)
        else:  # the largest of log p + Gumbel noise is a draw from p
            noise = -(-torch.rand(logits.shape, generator=generator).log()).log()
            labels = (logits.detach() + noise.to(logits.device)).argmax(1)
        score = -cross_entropy(logits, labels)
        return score * score.detach().exp().sqrt() if self.hyper.fisher == "weighted" else score

    # ------------------------------------------------------------ keeping and counting

    def state(self) -> dict[str, torch.Tensor]:
        kept = {f"fisher.{name}": value for name, value in self.fisher.items()}
        return super().state() | kept | {f"anchor.{name}": value for name, value in self.anchor.items()}

    def load(self, state: dict[str, torch.Tensor]) -> None:
        import torch

        super().load(state)
        # As the parameters lie in memory (channels last): sums over them are added up in that order.
        weights = dict(self.backbone.named_parameters())
        self.fisher, self.anchor = (
            {name: torch.empty_like(weights[name]).copy_(value) for name, value in part(state, kind).items()}
            for kind in ("fisher.", "anchor.")
        )

    def declared(self, stream: Stream) -> dict[str, int]:
        """The slow learner's, and each task's images (fisher_images at most) once more."""
        if not self.protects:
            return super().declared(stream)
        limit = self.hyper.fisher_images
        asked = sum(min(len(task.train), limit or len(task.train)) for task in stream)
        return super().declared(stream) | {"fisher": asked}

    def stored_bytes(self) -> dict[str, int]:
        """F and theta*: the backbone's parameters twice."""
        kept = [*self.fisher.values(), *self.anchor.values()]
        return super().stored_bytes() | {"Fisher information and anchor": sum(value.nbytes for value in kept)}


def elastic(
    weights: dict[str, torch.Tensor], anchor: dict[str, torch.Tensor], fisher: dict[str, torch.Tensor]
) -> torch.Tensor:
    """sum_i F_i (theta_i - theta*_i)^2, added up in the order of `weights`."""
    return sum((fisher[name] * (value - anchor[name]).square()).sum() for name, value in weights.items())


LEARNER = EWC  # what this file's name stands for
