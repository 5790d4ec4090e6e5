"""What a run is made with, and the learner that it makes: the same for learning a stream and for opening its run."""

from __future__ import annotations

import hashlib
import inspect
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cilkit import artifacts
from cilkit import precision as numbers
from cilkit.errors import UserError
from cilkit.road.inputs import device_of, input_of, placed
from cilkit.road.weights import Weights

if TYPE_CHECKING:
    from cilkit.data import ImageSet, Stream
    from cilkit.learners import Learner
    from cilkit.road.aligning import Writing

RUN_VERSION = 3  # part of the key: raise it when the same parameters come to mean another payload
PARTS = ("train", "test")


@dataclass
class Makings:
    """Everything that `cilkit.run` was told that has a part in what is learnt, as objects; checked when made.

    images:   an image set with its `.artifact`, or None.
    captioner, text_encoder, generator, device: as `cilkit.run` has them.
    found:    the artifacts of the features behind a backbone that never changes, by part; None: found or made.
    name:     the learner's.
    settings: all of its parameters.
    UserError for what does not go together, before anything is computed.
    """

    learner: str | type
    stream: Stream
    weights: Weights
    hyper: dict[str, Any]
    images: ImageSet | None = None
    captioner: Any = None
    text_encoder: str = "embedded"
    generator: str = ""
    seed_init: int = 0
    seed_data: int = 0
    threads: int = 1
    precision: str = "float32"
    compile: bool = False
    device: str = "auto"
    found: dict[str, artifacts.Artifact] | None = None
    name: str = field(init=False)
    settings: dict[str, Any] = field(init=False)
    writing: Writing | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        from cilkit import learners

        self.name = self.learner if isinstance(self.learner, str) else self.learner.__name__
        self.settings = learners.settings(self.learner, self.hyper)
        if self.images is not None and learners.paints_itself(self.learner):
            raise UserError(f"{self.name} trains a generator of its own; leave `images` out")
        if learners.writes(self.learner):
            from cilkit.road.aligning import Writing

            self.writing = Writing(self.captioner, self.text_encoder, self.weights)
        elif self.captioner is not None:
            raise UserError(f"{self.name} writes nothing; leave `captioner` out")
        numbers.check(self.precision)
        if self.found is None:
            self.found = self._features() if learners.find(self.learner).always_frozen(self.settings) else {}

    def _features(self) -> dict[str, artifacts.Artifact]:
        """Made once for all runs on this frozen backbone. A validation split holds out training images."""
        parts = PARTS[:1] if self.stream.split else PARTS
        return found_features(
            self.stream.benchmark, parts, self.weights, self.settings, self.threads, self.device, self.precision
        )

    @property
    def inputs(self) -> dict[str, artifacts.Artifact]:
        """By name, the artifacts that a run of these is made from."""
        inputs = {"benchmark": self.stream.benchmark.artifact, **self.weights.inputs}
        inputs |= {} if self.images is None else {"images": self.images.artifact}
        inputs |= self.writing.inputs if self.writing else {}
        return inputs | {f"features_{part}": artifact for part, artifact in self.found.items()}

    @property
    def identity(self) -> dict[str, Any]:
        """What identifies a run of these, but for what it keeps and measures."""
        return {
            "learner": self.name,
            "source": "" if isinstance(self.learner, str) else source_digest(self.learner),
            "hyper": self.settings,
            "stream": self.stream.identity(),
            **self.weights.identity,
            "seed_init": self.seed_init,
            "seed_data": self.seed_data,
            "threads": self.threads,
            "precision": self.precision,
            "compile": self.compile,
            **(self.writing.identity if self.writing else {}),
        }

    def create(self) -> Learner:
        """The learner before its first task, on its device; call it with `threads` set."""
        from cilkit import learners
        from cilkit.road.features import opened

        network = numbers.prepare(self.weights.load().to(device_of(self.device)), self.precision, self.compile)
        extra = {} if self.images is None else {"images": self.images}
        extra |= self.writing.load(network, self.precision) if self.writing else {}
        if learners.paints_itself(self.learner):
            extra["images"] = _own_painter(self.settings, network.device)
        elif self.images is not None and self.settings.get("repaint"):
            extra["images"] = repainter(self.images.artifact, self.generator, str(network.device))
        seeds = {"seed_init": self.seed_init, "seed_data": self.seed_data}
        made = learners.create(self.learner, network, **seeds, **extra, **self.hyper)
        if self.found:
            benchmark = self.stream.benchmark
            made.find({getattr(benchmark, part).source.key: opened(a) for part, a in self.found.items()})
        return made


def _own_painter(settings: dict[str, Any], device):
    """The generator that a learner trains, by its parameters `painter_…`."""
    from cilkit.synthesis.classwise import Classwise

    start = "painter_"
    return Classwise(device=device, **{k.removeprefix(start): v for k, v in settings.items() if k.startswith(start)})


def repainter(made: artifacts.Artifact, generator: str, device: str):
    """What painted an image set, to paint its classes again from other seeds; every setting as it was."""
    from cilkit.synthesis import load_generator
    from cilkit.synthesis.repainting import Repainter

    if "generator_digest" not in made.identity:
        raise UserError(f"{made.name} was not painted here, or is curated; repaint needs the set as it was painted")
    was = made.identity
    settings = {} if was["generator"] == "font-renderings" else was["settings"]  # which it cannot be told
    try:
        painter = load_generator(placed(generator or was["generator"]), **settings, device=device)
    except UserError as error:
        raise UserError(f"{error}; to paint {made.name} again, give its folder as `generator`") from error
    if painter.digest != was["generator_digest"]:
        raise UserError(f"generator {painter.id} is not the one that painted {made.name}; give its folder")
    how = {name: was[name] for name in ("batch_size", "style", "long_prompts")}
    return Repainter(input_of(made, "realm"), painter, **how)


def found_features(
    benchmark, parts, weights: Weights, settings: dict, threads: int, device: str, precision: str = "float32"
) -> dict:
    """Part -> the artifact of its features behind these weights, found or made."""
    from cilkit.road.features import features

    recipe, size = settings.get("recipe", "none"), settings.get("image_size", 0)
    return {part: features(benchmark, part, weights, recipe, size, threads, device, precision) for part in parts}


def source_digest(learner: type) -> str:
    try:
        return hashlib.sha256(inspect.getsource(learner).encode()).hexdigest()
    except (OSError, TypeError) as error:
        raise UserError(
            f"the source text of {learner.__name__} is not to be had, so its runs could not be told apart"
        ) from error
