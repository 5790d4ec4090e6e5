"""Forgetting taken apart: tables from finished runs and from features. Tasks are counted from 1 in every table.

Nothing here needs a model: a run's kept outputs and features are enough. Accuracies and shares are in percent. `head`
is a run's default head unless one is named.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from cilkit import answers, calibration, metrics, outcomes
from cilkit.errors import UserError
from cilkit.probes import domain_gap as domain_gap  # found here as well: tables are asked of one module
from cilkit.probes import image_statistics as image_statistics
from cilkit.probes import probe_scores as probe_scores
from cilkit.probes import projection as projection
from cilkit.runs import Run

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

    rows = run.class_accuracy(head or run.default_head)
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

    rows = []
    for t in range(1, run.n_tasks):
        own_task, labels, predicted = _answers(run, t, head)
        old = own_task < t
        labels, predicted = labels[old], predicted[old]
        own, taken = run.task_of_class[labels], run.task_of_class[predicted]
        fate = np.select([predicted == labels, taken == own, taken < t], [0, 1, 2], 3)
        rows.append({"after_task": t + 1} | dict(zip(FATES, _shares(fate, len(FATES)), strict=True)))
    return pd.DataFrame(rows, columns=["after_task", *FATES])


def confusion_between_tasks(run: Run, t: int = -1, head: str | None = None) -> "pd.DataFrame":
    """After task t (from 0, negative from the end): rows the images' task, columns the predicted one; row shares."""
    import pandas as pd

    own, _, predicted = _answers(run, t, head)
    taken, seen = run.task_of_class[predicted], own.max() + 1
    shares = [_shares(taken[own == i], seen) for i in range(seen)]
    names = [f"task {i + 1}" for i in range(seen)]
    return pd.DataFrame(shares, index=names, columns=names)


def confusion_between_classes(run: Run, t: int = -1, head: str | None = None) -> "pd.DataFrame":
    """After task t: (classes seen, classes seen), rows the true class, columns the predicted one; row shares."""
    import pandas as pd

    names = run.class_names[: sum(run.increments[: range(run.n_tasks)[t] + 1])]
    counts = metrics.confusion_matrix(run.predictions(t, head or run.default_head), run.labels(t), len(names))
    return pd.DataFrame(100 * counts / np.maximum(1, counts.sum(1, keepdims=True)), index=names, columns=names)


def takers(run: Run, head: str | None = None) -> "pd.DataFrame":
    """Which class took most of each class's test images in the end: class, task, last, taken_by, its task, share."""
    import pandas as pd

    of_class = confusion_between_classes(run, -1, head).to_numpy()
    rows = []
    for c, name in enumerate(run.class_names):
        shares = of_class[c].copy()
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

    rows = []
    for t in range(1, run.n_tasks):
        own, _, predicted = _answers(run, t, head)
        images, predictions = 100 * np.mean(own == t), 100 * np.mean(run.task_of_class[predicted] == t)
        blocks = run.scores(t, head or run.default_head).block_max[own < t]  # (old images, tasks)
        gap = np.mean(blocks[:, t] - blocks[:, :t].max(1))
        row = {"after_task": t + 1, "newest_images": images, "newest_predictions": predictions}
        rows.append(row | {"bias": predictions - images, "logit_gap": float(gap)})
    return pd.DataFrame(rows)


def task_known(run: Run, head: str | None = None) -> "pd.DataFrame":
    """What confusing tasks costs, after each task: accuracy, and accuracy were each image's task known (percent)."""
    import pandas as pd

    rows = []
    for t in range(run.n_tasks):
        answers = [run.predictions(t, head or run.default_head, known) for known in (False, True)]
        accuracy, known = (100 * np.mean(predicted == run.labels(t)) for predicted in answers)
        rows.append({"after_task": t + 1, "accuracy": accuracy, "accuracy_task_known": known})
    return pd.DataFrame(rows)


# ---------------------------------------------------------------- how sure, and what it cost


def reliability(run: Run, t: int = -1, head: str | None = None, bins: int = calibration.BINS) -> "pd.DataFrame":
    """After task t, a row a bin of the confidence: low, high, images, confidence and accuracy in percent."""
    return calibration.reliability(run.scores(t, head or run.default_head), bins)


def calibration_by_stage(run: Run, head: str | None = None) -> "pd.DataFrame":
    """After each task: top-5 accuracy and calibration error (15 equal-width bins) in percent, NLL in nats, Brier."""
    import pandas as pd

    rows = []
    for t in range(run.n_tasks):
        scores = run.scores(t, head or run.default_head)
        row = {"after_task": t + 1, "top_5_accuracy": metrics.top_k_accuracy(scores.rank)}
        row["calibration_error"] = calibration.expected_calibration_error(scores)
        row["negative_log_likelihood"] = calibration.negative_log_likelihood(scores)
        rows.append(row | {"brier_score": calibration.brier_score(scores)})
    return pd.DataFrame(rows)


