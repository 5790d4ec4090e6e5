"""SLCA's acceptance tests (specs, section 14), on a stream that takes a second."""

import numpy as np
import pytest
import tiny
import torch

from cilkit import learners
from cilkit.learners.alignment import mean_scales

SMALL = {"epochs": 2, "milestones": (1,), "batch_size": 8, "recipe": "shift", "lr": 0.05}


def create(name="slca", **hyper):
    return learners.create(name, tiny.backbone(), seed=0, **{**SMALL, **hyper})


def learn(learner, task):
    return list(learner.learn(task))


@pytest.fixture(scope="module")
def learnt(stream):
    learner = create()
    for task in stream:
        learn(learner, task)
    return learner


def test_a_heads_are_as_before_alignment_bit_for_bit(learnt, stream):
    before = {name: value.clone() for name, value in learnt.raw.state_dict().items()}
    outputs = learnt.predict(stream.test_after(stream[2]))
    assert all(torch.equal(value, before[name]) for name, value in learnt.raw.state_dict().items())
    assert not np.allclose(outputs.heads["raw"], outputs.heads["aligned"])
    again = learnt.predict(stream.test_after(stream[2]))
    assert np.array_equal(again.heads["aligned"], outputs.heads["aligned"])


def test_b_mean_scales(learnt):
    assert mean_scales(learnt.raw.sizes).tolist() == pytest.approx([0.9 + 0.1 * j / 3 for j in (1, 1, 2, 2, 3, 3)])


def test_c_old_heads_get_no_gradient_in_stage_one(stream):
    learner = create()
    learn(learner, stream[0])
    old = learner.raw.tasks[0]
    before = old.weight.clone()
    learner.sizes.append(2)
    learner.begin_task(stream[1])
    sum(learner.loss(next(learner.batches(stream[1], 0))).values()).backward()
    assert old.weight.grad is None and old.bias.grad is None
    assert learner.raw.current.weight.grad is not None
    learner.sizes.pop()
    learner.raw.tasks = learner.raw.tasks[:1]
    learn(learner, stream[1])
    assert torch.equal(old.weight, before)


def test_d_the_backbone_learns_a_hundred_times_slower(stream):
    learner = create()
    learner.sizes.append(2)
    learner.begin_task(stream[0])
    optimiser, _ = learner.optimiser(stream[0])
    heads, backbone = optimiser.param_groups
    assert backbone["lr"] == pytest.approx(heads["lr"] / 100)
    assert sum(p.numel() for p in backbone["params"]) == sum(p.numel() for p in learner.backbone.parameters())
    assert all(group["momentum"] == 0.9 and group["weight_decay"] == 5e-4 for group in optimiser.param_groups)


def test_f_without_alignment_it_is_the_slow_learner(stream, learnt):
    slow = create("slow_learner")
    for task in stream:
        learn(slow, task)
    test = stream.test_after(stream[2])
    raw = slow.predict(test).heads["raw"]
    assert np.array_equal(raw, learnt.predict(test).heads["raw"])
    off = create(align_epochs=0)
    off.load(learnt.state())
    assert np.array_equal(off.predict(test).heads["aligned"], raw)


def test_statistics_are_of_the_network_after_stage_one_with_the_test_transform(stream):
    learner = create()
    learn(learner, stream[0])
    train = stream[0].train
    features = learner.features(train.images(), "probe").astype(np.float64)
    for label in stream[0].classes:
        np.testing.assert_allclose(learner.statistics.means[label], features[train.labels == label].mean(0), rtol=1e-9)
    kept = [factor.copy() for factor in learner.statistics.factors]
    learn(learner, stream[1])
    assert np.array_equal(learner.statistics.factors[:2], kept)  # never refreshed
    assert np.linalg.eigvalsh(learner.statistics.covariance(0)).min() > 0  # (g)


def test_the_first_task_is_judged_by_the_raw_heads(stream):
    learner = create()
    learn(learner, stream[0])
    heads = learner.predict(stream.test_after(stream[0])).heads
    assert np.array_equal(heads["aligned"], heads["raw"])


