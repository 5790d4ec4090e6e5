"""The training itself: a backbone, a linear head, an optimiser and a schedule, in one process or in several.

Several processes share every batch. They draw the chance of the whole batch alike, prepare their own images of it, and
average gradients over the whole batch: what one process computes, up to rounding (dropout aside, which each process
draws for its own part). Batch normalisation: on GPUs its
statistics are the whole batch's too (SyncBatchNorm); on a CPU, where torch has none, each process normalises its own
part, and the running statistics are the first process's. Where a last batch has fewer images than there are processes,
idle ones pass an image that counts in these statistics only.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from cilkit import backbones, precision, stopping
from cilkit.data import draws, loading, transforms
from cilkit.errors import UserError
from cilkit.learners.base import derive
from cilkit.pretraining import checkpoint, choosing
from cilkit.pretraining.crew import Crew

if TYPE_CHECKING:
    from cilkit.backbones import Backbone
    from cilkit.data.imagesets import ImageSet
    from cilkit.pretraining.settings import Settings

WARM_UP = 0.1  # share of the steps in which the learning rate rises linearly
MOMENTUM = 0.9  # of SGD
EVERY = 60.0  # seconds of training that an interruption may cost
GLANCE = 1.0  # seconds between two looks at the loss: a look makes the program wait for a GPU

Tell = Callable[[int, int, str], None]  # images so far, in all, and words


class Data:
    """Which images are trained on, which are held out, and in what batches they come."""

    def __init__(self, images: ImageSet, real: ImageSet | None, settings: Settings) -> None:
        self.settings = settings
        self.train, self.held = images.split_by_seed(settings.held_out, settings.seed_data)
        if settings.shuffle_labels:
            rng = np.random.default_rng(derive(settings.seed_data, "shuffled labels"))
            self.train = self.train.at(self.train.index, rng.permutation(self.train.labels))
        self.painted, self.real = len(self.train), 0 if real is None else len(real)
        if real is not None:
            self.train = choosing.join(self.train, real)
        self.real_an_epoch = choosing.real_an_epoch(self.painted, self.real, settings.real_share)
        self.an_epoch = self.painted + self.real_an_epoch

    def cuts(self, epoch: int) -> list[np.ndarray]:
        """Positions in `train`, batch by batch."""
        settings = self.settings
        cuts = transforms.batches(
            self.an_epoch, settings.batch_size, derive(settings.seed_data, "pre-training order"), epoch
        )
        if not self.real:
            return cuts
        seed = derive(settings.seed_data, "real images")
        drawn = choosing.turn(self.real, self.real_an_epoch, epoch, seed)
        shown = np.concatenate([np.arange(self.painted), self.painted + drawn])
        return [shown[cut] for cut in cuts]


@dataclass(frozen=True)
class Batch:
    """This process's part of a batch: normalised images (b, 3, h, w), labels (b,), and the generator after it."""

    images: torch.Tensor
    labels: torch.Tensor
    count: int  # images that count: 0 where there were fewer images than processes
    whole: int  # images of all processes
    generator: np.ndarray


class Classifier(nn.Module):
    """Logits (batch, classes) of a backbone and a linear head."""

    def __init__(self, backbone: Backbone, classes: int, seed: int) -> None:
        super().__init__()
        self.backbone, self.head = backbone, nn.utils.skip_init(nn.Linear, backbone.dim, classes)
        with torch.no_grad():
            generator = torch.Generator().manual_seed(derive(seed, "pre-training head"))
            self.head.weight.normal_(0.0, 0.02, generator=generator)
            self.head.bias.zero_()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.backbone(images, "student"))


