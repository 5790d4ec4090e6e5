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
