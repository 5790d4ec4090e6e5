"""SLCA++ (specs, section 8)."""

import math

import numpy as np
import pytest
import tiny
import torch

from cilkit import backbones, learners
from cilkit.errors import UserError
from cilkit.learners import alignment
from cilkit.learners.slca_pp import LEARNING, TARGETS, reverse_cross_entropy

SMALL = {"epochs": 2, "batch_size": 8, "recipe": "shift", "lr": 0.05, "align_epochs": 2, "align_per_class": 16}


def create(**hyper):
    return learners.create("slca_pp", tiny.transformer(), seed=0, **{**SMALL, **hyper})


def begun(stream, index, **hyper):
    learner = create(**hyper)
    for task in stream[: index + 1]:
        learner.sizes.append(len(task.classes))
        learner.begin_task(task)
    return learner


@pytest.fixture(scope="module")
def stream():
    return tiny.stream(per_class=4)


@pytest.fixture(scope="module")
def learnt(stream):
    learner = create()
    for task in stream:
        list(learner.learn(task))
    return learner


def test_learning_parameters_of_a_vit_b16_are_638976():
    from cilkit import attachments

    with torch.device("meta"):
        vit = backbones.create("vit_base_patch16_224")
        lora = attachments.lora(vit, "lora", 4, TARGETS)
    assert sum(p.numel() for p in lora.parameters()) == 516_096
    named = vit.named_parameters()
    assert sum(p.numel() for name, p in named if any(word in name for word in LEARNING)) == 638_976


def test_only_norms_biases_class_token_lora_and_the_new_head_learn(stream):
    learner = begun(stream, 1)
    sum(learner.loss(next(learner.batches(stream[1], 0))).values()).backward()
    for name, parameter in learner.backbone.named_parameters():
        assert (parameter.grad is not None) == any(word in name for word in LEARNING), name
    assert learner.raw.tasks[0].weight.grad is None and learner.raw.current.weight.grad is not None


def test_frozen_weights_stay_and_the_others_move(stream, learnt):
    before = dict(create().backbone.named_parameters())
    for name, parameter in learnt.backbone.named_parameters():
        moved = not torch.equal(parameter, before[name])
        assert moved == any(word in name for word in LEARNING), name


def test_rates_and_schedule(stream):
    for index, lora_rate in ((0, 0.5), (1, 0.1)):
        learner = begun(stream, index)
        optimiser, schedule = learner.optimiser(stream[index])
        heads, lora, others = optimiser.param_groups
        assert (heads["lr"], others["lr"]) == (0.05, pytest.approx(0.005))
        assert lora["lr"] == pytest.approx(0.05 * lora_rate)
        assert len(lora["params"]) == 4 * len(TARGETS) * 2
        for _ in range(learner.epochs):
            optimiser.step()
            schedule.step()
        assert [group["lr"] for group in optimiser.param_groups] == pytest.approx([1e-4] * 3)


def test_one_lora_for_all_tasks_that_starts_where_the_weight_is_largest(stream):
    learner = create()
    first = learner.backbone.attached["lora"].layers[0]
    weight = learner.backbone.model.blocks[0].attn.qkv.weight
    values = torch.linalg.svdvals(weight)[:4]
    torch.testing.assert_close((weight @ first.A.T).norm(dim=0), values, atol=1e-4, rtol=0)
    assert not first.B.any()
    for task in stream:
        list(learner.learn(task))
    assert learner.backbone.attached["lora"].layers[0] is first and first.B.any()


def test_reverse_cross_entropy_is_its_definition():
    logits, labels = torch.tensor([[2.0, -1.0, 0.5], [40.0, 0.0, 0.0]]), torch.tensor([0, 2])
    expected = 0.0
    for row, label in zip(logits.softmax(1), labels, strict=True):
        onehot = np.eye(3)[label].clip(1e-4, 1)
        expected -= sum(max(float(p), 1e-7) * math.log(y) for p, y in zip(row, onehot, strict=True)) / 2
    assert reverse_cross_entropy(logits, labels).item() == pytest.approx(expected, rel=1e-6)


def test_the_loss_is_the_weighted_sum_on_the_current_tasks_logits(stream):
    plain, symmetric = (
        begun(stream, 1, cross_entropy=a, reverse_cross_entropy=b) for a, b in ((1.0, 1.0), (0.5, 0.25))
    )
    terms = []
    for learner in (plain, symmetric):
        with torch.no_grad():
            learner.raw.tasks[0].bias += 10  # an old head that would take over
        learner.backbone.eval()
        terms.append(learner.loss(next(learner.batches(stream[1], 0))))
    assert terms[1]["classification"].item() == pytest.approx(0.5 * terms[0]["classification"].item())
    assert terms[1]["reverse"].item() == pytest.approx(0.25 * terms[0]["reverse"].item())
    assert terms[0]["classification"] < 5


def test_heads_are_scaled_in_classification_only(stream, learnt):
    raw = {name: value.clone() for name, value in learnt.raw.state_dict().items()}
    h, switches = learnt.hyper, []
    settings = {"epochs": h.align_epochs, "per_class": h.align_per_class, "temperature": h.temperature}
    for scale in (0.02, 0.0):
        switches.append(
            alignment.align(learnt.raw, learnt.statistics, mean_scaling=False, feature_scale=scale, **settings)
        )
    found = learnt.heads()
    assert learnt.default_head == "aligned" and list(found) == ["raw", "aligned"]
    features = torch.randn(3, learnt.dim, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(found["aligned"](features), switches[0](features), rtol=0, atol=0)
    torch.testing.assert_close(learnt.aligned(mean_scaling=False)(features), switches[1](features), rtol=0, atol=0)
    assert all(torch.equal(value, raw[name]) for name, value in learnt.raw.state_dict().items())


def test_it_needs_a_transformer_and_a_rate():
    with pytest.raises(UserError, match="transformer blocks"):
        learners.create("slca_pp", tiny.backbone())
    with pytest.raises(UserError, match="slow_rate is 0"):
        create(slow_rate=0.0)
