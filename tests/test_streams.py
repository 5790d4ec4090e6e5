"""Class orders and streams: the papers' orders, and no image or class in the wrong task."""

import numpy as np
import pytest

from cilkit.data.benchmarks import Benchmark
from cilkit.data.shards import ImageSet
from cilkit.data.streams import SEEDS, Stream, class_order, order_seed
from cilkit.errors import UserError

NAMES = [f"class {c}" for c in range(10)]


def image_set(per_class):
    labels = np.tile(np.arange(10), per_class)
    images = np.zeros((len(labels), 4, 4, 3), np.uint8)
    images[:, 0, 0, 0] = labels  # the benchmark's class, readable from the pixels
    return ImageSet.from_arrays(images, labels, NAMES)


@pytest.fixture
def benchmark():
    return Benchmark("ten", image_set(6), image_set(3))


@pytest.mark.parametrize(
    ("n", "seed", "first"),
    [
        (100, 1993, [68, 56, 78, 8, 23, 84, 90, 65, 74, 76]),
        (100, 1996, [35, 18, 40, 85, 63]),
        (100, 1997, [88, 77, 36, 54, 92]),
        (200, 1993, [168, 136, 51, 9, 183]),
        (196, 1993, [59, 134, 162, 9, 42]),
    ],
)
def test_class_orders_are_those_of_the_papers(n, seed, first):
    order = class_order(n, seed)
    assert order[: len(first)].tolist() == first
    assert sorted(order) == list(range(n))


def test_order_seeds_follow_the_papers_list():
    assert SEEDS == (1993, 1996, 1997, 1998, 1999, 2000, 2001, 2002, 2003, 2004)
    assert order_seed(2) == 1997 and order_seed(3) == 1998
    assert class_order(4, None).tolist() == [0, 1, 2, 3]


def test_tasks_partition_the_classes_and_carry_stream_labels(benchmark):
    stream = Stream(benchmark, order_seed=1993, increments=2)
    assert len(stream) == 5 and stream.n_classes == 10
    assert stream.task_of_class.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    for task in stream:
        assert set(task.train.labels) == set(task.classes) and task.seen == task.classes.stop
        own = task.train.images()[:, 0, 0, 0]
        np.testing.assert_array_equal(own, stream.order[task.train.labels])
        assert [stream.class_names[c] for c in task.classes] == [NAMES[c] for c in stream.order[list(task.classes)]]
        test = stream.test_after(task)
        assert set(test.labels) == set(range(task.seen))
        np.testing.assert_array_equal(benchmark.test.labels[test.index], stream.order[test.labels])
    assert sum(len(task.train) for task in stream) == len(benchmark.train)


def test_increments(benchmark):
    assert Stream(benchmark, increments=4).increments == (4, 4, 2)
    assert Stream(benchmark, increments=[5, 1, 1]).n_classes == 7
    with pytest.raises(UserError, match=r"\[6, 6\] do not fit 10 classes"):
        Stream(benchmark, increments=[6, 6])
    with pytest.raises(UserError, match="increment 0"):
        Stream(benchmark, increments=0)


def test_slices_are_streams_from_the_beginning(benchmark):
    stream = Stream(benchmark, increments=2)
    short = stream[:3]
    assert len(short) == 3 and short.class_names == stream.class_names[:6]
    np.testing.assert_array_equal(short[2].train.index, stream[2].train.index)
    np.testing.assert_array_equal(short.test_after(short[1]).index, stream.test_after(stream[1]).index)
    assert stream[-1].index == 4
    with pytest.raises(UserError, match="does not start at its first task"):
        stream[1:]
    with pytest.raises(IndexError):
        stream[5]


def test_joint_is_one_task_and_cumulative_trains_on_all_seen(benchmark):
    stream = Stream(benchmark, increments=2)
    (joint,) = stream.joint()
    assert len(joint.train) == 60 and joint.seen == 10
    assert stream.joint().class_names == stream.class_names
    for task, plain in zip(stream.cumulative(), stream, strict=True):
        assert set(task.train.labels) == set(range(task.seen)) and task.classes == plain.classes


def test_validation_never_touches_the_test_images(benchmark):
    stream = Stream(benchmark, increments=2).validation(0.34, seed=1)
    train = np.concatenate([task.train.index for task in stream])
    held = stream.test_after(stream[4]).index
    assert sorted([*train, *held]) == list(range(60)) and len(held) == 20
    assert stream.test.images().shape[0] == 20
    assert stream.joint().split == (0.34, 1)


def test_identity_tells_streams_apart(benchmark):
    stream = Stream(benchmark, increments=2)
    variants = [stream, stream.joint(), stream.cumulative(), stream[:2], stream.validation(), Stream(benchmark, 1996)]
    identities = [str(variant.identity()) for variant in variants]
    assert len(set(identities)) == len(variants)
    assert stream.identity() == Stream(benchmark, 1993, [2] * 5).identity()
