"""CODA-Prompt (Smith et al., CVPR 2023, arXiv 2211.13218), after the released code.

Prefixes, as in DualPrompt, but nothing is chosen: a block's prefix is a sum of components P_m, each weighed by the
cosine between its key K_m and the query as its attention A_m sees it (paper, eq. 4 and 5, remembered):

    p(x) = sum_m cos(q(x) * A_m, K_m) P_m

Each task adds components, orthogonal to those before at first; these stay as they are. The loss is the cross-entropy
over the task's own classes: the sum has a gradient, so keys need no loss of their own. The paper's penalty on
components that are not orthonormal is there, and off, as in the released scripts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cilkit.errors import UserError
from cilkit.learners.base import derive
from cilkit.learners.prompting import Prompter, PromptHyper, prefixed

if TYPE_CHECKING:
    import torch

    from cilkit.data import Task
    from cilkit.learners.base import Batch


PARTS = ("components", "keys", "attentions")


@dataclass(frozen=True)
class CODAPromptHyper(PromptHyper):
    """Official: the released scripts (read)."""

    epochs: int = 3  # official: 20 (CIFAR-100), 50 (ImageNet-R)
    batch_size: int = 32  # official: 128
    lr: float = 0.01  # official: 0.001
    clip: float = 0.0  # official: no clipping
    head_start: str = "linear"
    prompt_layers: tuple[int, ...] = (0, 1, 2, 3)  # official: 0 … 4 of 12
    components: int = 10  # a task. Official: 100 in all, in equal shares: 10 for 10 tasks
    length: int = 8  # half of them keys, half values
    cosine: bool = True  # lr falls along a cosine to 1.6 % in the last epoch
    exact: bool = True  # new components are orthogonal to the old ones' span; see `orthonormal`
    penalty: float = 0.0  # paper: 0.1, which its first code multiplied by 1e-6 (issues 4 and 12, read)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.length % 2 or self.length < 0 or self.components < 1:
            raise UserError(
                f"{self.components} components of length {self.length}; expected 1 or more, of an even length "
                "(half keys, half values)"
            )


class CODAPrompt(Prompter):
    Hyper = CODAPromptHyper
    RECIPES = {
        "official_code": {"batch_size": 128, "lr": 0.001, "exact": False},  # read
        "mammoth": {"batch_size": 128, "lr": 0.001, "exact": False, "cosine": False},  # never steps its cosine (read)
    }

    @property
    def layers(self):
        return self.hyper.prompt_layers

    def begin_task(self, task: Task) -> None:
        """New components in every block, orthogonal to those before, which learn no more."""
        import torch

        super().begin_task(task)
        self.freeze_prompts(PARTS)
        for name in PARTS:
            old = self.stacked(name)  # (layers, m, …)
            flat = old.detach().flatten(2).cpu()  # (layers, m, width)
            seeds = [derive(self.seed_init, task.index, name, layer) for layer in range(len(flat))]
            count, exact = self.hyper.components, self.hyper.exact
            fresh = [orthonormal(count, rows, seed, exact) for rows, seed in zip(flat, seeds, strict=True)]
            self.add_prompts(f"{name}.{task.index}", torch.stack(fresh).unflatten(2, old.shape[2:]))

    def stacked(self, name: str) -> torch.Tensor:
        """What has been learnt in all tasks of one of PARTS, oldest first: components (layers, m, length, dim), keys or
        attentions (layers, m, dim)."""
        import torch

        shape = (self.hyper.length, self.backbone.dim)[name != "components" :]
        none = torch.zeros(len(self.layers), 0, *shape, device=self.backbone.device)
        return torch.cat([none, *self.of_tasks(name)], dim=1)

    def loss(self, batch: Batch) -> dict[str, torch.Tensor]:
        features = self.prompted(batch.images, self.query(batch.images), "student")
        terms = {"classification": self.classification(features, batch.labels)}
        if self.hyper.penalty:
            terms["orthonormality"] = self.hyper.penalty * sum(penalty(self.stacked(name)) for name in PARTS)
        return terms

    def prompted(self, images, queries, kind):
        components, keys, attentions = (self.stacked(name) for name in PARTS)
        weights = attended(queries, attentions, keys)  # (layers, batch, m)
        prompts = weights.flatten(2) @ components.flatten(2)  # (layers, batch, length * dim)
        pairs = prompts.unflatten(2, (2, -1, self.backbone.dim)).transpose(1, 2)  # (layers, 2, batch, length / 2, dim)
        with prefixed(self.backbone, dict(zip(self.layers, pairs, strict=True))):
            return self.backbone(images, kind)

    def rate(self, epoch: int) -> float:
        last = max(self.hyper.epochs - 1, 1)
        return math.cos(0.99 * math.pi / 2 * epoch / last) if self.hyper.cosine else 1.0


def attended(queries: torch.Tensor, attentions: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """cos(q * A_m, K_m) of queries (batch, dim) in every layer: (layers, batch, m). Without q * A_m for every pair."""
    from torch.nn.functional import normalize

    dots = queries @ (attentions * normalize(keys, dim=2)).mT  # (layers, batch, m)
    squares = queries.square() @ attentions.square().mT
    return dots / squares.clamp_min(1e-24).sqrt()


def penalty(rows: torch.Tensor) -> torch.Tensor:
    """Mean square of R R^T - 1, summed over layers: rows (layers, m, …)."""
    import torch

    flat = rows.flatten(2)
    return (flat @ flat.mT - torch.eye(flat.shape[1], device=flat.device)).square().mean((1, 2)).sum()


def orthonormal(count: int, old: torch.Tensor, seed: int, exact: bool = True) -> torch.Tensor:
    """`count` random rows (count, width) of unit length, by Gram-Schmidt behind the old rows (m, width).

    exact: orthogonal to the old rows' span. Else as the released code: minus the projections on each row before, which
    is the same while those are orthogonal to each other, as training does not leave them.
    UserError where there is no room for so many.
    """
    import torch

    m, width = old.shape
    if m + count > width:
        raise UserError(f"{m + count} components have no room to be orthogonal in {width} numbers; lower `components`")
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(count, width, generator=generator, dtype=torch.float64)
    rows = old.double()
    if exact:
        q, r = torch.linalg.qr(torch.cat([rows, drawn]).mT)
        return (q * r.diagonal().sign()).mT[m:].float()
    for row in drawn:
        shares = rows @ row / rows.square().sum(1)  # (rows,)
        rows = torch.cat([rows, (row - shares @ rows)[None]])
    return torch.nn.functional.normalize(rows[m:]).float()


LEARNER = CODAPrompt  # what this file's name stands for
