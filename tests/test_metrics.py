"""Metrics: closed forms, and the one table on which the field's toolboxes disagree."""

import math

import numpy as np
import pytest

from cilkit import metrics
from cilkit.errors import UserError

NAN = np.nan
TABLE = np.array(  # A[t, i]: rows after a task, columns the task tested
    [
        [98, NAN, NAN, NAN, NAN],
        [92, 95, NAN, NAN, NAN],
        [93, 88, 90, NAN, NAN],
        [90, 86, 94, 96, NAN],
        [88, 87, 86, 90, 93],
    ]
)


@pytest.mark.parametrize(
    ("toolbox", "forgetting", "backward_transfer"),
    [
        ("PILOT", 8.0, None),
        ("PyCIL", 8.0, None),
        ("FACIL", 8.0, None),
        ("Mammoth", 8.0, -7.0),
        ("Avalanche", 7.0, -7.0),
        ("Continuum", 8.0, -5.9),
        ("LibContinual", 5.5, -4.4),
    ],
)
def test_toolboxes_disagree_on_one_table(toolbox, forgetting, backward_transfer):
    named = metrics.TOOLBOXES[toolbox]
    assert named["forgetting"](TABLE) == pytest.approx(forgetting)
    transfer = named["backward transfer"]
    assert (transfer and transfer(TABLE)) == (backward_transfer and pytest.approx(backward_transfer))


def test_average_accuracies_of_the_table():
    assert metrics.last_accuracy_task_mean(TABLE) == pytest.approx(88.8)
    assert metrics.average_incremental_accuracy_task_mean(TABLE) == pytest.approx(92.43, abs=0.005)
    assert metrics.learning_accuracy(TABLE) == pytest.approx((98 + 95 + 90 + 96 + 93) / 5)


def test_means_over_images_weigh_tasks_by_their_test_images():
    counts = [50, 10, 10, 10, 10]  # a B50 start
    expected = (50 * 88 + 10 * (87 + 86 + 90 + 93)) / 90
    assert metrics.last_accuracy(TABLE, counts) == pytest.approx(expected)
    assert metrics.last_accuracy(TABLE, [7] * 5) == pytest.approx(88.8)
    stages = [98, (50 * 92 + 10 * 95) / 60]
    np.testing.assert_allclose(metrics.accuracy_by_stage(TABLE, counts)[:2], stages)
    assert metrics.average_incremental_accuracy(TABLE, counts) == pytest.approx(
        metrics.accuracy_by_stage(TABLE, counts).mean()
    )


def test_definitions_of_forgetting_part_where_the_last_task_brings_the_best():
    gained = np.array([[50, NAN, NAN], [40, 80, NAN], [60, 70, 90.0]])
    assert metrics.forgetting_max_before_last(gained) == pytest.approx((50 - 60 + 80 - 70) / 2)
    assert metrics.forgetting_max(gained) == pytest.approx((0 + 10) / 2)
    assert metrics.forgetting_first(gained) == pytest.approx((-10 + 10) / 2)
    assert metrics.backward_transfer_final(gained) == -metrics.forgetting_first(gained)
    assert metrics.backward_transfer_all_stages(gained) == pytest.approx((-10 + 10 - 10) / 3)


def test_what_stands_above_the_diagonal_is_never_read_and_nothing_is_changed():
    full = np.where(np.isnan(TABLE), 1000.0, TABLE)
    before = full.copy()
    for name in ("forgetting_max", "forgetting_max_before_last", "forgetting_first", "backward_transfer_all_stages"):
        function = getattr(metrics, name)
        assert function(full) == function(TABLE)
    np.testing.assert_array_equal(full, before)


def test_one_task_has_no_forgetting():
    assert math.isnan(metrics.forgetting_max([[90.0]])) and math.isnan(metrics.backward_transfer_all_stages([[90.0]]))
    assert metrics.last_accuracy([[90.0]], [10]) == 90.0


def test_bad_matrices_are_named():
    with pytest.raises(UserError, match="not square"):
        metrics.forgetting_max(TABLE[:3])
    hole = TABLE.copy()
    hole[3, 1] = NAN
    with pytest.raises(UserError, match="task 2 after task 4 is missing"):
        metrics.forgetting_max(hole)
    with pytest.raises(UserError, match="2 counts"):
        metrics.last_accuracy(TABLE, [1, 2])


def test_accuracies_from_predictions():
    labels = np.array([0, 0, 1, 1, 2, 2, 2, 2])
    predictions = np.array([0, 1, 1, 1, 2, 2, 2, 0])
    np.testing.assert_allclose(metrics.accuracy_row(predictions, labels, [0, 0, 1, 2], 3), [75, 75, NAN])
    np.testing.assert_allclose(metrics.class_accuracy(predictions, labels, 4), [50, 100, 75, NAN])


def test_within_task_predictions_choose_among_the_images_own_task():
    logits = np.array([[0.1, 0.2, 9.0, 0.0], [5.0, 4.0, 1.0, 2.0]])
    np.testing.assert_array_equal(metrics.within_task_predictions(logits, [0, 2], [0, 0, 1, 1]), [1, 3])


def test_intervals_are_student_t():
    found = metrics.mean_interval([1.0, 2.0, 3.0, 4.0])
    assert found.mean == 2.5
    assert found.half_width == pytest.approx(3.182446 * np.std([1, 2, 3, 4], ddof=1) / 2, rel=1e-6)  # t(3, 0.975)
    assert (found.low, found.high) == (2.5 - found.half_width, 2.5 + found.half_width)
    assert str(metrics.Interval(88.84, 1.26, 10)) == "88.8 ± 1.3"
    alone = metrics.mean_interval([3.0])
    assert alone.mean == 3.0 and math.isnan(alone.half_width) and str(alone) == "3.0"
    with pytest.raises(UserError, match="missing"):
        metrics.mean_interval([1.0, NAN])


