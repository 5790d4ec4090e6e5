"""Is a head as sure as it is right? From `outputs.Scores`, so from whole logits and from compact outputs alike.

p are the softmax probabilities over the classes seen, whatever the head's logits are (a nearest-mean head's are
negative distances, and say how sure it is only up to their scale). The confidence is p of the predicted class.
"""

from typing import TYPE_CHECKING

import numpy as np

from cilkit.errors import UserError
from cilkit.outputs import Scores

if TYPE_CHECKING:
    import pandas as pd

BINS = 15  # Guo et al. 2017


def expected_calibration_error(scores: Scores, bins: int = BINS, binning: str = "width") -> float:
    """sum_b (n_b / n) |accuracy_b - mean confidence_b| over bins of the confidence, in percentage points.

    binning: "width", bins [b/B, (b+1)/B), the last one closed (Guo et al. 2017, as torchmetrics); "mass",
    bins of equally many images (Nguyen and O'Connor 2015), which leaves no bin nearly empty. Name it with the figure.
    """
    confidence, correct = scores.confidence, scores.correct
    surplus = np.bincount(_bins(confidence, bins, binning), correct - confidence)  # n_b (accuracy_b - confidence_b)
    return float(100 * np.abs(surplus).sum() / len(scores))


def reliability(scores: Scores, bins: int = BINS, binning: str = "width") -> "pd.DataFrame":
    """A row a bin that holds images: images, and in percent its low and high end, mean confidence and accuracy."""
    import pandas as pd

    confidence, correct = scores.confidence, scores.correct
    place = _bins(confidence, bins, binning)
    groups = pd.DataFrame({"place": place, "confidence": confidence, "correct": correct}).groupby("place")
    table = pd.DataFrame({"images": groups.size(), "confidence": 100 * groups["confidence"].mean()})
    table["accuracy"] = 100 * groups["correct"].mean()
    if binning == "width":
        edges = np.linspace(0, 1, bins + 1)
        low, high = edges[table.index], edges[table.index + 1]
    else:
        low, high = groups["confidence"].min(), groups["confidence"].max()
    table.insert(0, "low", 100 * low)
    table.insert(1, "high", 100 * high)
    return table.reset_index(drop=True)


def negative_log_likelihood(scores: Scores) -> float:
    """Mean of -log p(true class), in nats."""
    return float(np.mean(scores.log_sum_exp - scores.true_logit))


def brier_score(scores: Scores) -> float:
    """Mean over images of sum_c (p_c - [c is true])^2, between 0 and 2. Brier 1950."""
    return float(np.mean(scores.square_sum - 2 * scores.true_probability + 1))


def _bins(confidence: np.ndarray, bins: int, binning: str) -> np.ndarray:
    """The bin of each image, int64 (n,) from 0."""
    if not len(confidence):
        raise UserError("the calibration of no images is not defined; give outputs that hold some.")
    if binning == "width":
        edges = np.linspace(0, 1, bins + 1)
        return np.clip(np.searchsorted(edges, confidence, side="right") - 1, 0, bins - 1)
    if binning == "mass":
        order = np.argsort(confidence, kind="stable")
        place = np.empty(len(order), np.int64)
        place[order] = np.arange(len(order)) * bins // len(order)
        return place
    raise UserError(f"binning {binning!r} is unknown; take 'width' (equally wide) or 'mass' (equally full).")