def test_local_softmax_never_sees_the_old_classes(stream):
    """Equal losses whatever the old heads say; over all classes they differ."""
    losses = {}
    for local in (True, False):
        for shift in (0.0, 10.0):
            learner = create(local_softmax=local)
            learn(learner, stream[0])
            learner.sizes.append(2)
            learner.begin_task(stream[1])
            with torch.no_grad():
                learner.raw.tasks[0].bias += shift
            learner.backbone.eval()
            losses[local, shift] = learner.loss(next(learner.batches(stream[1], 0)))["classification"].item()
    assert losses[True, 0.0] == losses[True, 10.0]
    assert losses[False, 10.0] > losses[False, 0.0] + 5


def test_a_frozen_backbone_stays_and_no_test_image_is_forwarded_twice(stream):
    learner = create(slow_rate=0.0)
    before = {name: value.clone() for name, value in learner.backbone.state_dict().items()}
    for task in stream:
        learn(learner, task)
        outputs = learner.predict(stream.test_after(task))
    assert all(torch.equal(value, before[name]) for name, value in learner.backbone.state_dict().items())
    assert learner.backbone.forwarded["test"] == len(stream.test)
    np.testing.assert_allclose(outputs.features, learner.features(stream.test.images(), "probe"), atol=1e-5)
    other = learner.predict(stream.train)  # same places, other images
    np.testing.assert_allclose(other.features, learner.features(stream.train.images(), "probe"), atol=1e-5)


@pytest.mark.parametrize(("batches_seen", "wanted", "expected"), [(0, "auto", "batch"), (5, "auto", "frozen")])
def test_running_statistics_are_frozen_where_the_backbone_comes_trained(batches_seen, wanted, expected):
    backbone = tiny.backbone()
    for norm in backbone.norms:
        norm.num_batches_tracked += batches_seen
    assert learners.create("slca", backbone, norm_statistics=wanted).norm_statistics == expected
    assert learners.create("icarl", backbone).norm_statistics == "batch"
    assert learners.create("slca", backbone, slow_rate=0.0).norm_statistics == "frozen"


def test_finetuning_moves_the_backbone_further_than_the_slow_learner(stream):
    moved = {}
    for name in ("finetune", "slow_learner"):
        learner = create(name)
        before = [p.detach().clone() for p in learner.backbone.parameters()]
        learn(learner, stream[0])
        after = learner.backbone.parameters()
        moved[name] = sum((p - q).detach().abs().sum().item() for p, q in zip(after, before, strict=True))
    assert moved["finetune"] > 10 * moved["slow_learner"] > 0


def test_on_a_cumulative_stream_every_head_learns(stream):
    learner = create()
    tasks = list(stream.cumulative())
    learn(learner, tasks[0])
    before = learner.raw.tasks[0].weight.clone()
    learn(learner, tasks[1])
    assert not torch.equal(learner.raw.tasks[0].weight, before)
    assert len(learner.statistics) == 4


def test_recipes_name_what_the_ports_do_differently():
    """slca.md, 12 and 13; what is given stands above the recipe."""
    names = ("align_epochs", "batch_size", "recipe", "weight_decay", "align_weight_decay", "milestones", "leaks")
    own = {name: learners.settings("slca", {})[name] for name in names}
    legacy = ("legacy_task_index",)
    departures = {
        "paper": {},
        "official_code": {"leaks": legacy},
        "pilot": {"align_epochs": 3, "batch_size": 64, "recipe": "pilot", "leaks": legacy},
        "mammoth": {"weight_decay": 0.0, "align_weight_decay": 0.0, "milestones": ()},
    }
    for whose, changes in departures.items():
        found = learners.settings("slca", {"recipe_of": whose})
        assert {name: found[name] for name in names} == own | changes
    given = learners.settings("slca", {"recipe_of": "pilot", "align_epochs": 7, "leaks": []})
    assert (given["align_epochs"], given["batch_size"], given["leaks"]) == (7, 64, ())
