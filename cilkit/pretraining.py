"""Supervised pre-training on an image set (Premonition, stage 3): softmax over its classes, then the head is dropped.

The paper's stage 3 has no public source. Recipe (our decision, after specs usual for training from scratch): C-way
cross-entropy with label smoothing 0.1 and a cosine schedule. At our scale AdamW replaces the SGD with 0.1 x 90 … 100
epochs that suits full-size networks; placement, scale, polarity and colour are drawn at random ("pretrain").
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from cilkit import artifacts, backbones, precision
from cilkit.data import loading, transforms
from cilkit.errors import UserError
from cilkit.learners.base import Moment, derive

if TYPE_CHECKING:
    from cilkit.backbones import Backbone
    from cilkit.data.imagesets import ImageSet
    from cilkit.data.transforms import Recipe

WARM_UP = 0.1  # share of the steps in which the learning rate rises linearly
CHECKPOINT = "pretraining.safetensors"


def pretrain(
    images: ImageSet,
    *,
    arch: str = backbones.DEFAULT_ARCH,
    model_args: dict[str, Any] | None = None,
    epochs: int = 24,
    batch_size: int = 64,
    lr: float = 5e-3,
    weight_decay: float = 0.05,
    label_smoothing: float = 0.1,
    recipe: str = "pretrain",
    image_size: int = 0,
    held_out: float = 0.1,
    seed_init: int = 0,
    seed_data: int = 0,
    shuffle_labels: bool = False,
    device: Any = "cpu",
    scratch: Path | None = None,
    log: Callable[[Moment], None] | None = None,
) -> tuple[Backbone, dict]:
    """Train a fresh backbone to tell the classes of `images` apart; returns it without head, and a report.

    held_out:       share of each class that is kept out of training, chosen by `seed_data`.
    shuffle_labels: control arm: the labels of the training images are permuted, so that only image statistics and
                    optimisation can help; the held-out images keep their own labels.
    scratch:        epoch checkpoints; an interrupted training goes on from the last one to the same weights.
    report:         classes, images by part, and a row an epoch: loss, accuracy, held_out_accuracy (0 … 1).
    """
    backbone = backbones.create(arch, seed_init, model_args)
    trainer = _Trainer(backbone, len(images.class_names), seed_init, device)
    chosen = transforms.recipe(recipe, backbone.input, image_size)
    train, held = images.split_by_seed(held_out, seed_data)
    if shuffle_labels:
        labels = np.random.default_rng(derive(seed_data, "shuffled labels")).permutation(train.labels)
        train = train.at(train.index, labels)
    trainer.prepare(len(train), epochs, batch_size, lr, weight_decay)
    rows = trainer.resume(scratch)
    for epoch in range(len(rows), epochs):
        row = trainer.epoch(epoch, train, chosen, label_smoothing, seed_data)
        rows.append({"epoch": epoch, **row, "held_out_accuracy": trainer.accuracy(held, chosen)})
        trainer.keep(scratch, rows)
        if log is not None:
            log(Moment(None, epoch, epochs, {"classification": row["loss"]}))
    report = {
        "classes": len(images.class_names),
        "train_images": len(train),
        "held_out_images": len(held),
        "chance": 1 / len(images.class_names),
        "epochs": rows,
        "held_out_accuracy": rows[-1]["held_out_accuracy"] if rows else None,
        "forwarded": dict(trainer.backbone.forwarded),
    }
    return trainer.backbone.eval(), report


class _Trainer:
    """A backbone, a linear head, AdamW and a cosine schedule with linear warm-up, a step a batch."""

    def __init__(self, backbone: Backbone, classes: int, seed: int, device: Any) -> None:
        self.backbone = backbone.to(device)
        self.head = nn.Linear(backbone.dim, classes)
        with torch.no_grad():
            generator = torch.Generator().manual_seed(derive(seed, "pre-training head"))
            self.head.weight.normal_(0.0, 0.02, generator=generator)
            self.head.bias.zero_()
        self.head.to(device)

    def prepare(self, n: int, epochs: int, batch_size: int, lr: float, weight_decay: float) -> None:
        parameters = [*self.backbone.parameters(), *self.head.parameters()]
        matrices, vectors = ([p for p in parameters if (p.ndim > 1) is wide] for wide in (True, False))
        groups = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]  # no decay of biases and norms
        self.batch_size = batch_size
        steps = max(1, epochs * math.ceil(n / batch_size))
        warm = max(1, round(WARM_UP * steps))
        self.optimiser = precision.adamw(groups, self.backbone.device, lr=lr, weight_decay=weight_decay)
        factor = lambda step: min((step + 1) / warm, 0.5 + 0.5 * math.cos(math.pi * step / steps))  # noqa: E731
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimiser, factor)

    def epoch(self, epoch: int, images: ImageSet, recipe: Recipe, label_smoothing: float, seed: int) -> dict:
        generator = torch.Generator().manual_seed(derive(seed, "pre-training augmentation", epoch))
        device = self.backbone.device
        self.backbone.train()

        def prepare(pixels, labels: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
            return recipe.train(pixels, generator, device), torch.from_numpy(labels).to(device)

        cuts = transforms.batches(len(images), self.batch_size, derive(seed, "pre-training order"), epoch)
        ahead = loading.ahead_for(images, device)
        loss_sum, right = 0.0, 0
        for batch, target in loading.prefetched(images, cuts, prepare, ahead, recipe.shortest):
            logits = self.head(self.backbone(batch, "student"))
            loss = F.cross_entropy(logits, target, label_smoothing=label_smoothing)
            self.optimiser.zero_grad(set_to_none=True)
            loss.backward()
            self.optimiser.step()
            self.schedule.step()
            loss_sum += loss.item() * len(target)
            right += int((logits.argmax(1) == target).sum())
        if not math.isfinite(loss_sum):
            raise UserError(f"the pre-training loss is {loss_sum} in epoch {epoch + 1}; lower lr and start again")
        return {"loss": loss_sum / len(images), "accuracy": right / len(images)}

    def accuracy(self, images: ImageSet, recipe: Recipe) -> float:
        with torch.no_grad():
            features = torch.from_numpy(backbones.extract(self.backbone, images, "test", recipe)).to(self.head.weight)
            return float((self.head(features).argmax(1).cpu().numpy() == images.labels).mean())

    def keep(self, scratch: Path | None, rows: list[dict]) -> None:
        """Everything that the next epoch needs, in one file that is replaced at once."""
        if scratch is None:
            return
        from safetensors.torch import save

        tensors = {f"backbone.{k}": v for k, v in self.backbone.state_dict().items()}
        tensors |= {f"head.{k}": v for k, v in self.head.state_dict().items()}
        for index, state in self.optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser.{index}.{k}": v for k, v in state.items()}
        facts = {"rows": rows, "steps": self.schedule.last_epoch, "forwarded": self.backbone.forwarded}
        tensors = {k: v.cpu().contiguous() for k, v in tensors.items()}
        artifacts.atomic_write(Path(scratch) / CHECKPOINT, save(tensors, metadata={"facts": json.dumps(facts)}))

    def resume(self, scratch: Path | None) -> list[dict]:
        """Load the last checkpoint, if there is one; returns the rows of the epochs that it holds."""
        if scratch is None or not (Path(scratch) / CHECKPOINT).exists():
            return []
        from safetensors import safe_open

        with safe_open(Path(scratch) / CHECKPOINT, framework="pt") as file:
            facts = json.loads(file.metadata()["facts"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        under = lambda start: {k[len(start) :]: v for k, v in tensors.items() if k.startswith(start)}  # noqa: E731
        self.backbone.load_state_dict(under("backbone."))
        self.head.load_state_dict(under("head."))
        state: dict[int, dict] = {}
        for name, value in under("optimiser.").items():
            index, key = name.split(".")
            state.setdefault(int(index), {})[key] = value
        self.optimiser.load_state_dict({**self.optimiser.state_dict(), "state": state})
        self.backbone.forwarded.update(facts["forwarded"])
        self.schedule.last_epoch = facts["steps"]
        for group, factor in zip(self.optimiser.param_groups, self.schedule.lr_lambdas, strict=True):
            group["lr"] = group["initial_lr"] * factor(facts["steps"])
        return facts["rows"]
