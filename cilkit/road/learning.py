"""Notebooks 04 to 06: a stream is learnt, and what was learnt is probed."""

from __future__ import annotations

import inspect
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from cilkit import artifacts
from cilkit.errors import UserError, near_name
from cilkit.road.assembling import PARTS, RUN_VERSION, Makings, found_features
from cilkit.road.inputs import device_of, threads_set_to, upstream, verb_of, with_artifact
from cilkit.road.weights import Weights

# Parts of the keys: raise one when the same parameters come to mean another payload.
PROBE_VERSION, REFERENCE_VERSION = 1, 1
REAL = "real:"  # before the name of a benchmark, whose training images are taken for images
SMALL = 32  # pixels on a side, above which raw pixels are no sensible features


def stream(
    benchmark: str = "digits_photo",
    order_seed: int | None = 1993,
    increment: int | Sequence[int] = 2,
    base: int = 0,
    protocol: str = "class",
    order: Sequence[int | str] = (),
    validation: float = 0.0,
    benchmark_options: dict | None = None,
    tasks: int = 0,
    shots: int = 0,
):
    """A benchmark cut into tasks: order by seed (the papers' 1993, 1996, 1997 …), `increment` classes a task.

    benchmark:         a name of `cilkit.data.catalogue`, "folder:PATH", or "hf:owner/name".
    base:              classes of the first task, where it is larger (B50: 50); 0: as the others.
    protocol:          "class", or "domain" for benchmarks with domains (then `increment` says nothing).
    order:             classes (or domains) in an order of your own, by name or place, in place of the seed's.
    validation:        a share of each class's training images to test on, in place of the test images: for choosing
                       hyper-parameters. 0: the test images.
    benchmark_options: where and how the images are read, see `cilkit.data.benchmarks.load`: root, keep, partial …
    tasks:             the first so many tasks alone; 0: all.
    shots:             few-shot: training images of each class from the second task on; 0: all.
    """
    from cilkit.data import benchmarks
    from cilkit.data.streams import Stream, increments_of

    loaded = benchmarks.load(benchmark, **(benchmark_options or {}))
    if protocol == "class":
        increment = increments_of(len(loaded.class_names), increment, base)
    listed = tuple(order) or None
    made = Stream(loaded, order_seed, increment, protocol=protocol, order_list=listed, shots=shots)
    made = made[:tasks] if tasks else made
    return made.validation(validation) if validation else made


