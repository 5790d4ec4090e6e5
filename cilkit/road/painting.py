"""Notebook 02: concepts become labelled images."""

from __future__ import annotations

import os

from cilkit import artifacts
from cilkit.road.inputs import opener_of, upstream, verb_of, with_artifact

VERSION = 1  # part of the key: raise it when the same parameters come to mean another payload


@verb_of("02_image_synthesis")
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
    from cilkit.data.shards import open_set
    from cilkit.synthesis import load_generator, make_plan, paint_plan

    realm = upstream(realm, "realm")
    painter = load_generator(generator)
    batch_size = batch_size or painter.settings["batch_size"]
    identity = {
        "generator": painter.id,
        "generator_digest": painter.digest,
        "settings": dict(painter.settings),
        "per_class": per_class,
        "seed": seed,
        "batch_size": batch_size,
    }
    workers = workers or _cores()

    def make(work: artifacts.Work) -> None:
        plan = make_plan(realm, per_class=per_class, seed=seed, batch_size=batch_size, generator=painter)
        measured = paint_plan(plan, generator, work.path, workers=workers, scratch=work.scratch)
        artifacts.write_parquet(work.path / "plan.parquet", plan)
        work.measure(**measured)

    inputs = {"realm": realm.artifact}
    artifact = artifacts.obtain("images", VERSION, identity, inputs, make, {"workers": workers})
    return with_artifact(open_set(artifact.path, classes=realm.concept_names), artifact)


@opener_of("images")
def open_images(artifact: artifacts.Artifact):
    from cilkit.data.shards import open_set

    return with_artifact(open_set(artifact.path), artifact)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
