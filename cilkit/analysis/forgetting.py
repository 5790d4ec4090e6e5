"""How much was learnt and how much was lost: of each task, of each class, over time.

Plasticity is the accuracy on what is new when it is new; intransigence is what joint training has more; forgetting is
what was there once and is gone. Together they say why an accuracy is low in the end.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from cilkit import metrics
from cilkit.analysis.said import accuracy, side_by_side, stages
from cilkit.errors import UserError
from cilkit.runs import Run

if TYPE_CHECKING:
    import pandas as pd


def forgetting_by_task(run: Run, head: str | None = None) -> "pd.DataFrame":
    """A row an old task: task, learned (A[i, i]), best before the last task, last, and the two kinds of forgetting."""
    import pandas as pd

    matrix = accuracy(run, head)
    last, lost = matrix[-1, :-1], metrics.forgetting_max_before_last_by_task(matrix)
    columns = {
        "task": np.arange(1, run.n_tasks),
        "learned": np.diag(matrix)[:-1],
        "best": last + lost,
        "last": last,
        "forgetting_first": metrics.forgetting_first_by_task(matrix),
        "forgetting_max_before_last": lost,
    }
    return pd.DataFrame(columns)


def accuracy_by_class(run: Run, head: str | None = None) -> "pd.DataFrame":
    """(tasks, classes), in the order of learning: accuracy on each class after each task, NaN before it is learnt."""
    import pandas as pd

    rows = _class_accuracy(run, head)
    return pd.DataFrame(rows, index=pd.RangeIndex(1, run.n_tasks + 1, name="after_task"), columns=run.class_names)


def forgetting_by_class(run: Run, head: str | None = None) -> "pd.DataFrame":
    """A row a class: class, task, learned, best before the last task, last, forgetting (NaN for the last task's)."""
    import pandas as pd

    by_class = _class_accuracy(run, head)  # (tasks, classes)
    tasks, classes = run.task_of_class, np.arange(len(run.class_names))
    best = np.full(len(classes), np.nan)
    old = tasks < run.n_tasks - 1
    if old.any():
        best[old] = np.nanmax(by_class[:-1, old], axis=0)
    columns = {"class": run.class_names, "task": tasks + 1, "learned": by_class[tasks, classes], "best": best}
    return pd.DataFrame(columns | {"last": by_class[-1], "forgetting_max_before_last": best - by_class[-1]})


def changes_by_task(run: Run, head: str | None = None, reference: Run | None = None) -> "pd.DataFrame":
    """A row a task: task, learned (plasticity), best before the last task, last, forgetting, reference, intransigence.

    reference: a run of the same classes trained jointly (one task: its accuracy on each task's images, all classes
    known) or cumulatively (as many tasks: its accuracy on task k after task k, as in Chaudhry et al. 2018); its default
    head is taken. Forgetting is NaN for the last task, the last two columns are NaN without a reference.
    """
    import pandas as pd

    matrix = accuracy(run, head)
    learned, last = np.diag(matrix), matrix[-1]
    lost = np.append(metrics.forgetting_max_before_last_by_task(matrix), np.nan)
    could = np.full(run.n_tasks, np.nan)
    if reference is not None and reference.n_tasks == 1 < run.n_tasks:
        of_class = _in_order_of(run, reference, _class_accuracy(reference, None)[-1])
        images = _in_order_of(run, reference, np.bincount(reference.labels(-1), minlength=len(of_class)))
        could = np.array([np.average(of_class[own], weights=images[own]) for own in _classes_of_tasks(run)])
    elif reference is not None:
        could = learned + metrics.intransigence_by_task(matrix, accuracy(reference))
    columns = {"task": np.arange(1, run.n_tasks + 1), "learned": learned, "best": last + lost, "last": last}
    return pd.DataFrame(columns | {"forgetting": lost, "reference": could, "intransigence": could - learned})


def changes_by_class(run: Run, head: str | None = None, reference: Run | None = None) -> "pd.DataFrame":
    """A row a class: class and the columns of `changes_by_task`. Classes of the reference are found by name."""
    table = forgetting_by_class(run, head).rename(columns={"forgetting_max_before_last": "forgetting"})
    could = np.full(len(table), np.nan)
    if reference is not None:
        if reference.n_tasks not in (1, run.n_tasks):
            raise UserError(f"a reference of {reference.n_tasks} tasks does not fit {run.n_tasks}; take a joint one.")
        of_class = _class_accuracy(reference, None)
        when = reference.task_of_class if reference.n_tasks > 1 else np.zeros(of_class.shape[1], int)
        could = _in_order_of(run, reference, of_class[when, np.arange(of_class.shape[1])])
    return table.assign(reference=could, intransigence=could - table["learned"])


def accuracy_by_group(run: Run, groups: Mapping[str, str], head: str | None = None) -> "pd.DataFrame":
    """Classes apart by group, e.g. {"digit seven": "foreseen", …}: group, classes, learned, last, forgetting.

    Each figure is a mean over the group's classes; a class of the run that `groups` leaves out is an error.
    """
    missing = [name for name in run.class_names if name not in groups]
    if missing:
        raise UserError(f"class {missing[0]!r} belongs to no group; name a group for each class of the run.")
    table = forgetting_by_class(run, head)
    table["group"] = [groups[name] for name in table["class"]]
    named = table.groupby("group", sort=True)
    means = named[["learned", "last", "forgetting_max_before_last"]].mean()
    means.insert(0, "classes", named.size())
    return means.reset_index()


def accuracy_by_stage(run: Run, head: str | None = None) -> "pd.DataFrame":
    """The learning curve: after_task, classes_seen and accuracy on all images of the classes seen."""
    import pandas as pd

    columns = {"after_task": np.arange(1, run.n_tasks + 1), "classes_seen": np.cumsum(run.increments)}
    return pd.DataFrame(columns | {"accuracy": metrics.accuracy_by_stage(accuracy(run, head), run.counts)})


def matrices(arms: Mapping[str, tuple[Run, str | None]]) -> "dict[str, pd.DataFrame]":
    """The accuracy matrix of each arm, as `Run.accuracy_of` has it. arms: {name: (run, head)}."""
    import pandas as pd

    found = {}
    for arm, matrix in zip(arms, side_by_side(lambda arm: accuracy(*arms[arm]), arms), strict=True):
        tasks = [f"task {t + 1}" for t in range(len(matrix))]
        found[arm] = pd.DataFrame(matrix, index=[f"after {task}" for task in tasks], columns=tasks)
    return found


def matrix_table(matrices: "Mapping[str, pd.DataFrame]") -> "pd.DataFrame":
    """The same in one long table: arm, after_task, task, accuracy."""
    import pandas as pd

    rows = []
    for arm, matrix in matrices.items():
        values = matrix.to_numpy()
        rows += [(arm, t + 1, i + 1, values[t, i]) for t, i in np.argwhere(~np.isnan(values))]
    return pd.DataFrame(rows, columns=["arm", "after_task", "task", "accuracy"])


# ---------------------------------------------------------------- helpers


def _class_accuracy(run: Run, head: str | None) -> np.ndarray:
    """(tasks, classes) in percent, NaN where a class has no images yet: `Run.class_accuracy`, from shared numbers."""
    if run.protocol == "domain":  # images of domains still to come are tested too, and do not count
        return run.class_accuracy(head or run.default_head)
    rows = np.full((run.n_tasks, len(run.class_names)), np.nan)
    for t, stage in enumerate(stages(run, head)):
        images = stage.confusion.sum(1)
        with np.errstate(invalid="ignore"):
            rows[t, : len(images)] = 100 * np.diag(stage.confusion) / images
    return rows


def _classes_of_tasks(run: Run) -> list[np.ndarray]:
    return [np.flatnonzero(run.task_of_class == t) for t in range(run.n_tasks)]


def _in_order_of(run: Run, reference: Run, of_class: np.ndarray) -> np.ndarray:
    """Values of the reference's classes, (classes,), in the order in which `run` learns them."""
    place = {name: c for c, name in enumerate(reference.class_names)}
    missing = [name for name in run.class_names if name not in place]
    if missing:
        raise UserError(f"class {missing[0]!r} is not in the reference run; take a joint run of the same benchmark.")
    return of_class[[place[name] for name in run.class_names]]
