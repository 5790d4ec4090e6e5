"""LUCIR: learning a unified classifier incrementally via rebalancing (Hou et al., CVPR 2019), after the released code
(read). Old classes lose to new ones in length of weights, in drifting features and in confusion; a term stands against
each.

    L = CE(eta cos(f, w), y) + lambda mean(1 - cos(f', f)) + L_margin          f', f: features of teacher and student
    lambda   = lambda_base sqrt(old classes / new classes)
    L_margin = mean over images of old classes, k = 1 … K, of  max(0, m - cos(f, w_y) + cos(f, w_k)),
               w_k the new classes that score highest

The old classes' weights stand still; new ones begin as the normalised mean of the class's unit features. Exemplars are
herded as iCaRL's, and replayed images of old classes enter the margin as exemplars do.

Left out: the class-balanced fine-tuning, which the paper reports apart.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cilkit.errors import UserError
from cilkit.learners.rehearsal import Imprinted, RehearsalHyper, unit

if TYPE_CHECKING:
    import torch

    from cilkit.data import Task
    from cilkit.learners.cosine_heads import CosineHeads


@dataclass(frozen=True)
class LUCIRHyper(RehearsalHyper):
    """The released code's values (read) stand in the comments where ours differ: CIFAR-100 / ImageNet."""

    epochs: int = 6  # a task. LUCIR: 160 / 90
    milestones: tuple[int, ...] = (4, 5)  # lr is divided by 10 after these epochs. LUCIR: 80 and 120 / 30 and 60
    batch_size: int = 32  # LUCIR: 128
    lr: float = 0.05  # LUCIR: 0.1
    weight_decay: float = 5e-4  # LUCIR: 5e-4 / 1e-4; none on the weights of old classes
    recipe: str = "digits"  # LUCIR: "lucir_cifar"
    scale: float = 4.0  # eta at the start. LUCIR: 1, and 160 epochs to grow in
    less_forget: float = 5.0  # lambda_base: 5 / 10 (read). 0: no such term
    margin: float = 0.5  # m (read)
    rivals: int = 2  # K, new classes that an image of an old class is held off from (read)
    margin_weight: float = 1.0  # (read). 0: no such term

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rivals < 1:
            raise UserError(f"rivals is {self.rivals}; expected 1 or more, or margin_weight 0 for no margin")


class LUCIR(Imprinted):
    """Heads: "raw", the cosine classifier (the paper's CNN), and "nme", nearest mean of exemplars."""

    Hyper = LUCIRHyper

    def new_heads(self) -> CosineHeads:
        from cilkit.learners.cosine_heads import CosineHeads

        return CosineHeads(self.dim, self.hyper.scale)

    def imprint(self, task: Task) -> None:
        """New weights: the normalised mean of each class's unit features, as the network before sees them."""
        import torch

        features, labels = unit(self.features(task.fresh, "statistics")), task.fresh.labels  # (n, dim), test transform
        means = unit(np.stack([features[labels == label].mean(0) for label in task.classes]))
        self.raw.imprint(torch.from_numpy(means).to(self.backbone.device))

    # ------------------------------------------------------------ loss

    def read(self, trunk: torch.Tensor, heads: CosineHeads | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Features (batch, dim) and cosines (batch, seen)."""
        return trunk, (heads or self.raw).scores(trunk)

    def classification(self, reading, labels: torch.Tensor, old: bool = False) -> dict[str, torch.Tensor]:
        """Softmax over all classes seen and, from the second task on, the margin of old classes' images."""
        from torch.nn.functional import cross_entropy

        h, (_, cosines) = self.hyper, reading
        terms = {"classification": cross_entropy(self.raw.scale * cosines, labels)}
        if self.known and h.margin_weight:
            terms["margin"] = h.margin_weight * margin_ranking(cosines, labels, self.known, h.margin, h.rivals)
        return terms

    def distillation(self, reading, taught) -> dict[str, torch.Tensor]:
        """Less-forget constraint: features turn away from the teacher's as little as may be."""
        from torch.nn.functional import cosine_similarity

        weight = self.hyper.less_forget * math.sqrt(self.known / self.sizes[-1])  # lambda
        return {"distillation": weight * (1 - cosine_similarity(reading[0], taught[0])).mean()}


def margin_ranking(cosines: torch.Tensor, labels: torch.Tensor, known: int, margin: float, rivals: int) -> torch.Tensor:
    """max(0, m - cos_y + cos_k), mean over the rows of old classes (labels below `known`) and the `rivals` new classes
    that score highest; 0 where there are no such rows. cosines (batch, seen), labels (batch,)."""
    highest = cosines[:, known:].topk(min(rivals, cosines.shape[1] - known), dim=1).values  # (batch, K)
    short = (margin - cosines.gather(1, labels[:, None]) + highest).clamp(min=0)
    old = labels < known
    return (short.mean(1) * old).sum() / old.sum().clamp(min=1)


LEARNER = LUCIR  # what this file's name stands for
