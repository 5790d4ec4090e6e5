"""LUCIR: its three terms against slow references, imprinting, and what stands still (sddr.md, section 5)."""

import math

import numpy as np
import pytest
import tiny
import torch
from tiny import learn

from cilkit import backbones, learners
from cilkit.errors import UserError
from cilkit.learners.cosine_heads import CosineHeads
from cilkit.learners.distilling import split
from cilkit.learners.lucir import margin_ranking

SMALL = {"epochs": 2, "milestones": (1,), "batch_size": 8, "recipe": "shift", "per_class": 3}


def create(**hyper):
    return learners.create("lucir", tiny.backbone(), seed=0, **{**SMALL, **hyper})


def start(learner, task):
    """The learner at its first batch of the task, in eval mode: student and teacher see the same."""
    learner.sizes.append(len(task.classes))
    learner.begin_task(task)
    learner.backbone.eval()
    return next(learner.batches(task, 0))


# ------------------------------------------------------------ the loss, in Python numbers


def cosine(a, b):
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(x * x for x in a)) / math.sqrt(sum(y * y for y in b))


def reference(features, taught, weights, labels, known, scale, base, margin, rivals):
    """The three terms by loops over images and classes."""
    cosines = [[cosine(f, w) for w in weights] for f in features]
    entropy = 0.0
    for row, label in zip(cosines, labels, strict=True):
        entropy += math.log(sum(math.exp(scale * value) for value in row)) - scale * row[label]
    hinges = []
    for row, label in zip(cosines, labels, strict=True):
        if label < known:
            for rival in sorted(row[known:], reverse=True)[:rivals]:
                hinges.append(max(0.0, margin - row[label] + rival))
    turned = [1 - cosine(f, g) for f, g in zip(features, taught, strict=True)]
    weight = base * math.sqrt(known / (len(weights) - known))
    return {
        "classification": entropy / len(labels),
        "margin": sum(hinges) / len(hinges) if hinges else 0.0,
        "distillation": weight * sum(turned) / len(turned),
    }


@pytest.mark.parametrize("labels", [[0, 4, 1, 3, 2, 0], [3, 4, 5, 3, 4, 5], [0, 0, 1, 2, 2, 1]])
@pytest.mark.parametrize("rivals", [1, 2, 5])
def test_the_loss_is_the_paper_s_in_float64(labels, rivals):
    """Three old and three new classes; of five rivals there are only three."""
    random = torch.Generator().manual_seed(0)
    learner = create(rivals=rivals, scale=3.0, less_forget=7.0)
    learner.sizes = [3, 3]
    learner.raw = CosineHeads(5, 3.0)
    for _ in range(2):
        learner.raw.grow(3, 0, False)
    learner.raw.double()
    features, taught = (torch.randn(6, 5, dtype=torch.float64, generator=random) for _ in range(2))
    reading = learner.read(features)
    terms = learner.classification(reading, torch.tensor(labels)) | learner.distillation(reading, (taught, None))
    weights = torch.cat([head.weight for head in learner.raw.tasks])
    expected = reference(*(x.tolist() for x in (features, taught, weights)), labels, 3, 3.0, 7.0, 0.5, rivals)
    assert {name: value.item() for name, value in terms.items()} == pytest.approx(expected, abs=1e-12)


def test_ties_among_the_rivals_count_as_often_as_they_are_asked_for():
    """New classes 2 … 4 score 0.4, 0.4 and 0.1: K = 2 takes the tie twice; a rival below y - m costs nothing."""
    cosines = torch.tensor([[0.95, 0.2, 0.4, 0.4, 0.1], [0.3, 0.5, 0.4, 0.4, 0.1], [0.0, 0.0, 0.9, 0.9, 0.9]])
    labels = torch.tensor([0, 1, 4])
    found = margin_ranking(cosines, labels, 2, 0.5, 2)
    assert float(found) == pytest.approx((0.0 + 0.0 + 2 * (0.5 - 0.5 + 0.4)) / 4)
    assert float(margin_ranking(cosines, labels, 2, 0.5, 3)) == pytest.approx((2 * 0.4 + 0.1) / 6)
    cosines.requires_grad_()
    margin_ranking(cosines, labels, 2, 0.5, 2).backward()
    np.testing.assert_allclose(cosines.grad[0], 0)
    np.testing.assert_allclose(cosines.grad[1], [0, -0.5, 0.25, 0.25, 0])
    np.testing.assert_allclose(cosines.grad[2], 0)  # of a new class


def test_a_batch_without_old_classes_has_no_margin_and_finite_gradients():
    cosines = torch.zeros(2, 3, requires_grad=True)
    loss = margin_ranking(cosines, torch.tensor([1, 2]), 1, 0.5, 2)
    loss.backward()
    assert float(loss.detach()) == 0 and torch.equal(cosines.grad, torch.zeros(2, 3))


# ------------------------------------------------------------ in a stream


def test_the_first_task_is_cross_entropy_alone(stream):
    learner = create()
    batch = start(learner, stream[0])
    assert list(learner.loss(batch)) == ["classification"]


