"""Notebooks 04 to 06: a stream is learnt, and what was learnt is probed."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Sequence
from typing import Any

from cilkit import architectures, artifacts
from cilkit.artifacts import Artifact
from cilkit.errors import UserError
from cilkit.progress import Progress
from cilkit.road.inputs import threads_set_to, upstream, verb_of
from cilkit.road.pretraining import Pretrained

# Parts of the keys: raise one when the same parameters come to mean another payload.
RUN_VERSION, PROBE_VERSION, REFERENCE_VERSION = 1, 1, 1


def stream(benchmark: str = "digits_photo", order_seed: int | None = 1993, increment: int | Sequence[int] = 2):
    """A benchmark cut into tasks: class order by seed (the papers' 1993, 1996, 1997 …), `increment` classes a task."""
    from cilkit.data import benchmarks
    from cilkit.data.streams import Stream

    return Stream(benchmarks.load(benchmark), order_seed=order_seed, increments=increment)


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
    **hyper: Any,
):
    """Learn a stream with a learner; a `Run` (accuracy matrix, outputs, features on disk) with `.artifact`.

    learner:  a name in `cilkit.learners`, or a `Learner` class of your own (its source text is part of the identity).
    backbone: "none" (random weights of `arch`, drawn from `seed_init`), a `Pretrained`, a 03 parameter file, an
              artifact, a folder, or a timm name.
    images:   synthetic images for learners that replay them (an image set, a 02 parameter file, an artifact).
    hyper:    the learner's own parameters; an unknown name stops before anything is computed.
    """
    from cilkit import learners
    from cilkit.runs import Run

    weights = _Weights(backbone, arch, model_args, seed_init)
    inputs = {"benchmark": stream.benchmark.artifact, **weights.inputs}
    if images is not None:
        images = upstream(images, "images")
        inputs["images"] = images.artifact
    name = learner if isinstance(learner, str) else learner.__name__
    identity = {
        "learner": name,
        "source": "" if isinstance(learner, str) else _source_digest(learner),
        "hyper": learners.settings(learner, hyper),
        "stream": stream.identity(),
        **weights.identity,
        "seed_init": seed_init,
        "seed_data": seed_data,
        "threads": threads,
    }

    def make(work: artifacts.Work) -> None:
        from cilkit import incremental

        with threads_set_to(threads):
            extra = {} if images is None else {"images": images}
            made = learners.create(learner, weights.load(), seed_init=seed_init, seed_data=seed_data, **extra, **hyper)
            progress = Progress(f"{name} on {stream.benchmark.name}, order {stream.order_seed}")
            incremental.run_stream(made, stream, work.path, scratch=work.scratch, on_moment=progress)

    return Run(artifacts.obtain("run", RUN_VERSION, identity, inputs, make))


@verb_of("04_slca")
def learn(
    learners: Sequence[str],
    own: dict[str, dict] | None = None,
    benchmark: str = "digits_photo",
    order_seed: int | None = 1993,
    increment: int | Sequence[int] = 2,
    joint_learner: str = "",
    joint_epochs: int = 0,
    backbone: Any = "none",
    arch: str = "small_resnet",
    model_args: dict | None = None,
    seed_init: int = 0,
    seed_data: int = 0,
    threads: int = 1,
    **hyper: Any,
) -> dict[str, Any]:
    """Several learners on one stream from one backbone: name -> `Run`. The verb of notebook 04 and its parameter files.

    hyper: for every learner that declares it (`lr`, `epochs` …); a name that none of them declares is refused.
    own:   for one learner, over that: {"slca": {"temperature": 0.05}}.
    With `joint_learner`, that learner also trains `joint_epochs` on one task of all classes: the upper line, "joint".
    """
    from cilkit import learners as known

    declared = {name: known.settings(name, {}).keys() for name in learners}
    for name in hyper:
        if not any(name in names for names in declared.values()):
            raise UserError(f"none of the learners {', '.join(learners)} has a parameter {name!r}; leave it out")
    for name in own or {}:
        if name not in declared:
            raise UserError(f"`own` sets parameters of {name!r}, which is not among {', '.join(learners)}")

    def taken_by(name: str) -> dict[str, Any]:
        return {key: value for key, value in hyper.items() if key in declared[name]} | (own or {}).get(name, {})

    on = stream(benchmark, order_seed, increment)
    shared = {"backbone": backbone, "arch": arch, "model_args": model_args, "threads": threads}
    shared |= {"seed_init": seed_init, "seed_data": seed_data}
    runs = {name: run(name, on, **shared, **taken_by(name)) for name in learners}
    if joint_learner and joint_epochs:
        longer = taken_by(joint_learner) | {"epochs": joint_epochs, "milestones": [round(0.8 * joint_epochs)]}
        runs["joint"] = run(joint_learner, on.joint(), **shared, **longer)
    return runs


