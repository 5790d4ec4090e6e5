import numpy as np
import pytest
import tiny
import torch

from cilkit import learners
from cilkit.errors import UserError
from cilkit.learners.synthetic_replay import draw, rows_by_class

SMALL = {"epochs": 2, "milestones": (1,), "batch_size": 8, "recipe": "shift", "lr": 0.05, "per_class": 3}
ARMS = {"none": (0.0, 0.0), "distillation": (0.0, 1.0), "replay": (1.0, 0.0), "both": (1.0, 1.0)}


def create(a=1.0, b=1.0, images="all", **hyper):
    images = tiny.image_set(seed=7) if images == "all" else images
    return learners.create("synthetic_replay", tiny.backbone(), a=a, b=b, images=images, **{**SMALL, **hyper})


def learn(learner, tasks):
    return [moment.losses for task in tasks for moment in learner.learn(task)]


def start_second_task(stream, **settings):
    learner = create(**settings)
    learn(learner, stream[:1])
    learner.sizes.append(2)
    learner.begin_task(stream[1])
    return learner


def test_without_weights_it_is_icarl_bit_for_bit(stream):
    plain = learners.create("icarl", tiny.backbone(), **SMALL)
    plugged = create(a=0.0, b=0.0)
    assert learn(plain, stream) == learn(plugged, stream)
    ours, theirs = plugged.state(), plain.state()
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())


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


def test_the_loss_is_the_mean_over_real_and_synthetic_rows_together(stream):
    learner = start_second_task(stream)
    learner.backbone.eval()
    batch = next(learner.batches(stream[1], 0))
    terms = learner.loss(batch)
    real, fake = learner.logits(batch.images), learner.logits(batch.extra.images)
    one = learner.terms(real, batch)
    replay = learner.classification(fake, batch.extra.labels)
    distilled = learner.distillation(fake, learner.taught(batch.extra.images))
    torch.testing.assert_close(terms["classification"] + terms["replay"], (one["classification"] + replay) / 2)
    both = (one["distillation"] + distilled) / 2
    torch.testing.assert_close(terms["distillation"] + terms["synthetic distillation"], both)


@pytest.mark.parametrize("arm", ["distillation", "replay"])
def test_an_arm_leaves_the_other_term_as_the_learner_has_it(stream, arm):
    a, b = ARMS[arm]
    learner = start_second_task(stream, a=a, b=b)
    learner.backbone.eval()
    batch = next(learner.batches(stream[1], 0))
    terms, plain = learner.loss(batch), learner.terms(learner.logits(batch.images), batch)
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
