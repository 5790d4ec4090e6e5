"""L2P: learning to prompt (Wang et al., CVPR 2022, arXiv 2112.08654), after the official JAX code.

A pool of M prompts, each of L tokens and with a key. An image's query finds its N nearest keys by cosine; their N x L
tokens go in front of the image's own, and the classifier reads the mean of the prompt tokens' outputs. The loss is the
cross-entropy over the task's own classes, and a pull of the chosen keys towards the query. Choosing has no gradient:
keys learn from the pull alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cilkit.errors import UserError
from cilkit.learners.prompting import Prompter, PromptHyper, majority, prepended, similarity

if TYPE_CHECKING:
    import torch

    from cilkit.learners.base import Batch


@dataclass(frozen=True)
class L2PHyper(PromptHyper):
    """Official: the released CIFAR-100 configuration (read); paper: remembered. Where none is named they agree."""

    epochs: int = 3  # official: 5
    batch_size: int = 32  # official: 16 on each of 8 devices (their number is derived)
    lr: float = 0.005  # official: 0.03 x 128 / 256 = 0.015
    pool: int = 10  # M
    length: int = 5  # L. Official: 10
    chosen: int = 5  # N. Official: 4
    pull: float = 0.5  # weight of the keys' pull. Official: 1; under Adam it matters through clipping only (derived)
    prompt_low: float = 0.0  # prompts and keys start uniform in low … high
    prompt_high: float = 0.01  # what JAX calls uniform; the ports: -1 … 1
    prompt_position: bool = False  # the class token's position embedding on every prompt, as l2p-pytorch (read)
    training_vote: bool = False  # in training, the batch's majority chooses for every image

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.chosen <= self.pool:
            raise UserError(f"chosen is {self.chosen}; expected 0 … {self.pool} prompts, as many as the pool has")


class L2P(Prompter):
    Hyper = L2PHyper
    leaks = {
        "batch_vote": "at test the majority of a batch chooses the prompts of every image, and batches are of one task "
        "or class: it gives the task away (L2P's code and PyTorch port on CIFAR-100, PILOT; read)",
    }
    PORTS = {"pull": 0.1, "prompt_low": -1.0, "prompt_high": 1.0}  # of both below (read)
    RECIPES = {
        # Read in its cifar100_l2p configuration.
        "official_code": {"length": 10, "chosen": 4, "pull": 1.0, "batch_size": 128, "lr": 0.015}
        | {"clip_backbone": True, "training_vote": True},
        "pilot": PORTS | {"batch_size": 16, "lr": 0.001875, "clip": 0.0, "training_vote": True},
        "mammoth": PORTS | {"batch_size": 128, "lr": 0.015},  # its "best" configuration has pull 0.5, and votes
    }

    def build(self) -> None:
        super().build()
        h, dim = self.hyper, self.backbone.dim
        shapes = {"prompts": (h.pool, h.length, dim), "keys": (h.pool, dim)}
        for name, shape in shapes.items():
            self.add_prompts(name, self.uniform(shape, h.prompt_low, h.prompt_high, name))

    def loss(self, batch: Batch) -> dict[str, torch.Tensor]:
        queries = self.query(batch.images)
        cosines, chosen = self.choose(queries, self.hyper.training_vote)
        features = self.with_prompts(batch.images, chosen, "student")
        return {
            "classification": self.classification(features, batch.labels),
            "pull": -self.hyper.pull * cosines.gather(1, chosen).sum(1).mean(),
        }

    def choose(self, queries: torch.Tensor, vote: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines of the queries (batch, dim) with all keys (batch, M), and the N prompts of each image (batch, N)."""
        cosines = similarity(queries, self.prompts["keys"])
        chosen = cosines.topk(self.hyper.chosen, dim=1).indices
        return cosines, majority(chosen, self.hyper.pool) if vote else chosen

    def with_prompts(self, images: torch.Tensor, chosen: torch.Tensor, kind: str) -> torch.Tensor:
        """Features (batch, dim) with the chosen prompts (batch, N)."""
        tokens = self.prompts["prompts"][chosen].flatten(1, 2)  # (batch, N * L, dim)
        if self.hyper.prompt_position:
            tokens = tokens + self.backbone.model.pos_embed[:, :1]
        with prepended(self.backbone, tokens):
            return self.backbone(images, kind)

    def prompted(self, images, queries, kind):
        return self.with_prompts(images, self.choose(queries, self.leaking("batch_vote"))[1], kind)


LEARNER = L2P  # what this file's name stands for
