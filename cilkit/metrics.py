"""Pure functions over the accuracy matrix and over outputs, each with its formula and its source.

The accuracy matrix A is (tasks, tasks): A[t, i] is the test accuracy on task i after learning task t, NaN where i > t.
T is the number of tasks; indices count from 0 here, so that the last row is A[T-1]. Results are in the unit of A
(percent throughout this workbook). Names say which of the field's definitions is meant: five toolboxes give one table
up to three values of "forgetting" and three of "BWT" (see TOOLBOXES, pinned in a test). Nothing changes its argument.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from cilkit.errors import UserError

# ---------------------------------------------------------------- average accuracies


def accuracy_by_stage(matrix, counts=None) -> np.ndarray:
    """Accuracy over all classes seen, after each task: float64 (T,).

    counts: test images a task, (T,): mean over images (PILOT and PyCIL `total`; read). Without it: the mean over tasks
    (RanPAC `ave_acc`, FACIL `avg_accs`; read). The two differ where tasks differ in size.
    """
    matrix = _checked(matrix)
    weights = np.ones(len(matrix)) if counts is None else np.asarray(counts, float)
    if len(weights) != len(matrix):
        raise UserError(f"{len(weights)} counts of test images do not fit {len(matrix)} tasks; give one a task.")
    return np.array([np.average(matrix[t, : t + 1], weights=weights[: t + 1]) for t in range(len(matrix))])


def last_accuracy(matrix, counts) -> float:
    """Accuracy on all test images after the last task: sum_i n_i A[T-1, i] / sum_i n_i."""
    return float(accuracy_by_stage(matrix, counts)[-1])


def last_accuracy_task_mean(matrix) -> float:
    """Mean over tasks of the accuracy after the last task: (1/T) sum_i A[T-1, i]. Lopez-Paz and Ranzato 2017, ACC."""
    return float(accuracy_by_stage(matrix)[-1])


def average_incremental_accuracy(matrix, counts) -> float:
    """Mean over stages, the first included, of the accuracy on all images seen so far. Rebuffi et al. 2017 (iCaRL)."""
    return float(accuracy_by_stage(matrix, counts).mean())


def average_incremental_accuracy_task_mean(matrix) -> float:
    """Mean over stages of the mean over tasks: (1/T) sum_t (1/(t+1)) sum_{i<=t} A[t, i]."""
    return float(accuracy_by_stage(matrix).mean())


def learning_accuracy(matrix) -> float:
    """How well each task is learnt when it is new (plasticity): (1/T) sum_i A[i, i]."""
    return float(np.diag(_checked(matrix)).mean())


# ---------------------------------------------------------------- forgetting and backward transfer


def forgetting_max_before_last_by_task(matrix) -> np.ndarray:
    """f_i = max_{i <= t < T-1} A[t, i] - A[T-1, i]: float64 (T-1,). Negative where the last task brought the best."""
    matrix = _checked(matrix)
    return np.nanmax(matrix[:-1, :-1], axis=0) - matrix[-1, :-1] if len(matrix) > 1 else np.zeros(0)


def forgetting_max_before_last(matrix) -> float:
    """Chaudhry et al. 2018, as PILOT, PyCIL and FACIL use it: the mean of f_i over all tasks but the last."""
    return _mean(forgetting_max_before_last_by_task(matrix))


def forgetting_max_by_task(matrix) -> np.ndarray:
    """max_t A[t, i] - A[T-1, i], the last stage included in the maximum, so never negative: float64 (T-1,)."""
    matrix = _checked(matrix)
    return np.nanmax(matrix[:, :-1], axis=0) - matrix[-1, :-1] if len(matrix) > 1 else np.zeros(0)


def forgetting_max(matrix) -> float:
    """The mean of `forgetting_max_by_task`: what gains in the last task cannot compensate. Mammoth's maximum."""
    return _mean(forgetting_max_by_task(matrix))


def forgetting_first_by_task(matrix) -> np.ndarray:
    """A[i, i] - A[T-1, i], from when the task was new to the end: float64 (T-1,)."""
    matrix = _checked(matrix)
    return np.diag(matrix)[:-1] - matrix[-1, :-1]


