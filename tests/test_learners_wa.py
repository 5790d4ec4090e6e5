"""WA: the mixed loss, and new weights as long as old ones."""

import math

import pytest
import tiny
import torch
from tiny import learn

from cilkit import learners
from cilkit.errors import UserError
from cilkit.learners.heads import TaskHeads
from cilkit.learners.wa import WA, align

SMALL = {"epochs": 2, "milestones": (1,), "batch_size": 8, "recipe": "shift", "per_class": 3}


def create(**hyper):
    return learners.create("wa", tiny.backbone(), seed=0, **{**SMALL, **hyper})


def start_task(stream, index, **hyper):
    learner = learn(create(**hyper), stream[:index] if index else [])
    learner.sizes.append(len(stream[index].classes))
    learner.begin_task(stream[index])
    return learner, next(learner.batches(stream[index], 0))


def lengths(heads):
    return [head.weight.detach().norm(dim=1) for head in heads.tasks]


def test_the_loss_is_the_paper_s_written_out(stream):
    learner, batch = start_task(stream, 2)
    learner.backbone.eval()
    random = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(8, 6, generator=random, dtype=torch.float64)
    taught = 2 * torch.randn(8, 4, generator=random, dtype=torch.float64)
    ce = kd = 0.0
    for z, z_old, label in zip(logits.tolist(), taught.tolist(), batch.labels.tolist(), strict=True):
        ce -= z[label] - math.log(sum(math.exp(v) for v in z))
        soft, softer = [math.exp(v / 2) for v in z[:4]], [math.exp(v / 2) for v in z_old]
        kd -= sum(q / sum(softer) * math.log(p / sum(soft)) for p, q in zip(soft, softer, strict=True))
    learner.taught = lambda images: taught
    for weights, own in (((2 / 6, 4 / 6), {}), ((1, 2), {"distillation": 2.0})):  # the paper's, and PyCIL's
        learner.hyper = WA.Hyper(**SMALL, **own)
        terms = learner.terms(logits, batch)
        assert terms["classification"].item() == pytest.approx(weights[0] * ce / 8, abs=1e-12)
        assert terms["distillation"].item() == pytest.approx(weights[1] * kd / 8, abs=1e-12)


def test_the_share_is_that_of_old_classes_and_nothing_is_distilled_in_the_first_task():
    uneven = tiny.stream(increments=[1, 3, 2])
    shares = []
    for task in uneven:
        learner, batch = start_task(uneven, task.index)
        shares.append(learner.share)
        assert set(learner.loss(batch)) == {"classification"} | ({"distillation"} if task.index else set())
        with torch.no_grad():  # of a whole cross-entropy, what the share leaves
            logits = learner.read(learner.trunk(batch.images))
            whole = -logits.log_softmax(1).gather(1, batch.labels[:, None]).mean()
            torch.testing.assert_close(learner.terms(logits, batch)["classification"], (1 - learner.share) * whole)
    assert shares == [0, 1 / 4, 4 / 6]


def test_aligned_weights_have_the_old_mean_length_and_nothing_else_changes():
    heads, random = TaskHeads(5), torch.Generator().manual_seed(0)
    for task, classes in enumerate((2, 3, 4)):
        heads.grow(classes, task, False, "cpu")
        heads.tasks[task].weight.data = (task + 1) * torch.randn(classes, 5, generator=random)
        heads.tasks[task].bias.data = torch.randn(classes, generator=random)
    before = {name: value.clone() for name, value in heads.state_dict().items()}
    align(heads)
    after = heads.state_dict()
    mean = [sum(math.sqrt(sum(w * w for w in row)) for row in rows) / len(rows) for rows in (
        before["tasks.0.weight"].tolist() + before["tasks.1.weight"].tolist(),
        after["tasks.2.weight"].tolist(),
        before["tasks.2.weight"].tolist(),
    )]  # fmt: skip
    assert mean[1] == pytest.approx(mean[0], rel=1e-6)
    torch.testing.assert_close(after["tasks.2.weight"], before["tasks.2.weight"] * mean[0] / mean[2])
    assert all(torch.equal(after[name], before[name]) for name in before if name != "tasks.2.weight")


def test_every_later_task_ends_aligned_and_the_first_does_not(stream, monkeypatch):
    called = []
    monkeypatch.setattr("cilkit.learners.wa.align", lambda heads: (called.append(len(heads.tasks)), align(heads)))
    learner = create()
    for task in stream:
        learn(learner, [task])
        if task.index:
            *old, new = lengths(learner.raw)
            assert new.mean().item() == pytest.approx(torch.cat(old).mean().item(), rel=1e-5)
    assert called == [2, 3]


def test_the_next_task_s_teacher_answers_by_the_aligned_head(stream):
    learner = learn(create(), stream[:2])
    kept = learner.raw.trainable_copy()
    learner.sizes.append(2)
    learner.begin_task(stream[2])
    batch = next(learner.batches(stream[2], 0))
    features = learner.teacher.network(batch.images, "probe")
    assert torch.equal(learner.taught(batch.images), kept(features).detach())


def test_clipping_leaves_no_weight_below_zero(stream):
    plain, clipped = (learn(create(clipping=clipping), stream[:2]) for clipping in (False, True))
    lowest = [min(head.weight.min().item() for head in learner.raw.tasks) for learner in (plain, clipped)]
    assert lowest[0] < 0 and lowest[1] == 0
    assert max(head.weight.max().item() for head in clipped.raw.tasks) > 0


def test_wrong_settings_are_refused():
    for bad in ({"distillation_temperature": 0.0}, {"distillation": -1.0}):
        with pytest.raises(UserError, match=next(iter(bad))):
            create(**bad)
    assert learners.settings("wa", {"recipe_of": "pilot"})["distillation"] == 2.0
