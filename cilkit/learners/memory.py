"""Exemplars, real images kept from task to task: `Memory` in herding order (Rebuffi et al., CVPR 2017, algorithm 4),
`Balanced` class-balanced and greedy (Prabhu et al., ECCV 2020), `Reservoir` uniform over a stream (Vitter, 1985).

What is kept of an image is its place in the training set (`ImageSet.index`): its pixels are read again when they are
replayed, and count as stored bytes all the same.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from cilkit.errors import UserError

if TYPE_CHECKING:
    from cilkit.data import ImageSet


def herd(features: np.ndarray, count: int) -> np.ndarray:
    """Positions of the first `count` exemplars, best first. features: (n, dim), of unit length.

    After the official code (read): w starts at the class mean mu; pick argmax w . phi; w += mu - phi_picked. A sample
    picked again is not stored twice but moves w all the same; at most 1,000 tries. Should they not suffice, samples not
    yet picked follow in their own order.
    """
    features = features.astype(np.float64)
    near = features @ features.mean(0)  # (n,) mu . phi
    scores, moves = near.copy(), {}  # w . phi; by picked sample, in order, how its pick moves them
    for _ in range(1000):
        if len(moves) == min(count, len(features)):
            break
        best = int(scores.argmax())
        if best not in moves:
            moves[best] = near - features @ features[best]
        scores += moves[best]
    rest = [i for i in range(len(features)) if i not in moves]
    return np.array([*moves, *rest][:count], np.int64)


def rows_of(images: ImageSet) -> np.ndarray:
    """int64 (n, 2): each image's place in the training set and the bytes of its pixels."""
    return np.stack([images.index, images.sizes.astype(np.int64).prod(1) * 3], axis=1)


def bytes_each(images: ImageSet) -> int:
    """Bytes of one exemplar: where sizes differ, of the largest image of the whole set that these were chosen from, so
    that it is the same in every task."""
    return int(images.source.sizes.astype(np.int64).prod(1).max(initial=0)) * 3


class Memory:
    """Exemplars by class, in herding order, so that shrinking is truncation.

    budget: bytes for all of them, where that is the measure; `each` is what one exemplar takes.
    """

    def __init__(self, per_class: int, total: int, budget: int = 0) -> None:
        self.per_class, self.total, self.budget, self.each = per_class, total, budget, 0
        self.rows: list[np.ndarray] = []  # a class: int64 (m, 2), as `rows_of` gives them

    def __len__(self) -> int:
        return sum(len(rows) for rows in self.rows)

    def room(self, seen: int) -> int:
        """Exemplars a class once `seen` classes are known: fixed a class, m = ceil(K / seen) of a total of K, or as
        many as a class's share of the budget holds. UserError where that is less than one."""
        if self.budget:
            room = self.budget // (self.each * seen)
            if not room:
                raise UserError(
                    f"budget {self.budget} holds no exemplar of {self.each} bytes for each of {seen} classes; give at "
                    f"least {self.each * seen}"
                )
            return room
        return math.ceil(self.total / seen) if self.total else self.per_class

    def shrink(self, seen: int) -> None:
        self.rows = [rows[: self.room(seen)] for rows in self.rows]

    def add(self, images: ImageSet) -> None:
        """The next class's exemplars, best first."""
        self.rows.append(rows_of(images))

    def of(self, images: ImageSet) -> ImageSet:
        """All exemplars, class after class, as images of the set that they were chosen from."""
        labels = np.repeat(np.arange(len(self.rows)), [len(rows) for rows in self.rows])
        places = np.concatenate([rows[:, 0] for rows in self.rows]) if self.rows else np.zeros(0)
        return images.at(places.astype(np.int64), labels.astype(np.int64))

    def beside(self, new: ImageSet) -> ImageSet:
        """A task's images, then all exemplars."""
        kept = self.of(new)
        return new.at(np.append(new.index, kept.index), np.append(new.labels, kept.labels))

    @property
    def bytes(self) -> int:
        return int(sum(rows[:, 1].sum() for rows in self.rows))

    def state(self) -> dict[str, np.ndarray]:
        counts = np.array([len(rows) for rows in self.rows], np.int64)
        return {"counts": counts, "rows": np.concatenate([np.zeros((0, 2), np.int64), *self.rows])}

    def load(self, state: dict[str, np.ndarray]) -> None:
        self.rows = np.split(state["rows"], np.cumsum(state["counts"])[:-1]) if len(state["counts"]) else []


class Balanced(Memory):
    """At most `total` exemplars, balanced over the classes seen, chosen greedily as images arrive (GDumb, algorithm 1;
    remembered). An image is taken while its class holds fewer than total / (classes seen so far); where the store is
    full, a random image of the largest class makes room for it."""

    def __init__(self, total: int) -> None:
        super().__init__(0, total)

    def offer(self, images: ImageSet, random: np.random.Generator) -> None:
        """The images of one task, in random order; classes are numbered in the order of the tasks."""
        arriving, order = rows_of(images), random.permutation(len(images))
        kept = [list(rows) for rows in self.rows]
        kept += [[] for _ in range(int(images.labels.max(initial=-1)) + 1 - len(kept))]
        met = {label for label, rows in enumerate(kept) if rows}
        stored = sum(len(rows) for rows in kept)
        for position in order:
            label = images.labels[position]
            met.add(label)
            if len(kept[label]) >= self.total / len(met):
                continue
            if stored == self.total:
                largest = max(kept, key=len)
                largest.pop(random.integers(len(largest)))
                stored -= 1
            kept[label].append(arriving[position])
            stored += 1
        self.rows = [np.array(rows, np.int64).reshape(-1, 2) for rows in kept]


class Reservoir:
    """A uniform sample of a stream whose length is not known (algorithm R): after n items each of them is among the
    `capacity` kept with probability capacity / n.

    rows:  int64 (kept, columns), what is known of each item; its slot is its place here, and never changes.
    count: items offered so far.
    """

    def __init__(self, capacity: int, columns: int) -> None:
        self.capacity, self.count = capacity, 0
        self.rows = np.zeros((0, columns), np.int64)

    def __len__(self) -> int:
        return len(self.rows)

    def offer(self, rows: np.ndarray, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Offer items (n, columns), one after the other. Returns which of them stay, and the slots that they take; how
        the stream is cut into calls changes nothing."""
        order = self.count + np.arange(len(rows))
        drawn = (random.random(len(rows)) * (order + 1)).astype(np.int64)  # uniform over 0 … items before it
        slots = np.where(order < self.capacity, order, drawn)
        self.count += len(rows)
        taken = {int(slot): item for item, slot in enumerate(slots) if slot < self.capacity}  # the last one stays
        into, kept = np.array(list(taken), np.int64), np.array(list(taken.values()), np.int64)
        grown = np.zeros((min(self.count, self.capacity) - len(self), self.rows.shape[1]), np.int64)
        self.rows = np.concatenate([self.rows, grown])
        self.rows[into] = rows[kept]
        return kept, into

    def draw(self, count: int, random: np.random.Generator) -> np.ndarray:
        """Slots of `count` different items, uniformly; all of them where there are fewer."""
        return random.choice(len(self), min(count, len(self)), replace=False)

    def state(self) -> dict[str, np.ndarray]:
        return {"rows": self.rows, "count": np.array(self.count, np.int64)}

    def load(self, state: dict[str, np.ndarray]) -> None:
        self.rows, self.count = state["rows"].copy(), int(state["count"])
