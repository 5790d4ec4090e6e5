"""What the features still tell when the head does not: own heads beside classifiers fitted to the features.

Two kinds of probes must not be confused. `cilkit.probe` trains on all training images of all classes and is tested on
the test images: what the seed article does, and it needs the backbone. Here there are only the saved features of the
test images, after every task: classifiers are cross-fitted, each image is scored by one that was fitted on the other
folds. They see fewer images, so their accuracies are lower, and comparable between stages and runs of one benchmark.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from cilkit import metrics
from cilkit.analysis.said import accuracy
from cilkit.errors import UserError
from cilkit.runs import Run

if TYPE_CHECKING:
    import pandas as pd

FOLDS = 5


def head_and_representation(run: Run, head: str | None = None, folds: int = FOLDS, seed: int = 0) -> "pd.DataFrame":
    """After each task, on its test images: the run's own head, and what its saved features would allow.

    after_task, classes_seen, images; own_head; crossfit_nearest_mean and crossfit_linear (shrinkage LDA), see
    `cross_fitted`. Accuracies in percent over all images of the classes seen.
    """
    import pandas as pd

    own = metrics.accuracy_by_stage(accuracy(run, head), run.counts)
    rows = []
    for t in range(run.n_tasks):
        learnt = run.tasks_of(t) <= t  # domains still to come are tested too
        labels = run.labels(t)[learnt]
        row = {"after_task": t + 1, "classes_seen": sum(run.increments[: t + 1]), "images": len(labels)}
        found = cross_fitted(run.features(t)[learnt], labels, folds, seed)
        correct = {f"crossfit_{name}": 100 * np.mean(predicted == labels) for name, predicted in found.items()}
        rows.append(row | {"own_head": own[t]} | correct)
    return pd.DataFrame(rows)


def cross_fitted(features: np.ndarray, labels: np.ndarray, folds: int = FOLDS, seed: int = 0) -> dict[str, np.ndarray]:
    """Predictions, int64 (n,) by name, of classifiers fitted to the folds that an image is not in.

    nearest_mean: the nearest class mean. linear: linear discriminant analysis with equal priors; its pooled covariance
    S is shrunk to (1 - a) S + a tr(S)/dim I with the a of Chen et al. 2010 (OAS). Each class is dealt out over the
    folds. Both need only sums over images, so a fold is left out by subtracting its own.
    """
    if folds < 2:
        raise UserError(f"{folds} folds leave nothing to fit on; ask for two or more.")
    features, labels = np.asarray(features, float), np.asarray(labels)
    features = features - features.mean(0)  # exact for both, and the sums below lose less
    classes, places = np.unique(labels, return_inverse=True)
    fold_of, n_classes = _folds(places, folds, seed), len(classes)
    sums = [_sums(features[fold_of == f], places[fold_of == f], n_classes) for f in range(folds)]
    whole = [sum(parts) for parts in zip(*sums, strict=True)]
    found = {name: np.empty(len(labels), classes.dtype) for name in ("nearest_mean", "linear")}
    for f, own in enumerate(sums):
        held = features[fold_of == f]
        counts, totals, gram = (every - mine for every, mine in zip(whole, own, strict=True))
        known = counts > 0  # a class all of whose images are in this fold cannot be named
        means = totals[known] / counts[known, None]  # (known, dim)
        within = (gram - (means * counts[known, None]).T @ means) / max(1, counts.sum() - known.sum())
        weights = np.linalg.solve(_shrunk(within, int(counts.sum())), means.T)  # (dim, known)
        for name, w in (("nearest_mean", means.T), ("linear", weights)):
            scores = held @ w - 0.5 * (means.T * w).sum(0)
            found[name][fold_of == f] = classes[known][scores.argmax(1)]
    return found


def heads_beside_probes(
    arms: Mapping[str, tuple[Run, str | None]], scores: Mapping[str, Mapping[str, float]], aligned: str = "aligned"
) -> "pd.DataFrame":
    """Last accuracies: a row an arm (the index), its own head, its aligned head, and probes of its final backbone.

    scores: {arm: {probe: percent}}, as `cilkit.probe(run, stream)["scores"]` has them, trained on all training images.
    NaN where a run has no head named `aligned`, where that is its own, and where an arm has no scores.
    """
    import pandas as pd

    rows = {}
    for arm, (run, head) in arms.items():
        own = head or run.default_head
        has = aligned in run.heads and aligned != own
        row = {"own head": metrics.last_accuracy(accuracy(run, own), run.counts)}
        row["aligned head"] = metrics.last_accuracy(accuracy(run, aligned), run.counts) if has else np.nan
        rows[arm] = row | dict(scores.get(arm, {}))
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("arm")


# ---------------------------------------------------------------- helpers


def _folds(places: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """A fold number an image: within each class, in random order, 0, 1, …, folds - 1, 0, …"""
    order = np.random.default_rng(seed).permutation(len(places))
    order = order[np.argsort(places[order], kind="stable")]  # by class, shuffled within
    starts = np.searchsorted(places[order], places[order])  # where each one's class begins
    fold_of = np.empty(len(places), np.int64)
    fold_of[order] = (np.arange(len(places)) - starts) % folds
    return fold_of


def _sums(features: np.ndarray, places: np.ndarray, n_classes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images a class (classes,), their sums (classes, dim), and X'X (dim, dim)."""
    totals = np.zeros((n_classes, features.shape[1]))
    order = np.argsort(places, kind="stable")
    here, starts = np.unique(places[order], return_index=True)
    if len(here):
        totals[here] = np.add.reduceat(features[order], starts, axis=0)
    return np.bincount(places, minlength=n_classes), totals, features.T @ features


def _shrunk(covariance: np.ndarray, n: int) -> np.ndarray:
    """The covariance of n images shrunk towards its mean variance. Chen et al. 2010, the oracle approximating one."""
    dim = len(covariance)
    level = np.trace(covariance) / dim
    spread = np.mean(covariance**2)
    share = min(1.0, (spread + level**2) / ((n + 1) * (spread - level**2 / dim))) if spread > level**2 / dim else 1.0
    return (1 - share) * covariance + (share * level + 1e-12) * np.eye(dim)
