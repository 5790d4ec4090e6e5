"""The slow learner of SLCA (Zhang et al., ICCV 2023), without classifier alignment: sequential fine-tuning in which the
backbone learns a hundred times slower than the heads, and each task's softmax sees its own classes only."""

from __future__ import annotations

from dataclasses import dataclass

from cilkit.learners.finetune import Finetune, FinetuneHyper


@dataclass(frozen=True)
class SlowLearnerHyper(FinetuneHyper):
    slow_rate: float = 0.01  # SLCA `bcb_lrscale`: 1/100 (read)


class SlowLearner(Finetune):
    Hyper = SlowLearnerHyper


LEARNER = SlowLearner  # what this file's name stands for
