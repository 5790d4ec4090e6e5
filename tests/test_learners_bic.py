"""BiC: stage 1's loss, stage 2's two numbers, and who sees which image (baselines, sections 6 and 13)."""

import numpy as np
import pytest
import tiny
import torch
from tiny import learn
from torch.nn.functional import cross_entropy

from cilkit import learners
from cilkit.data import Benchmark, Stream
from cilkit.errors import UserError
from cilkit.learners.bic import BiCHyper, correct, fit_correction
from cilkit.learners.lwf import distillation

SMALL = {"epochs": 2, "milestones": (1,), "batch_size": 8, "recipe": "shift", "lr": 0.05, "slow_rate": 1.0}
FEW = {"per_class": 4, "held_share": 0.25, "bias_epochs": 20, "bias_milestones": (15,)}


def create(**hyper):
    return learners.create("bic", tiny.backbone(), seed=0, **{**SMALL, **FEW, **hyper})


def start(learner, task):
    learner.sizes.append(len(task.classes))
    learner.begin_task(task)
    learner.backbone.eval()
    return next(learner.batches(task, 0))


# ------------------------------------------------------------ stage 2


def test_one_and_zero_correct_nothing_and_others_are_b_z_plus_g():
    logits = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    identity = torch.tensor([[1.0, 0.0]]).repeat(3, 1)
    assert torch.equal(correct(logits, [1, 3, 2], identity), logits)
    changed = correct(logits, [1, 3, 2], torch.tensor([[1.0, 0.0], [2.0, -1.0], [1.0, 3.0]]))
    assert torch.equal(changed[:, :1], logits[:, :1]) and torch.equal(changed[:, 4:], logits[:, 4:] + 3)
    assert torch.equal(changed[:, 1:4], 2 * logits[:, 1:4] - 1)


@pytest.fixture(scope="module")
def biased():
    """Labels drawn from softmax(z), and z whose newest three of six classes were doubled and raised by one."""
    random = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(20000, 6, generator=random)
    labels = torch.multinomial(logits.softmax(1), 1, generator=random)[:, 0]
    return torch.cat([logits[:, :3], 2 * logits[:, 3:] + 1], 1), labels


def test_stage_two_finds_the_bias_that_was_put_in(biased):
    settings = {"bias_epochs": 15, "bias_milestones": (10, 13), "batch_size": 1000}
    found = fit_correction(*biased, 3, BiCHyper(**settings, offset_decay=0.0))
    np.testing.assert_allclose(found, [0.5, -0.5], atol=0.03)  # the draw's error is 0.01
    held = fit_correction(*biased, 3, BiCHyper(**settings, offset_decay=1.0))
    assert -0.4 < held[1] < 0  # g^2 / 2 costs something, b nothing
    doubled = fit_correction(*biased, 3, BiCHyper(**settings, offset_decay=0.0), double_softmax=True)
    assert abs(doubled[0] - 0.5) > 0.1  # another minimum than cross-entropy's


def test_stage_two_s_minimum_has_no_gradient(biased):
    """The released objective: CE + 0.1 g^2 / 2."""
    logits, labels = biased
    found = fit_correction(logits, labels, 3, BiCHyper(bias_epochs=150, batch_size=20000, bias_lr=0.001))
    found.requires_grad_()
    b, g = found
    loss = cross_entropy(torch.cat([logits[:, :3], b * logits[:, 3:] + g], 1), labels) + 0.1 * g**2 / 2
    (gradient,) = torch.autograd.grad(loss, found)
    assert gradient.abs().max() < 2e-3
    assert loss < cross_entropy(logits, labels)


def test_only_two_numbers_change_in_stage_two(stream):
    learner = learn(create(), stream[:1])
    seen = []
    for _ in learner.learn(stream[1]):
        seen.append({name: value.clone() for name, value in learner.state().items()})
    after = learner.state()
    kinds = ("backbone.", "raw.")
    assert all(torch.equal(after[name], value) for name, value in seen[-1].items() if name.startswith(kinds))
    assert seen[-1]["corrections"].tolist() == [[1, 0], [1, 0]]
    assert after["corrections"][0].tolist() == [1, 0]
    assert (after["corrections"][1] != torch.tensor([1.0, 0.0])).all()


def test_images_are_classified_with_the_newest_block_corrected(stream):
    learner = learn(create(), stream)
    learner.corrections = torch.tensor([[1.0, 0.0], [3.0, 5.0], [2.0, -1.0]])
    answers = learner.predict(stream.test_after(stream[2])).heads
    np.testing.assert_array_equal(answers["corrected"][:, :4], answers["raw"][:, :4])
    np.testing.assert_allclose(answers["corrected"][:, 4:], 2 * answers["raw"][:, 4:] - 1, rtol=1e-6)


# ------------------------------------------------------------ stage 1


