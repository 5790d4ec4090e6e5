"""Adaptation in the first task alone: APER's first stage and RanPAC's phase 1.

A few parameters attached to the frozen backbone, or all of the backbone, learn the first task together with a cosine
head; then the head is thrown away and nothing changes any more.
"""

from __future__ import annotations

import copy
import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cilkit.errors import UserError
from cilkit.learners.base import Batch, Learner, check_norm_statistics, derive, part

if TYPE_CHECKING:
    import torch

    from cilkit.backbones import Backbone
    from cilkit.data import Stream, Task

ATTACHED = ("adapter", "ssf", "prompts")
NAME = "phase1"  # of what is attached


@dataclass(frozen=True)
class FirstTaskHyper:
    """RanPAC's values, which are APER's on CIFAR-100 (read in both codes), stand in the comments where ours differ: our
    decision for 32 x 32 images and a small convnet."""

    phase1: str = "ssf"  # what learns: "none", "adapter", "ssf", "prompts" (of transformers), "finetune": the backbone
    epochs: int = 6  # of the first task. RanPAC, APER: 20
    batch_size: int = 32  # RanPAC, APER: 48
    lr: float = 0.05  # of everything that learns; half a cosine down to 0. RanPAC, APER: 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4
    bottleneck: int = 64  # of adapters
    prompt_length: int = 5  # of prompts, new ones before every block
    recipe: str = "digits"  # transforms, see cilkit.data.transforms
    image_size: int = 0  # pixels on a side, for recipes that resize; 0: the backbone's own
    norm_statistics: str = "auto"  # while all of the backbone learns; with attachments they stay frozen
    recipe_of: str = "paper"  # whose: see the learner's RECIPES
    leaks: tuple[str, ...] = ()  # known leaks to switch on: these learners have none

    def __post_init__(self) -> None:
        check_norm_statistics(self.norm_statistics)
        known = ("none", *ATTACHED, "finetune")
        if self.phase1 not in known:
            raise UserError(f"phase1 is {self.phase1!r}; take one of {', '.join(known)}")


class FirstTask(Learner):
    """A mix-in before a learner of a frozen backbone: `class APER(FirstTask, SimpleCIL)`.

    adapted: whether the first task is learnt; from then on the backbone is frozen.
    plain:   the backbone as it came, whose features count until then.
    """

    Hyper = FirstTaskHyper
    keeps_plain = False  # whether the backbone as it came is needed after the first task

    def build(self) -> None:
        super().build()
        h, seed = self.hyper, derive(self.seed_init, NAME)
        self.adapted, self.plain = h.phase1 == "none", self.backbone
        if h.phase1 in ATTACHED:
            from cilkit import attachments

            self.plain, self.norm_statistics = _sharing(self.backbone), "frozen"
            settings = {"adapter": {"bottleneck": h.bottleneck}, "prompts": {"length": h.prompt_length, "deep": True}}
            attachments.KINDS[h.phase1](self.backbone, NAME, seed=seed, **settings.get(h.phase1, {}))
        elif h.phase1 == "finetune" and self.keeps_plain:
            self.plain = self.backbone.frozen_copy()

    @classmethod
    def always_frozen(cls, settings: dict) -> bool:
        return settings["phase1"] == "none"

    @property
    def frozen(self) -> bool:
        return self.adapted

    def epochs_of(self, task: Task) -> int:
        return 0 if self.adapted else self.hyper.epochs

    def begin_task(self, task: Task) -> None:
        if not self.adapted:
            self.head = _cosine_head(self.backbone, len(task.classes), derive(self.seed_init, NAME, "head"))
            self._learning.requires_grad_(True)

    def optimiser(self, task: Task):
        import torch

        from cilkit.precision import sgd

        h = self.hyper
        learning = [*self.head.parameters(), *self._learning.parameters()]
        settings = {"lr": h.lr, "momentum": h.momentum, "weight_decay": h.weight_decay}
        optimiser = sgd(learning, self.backbone.device, **settings)
        return optimiser, torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, h.epochs)

    def loss(self, batch: Batch) -> dict[str, torch.Tensor]:
        from torch.nn.functional import cross_entropy

        return {"phase 1": cross_entropy(self.head(self.backbone(batch.images, "student")), batch.labels)}

    def end_task(self, task: Task) -> None:
        if not self.adapted:
            self._finish()
        super().end_task(task)

    def embed(self, images: torch.Tensor, kind: str) -> torch.Tensor:
        return (self.backbone if self.adapted else self.plain)(images, kind)

    def state(self) -> dict[str, torch.Tensor]:
        import torch

        state = super().state() | {"adapted": torch.tensor(self.adapted)}
        if not self.adapted and self.sizes:
            state |= {f"phase1.{name}": value for name, value in self.head.state_dict().items()}
        if self.keeps_plain and self.hyper.phase1 == "finetune":
            state |= {f"plain.{name}": value for name, value in self.plain.state_dict().items()}
        return state

    def load(self, state: dict[str, torch.Tensor]) -> None:
        super().load(state)
        if plain := part(state, "plain."):
            self.plain.load_state_dict(plain)
        if bool(state["adapted"]):
            self._finish()
        elif head := part(state, "phase1."):
            self.head.load_state_dict(head)

    def declared(self, stream: Stream) -> dict[str, int]:
        """The first task's images once an epoch; each new training image and each test image once, by as many networks
        as make its features (APER: two)."""
        networks = 2 if self.keeps_plain and self.hyper.phase1 != "none" else 1
        counts = {kind: networks * count for kind, count in super().declared(stream).items()}
        if self.hyper.phase1 != "none":
            counts["student"] = self.hyper.epochs * len(stream[0].train)
        return counts

    def declared_tests(self, stream: Stream) -> int:
        return len(stream.test_after(stream[len(stream) - 1]))  # frozen before the first test

    @property
    def _learning(self) -> torch.nn.Module:
        return self.backbone if self.hyper.phase1 == "finetune" else self.backbone.attached[NAME]

    def _finish(self) -> None:
        self.backbone.requires_grad_(False)
        self.adapted, self.head = True, None


def _sharing(backbone: Backbone) -> Backbone:
    """A second backbone of the same tensors and the same counter: what is attached to the one, the other never sees."""
    shared = {id(tensor): tensor for tensor in itertools.chain(backbone.parameters(), backbone.buffers())}
    return copy.deepcopy(backbone, shared | {id(backbone.forwarded): backbone.forwarded}).eval()


def _cosine_head(backbone: Backbone, classes: int, seed: int) -> torch.nn.Module:
    """sigma * cos(features, weight_c): weight (classes, dim) uniform within 1 / sqrt(dim), sigma 1 and learnt (read in
    both codes)."""
    import torch
    from torch import nn
    from torch.nn.functional import normalize

    class Cosine(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            draws = torch.rand(classes, backbone.dim, generator=torch.Generator().manual_seed(seed))
            self.weight = nn.Parameter((2 * draws - 1) / math.sqrt(backbone.dim))
            self.sigma = nn.Parameter(torch.ones(1))

        def forward(self, features: torch.Tensor) -> torch.Tensor:
            return self.sigma * normalize(features) @ normalize(self.weight).T

    return Cosine().to(backbone.device)
