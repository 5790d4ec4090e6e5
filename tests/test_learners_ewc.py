"""EWC: closed forms of the Fisher information and the penalty (baselines, sections 4 and 13)."""

import math

import numpy as np
import pytest
import tiny
import torch
from tiny import learn
from torch import nn

from cilkit import backbones, learners
from cilkit.errors import UserError
from cilkit.learners.ewc import elastic

SMALL = {"epochs": 2, "milestones": (1,), "batch_size": 8, "recipe": "shift", "lr": 0.05}


class Linear(nn.Module):
    """A backbone that is one matrix: with the identity for a head, logistic regression on 192 pixels."""

    num_features, pretrained_cfg = 2, {}

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(192, 2, bias=False)

    def forward(self, images):
        return self.layer(images[:, :, ::2, ::2].flatten(1))


def create(name="ewc", backbone=None, **hyper):
    return learners.create(name, backbone or tiny.backbone(), seed=0, **{**SMALL, **hyper})


@pytest.fixture(scope="module")
def logistic(stream):
    """(learner in the first task, images (n, 192), labels, probabilities (n, 2)) of a logistic regression."""

    def made(**hyper):
        torch.manual_seed(0)
        learner = create(backbone=backbones.Backbone(Linear(), "linear", {}), recipe="none", **hyper)
        learner.sizes.append(2)
        learner.begin_task(stream[0])
        with torch.no_grad():
            learner.raw.current.weight.copy_(torch.eye(2))
        train = stream[0].train
        pixels = learner.recipe.test(train.images())[:, :, ::2, ::2].flatten(1).double().numpy()
        logits = pixels @ learner.backbone.model.layer.weight.detach().double().numpy().T
        shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        return learner, pixels, train.labels, shares

    return made


def gradients(pixels, labels, shares):
    """d log p(y | x) / dW of every image, (n, 2, 192)."""
    return (np.eye(2)[labels] - shares)[:, :, None] * pixels[:, None]


def found(learner, task):
    return learner.information(task)["model.layer.weight"].numpy()


@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_fisher_of_a_logistic_regression_is_the_analytic_diagonal_at_any_batch_size(logistic, stream, batch_size):
    learner, *facts = logistic(batch_size=batch_size)
    expected = (gradients(*facts) ** 2).mean(0)
    np.testing.assert_allclose(found(learner, stream[0]), expected, rtol=1e-4, atol=1e-9)


def test_fisher_s_other_estimators_are_what_they_say(logistic, stream):
    learner, pixels, labels, shares = logistic(fisher="weighted")
    own = shares[np.arange(len(labels)), labels]
    expected = (own[:, None, None] * gradients(pixels, labels, shares) ** 2).mean(0)
    np.testing.assert_allclose(found(learner, stream[0]), expected, rtol=1e-4, atol=1e-9)

    learner, *facts = logistic(fisher="batch", batch_size=16)  # the task is one batch
    np.testing.assert_allclose(found(learner, stream[0]), gradients(*facts).mean(0) ** 2, rtol=1e-3, atol=1e-9)

    learner, pixels, labels, shares = logistic(fisher_labels="argmax")
    expected = (gradients(pixels, shares.argmax(1), shares) ** 2).mean(0)
    np.testing.assert_allclose(found(learner, stream[0]), expected, rtol=1e-4, atol=1e-9)

    learner, *facts = logistic(fisher_ceiling=1e-4)
    expected = (gradients(*facts) ** 2).mean(0)
    assert expected.max() > 1e-4 and found(learner, stream[0]).max() == np.float32(1e-4)


def test_sampled_labels_follow_the_network(logistic):
    """The mean log-likelihood of 20,000 draws from p is minus p's entropy."""
    learner, *_ = logistic(fisher_labels="sampled")
    learner.embed = lambda images, kind: torch.tensor([[0.0, 1.0]]).repeat(len(images), 1)
    p = 1 / (1 + math.e)
    score = learner.log_likelihood(torch.zeros(20000, 3, 1, 1), None, torch.Generator().manual_seed(0))
    assert score.item() == pytest.approx(p * math.log(p) + (1 - p) * math.log(1 - p), abs=0.01)


def test_the_squared_mean_gradient_is_smaller_than_the_mean_square(logistic, stream):
    whole, each = (found(logistic(fisher=how, batch_size=16)[0], stream[0]) for how in ("batch", "each"))
    assert (whole <= each + 1e-9).all() and whole.sum() < each.sum() / 2


