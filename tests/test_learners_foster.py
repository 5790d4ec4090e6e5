"""FOSTER: boosting beside the frozen network, and compression into one."""

import math

import numpy as np
import pytest
import tiny
import torch
from tiny import learn

from cilkit import learners
from cilkit.errors import UserError
from cilkit.learners.base import part
from cilkit.learners.foster import balanced, class_weights

SMALL = {"epochs": 2, "boosting_epochs": 2, "compression_epochs": 3, "batch_size": 8, "recipe": "shift", "per_class": 3}


def create(**hyper):
    return learners.create("foster", tiny.backbone(), seed=0, **{**SMALL, **hyper})


def start_second_task(stream, **hyper):
    learner = learn(create(**hyper), stream[:1])
    learner.sizes.append(2)
    learner.begin_task(stream[1])
    learner._optimiser, _ = learner.optimiser(stream[1])
    return learner, next(learner.batches(stream[1], 0))


def nudge(learner):
    """The new extractor, a little way off from the old one."""
    with torch.no_grad():
        for weight in learner.backbone.parameters():
            weight.mul_(1.1)


def at_epochs(learner, task):
    """Epoch -> a copy of the learner's state after it."""
    return [{name: v.clone() for name, v in learner.state().items()} for _ in learner.learn(task)]


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# ------------------------------------------------------------ the two losses


def test_class_weights_are_one_over_the_effective_number_with_mean_one():
    counts, beta = [3, 3, 40, 500], 0.97
    plain = [(1 - beta) / (1 - beta**n) for n in counts]
    found = class_weights(np.array(counts), beta)
    assert found == pytest.approx([w * 4 / sum(plain) for w in plain], rel=1e-6)
    assert class_weights(np.array([7, 7]), beta) == pytest.approx([1, 1])
    assert class_weights(np.array([1, 9]), 0.0) == pytest.approx([1, 1])


def test_balanced_distillation_written_out_and_without_gradient_at_its_target():
    random = torch.Generator().manual_seed(0)
    logits, taught = (2 * torch.randn(4, 3, generator=random, dtype=torch.float64) for _ in range(2))
    weights, total = [1.5, 0.9, 0.6], 0.0
    for s, z in zip(logits.tolist(), taught.tolist(), strict=True):
        soft = [w * math.exp(v / 2) for w, v in zip(weights, z, strict=True)]
        mine = [math.exp(v / 2) for v in s]
        total -= sum(q / sum(soft) * math.log(p / sum(mine)) for q, p in zip(soft, mine, strict=True))
    weights = torch.tensor(weights, dtype=torch.float64)
    assert balanced(logits, taught, weights, 2.0).item() == pytest.approx(total / 4, abs=1e-12)
    target = (taught + 2 * weights.log()).requires_grad_()  # softmax(target / 2) is the weighed softmax
    (grad,) = torch.autograd.grad(balanced(target, taught, weights, 2.0), target)
    assert grad.abs().max() < 1e-12


def test_the_boosting_loss_written_out(stream):
    learner, batch = start_second_task(stream, distillation=0.7)
    random = torch.Generator().manual_seed(0)
    z, u, old = (torch.randn(8, n, generator=random, dtype=torch.float64) for n in (4, 4, 2))
    counts = [3, 3, 8, 8]  # exemplars kept, images of the task
    plain = [(1 - 0.96) / (1 - 0.96**n) for n in counts]
    w = [one * 4 / sum(plain) for one in plain]
    expected = [0.0, 0.0, 0.0]
    for zs, us, olds, label in zip(z.tolist(), u.tolist(), old.tolist(), batch.labels.tolist(), strict=True):
        aligned = [value / weight for value, weight in zip(zs, w, strict=True)]
        for place, row in enumerate((aligned, us)):
            expected[place] -= row[label] - math.log(sum(map(math.exp, row)))
        soft, softer = [math.exp(v / 2) for v in zs[:2]], [math.exp(v / 2) for v in olds]
        expected[2] -= 0.7 * sum(q / sum(softer) * math.log(p / sum(soft)) for p, q in zip(soft, softer, strict=True))
    terms = learner.terms((z, u, old), batch)
    assert list(terms) == ["classification", "enhancement", "distillation"]
    assert [term.item() for term in terms.values()] == pytest.approx([value / 8 for value in expected], rel=1e-6)


# ------------------------------------------------------------ the phases


def test_boosting_starts_from_the_old_network_and_its_head(stream):
    learner, batch = start_second_task(stream)
    learner.backbone.eval()
    old, new = learner.trunk(batch.images).split(learner.dim, dim=1)
    assert torch.equal(old, new)
    nudge(learner)
    z, u, before = learner.read(learner.trunk(batch.images))
    assert z.shape == u.shape == (8, 4) and before.shape == (8, 2)
    torch.testing.assert_close(before, learner.raw.tasks[0](old))
    with torch.no_grad():
        learner.pair["W"].weight[:, learner.dim :] = 0  # without the new extractor's rows
        torch.testing.assert_close(learner.read(learner.trunk(batch.images))[0][:, :2], before)


