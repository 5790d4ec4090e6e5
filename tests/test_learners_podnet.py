"""PODNet: every term against slow references, proxies by k-means, and the tuning (sddr.md, section 6)."""

import math
import warnings

import numpy as np
import pytest
import tiny
import torch
from tiny import learn

from cilkit import backbones, learners
from cilkit.errors import UserError
from cilkit.learners.cosine_heads import ProxyHeads
from cilkit.learners.distilling import split
from cilkit.learners.podnet import centres, nca, pooled

SMALL = {"epochs": 2, "batch_size": 8, "recipe": "shift", "per_class": 3, "proxies": 3, "tuning_epochs": 1}


def create(**hyper):
    return learners.create("podnet", tiny.backbone(), seed=0, **{**SMALL, **hyper})


def start(learner, task):
    """The learner at its first batch of the task, in eval mode: student and teacher see the same."""
    learner.sizes.append(len(task.classes))
    learner.begin_task(task)
    learner.backbone.eval()
    return next(learner.batches(task, 0))


def numbers(terms):
    return {name: value.item() for name, value in terms.items()}


# ------------------------------------------------------------ the loss, in Python numbers


def unit_list(values):
    length = math.sqrt(sum(x * x for x in values))
    return [x / length for x in values]


def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


def slow_similarities(features, weights, proxies, stretch=1.0):
    """y (batch, classes): each class's cosines, weighted by their own softmax."""
    rows = []
    for f in features:
        cosines = [stretch * dot(unit_list(f), unit_list(w)) for w in weights]
        row = []
        for c in range(len(weights) // proxies):
            own = cosines[c * proxies : (c + 1) * proxies]
            shares = [math.exp(x) / sum(math.exp(y) for y in own) for x in own]
            row.append(sum(share * x for share, x in zip(shares, own, strict=True)))
        rows.append(row)
    return rows


def slow_nca(similarities, labels, scale, margin):
    total = 0.0
    for row, label in zip(similarities, labels, strict=True):
        rivals = sum(math.exp(scale * y) for c, y in enumerate(row) if c != label)
        total += max(0.0, -math.log(math.exp(scale * (row[label] - margin)) / rivals))
    return total / len(labels)


def slow_pod(maps):
    """p of one image's map (channels, h, w), as nested lists."""
    by_row = [sum(x * x for x in row) for channel in maps for row in channel]
    by_column = [sum(row[j] ** 2 for row in channel) for channel in maps for j in range(len(channel[0]))]
    return unit_list(by_row + by_column)


def slow_spatial(stages, taught):
    """stages: a list of maps (batch, channels, h, w) as nested lists."""
    distances = []
    for own, before in zip(stages, taught, strict=True):
        norms = [math.dist(slow_pod(a), slow_pod(b)) for a, b in zip(own, before, strict=True)]
        distances.append(sum(norms) / len(norms))
    return sum(distances) / len(distances)


@pytest.mark.parametrize("sizes", [[3, 2], [1, 4]])
def test_the_loss_is_the_paper_s_in_float64(sizes):
    random = torch.Generator().manual_seed(0)
    learner = create(scale=2.0, spatial=3.5, flat=1.5)
    learner.sizes, learner.raw = sizes, ProxyHeads(6, 2.0, 3)
    for t, classes in enumerate(sizes):
        learner.raw.grow(classes, t, False)
    learner.raw.double()
    student, teacher = (
        tuple(
            torch.randn(shape, dtype=torch.float64, generator=random)
            for shape in ((7, 6), (7, 2, 4, 4), (7, 3, 3, 2), (7, 5, 1, 2))
        )
        for _ in range(2)
    )
    labels = [0, 4, 1, 3, 2, 0, 4]
    reading, taught = learner.read(student), learner.read(teacher)
    found = numbers(learner.classification(reading, torch.tensor(labels)) | learner.distillation(reading, taught))
    weights = torch.cat([head.weight for head in learner.raw.tasks]).tolist()
    similarities = slow_similarities(student[0].tolist(), weights, 3)
    factor = math.sqrt(5 / sizes[1])  # seen / new
    turned = [
        1 - dot(unit_list(a), unit_list(b)) for a, b in zip(student[0].tolist(), teacher[0].tolist(), strict=True)
    ]
    np.testing.assert_allclose(reading[1].detach(), similarities, atol=1e-12)
    assert found == pytest.approx(
        {
            "classification": slow_nca(similarities, labels, 2.0, 0.6),
            "pod spatial": factor
            * 3.5
            * slow_spatial(*([one.tolist() for one in part[1:]] for part in (student, teacher))),
            "pod flat": factor * 1.5 * sum(turned) / 7,
        },
        abs=1e-12,
    )


def test_the_margin_is_the_true_class_s_alone_and_a_row_past_it_costs_nothing():
    similarities = torch.tensor([[0.9, 0.1, 0.2], [0.3, 0.5, 0.4]], dtype=torch.float64, requires_grad=True)
    labels, scale = torch.tensor([0, 1]), torch.tensor(8.0)
    past = 8 * (0.9 - 0.6) - math.log(math.exp(0.8) + math.exp(1.6))
    short = 8 * (0.6 - 0.5) + math.log(math.exp(2.4) + math.exp(3.2))
    assert past > 0  # the first row has its margin
    loss = nca(similarities, labels, scale, 0.6)
    assert loss.item() == pytest.approx(short / 2)
    loss.backward()
    assert torch.equal(similarities.grad[0], torch.zeros(3)) and similarities.grad[1, 1].item() == pytest.approx(-4)
    assert nca(similarities, labels, scale, 0.0).item() < loss.item()


def test_one_class_has_no_rivals_and_finite_gradients():
    similarities, scale = torch.full((4, 1), 0.2, requires_grad=True), torch.tensor(2.0, requires_grad=True)
    loss = nca(similarities, torch.zeros(4, dtype=torch.int64), scale, 0.6)
    loss.backward()
    assert loss.item() == 0 and torch.equal(similarities.grad, torch.zeros(4, 1)) and scale.grad == 0


def released_nca(similarities, targets, scale, margin):
    """The released function, line by line: the margin off every class, and a zero left in the true class's place."""
    rows = []
    for row, target in zip(similarities, targets, strict=True):
        z = [scale * (y - margin) for y in row]
        z = [value - max(z) for value in z]
        left = [0.0 if c == target else value for c, value in enumerate(z)]
        rows.append(-(z[target] - math.log(sum(math.exp(value) for value in left))))
    return sum(rows) / len(rows)


def test_the_released_loss_is_the_released_code_s_whatever_its_margin():
    similarities = 2 * torch.rand(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) - 1
    labels = torch.tensor([0, 3, 1, 2, 2, 0])
    for margin in (0.0, 0.6):
        expected = released_nca(similarities.tolist(), labels.tolist(), 5.0, margin)
        found = nca(similarities, labels, torch.tensor(5.0), margin, released=True)
        assert found.item() == pytest.approx(expected, abs=1e-12)
    best = similarities.argmax(1)  # where the true class is the largest it is the cross-entropy
    entropy = torch.nn.functional.cross_entropy(5 * similarities, best)
    torch.testing.assert_close(nca(similarities, best, torch.tensor(5.0), 0.6, released=True), entropy)


def test_the_released_scores_are_minus_the_squared_distance_of_unit_vectors():
    heads = ProxyHeads(6, 1.0, 3, stretch=2.0)
    heads.grow(4, 0, False)
    features = torch.randn(5, 6, generator=torch.Generator().manual_seed(1))
    unit = torch.nn.functional.normalize
    distances = -torch.cdist(unit(features), unit(heads.current.weight)).square().unflatten(1, (4, 3))
    expected = (distances.softmax(2) * distances).sum(2)
    torch.testing.assert_close(heads.scores(features) - 2, expected)  # a constant, which no softmax sees
    assert create(recipe_of="official_code").raw.stretch == 2 and create().raw.stretch == 1


def test_the_scale_would_pay_for_the_paper_s_margin_below_zero_and_so_stands_still(stream):
    """Of equal similarities: log(rivals) + eta delta, which falls with eta until it is cut at zero."""
    similarities, labels = torch.zeros(2, 3), torch.tensor([0, 1])
    losses = [nca(similarities, labels, torch.tensor(eta), 0.6).item() for eta in (1.0, 0.0, -1.0, -2.0)]
    assert losses == pytest.approx([math.log(2) + 0.6, math.log(2), math.log(2) - 0.6, 0.0])
    for criterion, learns in (("nca", False), ("released", True), ("ce", True)):
        learner = learn(create(criterion=criterion, scale=2.0), stream[:1])
        assert (learner.raw.scale.item() != 2) is learns


def test_pooling_sees_where_not_in_which_order():
    maps = torch.zeros(2, 1, 3, 3)
    maps[0, 0, 0, 1], maps[1, 0, 0, 1] = 2.0, -7.0  # squares: a sign and a length do not matter
    torch.testing.assert_close(pooled(maps)[0], pooled(maps)[1])
    torch.testing.assert_close(pooled(maps)[0], torch.tensor([1.0, 0, 0, 0, 1.0, 0]) / math.sqrt(2))


# ------------------------------------------------------------ in a stream


def test_the_first_task_is_classification_alone(stream):
    learner = create()
    assert list(learner.loss(start(learner, stream[0]))) == ["classification"]


def test_a_teacher_equal_to_the_student_distils_nothing_and_gradients_are_finite(stream):
    learner = learn(create(), stream[:1])
    batch = start(learner, stream[1])
    terms = learner.loss(batch)
    assert list(terms) == ["classification", "pod spatial", "pod flat"]
    assert abs(terms["pod spatial"].item()) < 1e-6 and abs(terms["pod flat"].item()) < 1e-5
    sum(terms.values()).backward()
    learning = [p for p in (*learner.backbone.parameters(), *learner.raw.tasks.parameters()) if p.requires_grad]
    assert all(p.grad.isfinite().all() for p in learning) and len(learning) > 20
    with torch.no_grad():
        learner.backbone.model.conv1[0].weight.mul_(-1)
    changed = learner.loss(batch)
    assert changed["pod spatial"].item() > 0.1 and changed["pod flat"].item() > 0.01


def test_one_pass_gives_features_and_maps_and_rows_are_split_before_they_are_read(stream):
    learner = learn(create(), stream[:1])
    batch = start(learner, stream[1])
    before = learner.backbone.forwarded["student"]
    features, *maps = learner.trunk(batch.images)
    assert learner.backbone.forwarded["student"] == before + 8 and len(maps) == 4
    torch.testing.assert_close(features, learner.embed(batch.images, "probe"))
    own, theirs = split((features, *maps), [5, 3])
    whole = learner.read((features, *maps))
    for part, rows in ((own, slice(0, 5)), (theirs, slice(5, 8))):
        read = learner.read(part)
        for one, other in zip((*read[:2], *read[2]), (*whole[:2], *whole[2]), strict=True):
            torch.testing.assert_close(one, other[rows])


def test_new_proxies_begin_at_the_k_means_centres_of_unit_features(stream):
    learner = learn(create(), stream[:1])
    length = learner.raw.tasks[0].weight.detach().norm(dim=1).mean()
    start(learner, stream[1])
    weights = (learner.raw.current.weight.detach() / length).numpy().reshape(2, 3, -1)
    for own, label in zip(weights, stream[1].classes, strict=True):
        images = stream.train.of_classes([label])
        features = backbones.extract(learner.backbone, images, "probe", learner.recipe)
        features /= np.linalg.norm(features, axis=1, keepdims=True)
        nearest = ((features[:, None] - own) ** 2).sum(2).argmin(1)
        assert set(nearest) == {0, 1, 2}  # Lloyd's fixed point: each centre is the mean of those nearest to it
        for k in range(3):
            np.testing.assert_allclose(own[k], features[nearest == k].mean(0), atol=1e-5)


def test_centres_are_those_of_the_clusters_and_repeat_where_images_are_fewer():
    corners = np.repeat(np.eye(3, dtype=np.float32), 4, axis=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = centres(corners, 3, seed=2**40)
    np.testing.assert_allclose(found[np.lexsort(found.T)], np.eye(3)[np.lexsort(np.eye(3).T)], atol=1e-6)
    few = centres(corners[[0, 4]], 5, seed=0)
    assert few.shape == (5, 3)
    np.testing.assert_array_equal(few[[0, 1, 0]], few[2:])


def test_old_proxies_stand_still_while_a_later_task_is_learnt_and_move_when_tuned(stream):
    learner = learn(create(weight_decay=0.1), stream[:1])
    first = learner.raw.tasks[0].weight.detach().clone()
    for _ in learner.learn(stream[1]):
        assert torch.equal(learner.raw.tasks[0].weight, first)
        network = {name: value.clone() for name, value in learner.backbone.state_dict().items()}
        scale = learner.raw.scale.detach().clone()
    assert not torch.equal(learner.raw.tasks[0].weight, first)
    after = learner.backbone.state_dict()
    assert all(torch.equal(after[name], value) for name, value in network.items())  # running statistics too
    assert torch.equal(learner.raw.scale, scale)
    untuned = learn(create(tuning_epochs=0), stream[:1])
    first = untuned.raw.tasks[0].weight.detach().clone()
    learn(untuned, [stream[1]])
    assert torch.equal(untuned.raw.tasks[0].weight, first)


def test_tuning_sees_as_many_exemplars_of_every_class_once_an_epoch(stream, monkeypatch):
    learner, labels = create(tuning_epochs=3), []
    lsc = learner.lsc
    monkeypatch.setattr(learner, "lsc", lambda y, x: (labels.append(x) if learner.tuning else None, lsc(y, x))[1])
    learn(learner, stream[:1])
    assert not labels
    learn(learner, [stream[1]])
    assert np.bincount(torch.cat(labels)).tolist() == [9] * 4 and not learner.tuning
    assert len(learner.training_set(stream[2])) == 16 + 12


def test_gradients_are_cut_number_by_number(stream):
    learner = create(gradient_limit=0.01)
    sum(learner.loss(start(learner, stream[0])).values()).backward()
    gradients = [p.grad.clone() for p in (*learner.backbone.parameters(), *learner.raw.tasks.parameters())]
    assert max(g.abs().max() for g in gradients) > 0.01
    learner.before_step(None)
    for p, g in zip((*learner.backbone.parameters(), *learner.raw.tasks.parameters()), gradients, strict=True):
        assert torch.equal(p.grad, g.clamp(-0.01, 0.01))
    assert create().hyper.gradient_limit == 5


def test_the_learning_rate_follows_a_cosine_unless_milestones_are_given(stream):
    for hyper, expected in (({}, [1, 0.75, 0.25, 0]), ({"milestones": (2,)}, [1, 1, 0.1, 0.1])):
        learner = create(epochs=3, lr=1.0, **hyper)
        start(learner, stream[0])
        optimiser, schedule = learner.optimiser(stream[0])
        rates = []
        for _ in range(4):
            rates.append(optimiser.param_groups[0]["lr"])
            optimiser.step()
            schedule.step()
        assert rates == pytest.approx(expected)


def test_it_learns_and_both_heads_answer(stream):
    learner = learn(create(criterion="ce"), stream[:1])
    assert torch.isfinite(learner.loss(start(learner, stream[1]))["classification"])
    learner = learn(create(epochs=4, lr=0.1), stream[:2])
    outputs = learner.predict(stream.test_after(stream[1]))
    for head in ("raw", "nme"):
        assert (outputs.predictions(head) == outputs.labels).mean() > 0.4  # chance is 1 / 4
    assert learner.default_head == "raw"


def test_bad_settings_and_networks_without_stages_are_refused(stream):
    for bad, why in (({"criterion": "mse"}, "criterion is 'mse'"), ({"proxies": 0}, "0 proxies a class")):
        with pytest.raises(UserError, match=why):
            create(**bad)
    with pytest.raises(UserError, match="gives no maps by stage"):
        learn(learners.create("podnet", tiny.transformer(), **SMALL), stream[:1])
