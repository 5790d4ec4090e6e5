import numpy as np
import pytest
import tiny
import torch
from tiny import learn
from torch.nn.functional import cross_entropy

from cilkit import learners
from cilkit.errors import UserError
from cilkit.incremental import run_stream

SMALL = {"epochs": 2, "milestones": (1,), "batch_size": 8, "recipe": "shift", "lr": 0.05, "slow_rate": 1.0}


def create(name="der", **hyper):
    return learners.create(name, tiny.backbone(), seed=0, **{**SMALL, **hyper})


def der(**hyper):
    return create(**{"total": 12, "minibatch_size": 6, "alpha": 0.3, "beta": 0.5, **hyper})


def start_second_task(stream, **hyper):
    learner = learn(der(**hyper), stream[:1])
    learner.sizes.append(2)
    learner.begin_task(stream[1])
    learner.backbone.eval()
    return learner, next(learner.batches(stream[1], 0))


def test_without_weights_it_is_fine_tuning_with_cross_entropy_over_all_classes(stream):
    """Bit for bit, reservoir or not."""
    ours, plain = der(alpha=0.0, beta=0.0), create("finetune", local_softmax=False)
    first, second = (run_stream(learner, stream, None) for learner in (ours, plain))
    for a, b in zip(first, second, strict=True):
        assert np.array_equal(a.heads["raw"], b.heads["raw"])
    assert ours.declared(stream) == plain.declared(stream)


def test_the_loss_is_the_paper_s_sum(stream):
    """Each term from a forward pass of its own, stored logits compared in as many outputs as were known."""
    learner, batch = start_second_task(stream)
    terms = learner.loss(batch)
    x, first, second = batch.images.split(batch.parts)
    y, _, replayed = batch.labels.split(batch.parts)
    assert batch.parts == [8, 6, 6] and set(batch.widths.tolist()) == {2}
    with torch.no_grad():
        logits = lambda images: learner.raw(learner.backbone(images, "student"))  # noqa: E731
        torch.testing.assert_close(terms["classification"].detach(), cross_entropy(logits(x), y))
        torch.testing.assert_close(terms["replay"].detach(), 0.5 * cross_entropy(logits(second), replayed))
        stored = learner.logits[batch.slots, :2]
        expected = 0.3 * ((logits(first)[:, :2] - stored) ** 2).sum() / (6 * 4)  # mean over batch x classes seen
        torch.testing.assert_close(terms["distillation"].detach(), expected)


def test_outputs_that_a_stored_image_never_had_are_left_alone(stream):
    learner, batch = start_second_task(stream, beta=0.0)
    learner.loss(batch)["distillation"].backward()
    old, new = learner.raw.tasks
    assert old.weight.grad.abs().sum() > 0 and not new.weight.grad.any()


@pytest.mark.parametrize("dedup", (False, True))
def test_what_is_stored_are_the_logits_of_the_forward_pass_before_the_step(stream, dedup):
    """A dictionary, filled literally: slot -> image, logits."""
    learner, twin = learn(der(dedup=dedup), stream[:1]), learn(der(dedup=dedup), stream[:1])
    task, seen, slots = stream[1], [], {}
    learner.raw.register_forward_hook(lambda module, args, logits: seen.append(logits.detach().clone()))
    list(learner.learn(task))
    twin.sizes.append(2)
    twin.begin_task(task)
    steps = [step for epoch in range(2) for step in twin.steps(task, epoch)]
    for step, logits in zip(steps, seen, strict=True):
        for row, slot in zip(step.kept, step.into, strict=True):
            slots[int(slot)] = step.fresh[row], logits[row]
    assert 0 < len(slots) <= 12
    for slot, (row, logits) in slots.items():
        assert np.array_equal(learner.memory.rows[slot], row) and torch.equal(learner.logits[slot], logits)
    if dedup:  # renewed in the last epoch
        last = [step.into for step in steps[len(steps) // 2 :]]
        assert sorted(np.concatenate(last)) == sorted(slots)


def test_an_image_is_stored_once_or_as_often_as_it_is_drawn(stream):
    once, often = (learn(der(dedup=dedup, epochs=6, total=30), stream) for dedup in (True, False))
    assert len(np.unique(once.memory.rows[:, 0])) == len(once.memory) == 30 and once.memory.count == len(stream.train)
    assert len(np.unique(often.memory.rows[:, 0])) < 30 and often.memory.count == 6 * len(stream.train)


def test_draws_are_two_and_come_from_what_was_stored_before(stream):
    learner = learn(der(), stream[:1])
    before = set(learner.memory.rows[:, 0])
    steps = list(learner.steps(stream[1], 0))
    assert set(steps[0].first[:, 0]) | set(steps[0].second[:, 0]) <= before
    assert any(set(step.first[:, 0]) != set(step.second[:, 0]) for step in steps)
    _, batch = start_second_task(stream)
    assert batch.images.shape[0] == sum(batch.parts) == 20


def test_replayed_images_carry_their_own_labels(stream):
    learner = learn(der(recipe="none"), stream[:1])
    steps = list(learn(der(recipe="none"), stream[:1]).steps(stream[1], 0))
    learner.sizes.append(2)
    for batch, step in zip(learner.batches(stream[1], 0), steps, strict=True):
        rows = np.concatenate([step.fresh, step.first, step.second])
        expected = learner.recipe.test(stream.train.source.read(rows[:, 0]))
        assert torch.equal(batch.images, expected) and batch.labels.tolist() == rows[:, 2].tolist()
        truth = dict(zip(stream.train.index, stream.train.labels, strict=True))
        assert all(truth[place] == label for place, label in rows[:, [0, 2]])


def test_old_heads_learn_by_replay_alone_where_the_softmax_is_local(stream):
    learner, batch = start_second_task(stream, local_softmax=True)
    terms = learner.loss(batch)
    terms["classification"].backward(retain_graph=True)
    assert not learner.raw.tasks[0].weight.grad.any()
    terms["replay"].backward()
    assert learner.raw.tasks[0].weight.grad.any()


@pytest.mark.parametrize("hyper", ({}, {"dedup": True}, {"alpha": 0.0}, {"total": 100, "minibatch_size": 50}))
def test_every_pass_is_declared_and_an_epoch_is_taken_up_exactly(stream, hyper):
    whole = der(**hyper)
    run_stream(whole, stream, None)
    assert dict(whole.backbone.forwarded) == whole.declared(stream)
    assert whole.stored_bytes() == {"exemplars": len(whole.memory) * 768, "logits": whole.hyper.total * 6 * 4}
    broken, again = learn(der(**hyper), stream[:2]), der(**hyper)
    boundary = {name: value.clone() for name, value in broken.state().items()}
    next(broken.learn(stream[2]))
    moment = {name: value.clone() for name, value in broken.moment_state().items()}
    again.load(boundary)
    list(again.learn(stream[2], moment))
    for name, value in again.state().items():
        if not name.startswith("forwarded.test"):
            assert torch.equal(value, whole.state()[name]) or name.startswith("forwarded"), name


def test_domains_are_replayed_with_shared_labels():
    stream = tiny.domain_stream()
    learner = der()
    run_stream(learner, stream, None)
    assert dict(learner.backbone.forwarded) == learner.declared(stream) and learner.logits.shape == (12, 3)


def test_wrong_settings_are_refused():
    for bad in ({"total": 0}, {"minibatch_size": 0}, {"alpha": -1.0}, {"beta": -0.1}):
        with pytest.raises(UserError, match="expected|needs"):
            der(**bad)