class Trainer:
    """One training, from wherever its last checkpoint left it."""

    def __init__(
        self,
        data: Data,
        settings: Settings,
        backbone: Backbone,
        device: torch.device,
        crew: Crew,
        scratch: Path | None,
        every: float | None = None,
    ) -> None:
        self.data, self.settings, self.crew, self.scratch = data, settings, crew, scratch
        self.every, self.since, self.looked = EVERY if every is None else every, time.monotonic(), time.monotonic()
        self.recipe = transforms.recipe(settings.recipe, backbone.input, settings.image_size)
        tune(backbone, settings.tune)
        self.network = Classifier(backbone, len(data.train.class_names), settings.seed_init).to(device)
        self.backbone, self.device = precision.prepare(backbone, settings.precision), device
        self._prepare()
        self.rows: list[dict] = []  # of the epochs that are over
        self.batch = 0  # batches of the present epoch that are over
        self.generator: np.ndarray | None = None  # its state after them
        self.sums = torch.tensor([0.0, 0.0, -1.0], dtype=torch.float64, device=device)  # loss, right, first bad batch
        checkpoint.load(self)

    def _prepare(self) -> None:
        settings = self.settings
        parameters = [p for p in self.network.parameters() if p.requires_grad]
        matrices, vectors = ([p for p in parameters if (p.ndim > 1) is wide] for wide in (True, False))
        groups = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]  # no decay of biases and norms
        kind = {"lr": settings.lr, "weight_decay": settings.weight_decay}
        if settings.optimiser == "sgd":
            self.optimiser = precision.sgd(groups, self.device, momentum=MOMENTUM, **kind)
        else:
            self.optimiser = precision.adamw(groups, self.device, **kind)
        steps = max(1, settings.epochs * math.ceil(self.data.an_epoch / settings.batch_size))
        warm = max(1, round(WARM_UP * steps))
        self.factor = lambda step: min((step + 1) / warm, 0.5 + 0.5 * math.cos(math.pi * step / steps))
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimiser, self.factor)

    def run(self, tell: Tell | None = None) -> None:
        """Every epoch that is not over yet."""
        network = self._spread()
        for epoch in range(len(self.rows), self.settings.epochs):
            row = self._epoch(network, epoch, tell)
            self.crew.take_buffers(self.backbone)
            row["held_out_accuracy"] = self._accuracy()
            if self.data.real:
                row["real_share"] = self.data.real_an_epoch / self.data.an_epoch
            self.rows.append(row)
            self.batch, self.generator, self.sums = 0, None, self.sums.new_tensor([0.0, 0.0, -1.0])
            self._keep(last=epoch + 1 == self.settings.epochs)

    def _spread(self) -> nn.Module:
        """The network as several processes train it; itself, where there is one."""
        if self.crew.size == 1:
            return self.network
        if self.device.type == "cuda":
            import timm.layers

            timm.layers.convert_sync_batchnorm(self.backbone)
        own = [self.device] if self.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(self.network, device_ids=own)

    def _epoch(self, network: nn.Module, epoch: int, tell: Tell | None) -> dict:
        seed, cuts = self.settings.seed_data, self.data.cuts(epoch)
        generator = torch.Generator().manual_seed(derive(seed, "pre-training augmentation", epoch))
        if self.generator is not None:
            generator.set_state(torch.from_numpy(self.generator))
        self.backbone.train()
        for module in self.backbone.norms:  # frozen parts keep their statistics
            module.train(module.weight is None or module.weight.requires_grad)
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            for number, batch in enumerate(self._batches(cuts[self.batch :], generator), self.batch):
                torch.manual_seed(derive(seed, "dropout", epoch, number, self.crew.rank))  # it draws from there only
                self._step(network, batch, number)
                self.batch, self.generator = number + 1, batch.generator
                self._glance(epoch, len(cuts), tell)
        loss_sum, right, _ = self._checked(epoch, len(cuts))
        n = self.data.an_epoch
        return {"epoch": epoch, "loss": loss_sum / n, "accuracy": round(right) / n}

    def _batches(self, cuts: list[np.ndarray], generator: torch.Generator) -> Iterator[Batch]:
        images, crew, device = self.data.train, self.crew, self.device

        def made(cut: np.ndarray) -> Batch:
            rows = crew.rows(len(cut))
            counted = len(rows)
            rows = rows if counted else np.zeros(1, np.int64)  # none left: one that does not count
            chance = generator if crew.size == 1 else draws.Share(generator, len(cut), rows)
            pixels = self.recipe.train(images.read(cut[rows], self.recipe.shortest), chance, device)
            labels = torch.from_numpy(images.labels[cut[rows]]).to(device)
            return Batch(pixels, labels, counted, len(cut), generator.get_state().numpy())

        ahead, made = loading.ahead_for(images, device), precision.on_own_stream(made, device)
        return loading.in_order(made, cuts, 1, ahead) if ahead else map(made, cuts)

    def _step(self, network: nn.Module, batch: Batch, number: int) -> None:
        logits = network(batch.images)
        loss = F.cross_entropy(logits, batch.labels, label_smoothing=self.settings.label_smoothing)
        self.optimiser.zero_grad(set_to_none=True)
        # Gradients are averaged over processes; weighted so, that is the mean over the whole batch's images.
        (loss if self.crew.size == 1 else loss * (self.crew.size * batch.count / batch.whole)).backward()
        self.optimiser.step()
        self.schedule.step()
        with torch.no_grad():
            right = (logits.argmax(1) == batch.labels)[: batch.count].sum()
            self.sums[:2] += self.crew.add(torch.stack([loss.double() * batch.count, right.double()]))
            bad = ~torch.isfinite(self.sums[0]) & (self.sums[2] < 0)
            self.sums[2] = torch.where(bad, number, self.sums[2])
        self.backbone.forwarded["student"] += batch.whole - len(batch.labels)  # what the other processes saw

    def _glance(self, epoch: int, batches: int, tell: Tell | None) -> None:
        """Now and then: is the loss a number, is it time for a checkpoint, and how far are we?"""
        now = time.monotonic()
        stop = stopping.asked()
        due = self.scratch is not None and now - self.since >= self.every
        if now - self.looked < GLANCE and not due and not stop:
            return
        self.looked = now
        loss_sum, *_ = self._checked(epoch, batches)
        seen = min(self.batch * self.settings.batch_size, self.data.an_epoch)
        if tell is not None:
            words = f"epoch {epoch + 1} of {self.settings.epochs}, classification {loss_sum / seen:.3f}"
            tell(epoch * self.data.an_epoch + seen, self.settings.epochs * self.data.an_epoch, words)
        self._keep(last=stop)
        if stop:
            raise KeyboardInterrupt

    def _checked(self, epoch: int, batches: int) -> list[float]:
        """The running sums; UserError where the loss is no number any more."""
        sums = self.sums.tolist()
        if sums[2] >= 0:
            first = int(sums[2])
            rate = self.settings.lr * self.factor(epoch * batches + first)
            raise UserError(
                f"the pre-training loss is {sums[0]} in epoch {epoch + 1} of {self.settings.epochs}, batch {first + 1} "
                f"of {batches}, at learning rate {rate:.3g}; lower lr and start again"
            )
        return sums

    def _accuracy(self) -> float:
        """Of the held-out images, 0 … 1; each process tests its part."""
        held = self.data.held
        rows = self.crew.rows(len(held))
        with torch.no_grad():
            features = backbones.extract(self.backbone, held.select(rows), "test", self.recipe)
            found = self.network.head(torch.from_numpy(features).to(self.device)).argmax(1).cpu().numpy()
            right = torch.tensor([(found == held.labels[rows]).sum()], device=self.device)
        self.backbone.forwarded["test"] += len(held) - len(rows)
        return float(self.crew.add(right)) / len(held)

    def _keep(self, last: bool = False) -> None:
        if self.scratch is None or not self.crew.leads:
            return
        if last or time.monotonic() - self.since >= self.every:
            checkpoint.save(self)
            self.since = time.monotonic()


def tune(backbone: Backbone, what: str) -> None:
    """Freeze all but the parts named; blocks are counted as timm counts them, norms after the last go with it."""
    if what == "all":
        return
    from timm.models import group_parameters

    for value in backbone.parameters():
        value.requires_grad_(False)
    if what == "head":
        return
    count = 1 if what == "last_block" else int(what.split("_")[1])
    matcher = getattr(backbone.model, "group_matcher", None)
    if matcher is None:
        raise UserError(f"timm does not say what the blocks of {backbone.arch!r} are; set tune to 'all' or 'head'")
    parameters = dict(backbone.model.named_parameters())
    groups = list(group_parameters(backbone.model, matcher(coarse=True)).values())
    if count > len(groups):
        raise UserError(f"tune is {what!r}, but {backbone.arch!r} has {len(groups)} blocks, its stem included")
    for name in [name for group in groups[-count:] for name in group]:
        parameters[name].requires_grad_(True)
