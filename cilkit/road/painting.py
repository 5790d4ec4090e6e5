"""Notebook 02: concepts become labelled images."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from cilkit import artifacts
from cilkit.progress import Pace
from cilkit.road.inputs import device_of, opener_of, placed, upstream, with_artifact

VERSION = 2  # part of the key: raise it when the same parameters come to mean another payload


def painter_of(generator="embedded", **how):
    """The generator of this name with these settings; "", 0 and -1 stand for its own.

    Folders and files are found from the working directory or the repository.
    """
    from cilkit.synthesis import load_generator

    settings = {name: value for name, value in how.items() if value is False or value not in ("", 0, -1)}
    if how.get("guidance") == 0:
        settings["guidance"] = 0.0  # asked for: no guidance at all
    if settings.get("start"):
        settings["start"] = placed(str(settings["start"]))
    if isinstance(settings.get("loras"), list):
        parted = [str(lora).partition("@") for lora in settings["loras"]]  # "FILE@0.8"
        settings["loras"] = ["".join((placed(file), at, scale)) for file, at, scale in parted]
    return load_generator(placed(generator) if isinstance(generator, str) else generator, **settings)


def paint(
    realm,
    generator: str = "embedded",
    per_class: int = 52,
    seed: int = 0,
    batch_size: int = 0,
    workers: int = 0,
    style: str | Sequence[str] = "paper",
    negative_prompt: str = "",
    steps: int = 0,
    guidance: float = -1.0,
    size: int = 0,
    scheduler: str = "",
    precision: str = "",
    fast: str = "",
    long_prompts: str = "refuse",
    settings: Mapping[str, Any] | None = None,
    executor: str = "processes",
    address: str = "",
    device: str = "auto",
):
    """Paint `per_class` images of each concept; an `ImageSet` with `.artifact`, a data card beside the images.

    generator:  "embedded", "font-renderings", a preset, or a diffusers folder or hub name.
    seed:       every image's own seed derives from it, its concept and its number.
    batch_size: images painted at once, part of what is painted; 0 takes the generator's recommendation.
    style:      "paper", "diversified" (another background, viewpoint and lighting an image), "plain", or endings.
    negative_prompt, steps, guidance, size, scheduler, precision: of the generator; "", 0 and -1 take its own.
    fast:       "steps" or "cache": the generator's declared faster variant, part of what is painted.
    long_prompts: "refuse" or "shorten" those with more tokens than the generator reads.
    settings:   further ones of a diffusers generator: loras, cache, start, strength, safety_checker, compile …
                (`cilkit.synthesis.diffusion`).
    workers:    processes or Ray actors (execution only, as all below: the bytes do not depend on it); 0 = one a GPU,
                where there are none one a core.
    executor:   "processes" of this machine, or "ray", at the `address` of a cluster ("" starts Ray here).
    device:     "auto", "cpu", "cuda" …
    """
    from cilkit.data.shards import open_set

    realm = upstream(realm, "realm")
    how = {"negative_prompt": negative_prompt, "steps": steps, "guidance": guidance, "size": size}
    how |= {"scheduler": scheduler, "precision": precision, "fast": fast}
    how |= {"device": "" if device == "auto" else device, **(settings or {})}
    painter = painter_of(generator, **how)
    batch_size = batch_size or painter.settings["batch_size"]
    identity = {
        "generator": painter.id,
        "generator_digest": painter.digest,
        "settings": dict(painter.settings),
        "per_class": per_class,
        "seed": seed,
        "batch_size": batch_size,
        "style": style,
        "long_prompts": long_prompts,
    }
    execution = {"workers": workers, "executor": executor, "device": device}

    def make(work: artifacts.Work) -> None:
        from cilkit.synthesis import cards, paint_plan
        from cilkit.synthesis.plan import open_plan, write_plan

        if device != "auto":
            device_of(device)
        path = work.path / "plan.parquet"
        if not path.exists():
            write_plan(path, realm, per_class, seed, batch_size, painter, style, long_prompts=long_prompts)
        plan = open_plan(path)
        if len(cut := plan.shortened()):
            name, rest = cut.loc[0, ["class_name", "shortened"]]
            print(
                f"cilkit: the prompts of {len(cut)} classes are longer than {painter.id} reads; shortened, of {name!r} "
                f"by {rest!r} (column shortened of the manifest)"
            )
        facts = {"realm": realm.name, "realm_digest": realm.artifact.digest}
        with Pace(f"painting {realm.name}", stops=True) as pace:
            measured = paint_plan(
                plan,
                painter,
                work.path,
                workers=workers or _workers(painter, device),
                scratch=work.scratch,
                progress=pace,
                executor=executor,
                address=address,
                facts=facts,
            )
        counts = dict.fromkeys(realm.concept_names, per_class)
        cards.write_card(work.path, realm=realm, generator=painter, counts=counts, style=_words(style))
        work.measure(**measured)

    artifact = artifacts.obtain("images", VERSION, identity, {"realm": realm.artifact}, make, execution)
    return with_artifact(open_set(artifact.path, classes=realm.concept_names), artifact)


@opener_of("images")
def open_images(artifact: artifacts.Artifact):
    """A painted set; or a curated one, which names the images that it keeps of another."""
    from cilkit.data.shards import open_set
    from cilkit.road.curating import KEEP, open_curated

    if (artifact.path / KEEP).exists():
        return open_curated(artifact)
    return with_artifact(open_set(artifact.path), artifact)


def _words(style: str | Sequence[str]) -> str:
    return style if isinstance(style, str) else f"own endings: {' | '.join(style)}"


def _workers(painter, device: str) -> int:
    """One a GPU; one a core where there is none; one where nobody else can load the generator."""
    from cilkit.synthesis.crew import gpus

    if not hasattr(painter, "spec"):
        return 1
    if device != "cpu" and (cards := gpus()):
        return len(cards) if device == "auto" else 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
