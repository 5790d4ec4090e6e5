"""What a head said after each task, in the few numbers that the tables share: its outputs are read once a `Run`.

A table of a hundred classes would otherwise go through the same megabytes of logits as often as it has columns. The
numbers are kept as long as the `Run` object lives; a run's files never change once it is finished.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from inspect import signature
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np

from cilkit import calibration, metrics
from cilkit.errors import UserError
from cilkit.runs import Run

if TYPE_CHECKING:
    import pandas as pd

_KEPT: "WeakKeyDictionary[Run, dict[tuple[str, str], Any]]" = WeakKeyDictionary()
_ACCURACIES: "WeakKeyDictionary[Run, dict[str, np.ndarray]]" = WeakKeyDictionary()


@dataclass(frozen=True)
class Stage:
    """One head after one task, over all test images of that stage."""

    confusion: np.ndarray  # int64 (seen, seen): rows the true class, columns the predicted one
    accuracy: np.ndarray  # float64 (tasks,): percent on each task's images, NaN where there are none
    logit_gap: float  # of old images: mean of the largest newest logit − the largest old one; NaN without old classes
    top_5_accuracy: float  # percent
    calibration_error: float  # percentage points, 15 equally wide bins
    negative_log_likelihood: float  # nats
    brier_score: float  # 0 … 2


def stages(run: Run, head: str | None = None) -> list[Stage]:
    """One `Stage` a task, in order."""
    head = head or run.default_head
    run.check_head(head)
    return once(run, "stages", head, lambda: [_stage(run, t, head) for t in range(run.n_tasks)])


def once(run: Run, what: str, head: str, make: Callable[[], Any]) -> Any:
    """What `make` returns, kept for this `Run` object; nothing that it returns may hold the run itself."""
    kept = _KEPT.setdefault(run, {})
    if (what, head) not in kept:
        kept[what, head] = make()
    return kept[what, head]


def _stage(run: Run, t: int, head: str) -> Stage:
    labels, own = run.labels(t), run.tasks_of(t)
    scores = run.scores(t, head, top=1)
    gap, blocks = float("nan"), scores.block_max  # (n, tasks seen)
    old = own < t
    if run.protocol == "class" and old.any():
        gap = float(np.mean(blocks[old, t] - blocks[old, :t].max(1)))
    return Stage(
        confusion=metrics.confusion_matrix(scores.predictions, labels, sum(run.increments[: t + 1])),
        accuracy=metrics.accuracy_by_task(scores.predictions, labels, own, run.n_tasks),
        logit_gap=gap,
        top_5_accuracy=metrics.top_k_accuracy(scores.rank),
        calibration_error=calibration.expected_calibration_error(scores),
        negative_log_likelihood=calibration.negative_log_likelihood(scores),
        brier_score=calibration.brier_score(scores),
    )


def accuracy(run: Run, head: str | None = None) -> np.ndarray:
    """The accuracy matrix in percent, float64 (tasks, tasks), NaN above the diagonal."""
    head, kept = head or run.default_head, _ACCURACIES.setdefault(run, {})
    if head not in kept:  # without the rest of a `Stage`, which takes ten times as long: tables may be of many runs
        kept[head] = run.accuracy_of(head).to_numpy()
    return kept[head].copy()


def confusions(run: Run, head: str | None = None) -> list[np.ndarray]:
    """Counts after each task, int64 (seen, seen). UserError where a prediction names no task."""
    if run.protocol == "domain":
        raise UserError(
            "the tasks of this run share their classes: a prediction names no task; look at classes instead."
        )
    return [stage.confusion for stage in stages(run, head)]


def between_tasks(run: Run, confusion: np.ndarray) -> np.ndarray:
    """Counts of classes summed over the classes of each task: int64 (tasks seen, tasks seen)."""
    starts = np.flatnonzero(np.diff(run.task_of_class[: len(confusion)], prepend=-1))  # the first class of each task
    return np.add.reduceat(np.add.reduceat(confusion, starts, axis=0), starts, axis=1)


def row_shares(counts: np.ndarray) -> np.ndarray:
    """Counts (…, n) over their sum along the last axis, in percent; 0 where there are none."""
    return 100 * counts / np.maximum(1, counts.sum(-1, keepdims=True))


def of_arms(
    table: "Callable[..., pd.DataFrame]", arms: Mapping[str, tuple[Run, str | None]], **options: Any
) -> "pd.DataFrame":
    """The same table of several runs, one below the other, with a first column `arm`.

    table: a function of (run, head, …) such as `recency_bias`; arms: {name: (run, head)}; options: its other arguments.
    """
    import pandas as pd

    takes_a_head = "head" in signature(table).parameters  # tables of features, or of two named heads, do not

    def one(arm: str) -> "pd.DataFrame":
        run, head = arms[arm]
        part = table(run, head, **options) if takes_a_head else table(run, **options)
        part.insert(0, "arm", arm)
        return part

    return pd.concat(side_by_side(one, arms), ignore_index=True)


def side_by_side(make: Callable[[str], Any], arms: Mapping[str, tuple[Run, str | None]]) -> list:
    """[make(arm) for arm in arms], several at once.

    Matrices of some hundred numbers a side are too small to share: a thread an arm, one BLAS thread each.
    """
    import os
    from concurrent.futures import ThreadPoolExecutor

    import scipy.linalg  # noqa: F401  (it has a BLAS of its own, which is limited only once it is loaded)
    from threadpoolctl import threadpool_limits

    if not arms:
        raise UserError("a table of no arms was asked for; name at least one, as {name: (run, head)}.")
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        return list(pool.map(make, arms))
