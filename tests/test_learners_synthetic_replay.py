import threading
from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from torch.nn.functional import cross_entropy

from cilkit import learners
from cilkit.data import loading
from cilkit.errors import UserError
from cilkit.learners.base import Batch
from cilkit.learners.distilling import Distilling
from cilkit.learners.synthetic_replay import draw, rows_by_class

SMALL = {"epochs": 2, "milestones": (1,), "batch_size": 8, "recipe": "shift", "lr": 0.05, "per_class": 3}
ARMS = {"none": (0.0, 0.0), "distillation": (0.0, 1.0), "replay": (1.0, 0.0), "both": (1.0, 1.0)}


def create(a=1.0, b=1.0, images="all", learner="icarl", **hyper):
    images = tiny.image_set(seed=7) if images == "all" else images
    name = f"{learner}+synthetic_replay"
    hyper = {
        key: value for key, value in {**SMALL, **hyper}.items() if key in learners.settings(name, {}) or key in hyper
    }
    return learners.create(name, tiny.backbone(), a=a, b=b, images=images, **hyper)


def learn(learner, tasks):
    return [moment.losses for task in tasks for moment in learner.learn(task)]


def start_second_task(stream, **settings):
    learner = create(**settings)
    learn(learner, stream[:1])
    learner.sizes.append(2)
    learner.begin_task(stream[1])
    return learner


@pytest.mark.parametrize("name", [name for name in learners.NAMES if issubclass(learners.find(name), Distilling)])
def test_without_weights_it_is_the_learner_bit_for_bit(stream, name):
    plain, plugged = tiny.case(name), tiny.case(f"{name}+synthetic_replay", a=0.0, b=0.0)
    assert learn(plain, stream) == learn(plugged, stream)
    ours, theirs = plugged.state(), plain.state()
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())
    assert plugged.declared(stream) == plain.declared(stream)


def in_float64(stream, learner, **settings):
    """At the second task's start, batch statistics frozen; the batch, real and synthetic, and the weights."""
    made = start_second_task(stream, learner=learner, **settings)
    batch = next(made.batches(stream[1], 0))
    made.backbone.double().eval(), made.raw.double()
    made.teacher.network.double(), made.teacher.heads.double()
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():  # so that the student is not the teacher
        for p in made.backbone.parameters():
            p += 0.1 * p.std(correction=0) * torch.randn(p.shape, generator=noise, dtype=p.dtype)
    double = lambda one: Batch(one.images.double(), one.labels)  # noqa: E731
    return made, replace(double(batch), extra=double(batch.extra))


def gradient(made, batch, **weights):
    made.hyper = replace(made.hyper, **weights)
    parameters = [p for p in [*made.backbone.parameters(), *made.raw.parameters()] if p.requires_grad]
    grads = torch.autograd.grad(sum(made.loss(batch).values()), parameters, allow_unused=True)
    return torch.cat([g.flatten() for g in grads if g is not None])


@pytest.mark.parametrize("learner", ["icarl", "lucir", "podnet", "wa", "bic", "lwf", "lwm"])
def test_the_gradient_is_linear_in_a_and_b(stream, learner):
    made, batch = in_float64(stream, learner)
    at = lambda a, b: gradient(made, batch, a=a, b=b)  # noqa: E731
    base, in_a, in_b = at(0.0, 0.0), at(1.0, 0.0), at(0.0, 1.0)
    assert min((in_a - base).norm(), (in_b - base).norm()) > 1e-3 * base.norm()
    for a, b in ((0.3, 0.0), (0.0, 2.5), (0.7, 1.9)):
        expected = base + a * (in_a - base) + b * (in_b - base)
        assert (at(a, b) - expected).norm() < 1e-5 * expected.norm()


