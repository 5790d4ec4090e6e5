"""GMM's control: a linear classifier over the same projected tokens, in place of the language model.

The paper's own ablation (`linear: True` in the official code, read): frozen image encoder, trained projection, and
Linear(4096 -> 200) on the first query token; cross-entropy over the classes up to the current task, the logits of later
ones at -inf. Here a later class's row does not exist yet, which is the same: it had neither part nor gradient.
Encoder, tokens, optimiser, schedule, exemplars and batches are those of gmm.py, with the same parameters.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from cilkit.errors import UserError
from cilkit.learners.base import Batch, Learner, part
from cilkit.learners.gmm import Tuning, TuningHyper

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

    from cilkit.data import ImageSet, Task
    from cilkit.outputs import Outputs


@dataclass(frozen=True)
class GMMLinearHyper(TuningHyper):
    token: str = "mean"  # of the projected ones (ours, for maps and patches), or "first": of query tokens (read)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.token not in ("mean", "first"):
            raise UserError(f"token is {self.token!r}; expected 'mean' or 'first'")


class GMMLinear(Tuning):
    """projection: a copy of the captioner's connector; raw: its output, (batch, dim), to logits."""

    Hyper = GMMLinearHyper
    matches = False
    RECIPES = {"released": {"token": "first"}}  # beside what is shared

    def build(self) -> None:
        from cilkit.learners.heads import TaskHeads

        super().build()
        self.projection = copy.deepcopy(self.captioner.connector).float().requires_grad_(True)
        self.raw = TaskHeads(self.captioner.embed.weight.shape[1])

    def learnt(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        for name in ("projection", "raw"):
            yield from getattr(self, name).named_parameters(name)

    def begin_task(self, task: Task) -> None:
        super().begin_task(task)
        if task.classes:  # a new domain brings none
            self.raw.grow(len(task.classes), self.seed_init, False, self.backbone.device)

    def logits(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens (batch, tokens, width) to logits (batch, seen)."""
        projected = self.projection(tokens.float())  # (batch, slots, dim)
        return self.raw(projected[:, 0] if self.hyper.token == "first" else projected.mean(1))

    def loss(self, batch: Batch) -> dict[str, torch.Tensor]:
        from torch.nn.functional import cross_entropy

        return {"classification": cross_entropy(self.logits(self.tokens(batch)), batch.labels)}

    def terms(self, labels: torch.Tensor) -> torch.Tensor:
        return labels >= 0  # one each

    def heads(self):
        return {"raw": lambda features: self.logits(features.unflatten(1, self.tokens_shape))}

    def predict(self, images: ImageSet) -> Outputs:
        found = Learner.predict(self, images)
        return replace(found, features=self.pooled(found.features))

    def load(self, state: dict[str, torch.Tensor]) -> None:
        self.raw.set_state(part(state, "learnt.raw."), self.backbone.device)
        super().load(state)


LEARNER = GMMLinear  # what this file's name stands for
