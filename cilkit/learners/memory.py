"""Exemplars: real images of old classes kept in herding order (Rebuffi et al., CVPR 2017, algorithm 4)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from cilkit.data import ImageSet


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
    """Exemplars by class, in herding order, so that shrinking is truncation.

    What is kept of an image is its place in the training set (`ImageSet.index`): its pixels are read again when they
    are replayed, and count as stored bytes all the same.
    """

    def __init__(self, per_class: int, total: int) -> None:
        self.per_class, self.total = per_class, total
        self.rows: list[np.ndarray] = []  # a class: int64 (m, 2), place in the training set and bytes of the pixels

    def __len__(self) -> int:
        return sum(len(rows) for rows in self.rows)

    def room(self, seen: int) -> int:
        """Exemplars a class once `seen` classes are known: fixed a class, or m = ceil(K / seen) of a total of K."""
        return math.ceil(self.total / seen) if self.total else self.per_class

    def shrink(self, seen: int) -> None:
        self.rows = [rows[: self.room(seen)] for rows in self.rows]

    def add(self, images: ImageSet) -> None:
        """The next class's exemplars, best first."""
        self.rows.append(np.stack([images.index, images.sizes.astype(np.int64).prod(1) * 3], axis=1))

    def of(self, images: ImageSet) -> ImageSet:
        """All exemplars, class after class, as images of the set that they were chosen from."""
        labels = np.repeat(np.arange(len(self.rows)), [len(rows) for rows in self.rows])
        places = np.concatenate([rows[:, 0] for rows in self.rows]) if self.rows else np.zeros(0)
        return images.at(places.astype(np.int64), labels.astype(np.int64))

    @property
    def bytes(self) -> int:
        return int(sum(rows[:, 1].sum() for rows in self.rows))

    def state(self) -> dict[str, np.ndarray]:
        counts = np.array([len(rows) for rows in self.rows], np.int64)
        return {"counts": counts, "rows": np.concatenate([np.zeros((0, 2), np.int64), *self.rows])}

    def load(self, state: dict[str, np.ndarray]) -> None:
        self.rows = np.split(state["rows"], np.cumsum(state["counts"])[:-1]) if len(state["counts"]) else []
