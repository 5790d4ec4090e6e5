"""APER, first called ADAM (Zhou et al., "Revisiting Class-Incremental Learning with Pre-Trained Models", IJCV 2024).

The first task adapts the backbone, with few parameters or all; then the features of the backbone as it came and of the
adapted one stand side by side (2 dim numbers an image), and class means are the classifier, by cosine similarity, as in
SimpleCIL. With `phase1` "none" it is SimpleCIL. (Read in RevisitingCIL and PILOT.)

Values read there for ViT-B/16: SGD 0.01, momentum 0.9, weight decay 5e-4, 20 epochs, batch 48, cosine to 0; ImageNet-R
0.05, 5e-3, 24 epochs; "finetune" 6 epochs, weight decay 0.05 and batch 128 (CIFAR-100, PILOT's file).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cilkit.learners.first_task import FirstTask
from cilkit.learners.simplecil import SimpleCIL

if TYPE_CHECKING:
    import torch


class APER(FirstTask, SimpleCIL):
    keeps_plain = True
    passes = 2

    @property
    def dim(self) -> int:
        return self.backbone.dim * (1 if self.hyper.phase1 == "none" else 2)

    def embed(self, images: torch.Tensor, kind: str) -> torch.Tensor:
        """[as it came ; adapted] once the first task is learnt."""
        import torch

        if not self.adapted or self.hyper.phase1 == "none":
            return super().embed(images, kind)
        return torch.cat([self.plain(images, kind), self.backbone(images, kind)], 1)  # (batch, 2 dim)

    def stored_bytes(self) -> dict[str, int]:
        """A fine-tuned backbone needs the one that came beside it; attachments share it."""
        kept = super().stored_bytes()
        if self.hyper.phase1 == "finetune":
            kept["backbone as it came"] = sum(value.nbytes for value in self.plain.state_dict().values())
        return kept


LEARNER = APER  # what this file's name stands for