def test_penalty_and_its_gradient_vanish_at_the_anchor_and_are_the_quadratic_form_elsewhere(stream):
    learner = learn(create(penalty=7.0, slow_rate=1.0), stream[:1])
    learner.sizes.append(2)
    learner.begin_task(stream[1])
    learner.backbone.eval()
    batch = next(learner.batches(stream[1], 0))
    value = learner.loss(batch)["penalty"]
    grads = torch.autograd.grad(value, list(learner.weights.values()))
    assert value.item() == 0 and not any(grad.any() for grad in grads)
    with torch.no_grad():
        for weight in learner.weights.values():
            weight += 0.1
    slowly = 0.0
    for name, weight in learner.weights.items():
        parts = (learner.fisher[name], weight, learner.anchor[name])
        for f, w, a in zip(*(part.flatten().tolist() for part in parts), strict=True):
            slowly += f * (w - a) ** 2
    assert learner.loss(batch)["penalty"].item() == pytest.approx(7.0 / 2 * slowly, rel=1e-4)


def test_without_penalty_it_is_the_slow_learner_bit_for_bit(stream):
    plain, slow = learn(create(penalty=0.0), stream), learn(create("slow_learner"), stream)
    for name, value in slow.state().items():
        assert torch.equal(plain.state()[name], value), name
    assert "fisher" not in plain.backbone.forwarded and plain.declared(stream) == slow.declared(stream)
    frozen = create(slow_rate=0.0)
    assert "fisher" not in frozen.declared(stream) and not learn(frozen, stream[:1]).fisher


def test_a_stronger_penalty_holds_the_backbone_where_it_was(stream):
    """Distance from theta*, as F measures it; then all of it, where F is the same everywhere."""
    first = learn(create(slow_rate=1.0), stream[:1]).state()
    level = {name: torch.ones_like(value) for name, value in first.items() if name.startswith("fisher.")}

    def moved(state, penalty, own_fisher):
        learner = create(slow_rate=1.0, penalty=penalty)
        learner.load(state)
        anchor, fisher = dict(learner.anchor), dict(learner.fisher)
        learn(learner, [stream[1]])
        ones = {name: torch.ones_like(value) for name, value in anchor.items()}
        with torch.no_grad():
            return elastic(learner.weights, anchor, fisher if own_fisher else ones).item()

    assert moved(first, 0.0, True) > 1.5 * moved(first, 1e5, True) > 0
    free, held, tight = (moved(first | level, penalty, False) for penalty in (0.0, 30.0, 100.0))
    assert free > 5 * held > 25 * tight > 0
    with pytest.raises(UserError, match="penalty loss"):  # lr x penalty x F is far above 2
        moved(first | level, 1e6, False)


def test_fisher_information_is_merged_as_the_setting_says(stream):
    first = learn(create(slow_rate=1.0, fisher_images=4), stream[:1])
    for setting, old, new in (
        ({"old_share": 0.25}, 0.25, 0.75),
        ({"merge": "classes"}, 0.5, 0.5),  # 2 of 4 classes
        ({"merge": "sum"}, 1.0, 1.0),
    ):
        learner = create(slow_rate=1.0, fisher_images=4, **setting)
        learner.load(first.state())
        learn(learner, [stream[1]])
        fresh = learner.information(stream[1])
        for name, value in learner.fisher.items():
            torch.testing.assert_close(value, old * first.fisher[name] + new * fresh[name])
            assert torch.equal(learner.anchor[name], learner.weights[name])


def test_it_counts_and_stores_what_it_says(stream):
    learner = create(fisher_images=10)
    for task in stream:
        learn(learner, [task])
        learner.predict(stream.test_after(task))
    assert learner.declared(stream) == dict(learner.backbone.forwarded)
    assert learner.declared(stream)["fisher"] == 30
    asked = learner.asked(stream[1])
    assert len(asked) == len(set(asked.index.tolist())) == 10 and set(asked.index) < set(stream[1].train.index)
    weights = sum(value.nbytes for value in learner.backbone.parameters())
    assert learner.stored_bytes() == {"Fisher information and anchor": 2 * weights}


def test_it_goes_on_from_a_saved_state_bit_for_bit(stream):
    """A file's tensors come back by name, not in the network's order."""
    whole = learn(create(slow_rate=1.0), stream)
    half = learn(create(slow_rate=1.0), stream[:2])
    resumed = create(slow_rate=1.0)
    resumed.load({name: value.clone() for name, value in sorted(half.state().items())})
    learn(resumed, [stream[2]])
    for name, value in whole.state().items():
        assert torch.equal(resumed.state()[name], value), name


def test_it_takes_streams_of_domains_and_all_data(stream):
    for some in (tiny.domain_stream(), stream.cumulative()):
        learner = learn(create(merge="classes", slow_rate=1.0), some)
        assert learner.loss(next(learner.batches(some[len(some) - 1], 0)))["penalty"].item() >= 0
        assert all(torch.isfinite(value).all() for value in learner.fisher.values())


def test_wrong_settings_are_refused():
    for bad in (
        {"fisher": "diagonal"},
        {"fisher_labels": "soft"},
        {"merge": "online"},
        {"old_share": 1.5},
        {"penalty": -1},
    ):
        with pytest.raises(UserError, match=next(iter(bad))):
            create(**bad)
    assert learners.settings("ewc", {"recipe_of": "pilot"})["fisher"] == "batch"
