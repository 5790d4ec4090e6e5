"""The verbs of the notebooks: each finds its artifact or makes it.

    realm    = foresee("handwritten characters")
    images   = paint(realm, per_class=52, seed=0)
    backbone = pretrain(images, epochs=30)
    outcome  = run("slca", stream("digits_photo"), backbone=backbone)

An input is given as the object of the verb before, as an artifact's name or folder, or as a parameter file of the
notebook before (`params/03_pretraining/foreseen.yaml`): then what that file describes is found or made first. Nothing
heavy is imported unless something has to be made.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import sys
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cilkit import artifacts
from cilkit.artifacts import Artifact
from cilkit.errors import UserError

# A stage's version is part of its key: raise it when the same parameters come to mean another payload.
VERSIONS = {"realm": 1, "images": 1, "backbone": 1, "run": 1, "probe": 1, "reference": 1}


# ---------------------------------------------------------------- 01: realm


def foresee(realm: str, llm: str = "replayed", classes: int = 0):
    """The realm that a language model foresees (Premonition, stages 1 and 1b), with `.artifact`.

    realm:   its name, e.g. "handwritten characters"; or a folder, JSON or CSV file that holds one.
    llm:     "replayed": replies kept in the repository go through the parser that live replies go through.
    classes: keep the first so many concepts; 0 keeps all.
    """
    from cilkit import realms

    if isinstance(realm, str) and llm == "replayed" and not _is_path(realm):
        identity = {"realm": realm, "llm": llm, "classes": classes, "replies": realms.replies_digest(realm)}
    else:
        identity = {"realm": str(realm), "llm": llm, "classes": classes}

    def make(work: artifacts.Work) -> None:
        foreseen, repairs = realms.foresee(realm, llm=llm, classes=classes or None)
        foreseen.save(work.path)
        artifacts.atomic_write(work.path / "repairs.csv", repairs.frame().to_csv(index=False))

    return _open_realm(artifacts.obtain("realm", VERSIONS["realm"], identity, {}, make))


def without_overlap(realm, class_names: Sequence[str]):
    """The realm without the concepts that name a class of the benchmark: the honest arm. Its own artifact."""
    from cilkit import realms

    realm = _upstream(realm, "realm")
    dropped = sorted(realms.overlap(realm, list(class_names)))
    identity = {"without": dropped}
    make = lambda work: realm.without(dropped).save(work.path)  # noqa: E731
    return _open_realm(artifacts.obtain("realm", VERSIONS["realm"], identity, {"realm": realm.artifact}, make))


def _open_realm(artifact: Artifact):
    from cilkit.realms import Realm

    realm = Realm.load(artifact.path)
    realm.artifact = artifact
    return realm


# ---------------------------------------------------------------- 02: images


def paint(
    realm,
    generator: str = "embedded",
    per_class: int = 52,
    seed: int = 0,
    batch_size: int = 0,
    workers: int = 0,
):
    """Paint `per_class` images of each concept; an `ImageSet` with `.artifact`.

    generator:  "embedded", "font-renderings", or a diffusers folder or hub name.
    seed:       every image's own seed derives from it, its concept and its number.
    batch_size: images painted at once, part of what is painted; 0 takes the generator's recommendation.
    workers:    processes (execution only: the bytes do not depend on it); 0 = one a core.
    """
    from cilkit.data.shards import ImageSet
    from cilkit.synthesis import load_generator, make_plan, paint_plan

    realm = _upstream(realm, "realm")
    painter = load_generator(generator)
    batch_size = batch_size or painter.batch_size
    identity = {
        "generator": painter.id,
        "generator_digest": painter.digest,
        "settings": painter.settings,
        "per_class": per_class,
        "seed": seed,
        "batch_size": batch_size,
    }
    workers = workers or _cores()

    def make(work: artifacts.Work) -> None:
        painter.check(realm.concept_names)
        plan = make_plan(realm, per_class=per_class, seed=seed, batch_size=batch_size, generator=painter)
        measured = paint_plan(plan, generator, work.path, workers=workers, scratch=work.scratch)
        work.measure(**(measured or {}))

    inputs = {"realm": realm.artifact}
    artifact = artifacts.obtain("images", VERSIONS["images"], identity, inputs, make, {"workers": workers})
    images = ImageSet.open(artifact.path, classes=realm.concept_names)
    images.artifact = artifact
    return images


# ---------------------------------------------------------------- 03: backbone


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


def pretrain(
    images,
    arch: str = "",
    model_args: dict | None = None,
    without_classes_of: str = "",
    shuffle_labels: bool = False,
    epochs: int = 20,
    batch_size: int = 64,
    lr: float = 2e-3,
    weight_decay: float = 0.05,
    label_smoothing: float = 0.1,
    recipe: str = "pretrain",
    held_out: float = 0.1,
    seed_init: int = 0,
    seed_data: int = 0,
    threads: int = 1,
) -> Pretrained:
    """Supervised pre-training on a (synthetic) image set; the head is thrown away (Premonition, stage 3).

    without_classes_of: a benchmark whose own class names are left out of the images first, "" keeps all.
    shuffle_labels:     control arm: the same images with permuted labels.
    threads:            CPU threads of the training; part of the identity, because sums depend on it.
    """
    from cilkit import realms

    images = _upstream(images, "images")
    keep = list(images.class_names)
    if without_classes_of:
        from cilkit.data import benchmarks

        realm = _open_realm(_input_of(images.artifact, "realm"))
        overlapping = set(realms.overlap(realm, benchmarks.class_names(without_classes_of)))
        keep = [name for name in keep if name not in overlapping]
    recipe_of_training = {
        "arch": arch,
        "model_args": model_args or {},
        "shuffle_labels": shuffle_labels,
        "epochs": epochs,
        "batch_size": batch_size,
        "lr": lr,
        "weight_decay": weight_decay,
        "label_smoothing": label_smoothing,
        "recipe": recipe,
        "held_out": held_out,
        "seed_init": seed_init,
        "seed_data": seed_data,
    }
    identity = {**recipe_of_training, "classes": keep, "threads": threads}

    def make(work: artifacts.Work) -> None:
        from cilkit import backbones, pretraining

        chosen = images.keep_classes(keep)
        with _threads(threads):
            log = _printer(f"pre-training on {len(keep)} classes")
            backbone, report = pretraining.pretrain(chosen, **recipe_of_training, scratch=work.scratch, log=log)
        backbones.save(backbone, work.path, {"classes": len(keep), "images": len(chosen)})
        artifacts.write_json(work.path / "report.json", {**report, "classes": keep, "images": len(chosen)})

    inputs = {"images": images.artifact}
    return Pretrained(artifacts.obtain("backbone", VERSIONS["backbone"], identity, inputs, make))


# ---------------------------------------------------------------- 04, 05, 06: runs


def stream(benchmark: str = "digits_photo", order_seed: int | None = 1993, increment: int | Sequence[int] = 2):
    """A benchmark cut into tasks: class order by seed (the papers' 1993, 1996, 1997 …), `increment` classes a task."""
    from cilkit.data import benchmarks
    from cilkit.data.streams import Stream

    return Stream(benchmarks.load(benchmark), order_seed=order_seed, increments=increment)


def run(
    learner: str | type,
    stream,
    backbone: Any = "none",
    arch: str = "",
    model_args: dict | None = None,
    seed_init: int = 0,
    seed_data: int = 0,
    images: Any = None,
    threads: int = 1,
    **hyper: Any,
):
    """Learn a stream with a learner; a `Run` (accuracy matrix, outputs, features on disk) with `.artifact`.

    learner:  a name in `cilkit.learners`, or a `Learner` class of your own (its source text is part of the identity).
    backbone: "none" (random weights drawn from `seed_init`), a `Pretrained`, a 03 parameter file, an artifact, a folder,
              or a timm name.
    images:   synthetic images for learners that replay them (an image set, a 02 parameter file, an artifact).
    hyper:    the learner's own parameters; an unknown name stops before anything is computed.
    """
    from cilkit import learners
    from cilkit.runs import Run

    inputs = {"benchmark": stream.benchmark.artifact}
    start = _backbone(backbone)
    if isinstance(start, Pretrained):
        inputs["backbone"] = start.artifact
        named = "pretrained"
    else:
        named = start
    if images is not None:
        images = _upstream(images, "images")
        inputs["images"] = images.artifact
    settings = learners.settings(learner, hyper)  # checked and complete, without importing torch
    identity = {
        "learner": learner if isinstance(learner, str) else learner.__name__,
        "source": "" if isinstance(learner, str) else _source_digest(learner),
        "hyper": settings,
        "stream": {k: v for k, v in stream.identity().items() if k != "benchmark"},
        "backbone": named,
        "arch": arch if named == "none" else "",
        "model_args": (model_args or {}) if named == "none" else {},
        "seed_init": seed_init,
        "seed_data": seed_data,
        "threads": threads,
    }

    def make(work: artifacts.Work) -> None:
        from cilkit import backbones, incremental

        with _threads(threads):
            if named == "none":
                network = backbones.create(arch, seed=seed_init, model_args=model_args)
            else:
                network = start.load() if isinstance(start, Pretrained) else backbones.load(start)
            extra = {} if images is None else {"images": images}
            made = learners.create(learner, network, seed_init=seed_init, seed_data=seed_data, **extra, **hyper)
            log = _printer(f"{identity['learner']} on {stream.benchmark.name}, order {stream.order_seed}")
            incremental.run_stream(made, stream, work.path, scratch=work.scratch, on_moment=log)

    outcome = Run(artifacts.obtain("run", VERSIONS["run"], identity, inputs, make))
    return outcome


def probe(outcome, stream, threads: int = 1) -> dict:
    """What the final backbone of a run still knows: linear probe, nearest class mean and LDA on all training images.

    An artifact of its own with its own count of forwarded images, so that the diagnosis costs the run nothing.
    """

    def make(work: artifacts.Work) -> None:
        import numpy as np

        from cilkit import analysis, backbones

        train = stream.train
        with _threads(threads):
            network = backbones.load(outcome.artifact.path / "backbone")
            features = backbones.extract(network, train.images(), "probe")  # (n, dim)
        last = outcome.outputs(outcome.n_tasks - 1)
        scores = analysis.probe_scores(features, train.labels, last.features, last.labels)
        artifacts.write_json(work.path / "probe.json", {"scores": scores, "forwarded": {"probe": len(train)}})
        artifacts.save_npy(work.path / "train_labels.npy", np.asarray(train.labels))

    inputs = {"run": outcome.artifact, "benchmark": stream.benchmark.artifact}
    artifact = artifacts.obtain("probe", VERSIONS["probe"], {"threads": threads}, inputs, make)
    return json.loads(artifact.file("probe.json").read_text())


def reference(stream, backbone: Any = "", arch: str = "", model_args: dict | None = None, threads: int = 1) -> dict:
    """The reference rows: nearest class mean and shrinkage LDA, trained on all classes at once.

    On raw pixels (`backbone=""`), or on the frozen features of a backbone. Accuracies in percent.
    """
    inputs = {"benchmark": stream.benchmark.artifact}
    start = _backbone(backbone) if backbone else ""
    if isinstance(start, Pretrained):
        inputs["backbone"] = start.artifact
    named = "pretrained" if isinstance(start, Pretrained) else start
    identity = {"on": named or "pixels", "threads": threads}
    if named == "none":
        identity |= {"arch": arch, "model_args": model_args or {}}

    def make(work: artifacts.Work) -> None:
        import numpy as np

        from cilkit import analysis

        train, test = stream.benchmark.train, stream.benchmark.test
        if not named:
            inputs_of = [np.asarray(part.images(), np.float32).reshape(len(part), -1) / 255 for part in (train, test)]
        else:
            from cilkit import backbones

            with _threads(threads):
                if named == "none":
                    network = backbones.create(arch, seed=0, model_args=model_args)
                else:
                    network = start.load() if isinstance(start, Pretrained) else backbones.load(start)
                inputs_of = [backbones.extract(network, part.images(), "probe") for part in (train, test)]
        scores = analysis.probe_scores(inputs_of[0], train.labels, inputs_of[1], test.labels, linear_probe=bool(named))
        artifacts.write_json(work.path / "reference.json", scores)

    artifact = artifacts.obtain("reference", VERSIONS["reference"], identity, inputs, make)
    return json.loads(artifact.file("reference.json").read_text())


# ---------------------------------------------------------------- inputs


def from_params(path: str | Path):
    """What a parameter file describes: the verb of its notebook, called with the notebook's defaults and the file."""
    from cilkit.workbook import parameters

    path = _in_repository(path)
    notebook = artifacts.repository() / "notebooks" / f"{path.parent.name}.ipynb"
    if path.parent.name == "small":
        notebook = artifacts.repository() / "notebooks" / f"{path.parent.parent.name}.ipynb"
    if notebook.stem not in VERB_OF:
        raise UserError(f"{path} belongs to no notebook that makes an input; expected params/{{{','.join(VERB_OF)}}}/…")
    declared = parameters.declared(notebook)
    values, _ = parameters.check(declared, parameters.load_params(path))
    verb = VERB_OF[notebook.stem]
    return verb(**{name: values[name] for name in inspect.signature(verb).parameters if name in values})


VERB_OF: dict[str, Callable] = {"01_realm_prompting": foresee, "02_image_synthesis": paint, "03_pretraining": pretrain}


def _upstream(spec: Any, stage: str):
    """Turn what a person may write for an input into the object of the verb before."""
    if hasattr(spec, "artifact"):
        return spec
    if isinstance(spec, Artifact):
        artifact = spec
    elif str(spec).endswith((".yaml", ".yml")):
        return from_params(spec)
    else:
        artifact = artifacts.open_artifact(spec)
    if artifact.stage != stage:
        raise UserError(
            f"{artifact.name} is of stage {artifact.stage!r}, but an artifact of stage {stage!r} is wanted here"
        )
    if stage == "realm":
        return _open_realm(artifact)
    if stage == "backbone":
        return Pretrained(artifact)
    from cilkit.data.shards import ImageSet

    images = ImageSet.open(artifact.path)
    images.artifact = artifact
    return images


def _backbone(spec: Any) -> Pretrained | str:
    """A pre-trained artifact, "none", or a name that timm or a folder answers to."""
    if isinstance(spec, str) and not spec.endswith((".yaml", ".yml")) and not spec.startswith("backbone/"):
        return spec
    return _upstream(spec, "backbone")


def _input_of(artifact: Artifact, name: str) -> Artifact:
    made_from = artifact.inputs[name]
    found = artifacts.find(made_from["stage"], made_from["key"], made_from["digest"])
    if found is None:
        raise UserError(
            f"{artifact.name} was made from a {name} that is no longer under {artifacts.root()}; run 01 again"
        )
    return found


def _in_repository(path: str | Path) -> Path:
    """Parameter files are named from the repository's root, whatever the working directory is."""
    path = Path(path)
    if path.is_file():
        return path.absolute()
    home = artifacts.repository()
    if home is not None and (home / path).is_file():
        return home / path
    raise UserError(f"parameter file {str(path)!r} does not exist, neither here nor in the repository")


def _is_path(text: str) -> bool:
    return "/" in text or text.endswith((".json", ".csv"))


def _cores() -> int:
    import os

    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _threads(count: int):
    """Compute with so many CPU threads: part of an identity, because the order of a sum depends on it."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _source_digest(learner: type) -> str:
    try:
        return hashlib.sha256(inspect.getsource(learner).encode()).hexdigest()
    except (OSError, TypeError) as error:
        raise UserError(
            f"the source text of {learner.__name__} is not to be had, so its runs could not be told apart"
        ) from error


def _printer(what: str):
    """A progress bar for people, one line every 30 s for logs. Called with each moment (task, epoch, epochs, losses)."""
    from cilkit.progress import Progress

    return Progress(what, stream=sys.stderr)
