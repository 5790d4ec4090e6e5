"""Notebook 03: images become a backbone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from cilkit import architectures, artifacts
from cilkit.artifacts import Artifact
from cilkit.errors import UserError
from cilkit.progress import Progress
from cilkit.road.inputs import device_of, input_of, opener_of, threads_set_to, upstream, verb_of

VERSION = 1  # part of the key: raise it when the same parameters come to mean another payload


@opener_of("backbone")
@dataclass(frozen=True)
class Pretrained:
    """A backbone on disk, in the layout that plain timm loads. `load()` imports torch; nothing else here does."""

    artifact: Artifact

    @property
    def report(self) -> dict:
        """Loss and accuracy by epoch, held-out accuracy, classes and images."""
        return json.loads(self.artifact.file("report.json").read_text())

    def load(self):
        from cilkit import backbones

        return backbones.load(self.artifact.path)


@verb_of("03_pretraining")
def pretrain(
    images,
    arch: str = "small_resnet",
    model_args: dict | None = None,
    without_classes_of: str = "",
    leave_out: Sequence[str] = (),
    shuffle_labels: bool = False,
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
    threads: int = 1,
    device: str = "auto",
) -> Pretrained:
    """Supervised pre-training on a (synthetic) image set; the head is thrown away (Premonition, stage 3).

    arch:               a preset of `cilkit.architectures` or a timm name; `model_args` are laid over it.
    without_classes_of: a benchmark whose own class names are left out of the images first, "" keeps all.
    leave_out:          further concepts to leave out, by name.
    shuffle_labels:     control arm: the same images with permuted labels.
    recipe, image_size: transforms and, for recipes that resize, pixels on a side (0: the architecture's own).
    threads:            CPU threads of the training; part of the identity, because sums depend on it.
    device:             "cpu", "cuda" …, "auto": the GPU where there is one. No part of the identity.
    """
    from cilkit import realms

    images = upstream(images, "images")
    keep = list(images.class_names)
    if without_classes_of:
        from cilkit.data import benchmarks

        overlapping = set(
            realms.overlap(input_of(images.artifact, "realm"), benchmarks.class_names(without_classes_of))
        )
        keep = [name for name in keep if name not in overlapping]
    for name in leave_out:
        if name not in images.class_names:
            raise UserError(
                f"leave_out names {name!r}, which {images.artifact.name} does not hold; check its class names"
            )
    keep = [name for name in keep if name not in leave_out]
    arch, model_args = architectures.resolve(arch, model_args)
    recipe_of_training = {
        "arch": arch,
        "model_args": model_args,
        "shuffle_labels": shuffle_labels,
        "epochs": epochs,
        "batch_size": batch_size,
        "lr": lr,
        "weight_decay": weight_decay,
        "label_smoothing": label_smoothing,
        "recipe": recipe,
        "image_size": image_size,
        "held_out": held_out,
        "seed_init": seed_init,
        "seed_data": seed_data,
    }
    identity = {**recipe_of_training, "classes": keep, "threads": threads}

    def make(work: artifacts.Work) -> None:
        from cilkit import backbones, pretraining

        chosen = images.keep_classes(keep)
        with threads_set_to(threads):
            progress = Progress(f"pre-training on {len(keep)} classes")
            backbone, report = pretraining.pretrain(
                chosen, **recipe_of_training, device=device_of(device), scratch=work.scratch, log=progress
            )
        backbones.save(backbone, work.path, {"classes": len(keep), "images": len(chosen)})
        artifacts.write_json(work.path / "report.json", {**report, "classes": keep, "images": len(chosen)})

    inputs = {"images": images.artifact}
    return Pretrained(artifacts.obtain("backbone", VERSION, identity, inputs, make))
