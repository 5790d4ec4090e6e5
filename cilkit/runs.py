"""A finished run, read from disk without the model: settings, accuracy matrices, outputs after every task.

run.json                          learner, hyper, stream, class_names, increments, heads, default_head, forwards, …
accuracy_<head>.csv               (tasks, tasks) in percent, empty above the diagonal
after_00/ …                       outputs after each task, whole or compact (`cilkit.outputs` has their layout)
summary.json                      every figure of every head; class_accuracy_<head>.npy, (tasks, classes)
backbone/                         the final backbone, timm's local-dir layout, where the run kept it
measured.json                     seconds and peak memory by phase, host, dates
"""

import json
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cilkit import metrics, outputs
from cilkit.errors import UserError
from cilkit.outputs import TOP
from cilkit.outputs import Outputs as Outputs
from cilkit.outputs import Scores as Scores

if TYPE_CHECKING:
    import pandas as pd

SUMMARY = (  # what every table shows; `cilkit.outcomes` has all figures
    *("last accuracy", "average incremental accuracy", "forgetting (max before last)"),
    *("backward transfer (final)", "learning accuracy"),
)


class Run:
    """A run's folder or artifact. Everything is read when asked for; nothing here needs torch."""

    def __init__(self, folder_or_artifact):
        self.artifact = folder_or_artifact if hasattr(folder_or_artifact, "path") else None
        self.folder = Path(getattr(folder_or_artifact, "path", folder_or_artifact))
        try:
            self.settings: dict = json.loads((self.folder / "run.json").read_text())
        except (OSError, ValueError) as error:
            raise UserError(f"{self.folder} is not a finished run: its run.json cannot be read ({error}).") from error

    def __repr__(self) -> str:
        return f"Run({self.learner}, {self.n_tasks} tasks, heads {', '.join(self.heads)})"

    # ------------------------------------------------------------ settings

    @property
    def learner(self) -> str:
        return self.settings["learner"]

    @property
    def heads(self) -> list[str]:
        return list(self.settings["heads"])

    @property
    def default_head(self) -> str:
        return self.settings["default_head"]

    @property
    def protocol(self) -> str:
        """ "class": each task brings new classes; "domain": each brings the same classes from another domain."""
        return self.settings.get("protocol", "class")

    @property
    def backbone_tag(self) -> str:
        """Which weights the backbone started from, e.g. `vit_base_patch16_224.augreg_in21k`; "" where not recorded."""
        return self.settings.get("backbone", {}).get("tag", "")

    @property
    def class_names(self) -> list[str]:
        """Names by stream label, that is in the order of learning."""
        return self.settings["class_names"]

    @property
    def increments(self) -> list[int]:
        """New classes of each task; in a domain-incremental run all in the first."""
        return self.settings["increments"]

    @property
    def n_tasks(self) -> int:
        return len(self.increments)

    @property
    def task_names(self) -> list[str]:
        return self.settings.get("task_names") or [f"task {t + 1}" for t in range(self.n_tasks)]

    @property
    def task_of_class(self) -> np.ndarray:
        """int64 (n_classes,)."""
        return np.repeat(np.arange(self.n_tasks), self.increments)

    @cached_property
    def measured(self) -> dict:
        """Seconds, host, dates and, under "phases", seconds and peak memory by phase; {} where none were written."""
        path = self.folder / "measured.json"
        return json.loads(path.read_text()) if path.exists() else {}

    # ------------------------------------------------------------ outputs

    def outputs(self, t: int) -> Outputs:
        """Outputs after task t, counted from 0 (negative counts from the end)."""
        t = range(self.n_tasks)[t]
        found = outputs.read(self._after(t), self.heads)
        if len(found.heads) < len(self.heads):
            raise UserError(
                f"{self.folder} kept compact scores instead of logits after task {t + 1}; take scores({t}, head), "
                "or run again with keep=['logits']."
            )
        return found

    def all_outputs(self) -> Iterator[Outputs]:
        """Outputs after each task, in order."""
        return (self.outputs(t) for t in range(self.n_tasks))

    def scores(self, t: int, head: str, top: int = TOP) -> Scores:
        """What the metrics need of a head after task t, from its logits or from its compact file.

        top: classes an image whose logits are found where whole logits were kept, see `Scores.of`.
        """
        self.check_head(head)
        if (self._after(t) / f"scores_{head}.npy").exists():
            return Scores.load(self._after(t), head)
        return Scores.of(self._array(t, f"logits_{head}"), self.labels(t), self.task_of_class, top)

    def logits(self, t: int, head: str) -> np.ndarray:
        """float32 (n, seen): a head's logits after task t, also from compact scores where these hold all of them."""
        self.check_head(head)
        if not (self._after(t) / f"scores_{head}.npy").exists():
            return self._array(t, f"logits_{head}")
        scores = Scores.load(self._after(t), head)
        seen = sum(self.increments[: range(self.n_tasks)[t] + 1])
        if scores.top.shape[1] < seen:
            raise UserError(
                f"{self.folder} kept {scores.top.shape[1]} of {seen} logits an image after task "
                f"{range(self.n_tasks)[t] + 1}; run again with keep=['logits']."
            )
        found = np.empty(scores.top.shape, scores.top_logits.dtype)
        np.put_along_axis(found, scores.top, scores.top_logits, 1)
        return found

    def ids(self, t: int) -> np.ndarray:
        """int64 (n,): which test images were seen after task t, by their place in the benchmark's test set."""
        return self._array(t, "index")

    def labels(self, t: int) -> np.ndarray:
        """int64 (n,): their stream labels."""
        return self._array(t, "labels")

    def tasks_of(self, t: int) -> np.ndarray:
        """int64 (n,): the task each of them belongs to, by its class or, domain-incremental, by its domain."""
        kept = (self._after(t) / "tasks.npy").exists()
        return self._array(t, "tasks") if kept else self.task_of_class[self.labels(t)]

    def features(self, t: int) -> np.ndarray:
        """float32 (n, dim)."""
        if not (self._after(t) / "features.npy").exists():
            raise UserError("this run kept no features; run it again with keep=['features'] to see their drift.")
        return self._array(t, "features")

    def texts(self, t: int) -> list[str]:
        """What the learner wrote of each image after task t, by `ids`; UserError of one that writes nothing."""
        found = outputs.read_texts(self._after(t))
        if found is None:
            raise UserError(f"learner {self.learner!r} writes no answers; take a run of one that does, such as gmm.")
        return found

    def predictions(self, t: int, head: str, task_known: bool = False) -> np.ndarray:
        """int64 (n,): the stream label of the largest logit, of the image's own task's classes with `task_known`."""
        self.check_head(head)
        if task_known and self.protocol == "domain":
            raise UserError("all domains of this run share their classes, so knowing the task adds nothing to score.")
        if (self._after(t) / f"scores_{head}.npy").exists():
            scores = self.scores(t, head)
            return scores.task_known(self.tasks_of(t)) if task_known else scores.predictions
        logits = self._array(t, f"logits_{head}")
        if task_known:
            return metrics.within_task_predictions(logits, self.labels(t), self.task_of_class)
        return logits.argmax(1)

    # ------------------------------------------------------------ accuracy

    @property
    def accuracy(self) -> "pd.DataFrame":
        """The accuracy matrix of the default head, (tasks, tasks) in percent, NaN above the diagonal."""
        return self.accuracy_of(self.default_head)

    def accuracy_of(self, head: str, future: bool = False, task_known: bool = False) -> "pd.DataFrame":
        """The accuracy matrix of one head: rows "after task t", columns "task i", counted from 1.

        future:     also above the diagonal, where tasks were tested before they were learnt (domain-incremental).
        task_known: the task-incremental score of the same outputs.
        """
        import pandas as pd

        values = np.array([self._accuracy_row(t, head, task_known) for t in range(self.n_tasks)])
        if not future:
            values[np.triu_indices(self.n_tasks, 1)] = np.nan
        tasks = [f"task {t + 1}" for t in range(self.n_tasks)]
        return pd.DataFrame(values, index=[f"after {task}" for task in tasks], columns=tasks)

    def class_accuracy(self, head: str) -> np.ndarray:
        """(tasks, classes) in percent after each task, on images of the tasks learnt; NaN where a class has none."""
        if (path := self.folder / f"class_accuracy_{head}.npy").exists():
            return outputs.load_npy(path)
        rows = []
        for t in range(self.n_tasks):
            learnt = self.tasks_of(t) <= t
            predicted, labels = self.predictions(t, head)[learnt], self.labels(t)[learnt]
            rows.append(metrics.class_accuracy(predicted, labels, len(self.class_names)))
        return np.array(rows)

    @cached_property
    def counts(self) -> np.ndarray:
        """Test images a task, int64 (tasks,)."""
        return np.bincount(self.tasks_of(-1), minlength=self.n_tasks)

    def summary(self, head: str | None = None) -> dict[str, float]:
        """The figures that every table shows, in percent, of one head (the default one without a name)."""
        figures = metrics.figures(self.accuracy_of(head or self.default_head), self.counts)
        return {name: figures[name] for name in SUMMARY}

    def _accuracy_row(self, t: int, head: str, task_known: bool) -> np.ndarray:
        predicted = self.predictions(t, head, task_known)
        return metrics.accuracy_by_task(predicted, self.labels(t), self.tasks_of(t), self.n_tasks)

    def check_head(self, head: str) -> None:
        if head not in self.heads:
            raise UserError(f"head {head!r} is unknown; this run has {', '.join(self.heads)}.")

    def _after(self, t: int) -> Path:
        return self.folder / f"after_{range(self.n_tasks)[t]:02d}"

    def _array(self, t: int, name: str) -> np.ndarray:
        return outputs.load_npy(self._after(t) / f"{name}.npy")
