"""Gaussian feature replay: what is sampled, which term it makes, what it costs."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from tiny import learn

from cilkit import learners
from cilkit.errors import UserError
from cilkit.learners.statistics import KINDS, ClassStatistics

BASES = ["finetune", "lwf", "ewc", "bic", "der"]


def start_second_task(stream, name="finetune", **changes):
    learner = learn(tiny.case(f"{name}+gaussian_replay", **changes), stream[:1])
    learner.sizes.append(2)
    learner.begin_task(stream[1])
    return learner


@pytest.mark.parametrize("name", BASES)
def test_without_weight_it_is_the_learner_bit_for_bit(stream, name):
    plain, plugged = tiny.case(name), tiny.case(f"{name}+gaussian_replay", gaussian_weight=0.0)
    losses = [[moment.losses for task in stream for moment in one.learn(task)] for one in (plain, plugged)]
    assert losses[0] == losses[1]
    ours, theirs = plugged.state(), plain.state()
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())
    assert plugged.declared(stream) == plain.declared(stream) and plugged.stored_bytes() == plain.stored_bytes()


@pytest.mark.parametrize("kind", KINDS)
def test_the_term_is_the_cross_entropy_of_the_samples_over_all_classes_seen(stream, kind):
    learner = start_second_task(stream, gaussians=kind, gaussian_rank=3, gaussian_weight=2.5, gaussian_batch=7)
    batch = next(learner.batches(stream[1], 0))
    with torch.no_grad():  # else all logits are near 0
        for p in learner.raw.parameters():
            p += torch.randn(p.shape, generator=torch.Generator().manual_seed(0))
    terms = learner.loss(batch)
    weight = torch.cat([head.weight for head in learner.raw.tasks]).detach().double().numpy()
    bias = torch.cat([head.bias for head in learner.raw.tasks]).detach().double().numpy()
    total = 0.0
    for x, label in zip(batch.extra.images.double().numpy(), batch.extra.labels.tolist(), strict=True):
        z = weight @ x + bias  # (seen,)
        total += np.log(np.exp(z - z.max()).sum()) + z.max() - z[label]
    assert len(z) == 4 and len(batch.extra.labels) == 7
    assert terms["gaussian replay"].item() == pytest.approx(2.5 * total / 7, rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_samples_are_of_the_old_classes_statistics_in_the_network_that_learnt_them(stream, kind):
    learner = learn(tiny.case("finetune+gaussian_replay", gaussians=kind, gaussian_rank=3), stream[:1])
    features, labels = learner.features(stream[0].fresh, "probe"), stream[0].fresh.labels
    expected = ClassStatistics(learner.dim, kind, 3)
    for label in (0, 1):
        expected.add(features[labels == label])
    learner.sizes.append(2)
    learner.begin_task(stream[1])
    drawn = learner.drawn(stream[1], 0)
    batches = [next(drawn) for _ in range(592)]  # 37 blocks
    samples = torch.cat([batch.images for batch in batches]).double().numpy()
    of = torch.cat([batch.labels for batch in batches]).numpy()
    assert Counter(of.tolist()) == {0: 9472, 1: 9472}  # each as often as another
    for label in (0, 1):
        spread = np.sqrt(expected.covariance(label).diagonal())
        own = samples[of == label]
        assert (np.abs(own.mean(0) - expected.means[label]) / spread).max() < 0.06
        correlation = (np.cov(own.T) - expected.covariance(label)) / np.outer(spread, spread)
        assert np.abs(correlation).max() < 0.08


def test_samples_depend_on_seed_task_and_epoch_and_no_batch_repeats_another(stream):
    def first(learner, task, epoch):
        drawn = learner.drawn(stream[task], epoch)
        return [next(drawn).images for _ in range(20)]  # more than one block

    learner = start_second_task(stream)
    whole = first(learner, 1, 0)
    assert all(torch.equal(*pair) for pair in zip(whole, first(start_second_task(stream), 1, 0), strict=True))
    assert len({one[0, 0].item() for one in whole}) == 20
    others = [first(learner, 2, 0), first(learner, 1, 1), first(start_second_task(stream, seed=1), 1, 0)]
    assert not any(torch.equal(whole[0], other[0]) for other in others)


def test_a_batch_of_more_samples_than_are_drawn_at_once_is_whole(stream):
    learner = start_second_task(stream, gaussian_batch=700)
    assert len(next(learner.drawn(stream[1], 0)).labels) == 700


@pytest.mark.parametrize("name", BASES)
def test_old_heads_learn_and_the_backbone_gets_nothing_from_the_samples(stream, name):
    learner = start_second_task(stream, name)
    batch = next(learner.batches(stream[1], 0))
    old = learner.raw.tasks[0].weight
    term = learner.loss(batch)["gaussian replay"]
    (of_head,) = torch.autograd.grad(term, [old], retain_graph=True)
    of_backbone = torch.autograd.grad(term, list(learner.backbone.parameters()), allow_unused=True)
    assert of_head.norm() > 0 and all(gradient is None for gradient in of_backbone)
    optimiser, _ = learner.optimiser(stream[1])
    assert any(p is old for group in optimiser.param_groups for p in group["params"])


def test_the_learners_own_softmax_is_over_all_classes_seen(stream):
    learner = start_second_task(stream)
    batch = next(learner.batches(stream[1], 0))
    learner.backbone.eval()
    logits = learner.raw(learner.embed(batch.images, "student"))
    own = torch.nn.functional.cross_entropy(logits, batch.labels)
    torch.testing.assert_close(learner.loss(batch)["classification"], own)


def test_the_first_task_is_the_learners_own(stream):
    plain, plugged = (learn(tiny.case(name), stream[:1]) for name in ("lwf", "lwf+gaussian_replay"))
    assert all(torch.equal(plugged.state()[name], value) for name, value in plain.state().items() if "forw" not in name)


@pytest.mark.parametrize(("kind", "numbers"), [("full", 16 * 17 / 2), ("diagonal", 16), ("low_rank", 16 * 4)])
def test_bytes_are_those_of_the_statistics(stream, kind, numbers):
    learner = learn(tiny.case("finetune+gaussian_replay", gaussians=kind, gaussian_rank=3), stream)
    assert learner.stored_bytes() == {"class Gaussians": 6 * (16 * 8 + 4 * numbers)}  # float64 means


def test_statistics_take_one_declared_pass(stream):
    learner = learn(tiny.case("lwf+gaussian_replay"), stream)
    assert learner.declared(stream)["statistics"] == learner.backbone.forwarded["statistics"] == len(stream.train)


def test_on_still_features_heads_remember_by_the_samples_alone(stream):
    trained = learn(tiny.case("finetune", epochs=6, local_softmax=False), stream.joint()).backbone.state_dict()
    settings = {"slow_rate": 0.0, "epochs": 6, "milestones": (), "lr": 0.5, "local_softmax": False}
    right = {}
    for name in ("finetune", "finetune+gaussian_replay"):
        learner = tiny.case(name, **settings)
        learner.backbone.load_state_dict(trained)
        outputs = learn(learner, stream).predict(stream.test_after(stream[2]))
        right[name] = (outputs.heads["raw"].argmax(1) == outputs.labels).mean()
    assert right["finetune+gaussian_replay"] > right["finetune"] + 0.3


def test_it_goes_with_other_plug_ins_as_the_last(stream):
    both = learn(tiny.case("lwf+synthetic_replay+gaussian_replay"), stream[:1])
    moment = next(both.learn(stream[1]))
    assert {"replay", "synthetic distillation", "gaussian replay"} < set(moment.losses)
    aligned = learn(tiny.case("finetune+gaussian_replay+alignment", align_epochs=1), stream[:2])
    assert set(aligned.predict(stream.test_after(stream[1])).heads) == {"raw", "aligned"}
    with pytest.raises(UserError, match="name '\\+gaussian_replay' last"):
        tiny.case("lwf+gaussian_replay+synthetic_replay")


def test_what_it_cannot_do_is_one_sentence():
    with pytest.raises(UserError, match="needs linear heads.*ICaRL has none"):
        learners.settings("icarl+gaussian_replay", {})
    with pytest.raises(UserError, match="gaussians is 'round'"):
        learners.settings("finetune+gaussian_replay", {"gaussians": "round"})
    with pytest.raises(UserError, match="gaussian_batch 0"):
        learners.settings("finetune+gaussian_replay", {"gaussian_batch": 0})


def test_batches_keep_what_is_beside_them(stream):
    learner = start_second_task(stream, "lwf+synthetic_replay")
    batch = next(learner.batches(stream[1], 0))
    assert batch.extra.images.shape == (32, 16) and batch.extra.extra.images.shape == (8, 3, 16, 16)
    assert replace(batch, extra=batch.extra.extra).labels is batch.labels