def forgetting_first(matrix) -> float:
    """The mean of `forgetting_first_by_task`: Avalanche's forgetting, the negative of `backward_transfer_final`."""
    return _mean(forgetting_first_by_task(matrix))


def backward_transfer_final(matrix) -> float:
    """(1/(T-1)) sum_{i<T-1} (A[T-1, i] - A[i, i]). Lopez-Paz and Ranzato 2017 (GEM), BWT; Mammoth and Avalanche."""
    return -forgetting_first(matrix)


def backward_transfer_all_stages(matrix) -> float:
    """(2/(T(T-1))) sum_{t>i} (A[t, i] - A[i, i]): every later stage counts. Diaz-Rodriguez et al. 2018; Continuum."""
    matrix = _checked(matrix)
    changes = [matrix[t, i] - matrix[i, i] for t in range(len(matrix)) for i in range(t)]
    return _mean(np.array(changes))


def forgetting_libcontinual(matrix) -> float:
    """As LibContinual computes it: first minus last without the newest old task, yet divided by T-1 (read)."""
    lost = forgetting_first_by_task(matrix)
    return float(lost[:-1].sum() / len(lost)) if len(lost) else float("nan")


def backward_transfer_libcontinual(matrix) -> float:
    """As LibContinual: the newest old task is left out of every stage, yet T(T-1)/2 terms are divided by.

    Rebuilt from its value on the table of the test (-4.4), where this reading fits.
    """
    matrix = _checked(matrix)
    changes = [matrix[t, i] - matrix[i, i] for t in range(len(matrix)) for i in range(t - 1)]
    pairs = len(matrix) * (len(matrix) - 1) / 2
    return float(np.sum(changes) / pairs) if pairs else float("nan")


# What each toolbox prints under these two words; None where it has no such number.
TOOLBOXES: dict[str, dict[str, Callable | None]] = {
    "PILOT": {"forgetting": forgetting_max_before_last, "backward transfer": None},
    "PyCIL": {"forgetting": forgetting_max_before_last, "backward transfer": None},
    "FACIL": {"forgetting": forgetting_max_before_last, "backward transfer": None},
    "Mammoth": {"forgetting": forgetting_max, "backward transfer": backward_transfer_final},
    "Avalanche": {"forgetting": forgetting_first, "backward transfer": backward_transfer_final},
    "Continuum": {"forgetting": forgetting_max_before_last, "backward transfer": backward_transfer_all_stages},
    "LibContinual": {"forgetting": forgetting_libcontinual, "backward transfer": backward_transfer_libcontinual},
}


def figures(matrix, counts=None) -> dict[str, float]:
    """All of the above by unambiguous name; the means over images need `counts`, the test images of each task."""
    means = {} if counts is None else {
        "last accuracy": last_accuracy(matrix, counts),
        "average incremental accuracy": average_incremental_accuracy(matrix, counts),
    }  # fmt: skip
    return means | {
        "last accuracy (task mean)": last_accuracy_task_mean(matrix),
        "average incremental accuracy (task mean)": average_incremental_accuracy_task_mean(matrix),
        "forgetting (max before last)": forgetting_max_before_last(matrix),
        "forgetting (max)": forgetting_max(matrix),
        "forgetting (first)": forgetting_first(matrix),
        "backward transfer (final)": backward_transfer_final(matrix),
        "backward transfer (all stages)": backward_transfer_all_stages(matrix),
        "learning accuracy": learning_accuracy(matrix),
    }


# ---------------------------------------------------------------- against another run


