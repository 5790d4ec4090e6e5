"""DualPrompt (Wang et al., ECCV 2022, arXiv 2204.04799), after the official JAX code.

Prompts are prefixes: keys and values in front of a block's own. G-prompts, in the first blocks, are shared by all
tasks; E-prompts, in the next ones, are a slot a task, and each slot has one key. A task trains its own slot, whatever
the keys say, and pulls its key towards its queries; a test image takes the slot whose key is nearest by cosine.
Classified is the class token; a task's loss is the cross-entropy over its own classes and the pull.

Ours: a task's slot is made when the task comes, so that any number of tasks can come, and only trained slots are
searched. The official code has a pool of 10 from the start, searches all of it, and without a word gives tasks no slots
of their own once the pool is used up (read).
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

    epochs: int = 3  # official: 5 (CIFAR-100), 50 (ImageNet-R)
    batch_size: int = 32  # official: 24 on each of 8 devices (their number is derived)
    lr: float = 0.015  # official: 0.03 x 192 / 256 = 0.0225 (CIFAR-100), 0.00375 (ImageNet-R)
    general_layers: tuple[int, ...] = (0, 1)  # official: 0, 1 of 12
    general_length: int = 5
    expert_layers: tuple[int, ...] = (2, 3)  # official: 2, 3, 4 of 12
    expert_length: int = 5  # official: 5 (CIFAR-100), 20 (ImageNet-R)
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
    PORTS = {"prompt_low": -1.0, "prompt_high": 1.0}  # of both below (read)
    RECIPES = {
        "official_code": {"batch_size": 192, "lr": 0.0225, "clip_backbone": True},  # on CIFAR-100 (read)
        "pilot": PORTS | {"batch_size": 24, "lr": 0.001, "pull": 0.1, "clip": 0.0},
        "mammoth": PORTS | {"batch_size": 128, "lr": 0.015},
    }

    @property
    def layers(self):
        return (*self.hyper.general_layers, *self.hyper.expert_layers)

    def build(self) -> None:
        super().build()
        self._start("general", (len(self.hyper.general_layers), 2, self.hyper.general_length, self.backbone.dim))

    def _start(self, name: str, shape: tuple[int, ...], task: int = 0) -> None:
        self.add_prompts(name, self.uniform(shape, self.hyper.prompt_low, self.hyper.prompt_high, name, task))

    def begin_task(self, task: Task) -> None:
        """A slot for the task: its E-prompts start where the slot before ended, its key does not."""
        super().begin_task(task)
        self.freeze_prompts(("expert", "key"))
        slots, dim = self.of_tasks("expert"), self.backbone.dim
        if slots:
            self.add_prompts(f"expert.{task.index}", slots[-1].detach().clone())
        else:
            self._start(f"expert.{task.index}", (len(self.hyper.expert_layers), 2, self.hyper.expert_length, dim))
        self._start(f"key.{task.index}", (dim,), task.index)

    def loss(self, batch: Batch) -> dict[str, torch.Tensor]:
        queries = self.query(batch.images)
        slot = self.of_tasks("expert")[-1][:, :, None]  # (layers, 2, 1, length, dim)
        features = self.with_experts(batch.images, slot.expand(-1, -1, len(queries), -1, -1), "student")
        return {
            "classification": self.classification(features, batch.labels),
            "pull": -self.hyper.pull * similarity(queries, self.of_tasks("key")[-1][None]).mean(),
        }

    def choose(self, queries: torch.Tensor) -> torch.Tensor:
        """The slot of each image, (batch,)."""
        import torch

        keys = torch.stack(self.of_tasks("key"))  # (tasks, dim)
        slots = similarity(queries, keys).argmax(1)
        return majority(slots[:, None], len(keys))[:, 0] if self.leaking("batch_vote") else slots

    def prompted(self, images, queries, kind):
        import torch

        expert = torch.stack(self.of_tasks("expert"), dim=2)  # (layers, 2, tasks, length, dim)
        return self.with_experts(images, expert[:, :, self.choose(queries)], kind)

    def with_experts(self, images: torch.Tensor, expert: torch.Tensor, kind: str) -> torch.Tensor:
        """Features (batch, dim) with each image's E-prompts (layers, keys and values, batch, length, dim)."""
        h = self.hyper
        if self.leaking("kv_reshape"):
            layers, _, batch, *rest = expert.shape
            expert = expert.reshape(layers, batch, 2, *rest).transpose(1, 2)
        general = self.prompts["general"][:, :, None]  # (layers, 2, 1, length, dim)
        prefixes = dict(zip(h.general_layers, general, strict=True)) | dict(zip(h.expert_layers, expert, strict=True))
        with prefixed(self.backbone, prefixes):
            return self.backbone(images, kind)


LEARNER = DualPrompt  # what this file's name stands for
