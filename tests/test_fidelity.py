"""Distances between real and painted images: closed forms, and equality with torchmetrics on the same features."""

import numpy as np
import pytest
import torch

from cilkit import fidelity
from cilkit.errors import UserError


class Flat(torch.nn.Module):
    """Pixels as features, so that torchmetrics computes on what we give it."""

    num_features = 12

    def forward(self, pixels):
        return pixels.reshape(len(pixels), -1).double()


@pytest.fixture(scope="module")
def sides():
    rng = np.random.default_rng(0)
    return rng.normal(size=(60, 12)), rng.normal(0.5, 1.3, size=(60, 12))


def as_images(features):
    return torch.from_numpy(features.reshape(-1, 3, 2, 2))


def test_frechet_distance_is_torchmetrics(sides):
    from torchmetrics.image.fid import FrechetInceptionDistance

    theirs = FrechetInceptionDistance(feature=Flat(), normalize=False, input_img_size=(3, 2, 2)).set_dtype(
        torch.float64
    )
    theirs.update(as_images(sides[0]), real=True)
    theirs.update(as_images(sides[1]), real=False)
    assert fidelity.frechet_distance(*sides) == pytest.approx(float(theirs.compute()), rel=1e-6)


def test_frechet_distance_of_known_gaussians():
    rng = np.random.default_rng(1)
    points = rng.normal(size=(500, 3))
    whitened = (points - points.mean(0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(points.T))).T  # mean 0, covariance I
    moved = 2 * whitened + np.array([3.0, 0.0, 4.0])  # mean (3, 0, 4), covariance 4 I
    assert fidelity.frechet_distance(whitened, moved) == pytest.approx(25 + 3 * (2 - 1) ** 2)
    assert fidelity.frechet_distance(whitened, whitened) == pytest.approx(0, abs=1e-9)


def test_frechet_distance_where_images_are_fewer_than_features():
    rng = np.random.default_rng(2)
    few = rng.normal(size=(5, 40))
    assert fidelity.frechet_distance(few, few) == pytest.approx(0, abs=1e-6)
    assert fidelity.frechet_distance(few, few + 1) == pytest.approx(40, rel=1e-6)


def test_kernel_distance_is_the_literal_double_sum(sides):
    real, fake = (side[:20] for side in sides)
    kernel = lambda x, y: (x @ y / 12 + 1) ** 3  # noqa: E731
    inside = [np.mean([kernel(x, y) for i, x in enumerate(s) for j, y in enumerate(s) if i != j]) for s in (real, fake)]
    across = np.mean([kernel(x, y) for x in real for y in fake])
    found, deviation = fidelity.kernel_distance(real, fake, subsets=3, size=20)
    assert found == pytest.approx(sum(inside) - 2 * across) and deviation == pytest.approx(0, abs=1e-9)


def test_kernel_distance_is_torchmetrics_on_all_images(sides):
    from torchmetrics.image.kid import KernelInceptionDistance

    theirs = KernelInceptionDistance(feature=Flat(), subsets=1, subset_size=60, normalize=False)
    theirs.update(as_images(sides[0]), real=True)
    theirs.update(as_images(sides[1]), real=False)
    assert fidelity.kernel_distance(*sides, subsets=1, size=60)[0] == pytest.approx(
        float(theirs.compute()[0]), rel=1e-5
    )


def test_kernel_distance_is_not_biased_by_few_images():
    rng = np.random.default_rng(3)
    same = [fidelity.kernel_distance(*rng.normal(size=(2, 30, 8)), subsets=1)[0] for _ in range(300)]
    assert abs(np.mean(same)) < 4 * np.std(same) / np.sqrt(len(same))


def literal_precision(real, fake, k):
    def far(a, b):
        return np.linalg.norm(a - b)

    reach = [sorted(far(a, b) for b in real)[k] for a in real]
    return np.mean([any(far(f, r) <= d + 1e-12 for r, d in zip(real, reach, strict=True)) for f in fake])


@pytest.mark.parametrize("k", [1, 3])
def test_precision_and_recall_are_the_literal_definition(sides, k, monkeypatch):
    monkeypatch.setattr(fidelity, "PAIRS", 300)
    real, fake = sides[0][:, :2], sides[1][:, :2]
    expected = literal_precision(real, fake, k), literal_precision(fake, real, k)
    assert fidelity.precision_recall(real, fake, k) == pytest.approx(expected)


def test_a_generator_that_paints_one_kind_only_has_precision_without_recall():
    rng = np.random.default_rng(4)
    real = np.concatenate([rng.normal(0, 0.1, (50, 2)), rng.normal(10, 0.1, (50, 2))])
    precision, recall = fidelity.precision_recall(real, rng.normal(0, 0.05, (50, 2)))
    assert precision > 0.9 and recall <= 0.5


def test_bad_input(sides):
    with pytest.raises(UserError, match="12 and 11 numbers"):
        fidelity.frechet_distance(sides[0], sides[1][:, :11])
    with pytest.raises(UserError, match="3 images are too few"):
        fidelity.precision_recall(sides[0][:3], sides[1])
    with pytest.raises(UserError, match="painted images are not all finite"):
        fidelity.frechet_distance(sides[0], np.full((60, 12), np.nan))
