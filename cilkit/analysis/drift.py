"""How far features move between stages: class means, linear CKA, and the angles between leading directions."""

from typing import TYPE_CHECKING

import numpy as np

from cilkit.errors import UserError
from cilkit.runs import Run

if TYPE_CHECKING:
    import pandas as pd

DIRECTIONS = 5  # leading principal directions that are compared


def class_mean_drift(run: Run) -> "pd.DataFrame":
    """How far each class's mean test feature has moved since the class was learnt.

    class, task, after_task; drift: the distance between the two means; relative: drift over the class's own spread,
    the root mean square distance of its features to their mean when it was learnt; cosine of the two means.
    """
    import pandas as pd

    n_classes, tasks = len(run.class_names), run.task_of_class
    means, spreads = [], np.zeros(n_classes)
    for t in range(run.n_tasks):
        features, labels = run.features(t).astype(float), run.labels(t)
        order = np.argsort(labels, kind="stable")
        features, labels = features[order], labels[order]
        starts = np.searchsorted(labels, np.arange(n_classes + 1))
        means.append(np.array([features[a:b].mean(0) if b > a else np.full(features.shape[1], np.nan)
                               for a, b in zip(starts, starts[1:], strict=False)]))  # fmt: skip
        for c in np.flatnonzero(tasks == t):
            own = features[starts[c] : starts[c + 1]]
            spreads[c] = np.sqrt(((own - means[t][c]) ** 2).sum(1).mean()) if len(own) else np.nan
    means = np.stack(means)  # (tasks, classes, dim)
    start = means[tasks, np.arange(n_classes)]  # (classes, dim): when each class was learnt
    drift = np.linalg.norm(means - start, axis=2)
    cosine = (means * start).sum(2) / (np.linalg.norm(means, axis=2) * np.linalg.norm(start, axis=1))
    c, t = np.nonzero(tasks[:, None] <= np.arange(run.n_tasks))  # class by class, from its first stage
    columns = {"class": np.array(run.class_names, object)[c], "task": tasks[c] + 1, "after_task": t + 1}
    columns |= {"drift": drift[t, c], "relative": drift[t, c] / spreads[c], "cosine": cosine[t, c]}
    return pd.DataFrame(columns)


def feature_drift(run: Run, k: int = DIRECTIONS) -> "pd.DataFrame":
    """Every two stages compared on the images that were tested after both.

    earlier, later, images; cka: `linear_cka` of the two sets of features; angle_mean and angle_largest: in degrees, of
    the k principal angles between the spaces that their k leading principal directions span (Björck and Golub 1973; 0:
    the same space; 90: a direction has left it). k is lowered where there are fewer images or numbers a feature.
    """
    import pandas as pd
    from scipy.linalg import subspace_angles

    stages = _on_shared_images(run)
    rows = []
    grams = [_grams(features, ends) for features, ends in stages]
    for s, (earlier, ends) in enumerate(stages):
        n = ends[s]
        x, mean = earlier[:n], earlier[:n].mean(0)
        x = x - mean
        start = _leading(grams[s][s], k, n)
        for t in range(s + 1, len(stages)):
            later = stages[t][0][:n]  # its own mean drops out, x being centred
            cross = np.linalg.norm(x.T @ later)
            cka = cross**2 / (np.linalg.norm(grams[s][s]) * np.linalg.norm(grams[t][s]))
            angles = np.degrees(subspace_angles(start, _leading(grams[t][s], k, n)))
            row = {"earlier": s + 1, "later": t + 1, "images": int(n), "cka": float(cka)}
            rows.append(row | {"angle_mean": float(angles.mean()), "angle_largest": float(angles.max())})
    return pd.DataFrame(rows, columns=["earlier", "later", "images", "cka", "angle_mean", "angle_largest"])


