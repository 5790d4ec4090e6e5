import numpy as np
import pytest

from cilkit.errors import UserError
from cilkit.learners.statistics import JITTER, KINDS, ClassStatistics, cholesky, pack, unpack

DIM = 6


def class_features(n=40, seed=0, dim=DIM):
    random = np.random.default_rng(seed)
    return (random.normal(size=(n, dim)) @ random.normal(size=(dim, dim)) + random.normal(size=dim)).astype(np.float32)


def covariance_of(features):
    """The definition, image by image."""
    features = features.astype(np.float64)
    centred = features - features.mean(0)
    return sum(np.outer(x, x) for x in centred) / (len(features) - 1) + JITTER * np.eye(features.shape[1])


def statistics_of(kind, *counts, rank=2):
    statistics = ClassStatistics(DIM, kind, rank)
    for seed, n in enumerate(counts):
        statistics.add(class_features(n, seed))
    return statistics


def test_the_mean_and_the_unbiased_covariance_plus_jitter():
    features, statistics = class_features(), statistics_of("full", 40)
    np.testing.assert_allclose(statistics.means[0], features.astype(np.float64).mean(0), rtol=1e-12)
    np.testing.assert_allclose(statistics.covariance(0), covariance_of(features), rtol=1e-6, atol=1e-6)


def test_the_diagonal_is_kept_alone():
    covariance = statistics_of("diagonal", 40).covariance(0)
    np.testing.assert_allclose(covariance, np.diag(covariance_of(class_features()).diagonal()), rtol=1e-6)


def test_the_shared_covariance_is_pooled_by_degrees_of_freedom():
    statistics = statistics_of("shared", 40, 10, 25)
    own = [covariance_of(class_features(n, seed)) for seed, n in enumerate((40, 10, 25))]
    expected = (39 * own[0] + 9 * own[1] + 24 * own[2]) / (39 + 9 + 24)
    for label in range(3):
        np.testing.assert_allclose(statistics.covariance(label), expected, rtol=1e-5, atol=1e-6)


def test_low_rank_keeps_the_largest_directions_and_every_variance():
    whole = covariance_of(class_features())
    values, vectors = np.linalg.eigh(whole)
    best = (vectors[:, -2:] * values[-2:]) @ vectors[:, -2:].T
    expected = best + np.diag((whole - best).diagonal())
    found = statistics_of("low_rank", 40).covariance(0)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found.diagonal(), whole.diagonal(), rtol=1e-5)
    np.testing.assert_allclose(statistics_of("low_rank", 40, rank=DIM).covariance(0), whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "floats"), [("full", 3 * 21), ("low_rank", 3 * 6 * 3), ("diagonal", 3 * 6), ("shared", 21)]
)
def test_bytes_are_those_of_what_is_kept(kind, floats):
    statistics = statistics_of(kind, 9, 9, 9)
    assert statistics.bytes == 3 * 6 * 8 + 4 * floats + (8 if kind == "shared" else 0)
    arrays = statistics.state()
    assert statistics.bytes == sum(value.nbytes for value in arrays.values())


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_goes_on_where_it_was(kind):
    whole, half = statistics_of(kind, 40, 10, 25), statistics_of(kind, 40, 10)
    again = ClassStatistics(DIM, kind, 2)
    again.load(half.state())
    again.load(half.state())
    again.add(class_features(25, 2))
    state = again.state()
    assert state.keys() == whole.state().keys() and len(again) == 3
    assert all(np.array_equal(value, state[name]) for name, value in whole.state().items())


@pytest.mark.parametrize("kind", KINDS)
def test_few_or_identical_images_still_give_a_positive_definite_covariance(kind):
    for features in (class_features(n=3), np.ones((5, DIM), np.float32)):
        statistics = ClassStatistics(DIM, kind, 2)
        statistics.add(features)
        covariance = statistics.covariance(0)
        assert np.array_equal(covariance, covariance.T) and np.linalg.eigvalsh(covariance).min() > 0.5 * JITTER


def test_what_cannot_be_taken_is_one_sentence_that_names_the_class():
    statistics = ClassStatistics(DIM)
    with pytest.raises(UserError, match="'seven' has 1 image"):
        statistics.add(class_features(n=1), "seven")
    broken = class_features()
    broken[3, 2] = np.nan
    with pytest.raises(UserError, match="'crow' has features that are not finite.*lower lr"):
        statistics.add(broken, "crow")
    assert len(statistics) == 0 and not statistics.factors
    with pytest.raises(UserError, match="'huge' has no Cholesky factor"):
        statistics.add(1e30 * class_features(), "huge")
    with pytest.raises(UserError, match="rank 7 does not fit statistics of 6 features; take 1 … 6"):
        ClassStatistics(DIM, "low_rank", 7)
    with pytest.raises(UserError, match="'diagnal' are unknown.*diagonal"):
        ClassStatistics(DIM, "diagnal")


def test_a_singular_matrix_gets_more_jitter():
    factor = cholesky(np.ones((3, 3)))
    np.testing.assert_allclose(factor @ factor.T, np.ones((3, 3)), atol=1e-4)
    assert np.array_equal(cholesky(4 * np.eye(2)), 2 * np.eye(2))


def test_packing_keeps_a_lower_triangle_row_by_row():
    matrix = np.tril(np.arange(9.0).reshape(3, 3))
    assert pack(matrix).tolist() == [0, 3, 4, 6, 7, 8]
    assert np.array_equal(unpack(pack(matrix), 3), matrix)