def forward_transfer(full_matrix, baseline) -> float:
    """(1/(T-1)) sum_{i>0} (A[i-1, i] - b_i): what task i owes to the tasks before it. Lopez-Paz and Ranzato 2017, FWT.

    full_matrix: (tasks, tasks) with the accuracies on the next task, which exist where all tasks share their labels
    (domain-incremental). Elsewhere `cilkit.lookahead` asks the same of the representation.
    baseline: b_i, one number or (tasks,): accuracy at random initialisation, as in the paper, or chance.
    """
    full_matrix = np.array(full_matrix, float)
    if full_matrix.ndim != 2 or full_matrix.shape[0] != full_matrix.shape[1]:
        raise UserError(f"an accuracy matrix of shape {full_matrix.shape} is not square; expected (tasks, tasks).")
    ahead = np.diag(full_matrix, 1)  # A[i-1, i], (tasks - 1,)
    if np.isnan(ahead).any():
        raise UserError(
            f"task {int(np.isnan(ahead).argmax()) + 2} was not tested before it was learnt, so there is no forward "
            "transfer; it needs tasks that share their labels (domain-incremental)."
        )
    return _mean(ahead - np.broadcast_to(np.asarray(baseline, float), len(full_matrix))[1:])


def intransigence_by_task(matrix, reference) -> np.ndarray:
    """I_k = A*[k, k] - A[k, k]: float64 (T,), what task k could have been had all earlier images still been there.

    reference: the accuracy matrix of the same stream trained cumulatively. Chaudhry et al. 2018 (formula remembered).
    """
    matrix, reference = _checked(matrix), _checked(reference)
    if len(matrix) != len(reference):
        raise UserError(
            f"a reference of {len(reference)} tasks does not fit {len(matrix)}; train it on the same tasks."
        )
    return np.diag(reference) - np.diag(matrix)


def intransigence(matrix, reference) -> float:
    """The mean of `intransigence_by_task`; negative where the stream's learner is better at its newest task."""
    return _mean(intransigence_by_task(matrix, reference))


# ---------------------------------------------------------------- from predictions


def accuracy_by_task(predictions, labels, tasks, n_tasks: int) -> np.ndarray:
    """One row of the accuracy matrix, in percent: float64 (n_tasks,), NaN for tasks without images here.

    tasks: int64 (n,), the task each image belongs to.
    """
    return 100 * _group_mean(np.asarray(predictions) == np.asarray(labels), np.asarray(tasks), n_tasks)


def accuracy_row(predictions, labels, task_of_class, n_tasks: int) -> np.ndarray:
    """`accuracy_by_task` where the class says the task (class-incremental)."""
    return accuracy_by_task(predictions, labels, np.asarray(task_of_class)[np.asarray(labels)], n_tasks)


def top_k_accuracy(rank, k: int = 5) -> float:
    """Share of images, in percent, whose true class is among the k largest logits. rank: `outputs.Scores.rank`."""
    return float(100 * np.mean(np.asarray(rank) < k))


def class_accuracy(predictions, labels, n_classes: int) -> np.ndarray:
    """Accuracy on each class in percent: float64 (n_classes,), NaN for classes without test images."""
    return 100 * _group_mean(np.asarray(predictions) == np.asarray(labels), np.asarray(labels), n_classes)


def confusion_matrix(predictions, labels, n_classes: int) -> np.ndarray:
    """Counts, int64 (n_classes, n_classes): rows the true class, columns the predicted one."""
    cells = np.asarray(labels) * n_classes + np.asarray(predictions)
    return np.bincount(cells, minlength=n_classes**2).reshape(n_classes, n_classes)


def within_task_predictions(logits, labels, task_of_class) -> np.ndarray:
    """Predictions when the task of each image is known (task-incremental): int64 (n,). logits: (n, seen)."""
    task_of_class = np.asarray(task_of_class)
    allowed = task_of_class[None, : logits.shape[1]] == task_of_class[np.asarray(labels)][:, None]  # (n, seen)
    return np.where(allowed, logits, -np.inf).argmax(1)


# ---------------------------------------------------------------- over class orders


@dataclass(frozen=True)
class Interval:
    """A mean with its two-sided t interval; `half_width` is NaN for fewer than two values."""

    mean: float
    half_width: float
    n: int
    level: float = 0.95

    @property
    def low(self) -> float:
        return self.mean - self.half_width

    @property
    def high(self) -> float:
        return self.mean + self.half_width

    def __str__(self) -> str:
        return f"{self.mean:.1f}" if np.isnan(self.half_width) else f"{self.mean:.1f} ± {self.half_width:.1f}"


