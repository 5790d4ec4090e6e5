"""LwF: the distillation term and its teacher (baselines, sections 5 and 13)."""

import math

import pytest
import tiny
import torch
from tiny import learn

from cilkit import learners
from cilkit.errors import UserError
from cilkit.learners.lwf import distillation

SMALL = {"epochs": 2, "milestones": (1,), "batch_size": 8, "recipe": "shift", "lr": 0.05, "slow_rate": 1.0}


def create(name="lwf", **hyper):
    return learners.create(name, tiny.backbone(), seed=0, **{**SMALL, **hyper})


def start_second_task(stream, **hyper):
    learner = learn(create(**hyper), stream[:1])
    learner.sizes.append(2)
    learner.begin_task(stream[1])
    return learner, next(learner.batches(stream[1], 0))


def test_distillation_is_the_softened_cross_entropy_in_both_of_its_forms():
    random = torch.Generator().manual_seed(0)
    student, taught = (3 * torch.randn(4, 5, generator=random, dtype=torch.float64) for _ in range(2))
    total = 0.0
    for z, z_old in zip(student.tolist(), taught.tolist(), strict=True):
        soft, softer = ([math.exp(v / 2) for v in row] for row in (z, z_old))
        total -= sum(q / sum(softer) * math.log(p / sum(soft)) for p, q in zip(soft, softer, strict=True))
    assert distillation(student, taught, 2.0).item() == pytest.approx(total / 4, abs=1e-12)

    def powers(logits):  # the paper's form, from probabilities
        raised = logits.softmax(1) ** 0.5
        return raised / raised.sum(1, keepdim=True)

    in_powers = -(powers(taught) * powers(student).log()).sum(1).mean()
    assert distillation(student, taught, 2.0).item() == pytest.approx(in_powers.item(), abs=1e-12)


def test_the_gradient_vanishes_where_the_student_is_the_teacher(stream):
    learner, batch = start_second_task(stream)
    learner.backbone.eval()  # as the teacher: batch normalisation is all that differs
    weights = list(learner.backbone.parameters())
    term = learner.loss(batch)["distillation"]
    at_teacher = torch.autograd.grad(term, weights)
    assert max(grad.abs().max().item() for grad in at_teacher) < 1e-6
    with torch.no_grad():
        for weight in weights:
            weight.mul_(1.1)
    moved = torch.autograd.grad(learner.loss(batch)["distillation"], weights)
    assert max(grad.abs().max().item() for grad in moved) > 1e-4


def test_the_loss_is_local_classification_and_distillation_over_all_old_classes(stream):
    learner = learn(create(distillation=3.0), stream[:2])
    before = [learner.raw.tasks[t].weight.clone() for t in range(2)]
    learner.sizes.append(2)
    learner.begin_task(stream[2])
    learner.backbone.eval()
    batch = next(learner.batches(stream[2], 0))
    terms = learner.loss(batch)
    with torch.no_grad():
        features = learner.backbone(batch.images, "student")
        new = learner.raw.current(features).log_softmax(1)
        old = torch.cat([features @ weight.T + learner.raw.tasks[t].bias for t, weight in enumerate(before)], 1)
        taught = learner.taught(batch.images)
    assert taught.shape == (8, 4)
    expected = -new[torch.arange(8), batch.labels - 4].mean()
    torch.testing.assert_close(terms["classification"].detach(), expected)
    torch.testing.assert_close(terms["distillation"].detach(), 3 * distillation(old, taught, 2.0))


def test_the_teacher_sees_the_student_s_images_in_eval_mode_and_stays_as_it_was(stream):
    learner = learn(create(), stream[:1])
    shown = {"student": [], "teacher": []}

    class Watched(type(learner.backbone)):
        def forward(self, images, kind):
            shown[kind].append(images)
            assert self.training == (kind == "student")
            return super().forward(images, kind)

    learner.backbone.__class__ = Watched
    probe = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    told = []
    for _ in learner.learn(stream[1]):
        assert len(shown["student"]) == len(shown["teacher"])
        assert all(map(torch.equal, shown["student"], shown["teacher"]))
        told.append(learner.taught(probe))
        shown["teacher"].clear(), shown["student"].clear()
    assert len(told) == 2 and torch.equal(*told) and not told[0].requires_grad


def test_without_distillation_it_is_the_slow_learner_bit_for_bit(stream):
    plain, slow = learn(create(distillation=0.0), stream), learn(create("slow_learner"), stream)
    for name, value in slow.state().items():
        assert torch.equal(plain.state()[name], value), name
    assert "teacher" not in plain.backbone.forwarded and plain.declared(stream) == slow.declared(stream)


def test_old_heads_stay_or_learn_as_the_setting_says(stream):
    for old_heads in ("frozen", "trained"):
        learner, batch = start_second_task(stream, old_heads=old_heads)
        before = learner.raw.tasks[0].weight.clone()
        learner.optimiser(stream[1])
        sum(learner.loss(batch).values()).backward()
        assert (learner.raw.tasks[0].weight.grad is None) == (old_heads == "frozen")
        learner.sizes.pop()
        learner.raw.tasks = learner.raw.tasks[:1]
        learn(learner, [stream[1]])
        assert torch.equal(learner.raw.tasks[0].weight, before) == (old_heads == "frozen")


def test_distillation_keeps_the_old_answers(stream):
    longer = {"epochs": 8, "milestones": (7,), "lr": 0.05}
    first = learn(create(**longer), stream[:1])
    kept = []
    for weight in (0.0, 3.0):
        learner = create(distillation=weight, norm_statistics="frozen", **longer)
        learner.load(first.state())
        learn(learner, [stream[1]])
        new = stream[1].train
        old, now = (torch.from_numpy(one.features(new, "probe")) for one in (first, learner))
        with torch.no_grad():
            old, now = first.raw(old).log_softmax(1), learner.raw.tasks[0](now).log_softmax(1)
        kept.append((old.exp() * (old - now)).sum(1).mean().item())
    assert kept[1] < kept[0] / 10


def test_it_counts_what_it_declares_and_goes_on_bit_for_bit(stream):
    whole = create()
    for task in stream:
        learn(whole, [task])
        whole.predict(stream.test_after(task))
    assert whole.declared(stream) == dict(whole.backbone.forwarded)
    assert whole.declared(stream)["teacher"] == 2 * 32
    half, resumed = learn(create(), stream[:2]), create()
    resumed.load({name: value.clone() for name, value in half.state().items()})
    learn(resumed, [stream[2]])
    for name, value in learn(create(), stream).state().items():
        assert torch.equal(resumed.state()[name], value), name


def test_domains_share_their_classes_and_are_distilled_all_the_same():
    worlds = tiny.domain_stream()
    learner = learn(create(), worlds)
    assert learner.declared(worlds)["teacher"] == learner.backbone.forwarded["teacher"] == 2 * 36


def test_wrong_settings_are_refused():
    for bad in ({"old_heads": "mixed"}, {"distillation_temperature": 0.0}, {"distillation": -1.0}):
        with pytest.raises(UserError, match=next(iter(bad))):
            create(**bad)
    assert learners.settings("lwf", {"recipe_of": "pilot"})["distillation"] == 3.0
