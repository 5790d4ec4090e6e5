"""Class orders and streams: the papers' orders, and no image or class in the wrong task."""

import numpy as np
import pytest

from cilkit.data.benchmarks import Benchmark
from cilkit.data.imagesets import ImageSet
from cilkit.data.streams import SEEDS, Stream, class_order, increments_of, listed_order, order_seed
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


def test_increments_equal_with_a_base_and_explicit(benchmark):
    assert increments_of(100, 10) == (10,) * 10  # B0, 10 steps
    assert increments_of(100, 5, base=50) == (50,) + (5,) * 10  # B50, 10 steps
    assert increments_of(196, 20) == (20,) * 9 + (16,)  # Cars in SLCA's code
    assert increments_of(196, 20, base=16) == (16,) + (20,) * 9  # Cars in RanPAC's
    assert increments_of(6, [3, 1, 2]) == (3, 1, 2)
    assert Stream(benchmark, increments=4).sizes == (4, 4, 2)
    assert Stream(benchmark, increments=[5, 1, 4])[:2].n_classes == 6


@pytest.mark.parametrize(
    ("increments", "sentence"),
    [
        ([6, 6], r"\[6, 6\] do not fit 10 classes"),
        ([5, 1, 1], r"\[5, 1, 1\] add up to 7 of 10 classes; list a task for the rest"),
        ([5, 0, 5], r"\[5, 0, 5\] do not fit"),
        ([], r"\[\] do not fit"),
        (0, "increment 0 does not fit"),
        (11, "increment 11 does not fit"),
    ],
)
def test_increments_that_do_not_add_up_are_refused(benchmark, increments, sentence):
    with pytest.raises(UserError, match=sentence):
        Stream(benchmark, increments=increments)


def test_a_base_beside_a_list_or_beyond_the_classes_is_refused():
    with pytest.raises(UserError, match="base 5 beside the list"):
        increments_of(10, [5, 5], base=5)
    with pytest.raises(UserError, match="base 11 does not fit 10"):
        increments_of(10, 2, base=11)


def test_an_order_may_be_listed_by_name_or_by_place(benchmark):
    names = NAMES[::-1]
    assert Stream(benchmark, order_list=tuple(names)).class_names == names
    assert Stream(benchmark, order_list=(3, 1, 0, 2, 4, 5, 6, 7, 8, 9)).class_names[:3] == [
        "class 3", "class 1", "class 0",
    ]  # fmt: skip
    assert (
        Stream(benchmark, 1993, order_list=tuple(names)).identity()
        == Stream(benchmark, 1996, order_list=tuple(names)).identity()
    )


@pytest.mark.parametrize(
    ("order", "sentence"),
    [
        (["a", "b"], "has 2 of 3 and leaves out 'c'"),
        (["a", "b", "b"], "lists 'b' twice"),
        (["a", "b", "cc"], r"lists 'cc' \(did you mean 'c'\?\)"),
        ([0, 1, 3], "lists 3; expected names, or places 0 … 2"),
    ],
)
def test_an_order_with_a_hole_is_refused(order, sentence):
    with pytest.raises(UserError, match=sentence):
        listed_order(order, ["a", "b", "c"])


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
    variants += [stream[:2].joint(), Stream(benchmark, order_list=tuple(range(10)))]
    identities = [str(variant.identity()) for variant in variants]
    assert len(set(identities)) == len(variants)
    assert stream.identity() == Stream(benchmark, 1993, [2] * 5).identity()


# ---------------------------------------------------------------- few-shot


def test_later_tasks_of_a_few_shot_stream_have_so_many_images_a_class(benchmark):
    """The first task is whole; 6 images a class are there."""
    whole, few = (Stream(benchmark, 1993, [4, 3, 3], shots=shots) for shots in (0, 2))
    assert [len(task.train) for task in whole] == [24, 18, 18] and [len(task.train) for task in few] == [24, 6, 6]
    assert few.train.counts.tolist() == [6] * 4 + [2] * 6 and len(set(few.train.index)) == 36
    for task, all_of_it in zip(few, whole, strict=True):
        assert set(task.train.index) <= set(all_of_it.train.index)
        np.testing.assert_array_equal(task.train.images()[:, 0, 0, 0], few.order[task.train.labels])
        np.testing.assert_array_equal(few.test_after(task).index, whole.test_after(all_of_it).index)
    np.testing.assert_array_equal(few[0].train.index, whole[0].train.index)


