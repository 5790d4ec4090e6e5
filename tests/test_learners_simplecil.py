import numpy as np
import pytest
import tiny

from cilkit import backbones, incremental, learners
from cilkit.errors import UserError


def learnt(name, stream, **hyper):
    learner = learners.create(name, tiny.backbone(), **hyper)
    return learner, incremental.run_stream(learner, stream, None)


def cosines_to_means(stream):
    """A literal reference: logits (test images, classes) of the whole stream."""
    network = tiny.backbone()
    seen, asked = (backbones.extract(network, part.images(), "probe") for part in (stream.train, stream.test))
    unit = lambda rows: rows / np.linalg.norm(rows, axis=1, keepdims=True)  # noqa: E731
    means = [seen[stream.train.labels == label].mean(0) for label in range(stream.train.labels.max() + 1)]
    return unit(asked) @ unit(np.array(means)).T


def test_logits_are_cosines_to_class_means():
    stream = tiny.stream()
    answers = learnt("simplecil", stream)[1][-1]
    places = np.argsort(answers.ids)
    expected = cosines_to_means(stream)[np.argsort(stream.test.index)]
    np.testing.assert_allclose(answers.heads["means"][places], expected, atol=1e-5)


def test_it_is_nearest_mean_by_cosine_bit_for_bit():
    for stream in (tiny.stream(), tiny.domain_stream()):
        ours, theirs = (
            learnt(name, stream, **hyper)[1][-1].heads["means"]
            for name, hyper in (("simplecil", {}), ("nearest_mean", {"distance": "cosine"}))
        )
        assert np.array_equal(ours, theirs)


def test_the_last_accuracy_does_not_depend_on_class_order_or_on_the_number_of_tasks():
    found = []
    for order, increments in ((1993, 2), (1993, 3), (1993, 6), (1996, 2), (None, 1)):
        benchmark = tiny.stream().benchmark
        stream = type(tiny.stream())(benchmark, order_seed=order, increments=increments)
        answers = learnt("simplecil", stream)[1][-1]
        found.append(np.count_nonzero(answers.heads["means"].argmax(1) == answers.labels))
    assert len(set(found)) == 1


@pytest.mark.parametrize("name", ["simplecil", "nearest_mean"])
def test_each_image_passes_once(name):
    stream = tiny.stream()
    learner, _ = learnt(name, stream)
    assert learner.backbone.forwarded == {"statistics": len(stream.train), "test": len(stream.test)}


def test_broken_weights_are_one_sentence():
    network = tiny.backbone()
    next(network.parameters()).data[:] = float("nan")
    learner = learners.create("simplecil", network)
    with pytest.raises(UserError, match="NaN or infinity"):
        list(learner.learn(tiny.stream()[0]))


def test_sums_are_those_of_a_plain_loop_bit_for_bit():
    stream = tiny.stream()
    learner, _ = learnt("nearest_mean", stream)
    network, sums = tiny.backbone(), []
    for task in stream:
        features = backbones.extract(network, task.fresh, "probe", learner.recipe).astype(np.float64)
        sums += [features[task.fresh.labels == label].sum(0) for label in task.classes]
    assert np.array_equal(learner.sums, np.array(sums))
