"""Calibration: equal to torchmetrics, to scikit-learn and to the formulas written out."""

import numpy as np
import pytest

from cilkit import calibration
from cilkit.errors import UserError
from cilkit.outputs import Scores


def case(seed, n=400, n_classes=12, scale=2.0):
    random = np.random.default_rng(seed)
    logits = (scale * random.normal(size=(n, n_classes))).astype(np.float32)
    labels = np.where(random.random(n) < 0.5, logits.argmax(1), random.integers(0, n_classes, n))
    p = np.exp(logits.astype(float))
    return logits, labels, p / p.sum(1, keepdims=True), Scores.of(logits, labels, np.zeros(n_classes, int))


@pytest.mark.parametrize("seed", range(5))
def test_equal_to_torchmetrics_and_scikit_learn(seed):
    import torch
    from sklearn.metrics import log_loss
    from torchmetrics.functional.classification import multiclass_calibration_error

    _, labels, p, scores = case(seed)
    theirs = multiclass_calibration_error(torch.tensor(p), torch.tensor(labels), num_classes=12, n_bins=15, norm="l1")
    assert calibration.expected_calibration_error(scores) == pytest.approx(100 * float(theirs), abs=1e-4)
    assert calibration.negative_log_likelihood(scores) == pytest.approx(log_loss(labels, p, labels=range(12)), rel=1e-9)


@pytest.mark.parametrize("binning", ["width", "mass"])
def test_equal_to_the_sum_over_bins_written_out(binning):
    _, labels, p, scores = case(7)
    confidence, correct = p.max(1), p.argmax(1) == labels
    if binning == "width":
        bins = [np.flatnonzero((confidence >= b / 10) & (confidence < (b + 1) / 10)) for b in range(10)]
    else:
        bins = np.array_split(np.argsort(confidence, kind="stable"), 10)  # 400 images: 40 in each
    slow = sum(len(b) * abs(correct[b].mean() - confidence[b].mean()) for b in bins if len(b)) / len(labels)
    assert calibration.expected_calibration_error(scores, 10, binning) == pytest.approx(100 * slow)
    table = calibration.reliability(scores, 10, binning)
    assert table["images"].sum() == 400 and table["images"].tolist() == [len(b) for b in bins if len(b)]
    assert (table["confidence"].between(table["low"] - 1e-9, table["high"] + 1e-9)).all()


def test_brier_score_is_the_squared_distance_to_the_truth():
    _, labels, p, scores = case(3)
    truth = np.eye(12)[labels]
    assert calibration.brier_score(scores) == pytest.approx(((p - truth) ** 2).sum(1).mean())


def test_closed_forms():
    sure = Scores.of(
        np.array([[100.0, 0], [100, 0]], np.float32), np.array([0, 1]), [0, 0]
    )  # sure, right half the time
    assert calibration.expected_calibration_error(sure) == pytest.approx(50)
    assert calibration.brier_score(sure) == pytest.approx(1.0)  # (0 + 2) / 2
    assert calibration.negative_log_likelihood(sure) == pytest.approx(50)
    clueless = Scores.of(np.zeros((4, 4), np.float32), np.arange(4), [0] * 4)
    assert calibration.expected_calibration_error(clueless) == pytest.approx(0)
    assert calibration.negative_log_likelihood(clueless) == pytest.approx(np.log(4))


def test_bad_input_is_named():
    scores = case(0)[3]
    with pytest.raises(UserError, match="binning 'equal' is unknown"):
        calibration.expected_calibration_error(scores, binning="equal")
    with pytest.raises(UserError, match="no images"):
        calibration.reliability(Scores.of(np.zeros((0, 3), np.float32), np.zeros(0, int), [0, 0, 0]))