def run(
    learner: str | type,
    stream,
    backbone: Any = "none",
    arch: str = "small_resnet",
    model_args: dict | None = None,
    seed_init: int = 0,
    seed_data: int = 0,
    images: Any = None,
    threads: int = 1,
    keep: Sequence[str] = (),
    look_ahead: bool = False,
    device: str = "auto",
    precision: str = "float32",
    compile: bool = False,
    generator: str = "",
    captioner: Any = None,
    text_encoder: str = "embedded",
    **hyper: Any,
):
    """Learn a stream with a learner; a `Run` (accuracy matrix, outputs, features on disk) with `.artifact`.

    learner:  a name in `cilkit.learners`, with plug-ins ("ewc+alignment"), or a `Learner` class of your own (its source
              text is part of the identity).
    backbone: "none" (random weights of `arch`, drawn from `seed_init`), a `Pretrained`, a 03 parameter file, an
              artifact, a folder, a .safetensors file (with `arch`), a preset or a timm name with its weight tag; or
              "vlm:NAME", a vision-language model (see `cilkit.captioning.vlm`), whose weights no run keeps.
    images:   synthetic images for learners that replay them (an image set, a 02 parameter file, an artifact). With the
              learner's `repaint: true` they are painted again for every task, by the generator that painted these.
              For `source: unlabelled` "real:BENCHMARK", the training images of a benchmark or of folder:PATH.
    generator: where that one lies, if it was a folder of your own. No part of the identity: its digest is checked.
    captioner: for learners that write: what `prealign` made for this backbone; a backbone "vlm:NAME" brings its own.
    text_encoder: for learners that write: "embedded", or a name or folder (see `cilkit.captioning.text_encoders`).
    keep:     of "logits", "features", "backbone", what is kept even where the run then passes 200 MB.
    look_ahead: also measure, at the price of forward passes, how well the features tell each task's classes apart
              before it is learnt: forward transfer of the representation.
    device:   "cpu", "cuda", "cuda:1" …; "auto": the GPU where there is one. No part of the identity.
    precision: "bf16": the backbone computes under autocast; features, heads and weights stay float32.
    compile:  `torch.compile`: a minute at the start, then faster steps whose rounding differs.
    hyper:    the learner's own parameters; an unknown name stops before anything is computed.
    """
    from cilkit.runs import Run

    weights = Weights(backbone, arch, model_args, seed_init)
    painted = None if images is None else _images_of(images)
    chance = {"seed_init": seed_init, "seed_data": seed_data}
    numerics = {"threads": threads, "precision": precision, "compile": compile, "device": device}
    makings = Makings(
        learner, stream, weights, hyper, painted, captioner, text_encoder, generator, **chance, **numerics
    )
    identity = makings.identity | {"keep": sorted(keep), "look_ahead": look_ahead}

    def make(work: artifacts.Work) -> None:
        from cilkit import incremental
        from cilkit.phases import Phases
        from cilkit.widgets.live import Live

        with threads_set_to(threads):
            made = makings.create()
            phases = Phases(str(made.backbone.device))
            with Live(f"{makings.name} on {stream.benchmark.name}, order {stream.order_seed}", made, stream) as live:
                incremental.run_stream(
                    made,
                    stream,
                    work.path,
                    scratch=work.scratch,
                    keep=keep,
                    look_ahead=look_ahead,
                    on_moment=live.moment,
                    on_task=live.task,
                    phases=phases,
                )
            work.measure(phases=phases.table(), device=str(made.backbone.device))

    return Run(artifacts.obtain("run", RUN_VERSION, identity, makings.inputs, make))


@verb_of("04_slca")
def learn(
    learners: Sequence[str],
    own: dict[str, dict] | None = None,
    joint_learner: str = "",
    joint_epochs: int = 0,
    slow_rates: Sequence[float] = (),
    **settings: Any,
) -> dict[str, Any]:
    """Several learners on one stream from one backbone: name -> `Run`. The verb of notebook 04 and its parameter files.

    settings: of `stream`, of `run`, and for every learner that declares it (`lr`, `epochs` …); a name that no learner
              of this package knows is refused.
    own:      for one learner, over that: {"slca": {"temperature": 0.05}}.
    With `joint_learner`, that learner also trains `joint_epochs` on one task of all classes: the upper line, "joint".
    For each of `slow_rates` the slow learner also runs with that rate of the backbone: "rate 0.1".
    """
    from cilkit import learners as known

    for_stream, settings = _taken_by(stream, settings)
    shared, hyper = _taken_by(run, settings)
    declared = {name: known.settings(name, {}).keys() for name in {*learners, "slow_learner"}}
    _demand_known(hyper)
    for name in own or {}:
        if name not in learners:
            raise UserError(f"`own` sets parameters of {name!r}, which is not among {', '.join(learners)}")

    def taken_by(name: str) -> dict[str, Any]:
        return {key: value for key, value in hyper.items() if key in declared[name]} | (own or {}).get(name, {})

    on = stream(**for_stream)
    runs = {name: run(name, on, **shared, **taken_by(name)) for name in learners}
    if joint_learner and joint_epochs:
        longer = taken_by(joint_learner) | _joint_schedule(joint_learner, joint_epochs)
        runs["joint"] = run(joint_learner, on.joint(), **shared, **longer)
    for rate in slow_rates:
        runs[f"rate {rate:g}"] = run("slow_learner", on, **shared, **taken_by("slow_learner") | {"slow_rate": rate})
    return runs