def shots_of(stream):
    """class -> the images of it that are trained on, of the classes after the first task."""
    train = stream.train
    return {
        stream.class_names[c]: train.of_classes([c]).index.tolist()
        for c in range(stream.increments[0], stream.n_classes)
    }


def test_which_shots_depends_on_their_number_the_seed_and_the_class_alone(benchmark):
    drawn = shots_of(Stream(benchmark, 1993, 2, shots=2))
    assert drawn == shots_of(Stream(benchmark, 1993, 2, shots=2))
    for other in (Stream(benchmark, 1993, 2, shots=2)[:3], Stream(benchmark, 1993, [4, 1, 5], shots=2)):
        found = shots_of(other)
        assert found and all(drawn[name] == images for name, images in found.items())  # however the tasks are cut
    other = shots_of(Stream(benchmark, 1996, 2, shots=2))
    assert any(drawn[name] != other[name] for name in drawn.keys() & other.keys())
    names = tuple(Stream(benchmark, 1993).class_names)  # a listed order has no seed, in its identity neither
    one, two = (Stream(benchmark, seed, 2, order_list=names, shots=2) for seed in (1993, 1996))
    assert one.identity() == two.identity() and shots_of(one) == shots_of(two)


def test_every_image_of_a_class_is_drawn_as_often_as_the_others():
    """500 classes, 2 of 6 images each: every place a third of the time, within four standard deviations."""
    labels = np.tile(np.arange(500), 6)
    images = ImageSet.from_arrays(np.zeros((3000, 1, 1, 3), np.uint8), labels, [f"class {c}" for c in range(500)])
    stream = Stream(Benchmark("many", images, images), None, [1, 499], shots=2)
    places = np.bincount(stream[1].train.index // 500, minlength=6) / 499
    assert np.abs(places - 1 / 3).max() < 4 * np.sqrt(1 / 3 * 2 / 3 / 499)


def test_a_few_shot_stream_is_sliced_joined_accumulated_and_validated_as_others(benchmark):
    stream = Stream(benchmark, 1993, [4, 3, 3], shots=2)
    same = sorted(stream.train.index)
    (joint,) = stream.joint()
    assert sorted(joint.train.index) == same
    assert [len(task.train) for task in stream.cumulative()] == [24, 30, 36]
    assert [len(task.fresh) for task in stream.cumulative()] == [24, 6, 6]
    assert [len(task.train) for task in stream[:2]] == [24, 6] and len(stream[:2].joint()[0].train) == 30
    held = stream.validation(0.5)
    assert [len(task.train) for task in held] == [12, 6, 6] and len(held.test) == 30
    assert not set(held.train.index) & set(held.test.index)


def test_shots_are_part_of_the_identity_only_where_there_are_some(benchmark):
    """Runs that were made before there were shots keep their keys."""
    assert "shots" not in Stream(benchmark, shots=0).identity()
    assert Stream(benchmark, shots=2).identity() == {**Stream(benchmark).identity(), "shots": 2}


def test_shots_that_cannot_be_had_are_refused(benchmark, domains):
    with pytest.raises(UserError, match="shots is -1; expected"):
        Stream(benchmark, shots=-1)
    short = benchmark.train.select(np.flatnonzero((benchmark.train.labels != 7) | (np.arange(60) < 30)))
    with pytest.raises(UserError, match="class 'class 7' has 3 training images, fewer than the 4 shots"):
        Stream(Benchmark("nine and a half", short, benchmark.test), None, 2, shots=4)
    assert len(Stream(Benchmark("nine and a half", short, benchmark.test), None, 8, shots=4)[1].train) == 8
    with pytest.raises(UserError, match="fewer than the 4 shots"):
        Stream(benchmark, 1993, 2, shots=4).validation(0.5)
    with pytest.raises(UserError, match="new domains bring none"):
        Stream(domains, protocol="domain", shots=2)


# ---------------------------------------------------------------- domains


def in_domains(per_cell, names=("photo", "sketch", "clay")):
    """Each class in each domain; class and domain can be read from the pixels."""
    cells = np.array([(d, c) for d in range(len(names)) for c in range(4)] * per_cell)
    images = np.zeros((len(cells), 4, 4, 3), np.uint8)
    images[:, 0, 0, :2] = cells
    labels = cells[:, 1]
    return ImageSet.from_arrays(images, labels, NAMES[:4], domains=cells[:, 0], domain_names=names)


@pytest.fixture
def domains():
    return Benchmark("three worlds", in_domains(5), in_domains(2))


def test_a_domain_stream_brings_the_same_classes_from_another_domain(domains):
    stream = Stream(domains, order_seed=1993, protocol="domain")
    assert len(stream) == 3 and stream.sizes == (4, 0, 0) and stream.class_names == NAMES[:4]
    assert sorted(stream.domain_order) == [0, 1, 2]
    for task in stream:
        pixels = task.train.images()[:, 0, 0]
        assert set(pixels[:, 0]) == {stream.domain_order[task.index]} and set(pixels[:, 1]) == {0, 1, 2, 3}
        np.testing.assert_array_equal(pixels[:, 1], task.train.labels)
        assert task.seen == 4 and len(task.classes) == (4 if task.index == 0 else 0)
        assert domains.domain_names[stream.domain_order[task.index]] in task.name
        test = stream.test_after(task)  # all domains, learnt or not
        assert len(test) == 24
        np.testing.assert_array_equal(stream.domain_order[stream.task_of(test)], test.images()[:, 0, 0, 0])
    assert sum(len(task.train) for task in stream) == len(domains.train)


def test_domain_streams_are_sliced_accumulated_joined_and_ordered_as_others(domains):
    stream = Stream(domains, None, protocol="domain")
    assert stream.domain_order.tolist() == [0, 1, 2]
    assert [len(task.train) for task in stream.cumulative()] == [20, 40, 60]
    assert [len(task.fresh) for task in stream.cumulative()] == [20, 20, 20]
    (joint,) = stream.joint()
    assert len(joint.train) == 60 and set(stream.joint().task_of(stream.test)) == {0}
    short = stream[:2]
    assert len(short) == 2 and len(short.test_after(short[1])) == 16 and len(short.joint()[0].train) == 40
    listed = Stream(domains, protocol="domain", order_list=("clay", "photo", "sketch"))
    assert [task.name for task in listed] == ["task 1: clay", "task 2: photo", "task 3: sketch"]
    with pytest.raises(UserError, match="leaves out 'sketch'"):
        len(Stream(domains, protocol="domain", order_list=("clay", "photo")).domain_order)


def test_domains_that_are_for_testing_only_are_dealt_out_to_the_tasks(domains):
    """As in CORe50, whose test sessions are nobody's training session."""
    learnt = Benchmark("core", domains.train.of_domains([0, 2]), domains.test.of_domains([1]))
    stream = Stream(learnt, None, protocol="domain")
    assert [task.name for task in stream] == ["task 1: photo", "task 2: clay"]
    assert [len(task.train) for task in stream] == [20, 20]
    for part in (stream, stream.joint()):
        assert all(len(part.test_after(task)) == 8 for task in part)
    assert np.bincount(stream.task_of(stream.test)).tolist() == [4, 4]
    assert len(stream[:1].test) == 8 and set(stream[:1].task_of(stream.test)) == {0}


def test_protocols_that_do_not_fit_are_refused(benchmark):
    with pytest.raises(UserError, match="'ten' has no domains; take protocol 'class'"):
        Stream(benchmark, protocol="domain")
    with pytest.raises(UserError, match="task-incremental is a score"):
        Stream(benchmark, protocol="task")
