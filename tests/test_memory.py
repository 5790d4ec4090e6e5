"""Stores of exemplars beyond herding (which is pinned in test_learners_icarl.py)."""

import numpy as np
import pytest
import tiny
from scipy.stats import chisquare

from cilkit.learners.memory import Balanced, Reservoir


def items(n, start=0):
    return np.arange(start, start + n)[:, None]


def test_a_reservoir_keeps_each_item_with_probability_capacity_over_length():
    """Chi-square over 100 blocks of a stream of 100,000 items."""
    reservoir, random = Reservoir(10_000, 1), np.random.default_rng(0)
    for start in range(0, 100_000, 1000):
        reservoir.offer(items(1000, start), random)
    assert len(np.unique(reservoir.rows)) == len(reservoir) == 10_000
    blocks = np.bincount(reservoir.rows[:, 0] // 1000, minlength=100)
    assert chisquare(blocks).pvalue > 0.01 and abs(blocks[:50].sum() - 5000) < 200


@pytest.mark.parametrize("cut", (1, 7, 100))
def test_a_reservoir_does_not_care_how_the_stream_is_cut(cut):
    whole, parts = Reservoir(10, 1), Reservoir(10, 1)
    whole.offer(items(300), np.random.default_rng(5))
    random = np.random.default_rng(5)
    for start in range(0, 300, cut):
        parts.offer(items(300)[start : start + cut], random)
    assert np.array_equal(whole.rows, parts.rows) and whole.count == parts.count == 300


def test_a_reservoir_says_which_items_stay_and_where():
    reservoir, random = Reservoir(4, 1), np.random.default_rng(1)
    assert [part.tolist() for part in reservoir.offer(items(3), random)] == [[0, 1, 2], [0, 1, 2]]
    before = reservoir.rows.copy()
    kept, into = reservoir.offer(items(40, 100), random)
    assert np.array_equal(reservoir.rows[into], items(40, 100)[kept]) and len(set(into)) == len(into)
    others = np.setdiff1d(np.arange(3), into)
    assert np.array_equal(reservoir.rows[others], before[others])


def test_draws_hold_different_items_and_no_more_than_there_are():
    reservoir, random = Reservoir(8, 1), np.random.default_rng(2)
    assert reservoir.draw(5, random).tolist() == []
    reservoir.offer(items(6), random)
    assert sorted(reservoir.draw(9, random)) == list(range(6))
    draws = [reservoir.draw(3, random) for _ in range(600)]
    assert all(len(set(draw)) == 3 for draw in draws)
    assert chisquare(np.bincount(np.concatenate(draws), minlength=6)).pvalue > 0.01


def fill(total, seed=0, sizes=((12, 12), (12, 12), (12, 12))):
    """Class counts after each task, and the store."""
    store, random, counts, start = Balanced(total), np.random.default_rng(seed), [], 0
    images = tiny.image_set(6, 12)
    for task in sizes:
        labels = range(start, start + len(task))
        chosen = [np.flatnonzero(images.labels == label)[:size] for label, size in zip(labels, task, strict=True)]
        store.offer(images.select(np.concatenate(chosen)), random)
        counts.append([len(rows) for rows in store.rows])
        start += len(task)
    return counts, store, images


@pytest.mark.parametrize("total", (6, 10, 17, 20))
@pytest.mark.parametrize("seed", range(3))
def test_class_counts_of_a_full_store_differ_by_at_most_one(total, seed):
    for counts in fill(total, seed)[0]:
        assert sum(counts) == total and max(counts) - min(counts) <= 1


def test_small_classes_are_kept_whole_and_nothing_twice():
    counts, store, images = fill(30, sizes=((12, 3), (12, 12), (2, 12)))
    assert counts[0][1] == 3 and counts[-1][1] == 3 and counts[-1][4] == 2
    kept = store.of(images)
    assert len(np.unique(kept.index)) == len(kept) and store.bytes == len(kept) * 16 * 16 * 3
    assert np.array_equal(kept.labels, images.labels[kept.index])


def test_the_greedy_store_follows_the_paper_s_loop():
    """Literally: per class a list; take while below total / classes, and evict from the largest."""
    images, random, slow, total = tiny.image_set(6, 12), np.random.default_rng(3), {}, 20
    store, again = Balanced(total), np.random.default_rng(3)
    for classes in (range(0, 3), range(3, 6)):
        task = images.of_classes(classes)
        store.offer(task, again)
        for position in random.permutation(len(task)):
            label, place = int(task.labels[position]), int(task.index[position])
            slow.setdefault(label, [])
            if len(slow[label]) < total / len(slow):
                if sum(map(len, slow.values())) >= total:
                    largest = min(slow, key=lambda label: (-len(slow[label]), label))
                    del slow[largest][random.integers(len(slow[largest]))]
                slow[label].append(place)
    assert [rows[:, 0].tolist() for rows in store.rows] == [slow[label] for label in range(6)]


def test_stores_come_back_as_they_were():
    _, store, _ = fill(20)
    again = Balanced(20)
    again.load(store.state())
    assert all(np.array_equal(a, b) for a, b in zip(store.rows, again.rows, strict=True))
    reservoir = Reservoir(5, 2)
    reservoir.offer(np.arange(40).reshape(20, 2), np.random.default_rng(0))
    twin = Reservoir(5, 2)
    twin.load(reservoir.state())
    reservoir.offer(np.arange(40).reshape(20, 2), np.random.default_rng(1))
    twin.offer(np.arange(40).reshape(20, 2), np.random.default_rng(1))
    assert np.array_equal(reservoir.rows, twin.rows) and reservoir.count == twin.count == 40
