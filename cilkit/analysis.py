"""Forgetting taken apart: tables from finished runs and from features. Tasks are counted from 1 in every table.

Nothing here needs a model: a run's kept outputs and features are enough. Accuracies and shares are in percent. `head`
is a run's default head unless one is named.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from cilkit import metrics
from cilkit.errors import UserError
from cilkit.probes import domain_gap as domain_gap  # found here as well: tables are asked of one module
from cilkit.probes import image_statistics as image_statistics
from cilkit.probes import probe_scores as probe_scores
from cilkit.probes import projection as projection
from cilkit.runs import Outputs, Run

if TYPE_CHECKING:
    import pandas as pd

# ---------------------------------------------------------------- forgetting


def forgetting_by_task(run: Run, head: str | None = None) -> "pd.DataFrame":
    """A row an old task: task, learned (A[i, i]), best before the last task, last, and the two kinds of forgetting."""
    import pandas as pd

    matrix = run.accuracy_of(head or run.default_head).to_numpy()
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

    head = head or run.default_head
    rows = [metrics.class_accuracy(o.predictions(head), o.labels, len(run.class_names)) for o in run.all_outputs()]
    return pd.DataFrame(rows, index=pd.RangeIndex(1, run.n_tasks + 1, name="after_task"), columns=run.class_names)


def forgetting_by_class(run: Run, head: str | None = None) -> "pd.DataFrame":
    """A row a class: class, task, learned, best before the last task, last, forgetting (NaN for the last task's)."""
    import pandas as pd

    by_class = accuracy_by_class(run, head).to_numpy()  # (tasks, classes)
    tasks, classes = run.task_of_class, np.arange(len(run.class_names))
    best = np.full(len(classes), np.nan)
    old = tasks < run.n_tasks - 1
    if old.any():
        best[old] = np.nanmax(by_class[:-1, old], axis=0)
    columns = {"class": run.class_names, "task": tasks + 1, "learned": by_class[tasks, classes], "best": best}
    return pd.DataFrame(columns | {"last": by_class[-1], "forgetting_max_before_last": best - by_class[-1]})


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

    accuracy = metrics.accuracy_by_stage(run.accuracy_of(head or run.default_head), run.counts)
    columns = {"after_task": np.arange(1, run.n_tasks + 1), "classes_seen": np.cumsum(run.increments)}
    return pd.DataFrame(columns | {"accuracy": accuracy})


# ---------------------------------------------------------------- where images go


FATES = ("correct", "another class of its task", "a class of another old task", "a class of the newest task")


def confusion_flow(run: Run, head: str | None = None) -> "pd.DataFrame":
    """Where old classes' test images go, after each task from the second: after_task and a share for each FATE."""
    import pandas as pd

    head = head or run.default_head
    rows = []
    for t in range(1, run.n_tasks):
        outputs = run.outputs(t)
        old = run.task_of_class[outputs.labels] < t
        labels, predicted = outputs.labels[old], outputs.predictions(head)[old]
        own, taken = run.task_of_class[labels], run.task_of_class[predicted]
        fate = np.select([predicted == labels, taken == own, taken < t], [0, 1, 2], 3)
        rows.append({"after_task": t + 1} | dict(zip(FATES, _shares(fate, len(FATES)), strict=True)))
    return pd.DataFrame(rows, columns=["after_task", *FATES])


def confusion_between_tasks(run: Run, t: int = -1, head: str | None = None) -> "pd.DataFrame":
    """After task t (from 0, negative from the end): rows the images' task, columns the predicted one; row shares."""
    import pandas as pd

    outputs = run.outputs(t)
    own = run.task_of_class[outputs.labels]
    taken = run.task_of_class[outputs.predictions(head or run.default_head)]
    seen = own.max() + 1
    shares = [_shares(taken[own == i], seen) for i in range(seen)]
    names = [f"task {i + 1}" for i in range(seen)]
    return pd.DataFrame(shares, index=names, columns=names)


def takers(run: Run, head: str | None = None) -> "pd.DataFrame":
    """Which class took most of each class's test images in the end: class, task, last, taken_by, its task, share."""
    import pandas as pd

    outputs = run.outputs(-1)
    predicted = outputs.predictions(head or run.default_head)
    rows = []
    for c, name in enumerate(run.class_names):
        shares = _shares(predicted[outputs.labels == c], len(run.class_names))
        last, shares[c] = shares[c], -1.0
        row = {"class": name, "task": run.task_of_class[c] + 1, "last": last, "taken_by": "", "taken_by_task": np.nan}
        taker = int(shares.argmax())
        if shares[taker] > 0:
            row |= {"taken_by": run.class_names[taker], "taken_by_task": run.task_of_class[taker] + 1}
        rows.append(row | {"share": shares[taker]})
    return pd.DataFrame(rows)


def recency_bias(run: Run, head: str | None = None) -> "pd.DataFrame":
    """How far a head leans to the newest task, after each task from the second.

    after_task; newest_images and newest_predictions: shares of the test images that are, and that are predicted to be,
    of the newest task; bias: their difference in points; logit_gap: mean over images of old classes of the largest
    newest logit minus the largest old logit (above 0, the average old image is lost).
    """
    import pandas as pd

    head = head or run.default_head
    rows = []
    for t in range(1, run.n_tasks):
        outputs = run.outputs(t)
        tasks, logits = run.task_of_class, outputs.logits(head)
        newest = tasks[: logits.shape[1]] == t
        images = 100 * np.mean(tasks[outputs.labels] == t)
        predictions = 100 * np.mean(tasks[outputs.predictions(head)] == t)
        old_images = logits[tasks[outputs.labels] < t]
        gap = np.mean(old_images[:, newest].max(1) - old_images[:, ~newest].max(1))
        row = {"after_task": t + 1, "newest_images": images, "newest_predictions": predictions}
        rows.append(row | {"bias": predictions - images, "logit_gap": float(gap)})
    return pd.DataFrame(rows)


def task_known(run: Run, head: str | None = None) -> "pd.DataFrame":
    """What confusing tasks costs, after each task: accuracy, and accuracy were each image's task known (percent)."""
    import pandas as pd

    head = head or run.default_head
    rows = []
    for t, outputs in enumerate(run.all_outputs()):
        known = metrics.within_task_predictions(outputs.logits(head), outputs.labels, run.task_of_class)
        accuracies = [100 * np.mean(predicted == outputs.labels) for predicted in (outputs.predictions(head), known)]
        rows.append({"after_task": t + 1, "accuracy": accuracies[0], "accuracy_task_known": accuracies[1]})
    return pd.DataFrame(rows)


# ---------------------------------------------------------------- feature drift


def class_mean_drift(run: Run) -> "pd.DataFrame":
    """How far each class's mean test feature has moved since the class was learnt.

    class, task, after_task; drift: the distance between the two means; relative: drift over the class's own spread,
    the root mean square distance of its features to their mean when it was learnt; cosine of the two means.
    """
    import pandas as pd

    stages = [_with_features(outputs) for outputs in run.all_outputs()]
    rows = []
    for c, name in enumerate(run.class_names):
        first = run.task_of_class[c]
        start = stages[first].features[stages[first].labels == c].astype(float)  # (n, dim)
        mean, spread = start.mean(0), np.sqrt(((start - start.mean(0)) ** 2).sum(1).mean())
        for t in range(first, run.n_tasks):
            now = stages[t].features[stages[t].labels == c].mean(0, dtype=float)
            drift = np.linalg.norm(now - mean)
            cosine = now @ mean / (np.linalg.norm(now) * np.linalg.norm(mean))
            row = {"class": name, "task": first + 1, "after_task": t + 1, "drift": drift}
            rows.append(row | {"relative": drift / spread, "cosine": cosine})
    return pd.DataFrame(rows)


def feature_similarity(run: Run) -> "pd.DataFrame":
    """(tasks, tasks): linear CKA between the features after task s and after task t, on the images seen at both."""
    import pandas as pd

    stages = [_with_features(outputs) for outputs in run.all_outputs()]
    names = [f"after task {t + 1}" for t in range(run.n_tasks)]
    values = np.eye(run.n_tasks)
    for t, later in enumerate(stages):
        for s, earlier in enumerate(stages[:t]):
            _, at_s, at_t = np.intersect1d(earlier.ids, later.ids, return_indices=True)
            values[s, t] = values[t, s] = linear_cka(earlier.features[at_s], later.features[at_t])
    return pd.DataFrame(values, index=names, columns=names)


def linear_cka(x: np.ndarray, y: np.ndarray) -> float:
    """|Y'X|_F^2 / (|X'X|_F |Y'Y|_F) of centred features (n, dim). Kornblith et al. 2019; 1 up to rotation and scale."""
    x, y = (features.astype(float) - features.mean(0, dtype=float) for features in (x, y))
    return float(((y.T @ x) ** 2).sum() / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)))


