"""PODNet: pooled outputs distillation for small-tasks incremental learning (Douillard et al., ECCV 2020), after the
released code (read).

    L = L_LSC + sqrt(seen / new) ( lambda_c L_spatial + lambda_f L_flat )

    L_LSC     = mean of [ - log  exp(eta (y_true - delta)) / sum over other classes c of exp(eta y_c) ]_+
    y_c       = sum_k s_ck cos(f, w_ck),  s_ck = softmax over the class's proxies k of cos(f, w_ck)
    L_spatial = mean over stages and images of || p(map) - p(map') ||,  p: the squared map, summed over its width and
                over its height, both end to end (channels x (height + width)), scaled to length 1
    L_flat    = mean of 1 - cos(f, f')                                    f', map': the teacher's, as the task began

The proxies of old classes stand still; a new class's begin as the k-means centres of its unit features. After every
later task the proxies, old ones too, are tuned on the exemplars alone, as many of each class.

The released code departs from the paper's L_LSC (`criterion: released`): its margin is taken off every class and so
cancels; nothing is cut at zero; and the row's largest logit stands among the rivals once more, so that a row whose true
class is the largest has the plain cross-entropy (derived). Scores are - ||f - w||^2 of unit vectors, not the cosine.
Both learn eta. Ours stands still under the paper's loss, where eta delta pays for a scale below zero: left to learn, it
fell to - 6.6 on the default benchmark, with every row's loss at zero and the accuracy of chance (measured).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cilkit import precision
from cilkit.errors import UserError
from cilkit.learners.base import derive
from cilkit.learners.rehearsal import Imprinted, RehearsalHyper, unit

if TYPE_CHECKING:
    import torch

    from cilkit.backbones import Backbone
    from cilkit.data import ImageSet, Stream, Task
    from cilkit.learners.base import Batch
    from cilkit.learners.cosine_heads import ProxyHeads


@dataclass(frozen=True)
class PODNetHyper(RehearsalHyper):
    """The released code's values (read) stand in the comments where ours differ: CIFAR-100 / ImageNet-100."""

    epochs: int = 6  # a task. PODNet: 160 / 90
    milestones: tuple[int, ...] = ()  # none: lr follows a cosine over the task's epochs, as PODNet's
    batch_size: int = 32  # PODNet: 128 / 64
    lr: float = 0.05  # PODNet: 0.1 / 0.05
    weight_decay: float = 5e-4  # 1e-4 on ImageNet-1k
    criterion: str = "nca"  # the paper's; "released", see above; "ce": softmax over all classes, as PyCIL (read)
    proxies: int = 10  # a class (read)
    scale: float = 8.0  # eta, or where it starts if it learns. PODNet: 1, and 160 epochs to grow in
    margin: float = 0.6  # delta (read)
    spatial: float = 3.0  # lambda_c: 3 / 8 (read)
    flat: float = 1.0  # lambda_f: 1 / 10 (read)
    gradient_limit: float = 5.0  # every number of a gradient is cut to -5 … 5 (read)
    tuning_epochs: int = 10  # on the exemplars. PODNet: 20
    tuning_lr: float = 0.05  # 0.05 / 0.01 (read)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.criterion not in ("nca", "released", "ce"):
            raise UserError(f"criterion is {self.criterion!r}; expected 'nca' (the paper's), 'released' or 'ce'")
        if self.proxies < 1:
            raise UserError(f"{self.proxies} proxies a class; PODNet needs at least one")