def test_stage_one_mixes_by_the_share_of_old_classes_against_the_corrected_teacher(stream):
    learner = learn(create(), stream[:2])
    learner.corrections[-1] = torch.tensor([0.5, 2.0])
    batch = start(learner, stream[2])
    terms = learner.loss(batch)
    with torch.no_grad():
        features = learner.backbone(batch.images, "student")
        logits, taught = learner.raw(features), learner.taught(batch.images)
        torch.testing.assert_close(taught[:, :2], logits[:, :2])  # the student is still the network before
        torch.testing.assert_close(taught[:, 2:], 0.5 * logits[:, 2:4] + 2)
        torch.testing.assert_close(terms["classification"], cross_entropy(logits, batch.labels) / 3)
        expected = 2 / 3 * distillation(logits[:, :4], taught, 2.0)
        torch.testing.assert_close(terms["distillation"], expected)
    sum(learner.loss(batch).values()).backward()
    assert all(p.grad is not None for p in learner.raw.parameters())  # old heads learn too

    inverted = create(leaks=("inverted_mixing",))
    inverted.load(learn(create(), stream[:2]).state())
    inverted.corrections[-1] = torch.tensor([0.5, 2.0])
    batch = start(inverted, stream[2])
    wrong = inverted.loss(batch)
    torch.testing.assert_close(wrong["classification"], 2 * terms["classification"])
    torch.testing.assert_close(wrong["distillation"], 4 / 2 * terms["distillation"])


def test_cumulative_corrections_are_part_of_student_teacher_and_test(stream):
    learner = learn(create(cumulative=True), stream[:2])
    learner.corrections = torch.tensor([[1.5, 0.5], [0.5, 2.0]])
    batch = start(learner, stream[2])
    with torch.no_grad():
        logits = learner.raw(learner.backbone(batch.images, "student"))
        old = torch.cat([1.5 * logits[:, :2] + 0.5, 0.5 * logits[:, 2:4] + 2], 1)
        torch.testing.assert_close(learner.taught(batch.images), old)
        expected = cross_entropy(torch.cat([old, logits[:, 4:]], 1), batch.labels) / 3
        torch.testing.assert_close(learner.loss(batch)["classification"], expected)
        features = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
        rows = torch.tensor([[1.5, 0.5], [0.5, 2.0], [1.0, 0.0]])
        assert torch.equal(learner.heads()["corrected"](features), correct(learner.raw(features), [2, 2, 2], rows))


def test_the_released_weight_decay_falls_with_the_tasks(stream):
    learner = create(recipe_of="official_code")
    for index, task in enumerate(stream):
        start(learner, task)
        groups = learner.optimiser(task)[0].param_groups
        assert [group["weight_decay"] for group in groups] == pytest.approx([1e-4 * 10 / (index + 1)] * 2)
        learner.end_task(task)


# ------------------------------------------------------------ exemplars


def test_what_validates_was_never_learnt_from_and_is_balanced(stream):
    """24 over 2, 4, 6 classes: 12, 6, 4 a class. A class has 8 images, so that a quarter of it are 2, then 1."""
    learner, learnt = create(per_class=0, total=24), set()
    for task, count, kept in zip(stream, (2, 2, 1), ([6] * 2, [5] * 4, [3] * 6), strict=True):
        start(learner, task)
        images = learner.training_set(task)
        assert len(set(images.index.tolist())) == len(images)
        learnt |= set(images.index.tolist())
        old = learner.held.of(task.train)
        assert np.bincount(np.append(old.labels, learner.aside.labels)).tolist() == [count] * learner.seen
        assert not learnt & {*old.index.tolist(), *learner.aside.index.tolist()}
        learner.end_task(task)
        assert [len(rows) for rows in learner.memory.rows] == kept
    assert learner.stored_bytes() == {"exemplars": 24 * 16 * 16 * 3}


def uneven():
    """Tasks of one, three and two classes; of one class two images, of another one five."""
    images, test = tiny.image_set(), tiny.image_set(per_class=5, seed=1)
    few = [*np.flatnonzero(images.labels == 3)[2:], *np.flatnonzero(images.labels == 5)[5:]]
    rows = np.setdiff1d(np.arange(len(images)), few)
    return Stream(Benchmark("uneven", images.select(rows), test), order_seed=1993, increments=[1, 3, 2])


@pytest.mark.parametrize("hyper", [{}, {"per_class": 0, "total": 24}, {"per_class": 50}])
def test_it_counts_what_it_declares_and_stage_two_forwards_nothing_twice(stream, hyper):
    for some in (stream, uneven(), stream.cumulative(), stream.joint()):
        learner = create(**hyper)
        for task in some:
            learn(learner, [task])
            learner.predict(some.test_after(task))
        declared = learner.declared(some)
        assert {kind: count for kind, count in declared.items() if count} == dict(learner.backbone.forwarded)


def test_it_goes_on_from_a_saved_state_bit_for_bit(stream):
    whole = learn(create(), stream).state()
    half, resumed = learn(create(), stream[:2]), create()
    resumed.load({name: value.clone() for name, value in half.state().items()})
    for name, value in learn(resumed, [stream[2]]).state().items():
        assert torch.equal(whole[name], value), name


def test_bad_settings_and_too_few_images_are_refused_in_one_sentence(stream):
    over_all = {"leaks": ("softmax_over_all",)}
    for bad, why in (
        ({"local_softmax": True}, "by design"),
        (over_all, "changes nothing"),
        ({"per_class": 1}, "BiC needs two"),
    ):
        with pytest.raises(UserError, match=why):
            create(**bad)
    with pytest.raises(UserError, match="held_share is 1"):
        create(held_share=1.0)
    with pytest.raises(UserError, match="total 5 leaves 1 exemplar for each of 6 classes"):
        learn(create(per_class=0, total=5), stream)
    with pytest.raises(UserError, match="has 1 training image; BiC needs two a class"):
        learn(create(), tiny.stream(per_class=1))
