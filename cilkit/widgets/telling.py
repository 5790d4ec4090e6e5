"""What a run answered to each test image after each task, from its saved outputs: what the explorer shows, as data."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from cilkit.errors import UserError, near_name

if TYPE_CHECKING:
    from cilkit.runs import Run

NEXT = 3  # likeliest classes an image
KEPT = 64  # stages whose answers are held at a time


@dataclass(frozen=True)
class Told:
    """A head's answers after one task, a row a test image."""

    ids: np.ndarray  # int64 (n,): place in the benchmark's test set
    labels: np.ndarray  # int64 (n,): stream labels
    top: np.ndarray  # int64 (n, k): the likeliest classes, the likeliest first
    shares: np.ndarray  # float64 (n, k): their softmax probabilities, 0 … 1
    true_share: np.ndarray  # float64 (n,): the true class's

    @property
    def right(self) -> np.ndarray:
        """bool (n,)."""
        return self.top[:, 0] == self.labels


class Teller:
    """A run's answers by head and stage, read when asked for."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self._told: OrderedDict[tuple[str, int], Told] = OrderedDict()
        stream = run.settings.get("stream", {})
        self.images = (stream.get("benchmark_digest", str(run.folder)), stream.get("split") is None)  # which they are

    def told(self, head: str, t: int) -> Told:
        """The answers after task t, from 0; those of the last stages asked for are held."""
        key = head, range(self.run.n_tasks)[t]
        if key not in self._told:
            scores = self.run.scores(t, head)
            shares = np.exp(scores.top_logits[:, :NEXT] - scores.log_sum_exp[:, None])
            self._told[key] = Told(
                self.run.ids(t), self.run.labels(t), scores.top[:, :NEXT], shares, scores.true_probability
            )
            if len(self._told) > KEPT:
                self._told.popitem(last=False)
        self._told.move_to_end(key)
        return self._told[key]

    def label_of(self, name: str) -> int:
        """The stream label of a class. UserError for one that the run does not know."""
        names = self.run.class_names
        if name not in names:
            raise UserError(f"class {name!r} is not in this run's stream{near_name(name, names)}")
        return names.index(name)

    def of_class(self, head: str, t: int, name: str, wrong: bool = False) -> Told:
        """The answers to the test images of a class; `wrong`: only those that were not right.

        Of a domain-incremental run, images of the domains learnt by then, which its accuracy is of.
        """
        told = self.told(head, t)
        chosen = (told.labels == self.label_of(name)) & (self.run.tasks_of(t) <= range(self.run.n_tasks)[t])
        chosen &= ~told.right if wrong else True
        return Told(*(getattr(told, field)[chosen] for field in Told.__dataclass_fields__))

    def confusions(self, head: str, t: int, name: str) -> list[tuple[str, int]]:
        """Which classes took the images of a class after task t, the most first; the class itself is left out."""
        told = self.of_class(head, t, name, wrong=True)
        counts = np.bincount(told.top[:, 0], minlength=len(self.run.class_names))
        order = np.argsort(-counts, kind="stable")
        return [(self.run.class_names[c], int(counts[c])) for c in order if counts[c]]

    def answer(self, told: Told, row: int) -> dict[str, Any]:
        """One answer for a page: names, shares, and whether it is right."""
        names = self.run.class_names
        top = [[names[c], float(s)] for c, s in zip(told.top[row], told.shares[row], strict=True)]
        return {"top": top, "right": bool(told.right[row]), "true": float(told.true_share[row])}

    def story(self, head: str, image: int) -> list[dict[str, Any] | None]:
        """What was answered to one test image after each task; None where it was not tested yet."""
        lines = []
        for t in range(self.run.n_tasks):
            told = self.told(head, t)
            rows = np.flatnonzero(told.ids == image)
            lines.append(self.answer(told, int(rows[0])) if len(rows) else None)
        return lines

    def accuracy(self, head: str) -> np.ndarray:
        """(classes, tasks) in percent, NaN before a class was learnt."""
        return self.run.class_accuracy(head).T

    def most_forgotten(self, head: str) -> int:
        """The label of the class that lost most of its best accuracy by the end; the first where none lost any."""
        accuracy = self.accuracy(head)
        best = np.where(np.isnan(accuracy), -1.0, accuracy).max(1)
        return int(np.argmax(best - np.nan_to_num(accuracy[:, -1])))


def story_table(run: Run, image: int, head: str = ""):
    """One test image through time, a DataFrame with a row a task learnt after which it was tested.

    image: its place in the benchmark's test set, as `run.ids` has it. head: the run's default one without a name.
    Columns: after task, answer, probability, true class, probability of the true class, right.
    UserError for an image that was never tested.
    """
    import pandas as pd

    teller, head = Teller(run), head or run.default_head
    run.check_head(head)
    lines = teller.story(head, int(image))
    if not any(lines):
        raise UserError(f"test image {image} was not tested in this run; take one of run.ids(-1)")
    told = teller.told(head, -1)
    true = run.class_names[int(told.labels[told.ids == int(image)][0])]
    rows = [
        {
            "after task": t + 1,
            "answer": line["top"][0][0],
            "probability": line["top"][0][1],
            "true class": true,
            "probability of the true class": line["true"],
            "right": line["right"],
        }
        for t, line in enumerate(lines)
        if line
    ]
    return pd.DataFrame(rows)


def changed_minds(run: Run, head: str = "", count: int = 1) -> list[int]:
    """Test images that were answered rightly after some task and wrongly at the end, the surest of being right first.

    Places in the benchmark's test set; fewer than `count` where there are no more. head: the run's default one without
    a name.
    """
    teller, head = Teller(run), head or run.default_head
    surest: dict[int, float] = {}
    for t in range(run.n_tasks):
        told = teller.told(head, t)
        for image, share in zip(told.ids[told.right].tolist(), told.true_share[told.right].tolist(), strict=True):
            surest[image] = max(share, surest.get(image, 0.0))
    last = teller.told(head, -1)
    lost = [image for image in last.ids[~last.right].tolist() if image in surest]
    return sorted(lost, key=lambda image: (-surest[image], image))[:count]
