"""Exemplars: real images of old classes kept in herding order (Rebuffi et al., CVPR 2017, algorithm 4)."""

from __future__ import annotations

import math

import numpy as np


def herd(features: np.ndarray, count: int) -> np.ndarray:
    """Positions of the first `count` exemplars, best first. features: (n, dim), of unit length.

    After the official code (read): w starts at the class mean mu; pick argmax w . phi; w += mu - phi_picked. A sample
    picked again is not stored twice but moves w all the same; at most 1,000 tries. Should they not suffice, samples not
    yet picked follow in their own order.
    """
    features = features.astype(np.float64)
    mean = features.mean(0)
    count = min(count, len(features))
    picked: list[int] = []
    weight = mean.copy()
    for _ in range(1000):
        if len(picked) == count:
            break
        best = int(np.argmax(features @ weight))
        if best not in picked:
            picked.append(best)
        weight += mean - features[best]
    rest = [i for i in range(len(features)) if i not in picked]
    return np.array(picked + rest[: count - len(picked)], np.int64)


class Memory:
    """Exemplars by class: images uint8 (m, h, w, 3) in herding order, so that shrinking is truncation."""

    def __init__(self, per_class: int, total: int) -> None:
        self.per_class, self.total = per_class, total
        self.images: list[np.ndarray] = []

    def __len__(self) -> int:
        return sum(len(images) for images in self.images)

    def room(self, seen: int) -> int:
        """Exemplars a class once `seen` classes are known: fixed a class, or m = ceil(K / seen) of a total of K."""
        return math.ceil(self.total / seen) if self.total else self.per_class

    def shrink(self, seen: int) -> None:
        self.images = [images[: self.room(seen)] for images in self.images]

    def add(self, images: np.ndarray) -> None:
        """The next class's exemplars, best first."""
        self.images.append(images)

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """All exemplars (n, h, w, 3) and their labels (n,), class after class."""
        labels = np.repeat(np.arange(len(self.images)), [len(images) for images in self.images])
        return np.concatenate(self.images), labels.astype(np.int64)

    @property
    def bytes(self) -> int:
        return sum(images.nbytes for images in self.images)
