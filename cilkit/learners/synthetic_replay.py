"""SDDR: painted images of old classes beside the real batch, used twice (Jodelet et al., arXiv 2306.17560).

    L = L_cls(real) + a L_cls(synthetic) + lambda [ L_dist(real) + b L_dist(synthetic) ]        (specs, section 2)

A plug-in for every learner that distils: "lucir+synthetic_replay". Arms: none a = b = 0 (bit for bit the learner
without the plug-in), distillation a = 0, replay b = 0, both; and the rival that the paper names, external unlabelled
images for distillation alone (`source: unlabelled`). Synthetic images never reach herding, exemplar means, validation
or accuracy.

There is no public code and the paper's body was not read. That synthetic images carry old classes' names and enter both
losses is read (abstract); every parameter below says what is known of its value.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from cilkit.data import loading
from cilkit.errors import UserError
from cilkit.learners.base import Batch, derive
from cilkit.learners.distilling import Distilling, split

if TYPE_CHECKING:
    import torch

    from cilkit.data import ImageSet, Stream, Task


@dataclass(frozen=True)
class SyntheticReplayHyper:
    a: float = 1.0  # weight of classification on synthetic images [ours]
    b: float = 1.0  # weight of distillation on synthetic images [ours]
    ratio: float = 1.0  # r, synthetic images a real one in a batch: one batch of equal size [ours]
    weighting: str = "sum"  # as the formula; "mean": a term is the mean over real and synthetic rows together [ours]
    source: str = "classes"  # of images; "unlabelled": external real images, whose labels nobody looks at (GD, Placebo)
    new_classes: bool = False  # also images of the task's own classes; SDDR: previously met ones [read, abstract]
    further_terms: bool = True  # more classification terms than cross-entropy, such as LUCIR's margins [ours]
    split_norm: bool = False  # True: synthetic images have batch statistics of their own, and leave no trace in the
    # running ones; False: one batch of both, as DDDR concatenates them [ours]
    repaint: bool = False  # True: images are painted anew for every task and thrown away; `images` is a painter [ours]
    painted_per_class: int = 500  # of `repaint`. SDDR's largest store on CIFAR-100 [third-party]

    def __post_init__(self) -> None:
        if self.weighting not in ("sum", "mean"):
            raise UserError(f"weighting is {self.weighting!r}; expected 'sum' (the formula) or 'mean'")
        if self.source not in ("classes", "unlabelled"):
            raise UserError(f"source is {self.source!r}; expected 'classes' or 'unlabelled'")
        if min(self.a, self.b, self.ratio) < 0:
            raise UserError(f"a {self.a:g}, b {self.b:g} and ratio {self.ratio:g} are weights; expected 0 or more")
        if self.source == "unlabelled" and (self.a or self.repaint or self.new_classes):
            raise UserError("unlabelled images serve distillation alone; set a to 0, repaint and new_classes to false")
        if self.repaint and self.painted_per_class < 1:
            raise UserError(f"painted_per_class is {self.painted_per_class}; expected 1 or more")


class Painter(Protocol):
    """What paints images of named classes again whenever they are wanted.

    bytes: what has to be kept for that, weights and prompts.
    """

    bytes: int

    def paint(self, names: Sequence[str], per_class: int, seed: int) -> ImageSet:
        """So many images of each class; its class names are `names`."""


class SyntheticReplay:
    """Mix it in before a learner's class: `class Mine(SyntheticReplay, MyLearner)`, with a Hyper of both.

    images:    an image set whose classes are found by name, or a `Painter`.
    synthetic: what the present task draws from, rows by class in `_rows`.
    """

    takes_images = True
    Hyper = SyntheticReplayHyper

    @classmethod
    def check_base(cls, base: type) -> None:
        """UserError for a learner whose loss cannot be asked for on further images."""
        if not issubclass(base, Distilling):
            raise UserError(
                f"synthetic replay needs a loss in two halves (learners.distilling.Distilling), and {base.__name__} "
                "has none; choose a learner such as icarl, lucir, podnet, bic, der or lwf"
            )

    def __init__(self, backbone, *, images: ImageSet | Painter | None = None, **settings) -> None:
        super().__init__(backbone, **settings)
        self.images = self.synthetic = images
        self.shown_bytes = 0  # pixels of the synthetic images that the last task could draw from
        h = self.hyper
        if not self.replays:
            return
        if images is None:
            raise UserError("synthetic replay needs images; give images= an image set, or a = b = 0")
        if h.repaint != hasattr(images, "paint"):
            given = "a painter" if hasattr(images, "paint") else "an image set"
            raise UserError(f"repaint is {h.repaint}, and images is {given}; repaint needs a painter, and only repaint")
        if h.split_norm and self.norm_statistics == "frozen":
            raise UserError("split_norm splits batch statistics, and norm_statistics is 'frozen'; set one of the two")

    @property
    def replays(self) -> bool:
        return bool((self.hyper.a or self.hyper.b) and self.hyper.ratio)

    @property
    def teaches(self) -> bool:
        return super().teaches or bool(self.replays and self.hyper.b)

    def begin_task(self, task: Task) -> None:
        super().begin_task(task)
        if not (self.replays and self.known):
            return
        h = self.hyper
        if h.a:
            self.old_classes_return()
        names = task.train.class_names[: self.seen if h.new_classes else self.known]
        if h.repaint:
            self.synthetic = self.images.paint(names, h.painted_per_class, derive(self.seed_data, task.index, "paint"))
        if h.source == "unlabelled":
            self._rows = [np.arange(len(self.synthetic))]
        else:
            self._rows = rows_by_class(self.synthetic, names)
        self.shown_bytes = int(self.synthetic.sizes[np.concatenate(self._rows)].astype(np.int64).prod(1).sum() * 3)

    def batches(self, task: Task, epoch: int) -> Iterator[Batch]:
        """The learner's own batches, each with synthetic images beside it from the second task on, which are read
        ahead of the step as the real ones are."""
        real = super().batches(task, epoch)
        if not (self.replays and self.known):
            yield from real
            return
        random = np.random.default_rng(derive(self.seed_data, task.index, epoch, "synthetic"))
        augmented = self.augmenter(task, epoch, "synthetic augmentation")

        def beside(pair: tuple[Batch, tuple[np.ndarray, np.ndarray]]) -> Batch:
            batch, (rows, labels) = pair
            return replace(batch, extra=augmented(self.synthetic.read(rows, self.recipe.shortest), labels))

        count = lambda batch: companions(len(batch.labels), self.hyper.ratio)  # noqa: E731
        pairs = ((batch, draw(self._rows, count(batch), random)) for batch in real)
        ahead = loading.ahead_for(self.synthetic, self.backbone.device)
        yield from loading.in_order(beside, pairs, 1, ahead) if ahead else map(beside, pairs)

    def loss(self, batch: Batch) -> dict[str, torch.Tensor]:
        """One student pass over real and synthetic images together; the terms by name."""
        fake = batch.extra
        if fake is None or not len(fake.labels):
            return super().loss(batch)
        h = self.hyper
        own, theirs = self.trunks(batch.images, fake.images)
        terms, reading = self.terms(self.read(own), batch), self.read(theirs)
        halves = []  # name, weight, terms of one half of the loss
        if h.a:
            halves.append(("replay", h.a, self.classification(reading, fake.labels, old=True)))
        if h.b:
            halves.append(("synthetic distillation", h.b, self.distillation(reading, self.taught(fake.images))))
        for name, weight, half in halves:
            if not h.further_terms and name == "replay":
                half = {"classification": half["classification"]}
            if h.weighting == "mean":
                rows = weight * len(fake.labels) / len(batch.labels)
                terms |= {part: terms[part] / (1 + rows) for part in half if part in terms}
                weight = rows / (1 + rows)
            terms[name] = terms.get(name, 0) + weight * sum(half.values())
        return terms

    def trunks(self, real: torch.Tensor, fake: torch.Tensor) -> list[Any]:
        """What the network makes of both: in one batch, or each in a batch of its own."""
        import torch

        if not self.hyper.split_norm:
            return split(self.trunk(torch.cat([real, fake])), [len(real), len(fake)])
        own = self.trunk(real)
        with untouched(self.backbone.norms):
            return [own, self.trunk(fake)]

    def declared(self, stream: Stream) -> dict[str, int]:
        """The learner's, and from the second task on the companions of every batch; the teacher sees them if b > 0."""
        declared = super().declared(stream)
        if not self.replays:
            return declared
        extra = [
            sum(count * companions(length, self.hyper.ratio) for length, count in lengths.items())
            for lengths in self.lengths(stream)[1:]
        ]
        for kind, count in self.shown([0, *extra], bool(self.hyper.b)).items():
            declared[kind] = declared.get(kind, 0) + count
        return declared

    def state(self) -> dict[str, torch.Tensor]:
        import torch

        return super().state() | {"shown_bytes": torch.tensor(self.shown_bytes)}

    def load(self, state: dict[str, torch.Tensor]) -> None:
        super().load(state)
        self.shown_bytes = int(state["shown_bytes"])

    def stored_bytes(self) -> dict[str, int]:
        """The learner's, and the images that the last task could draw from, as pixels, or what paints them."""
        kept = super().stored_bytes()
        if not self.replays:
            return kept
        if self.hyper.repaint:
            return kept | {"generator": self.images.bytes}
        name = "external images" if self.hyper.source == "unlabelled" else "synthetic images"
        return kept | {name: self.shown_bytes}