def test_a_teacher_equal_to_the_student_distils_nothing_and_gradients_are_finite(stream):
    learner = learn(create(), stream[:1])
    batch = start(learner, stream[1])
    terms = learner.loss(batch)
    assert set(terms) == {"classification", "margin", "distillation"}
    assert abs(terms["distillation"].item()) < 1e-5
    sum(terms.values()).backward()
    learning = [p for p in (*learner.backbone.parameters(), *learner.raw.parameters()) if p.requires_grad]
    assert all(p.grad.isfinite().all() for p in learning) and len(learning) > 20
    with torch.no_grad():
        learner.backbone.model.conv1[0].weight.mul_(-1)
    assert learner.loss(batch)["distillation"].item() > 0.01


@pytest.mark.parametrize(("known", "new", "weight"), [(50, 10, 11.18), (95, 5, 21.79)])
def test_lambda_is_the_paper_s(known, new, weight):
    """Read: 11.2 for 50 / 10 and 21.8 for 95 / 5 on CIFAR-100. Features turned by a right angle cost lambda."""
    learner = create()
    learner.sizes = [known, new]
    a, b = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    assert float(learner.distillation((a, None), (b, None))["distillation"]) == pytest.approx(weight, abs=0.01)


def test_new_weights_begin_as_the_normalised_class_means(stream):
    learner = learn(create(), stream[:1])
    old = learner.raw.tasks[0].weight.detach().clone()
    start(learner, stream[1])
    for row, label in zip(learner.raw.current.weight.detach(), stream[1].classes, strict=True):
        images = stream.train.of_classes([label])
        features = backbones.extract(learner.backbone, images, "probe", learner.recipe).astype(np.float64)
        mean = (features / np.linalg.norm(features, axis=1, keepdims=True)).mean(0)
        np.testing.assert_allclose(row / row.norm(), mean / np.linalg.norm(mean), atol=1e-6)
        torch.testing.assert_close(row.norm(), old.norm(dim=1).mean())


def test_old_weights_do_not_move_in_a_later_task(stream):
    learner = learn(create(weight_decay=0.1), stream[:1])
    first, scale = learner.raw.tasks[0].weight.detach().clone(), float(learner.raw.scale.detach())
    learn(learner, [stream[1]])
    second = learner.raw.tasks[1].weight.detach().clone()
    assert torch.equal(learner.raw.tasks[0].weight, first) and float(learner.raw.scale.detach()) != scale
    learn(learner, [stream[2]])
    assert torch.equal(learner.raw.tasks[0].weight, first) and torch.equal(learner.raw.tasks[1].weight, second)


def test_new_weights_the_scale_and_the_backbone_learn(stream):
    learner = learn(create(), stream[:1])
    batch = start(learner, stream[1])
    optimiser, _ = learner.optimiser(stream[1])
    sum(learner.loss(batch).values()).backward()
    before = [
        p.detach().clone()
        for p in (learner.raw.current.weight, learner.raw.scale, learner.backbone.model.conv1[0].weight)
    ]
    optimiser.step()
    after = (learner.raw.current.weight, learner.raw.scale, learner.backbone.model.conv1[0].weight)
    assert not any(torch.equal(one, other) for one, other in zip(before, after, strict=True))


def test_the_classifier_is_a_cosine(stream):
    learner = learn(create(), stream[:2])
    outputs = learner.predict(stream.test_after(stream[1]))
    weights = torch.cat([head.weight for head in learner.raw.tasks]).tolist()
    for row, logits in zip(outputs.features[:4].tolist(), outputs.heads["raw"], strict=False):
        expected = [float(learner.raw.scale.detach()) * cosine(row, w) for w in weights]
        np.testing.assert_allclose(logits, expected, atol=1e-4)
    assert (outputs.predictions("raw") == outputs.labels).mean() > 0.4  # chance is 1 / 4
    assert learner.default_head == "raw" and set(outputs.heads) == {"raw", "nme"}


def test_replayed_images_of_old_classes_enter_the_margin(stream):
    """As a plug-in asks for them: real and other rows through the network together, then split."""
    learner = learn(create(), stream[:1])
    batch = start(learner, stream[1])
    fake = torch.flip(batch.images, (3,))
    _, theirs = split(learner.trunk(torch.cat([batch.images, fake])), [8, 8])
    labels = torch.tensor([0, 1] * 4)
    terms = learner.classification(learner.read(theirs), labels, old=True)
    torch.testing.assert_close(terms["margin"], margin_ranking(learner.read(theirs)[1], labels, 2, 0.5, 2))
    assert float(terms["margin"].detach()) > 0
    assert "margin" not in learner_without_margin(stream).classification(learner.read(theirs), labels, old=True)


def learner_without_margin(stream):
    learner = learn(create(margin_weight=0.0), stream[:1])
    start(learner, stream[1])
    return learner


def test_bad_settings_are_refused():
    with pytest.raises(UserError, match="rivals is 0"):
        create(rivals=0)
    with pytest.raises(UserError, match="at least one a class"):
        create(per_class=0)
