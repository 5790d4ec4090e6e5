"""Classifiers and distances on features (n, dim) or flattened pixels: what an image set or a backbone lets one see.

All data at once, no stream: these are the reference rows that stand beside every learner. Accuracies in percent.
"""

from typing import TYPE_CHECKING

import numpy as np

from cilkit import fidelity
from cilkit.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

RIDGES = (0.01, 0.1, 1.0)  # of the linear probe: inverse strengths C among which held-out training data choose


def probe_scores(train, train_labels, test, test_labels, linear: bool = True) -> dict[str, float]:
    """Accuracy of nearest class mean, shrinkage LDA and, with `linear`, a linear probe, trained on all classes."""
    data = _checked(train, train_labels), np.asarray(train_labels), _checked(test, test_labels)
    predictions = {"nearest class mean": nearest_class_mean(*data), "shrinkage LDA": shrinkage_lda(*data)}
    if linear:
        predictions["linear probe"] = linear_probe(*data)
    return {name: float(100 * np.mean(predicted == test_labels)) for name, predicted in predictions.items()}


def nearest_class_mean(train, labels, test) -> np.ndarray:
    """The class whose mean training feature is nearest (Euclidean): (n_test,)."""
    classes, means = _class_means(train, labels)
    distances = (means**2).sum(1) - 2 * test @ means.T  # (n_test, classes), up to |x|^2
    return classes[distances.argmin(1)]


def shrinkage_lda(train, labels, test) -> np.ndarray:
    """Linear discriminant analysis, equal priors, pooled covariance shrunk towards c I (Ledoit and Wolf 2004)."""
    from sklearn.covariance import ledoit_wolf

    classes, means = _class_means(train, labels)
    covariance, _ = ledoit_wolf(train - means[np.searchsorted(classes, labels)], assume_centered=True)
    weights = np.linalg.solve(covariance, means.T)  # (dim, classes)
    scores = test @ weights - 0.5 * (means.T * weights).sum(0)
    return classes[scores.argmax(1)]


def linear_probe(train, labels, test, seed: int = 0) -> np.ndarray:
    """Multinomial logistic regression on standardised features: (n_test,).

    Its strength is chosen on a fifth of the training features, then it is trained on all of them.
    """
    from sklearn.linear_model import LogisticRegression

    centre, scale = train.mean(0), train.std(0) + 1e-8
    train, test = (train - centre) / scale, (test - centre) / scale
    order = np.random.default_rng(seed).permutation(len(train))
    held, kept = order[: len(order) // 5], order[len(order) // 5 :]

    def fitted(strength: float, rows):
        return LogisticRegression(C=strength, max_iter=500).fit(train[rows], labels[rows])

    best = max(RIDGES, key=lambda strength: fitted(strength, kept).score(train[held], labels[held]))
    return fitted(best, order).predict(test)


# ---------------------------------------------------------------- real against synthetic


def domain_gap(real, synthetic, seed: int = 0) -> dict[str, float]:
    """How far apart two sets of features (n, dim) and (m, dim) lie.

    frechet, kernel:    the distances called FID and KID in Inception features, see `cilkit.fidelity`; comparable only
                        between sets of one size on one backbone.
    precision, recall:  share of synthetic images among the real ones, and of real ones among the synthetic (0 … 1).
    mean_shift:         |m1 - m2| over the root mean square distance of real features to their mean.
    variance_ratio:     tr C2 / tr C1: below 1, the synthetic images vary less.
    telling_them_apart: accuracy in percent of shrinkage LDA on the unseen half; 50 = cannot be told apart.
    """
    real, synthetic = _checked(real), _checked(synthetic)
    precision, recall = fidelity.precision_recall(real, synthetic)
    spread = real.var(0, ddof=1).sum()
    return {
        "frechet": fidelity.frechet_distance(real, synthetic),
        "kernel": fidelity.kernel_distance(real, synthetic, seed=seed)[0],
        "precision": precision,
        "recall": recall,
        "mean_shift": float(np.linalg.norm(real.mean(0) - synthetic.mean(0)) / np.sqrt(spread)),
        "variance_ratio": float(synthetic.var(0, ddof=1).sum() / spread),
        "telling_them_apart": _telling_apart(real, synthetic, seed),
    }


def projection(real, synthetic) -> "pd.DataFrame":
    """The two principal directions of the real features: columns x, y, set ("real" or "synthetic"), a row an image."""
    import pandas as pd

    real, synthetic = _checked(real), _checked(synthetic)
    _, _, directions = np.linalg.svd(real - real.mean(0), full_matrices=False)
    points = (np.concatenate([real, synthetic]) - real.mean(0)) @ directions[:2].T  # (n, 2)
    names = np.repeat(["real", "synthetic"], [len(real), len(synthetic)])
    return pd.DataFrame({"x": points[:, 0], "y": points[:, 1], "set": names})


def image_statistics(images: np.ndarray) -> "pd.DataFrame":
    """Simple figures of uint8 images (n, h, w, 3), a row an image, all in 0 … 1: no backbone needed.

    brightness: mean; contrast: standard deviation of the grey values; colourfulness: mean range over the channels;
    edges: mean absolute difference of neighbouring grey values.
    """
    import pandas as pd

    pixels = images.astype(np.float32) / 255
    grey = pixels.mean(3)  # (n, h, w)
    edges = (np.abs(np.diff(grey, axis=1)).mean((1, 2)) + np.abs(np.diff(grey, axis=2)).mean((1, 2))) / 2
    columns = {"brightness": grey.mean((1, 2)), "contrast": grey.std((1, 2))}
    return pd.DataFrame(columns | {"colourfulness": np.ptp(pixels, axis=3).mean((1, 2)), "edges": edges})


def _telling_apart(real, synthetic, seed: int) -> float:
    random = np.random.default_rng(seed)
    size = min(len(real), len(synthetic))
    halves = [points[random.permutation(len(points))[:size]] for points in (real, synthetic)]
    features, labels = np.concatenate(halves), np.repeat([0, 1], size)
    seen = np.tile(np.arange(size) < size // 2, 2)
    predicted = shrinkage_lda(features[seen], labels[seen], features[~seen])
    return float(100 * np.mean(predicted == labels[~seen]))


def _class_means(train, labels) -> tuple[np.ndarray, np.ndarray]:
    classes = np.unique(labels)
    return classes, np.stack([train[labels == c].mean(0) for c in classes])


def _checked(features, labels=None) -> np.ndarray:
    features = np.asarray(features, float)
    if features.ndim != 2 or len(features) < 2:
        raise UserError(f"features of shape {features.shape} are not (n, dim) with n of at least 2.")
    if labels is not None and len(labels) != len(features):
        raise UserError(f"{len(features)} features came with {len(labels)} labels; give one label a feature.")
    return features