def test_pairing_removes_what_the_orders_share():
    orders = np.array([10.0, 30.0, 50.0, 70.0])
    paired = metrics.paired_interval(orders + 2, orders)
    assert paired.mean == 2.0 and paired.half_width == 0.0
    with pytest.raises(UserError, match="cannot be paired"):
        metrics.paired_interval([1.0], [1.0, 2.0])


# ---------------------------------------------------------------- against a slow reference, on 200 random matrices


def slow_figures(rows, counts):
    """Every figure by loops over a list of rows, row t with t + 1 accuracies, as its definition reads."""
    T = len(rows)
    old, later = range(T - 1), [(t, i) for t in range(T) for i in range(t)]

    def stage(t, weighted):
        weights = [counts[i] if weighted else 1 for i in range(t + 1)]
        return sum(w * a for w, a in zip(weights, rows[t], strict=True)) / sum(weights)

    def mean(values):
        values = list(values)
        return sum(values) / len(values) if values else math.nan

    return {
        "last accuracy": stage(T - 1, True),
        "average incremental accuracy": mean(stage(t, True) for t in range(T)),
        "last accuracy (task mean)": stage(T - 1, False),
        "average incremental accuracy (task mean)": mean(stage(t, False) for t in range(T)),
        "forgetting (max before last)": mean(max(rows[t][i] for t in range(i, T - 1)) - rows[T - 1][i] for i in old),
        "forgetting (max)": mean(max(rows[t][i] for t in range(i, T)) - rows[T - 1][i] for i in old),
        "forgetting (first)": mean(rows[i][i] - rows[T - 1][i] for i in old),
        "backward transfer (final)": mean(rows[T - 1][i] - rows[i][i] for i in old),
        "backward transfer (all stages)": mean(rows[t][i] - rows[i][i] for t, i in later),
        "learning accuracy": mean(rows[i][i] for i in range(T)),
    }


@pytest.mark.parametrize("seed", range(200))
def test_every_figure_of_a_random_matrix_equals_its_definition(seed):
    random = np.random.default_rng(seed)
    T = int(random.integers(1, 12))
    full, counts = random.uniform(0, 100, (T, T)), random.integers(1, 500, T)
    rows = [full[t, : t + 1].tolist() for t in range(T)]
    expected, found = slow_figures(rows, counts.tolist()), metrics.figures(full, counts)
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-9, abs=1e-9, nan_ok=True), name
    assert metrics.figures(full).keys() == {n for n in expected if n not in list(expected)[:2]}
    baseline, reference = random.uniform(0, 100, T), random.uniform(0, 100, (T, T))
    if T > 1:
        ahead = sum(full[i - 1, i] - baseline[i] for i in range(1, T)) / (T - 1)
        assert metrics.forward_transfer(full, baseline) == pytest.approx(ahead)
    slow = sum(reference[k, k] - full[k, k] for k in range(T)) / T
    assert metrics.intransigence(full, reference) == pytest.approx(slow)


@pytest.mark.parametrize("seed", range(3))
def test_figures_from_predictions_equal_scikit_learn_and_torchmetrics(seed):
    import torch
    from sklearn import metrics as theirs
    from torchmetrics.functional.classification import multiclass_accuracy

    from cilkit.outputs import Scores

    random = np.random.default_rng(seed)
    logits, labels = random.normal(size=(500, 30)).astype(np.float32), random.integers(0, 30, 500)
    predicted, scores = logits.argmax(1), Scores.of(logits, labels, np.zeros(30, int))
    top = theirs.top_k_accuracy_score(labels, logits, k=5, labels=range(30))
    assert metrics.top_k_accuracy(scores.rank, 5) == pytest.approx(100 * top)
    by_class = multiclass_accuracy(torch.tensor(predicted), torch.tensor(labels), 30, average=None).numpy()
    np.testing.assert_allclose(metrics.class_accuracy(predicted, labels, 30), 100 * by_class, rtol=1e-6)
    expected = theirs.confusion_matrix(labels, predicted, labels=range(30))
    np.testing.assert_array_equal(metrics.confusion_matrix(predicted, labels, 30), expected)
    assert metrics.top_k_accuracy(scores.rank, 1) == pytest.approx(100 * theirs.accuracy_score(labels, predicted))


def test_forward_transfer_needs_the_accuracy_on_the_next_task():
    full = np.array([[90, 40, 35], [85, 92, 50], [80, 88, 94.0]])
    assert metrics.forward_transfer(full, 25.0) == pytest.approx((40 + 50) / 2 - 25)
    with pytest.raises(UserError, match="task 2 was not tested before it was learnt"):
        metrics.forward_transfer(TABLE, 10.0)
    with pytest.raises(UserError, match="not square"):
        metrics.forward_transfer(full[:2], 25.0)


def test_intransigence_is_what_the_newest_task_lacks():
    reference = np.where(np.isnan(TABLE), NAN, 99.0)
    np.testing.assert_allclose(metrics.intransigence_by_task(TABLE, reference), [1, 4, 9, 3, 6])
    with pytest.raises(UserError, match="a reference of 4 tasks does not fit 5"):
        metrics.intransigence(TABLE, reference[:4, :4])


def test_accuracy_by_task_where_the_task_does_not_follow_from_the_class():
    labels, tasks = np.array([0, 1, 0, 1]), np.array([0, 0, 2, 2])
    np.testing.assert_allclose(metrics.accuracy_by_task([0, 0, 0, 1], labels, tasks, 3), [50, NAN, 100])