@contextmanager
def untouched(norms: Sequence[torch.nn.Module]) -> Iterator[None]:
    """Batch normalisations use the batch's statistics and leave their running ones as they are."""
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


def companions(real: int, ratio: float) -> int:
    """Synthetic images beside a batch of `real` ones."""
    return round(ratio * real)


def rows_by_class(images: ImageSet, class_names: Sequence[str]) -> list[np.ndarray]:
    """Positions of each named class's images. UserError for a class without any."""
    place = {name: label for label, name in enumerate(images.class_names)}
    order = np.argsort(images.labels, kind="stable")
    by_class = np.split(order, np.cumsum(np.bincount(images.labels, minlength=len(place)))[:-1])
    rows = [by_class[place[name]] if name in place else order[:0] for name in class_names]
    for name, found in zip(class_names, rows, strict=True):
        if not len(found):
            raise UserError(f"class {name!r} has no synthetic images; paint some, or use the arm with a = b = 0")
    return rows


def draw(rows: list[np.ndarray], count: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """`count` positions and stream labels: the class uniform over the old ones, then the image uniform in its class."""
    labels = random.integers(len(rows), size=count)
    places = random.random(count)
    positions = [rows[label][int(place * len(rows[label]))] for label, place in zip(labels, places, strict=True)]
    return np.array(positions, np.int64), labels.astype(np.int64)


PLUGIN = SyntheticReplay  # what this file's name stands for
