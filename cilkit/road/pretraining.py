"""Notebook 03: images become a backbone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cilkit import artifacts
from cilkit.artifacts import Artifact
from cilkit.errors import UserError
from cilkit.pretraining.settings import NAMES, Settings
from cilkit.progress import Pace
from cilkit.road.inputs import device_of, input_of, opener_of, threads_set_to, upstream, verb_of

VERSION = 2  # part of the key: raise it when the same parameters come to mean another payload
D = Settings()  # where the defaults stand


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
    arch: str = D.arch,
    model_args: dict | None = None,
    without_classes_of: str = "",
    leave_out: Sequence[str] = (),
    shuffle_labels: bool = D.shuffle_labels,
    epochs: int = D.epochs,
    batch_size: int = D.batch_size,
    lr: float = D.lr,
    weight_decay: float = D.weight_decay,
    label_smoothing: float = D.label_smoothing,
    recipe: str = D.recipe,
    image_size: int = D.image_size,
    held_out: float = D.held_out,
    seed_init: int = D.seed_init,
    seed_data: int = D.seed_data,
    threads: int = 1,
    device: str = "auto",
    optimiser: str = D.optimiser,
    init: Any = "",
    tune: str = D.tune,
    n_classes: int = D.n_classes,
    per_class: int = D.per_class,
    subset_seed: int = D.subset_seed,
    real: str = "",
    real_share: float = D.real_share,
    precision: str = D.precision,
    processes: int = D.processes,
) -> Pretrained:
    """Supervised pre-training on a (synthetic) image set; the head is thrown away (Premonition, stage 3).

    images:             an image set, its artifact or a 02 parameter file; "": the images of `real` alone.
    arch:               a preset of `cilkit.architectures` or a timm name; `model_args` are laid over it.
    without_classes_of: a benchmark whose own classes are left out first, of painted and of real images; "" keeps all.
    leave_out:          further concepts to leave out, by name.
    shuffle_labels:     control arm: the same images with permuted labels.
    recipe, image_size: transforms and, for recipes that resize, pixels on a side (0: the architecture's own);
                        "pretrain_full" for photographs and paintings of objects.
    threads:            CPU threads of the training, a process; part of the identity, because sums depend on it.
    device:             "cpu", "cuda" …, "auto": the GPU where there is one. No part of the identity.
    optimiser:          "adamw", or "sgd" with momentum 0.9 (then, our decision after what is usual: weight_decay 5e-4,
                        lr 0.1 and 90 to 100 epochs from random weights, 0.01 and 20 to 30 from ImageNet's).
    init:               the weights that training starts from, in place of random ones of `arch`: a timm name with its
                        tag (ImageNet, then synthetic), a backbone, its artifact, folder or file (with `arch`), or
                        another 03 parameter file.
    tune:               "all"; "last_block", "last_3_blocks" …: these and the head, the rest stays frozen; "head".
    n_classes, per_class, subset_seed: train on so many classes and images a class (held-out ones included), 0: all;
                        of one seed, a smaller subset is part of a larger one.
    real:               a benchmark whose real training images are mixed in (another than the stream's, unless the run
                        is to be an upper bound): same-named classes are merged, the others appended.
    real_share:         share of every epoch's images that are real, beside all painted ones; 0: each real image once.
                        The report says what the share was.
    precision:          "bf16": the backbone computes under autocast.
    processes:          that train together on this machine, each its part of every batch, on a GPU each where there are
                        any; part of the identity, as sums depend on it. Batch normalisation sees whole batches on GPUs,
                        each process's own part on a CPU.
    """
    settings = Settings(**{name: value for name, value in locals().items() if name in NAMES})
    from cilkit.data import benchmarks
    from cilkit.road.weights import Weights

    benchmark = benchmarks.load(real) if real else None
    inputs = {} if benchmark is None else {"real": benchmark.artifact}
    if isinstance(images, str) and not images:
        if benchmark is None:
            raise UserError("there is nothing to train on: images and real are both empty; name one of them")
        images, mixed = benchmark.train, None
    else:
        images, mixed = upstream(images, "images"), benchmark and benchmark.train
        inputs["images"] = images.artifact
    keep = _kept(images, inputs.get("images"), without_classes_of, leave_out)
    real_classes = [] if mixed is None else _kept(mixed, None, without_classes_of, ())
    weights = Weights(init or "none", arch, model_args, seed_init)
    if weights.inputs:
        inputs["init"] = weights.inputs["backbone"]
    chosen = {name: value for name, value in asdict(settings).items() if name not in ("arch", "model_args")}
    identity = {**chosen, **weights.identity, "classes": keep, "real_classes": real_classes, "threads": threads}

    def make(work: artifacts.Work) -> None:
        from cilkit import backbones, pretraining

        pace = Pace(f"pre-training on {n_classes or len(keep)} classes", stops=processes > 1)
        with threads_set_to(threads), pace:
            backbone, report = pretraining.pretrain(
                images.keep_classes(keep),
                settings,
                network=weights.load(),
                real=mixed and mixed.keep_classes(real_classes),
                device=device_of(device),
                scratch=work.scratch,
                tell=pace,
            )
        names, count = report.pop("class_names"), report.pop("images")
        backbones.save(backbone, work.path, {"classes": len(names), "images": count})
        artifacts.write_json(work.path / "report.json", {**report, "classes": names, "images": count})

    return Pretrained(artifacts.obtain("backbone", VERSION, identity, inputs, make))


def _kept(images, artifact: Artifact | None, without_classes_of: str, leave_out: Sequence[str]) -> list[str]:
    """The names of the classes that are trained on."""
    keep, dropped = list(images.class_names), set(leave_out)
    for name in leave_out:
        if name not in keep:
            where = "the benchmark" if artifact is None else artifact.name
            raise UserError(f"leave_out names {name!r}, which {where} does not hold; check its class names")
    if without_classes_of:
        from cilkit import realms
        from cilkit.data import benchmarks
        from cilkit.pretraining import choosing

        theirs = benchmarks.class_names(without_classes_of)
        if artifact is None:
            dropped |= set(choosing.same_names(keep, theirs))
        else:
            dropped |= set(realms.overlap(input_of(artifact, "realm"), theirs))
    keep = [name for name in keep if name not in dropped]
    if len(keep) < 2:
        raise UserError(f"{len(keep)} of {len(images.class_names)} classes are left to tell apart; leave fewer out")
    return keep