def mean_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """Mean and t interval: half width t_{n-1, (1+level)/2} s / sqrt(n), with s the sample standard deviation."""
    values = np.asarray(values, float)
    if values.ndim != 1 or not len(values) or np.isnan(values).any():
        raise UserError(f"values {values.tolist()} have no mean; give one or more numbers, none of them missing.")
    half_width = float("nan")
    if len(values) > 1:
        from scipy.special import stdtrit

        half_width = float(stdtrit(len(values) - 1, (1 + level) / 2) * values.std(ddof=1) / np.sqrt(len(values)))
    return Interval(float(values.mean()), half_width, len(values), level)


def paired_interval(a: Sequence[float], b: Sequence[float], level: float = 0.95) -> Interval:
    """`mean_interval` of a - b: two arms on the same class orders, given in the same order."""
    if len(a) != len(b):
        raise UserError(f"{len(a)} values cannot be paired with {len(b)}; give both arms on the same class orders.")
    return mean_interval(np.asarray(a, float) - np.asarray(b, float), level)


def wilcoxon_p(differences: Sequence[float]) -> float:
    """Two-sided p of Wilcoxon's signed ranks, that paired differences are symmetric about 0; NaN without any but 0."""
    from scipy.stats import wilcoxon

    values = np.asarray(differences, float)
    return float(wilcoxon(values).pvalue) if len(values) and values.any() else float("nan")


def sign_test_p(differences: Sequence[float]) -> float:
    """Two-sided p of the sign test, that a paired difference is as often above 0 as below; NaN without any but 0."""
    from scipy.stats import binomtest

    values = np.asarray(differences, float)
    above, n = int((values > 0).sum()), int((values != 0).sum())
    return float(binomtest(above, n).pvalue) if n else float("nan")


def spearman(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """Spearman's rank correlation and its two-sided p; NaN where one of the two does not vary.

    Up to 8 pairs p is the share of all orders of y whose correlation is at least as far from 0 (exact); above, scipy's
    t approximation, which calls a perfect correlation of any three pairs certain.
    """
    from itertools import permutations

    from scipy.stats import rankdata, spearmanr

    x, y = np.asarray(x, float), np.asarray(y, float)
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan"), float("nan")
    if len(x) > 8:
        found = spearmanr(x, y)
        return float(found.statistic), float(found.pvalue)
    a, b = (ranks - ranks.mean() for ranks in (rankdata(x), rankdata(y)))
    products = np.array(list(permutations(b))) @ a  # (n!,), each over one constant
    return float(a @ b / np.sqrt(a @ a * (b @ b))), float(np.mean(np.abs(products) >= abs(a @ b) - 1e-9))


def holm(p_values: Sequence[float]) -> np.ndarray:
    """p values corrected for there being several, float64 (n,): max over smaller p_(i) of (m - i) p_(i), at most 1.

    Holm 1979. p_(0) <= p_(1) <= … are the m values that are not NaN, which stay NaN and do not count.
    """
    p_values = np.asarray(p_values, float)
    found, order = np.full(len(p_values), np.nan), np.argsort(p_values)  # NaN comes last
    order = order[: int((~np.isnan(p_values)).sum())]
    found[order] = np.minimum(1, np.maximum.accumulate(p_values[order] * np.arange(len(order), 0, -1)))
    return found


# ---------------------------------------------------------------- helpers


def _checked(matrix) -> np.ndarray:
    """A float64 copy with NaN above the diagonal, whatever stood there."""
    matrix = np.array(matrix, float)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not len(matrix):
        raise UserError(f"an accuracy matrix of shape {matrix.shape} is not square; expected (tasks, tasks).")
    matrix[np.triu_indices(len(matrix), 1)] = np.nan
    if np.isnan(matrix[np.tril_indices(len(matrix))]).any():
        t, i = np.argwhere(np.isnan(matrix) & np.tri(len(matrix), dtype=bool))[0]
        raise UserError(f"the accuracy on task {i + 1} after task {t + 1} is missing; the lower triangle must be full.")
    return matrix


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")


def _group_mean(correct: np.ndarray, groups: np.ndarray, n_groups: int) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return np.bincount(groups, correct, minlength=n_groups) / np.bincount(groups, minlength=n_groups)