@verb_of("05_generative_replay")
def compare(
    learner: str,
    arms: dict[str, dict],
    settings: dict | None = None,
    joint_epochs: int = 0,
    joint_learner: str = "finetune",
    **shared: Any,
) -> dict[str, Any]:
    """A learner in several arms on one stream: arm -> `Run`. The verb of notebook 05 and its parameter files.

    arms:     what distinguishes them, e.g. {"none": {"a": 0.0, "b": 0.0}, "both": {}}: parameters of the learner, of
              `run` (images, backbone, arch …), or another "learner" altogether.
    settings: further parameters of `learner`.
    shared:   of `stream`, of `run`, and for every learner that declares it; a name that no learner of this package
              knows is refused.
    With `joint_epochs`, `joint_learner` on all classes in one task is the upper line, "joint".
    """
    from cilkit import learners as known

    for_stream, shared = _taken_by(stream, shared)
    on, names = stream(**for_stream), {arm: changes.get("learner", learner) for arm, changes in arms.items()}
    of_run, hyper = _taken_by(run, shared)
    declared = {name: known.settings(name, {}).keys() for name in {learner, joint_learner, *names.values()}}
    _demand_known(hyper)

    def of(arm: str) -> dict[str, Any]:
        own = {key: value for key, value in hyper.items() if key in declared[names[arm]]}
        own |= (settings or {}) if names[arm] == learner else {}
        given = of_run | own | {key: value for key, value in arms[arm].items() if key != "learner"}
        given |= {} if known.takes_images(names[arm]) else {"images": None}
        return given if known.writes(names[arm]) else given | {"captioner": None}

    given = {arm: of(arm) for arm in arms}
    for arm, values in given.items():  # all are checked before the first is run
        known.settings(names[arm], _taken_by(run, values)[1])
    runs = {arm: run(names[arm], on, **values) for arm, values in given.items()}
    if joint_epochs:
        longer = {key: hyper[key] for key in hyper if key in declared[joint_learner]}
        longer |= (settings or {}) if joint_learner == learner else {}
        longer |= _joint_schedule(joint_learner, joint_epochs)
        given = of_run | {"images": None} | ({} if known.writes(joint_learner) else {"captioner": None})
        runs["joint"] = run(joint_learner, on.joint(), **given | longer)
    return runs


def _joint_schedule(learner: str, epochs: int) -> dict[str, Any]:
    """So many epochs, and where the learner's rate falls at milestones, one at four fifths of them."""
    from cilkit import learners

    falls = {"milestones": [round(0.8 * epochs)]} if "milestones" in learners.settings(learner, {}) else {}
    return {"epochs": epochs} | falls


def _images_of(spec: Any):
    """Painted images, or a benchmark's training images."""
    if not str(spec).startswith(REAL):
        return upstream(spec, "images")
    from cilkit.data import benchmarks

    loaded = benchmarks.load(spec.removeprefix(REAL))
    return with_artifact(loaded.train, loaded.artifact)


def _demand_known(hyper: dict[str, Any]) -> None:
    """UserError for a name that is no learner's: those of a notebook need not be all of one learner's."""
    from cilkit import learners

    words = learners.words()
    for name in hyper:
        if name not in words:
            raise UserError(f"no learner has a parameter {name!r}{near_name(name, words)}; leave it out")


