"""Reading ahead changes when batches are made, never which, in what order, or by how many threads."""

import threading
import time

import numpy as np
import pytest

from cilkit.data.imagesets import ImageSet
from cilkit.data.loading import in_order, prefetched


def images(n=40) -> ImageSet:
    pixels = np.arange(n * 12, dtype=np.int64).astype(np.uint8).reshape(n, 2, 2, 3)
    return ImageSet.from_arrays(pixels, np.arange(n) % 4, list("abcd"))


def cuts(n=40, size=8):
    return np.split(np.random.default_rng(0).permutation(n), n // size)


@pytest.mark.parametrize("ahead", [0, 1, 2, 9])
def test_batches_come_in_order_whatever_is_read_ahead(ahead):
    generator, at_once = np.random.default_rng(7), np.random.default_rng(7)
    some = images().select(np.arange(39, -1, -1))
    made = list(prefetched(some, cuts(), lambda x, y: (x, y, generator.random(3)), ahead))
    assert len(made) == 5
    for rows, (pixels, labels, noise) in zip(cuts(), made, strict=True):
        np.testing.assert_array_equal(pixels, some.images(rows))
        np.testing.assert_array_equal(labels, some.labels[rows])
        np.testing.assert_array_equal(noise, at_once.random(3))  # chance is drawn in order, by one thread


def test_no_more_than_asked_for_is_read_ahead_and_it_is_read_elsewhere():
    begun, threads = [], set()

    def prepare(pixels, labels):
        begun.append(len(begun))
        threads.add(threading.current_thread())
        return labels

    batches = prefetched(images(), cuts(), prepare, ahead=2)
    next(batches)
    time.sleep(0.1)  # the thread has time for more, and may not
    assert len(begun) == 3
    list(batches)
    assert len(begun) == 5 and len(threads) == 1 and threading.current_thread() not in threads
    list(prefetched(images(), cuts(), prepare, ahead=0))
    assert threading.current_thread() in threads


@pytest.mark.parametrize("ahead", [0, 2])
def test_an_error_is_raised_in_its_turn(ahead):
    def prepare(pixels, labels):
        if 13 in rows_of[len(seen)]:
            raise RuntimeError("image 13")
        seen.append(len(seen))

    rows_of, seen = cuts(), []
    bad = next(k for k, rows in enumerate(rows_of) if 13 in rows)
    batches = prefetched(images(), rows_of, prepare, ahead)
    for _ in range(bad):
        next(batches)
    with pytest.raises(RuntimeError, match="image 13"):
        next(batches)


def test_leaving_the_loop_ends_the_thread():
    before = threading.active_count()
    for _ in prefetched(images(), cuts(), lambda x, y: y, ahead=2):
        break
    batches = prefetched(images(), cuts(), lambda x, y: y, ahead=2)
    next(batches)
    batches.close()
    assert threading.active_count() == before


def test_several_workers_keep_the_order():
    def work(k):
        time.sleep(0.002 * (k % 3))
        return k * k

    assert list(in_order(work, range(30), workers=4, ahead=8)) == [k * k for k in range(30)]