def test_while_it_boosts_the_old_network_stands_still_and_pair_and_extractor_learn(stream):
    learner, batch = start_second_task(stream)
    learner.backbone.learning("batch")
    teacher = {name: value.clone() for name, value in learner.teacher.network.state_dict().items()}
    sum(learner.loss(batch).values()).backward()
    learner._optimiser.step()
    assert same(learner.teacher.network.state_dict(), teacher)
    assert all(weight.grad is None for weight in [*learner.teacher.network.parameters(), *learner.raw.parameters()])
    assert all(weight.grad.abs().sum() > 0 for weight in learner.pair.parameters())
    assert not same(learner.backbone.state_dict(), teacher)


def test_compression_starts_from_the_old_network_again_with_a_fresh_optimiser(stream, monkeypatch):
    learner, seen = learn(create(), stream[:1]), {}
    before = {name: value.clone() for name, value in learner.backbone.state_dict().items()}
    heads = {name: value.clone() for name, value in learner.raw.state_dict().items()}
    own = type(learner).batches

    def watched(self, task, epoch):
        boosted = {name: value.clone() for name, value in self.backbone.state_dict().items()}
        found = own(self, task, epoch)
        if epoch == 2:
            seen.update(boosted=boosted, state=len(self._optimiser.state))
            seen["now"] = {name: value.clone() for name, value in self.backbone.state_dict().items()}
            seen["heads"] = {name: value.clone() for name, value in self.raw.state_dict().items()}
            seen["decay"] = [group["weight_decay"] for group in self._optimiser.param_groups]
        return found

    monkeypatch.setattr(type(learner), "batches", watched)
    states = at_epochs(learner, stream[1])
    assert same(seen["now"], before) and not same(seen["boosted"], before)
    assert all(torch.equal(seen["heads"][name], value) for name, value in heads.items())
    assert seen["state"] == 0 and seen["decay"] == [0, 0, 0]
    assert not part(states[1], "boosted.") and same(part(states[2], "boosted."), seen["boosted"])
    assert same(part(states[4], "boosted."), seen["boosted"])  # which stands still
    assert same(part(states[4], "pair."), part(states[1], "pair."))


def test_compression_learns_from_the_pair_in_eval_mode_and_from_no_label(stream):
    learner, batch = start_second_task(stream)
    nudge(learner)
    learner.compress()
    assert not learner.boosting and not learner.boosted.training
    taught = learner.taught(batch.images)
    both = [network(batch.images, "probe") for network in (learner.teacher.network, learner.boosted)]
    assert torch.equal(taught, learner.pair["W"](torch.cat(both, 1)).detach()) and not taught.requires_grad
    terms = learner.loss(batch)
    assert terms["classification"] == 0 and not terms["classification"].requires_grad
    logits = learner.read(learner.trunk(batch.images))
    torch.testing.assert_close(terms["distillation"], balanced(logits, taught, learner.weights[1], 2.0))


def test_the_compressed_network_comes_to_answer_as_the_pair_does(stream):
    longer = {"boosting_epochs": 8, "compression_epochs": 12}
    learner, gaps = create(norm_statistics="frozen", **longer), []
    learner.load(learn(create(**longer), stream[:1]).state())
    for moment in learner.learn(stream[1]):
        if moment.epoch in (8, 19):
            learner.backbone.eval()
            images = learner.recipe.test(stream[1].train.images(), learner.backbone.device)
            with torch.no_grad():
                target = (learner.taught(images) / 2).softmax(1) * learner.weights[1]
                own = (learner.read(learner.trunk(images)) / 2).log_softmax(1)
            target /= target.sum(1, keepdim=True)
            gaps.append((target * (target.log() - own)).sum(1).mean().item())
    assert gaps[1] < gaps[0] / 2


def test_one_network_is_left_at_the_end(stream):
    learner = learn(create(), stream)
    assert learner.pair is learner.boosted is learner.teacher is None
    assert not part(learner.state(), "pair.") | part(learner.state(), "boosted.")
    assert learner.default_head == "raw" and learner.heads()["raw"] is learner.raw


def test_each_phase_has_a_fall_of_the_rate_of_its_own(stream):
    first, later = stream[0], stream[1]
    learner = create(epochs=4)
    assert [learner.epochs_of(task) for task in stream] == [4, 5, 5]
    assert [learner.rate(first, e) for e in range(4)] == pytest.approx([1, 0.8536, 0.5, 0.1464], abs=1e-4)
    assert [learner.rate(later, e) for e in range(5)] == pytest.approx([1, 0.5, 1, 0.75, 0.25])
    learner = create(milestones=(1, 2))
    assert [learner.rate(later, e) for e in range(5)] == pytest.approx([1, 0.1, 1, 0.1, 0.01])


def test_wrong_settings_are_refused():
    bad = ({"compression_epochs": 0}, {"beta1": 1.0}, {"distillation_temperature": 0.0})
    for settings in bad:
        with pytest.raises(UserError, match=next(iter(settings))):
            create(**settings)