def phases(arms: "Mapping[str, Run]") -> "pd.DataFrame":
    """What each phase of each run took: arm, phase, seconds, peak_bytes, calls. Empty where none were measured."""
    import pandas as pd

    rows = [{"arm": arm, "phase": phase} | spent
            for arm, run in arms.items() for phase, spent in run.measured.get("phases", {}).items()]  # fmt: skip
    return pd.DataFrame(rows, columns=["arm", "phase", "seconds", "peak_bytes", "calls"])


# ---------------------------------------------------------------- feature drift


def class_mean_drift(run: Run) -> "pd.DataFrame":
    """How far each class's mean test feature has moved since the class was learnt.

    class, task, after_task; drift: the distance between the two means; relative: drift over the class's own spread,
    the root mean square distance of its features to their mean when it was learnt; cosine of the two means.
    """
    import pandas as pd

    stages = [(run.features(t), run.labels(t)) for t in range(run.n_tasks)]
    rows = []
    for c, name in enumerate(run.class_names):
        first = run.task_of_class[c]
        features, labels = stages[first]
        start = features[labels == c].astype(float)  # (n, dim)
        mean, spread = start.mean(0), np.sqrt(((start - start.mean(0)) ** 2).sum(1).mean())
        for t in range(first, run.n_tasks):
            features, labels = stages[t]
            now = features[labels == c].mean(0, dtype=float)
            drift = np.linalg.norm(now - mean)
            cosine = now @ mean / (np.linalg.norm(now) * np.linalg.norm(mean))
            row = {"class": name, "task": first + 1, "after_task": t + 1, "drift": drift}
            rows.append(row | {"relative": drift / spread, "cosine": cosine})
    return pd.DataFrame(rows)


def feature_similarity(run: Run) -> "pd.DataFrame":
    """(tasks, tasks): linear CKA between the features after task s and after task t, on the images seen at both."""
    import pandas as pd

    stages = [(run.ids(t), run.features(t)) for t in range(run.n_tasks)]
    names = [f"after task {t + 1}" for t in range(run.n_tasks)]
    values = np.eye(run.n_tasks)
    for t, (later_ids, later) in enumerate(stages):
        for s, (earlier_ids, earlier) in enumerate(stages[:t]):
            _, at_s, at_t = np.intersect1d(earlier_ids, later_ids, return_indices=True)
            values[s, t] = values[t, s] = linear_cka(earlier[at_s], later[at_t])
    return pd.DataFrame(values, index=names, columns=names)


def linear_cka(x: np.ndarray, y: np.ndarray) -> float:
    """|Y'X|_F^2 / (|X'X|_F |Y'Y|_F) of centred features (n, dim). Kornblith et al. 2019; 1 up to rotation and scale."""
    x, y = (features.astype(float) - features.mean(0, dtype=float) for features in (x, y))
    return float(((y.T @ x) ** 2).sum() / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)))


# ---------------------------------------------------------------- arms


def curves(arms: "Mapping[str, tuple[Run, str | None]]", order: int | None = None) -> "pd.DataFrame":
    """Accuracy over all classes seen, of several arms: arm, order, classes_seen, accuracy, after_task."""
    import pandas as pd

    rows = []
    for arm, (run, head) in arms.items():
        stages = metrics.accuracy_by_stage(run.accuracy_of(head or run.default_head), run.counts)
        seen = np.cumsum(run.increments)
        rows += [
            (arm, order, int(n), float(value), t + 1) for t, (n, value) in enumerate(zip(seen, stages, strict=True))
        ]
    return pd.DataFrame(rows, columns=["arm", "order", "classes_seen", "accuracy", "after_task"])


def answers_by_stage(run: Run) -> "pd.DataFrame":
    """What a learner that writes says after each task, a row each: images, and `answers.FIGURES` in percent of them."""
    import pandas as pd

    names, sentence = run.settings["notes"]["names"], answers.Sentence(run.settings["hyper"]["sentence"])
    rows, seen = [], np.cumsum(run.increments)
    for t, known in enumerate(seen):
        written = [sentence.parse(text) for text in run.texts(t)]
        rows.append({"images": len(written)} | answers.figures(written, run.labels(t), names, int(known)))
    return pd.DataFrame(rows, index=pd.Index(np.arange(1, len(rows) + 1), name="after task"))


def compare_arms(table: "pd.DataFrame", value: str, baseline: str = "") -> "pd.DataFrame":
    """A row an arm: mean and half width of the 95 % t interval over class orders and, paired, minus the baseline.

    table: columns arm, order and `value`, a row a run. Orders that only one arm has are left out of its pairing.
    """
    compared = outcomes.compare(table, value, "arm", baseline, over=["order"])
    return compared.rename(columns={"runs": "orders"}).drop(columns="pairs", errors="ignore")


# ---------------------------------------------------------------- helpers


def _shares(values: np.ndarray, n: int) -> np.ndarray:
    """Share of each of the numbers 0 … n - 1 among the values, in percent: float64 (n,)."""
    return 100 * np.bincount(values, minlength=n) / max(1, len(values))


def _answers(run: Run, t: int, head: str | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of the test images after task t: their tasks, their labels and the predicted labels."""
    if run.protocol == "domain":
        raise UserError(
            "the tasks of this run share their classes: a prediction names no task; look at classes instead."
        )
    return run.tasks_of(t), run.labels(t), run.predictions(t, head or run.default_head)
