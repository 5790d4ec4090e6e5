"""SLCA++ (Zhang et al., arXiv 2408.08295): SLCA with few slow parameters, after the released code (slca.md, section 8).

Stage 1, Hybrid-SL. Norms, biases, class token and one LoRA for all tasks learn; all other weights are frozen.
    W + 0.8 B A                                                          qkv, fc1, fc2 of every block; rank 4
    L = a CE + b RCE                                                     on the current task's logits
    RCE = -sum_k clamp(p_k, 1e-7, 1) log clamp(onehot_k, 1e-4, 1)
Stage 2, alignment on samples that shrink with their class's age T - 1 - t_c; the heads then read larger features.
    x / (1 + m (T - 1 - t_c)),  m = 0.02 + U(-0.01, 0.01)                x ~ N(mu_c, S_c)
    l_t = head_t(x (1 + 0.02 (T - 1 - t)))                               when images are classified, and only then

Stages and statistics as in `slca.py`. All numbers are read in that code; the paper's text was not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cilkit import precision
from cilkit.errors import UserError
from cilkit.learners.alignment import Alignment
from cilkit.learners.slca import SLCAHyper
from cilkit.learners.slow_learner import SlowLearner

if TYPE_CHECKING:
    import torch

    from cilkit.data import Task
    from cilkit.learners.base import Batch

TARGETS = ("attn.qkv", "mlp.fc1", "mlp.fc2")  # not attn.proj
LEARNING = ("norm", "bias", "cls_token", "lora")  # what stands in the names of parameters that learn


@dataclass(frozen=True)
class SLCAPPHyper(SLCAHyper):
    """SLCA's, and what SLCA++ adds; its released values are the defaults. `milestones` say nothing here."""

    slow_rate: float = 0.1  # lr of norms, biases and class token / head lr
    lora_rank: int = 4
    lora_scale: float = 0.8
    lora_rate_first: float = 0.5  # lr of A and B / head lr, in the first task
    lora_rate: float = 0.1  # and in later ones
    least_lr: float = 1e-4  # of every parameter, where the cosine ends. MoCo v3 configurations: 1e-5
    cross_entropy: float = 1.0  # a. ImageNet-R, Cars-196: 0.5
    reverse_cross_entropy: float = 0.1  # b. ImageNet-R, Cars-196: 0.5
    feature_scale: float = 0.02  # `fc_scale_mu`; mean_scaling False leaves it out
    # weight_decay 5e-4. ImageNet-R, Cars-196: 0, and align_weight_decay too (that it holds in stage 2 is our reading)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.slow_rate == 0:
            raise UserError("slow_rate is 0, which would freeze all but LoRA; take a rate above 0, or learner slca")


class SLCAPP(Alignment, SlowLearner):
    """Heads: "raw" is Hybrid-SL, "aligned" is SLCA++, from one training."""

    Hyper = SLCAPPHyper
    needs = "transformer"
    RECIPES = {"official_code": {"leaks": ("legacy_task_index",)}}

    def build(self) -> None:
        from cilkit import attachments

        h, seed = self.hyper, self.seed_init
        attachments.lora(self.backbone, "lora", h.lora_rank, TARGETS, h.lora_scale, start="svd", seed=seed)
        for name, parameter in self.backbone.named_parameters():
            parameter.requires_grad_(any(word in name for word in LEARNING))
        super().build()

    def optimiser(self, task: Task):
        import torch

        h = self.hyper
        lora = list(self.backbone.attached["lora"].parameters())
        others = [p for p in self.backbone.model.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in self.raw.parameters() if p.requires_grad], "lr": h.lr},
            {"params": lora, "lr": h.lr * (h.lora_rate if task.index else h.lora_rate_first)},
            {"params": others, "lr": h.lr * h.slow_rate},
        ]
        optimiser = precision.sgd(groups, self.backbone.device, momentum=h.momentum, weight_decay=h.weight_decay)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=h.epochs, eta_min=h.least_lr)
        return optimiser, schedule

    def loss(self, batch: Batch) -> dict[str, torch.Tensor]:
        from torch.nn.functional import cross_entropy

        features = self.embed(batch.images, "student")  # (batch, dim)
        logits = self.raw.current(features) if self.local else self.raw(features)
        labels = batch.labels - self.known if self.local else batch.labels
        return {
            "classification": self.hyper.cross_entropy * cross_entropy(logits, labels),
            "reverse": self.hyper.reverse_cross_entropy * reverse_cross_entropy(logits, labels),
        }

    def scaling(self, on: bool):
        return {"mean_scaling": False, "feature_scale": self.hyper.feature_scale if on else 0.0}


def reverse_cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """RCE, mean over the batch: log clamp(onehot_k, 1e-4, 1) is 0 for the label and log 1e-4 for every other class."""
    p = logits.softmax(1).clamp(1e-7, 1)
    wrong = p.sum(1) - p.gather(1, labels[:, None])[:, 0]
    return -math.log(1e-4) * wrong.mean()


LEARNER = SLCAPP  # what this file's name stands for