def drift_matrix(drift: "pd.DataFrame", value: str = "cka") -> "pd.DataFrame":
    """A column of one run's `feature_drift` as (tasks, tasks), symmetric; a stage is the same as itself."""
    import pandas as pd

    if "arm" in drift and drift["arm"].nunique() > 1:
        raise UserError("a matrix shows the drift of one run; choose the rows of one arm.")
    n = int(drift["later"].max()) if len(drift) else 1
    values = np.full((n, n), np.nan)
    np.fill_diagonal(values, 1.0 if value == "cka" else 0.0)
    s, t = drift["earlier"].to_numpy() - 1, drift["later"].to_numpy() - 1
    values[s, t] = values[t, s] = drift[value]
    names = [f"after task {i + 1}" for i in range(n)]
    return pd.DataFrame(values, index=names, columns=names)


def feature_similarity(run: Run) -> "pd.DataFrame":
    """(tasks, tasks): linear CKA between the features after task s and after task t, on the images seen at both."""
    return drift_matrix(feature_drift(run), "cka")


def linear_cka(x: np.ndarray, y: np.ndarray) -> float:
    """|Y'X|_F^2 / (|X'X|_F |Y'Y|_F) of centred features (n, dim). Kornblith et al. 2019; 1 up to rotation and scale."""
    x, y = (features.astype(float) - features.mean(0, dtype=float) for features in (x, y))
    return float(((y.T @ x) ** 2).sum() / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)))


def leading_angles(x: np.ndarray, y: np.ndarray, k: int = DIRECTIONS) -> np.ndarray:
    """The k principal angles between the leading directions of features x and y (n, dim), degrees, largest first."""
    from scipy.linalg import subspace_angles

    x, y = (features.astype(float) - features.mean(0, dtype=float) for features in (x, y))
    return np.degrees(subspace_angles(_leading(x.T @ x, k, len(x)), _leading(y.T @ y, k, len(y))))


# ---------------------------------------------------------------- helpers


def _on_shared_images(run: Run) -> list[tuple[np.ndarray, np.ndarray]]:
    """Each stage's features, float64 (n, dim), images in one order: those of stage 1 first, then those new in 2, …

    With them where the images of each stage up to it end, so that [:ends[s]] are the images of stage s at any later
    stage, and what is summed over them can be summed once.
    """
    ids = [run.ids(t) for t in range(run.n_tasks)]
    every, first = np.unique(np.concatenate(ids), return_index=True)
    stage_of = np.repeat(np.arange(len(ids)), [len(one) for one in ids])[first]  # the first stage that tested it
    order = every[np.argsort(stage_of, kind="stable")]
    ends = np.cumsum(np.bincount(stage_of, minlength=len(ids)))
    found = []
    for t, one in enumerate(ids):
        place = np.argsort(one, kind="stable")
        at = np.searchsorted(one, order[: ends[t]], sorter=place)
        if len(one) != ends[t] or not np.array_equal(one[place[at]], order[: ends[t]]):
            raise UserError(f"images tested before task {t + 1} were not tested after it; stages cannot be compared.")
        found.append((run.features(t)[place[at]].astype(float), ends[: t + 1]))
    return found


def _grams(features: np.ndarray, ends: np.ndarray) -> list[np.ndarray]:
    """X'X of the first ends[s] rows, centred over these, for each s: float64 (dim, dim) each."""
    found, total, start = [], 0.0, 0
    features = features - features.mean(0)  # near zero, so that little is lost in the differences below
    for end in ends:
        piece = features[start:end]
        total = total + piece.T @ piece
        mean = features[:end].mean(0)
        found.append(total - end * np.outer(mean, mean))
        start = end
    return found


def _leading(gram: np.ndarray, k: int, n: int) -> np.ndarray:
    """The k eigenvectors (dim, k) of the largest eigenvalues; at most n - 1 directions vary over n images."""
    from scipy.linalg import eigh

    dim = len(gram)
    k = max(1, min(k, dim, n - 1))
    return eigh(gram, subset_by_index=[dim - k, dim - 1])[1]
