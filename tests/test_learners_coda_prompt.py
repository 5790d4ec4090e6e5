"""CODA-Prompt: its acceptance tests (specs, section 13), and its formulas against slow and literal ones."""

import math

import pytest
import tiny
import torch
from torch.nn import functional as F

from cilkit import backbones, learners
from cilkit.errors import UserError
from cilkit.learners import prompting
from cilkit.learners.coda_prompt import PARTS, attended, orthonormal, penalty


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_as_many_parameters_as_the_paper_s():
    with torch.device("meta"):
        backbone = backbones.create("vit_base_patch16_224")
    learner = learners.create("coda_prompt", backbone, prompt_layers=(0, 1, 2, 3, 4), components=10, length=8)
    shapes = {"components": (5, 10, 8, 768), "keys": (5, 10, 768), "attentions": (5, 10, 768)}
    for task in range(10):
        for name, shape in shapes.items():
            learner.add_prompts(f"{name}.{task}", torch.empty(shape, device="meta"))
    counts = {name: learner.stacked(name).numel() for name in PARTS}
    assert counts == {"components": 3_072_000, "keys": 384_000, "attentions": 384_000}


def test_each_component_is_weighed_by_the_cosine_of_the_attended_query():
    queries, attentions, keys = normal(4, 32), normal(3, 7, 32, seed=1), normal(3, 7, 32, seed=2)
    found = attended(queries, attentions, keys)  # (layers, batch, m)
    for layer in range(3):
        for b in range(4):
            for m in range(7):
                expected = F.cosine_similarity(queries[b] * attentions[layer, m], keys[layer, m], dim=0)
                torch.testing.assert_close(found[layer, b, m], expected, atol=1e-6, rtol=1e-5)
    assert torch.equal(attended(torch.zeros(1, 32), attentions, keys), torch.zeros(3, 1, 7))


def test_the_prefix_is_the_weighted_sum_its_first_half_keys(monkeypatch):
    stream, calls, attend = tiny.stream(), [], prompting.attend
    monkeypatch.setattr(prompting, "attend", lambda *given: (calls.append(given), attend(*given))[1])
    learner = tiny.case("coda_prompt", components=3, length=4, prompt_layers=(1, 3))
    for index in (0, 1):
        learner.sizes.append(2)
        learner.begin_task(stream[index])
    images = next(learner.batches(stream[1], 0)).images
    learner.embed(images, "test")
    weights = attended(learner.query(images), learner.stacked("attentions"), learner.stacked("keys"))
    assert [call[0] for call in calls] == [learner.backbone.model.blocks[layer].attn for layer in (1, 3)]
    for layer, (_, keys, values, _) in enumerate(calls):
        prompt = sum(
            weights[layer, :, m, None, None] * learner.stacked("components")[layer, m] for m in range(6)
        )  # (batch, 4, dim)
        torch.testing.assert_close(keys, prompt[:, :2])
        torch.testing.assert_close(values, prompt[:, 2:])


def test_old_components_get_no_gradient_and_new_ones_start_orthogonal_to_them():
    stream = tiny.stream()
    learner = tiny.case("coda_prompt", components=3, lr=0.1)
    list(learner.learn(stream[0]))
    old = {name: learner.stacked(name).detach().clone() for name in PARTS}
    learner.sizes.append(2)
    learner.begin_task(stream[1])
    for name in PARTS:
        new, before = learner.prompts[f"{name}.1"].detach().flatten(2), old[name].flatten(2)
        torch.testing.assert_close(new @ new.mT, torch.eye(3).expand(4, 3, 3), atol=1e-5, rtol=0)
        assert (new @ before.mT).abs().max() < 1e-5
        assert (before @ before.mT - torch.eye(3)).abs().max() > 0.01  # trained: no longer orthonormal themselves
    sum(learner.loss(next(learner.batches(stream[1], 0))).values()).backward()
    assert all((p.grad is None) == name.endswith(".0") for name, p in learner.prompts.items())
    assert all(torch.equal(learner.stacked(name)[:, :3], old[name]) for name in PARTS)


def literal_gram_schmidt(count, old, seed):
    rows, drawn = (
        list(old.double()),
        torch.randn(count, old.shape[1], generator=torch.Generator().manual_seed(seed), dtype=torch.float64),
    )
    for v in drawn:
        rows.append(v - sum(((u @ v) / (u @ u)) * u for u in rows))
    return torch.stack([row / row.norm() for row in rows[len(old) :]]).float()


def test_gram_schmidt_is_the_released_one_and_the_exact_one_where_these_agree():
    trained = normal(4, 20)
    untrained = torch.linalg.qr(normal(20, 4)).Q.T * torch.tensor([[3.0], [1.0], [0.5], [2.0]])
    for old, agree in ((trained, False), (untrained, True)):
        expected = literal_gram_schmidt(3, old, seed=5)
        torch.testing.assert_close(orthonormal(3, old, 5, exact=False), expected, atol=1e-6, rtol=1e-5)
        assert torch.allclose(orthonormal(3, old, 5, exact=True), expected, atol=1e-5) is agree
    with pytest.raises(UserError, match="23 components have no room"):
        orthonormal(19, trained, 0)


def test_the_rate_falls_along_a_cosine_that_ends_at_1_6_percent():
    learner = tiny.case("coda_prompt", epochs=20)
    rates = [learner.rate(epoch) for epoch in range(20)]
    assert rates == pytest.approx([math.cos(99 * math.pi * epoch / (200 * 19)) for epoch in range(20)])
    assert rates[-1] == pytest.approx(0.0157, abs=1e-4) and tiny.case("coda_prompt", epochs=1).rate(0) == 1
    assert tiny.case("coda_prompt", cosine=False).rate(1) == 1
    learner.sizes.append(2)
    learner.begin_task(tiny.stream()[0])
    optimiser, schedule = learner.optimiser(tiny.stream()[0])
    optimiser.step()
    schedule.step()
    assert optimiser.param_groups[0]["lr"] == pytest.approx(learner.hyper.lr * rates[1])


def test_the_penalty_is_zero_on_orthonormal_rows_and_part_of_the_loss_where_asked():
    rows = torch.stack([torch.linalg.qr(normal(20, 4, seed=seed)).Q.T for seed in (0, 1)])
    assert penalty(rows) < 1e-10
    torch.testing.assert_close(penalty(2 * rows), torch.tensor(2 * 4 * 9 / 16.0))  # (4 - 1)^2 on the diagonal
    stream = tiny.stream()
    for weight, terms in ((0.0, {"classification"}), (0.1, {"classification", "orthonormality"})):
        learner = tiny.case("coda_prompt", penalty=weight)
        learner.sizes.append(2)
        learner.begin_task(stream[0])
        assert set(learner.loss(next(learner.batches(stream[0], 0)))) == terms
