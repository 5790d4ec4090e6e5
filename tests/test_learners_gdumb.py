import numpy as np
import pytest
import tiny
import torch
from tiny import learn
from torch.nn.functional import cross_entropy, one_hot

from cilkit import learners
from cilkit.errors import UserError
from cilkit.incremental import run_stream
from cilkit.learners.base import Batch
from cilkit.learners.gdumb import cutmix, share_of_lr

SMALL = {"epochs": 4, "batch_size": 8, "recipe": "shift", "lr": 0.05, "slow_rate": 1.0, "total": 20}


def create(**hyper):
    return learners.create("gdumb", tiny.backbone(), seed=0, **{**SMALL, **hyper})


def test_every_task_starts_from_the_pre_trained_weights_and_untrained_heads(stream):
    learner = learn(create(), stream[:2])
    assert not torch.equal(next(learner.backbone.parameters()), next(tiny.backbone().parameters()))
    learner.sizes.append(2)
    learner.begin_task(stream[2])
    for name, value in tiny.backbone().state_dict().items():
        assert torch.equal(learner.backbone.state_dict()[name], value), name
    assert learner.raw.sizes == [2, 2, 2] and not any(head.bias.any() for head in learner.raw.tasks)
    assert all(p.requires_grad for p in learner.raw.parameters())


def test_nothing_but_the_store_decides(stream):
    """A learner that never saw the first two tasks, given their store, ends in the same weights."""
    whole, before = learn(create(), stream), learn(create(), stream[:2])
    other = create()
    other.sizes = [2, 2]
    other.memory.load(before.memory.state())
    list(other.learn(stream[2]))
    for name, value in whole.backbone.state_dict().items():
        assert torch.equal(other.backbone.state_dict()[name], value)
    assert all(torch.equal(a, b) for a, b in zip(whole.raw.parameters(), other.raw.parameters(), strict=True))


def test_it_learns_from_a_balanced_store_alone_and_from_no_test_image(stream):
    learner = create(cutmix=0.0, epochs=16)
    for task in stream:
        list(learner.learn(task))
        counts = learner.training_set(task).counts[: task.seen]
        assert counts.sum() == min(20, 8 * task.seen) and counts.max() - counts.min() <= 1
    assert set(learner.backbone.forwarded) == {"student"}  # the last pass is evaluated, not the best
    outputs = learner.predict(stream.test_after(stream[2]))
    assert (outputs.predictions("raw") == outputs.labels).mean() > 0.4  # chance is 1 / 6


@pytest.mark.parametrize("total", (1, 7, 20, 500))
def test_every_pass_is_declared(total):
    stream = tiny.stream(increments=[1, 3, 2])
    learner = create(total=total, epochs=2)
    run_stream(learner, stream, None)
    assert dict(learner.backbone.forwarded) == learner.declared(stream)
    weights = sum(value.nbytes for value in learner.backbone.state_dict().values())
    stored = {"exemplars": min(total, 48) * 768, "pre-trained weights": weights}
    assert learner.stored_bytes() == stored


def test_an_epoch_is_taken_up_exactly(stream):
    whole, broken, again = learn(create(), stream), learn(create(), stream[:2]), create()
    boundary = {name: value.clone() for name, value in broken.state().items()}
    moments = broken.learn(stream[2])
    next(moments), next(moments)
    moment = {name: value.clone() for name, value in broken.moment_state().items()}
    again.load(boundary)
    list(again.learn(stream[2], moment))
    assert all(torch.equal(value, whole.state()[name]) for name, value in again.state().items())


def test_the_schedule_is_a_warm_up_pass_and_torch_s_cosine_warm_restarts():
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimiser = torch.optim.SGD([parameter], lr=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimiser, T_0=1, T_mult=2, eta_min=0.0005)
    expected = [0.005]
    for _ in range(31):
        expected.append(schedule.get_last_lr()[0])
        optimiser.step()
        schedule.step()
    np.testing.assert_allclose([0.05 * share_of_lr(epoch, 0.01) for epoch in range(32)], expected, rtol=1e-6)
    assert share_of_lr(31, 0.01) < 0.02 and share_of_lr(32, 0.01) == 1  # a cycle ends after 32 passes


def test_a_mixed_image_holds_a_box_of_its_neighbour():
    images = torch.arange(1.0, 5.0).view(4, 1, 1, 1).expand(4, 3, 10, 12).contiguous()
    random = np.random.default_rng(0)
    for _ in range(50):
        mixed = cutmix(Batch(images, torch.arange(4)), random)
        own = mixed.images == images  # (4, 3, 10, 12)
        assert torch.equal(mixed.images[~own], images.roll(1, 0)[~own])
        rows, columns = (~own[0, 0]).nonzero(as_tuple=True)
        if len(rows):  # a box, the same in every image
            assert len(rows) == (rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1)
        assert torch.equal(own, own[:1, :1].expand_as(own))
        assert mixed.share == pytest.approx(own[0, 0].float().mean().item())


def test_boxes_have_the_area_of_the_paper():
    """Side s = sqrt(u), u uniform; of it a border leaves s - s^2 / 4 on average: area 1/2 - 1/5 + 1/48."""
    random, batch = np.random.default_rng(0), Batch(torch.zeros(1, 1, 64, 64), torch.zeros(1))
    shares = [cutmix(batch, random).share for _ in range(2000)]
    assert 1 - np.mean(shares) == pytest.approx(1 / 2 - 1 / 5 + 1 / 48, abs=0.02)


def test_the_loss_of_a_mixed_batch_is_that_of_its_soft_labels(stream):
    learner = create(cutmix=1.0)
    learner.sizes.append(2)
    learner.begin_task(stream[0])
    learner.backbone.eval()
    batch = next(learner.batches(stream[0], 0))
    soft = batch.share * one_hot(batch.labels, 2) + (1 - batch.share) * one_hot(batch.labels.roll(1), 2)
    expected = cross_entropy(learner.raw(learner.backbone(batch.images, "student")), soft)
    torch.testing.assert_close(learner.loss(batch)["classification"], expected)


def test_gradients_are_clipped_together(stream):
    learner = create(clip=0.01)
    learner.sizes.append(2)
    learner.begin_task(stream[0])
    batch = next(learner.batches(stream[0], 0))
    learner.loss(batch)["classification"].backward()
    learner.before_step(batch)
    gradients = [p.grad for p in [*learner.raw.parameters(), *learner.backbone.parameters()]]
    assert torch.cat([g.flatten() for g in gradients]).norm() == pytest.approx(0.01, rel=1e-3)


def test_wrong_settings_and_domain_streams_are_refused():
    for bad in ({"total": 0}, {"cutmix": 1.5}, {"norm_statistics": "none"}):
        with pytest.raises(UserError, match="expected|needs"):
            create(**bad)
    with pytest.raises(UserError, match="not defined for domain"):
        run_stream(create(), tiny.domain_stream(), None)
