"""Where test images go: which class, which task took them, and when. Shares are percent of the true class's images."""

from typing import TYPE_CHECKING

import numpy as np

from cilkit import metrics
from cilkit.analysis.said import between_tasks, confusions, row_shares, stages
from cilkit.runs import Run

if TYPE_CHECKING:
    import pandas as pd

FATES = ("correct", "another class of its task", "a class of another old task", "a class of the newest task")


def confusion_flow(run: Run, head: str | None = None) -> "pd.DataFrame":
    """Where old classes' test images go, after each task from the second: after_task and a share for each FATE."""
    import pandas as pd

    rows = []
    for t, counts in enumerate(confusions(run, head)[1:], 1):
        of_tasks = between_tasks(run, counts)[:t]  # (old tasks, tasks seen), counts
        correct = np.trace(counts[: sum(run.increments[:t])])
        own, newest = np.trace(of_tasks), of_tasks[:, t].sum()
        fates = np.array([correct, own - correct, of_tasks.sum() - own - newest, newest])
        rows.append({"after_task": t + 1} | dict(zip(FATES, row_shares(fates), strict=True)))
    return pd.DataFrame(rows, columns=["after_task", *FATES])


def confusion_between_tasks(run: Run, t: int = -1, head: str | None = None) -> "pd.DataFrame":
    """After task t (from 0, negative from the end): rows the images' task, columns the predicted one; row shares."""
    import pandas as pd

    shares = row_shares(between_tasks(run, confusions(run, head)[t]))
    names = [f"task {i + 1}" for i in range(len(shares))]
    return pd.DataFrame(shares, index=names, columns=names)


def confusion_between_classes(run: Run, t: int = -1, head: str | None = None) -> "pd.DataFrame":
    """After task t: (classes seen, classes seen), rows the true class, columns the predicted one; row shares."""
    import pandas as pd

    shares = row_shares(stages(run, head)[t].confusion)
    names = run.class_names[: len(shares)]
    return pd.DataFrame(shares, index=names, columns=names)


def takers(run: Run, head: str | None = None) -> "pd.DataFrame":
    """Which class took most of each class's test images in the end: class, task, last, taken_by, its task, share."""
    import pandas as pd

    shares = row_shares(stages(run, head)[-1].confusion)
    tasks, names = run.task_of_class, np.array(run.class_names, object)
    last = np.diag(shares)
    others = shares - np.diag(np.full(len(shares), np.inf))  # never itself
    taker = others.argmax(1)
    share = others[np.arange(len(taker)), taker] if len(taker) > 1 else np.zeros(1)
    found = share > 0
    columns = {"class": names, "task": tasks + 1, "last": last, "taken_by": np.where(found, names[taker], "")}
    return pd.DataFrame(columns | {"taken_by_task": np.where(found, tasks[taker] + 1, np.nan), "share": share})


def class_flow(run: Run, head: str | None = None) -> "pd.DataFrame":
    """Each class's test images after each task, by the class they are taken for.

    after_task, from_class, from_task, to_class, to_task, share, gained. gained: the share minus that after the task
    before, in points; NaN when the class is new. A pair has a row while it has images, and once more when it has lost
    them; a class's own row is what it kept, so the shares of a class after a task add up to 100.
    """
    import pandas as pd

    tasks, names = run.task_of_class, np.array(run.class_names, object)
    parts, before = [], np.zeros((0, 0))
    for t, counts in enumerate(confusions(run, head)):
        shares = row_shares(counts)
        gained = shares - _padded(before, len(shares))
        source, taker = np.nonzero((shares > 0) | (gained < 0))
        gained[len(before) :] = np.nan
        columns = {"after_task": t + 1, "from_class": names[source], "from_task": tasks[source] + 1}
        columns |= {"to_class": names[taker], "to_task": tasks[taker] + 1}
        parts.append(pd.DataFrame(columns | {"share": shares[source, taker], "gained": gained[source, taker]}))
        before = shares
    return pd.concat(parts, ignore_index=True)


def top_thefts(flow: "pd.DataFrame", k: int = 15) -> "pd.DataFrame":
    """The k rows of `class_flow` in which a class of the newest task took most of an old class's images, first most."""
    new = (flow["to_task"] == flow["after_task"]) & (flow["from_task"] < flow["after_task"]) & (flow["gained"] > 0)
    return flow[new].sort_values("gained", ascending=False, kind="stable").head(k).reset_index(drop=True)


def task_flow(run: Run, head: str | None = None) -> "pd.DataFrame":
    """The same between tasks, every pair: after_task, from_task, to_task, share of the task's images, gained."""
    import pandas as pd

    parts, before = [], np.zeros((0, 0))
    for t, counts in enumerate(confusions(run, head)):
        shares = row_shares(between_tasks(run, counts))
        gained = shares - _padded(before, len(shares))
        gained[len(before) :] = np.nan
        source, taker = (places.ravel() for places in np.indices(shares.shape))
        columns = {"after_task": t + 1, "from_task": source + 1, "to_task": taker + 1, "share": shares.ravel()}
        parts.append(pd.DataFrame(columns | {"gained": gained.ravel()}))
        before = shares
    return pd.concat(parts, ignore_index=True)


def task_known(run: Run, head: str | None = None) -> "pd.DataFrame":
    """What confusing tasks costs, after each task: accuracy, and accuracy were each image's task known (percent)."""
    import pandas as pd

    known = run.accuracy_of(head or run.default_head, task_known=True)
    columns = {"after_task": np.arange(1, run.n_tasks + 1)}
    columns["accuracy"] = [100 * np.trace(counts) / counts.sum() for counts in confusions(run, head)]
    return pd.DataFrame(columns | {"accuracy_task_known": metrics.accuracy_by_stage(known, run.counts)})


def _padded(shares: np.ndarray, n: int) -> np.ndarray:
    """With zeros for the classes that came since: (n, n)."""
    return np.pad(shares, (0, n - len(shares)))
