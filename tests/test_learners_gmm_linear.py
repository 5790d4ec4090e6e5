"""GMM's linear control: the paper's own ablation over the same projection, batches and exemplars
(gmm_icarl_lwm_mae.md, part A)."""

import numpy as np
import pytest
import tiny
import torch
from tiny_gmm import NAMES, changed, create, gradients, named, start, weights

from cilkit import learners
from cilkit.errors import UserError
from cilkit.learners.base import Batch


@pytest.fixture(scope="module")
def stream():
    return named(NAMES)


@pytest.mark.parametrize("token", ["mean", "first"])
def test_the_control_is_the_papers_head_with_later_classes_at_minus_infinity(stream, token):
    """Linear(dim -> all 6 classes), of which a mask leaves the 4 seen: loss and gradients in float64, by autograd
    over a literal formula; what stands in the rows of later classes changes nothing."""
    learner = tiny.learn(create("gmm_linear", token=token, epochs=1), stream[:1])
    batch = start(learner, stream[1])
    terms, _ = gradients(learner, batch)
    rows = [(head.weight, head.bias) for head in learner.raw.tasks]
    matrix, shift = learner.projection.linear.weight, learner.projection.linear.bias
    for later in (0.0, 9.0):
        weight = torch.cat([w.detach() for w, _ in rows] + [torch.full((2, 16), later)]).double().requires_grad_()
        bias = torch.cat([b.detach() for _, b in rows] + [torch.full((2,), later)]).double().requires_grad_()
        matrix64, shift64 = (value.detach().double().requires_grad_() for value in (matrix, shift))
        total = 0
        for tokens, label in zip(batch.images.double(), batch.labels, strict=True):
            projected = tokens @ matrix64.T + shift64  # (tokens, dim); mean 0 and scale 1 of an unaligned projection
            logits = weight @ (projected[0] if token == "first" else projected.mean(0)) + bias
            logits = torch.where(torch.arange(6) < 4, logits, -torch.inf)
            total = total + (logits.exp().sum().log() - logits[label]) / len(batch.labels)
        total.backward()
        assert sum(terms.values()).item() == pytest.approx(total.item(), abs=1e-6)
        np.testing.assert_allclose(matrix.grad, matrix64.grad, atol=1e-6)
        np.testing.assert_allclose(shift.grad, shift64.grad, atol=1e-6)
        np.testing.assert_allclose(torch.cat([w.grad for w, _ in rows]), weight.grad[:4], atol=1e-6)
        np.testing.assert_allclose(torch.cat([b.grad for _, b in rows]), bias.grad[:4], atol=1e-6)
        assert not weight.grad[4:].any() and not bias.grad[4:].any()


def test_the_control_starts_from_a_copy_of_the_captioners_connector(stream):
    learner = create("gmm_linear")
    given = weights(learner.captioner)
    assert all(
        torch.equal(value, given[f"connector.{name}"]) for name, value in learner.projection.state_dict().items()
    )
    tiny.learn(learner, stream[:2])
    assert not changed(learner.captioner, given) and not changed(learner.backbone, weights(tiny.backbone()))
    assert not torch.equal(learner.projection.linear.weight, learner.captioner.connector.linear.weight)
    found = learner.predict(stream.test_after(stream[1]))
    assert set(found.heads) == {"raw"} and found.texts is None and found.features.shape == (12, 16)
    tokens = torch.from_numpy(learner.features(stream.test_after(stream[1]), "test")).unflatten(1, learner.tokens_shape)
    learner.sizes.append(2)
    learner.begin_task(stream[2])
    learner.encoded = tokens.numpy()
    loss = learner.loss(Batch(tokens, torch.from_numpy(found.labels)))
    assert loss["classification"].isfinite()


def test_gmm_and_its_control_see_the_same_batches(stream):
    seen = []
    for name in ("gmm", "gmm_linear"):
        learner = tiny.learn(create(name, per_class=2), stream[:1])
        start(learner, stream[1])
        seen.append([batch for epoch in (0, 1) for batch in learner.batches(stream[1], epoch)])
    assert len(seen[0]) == 2 * 4  # 16 images and 4 exemplars, each 4 times, in batches of 8
    for one, other in zip(*seen, strict=True):
        assert torch.equal(one.images, other.images) and torch.equal(one.labels, other.labels)


def test_a_linear_head_refuses_what_only_a_model_that_writes_has():
    for settings, sentence in (({"names": "plain"}, "no parameter 'names'"), ({"token": "last"}, "token is 'last'")):
        with pytest.raises(UserError, match=sentence):
            learners.settings("gmm_linear", settings)