# ---------------------------------------------------------------- arms


def curves(arms: "Mapping[str, tuple[Run, str | None]]", order: int | None = None) -> "pd.DataFrame":
    """Accuracy over all classes seen, after each task, of several arms: arm, order, classes_seen, accuracy."""
    import pandas as pd

    rows = []
    for arm, (run, head) in arms.items():
        stages = metrics.accuracy_by_stage(run.accuracy_of(head or run.default_head), run.counts)
        seen = np.cumsum(run.increments)
        rows += [(arm, order, int(n), float(value)) for n, value in zip(seen, stages, strict=True)]
    return pd.DataFrame(rows, columns=["arm", "order", "classes_seen", "accuracy"])


def compare_arms(table: "pd.DataFrame", value: str, baseline: str = "") -> "pd.DataFrame":
    """A row an arm: mean and half width of the 95 % t interval over class orders and, paired, minus the baseline.

    table: columns arm, order and `value`, a row a run. Orders that only one arm has are left out of its pairing.
    """
    import pandas as pd

    wide = table.pivot(index="order", columns="arm", values=value)[list(dict.fromkeys(table["arm"]))]
    if baseline and baseline not in wide:
        raise UserError(f"baseline {baseline!r} is not among the arms {', '.join(wide)}.")
    rows = []
    for arm in wide:
        interval = metrics.mean_interval(wide[arm].dropna().to_numpy())
        row = {"arm": arm, "orders": interval.n, "mean": interval.mean, "half_width": interval.half_width}
        if baseline:
            pairs = wide[list(dict.fromkeys([arm, baseline]))].dropna()
            difference = metrics.paired_interval(pairs[arm].to_numpy(), pairs[baseline].to_numpy())
            row |= {"difference": difference.mean, "difference_half_width": difference.half_width}
        rows.append(row)
    return pd.DataFrame(rows)


# ---------------------------------------------------------------- helpers


def _shares(values: np.ndarray, n: int) -> np.ndarray:
    """Share of each of the numbers 0 … n - 1 among the values, in percent: float64 (n,)."""
    return 100 * np.bincount(values, minlength=n) / max(1, len(values))


def _with_features(outputs: Outputs) -> Outputs:
    if outputs.features is None:
        raise UserError("this run kept no features; run it again with keep_features=True to see their drift.")
    return outputs
