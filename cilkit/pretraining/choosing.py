"""Which images a pre-training sees: subsets for the sweep of class count x images a class, and real images mixed in."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from cilkit.data.imagesets import ImageSet, Source
from cilkit.errors import UserError
from cilkit.learners.base import derive
from cilkit.realms.audit import words


def subset(images: ImageSet, n_classes: int, per_class: int, seed: int) -> ImageSet:
    """`n_classes` classes (0: all), in the set's order, with `per_class` images each (0: all).

    Subsets of one seed are nested, and which images of a class are taken does not depend on the other classes.
    UserError where the set has not so many.
    """
    names = list(images.class_names)
    if n_classes > len(names):
        raise UserError(f"n_classes is {n_classes}, but there are {len(names)} classes to choose from; take fewer")
    if n_classes:
        chosen = np.random.default_rng(derive(seed, "classes of a subset")).permutation(len(names))[:n_classes]
        images = images.keep_classes([names[label] for label in sorted(chosen)])
    if not per_class:
        return images
    kept = []
    for label, name in enumerate(images.class_names):
        members = np.flatnonzero(images.labels == label)
        if len(members) < per_class:
            raise UserError(f"per_class is {per_class}, but class {name!r} has {len(members)} images; take fewer")
        kept.append(np.random.default_rng(derive(seed, "images of a subset", name)).permutation(members)[:per_class])
    return images.select(np.sort(np.concatenate(kept)))


def same_names(names: Sequence[str], others: Sequence[str]) -> dict[str, str]:
    """Name -> the first of `others` that is the same class: equal, or equal word by word as the audit compares them."""
    known: dict[tuple[str, ...], str] = {}
    for other in others:
        known.setdefault(words(other), other)
    found = {name: name if name in others else known.get(words(name)) for name in names}
    return {name: other for name, other in found.items() if other is not None}


class Joined(Source):
    """Several sources as one, position after position."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self.sources = list(sources)
        self.sizes = np.concatenate([source.sizes for source in sources])
        self.streamed = any(source.streamed for source in sources)
        self.key = hashlib.sha256(" ".join(source.key for source in sources).encode()).hexdigest()
        self._starts = np.cumsum([0, *(len(source.sizes) for source in sources)])

    def _split(self, rows: np.ndarray):
        """(source, positions in it, places in `rows`) of each source."""
        for number, source in enumerate(self.sources):
            places = np.flatnonzero((rows >= self._starts[number]) & (rows < self._starts[number + 1]))
            if len(places):
                yield source, rows[places] - self._starts[number], places

    def ids(self, rows: np.ndarray) -> np.ndarray:
        found = np.empty(len(rows), object)
        for source, own, places in self._split(rows):
            found[places] = source.ids(own)
        return found.astype(str)

    def read(self, rows: np.ndarray, shortest: int = 0) -> np.ndarray | list[np.ndarray]:
        pixels: list = [None] * len(rows)
        for source, own, places in self._split(np.asarray(rows)):
            for place, image in zip(places, source.read(own, shortest), strict=True):
                pixels[place] = image
        return np.stack(pixels) if self.uniform and pixels else pixels


def join(painted: ImageSet, real: ImageSet) -> ImageSet:
    """First all of `painted`, then all of `real`, whose classes are further classes unless one of the same name exists.

    Merged, because a head that had to tell a painted sparrow from a photographed one would teach the difference that
    pre-training is to bridge (our decision).
    """
    same = same_names(real.class_names, painted.class_names)
    names = [*painted.class_names, *(name for name in real.class_names if name not in same)]
    place = {name: label for label, name in enumerate(names)}
    labels = np.array([place[same.get(name, name)] for name in real.class_names], np.int64)[real.labels]
    source = Joined([painted.source, real.source])
    index = np.concatenate([painted.index, len(painted.source.sizes) + real.index])
    return ImageSet(source, index, np.concatenate([painted.labels, labels]), names)


def real_an_epoch(painted: int, real: int, share: float) -> int:
    """How many real images every epoch shows beside all painted ones, to make up this share; 0: each once."""
    return max(1, round(share / (1 - share) * painted)) if share else real


def turn(n: int, count: int, epoch: int, seed: int) -> np.ndarray:
    """The `count` of n images that are shown in an epoch: in shuffled rounds that go on from epoch to epoch, so that
    none comes twice before all came once."""
    start = epoch * count
    rounds = range(start // n, (start + count - 1) // n + 1)
    order = np.concatenate([np.random.default_rng([seed, number]).permutation(n) for number in rounds])
    return order[start % n : start % n + count]
