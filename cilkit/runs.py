"""A finished run, read from disk without the model: settings, accuracy matrices, outputs after every task.

run.json                          learner, hyper, stream, class_names, increments, heads, default_head, forwards, …
accuracy_<head>.csv               (tasks, tasks) in percent, empty above the diagonal
after_00/index.npy, labels.npy    the test images seen so far: place in the benchmark's test set, stream labels
after_00/logits_<head>.npy        float32 (n, seen)
after_00/features.npy             float32 (n, dim), where the run kept them
backbone/                         the final backbone, timm's local-dir layout
"""

import json
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cilkit import metrics
from cilkit.errors import UserError
from cilkit.outputs import Outputs as Outputs

if TYPE_CHECKING:
    import pandas as pd


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
    def class_names(self) -> list[str]:
        """Names by stream label, that is in the order of learning."""
        return self.settings["class_names"]

    @property
    def increments(self) -> list[int]:
        return self.settings["increments"]

    @property
    def n_tasks(self) -> int:
        return len(self.increments)

    @property
    def task_of_class(self) -> np.ndarray:
        """int64 (n_classes,)."""
        return np.repeat(np.arange(self.n_tasks), self.increments)

    @property
    def accuracy(self) -> "pd.DataFrame":
        """The accuracy matrix of the default head, (tasks, tasks) in percent, NaN above the diagonal."""
        return self.accuracy_of(self.default_head)

    def accuracy_of(self, head: str) -> "pd.DataFrame":
        """The accuracy matrix of one head: rows "after task t", columns "task i", counted from 1."""
        import pandas as pd

        self._check_head(head)
        values = np.array([metrics.accuracy_row(*self._judged(t, head)) for t in range(self.n_tasks)])
        tasks = [f"task {t + 1}" for t in range(self.n_tasks)]
        return pd.DataFrame(values, index=[f"after {task}" for task in tasks], columns=tasks)

    @cached_property
    def counts(self) -> np.ndarray:
        """Test images a task, int64 (tasks,)."""
        return np.bincount(self.task_of_class[self._array(self.n_tasks - 1, "labels")], minlength=self.n_tasks)

    def outputs(self, t: int) -> Outputs:
        """Outputs after task t, counted from 0 (negative counts from the end)."""
        t = range(self.n_tasks)[t]
        heads = {head: self._array(t, f"logits_{head}") for head in self.heads}
        kept = (self._after(t) / "features.npy").exists()
        features = self._array(t, "features") if kept else None
        return Outputs(self._array(t, "index"), self._array(t, "labels"), heads, features)

    def all_outputs(self) -> Iterator[Outputs]:
        """Outputs after each task, in order."""
        return (self.outputs(t) for t in range(self.n_tasks))

    def summary(self, head: str | None = None) -> dict[str, float]:
        """The figures that every table shows, in percent, of one head (the default one without a name)."""
        matrix = self.accuracy_of(head or self.default_head).to_numpy()
        return {
            "last accuracy": metrics.last_accuracy(matrix, self.counts),
            "average incremental accuracy": metrics.average_incremental_accuracy(matrix, self.counts),
            "forgetting (max before last)": metrics.forgetting_max_before_last(matrix),
            "backward transfer (final)": metrics.backward_transfer_final(matrix),
            "learning accuracy": metrics.learning_accuracy(matrix),
        }

    def _judged(self, t: int, head: str):
        predictions = self._array(t, f"logits_{head}").argmax(1)
        return predictions, self._array(t, "labels"), self.task_of_class, self.n_tasks

    def _check_head(self, head: str) -> None:
        if head not in self.heads:
            raise UserError(f"head {head!r} is unknown; this run has {', '.join(self.heads)}.")

    def _after(self, t: int) -> Path:
        return self.folder / f"after_{t:02d}"

    def _array(self, t: int, name: str) -> np.ndarray:
        path = self._after(t) / f"{name}.npy"
        try:
            return np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f"{path} cannot be read ({error}); delete the run's folder and run it again.") from error
