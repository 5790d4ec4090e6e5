"""DualPrompt (Wang et al., ECCV 2022, arXiv 2204.04799), after the official JAX code.

Prompts are prefixes: keys and values in front of a block's own. G-prompts, in the first blocks, are shared by all
tasks; E-prompts, in the next ones, are a slot a task, and each slot has one key. A task trains its own slot, whatever
the keys say, and pulls its key towards its queries; a test image takes the slot whose key is nearest by cosine.
Classified is the class token; a task's loss is the cross-entropy over its own classes and the pull.

Ours: only slots that have been trained are searched. The official code searches the whole pool (read).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cilkit.errors import UserError
from cilkit.learners.prompting import Prompter, PromptHyper, majority, prefixed, similarity

if TYPE_CHECKING:
    import torch

    from cilkit.data import Task
    from cilkit.learners.base import Batch


@dataclass(frozen=True)
class DualPromptHyper(PromptHyper):
    """Official: the released configurations (read)."""

    epochs: int = 5  # official: 5 (CIFAR-100), 50 (ImageNet-R)
    batch_size: int = 32  # official: 24 on each of 8 devices (their number is derived)
    lr: float = 0.015  # official: 0.03 x 192 / 256 = 0.0225 (CIFAR-100), 0.00375 (ImageNet-R)
    general_layers: tuple[int, ...] = (0, 1)  # official: 0, 1 of 12
    general_length: int = 5
    expert_layers: tuple[int, ...] = (2, 3)  # official: 2, 3, 4 of 12
    expert_length: int = 5  # official: 5 (CIFAR-100), 20 (ImageNet-R)
    pool: int = 10  # slots: the most tasks that can be learnt
    pull: float = 1.0  # weight of the key's pull
    prompt_low: float = 0.0  # prompts and keys start uniform in low … high
    prompt_high: float = 0.01  # what JAX calls uniform; the ports: -1 … 1

    def __post_init__(self) -> None:
        super().__post_init__()
        both = set(self.general_layers) & set(self.expert_layers)
        if both:
            raise UserError(f"blocks {sorted(both)} are in general_layers and in expert_layers; each takes one prefix")


class DualPrompt(Prompter):
    Hyper = DualPromptHyper
    leaks = {
        "batch_vote": "at test the majority of a batch chooses the slot of every image, and batches are of one task or "
        "class: it gives the task away (official code and port on CIFAR-100, PILOT; read)",
        "kv_reshape": "a reshape in place of a permutation gives every image the keys and values of other images of "
        "its batch (dualprompt-pytorch, PILOT, Mammoth, HiDe-Prompt; read. The official code is right)",
    }
    RECIPES = {
        "official_code": {"batch_size": 192, "lr": 0.0225, "clip_backbone": True},  # read; CIFAR-100
        "pilot": {
            "batch_size": 24,
            "lr": 0.001,  # nominal; its rule gives lr * 24 / 256
            "pull": 0.1,
            "clip": 0.0,
            "prompt_low": -1.0,
            "prompt_high": 1.0,
        },  # read
        "mammoth": {"batch_size": 128, "lr": 0.015, "prompt_low": -1.0, "prompt_high": 1.0},  # read
    }

    @property
    def layers(self):
        return (*self.hyper.general_layers, *self.hyper.expert_layers)

    def build(self) -> None:
        super().build()
        h, dim = self.hyper, self.backbone.dim
        shapes = {
            "general": (len(h.general_layers), 2, h.general_length, dim),  # keys, then values
            "expert": (len(h.expert_layers), 2, h.pool, h.expert_length, dim),
            "keys": (h.pool, dim),  # of the slots
        }
        for name, shape in shapes.items():
            self.add_prompts(name, self.uniform(shape, h.prompt_low, h.prompt_high, name))

    def begin_task(self, task: Task) -> None:
        """The task's slot starts where the one before ended; its key does not."""
        super().begin_task(task)
        self.slot = task.index
        if self.slot >= self.hyper.pool:
            raise UserError(f"task {self.slot + 1} has no slot in a pool of {self.hyper.pool}; raise `pool`")
        if self.slot:
            expert = self.prompts["expert"].data
            expert[:, :, self.slot] = expert[:, :, self.slot - 1]

    def loss(self, batch: Batch) -> dict[str, torch.Tensor]:
        queries = self.query(batch.images)
        own = queries.new_full((len(queries),), self.slot, dtype=int)
        features = self.with_slots(batch.images, own, "student")
        return {
            "classification": self.classification(features, batch.labels),
            "pull": -self.hyper.pull * similarity(queries, self.prompts["keys"][self.slot, None]).mean(),
        }

    def choose(self, queries: torch.Tensor) -> torch.Tensor:
        """The slot of each image, (batch,), of those trained so far."""
        trained = len(self.sizes)
        slots = similarity(queries, self.prompts["keys"][:trained]).argmax(1)
        return majority(slots[:, None], trained)[:, 0] if self.leaking("batch_vote") else slots

    def with_slots(self, images: torch.Tensor, slots: torch.Tensor, kind: str) -> torch.Tensor:
        """Features (batch, dim) with the E-prompts of each image's slot (batch,)."""
        h = self.hyper
        general = self.prompts["general"][:, :, None]  # (layers, 2, 1, length, dim)
        expert = self.prompts["expert"][:, :, slots]  # (layers, 2, batch, length, dim)
        if self.leaking("kv_reshape"):
            layers, _, batch, *rest = expert.shape
            expert = expert.reshape(layers, batch, 2, *rest).transpose(1, 2)
        prefixes = dict(zip(h.general_layers, general, strict=True)) | dict(zip(h.expert_layers, expert, strict=True))
        with prefixed(self.backbone, prefixes):
            return self.backbone(images, kind)

    def prompted(self, images, queries, kind):
        return self.with_slots(images, self.choose(queries), kind)


LEARNER = DualPrompt  # what this file's name stands for
