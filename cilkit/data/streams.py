"""Class orders and streams: a benchmark cut into tasks that arrive one after the other.

Two protocols. "class": every task brings new classes. "domain": every task brings the same classes from a new domain
(photographs, then sketches …). Task-incremental is no third kind of stream: it is the class stream, scored with each
image's task known, from the same saved outputs.

A class has two numbers. Its place in the benchmark's own list, and its *stream label*: its place in the class order.
Everything that a stream hands out carries stream labels, so that after task t the classes seen are 0 … seen - 1.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import numpy as np

from cilkit.data.benchmarks import Benchmark
from cilkit.data.imagesets import ImageSet
from cilkit.errors import UserError, near_name

PROTOCOLS = ("class", "domain")


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


def listed_order(wanted: Sequence[int | str], names: Sequence[str]) -> np.ndarray:
    """int64 (n,): an order given as a list of names, or of places in `names`. Each must stand in it exactly once."""
    places = {name: place for place, name in enumerate(names)}
    found = []
    for item in wanted:
        known = places.get(item) if isinstance(item, str) else int(item) if 0 <= int(item) < len(names) else None
        if known is None:
            raise UserError(
                f"the order lists {item!r}{near_name(item, names, cutoff=0.6)}; "
                f"expected names, or places 0 … {len(names) - 1}, of {len(names)}."
            )
        if known in found:
            raise UserError(f"the order lists {names[known]!r} twice; list each once.")
        found.append(known)
    if len(found) < len(names):
        missing = next(name for place, name in enumerate(names) if place not in found)
        raise UserError(f"the order has {len(found)} of {len(names)} and leaves out {missing!r}; list all of them.")
    return np.array(found, np.int64)


def increments_of(n_classes: int, increment: int | Sequence[int], base: int = 0) -> tuple[int, ...]:
    """Classes a task: a list as it stands, or `base` classes first (0: none) and then `increment` at a time.

    B0 with 10 steps on 100 classes: increment 10. B50 with 10 steps: base 50, increment 5. What is left over at the end
    is the last, smaller task (196 classes by 20: nine tasks of 20, one of 16), as in the papers' code (read).
    """
    if not isinstance(increment, (int, np.integer)):
        if base:
            raise UserError(f"base {base} beside the list of increments {list(increment)}; put it into the list.")
        increments = tuple(int(count) for count in increment)
        if not increments or min(increments) < 1 or sum(increments) > n_classes:
            raise UserError(
                f"increments {list(increments)} do not fit {n_classes} classes; "
                f"take 1 or more a task, {n_classes} in all."
            )
        return increments
    if not 0 <= base <= n_classes:
        raise UserError(f"base {base} does not fit {n_classes} classes; take 0 … {n_classes}.")
    rest = n_classes - base
    if rest and not 1 <= increment <= rest:
        raise UserError(f"increment {increment} does not fit {rest} classes; take 1 … {rest} a task.")
    whole, left = divmod(rest, int(increment)) if rest else (0, 0)
    return ((int(base),) if base else ()) + (int(increment),) * whole + ((left,) if left else ())


@dataclass(frozen=True)
class Task:
    """One step of a stream."""

    index: int  # from 0
    classes: range  # stream labels that are new in this task; empty from a domain stream's second task on
    seen: int  # classes seen once it is learnt
    train: ImageSet = field(repr=False)  # its images, with stream labels
    fresh: ImageSet = field(repr=False)  # those that no task before has shown: all of them, but in a cumulative stream
    name: str = ""


@dataclass(frozen=True)
class Stream:
    """A benchmark as tasks: iterable, with a length; `stream[2]` is a task, `stream[:3]` the first three tasks.

    order_seed: of the class order or, in a domain stream, of the order of domains; None is the natural order.
    increments: classes a task; one number for all (the last task takes what is left), or a list that adds up. In a
                domain stream this follows from the domains: all classes in the first task, no new one later.
    kind:       "tasks", "cumulative" (task t trains on all images seen so far) or "joint" (one task of everything).
    split:      (fraction, seed) of a validation stream, else None.
    order:      an explicit order, by name or place, instead of a seed.
    tasks:      how many of the tasks this stream has; None: all of them.
    shots:      training images of a class from the second task on, drawn once a class; the first task is whole. 0: all.
                Few-shot class-incremental learning (remembered): 5 of a class; CIFAR-100 and miniImageNet 60 classes,
                then 8 tasks of 5; CUB 100, then 10 tasks of 10.
    """

    benchmark: Benchmark = field(repr=False)
    order_seed: int | None = SEEDS[0]
    increments: int | Sequence[int] = 2
    kind: str = "tasks"
    split: tuple[float, int] | None = None
    protocol: Literal["class", "domain"] = "class"
    order_list: tuple | None = None
    tasks: int | None = None
    shots: int = 0

    def __post_init__(self):
        if self.protocol not in PROTOCOLS:
            raise UserError(
                f"protocol {self.protocol!r} is unknown; take 'class' or 'domain' (task-incremental is a score of "
                "'class': the same outputs, with each image's task known)."
            )
        n_classes = len(self.benchmark.class_names)
        if self.domain:
            if len(self._learnt_domains) < 2:
                raise UserError(f"benchmark {self.benchmark.name!r} has no domains; take protocol 'class'.")
            increments = (n_classes,) + (0,) * (len(self._learnt_domains) - 1)
        else:
            increments = increments_of(n_classes, self.increments)
            if sum(increments) < n_classes:
                raise UserError(
                    f"increments {list(increments)} add up to {sum(increments)} of {n_classes} classes; list a task "
                    "for the rest as well, and take stream[:n] for its beginning."
                )
        object.__setattr__(self, "increments", increments)
        if self.shots < 0:
            raise UserError(f"shots is {self.shots}; expected a number of images a class, or 0 for all.")
        if self.shots and self.domain:
            raise UserError("shots are of the classes that later tasks bring, and new domains bring none; set it to 0.")
        if self.shots:
            len(self.train)  # a class with too few images is said at once

    @property
    def domain(self) -> bool:
        return self.protocol == "domain"

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """New classes of each task of this stream."""
        first = self.increments[: self.tasks]
        return (sum(first),) if self.kind == "joint" else first

    @cached_property
    def order(self) -> np.ndarray:
        """int64 (n_classes,): the benchmark's class at each stream label."""
        names = self.benchmark.class_names
        if self.domain:
            return np.arange(len(names))
        if self.order_list is not None:
            return listed_order(self.order_list, names)[: sum(self.sizes)]
        return class_order(len(names), self.order_seed)[: sum(self.sizes)]

    @cached_property
    def _learnt_domains(self) -> np.ndarray:
        """int64: the domains that have training images. CORe50 has three sessions that are for testing only."""
        domains = self.benchmark.train.domains
        return np.zeros(0, np.int64) if domains is None else np.unique(domains)

    @cached_property
    def domain_order(self) -> np.ndarray:
        """int64 (domains,): the benchmark's domain in each task of a domain stream; empty in a class stream."""
        if not self.domain:
            return np.zeros(0, np.int64)
        names = [self.benchmark.domain_names[d] for d in self._learnt_domains]
        listed = self.order_list is not None
        order = listed_order(self.order_list, names) if listed else class_order(len(names), self.order_seed)
        return self._learnt_domains[order[: self.tasks]]

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
        return np.repeat(np.arange(len(self)), self.sizes)

    def task_of(self, images: ImageSet) -> np.ndarray:
        """int64 (n,): the task to which each image of this stream belongs, by its class or by its domain.

        Test images of domains that are never learnt are dealt out to the tasks in turn: every column of the accuracy
        matrix then is an equal share of one fixed test set, and its last row together is all of it.
        """
        if not self.domain or self.kind == "joint":
            return self.task_of_class[images.labels]
        place = np.full(len(self.benchmark.domain_names), -1)
        place[self.domain_order] = np.arange(len(self.domain_order))
        tasks = place[images.domains]
        return np.where(tasks < 0, images.index % len(self), tasks)

    @property
    def task_names(self) -> list[str]:
        return [self._name(index) for index in range(len(self))]

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
        train, test = (part.keep_classes(self.class_names) for part in parts)
        train = self._few(train) if self.shots else train
        if not self.domain:
            return train, test
        never = np.setdiff1d(np.arange(len(self.benchmark.domain_names)), self._learnt_domains)
        return train.of_domains(self.domain_order), test.of_domains([*self.domain_order, *never])

    def _few(self, train: ImageSet) -> ImageSet:
        """All images of the first task's classes and `shots` of every other class: which ones depends on shots, order
        seed and class alone, not on the tasks."""
        seed = 0 if self.order_list is not None else self.order_seed or 0
        members = np.split(np.argsort(train.labels, kind="stable"), np.cumsum(train.counts)[:-1])
        for label in range(self.increments[0], self.n_classes):
            if len(members[label]) < self.shots:
                raise UserError(
                    f"class {self.class_names[label]!r} has {len(members[label])} training images, fewer than the "
                    f"{self.shots} shots; take fewer shots or leave the class out."
                )
            random = np.random.default_rng([self.shots, seed, int(self.order[label])])
            members[label] = random.permutation(members[label])[: self.shots]
        return train.select(np.sort(np.concatenate(members)))

    def __len__(self) -> int:
        return len(self.sizes)

    def __iter__(self) -> Iterator[Task]:
        return (self._task(index) for index in range(len(self)))

    def __getitem__(self, key):
        if isinstance(key, slice):
            start, stop, step = key.indices(len(self))
            if start != 0 or step != 1 or stop < 1:
                raise UserError(f"stream[{key.start}:{key.stop}] does not start at its first task; ask for stream[:n].")
            return self if self.kind == "joint" else replace(self, tasks=stop)
        index = range(len(self))[key]  # IndexError beyond the end, negative counts from it
        return self._task(index)

    def _task(self, index: int) -> Task:
        seen = sum(self.sizes[: index + 1])
        classes = range(seen - self.sizes[index], seen)
        if self.kind == "joint":
            train = fresh = self.train
        elif self.domain:
            fresh = self.train.of_domains(self.domain_order[index : index + 1])
            train = self.train.of_domains(self.domain_order[: index + 1]) if self.kind == "cumulative" else fresh
        else:
            fresh = self.train.of_classes(classes)
            train = self.train.of_classes(range(seen)) if self.kind == "cumulative" else fresh
        return Task(index, classes, seen, train, fresh, self._name(index))

    def _name(self, index: int) -> str:
        if self.domain and self.kind != "joint":
            return f"task {index + 1}: {self.benchmark.domain_names[self.domain_order[index]]}"
        end = sum(self.sizes[: index + 1])
        names = self.class_names[end - self.sizes[index] : end]
        shown = ", ".join(names) if len(names) <= 4 else f"{names[0]} … {names[-1]} ({len(names)} classes)"
        return f"task {index + 1}: {shown}"

    def test_after(self, task: Task) -> ImageSet:
        """Test images of all classes seen once `task` is learnt; in a domain stream of all its domains, learnt or not:
        the labels are shared, so what is known of a domain to come can be measured (forward transfer)."""
        return self.test if task.seen == self.n_classes else self.test.of_classes(range(task.seen))

    def joint(self) -> "Stream":
        """The same classes, order and images as ONE task: the upper reference of every stream."""
        return replace(self, kind="joint")

    def cumulative(self) -> "Stream":
        """The same tasks, but each trains on all the images seen so far."""
        return replace(self, kind="cumulative")

    def validation(self, fraction: float = 0.1, seed: int = 0) -> "Stream":
        """The same tasks on a split of the TRAINING images: what is held out is the test; no test image is touched.

        For choosing hyper-parameters with present data only: take `.validation()[:t]`, which knows nothing of what
        comes after task t. `.index` of its sets is then the place in the benchmark's training set.
        """
        return replace(self, split=(float(fraction), int(seed)))

    def identity(self) -> dict:
        """What the stream is, for an artifact's identity."""
        listed = self.order_list is not None
        return {
            "benchmark": self.benchmark.name,
            "benchmark_digest": self.benchmark.digest,
            "protocol": self.protocol,
            "order_seed": None if listed else self.order_seed,
            "order": (self.domain_order if self.domain else self.order).tolist() if listed else None,
            "increments": list(self.sizes),
            "classes": self.n_classes,
            "kind": self.kind,
            "split": None if self.split is None else list(self.split),
        } | ({"shots": self.shots} if self.shots else {})

    @classmethod
    def of_identity(cls, identity: dict, benchmark: Benchmark) -> "Stream":
        """The stream that `identity()` told of, on its benchmark. UserError where it comes out as another."""
        protocol, listed, sizes = identity["protocol"], identity["order"], list(identity["increments"])
        rest = len(benchmark.class_names) - sum(sizes)  # of a stream's first tasks: classes that they leave out
        tasks = len(sizes) if rest or protocol == "domain" and identity["kind"] != "joint" else None
        if listed is not None:
            names = benchmark.domain_names if protocol == "domain" else benchmark.class_names
            places = range(len(names)) if protocol == "class" else np.unique(benchmark.train.domains).tolist()
            listed = tuple(names[place] for place in [*listed, *(p for p in places if p not in listed)])
        made = cls(
            benchmark, identity["order_seed"], [*sizes, rest] if rest else sizes, identity["kind"],
            tuple(identity["split"]) if identity["split"] else None, protocol, listed, tasks, identity.get("shots", 0),
        )  # fmt: skip
        if made.identity() != identity:
            raise UserError(
                f"the stream of {identity['benchmark']!r} cannot be cut as it was: {identity} comes out as "
                f"{made.identity()}; is it the same benchmark?"
            )
        return made