def _taken_by(verb, settings: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings that a verb declares, and the rest."""
    declared = {name for name, p in inspect.signature(verb).parameters.items() if p.kind is not p.VAR_KEYWORD}
    taken = {name: value for name, value in settings.items() if name in declared}
    return taken, {name: value for name, value in settings.items() if name not in declared}


def probe(outcome, stream, threads: int = 1, device: str = "auto") -> dict:
    """What the final backbone of a run still knows: linear probe, nearest class mean and LDA on all training images.

    An artifact of its own with its own count of forwarded images, so that the diagnosis costs the run nothing.
    Returns {"scores": {classifier: accuracy in percent}, "forwarded": {kind: images}}.
    """

    def make(work: artifacts.Work) -> None:
        from cilkit import analysis, backbones

        if kind := outcome.settings["notes"].get("features"):
            raise UserError(
                f"the features that {outcome.artifact.name} kept are {kind}, which its backbone does not give; "
                "cilkit.reference has the classifiers on a frozen backbone's features"
            )
        tested, labels = outcome.features(-1), outcome.labels(-1)  # (n, dim), (n,)
        kept = outcome.artifact.path / "backbone"
        if not kept.is_dir():
            raise UserError(
                f"{outcome.artifact.name} kept no backbone; run it again with keep=['backbone'] (never kept are those "
                "of vision-language models)"
            )
        train = stream.train
        with threads_set_to(threads):
            network = backbones.load(kept).to(device_of(device))
            seen = _features(network, train, outcome.settings["hyper"])  # (n, dim)
        scores = analysis.probe_scores(seen, train.labels, tested, labels)
        artifacts.write_json(work.path / "probe.json", {"scores": scores, "forwarded": {"probe": len(train)}})

    inputs = {"run": outcome.artifact, "benchmark": stream.benchmark.artifact}
    artifact = artifacts.obtain("probe", PROBE_VERSION, {"threads": threads}, inputs, make)
    return json.loads(artifact.file("probe.json").read_text())


def reference(
    stream,
    backbone: Any = "",
    arch: str = "small_resnet",
    model_args: dict | None = None,
    threads: int = 1,
    recipe: str = "none",
    image_size: int = 0,
    device: str = "auto",
) -> dict:
    """The reference rows, classifiers trained on all classes at once: {classifier: accuracy in percent}.

    On raw pixels (`backbone=""`; of 32 x 32, where the images are larger), or on the frozen features of a backbone
    behind a recipe's test transform.
    """
    weights = Weights(backbone, arch, model_args) if backbone else None
    inputs = {"benchmark": stream.benchmark.artifact, **(weights.inputs if weights else {})}
    identity = {"threads": threads, **(weights.identity if weights else {"backbone": "pixels"})}
    if recipe != "none":
        identity |= {"recipe": recipe, "image_size": image_size}
    made = {}
    if weights is not None:
        settings = {"recipe": recipe, "image_size": image_size}
        made = found_features(stream.benchmark, PARTS, weights, settings, threads, device)

    def make(work: artifacts.Work) -> None:
        from cilkit import analysis
        from cilkit.road.features import opened

        train, test = stream.benchmark.train, stream.benchmark.test
        with threads_set_to(threads):
            if weights is None:
                seen = [_pixels(part) for part in (train, test)]  # (n, pixels)
            else:
                seen = [opened(made["train"])[train.index], opened(made["test"])[test.index]]  # (n, dim)
            scores = analysis.probe_scores(seen[0], train.labels, seen[1], test.labels, linear=weights is not None)
        artifacts.write_json(work.path / "reference.json", scores)

    inputs |= {f"features_{part}": artifact for part, artifact in made.items()}
    artifact = artifacts.obtain("reference", REFERENCE_VERSION, identity, inputs, make)
    return json.loads(artifact.file("reference.json").read_text())


def _pixels(images) -> np.ndarray:
    """float64 (n, pixels), values in 0 … 1."""
    from cilkit.data.decoding import shrunk

    if images.sizes.max() > SMALL or not images.source.uniform:
        pieces = [images.read(np.arange(i, min(i + 1000, len(images)))) for i in range(0, len(images), 1000)]
        return (
            np.stack([shrunk(image, square=SMALL) for piece in pieces for image in piece]).reshape(len(images), -1)
            / 255
        )
    return images.images().reshape(len(images), -1) / 255


def _features(network, images, settings: dict):
    """float32 (n, dim) behind the test transform of the recipe that the settings name."""
    from cilkit import backbones
    from cilkit.data import transforms

    recipe = transforms.recipe(settings.get("recipe", "none"), network.input, settings.get("image_size", 0))
    return backbones.extract(network, images, "probe", recipe)