@verb_of("05_generative_replay")
def compare(
    learner: str,
    arms: dict[str, dict],
    images: Any = None,
    benchmark: str = "digits_photo",
    order_seed: int | None = 1993,
    increment: int | Sequence[int] = 2,
    **settings: Any,
) -> dict[str, Any]:
    """One learner in several arms on one stream: arm -> `Run`. The verb of notebook 05 and its parameter files.

    arms: what distinguishes them, e.g. {"none": {"replay_weight": 0.0}, "replay": {"replay_weight": 1.0}}.
    """
    on = stream(benchmark, order_seed, increment)
    return {arm: run(learner, on, images=images, **(settings | changes)) for arm, changes in arms.items()}


def probe(outcome, stream, threads: int = 1) -> dict:
    """What the final backbone of a run still knows: linear probe, nearest class mean and LDA on all training images.

    An artifact of its own with its own count of forwarded images, so that the diagnosis costs the run nothing.
    Returns {"scores": {classifier: accuracy in percent}, "forwarded": {kind: images}}.
    """

    def make(work: artifacts.Work) -> None:
        from cilkit import analysis, backbones

        train = stream.train
        with threads_set_to(threads):
            network = backbones.load(outcome.artifact.path / "backbone")
            features = backbones.extract(network, train.images(), "probe")  # (n, dim)
        last = outcome.outputs(outcome.n_tasks - 1)
        scores = analysis.probe_scores(features, train.labels, last.features, last.labels)
        artifacts.write_json(work.path / "probe.json", {"scores": scores, "forwarded": {"probe": len(train)}})

    inputs = {"run": outcome.artifact, "benchmark": stream.benchmark.artifact}
    artifact = artifacts.obtain("probe", PROBE_VERSION, {"threads": threads}, inputs, make)
    return json.loads(artifact.file("probe.json").read_text())


def reference(
    stream, backbone: Any = "", arch: str = "small_resnet", model_args: dict | None = None, threads: int = 1
) -> dict:
    """The reference rows, classifiers trained on all classes at once: {classifier: accuracy in percent}.

    On raw pixels (`backbone=""`), or on the frozen features of a backbone.
    """
    weights = _Weights(backbone, arch, model_args, seed_init=0) if backbone else None
    inputs = {"benchmark": stream.benchmark.artifact, **(weights.inputs if weights else {})}
    identity = {"threads": threads, **(weights.identity if weights else {"backbone": "pixels"})}

    def make(work: artifacts.Work) -> None:
        from cilkit import analysis, backbones

        train, test = stream.benchmark.train, stream.benchmark.test
        with threads_set_to(threads):
            if weights is None:
                seen = [part.images().reshape(len(part), -1) / 255 for part in (train, test)]  # (n, pixels)
            else:
                network = weights.load()
                seen = [backbones.extract(network, part.images(), "probe") for part in (train, test)]  # (n, dim)
        scores = analysis.probe_scores(seen[0], train.labels, seen[1], test.labels, linear=weights is not None)
        artifacts.write_json(work.path / "reference.json", scores)

    artifact = artifacts.obtain("reference", REFERENCE_VERSION, identity, inputs, make)
    return json.loads(artifact.file("reference.json").read_text())


class _Weights:
    """Where a network's first weights come from: an artifact (an input), a name, or a seed (both identity)."""

    def __init__(self, backbone: Any, arch: str, model_args: dict | None, seed_init: int) -> None:
        by_name = isinstance(backbone, str) and not backbone.endswith((".yaml", ".yml"))
        self.source = backbone if by_name and not backbone.startswith("backbone/") else upstream(backbone, "backbone")
        self.arch, self.model_args = architectures.resolve(arch, model_args)
        self.seed = seed_init
        self.inputs: dict[str, Artifact] = {}
        self.identity: dict[str, Any] = {"backbone": self.source}
        if isinstance(self.source, Pretrained):
            self.inputs = {"backbone": self.source.artifact}
            self.identity = {"backbone": "pretrained"}
        elif self.source == "none":
            self.identity |= {"arch": self.arch, "model_args": self.model_args, "weights_seed": seed_init}

    def load(self):
        from cilkit import backbones

        if isinstance(self.source, Pretrained):
            return self.source.load()
        if self.source == "none":
            return backbones.create(self.arch, seed=self.seed, model_args=self.model_args)
        return backbones.load(self.source)


def _source_digest(learner: type) -> str:
    try:
        return hashlib.sha256(inspect.getsource(learner).encode()).hexdigest()
    except (OSError, TypeError) as error:
        raise UserError(
            f"the source text of {learner.__name__} is not to be had, so its runs could not be told apart"
        ) from error
