"""How a backbone is pre-trained, in one place that needs no torch: the road's defaults and the trainer's."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, fields
from typing import Any

from cilkit import precision
from cilkit.errors import UserError

OPTIMISERS = ("adamw", "sgd")
LEAST = {
    **{"epochs": 0, "batch_size": 1, "lr": 0, "weight_decay": 0, "label_smoothing": 0, "image_size": 0},
    **{"seed_init": 0, "seed_data": 0, "subset_seed": 0},
}
TUNED = re.compile(r"all|head|last_block|last_[1-9]\d*_blocks")


@dataclass(frozen=True)
class Settings:
    """Everything that decides the weights, but for the images and the weights that training starts from.

    arch, model_args: the network, where training starts from random weights.
    optimiser:     "adamw"; or "sgd" with momentum 0.9, as in the specs' recipe (weight_decay 5e-4, cosine; from nothing
                   lr 0.1 and 90 to 100 epochs, from ImageNet's weights 0.01 and 20 to 30).
    recipe:        transforms; "pretrain_full" is the specs' for photographs and paintings of objects.
    held_out:      share of each class that is kept out of training, chosen by `seed_data`.
    shuffle_labels: control arm: the labels of the training images are permuted, so that only image statistics and
                   optimisation can help; the held-out images (and real ones) keep their own labels.
    tune:          "all"; "last_block" or "last_3_blocks": the end of the network and the head; "head": nothing else.
    n_classes, per_class, subset_seed: train on so many classes and images a class, held-out ones included; 0: all.
                   Of one seed, a smaller subset is part of every larger one.
    real_share:    share of every epoch's images that are real, where real ones are mixed in; 0: each once an epoch.
    precision:     "bf16": the backbone computes under autocast; weights, head and losses stay float32.
    processes:     that train together on one machine, each its part of every batch, on a GPU each where there are any.
    """

    arch: str = "small_resnet"
    model_args: dict[str, Any] | None = None
    epochs: int = 24
    batch_size: int = 64
    lr: float = 5e-3
    weight_decay: float = 0.05
    label_smoothing: float = 0.1
    recipe: str = "pretrain"
    image_size: int = 0
    held_out: float = 0.1
    seed_init: int = 0
    seed_data: int = 0
    shuffle_labels: bool = False
    optimiser: str = "adamw"
    tune: str = "all"
    n_classes: int = 0
    per_class: int = 0
    subset_seed: int = 0
    real_share: float = 0.0
    precision: str = "float32"
    processes: int = 1

    def __post_init__(self) -> None:
        precision.check(self.precision)
        for name, least in LEAST.items():
            if not least <= getattr(self, name) < math.inf:
                raise UserError(f"{name} is {getattr(self, name)}; expected a number, {least} or more")
        if self.label_smoothing > 1:
            raise UserError(f"label_smoothing is {self.label_smoothing}; expected 0 to 1")
        if self.optimiser not in OPTIMISERS:
            raise UserError(f"optimiser is {self.optimiser!r}; expected one of {', '.join(OPTIMISERS)}")
        if not TUNED.fullmatch(self.tune):
            raise UserError(f"tune is {self.tune!r}; expected all, head, last_block, or e.g. last_3_blocks")
        if not 0 <= self.real_share < 1:
            raise UserError(
                f"real_share is {self.real_share}; expected 0 (each real image once an epoch) or a share below 1; "
                "for real images alone, leave `images` empty"
            )
        for name in ("n_classes", "per_class"):
            if getattr(self, name) < 0 or getattr(self, name) == 1:
                raise UserError(f"{name} is {getattr(self, name)}; expected 0 (all) or at least 2")
        if not 1 <= self.processes <= self.batch_size:
            raise UserError(f"processes is {self.processes}; expected 1 to batch_size ({self.batch_size})")


NAMES = tuple(field.name for field in fields(Settings))
