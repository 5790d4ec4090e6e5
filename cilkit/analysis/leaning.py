"""How far a head leans to what is new, how sure it is, what alignment changes, and how long its weights are."""

from typing import TYPE_CHECKING

import numpy as np

from cilkit import calibration, metrics
from cilkit.analysis.said import accuracy, between_tasks, confusions, once, stages
from cilkit.errors import UserError
from cilkit.runs import Run

if TYPE_CHECKING:
    import pandas as pd

LINEAR = 0.01  # residual up to which a head counts as linear in the kept features
CHECKED = 1000  # images at most on which that is checked


def recency_bias(run: Run, head: str | None = None) -> "pd.DataFrame":
    """How far a head leans to the newest task, after each task from the second.

    after_task; newest_images and newest_predictions: shares of the test images that are, and that are predicted to be,
    of the newest task; bias: their difference in points; logit_gap: mean over images of old classes of the largest
    newest logit minus the largest old logit (above 0, the average old image is lost).
    """
    import pandas as pd

    confusions(run, head)  # a domain stream has no such table
    rows = []
    for t, stage in enumerate(stages(run, head)[1:], 1):
        of_tasks = between_tasks(run, stage.confusion)
        images, predictions = (100 * of_tasks.sum(axis)[t] / of_tasks.sum() for axis in (1, 0))
        row = {"after_task": t + 1, "newest_images": images, "newest_predictions": predictions}
        rows.append(row | {"bias": predictions - images, "logit_gap": stage.logit_gap})
    return pd.DataFrame(rows, columns=["after_task", "newest_images", "newest_predictions", "bias", "logit_gap"])


def recency_over_time(run: Run, head: str | None = None) -> "pd.DataFrame":
    """`recency_bias` with the weights beside it: norm_newest and norm_old, means over classes, and their norm_ratio."""
    norms = weight_norms(run, head)
    old = norms["task"] < norms["after_task"]
    table = recency_bias(run, head)
    for name, chosen in (("norm_newest", norms[~old]), ("norm_old", norms[old])):
        table[name] = table["after_task"].map(chosen.groupby("after_task")["norm"].mean()).astype(float)
    return table.assign(norm_ratio=table["norm_newest"] / table["norm_old"])


# ---------------------------------------------------------------- weights


def weight_norms(run: Run, head: str | None = None) -> "pd.DataFrame":
    """The length of each class's weight vector after each task, found from saved features and logits.

    after_task, class, task, norm, residual, why. A linear head's logits are features · W' + b, so least squares on some
    of the images give W; `residual` is the error on other images over the spread of their logits. Where it is above
    1 %, where there are too few images or where whole logits were not kept, norm is NaN and `why` says so. Weights on
    directions in which no test feature varies leave no trace in the logits and do not count.
    """
    head = head or run.default_head
    return once(run, "weight norms", head, lambda: _weight_norms(run, head)).copy()


def _weight_norms(run: Run, head: str) -> "pd.DataFrame":
    import pandas as pd

    parts = []
    for t in range(run.n_tasks):
        seen = sum(run.increments[: t + 1])
        try:
            weights, residual, why = linear_head(run.features(t), run.logits(t, head))
        except UserError as error:
            weights, residual, why = None, float("nan"), str(error)
        norm = np.full(seen, np.nan) if weights is None or why else np.linalg.norm(weights, axis=1)
        columns = {"after_task": t + 1, "class": run.class_names[:seen], "task": run.task_of_class[:seen] + 1}
        parts.append(pd.DataFrame(columns | {"norm": norm, "residual": residual, "why": why}))
    return pd.concat(parts, ignore_index=True)


def linear_head(features: np.ndarray, logits: np.ndarray) -> tuple[np.ndarray | None, float, str]:
    """The weights (classes, dim) of a head from its inputs (n, dim) and outputs (n, classes), by least squares.

    Returns weights, relative residual on images that were not fitted, and why they are not to be trusted ("": they
    are). The smallest weights that fit are taken where the features leave a direction open.
    """
    n, dim = features.shape
    fitted = min(4 * (dim + 1), n - n // 5)
    if fitted < dim + 2 or n == fitted:
        return None, float("nan"), f"{n} images are too few for weights of {dim} numbers"
    order = np.random.default_rng(0).permutation(n)[: fitted + CHECKED]
    x, y = features[order].astype(float), logits[order].astype(float)
    centre, level = x[:fitted].mean(0), y[:fitted].mean(0)
    x, y = x - centre, y - level
    weights = np.linalg.lstsq(x[:fitted], y[:fitted], rcond=1e-6)[0].T  # (classes, dim)
    left = y[fitted:] - x[fitted:] @ weights.T
    residual = float(np.linalg.norm(left) / max(np.linalg.norm(y[fitted:]), 1e-30))
    return weights, residual, "" if residual <= LINEAR else "the head is not linear in the kept features"


def norms_by_task(norms: "pd.DataFrame") -> "pd.DataFrame":
    """`weight_norms` averaged over the classes of each task: [arm,] after_task, task, norm."""
    keys = [name for name in ("arm", "after_task", "task") if name in norms]
    return norms.groupby(keys, sort=False, as_index=False)["norm"].mean()


# ---------------------------------------------------------------- alignment


def alignment_by_task(run: Run, before: str = "raw", after: str = "aligned") -> "pd.DataFrame":
    """What alignment changes, after the last task: task, accuracy before and after it, points gained."""
    import pandas as pd

    columns = {name: accuracy(run, head)[-1] for name, head in (("before", before), ("after", after))}
    table = pd.DataFrame({"task": np.arange(1, run.n_tasks + 1)} | columns)
    return table.assign(gained=table["after"] - table["before"])


def alignment_by_stage(run: Run, before: str = "raw", after: str = "aligned") -> "pd.DataFrame":
    """What alignment changes over all classes seen: after_task, accuracy before and after it, points gained."""
    import pandas as pd

    pairs = (("before", before), ("after", after))
    columns = {name: metrics.accuracy_by_stage(accuracy(run, head), run.counts) for name, head in pairs}
    table = pd.DataFrame({"after_task": np.arange(1, run.n_tasks + 1)} | columns)
    return table.assign(gained=table["after"] - table["before"])


# ---------------------------------------------------------------- how sure


def reliability(run: Run, t: int = -1, head: str | None = None, bins: int = calibration.BINS) -> "pd.DataFrame":
    """After task t, a row a bin of the confidence: low, high, images, confidence and accuracy in percent."""
    return calibration.reliability(run.scores(t, head or run.default_head), bins)


def calibration_by_stage(run: Run, head: str | None = None) -> "pd.DataFrame":
    """After each task: top-5 accuracy and calibration error (15 equal-width bins) in percent, NLL in nats, Brier."""
    import pandas as pd

    figures = ("top_5_accuracy", "calibration_error", "negative_log_likelihood", "brier_score")
    found = stages(run, head)
    columns = {name: [getattr(stage, name) for stage in found] for name in figures}
    return pd.DataFrame({"after_task": np.arange(1, run.n_tasks + 1)} | columns)
