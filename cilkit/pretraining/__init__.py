"""Supervised pre-training on an image set (Premonition, stage 3): softmax over its classes, then the head is dropped.

The paper's stage 3 has no public source: its repository holds neither code nor hyper-parameters of it (specs 6). Fixed
by the abstract (read on a page): supervised classification of the synthetic labels, the head dropped, the backbone
kept. The rest is our decision, after what is usual: C-way cross-entropy, label smoothing 0.1, a cosine schedule,
a tenth of each class held out by seed. `recipe="pretrain_full", optimiser="sgd"` is the specs' recipe for full-size
networks; the embedded default takes AdamW and draws placement, scale, polarity and colour at random ("pretrain").

Arms (specs 6): random weights (`backbone="none"` of a run), a realm's classes, an unrelated realm, permuted labels
(`shuffle_labels`), real images (`images=""` with `real`), without the benchmark's classes (`without_classes_of`),
class count x images a class (`n_classes`, `per_class`), ImageNet then synthetic (`init`).

Nothing here imports torch until something is trained.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from cilkit.pretraining.settings import Settings

if TYPE_CHECKING:
    from cilkit.backbones import Backbone
    from cilkit.data.imagesets import ImageSet

__all__ = ["Settings", "pretrain"]


def pretrain(
    images: ImageSet,
    settings: Settings | None = None,
    *,
    network: Backbone | None = None,
    real: ImageSet | None = None,
    device: Any = "cpu",
    scratch: Path | None = None,
    tell: Callable[[int, int, str], None] | None = None,
    every: float | None = None,
    **changes: Any,
) -> tuple[Backbone, dict]:
    """Train a backbone to tell the classes of `images` apart; returns it without head, and a report.

    settings, changes: see `Settings`; changes are laid over it.
    network: where training starts; None: random weights of settings.arch.
    real:    real images that every epoch shows beside all of `images`; their classes are merged by name or appended.
    scratch: checkpoints; an interrupted training goes on from the last one, in mid-epoch, to the same weights. One that
             a person stops keeps every finished batch.
    every:   seconds between two checkpoints; `trainer.EVERY` where none are given.
    tell:    called about once a second, with images so far, in all, and words.
    report:  classes and images (by part), and a row an epoch: loss, accuracy, held_out_accuracy (0 … 1), and, with real
             images, their share of the epoch.
    UserError for a loss that is no number (epoch, batch, learning rate), and where a process fails.
    """
    import torch

    from cilkit import backbones, stopping
    from cilkit.pretraining import choosing, launch, trainer
    from cilkit.pretraining.crew import Crew

    settings = replace(settings or Settings(), **changes)
    images = choosing.subset(images, settings.n_classes, settings.per_class, settings.subset_seed)
    network = network or backbones.create(settings.arch, settings.seed_init, settings.model_args)
    data, device = trainer.Data(images, real, settings), torch.device(device)
    with TemporaryDirectory() as temporary:
        if settings.processes > 1:
            scratch = Path(scratch or temporary)
            launch.train(images, real, settings, network, device, scratch, every, tell)
            device = torch.device("cpu")  # the weights are there: they are only read
        one = trainer.Trainer(data, settings, network, device, Crew(), scratch and Path(scratch), every)
        if settings.processes == 1:
            with stopping.politely():
                one.run(tell)
    report = {
        "classes": len(data.train.class_names),
        "class_names": data.train.class_names,
        "images": len(images),
        "train_images": data.painted,
        "held_out_images": len(data.held),
        **({"real_images": data.real} if data.real else {}),
        "chance": 1 / len(data.train.class_names),
        "epochs": one.rows,
        "held_out_accuracy": one.rows[-1]["held_out_accuracy"] if one.rows else None,
        "forwarded": dict(network.forwarded),
    }
    return network.requires_grad_(True).eval(), report