def test_the_loss_is_the_formula(stream):
    """L_cls(real) + a L_cls(synthetic) + lambda [L_dist(real) + b L_dist(synthetic)], for iCaRL's softmax."""
    made, batch = in_float64(stream, "icarl", criterion="ce", a=0.7, b=1.9, distillation=2.0)
    rows = {"real": batch, "fake": batch.extra}
    z = {name: made.raw(made.backbone(one.images, "student")) for name, one in rows.items()}
    taught = {name: made.teacher.heads(made.teacher.network(one.images, "teacher")) for name, one in rows.items()}
    cls = {name: cross_entropy(z[name], one.labels) for name, one in rows.items()}
    dist = {n: -((taught[n] / 2).softmax(1) * (z[n][:, :2] / 2).log_softmax(1)).sum(1).mean() for n in rows}
    expected = cls["real"] + 0.7 * cls["fake"] + 2.0 * (dist["real"] + 1.9 * dist["fake"])
    torch.testing.assert_close(sum(made.loss(batch).values()), expected)


def test_with_norms_split_real_images_do_not_see_synthetic_ones(stream):
    together, apart = (start_second_task(stream, split_norm=split) for split in (False, True))
    batch = next(apart.batches(stream[1], 0))
    other = replace(batch, extra=Batch(batch.extra.images.flip(0) * 3 + 1, batch.extra.labels.flip(0)))
    for learner, same in ((together, False), (apart, True)):
        learner.backbone.train()
        first, second = (learner.trunks(one.images, one.extra.images)[0] for one in (batch, other))
        assert torch.equal(first, second) == same
    plain = start_second_task(stream, a=0.0, b=0.0)
    for _ in range(2):  # as above: running statistics know the real images alone
        plain.backbone.train()(batch.images, "student")
    for ours, real in zip(apart.backbone.norms, plain.backbone.norms, strict=True):
        assert torch.equal(ours.running_mean, real.running_mean) and ours.momentum == real.momentum


def test_external_images_are_for_distillation_and_carry_no_label(stream):
    external = tiny.image_set(classes=3, seed=9, prefix="strange")
    made = start_second_task(stream, a=0.0, source="unlabelled", images=external)
    batch = next(made.batches(stream[1], 0))
    assert set(batch.extra.labels.tolist()) == {0}  # of none
    terms = made.loss(batch)
    assert "replay" not in terms and terms["synthetic distillation"] > 0
    assert made.stored_bytes()["external images"] == len(external) * 768
    with pytest.raises(UserError, match="distillation alone"):
        create(source="unlabelled", images=external)


def test_where_old_classes_are_replayed_every_head_of_lwf_learns_over_all_of_them(stream):
    for a, local in ((1.0, False), (0.0, True)):  # replayed, and distilled only
        made = start_second_task(stream, learner="lwf", a=a)
        batch = next(made.batches(stream[1], 0))
        logits = made.read(made.trunk(batch.images))
        over = logits[:, 2:] if local else logits
        expected = cross_entropy(over, batch.labels - (2 if local else 0))
        torch.testing.assert_close(made.classification(logits, batch.labels)["classification"], expected)
        assert made.raw.tasks[0].weight.requires_grad != local


def test_images_painted_anew_for_every_task_are_not_stored(stream):
    class Painter:
        bytes, asked = 12345, []

        def paint(self, names, per_class, seed):
            self.asked.append((list(names), per_class, seed))
            return tiny.image_set(seed=seed % 1000).keep_classes(names)

    painter = Painter()
    learner = create(images=painter, repaint=True, painted_per_class=4)
    learn(learner, stream)
    assert [(names, count) for names, count, _ in painter.asked] == [
        (stream.class_names[:2], 4),
        (stream.class_names[:4], 4),
    ]
    assert painter.asked[0][2] != painter.asked[1][2]
    assert learner.stored_bytes() == {"exemplars": 18 * 768, "generator": 12345}
    with pytest.raises(UserError, match="repaint needs a painter"):
        create(repaint=True)


def test_reading_ahead_changes_no_image(stream, monkeypatch):
    at_once = list(start_second_task(stream).batches(stream[1], 0))
    monkeypatch.setattr(loading, "ahead_for", lambda images, device: 2)
    learner, reading = start_second_task(stream), set()
    read = learner.synthetic.read
    learner.synthetic.read = lambda *rows: reading.add(threading.current_thread()) or read(*rows)
    ahead = list(learner.batches(stream[1], 0))
    assert len(reading) == 1 and threading.current_thread() not in reading
    for one, other in zip(at_once, ahead, strict=True):
        for ours, theirs in ((one, other), (one.extra, other.extra)):
            assert torch.equal(ours.images, theirs.images) and torch.equal(ours.labels, theirs.labels)


