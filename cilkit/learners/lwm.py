"""LwM: learning without memorizing (Dhar et al., CVPR 2019, arXiv 1811.08051): the network is to look where it looked.

    L = CE(current task) + beta KD + gamma L_AD
    L_AD = mean over the batch of  sum_j | Q_old,j / ||Q_old||_2 - Q_new,j / ||Q_new||_2 |       0 … sqrt(2 j)

Q is the vectorised Grad-CAM map of the last convolution, for one old class: ReLU(sum_k alpha_k A_k) at every position,
alpha_k the spatial mean of d z_b / d A_k (remembered; no official code). b is the old class that the teacher scores
highest, the same for both networks, and z_b each image's own logit. CE and KD are LwF's, without exemplars.

Gradients flow through Q_new, first order through the maps A and second order through alpha; Q_old stands still. Where a
network ends in a mean over positions, alpha is the head's weights over the positions (derived): with old heads frozen
it is then a constant, and the second order is nil. Common ports detach both: their gamma changes nothing.

Ours: the sum over positions is averaged over the batch; there is one forward pass a network and batch, and no other:
the student's in training mode, as its loss (FACIL takes a second one, in eval mode, for the map: read), the teacher's
in eval mode. A map that is nowhere above 0 counts as zeros, and such an image moves nothing by its own map. Of a vision
transformer A are the patch tokens that enter the last block, and the mean is over them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cilkit.errors import UserError
from cilkit.learners.base import Batch
from cilkit.learners.distilling import Distilling
from cilkit.learners.lwf import LwF, LwFHyper

if TYPE_CHECKING:
    import torch

    from cilkit.backbones import Backbone
    from cilkit.learners.heads import TaskHeads

    Reading = tuple[torch.Tensor, torch.Tensor]  # logits (batch, seen), and the maps that they come from


@dataclass(frozen=True)
class LwMHyper(LwFHyper):
    """`distillation` is beta. The paper gives neither beta nor gamma (FACIL's comment, read); FACIL: 1 and 1, or beta 2
    in its search (read)."""

    # gamma; 0: LwF. The loss is no flatter near 0, so a large one overshoots: on tiny networks at backbone rates of
    # 5e-4 and 5e-5, 1 held the maps two to four times better than 0 did, and 10 less well than 1 (measured).
    attention: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.attention < 0:
            raise UserError(f"attention is {self.attention:g}; expected a weight of 0 or more")
        if self.slow_rate == 0:
            raise UserError("slow_rate 0 freezes the backbone, whose maps LwM is to hold; give a rate above 0")


class LwM(LwF):
    """LwF that also holds its attention. attention = 0 is LwF."""

    Hyper = LwMHyper
    leaks = {
        "no_attention_gradient": "maps and their weights are detached: the attention loss moves nothing (FACIL, read; "
        "its issues 9 and 37)"
    }
    # Not followed: FACIL's plateau schedule. Its map follows a class of each network's own. The others are LwF's.
    RECIPES = {
        "facil": {
            "lr": 0.05,
            "slow_rate": 1.0,
            "momentum": 0.0,
            "weight_decay": 0.0,
            "leaks": ("no_attention_gradient",),
        }
    }

    @property
    def teaches(self) -> bool:
        return bool(self.hyper.distillation or self.hyper.attention)

    def loss(self, batch: Batch) -> dict[str, torch.Tensor]:
        return Distilling.loss(self, batch)  # by the maps from the first batch on: a network without any is refused

    def trunk(self, images: torch.Tensor, kind: str = "student", network: Backbone | None = None) -> torch.Tensor:
        """The last maps (batch, channels, h, w), or tokens (batch, tokens, width)."""
        return (network or self.backbone).maps(images, kind)

    def read(self, trunk: torch.Tensor, heads: TaskHeads | None = None, network: Backbone | None = None) -> Reading:
        return (heads or self.raw)((network or self.backbone).rest(trunk)), trunk

    def taught(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Of the teacher: logits (batch, known), the class it scores highest (batch,), its map for it (batch, j)."""
        import torch

        network, heads = self.teacher.network, self.teacher.heads
        with torch.no_grad():
            maps = self.trunk(images, "teacher", network)
        logits, maps = self.read(maps.requires_grad_(), heads, network)
        highest = logits.argmax(1)
        return logits.detach(), highest, self.map(logits, maps, highest).detach()

    def map(self, logits: torch.Tensor, maps: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        """Q / ||Q|| (batch, j)."""
        prefix = self.backbone.model.num_prefix_tokens if maps.ndim == 3 else 0
        return grad_cam(logits, maps, classes, prefix)

    def classification(self, reading: Reading, labels: torch.Tensor, old: bool = False) -> dict[str, torch.Tensor]:
        return super().classification(reading[0], labels, old)

    def distillation(self, reading: Reading, taught: tuple[torch.Tensor, ...]) -> dict[str, torch.Tensor]:
        logits, highest, looked = taught
        terms = super().distillation(reading[0], logits)
        if self.hyper.attention:
            looks = self.map(*reading, highest)  # (batch, j)
            looks = looks.detach() if self.leaking("no_attention_gradient") else looks
            terms["attention"] = self.hyper.attention * (looked - looks).abs().sum(1).mean()
        return terms


def grad_cam(logits: torch.Tensor, maps: torch.Tensor, classes: torch.Tensor, prefix: int = 0) -> torch.Tensor:
    """Grad-CAM maps of unit length (batch, j), that can be differentiated: each image's own, for one class an image.

    logits: (batch, n), made of `maps`: (batch, channels, h, w), j = h w, or (batch, tokens, width), of which the first
            `prefix` tokens have no place in the image.
    classes: (batch,).
    """
    import torch
    from torch.nn.functional import normalize

    scores = logits.gather(1, classes[:, None]).sum()  # an image's logit knows nothing of the others' maps
    (slopes,) = torch.autograd.grad(scores, maps, create_graph=True)
    if maps.ndim == 4:
        maps, slopes = (one.flatten(2).transpose(1, 2) for one in (maps, slopes))
    maps, slopes = (one[:, prefix:].to(logits.dtype) for one in (maps, slopes))  # (batch, j, channels)
    return normalize((slopes.mean(1, keepdim=True) * maps).sum(2).relu())  # by alpha, (batch, 1, channels)


LEARNER = LwM  # what this file's name stands for
