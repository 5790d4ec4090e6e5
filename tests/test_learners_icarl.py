import dataclasses

import numpy as np
import pytest
import tiny
import torch
from tiny import learn
from torch.nn.functional import binary_cross_entropy, cross_entropy, one_hot

from cilkit import learners
from cilkit.errors import UserError
from cilkit.learners.memory import Memory, herd
from cilkit.learners.rehearsal import unit

SMALL = {"epochs": 2, "milestones": (1,), "batch_size": 8, "recipe": "shift", "lr": 0.05, "per_class": 3}


def create(**hyper):
    return learners.create("icarl", tiny.backbone(), seed=0, **{**SMALL, **hyper})


def herd_slowly(features, count):
    """Python loops after the released code: a running vector, an arg-max a try."""
    mean = [sum(column) / len(features) for column in zip(*features, strict=True)]
    w, chosen, tries = list(mean), [], 0
    while len(chosen) < min(count, len(features)) and tries < 1000:
        scores = [sum(a * b for a, b in zip(w, row, strict=True)) for row in features]
        best = scores.index(max(scores))
        if best not in chosen:
            chosen.append(best)
        w = [a + m - b for a, m, b in zip(w, mean, features[best], strict=True)]
        tries += 1
    return chosen, tries


@pytest.mark.parametrize("seed", range(4))
def test_herding_equals_the_slow_reference(seed):
    features = unit(np.random.default_rng(seed).normal(size=(30, 5)) + 1)
    assert herd(features, 12).tolist() == herd_slowly(features.tolist(), 12)[0]
    assert herd(features, 12)[:5].tolist() == herd(features, 5).tolist()  # a rank: shrinking is truncation


@pytest.mark.parametrize("seed", range(4))
def test_the_whole_rank_equals_the_slow_reference_which_picks_some_again(seed):
    features = unit(np.random.default_rng(seed).normal(size=(25, 4)) + 1)
    slow, tries = herd_slowly(features.tolist(), 25)
    assert tries > len(slow) == 25 and herd(features, 25).tolist() == slow


def test_after_a_thousand_tries_the_rest_follows_in_its_own_order():
    features = unit(np.random.default_rng(0).normal(size=(12, 3)) * 0.1 + 1)
    features[[3, 7]] = 0.01  # near nothing: never picked
    slow, tries = herd_slowly(features.tolist(), 12)
    assert tries == 1000 and len(slow) < 12
    rest = [i for i in range(12) if i not in slow]
    assert herd(features, 12).tolist() == slow + rest and herd(features, 11).tolist() == (slow + rest)[:11]


def test_herding_ends_where_images_are_equal_or_few():
    assert herd(np.ones((4, 2)) / np.sqrt(2), 3).tolist() == [0, 1, 2]
    assert sorted(herd(unit(np.random.default_rng(0).normal(size=(4, 3))), 9).tolist()) == [0, 1, 2, 3]


def test_herded_exemplars_are_nearer_to_the_class_mean_than_random_ones():
    random = np.random.default_rng(0)
    features = unit(random.normal(size=(200, 16)) + 0.5)
    distance = lambda rows: np.linalg.norm(features[rows].mean(0) - features.mean(0))  # noqa: E731
    others = [distance(random.permutation(200)[:10]) for _ in range(50)]
    assert distance(herd(features, 10)) < min(others)


def test_room_is_fixed_a_class_or_a_share_of_the_total():
    assert [Memory(20, 0).room(seen) for seen in (2, 10)] == [20, 20]
    assert [Memory(20, 50).room(seen) for seen in (2, 4, 6)] == [25, 13, 9]  # ceil(K / seen)


def test_exemplars_are_real_images_of_old_classes_in_herding_order(stream):
    learner = learn(create(total=10), stream)  # 5, 3, 2 a class
    assert [len(rows) for rows in learner.memory.rows] == [2] * 6
    first = create(total=10)
    list(first.learn(stream[0]))
    kept, before = learner.memory.of(stream.train), first.memory.of(stream.train)
    for label in (0, 1):
        assert np.array_equal(kept.of_classes([label]).images(), before.of_classes([label]).images()[:2])
    for image, label in zip(kept.images(), kept.labels, strict=True):
        assert any(np.array_equal(image, one) for one in stream.train.of_classes([label]).images())
    assert learner.stored_bytes() == {"exemplars": 12 * 16 * 16 * 3}


def test_the_training_set_is_the_task_and_the_exemplars(stream):
    learner = learn(create(), stream[:1])
    images = learner.training_set(stream[1])
    assert len(images) == 16 + 6 and np.bincount(images.labels).tolist() == [3, 3, 8, 8]


def start_second_task(stream, **hyper):
    learner = learn(create(**hyper), stream[:1])
    learner.sizes.append(2)
    learner.begin_task(stream[1])
    learner.backbone.eval()
    return learner, next(learner.batches(stream[1], 0))


def test_bce_is_the_paper_s_mean_over_all_outputs(stream):
    """Targets: labels for new classes, the teacher's sigmoids for old ones, for every row."""
    learner, batch = start_second_task(stream)
    terms = learner.loss(batch)
    with torch.no_grad():
        logits = learner.raw(learner.backbone(batch.images, "student"))
        targets = one_hot(batch.labels, 4).float()
        targets[:, :2] = learner.taught(batch.images).sigmoid()
        expected = binary_cross_entropy(logits.sigmoid(), targets)
    torch.testing.assert_close(sum(terms.values()).detach(), expected)


def test_ce_is_the_softmax_over_all_classes_and_soft_targets_of_the_old_ones(stream):
    learner, batch = start_second_task(stream, criterion="ce")
    terms = learner.loss(batch)
    with torch.no_grad():
        logits = learner.raw(learner.backbone(batch.images, "student"))
        taught = learner.taught(batch.images)
        torch.testing.assert_close(terms["classification"].detach(), cross_entropy(logits, batch.labels))
        soft = -((taught / 2).softmax(1) * (logits[:, :2] / 2).log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(terms["distillation"].detach(), soft)


def test_the_teacher_has_no_gradient_and_stays_as_it_was(stream):
    learner, batch = start_second_task(stream)
    before = learner.taught(batch.images)
    assert not before.requires_grad
    optimiser, _ = learner.optimiser(stream[1])
    sum(learner.loss(batch).values()).backward()
    optimiser.step()
    assert torch.equal(learner.taught(batch.images), before)
    assert all(p.grad is not None for p in learner.raw.parameters())  # old outputs learn too


def test_nme_is_the_nearest_mean_of_unit_exemplar_features(stream):
    learner = learn(create(), stream)
    outputs = learner.predict(stream.test_after(stream[2]))
    means = []
    exemplars = learner.memory.of(stream.train)
    for label in range(6):
        mean = unit(learner.features(exemplars.of_classes([label]), "probe")).mean(0)
        means.append(mean / np.linalg.norm(mean))
    distance = ((unit(outputs.features)[:, None] - np.stack(means)) ** 2).sum(2)
    assert np.array_equal(outputs.predictions("nme"), distance.argmin(1))
    np.testing.assert_allclose(outputs.heads["nme"], -distance / 2, atol=1e-5)
    assert (outputs.predictions("nme") == outputs.labels).mean() > 0.4  # chance is 1 / 6


def test_wrong_settings_are_refused():
    for bad in ({"criterion": "mse"}, {"per_class": 0}, {"norm_statistics": "none"}):
        with pytest.raises(UserError):
            create(**bad)
    assert dataclasses.is_dataclass(create().hyper)