def test_synthetic_images_are_of_classes_seen_before_the_task_and_uniform_over_them(stream):
    learner = start_second_task(stream)
    learn_on = [learner.batches(stream[1], epoch) for epoch in range(40)]
    labels = torch.cat([batch.extra.labels for batches in learn_on for batch in batches])
    assert set(labels.tolist()) == {0, 1}
    assert abs((labels == 0).float().mean() - 0.5) < 0.05
    assert all(batch.extra is None for batch in create().batches(stream[0], 0))


def test_an_image_set_is_read_by_class_name_not_by_its_own_labels(stream):
    images = tiny.image_set(seed=7)
    names = [stream.class_names[label] for label in (0, 1)]
    rows = rows_by_class(images, names)
    positions, labels = draw(rows, 200, np.random.default_rng(0))
    assert [images.class_names[label] for label in images.labels[positions]] == [names[label] for label in labels]
    assert len(set(positions.tolist())) == sum(len(found) for found in rows)  # every image is reached


def test_uneven_classes_are_still_drawn_evenly():
    rows = [np.arange(100), np.array([100])]
    _, labels = draw(rows, 4000, np.random.default_rng(0))
    assert abs(labels.mean() - 0.5) < 0.03


def test_weighted_by_mean_each_term_is_over_real_and_synthetic_rows_together(stream):
    learner = start_second_task(stream, weighting="mean")
    learner.backbone.eval()
    batch = next(learner.batches(stream[1], 0))
    terms = learner.loss(batch)
    real, fake = (learner.read(learner.trunk(one.images)) for one in (batch, batch.extra))
    one = learner.terms(real, batch)
    replay = learner.classification(fake, batch.extra.labels, old=True)["classification"]
    distilled = learner.distillation(fake, learner.taught(batch.extra.images))["distillation"]
    torch.testing.assert_close(terms["classification"] + terms["replay"], (one["classification"] + replay) / 2)
    both = (one["distillation"] + distilled) / 2
    torch.testing.assert_close(terms["distillation"] + terms["synthetic distillation"], both)


@pytest.mark.parametrize("arm", ["distillation", "replay"])
def test_an_arm_leaves_the_other_term_as_the_learner_has_it(stream, arm):
    a, b = ARMS[arm]
    learner = start_second_task(stream, a=a, b=b)
    learner.backbone.eval()
    batch = next(learner.batches(stream[1], 0))
    terms, plain = learner.loss(batch), learner.terms(learner.read(learner.trunk(batch.images)), batch)
    other = "classification" if arm == "distillation" else "distillation"
    torch.testing.assert_close(terms[other], plain[other])
    assert ("replay" in terms, "synthetic distillation" in terms) == (bool(a), bool(b))


def test_the_teacher_gets_no_gradient_from_synthetic_images(stream):
    learner = start_second_task(stream, a=0.0)
    batch = next(learner.batches(stream[1], 0))
    taught = learner.taught(batch.extra.images)
    assert not taught.requires_grad
    sum(learner.loss(batch).values()).backward()
    assert torch.equal(learner.taught(batch.extra.images), taught)


def test_exemplars_and_means_know_nothing_of_synthetic_images(stream):
    learner = create()
    learn(learner, stream)
    real = {image.tobytes() for image in stream.train.images()}
    assert all(image.tobytes() in real for image in learner.memory.of(stream.train).images())
    assert learner.stored_bytes() == {"exemplars": 18 * 768, "synthetic images": 4 * 8 * 768}


def test_a_class_without_synthetic_images_is_named(stream):
    images = tiny.image_set(seed=7)
    missing = stream.class_names[0]
    learner = create(images=images.keep_classes([name for name in images.class_names if name != missing]))
    learn(learner, stream[:1])
    with pytest.raises(UserError, match=f"'{missing}' has no synthetic images"):
        learn(learner, [stream[1]])


def test_replay_without_images_is_refused():
    with pytest.raises(UserError, match="needs images"):
        create(images=None)
    assert create(a=0.0, b=0.0, images=None).stored_bytes() == {"exemplars": 0}
