"""Class orders and streams: a benchmark cut into tasks whose classes arrive one group after the other.

A class has two numbers. Its place in the benchmark's own list, and its *stream label*: its place in the class order.
Everything that a stream hands out carries stream labels, so that after task t the classes seen are 0 … seen - 1.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from cilkit.data.benchmarks import Benchmark
from cilkit.data.shards import ImageSet
from cilkit.errors import UserError


def order_seed(k: int) -> int:
    """The k-th class-order seed, from 0: 1993, 1996, 1997 as in SLCA and RanPAC (read), then 1998, 1999 … (ours)."""
    if k < 0:
        raise UserError(f"class order {k} does not exist; count from 0.")
    return (1993, 1996, 1997)[k] if k < 3 else 1995 + k


SEEDS = tuple(order_seed(k) for k in range(10))


def class_order(n_classes: int, seed: int | None) -> np.ndarray:
    """int64 (n_classes,): the benchmark's classes in the order in which they are learnt; None is the natural order.

    numpy's legacy generator, as the papers' code: `np.random.seed(seed); np.random.permutation(n)`. Seed 1993 gives
    68, 56, 78, 8, 23 … on 100 classes.
    """
    return np.arange(n_classes) if seed is None else np.random.RandomState(seed).permutation(n_classes)


@dataclass(frozen=True)
class Task:
    """One step of a stream."""

    index: int  # from 0
    classes: range  # stream labels that are new in this task
    seen: int  # classes seen once it is learnt
    train: ImageSet = field(repr=False)  # its images, with stream labels
    name: str = ""


@dataclass(frozen=True)
class Stream:
    """A benchmark as tasks: iterable, with a length; `stream[2]` is a task, `stream[:3]` the first three tasks.

    increments: classes a task; one number for all (the last task takes what is left), or a list.
    kind:       "tasks", "cumulative" (task t trains on all classes seen so far) or "joint" (one task of all classes).
    split:      (fraction, seed) of a validation stream, else None.
    """

    benchmark: Benchmark = field(repr=False)
    order_seed: int | None = SEEDS[0]
    increments: int | Sequence[int] = 2
    kind: str = "tasks"
    split: tuple[float, int] | None = None

    def __post_init__(self):
        object.__setattr__(self, "increments", _increments(self.increments, len(self.benchmark.class_names)))

    @cached_property
    def order(self) -> np.ndarray:
        """int64 (n_classes,): the benchmark's class at each stream label."""
        return class_order(len(self.benchmark.class_names), self.order_seed)[: sum(self.increments)]

    @property
    def n_classes(self) -> int:
        return len(self.order)

    @property
    def class_names(self) -> list[str]:
        """Names by stream label, that is in the order of learning."""
        return [self.benchmark.class_names[c] for c in self.order]

    @property
    def task_of_class(self) -> np.ndarray:
        """int64 (n_classes,): the task in which each stream label is new."""
        return np.repeat(np.arange(len(self)), self.increments)

    @cached_property
    def train(self) -> ImageSet:
        """All training images of the stream's classes, with stream labels."""
        return self._parts[0]

    @cached_property
    def test(self) -> ImageSet:
        """All test images of the stream's classes, with stream labels; `.index` is the place in the benchmark's set."""
        return self._parts[1]

    @cached_property
    def _parts(self) -> tuple[ImageSet, ImageSet]:
        if self.split is None:
            parts = self.benchmark.train, self.benchmark.test
        else:
            parts = self.benchmark.train.split_by_seed(*self.split)
        return tuple(part.keep_classes(self.class_names) for part in parts)

    def __len__(self) -> int:
        return len(self.increments)

    def __iter__(self) -> Iterator[Task]:
        return (self._task(index) for index in range(len(self)))

    def __getitem__(self, key):
        if isinstance(key, slice):
            start, stop, step = key.indices(len(self))
            if start != 0 or step != 1 or stop < 1:
                raise UserError(f"stream[{key.start}:{key.stop}] does not start at its first task; ask for stream[:n].")
            return replace(self, increments=self.increments[:stop])
        index = range(len(self))[key]  # IndexError beyond the end, negative counts from it
        return self._task(index)

    def _task(self, index: int) -> Task:
        seen = sum(self.increments[: index + 1])
        classes = range(seen - self.increments[index], seen)
        train = self.train.of_classes(range(seen) if self.kind == "cumulative" else classes)
        names = self.class_names[classes.start : classes.stop]
        shown = ", ".join(names) if len(names) <= 4 else f"{names[0]} … {names[-1]} ({len(names)} classes)"
        return Task(index, classes, seen, train, f"task {index + 1}: {shown}")

    def test_after(self, task: Task) -> ImageSet:
        """Test images of all classes seen once `task` is learnt."""
        return self.test.of_classes(range(task.seen))

    def joint(self) -> "Stream":
        """The same classes, order and images as ONE task: the upper reference of every stream."""
        return replace(self, increments=[self.n_classes], kind="joint")

    def cumulative(self) -> "Stream":
        """The same tasks, but each trains on all the classes seen so far."""
        return replace(self, kind="cumulative")

    def validation(self, fraction: float = 0.1, seed: int = 0) -> "Stream":
        """The same tasks on a split of the TRAINING images: what is held out is the test; no test image is touched.

        `.index` of its sets is then the place in the benchmark's training set.
        """
        return replace(self, split=(float(fraction), int(seed)))

    def identity(self) -> dict:
        """What the stream is, for an artifact's identity."""
        return {
            "benchmark": self.benchmark.name,
            "benchmark_digest": self.benchmark.digest,
            "order_seed": self.order_seed,
            "increments": list(self.increments),
            "kind": self.kind,
            "split": None if self.split is None else list(self.split),
        }


def _increments(increments: int | Sequence[int], n_classes: int) -> tuple[int, ...]:
    if isinstance(increments, (int, np.integer)):
        if not 1 <= increments <= n_classes:
            raise UserError(f"increment {increments} does not fit {n_classes} classes; take 1 … {n_classes} a task.")
        whole, left = divmod(n_classes, int(increments))
        return (int(increments),) * whole + ((left,) if left else ())
    increments = tuple(int(count) for count in increments)
    if not increments or min(increments) < 1 or sum(increments) > n_classes:
        raise UserError(
            f"increments {list(increments)} do not fit {n_classes} classes; take 1 or more a task, {n_classes} in all."
        )
    return increments