class PODNet(Imprinted):
    """Heads: "raw", the classifier of proxies (the paper's CNN), and "nme", nearest mean of exemplars."""

    Hyper = PODNetHyper
    RECIPES = {
        "official_code": {"criterion": "released", "scale": 1.0},
        "pilot": {"criterion": "ce", "scale": 1.0, "spatial": 5.0, "tuning_epochs": 0},  # PyCIL, which does not imprint
    }
    tuning = False  # on the exemplars alone

    def new_heads(self) -> ProxyHeads:
        from cilkit.learners.cosine_heads import ProxyHeads

        h = self.hyper
        return ProxyHeads(self.dim, h.scale, h.proxies, stretch=2.0 if h.criterion == "released" else 1.0)

    def imprint(self, task: Task) -> None:
        """New proxies: the k-means centres of each class's unit features, as the network before sees them."""
        import torch

        features, seed = unit(self.features(task.fresh, "statistics")), derive(self.seed_init, task.index, "proxies")
        found = [centres(features[task.fresh.labels == c], self.hyper.proxies, seed) for c in task.classes]
        self.raw.imprint(torch.from_numpy(np.concatenate(found)).to(self.backbone.device))

    def optimiser(self, task: Task):
        import torch

        optimiser, steps = super().optimiser(task)
        if self.hyper.milestones:
            return optimiser, steps
        return optimiser, torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, self.hyper.epochs)

    def before_step(self, batch: Batch) -> None:
        import torch

        parts = (*self.backbone.parameters(), *self.raw.parameters())
        torch.nn.utils.clip_grad_value_(parts, self.hyper.gradient_limit)

    # ------------------------------------------------------------ loss

    def trunk(
        self, images: torch.Tensor, kind: str = "student", network: Backbone | None = None
    ) -> tuple[torch.Tensor, ...]:
        """Features (batch, dim) and the map (batch, channels, h, w) after every stage."""
        features, maps = (self.backbone if network is None else network).stages(images, kind)
        return features, *maps

    def read(self, trunk: tuple[torch.Tensor, ...], heads: ProxyHeads | None = None):
        """Features (batch, dim), similarities y (batch, seen) and, of every stage, p(map)."""
        features, *maps = trunk
        return features, (heads or self.raw).scores(features), [pooled(one) for one in maps]

    def classification(self, reading, labels: torch.Tensor, old: bool = False) -> dict[str, torch.Tensor]:
        """L_LSC over all classes seen."""
        return {"classification": self.lsc(reading[1], labels)}

    def lsc(self, similarities: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        from torch.nn.functional import cross_entropy

        h, scale = self.hyper, self.raw.scale
        if h.criterion == "ce":
            return cross_entropy(scale * similarities, labels)
        if h.criterion == "released":
            return nca(similarities, labels, scale, h.margin, released=True)
        return nca(similarities, labels, scale.detach(), h.margin)  # eta stands still: see above

    def distillation(self, reading, taught) -> dict[str, torch.Tensor]:
        import torch
        from torch.nn.functional import cosine_similarity

        h, factor = self.hyper, math.sqrt(self.seen / self.sizes[-1])
        pairs = zip(reading[2], taught[2], strict=True)
        spatial = torch.stack([(own - before).norm(dim=1).mean() for own, before in pairs]).mean()
        flat = (1 - cosine_similarity(reading[0], taught[0])).mean()
        return {"pod spatial": factor * h.spatial * spatial, "pod flat": factor * h.flat * flat}

    # ------------------------------------------------------------ tuning

    def training_set(self, task: Task) -> ImageSet:
        return self.memory.of(task.train) if self.tuning else super().training_set(task)

    def end_task(self, task: Task) -> None:
        super().end_task(task)
        if self.known:
            self.tune(task)

    def tune(self, task: Task) -> None:
        """All proxies learn from the exemplars, augmented. Ours: the network stands still in eval mode; in the released
        code its running statistics go on moving (read)."""
        import torch

        h = self.hyper
        proxies = list(self.raw.tasks.requires_grad_(True).parameters())
        groups = [{"params": proxies, "lr": h.tuning_lr}]
        optimiser = precision.sgd(groups, self.backbone.device, momentum=h.momentum, weight_decay=h.weight_decay)
        self.backbone.eval()
        self.tuning = True
        for epoch in range(h.epochs, h.epochs + h.tuning_epochs):
            for batch in super().batches(task, epoch):
                with torch.no_grad():
                    features = self.embed(batch.images, "student")
                optimiser.zero_grad()
                self.lsc(self.raw.scores(features), batch.labels).backward()
                self.before_step(batch)
                optimiser.step()
        self.tuning = False

    def declared(self, stream: Stream) -> dict[str, int]:
        """With imprinting; tuning goes through the exemplars of all classes after each later task."""
        declared = super().declared(stream)
        kept = sum(self._kept(stream, task.seen, task.seen) for task in list(stream)[1:])
        declared["student"] += self.hyper.tuning_epochs * kept
        return declared


def pooled(maps: torch.Tensor) -> torch.Tensor:
    """p: the squares of maps (batch, channels, h, w), summed over w and over h: (batch, channels (h + w)), length 1."""
    import torch
    from torch.nn.functional import normalize

    squares = maps.square()
    return normalize(torch.cat([squares.sum(3).flatten(1), squares.sum(2).flatten(1)], dim=1))


def nca(
    similarities: torch.Tensor, labels: torch.Tensor, scale: torch.Tensor, margin: float, released: bool = False
) -> torch.Tensor:
    """L_LSC of similarities y (batch, seen), labels (batch,) and scale eta; `released` as the code has it."""
    import torch

    logits = scale * similarities
    own = logits.gather(1, labels[:, None])[:, 0]
    rivals = logits.scatter(1, labels[:, None], -math.inf)
    if released:
        rivals = torch.cat([rivals, logits.amax(1, keepdim=True)], dim=1)
        return (rivals.logsumexp(1) - own).mean()
    return (rivals.logsumexp(1) - own + scale * margin).clamp(min=0).mean()


def centres(features: np.ndarray, count: int, seed: int) -> np.ndarray:
    """k-means centres (count, dim) of one class's unit features (n, dim). Ours: where a class has fewer images than
    proxies, each of them is a centre, and they begin again."""
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):  # threads would add up in any order
        fitted = KMeans(min(count, len(features)), random_state=seed % 2**32, n_init=10).fit(features)
    return fitted.cluster_centers_[np.arange(count) % len(fitted.cluster_centers_)]


LEARNER = PODNet  # what this file's name stands for
