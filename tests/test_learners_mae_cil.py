import math

import numpy as np
import pytest
import tiny
import torch
from tiny import learn

from cilkit import learners, masked
from cilkit.data import ImageSet
from cilkit.errors import UserError
from cilkit.learners.fused_heads import FusedHeads
from cilkit.learners.masked_memory import joined

EACH = 4 * 4 * 4 * 3 + 2  # 4 of 16 patches of 4 x 4 pixels, and 16 bits


def create(**hyper):
    return tiny.case("mae_cil", **hyper)


def start_second_task(stream, **hyper):
    learner = learn(create(**hyper), stream[:1])
    learner.sizes.append(2)
    learner.begin_task(stream[1])
    learner.backbone.eval()
    return learner, next(iter(learner.batches(stream[1], 0)))


# ---------------------------------------------------------------- what is stored


def test_an_exemplar_is_its_visible_patches_and_a_mask_in_bits(stream):
    """Bits and pixels read literally, in herding order, beside a learner that keeps whole images."""
    learner, whole = (learn(create(per_class=3, masked=masks), stream[:1]) for masks in (True, False))
    assert [rows.shape for rows in learner.memory.rows] == [(3, EACH)] * 2
    assert learner.stored_bytes()["exemplars"] == sum(rows.nbytes for rows in learner.memory.rows) == 6 * EACH
    assert all(rows.dtype == np.uint8 for rows in learner.memory.rows)
    real = whole.memory.of(stream.train).images()
    seen = set()
    for row, image in zip(np.concatenate(learner.memory.rows), real, strict=True):
        bits = [(row[place // 8] >> (7 - place % 8)) & 1 for place in range(16)]
        shown = [place for place in range(16) if bits[place]]
        assert len(shown) == 4
        for rank, place in enumerate(shown):
            top, left = 4 * (place // 4), 4 * (place % 4)
            patch = row[2 + 48 * rank : 2 + 48 * (rank + 1)].reshape(3, 4, 4).transpose(1, 2, 0)
            assert np.array_equal(patch, image[top : top + 4, left : left + 4])
        seen.add(tuple(shown))
    assert len(seen) == 6  # a mask of its own for every exemplar


def test_an_exemplar_comes_back_from_its_own_bytes_with_its_visible_pixels_true(stream):
    learner, whole = (learn(create(per_class=3, masked=masks), stream[:1]) for masks in (True, False))
    names = stream.train.class_names
    elsewhere = ImageSet.from_arrays(np.zeros((6, 16, 16, 3), np.uint8), np.arange(6), names)
    back, real = learner.memory.of(elsewhere), whole.memory.of(elsewhere)
    assert back.labels.tolist() == [0] * 3 + [1] * 3 and back.class_names == names
    for row, image, truth in zip(np.concatenate(learner.memory.rows), back.images(), real.images(), strict=True):
        shown = np.unpackbits(row[:2]).reshape(4, 4).repeat(4, 0).repeat(4, 1).astype(bool)
        assert np.array_equal(image[shown], truth[shown]) and not np.array_equal(image[~shown], truth[~shown])
    for image, label in zip(real.images(), real.labels, strict=True):
        assert any(np.array_equal(image, one) for one in stream.train.of_classes([label]).images())


def test_the_same_bytes_hold_four_times_as_many_masked_exemplars():
    stream = tiny.stream(per_class=20)
    budget = 2 * 768 * 6  # two whole images for each of six classes
    many, few = (learn(create(budget=budget, epochs=1, masked=masks), stream) for masks in (True, False))
    assert [len(rows) for rows in few.memory.rows] == [2] * 6
    assert [len(rows) for rows in many.memory.rows] == [budget // 6 // EACH] * 6 == [7] * 6
    for learner in (many, few):
        assert budget * 0.85 < learner.stored_bytes()["exemplars"] <= budget
    sizes = {name: value.numel() for name, value in many.autoencoder.named_parameters()}
    assert many.stored_bytes()["decoder"] == 4 * sum(sizes.values()) and sizes["decoder.mask_token"] == 32


def test_a_task_trains_on_its_images_and_the_rebuilt_ones(stream):
    learner, _ = start_second_task(stream, per_class=3)
    images = learner.training_set(stream[1])
    assert np.bincount(images.labels).tolist() == [3, 3, 8, 8]
    kept = images.of_classes([0, 1]).images()
    assert np.array_equal(kept, learner.replay.images())
    assert np.array_equal(images.of_classes([2, 3]).images(), stream[1].train.images())
    order = np.random.default_rng(0).permutation(len(images))
    assert np.array_equal(images.images(order), images.images()[order]) and len(set(images.ids)) == 22
    assert learner.backbone.forwarded["statistics"] == 16 + 6  # herding, and the exemplars behind their masks


def test_sets_of_other_sizes_are_joined_as_lists(stream):
    large = ImageSet.from_arrays(np.full((6, 20, 20, 3), 7, np.uint8), np.arange(6), stream.train.class_names)
    both = joined(stream.train, large)
    first, second = both.read(np.array([len(stream.train) + 2, 1]))
    assert np.array_equal(first, large.images()[2]) and np.array_equal(second, stream.train.images()[1])
    assert both.labels[-6:].tolist() == list(range(6)) and not both.streamed


# ---------------------------------------------------------------- masks and losses


def masks_of(learner, task, epoch, monkeypatch):
    """The orders that an epoch's steps draw."""
    drawn, orders = [], masked.orders
    with monkeypatch.context() as patched:
        patched.setattr(masked, "orders", lambda *given: drawn.append(orders(*given)) or drawn[-1])
        for batch in learner.batches(task, epoch):
            learner.loss(batch)
    return torch.cat(drawn)


def test_masks_differ_between_images_epochs_and_tasks_and_come_again_from_the_seed(stream, monkeypatch):
    learner, _ = start_second_task(stream)
    first, second, again = (masks_of(learner, stream[1], epoch, monkeypatch) for epoch in (0, 1, 0))
    assert first.shape == (len(stream[1].train) + 16, 16) and torch.equal(first, again)
    assert len(first.unique(dim=0)) == len(first) and not torch.equal(first, second)
    other, _ = start_second_task(stream, seed=1)
    assert not torch.equal(first, masks_of(other, stream[1], 0, monkeypatch))


def test_the_loss_is_the_sum_of_its_terms_by_hand(stream):
    """In float64, with the masks that the step will draw; l = 2 old classes of 4."""
    learner, batch = start_second_task(stream)
    for module in (learner.backbone, learner.raw, learner.autoencoder, *vars(learner.teacher).values()):
        module.double()
    for value in learner.raw.parameters():  # away from the teacher
        value.data += torch.randn(value.shape, generator=torch.Generator().manual_seed(0), dtype=value.dtype)
    images, labels, network, auto = batch.images.double(), batch.labels, learner.backbone, learner.autoencoder
    state = learner.chance.get_state()
    terms = learner.loss(learners.Batch(images, labels))
    learner.chance.set_state(state)
    order = masked.orders(len(images), 16, learner.chance)
    with torch.no_grad():
        logits = learner.raw(learner.embed(images, "student"))
        taught = learner.taught(images)
        main, details = auto(network, images, order, 4, "student")
        more = sum(auto(network, images, order, 9, "student"))
    rows = range(len(images))
    cross, kl = 0.0, 0.0
    for i in rows:
        for c in range(4):
            p = 1 / (1 + math.exp(-float(logits[i, c])))
            cross -= math.log(p if c == labels[i] else 1 - p) / (len(rows) * 4)
        old, new = (torch.softmax(one[i, :2], 0).tolist() for one in (taught, logits))
        kl += sum(a * math.log(a / b) for a, b in zip(old, new, strict=True)) / len(rows)
    fine, rec, det = main + details, 0.0, 0.0
    gap = torch.zeros_like(images)
    for i in rows:
        for rank, place in enumerate(order[i].tolist()):
            patch = (i, slice(None), *(slice(4 * k, 4 * k + 4) for k in divmod(place, 4)))
            if rank >= 4:
                rec += float((fine[patch] - images[patch]).square().sum()) / images.numel()
                gap[patch] = (images if rank < 9 else more)[patch] - fine[patch]
    det = float((details - masked.high_frequencies(gap)).abs().mean())
    expected = {"classification": 0.5 * cross, "distillation": 0.5 * kl}
    expected |= {"reconstruction": 0.5 * rec, "detail": 0.5 * 0.02 * det}
    assert terms.keys() == expected.keys() and min(expected.values()) > 1e-4
    for name, value in expected.items():
        assert float(terms[name].detach()) == pytest.approx(value, rel=1e-9, abs=1e-12), name


def test_in_the_first_task_nothing_is_taught_and_every_weight_is_whole(stream):
    found = []
    for hyper in ({}, {"classification_weight": 3.0, "reconstruction_weight": 5.0, "detail_weight": 7.0}):
        learner = create(**hyper)
        learner.sizes.append(2)
        learner.begin_task(stream[0])
        found.append(learner.loss(next(iter(learner.batches(stream[0], 0)))))
    plain, weighted = found
    assert list(plain) == ["classification", "reconstruction", "detail"]
    for name, factor in (("classification", 3), ("reconstruction", 5), ("detail", 7 / 0.02)):
        torch.testing.assert_close(weighted[name], factor * plain[name])


def test_the_teacher_is_the_network_before_with_its_fused_heads(stream):
    learner, batch = start_second_task(stream)
    own = learner.raw(learner.embed(batch.images, "student"))[:, :2]
    taught = learner.taught(batch.images)
    assert torch.equal(own, taught) and not taught.requires_grad
    assert learner.distillation(learner.read(learner.trunk(batch.images)).detach(), taught)["distillation"] == 0
    optimiser, _ = learner.optimiser(stream[1])
    sum(learner.loss(batch).values()).backward()
    optimiser.step()
    assert torch.equal(learner.taught(batch.images), taught)
    assert not torch.allclose(learner.raw(learner.embed(batch.images, "student"))[:, :2], taught)


def test_the_mask_token_and_all_else_learn(stream):
    learner = create()
    start = {name: value.clone() for name, value in learner.autoencoder.state_dict().items()}
    learn(learner, stream[:1])
    for name, value in learner.autoencoder.state_dict().items():
        assert not torch.equal(value, start[name]), name
    assert learner.autoencoder.decoder.mask_token.grad.abs().sum() > 0


def test_fusion_reads_two_depths_and_leaves_the_early_one_alone(stream):
    learner, batch = start_second_task(stream)
    network, heads = learner.backbone, learner.raw
    features = learner.embed(batch.images, "student")
    tokens = network.model._pos_embed(network.model.patch_embed(batch.images))
    early = network.blocks[1](network.blocks[0](tokens))
    deep = network.model(batch.images)
    assert features.shape == (8, 32 + 6) and learner.dim == 38
    torch.testing.assert_close(features, torch.cat([deep, early[:, 0, :6]], dim=1))
    weight = network.blocks[0].mlp.fc1.weight
    for columns, learns in ((features[:, :32], True), (features[:, 32:], False)):
        (gradient,) = torch.autograd.grad(columns.sum(), weight, retain_graph=True)
        assert bool(gradient.any()) == learns
    both = torch.cat([deep, heads.expand(early[:, 0, :6])], dim=1)
    first, second, third = (heads.fusion[i] for i in (0, 2, 4))
    gelu = torch.nn.functional.gelu
    torch.testing.assert_close(heads(features), heads.linear(third(gelu(second(gelu(first(both)))))))


def test_fused_heads_are_saved_and_grow_as_linear_ones_do():
    heads, other = FusedHeads(8, 3, seed=0), FusedHeads(8, 3, seed=1)
    for classes in (2, 3):
        heads.grow(classes, 0, False)
    features = torch.randn(4, 11)
    assert heads(features).shape == (4, 5)
    other.set_state(heads.state_dict())
    assert torch.equal(other(features), heads(features))
    copy = heads.trainable_copy()
    torch.nn.init.zeros_(copy.fusion[0].weight)
    assert not torch.equal(copy(features), heads(features)) and torch.equal(other(features), heads(features))


# ---------------------------------------------------------------- switches, passes, settings


def test_the_switches_take_their_parts_away(stream):
    whole, plain = create(), create(detail=False, fusion=False)
    assert plain.autoencoder.expand is None and plain.dim == 32 and type(plain.raw).__name__ == "TaskHeads"
    assert whole.autoencoder.expand.weight.shape == (32, 6)
    learner, batch = start_second_task(stream, detail=False, fusion=False)
    assert list(learner.loss(batch)) == ["classification", "distillation", "reconstruction"]
    assert torch.equal(learner.embed(batch.images, "student"), learner.backbone(batch.images, "student"))
    bare, batch = start_second_task(stream, masked=False, reconstruction_weight=0.0)
    assert list(bare.loss(batch)) == ["classification", "distillation"]


@pytest.mark.parametrize(
    "hyper",
    ({"detail": False}, {"masked": False}, {"masked": False, "reconstruction_weight": 0.0}, {"total": 10}),
)
def test_every_pass_is_declared_and_none_behind_a_mask_is_made_to_predict(hyper):
    stream = tiny.stream(increments=[1, 3, 2])
    learner = learn(create(**hyper), stream)
    trained = dict(learner.backbone.forwarded)
    for task in stream:
        learner.predict(stream.test_after(task))
    spent = learner.backbone.forwarded
    assert spent["test"] == sum(len(stream.test_after(task)) for task in stream)
    assert dict(spent) == trained | {"test": spent["test"]} == learner.declared(stream)


def test_lr_falls_along_a_cosine_or_at_milestones(stream):
    for milestones, expected in (((), [1, 0.75, 0.25]), ((2,), [1, 1, 0.1])):
        learner = create(epochs=3, milestones=milestones, lr=0.01)
        learner.sizes.append(2)
        learner.begin_task(stream[0])
        optimiser, schedule = learner.optimiser(stream[0])
        found = []
        for _ in range(3):
            found.append(optimiser.param_groups[0]["lr"] / 0.01)
            optimiser.step()
            schedule.step()
        assert found == pytest.approx(expected)


def test_images_of_another_size_are_stored_as_the_network_sees_them():
    pixels = np.random.default_rng(0).integers(0, 256, (12, 24, 24, 3)).astype(np.uint8)
    images = ImageSet.from_arrays(pixels, np.repeat(np.arange(2), 6), ["a", "b"])
    learner = create(recipe="timm")
    learner.memory.add(images)
    assert learner.memory.rows[0].shape == (12, EACH)
    seen = learner.recipe.test(images.images()) * 0.5 + 0.5  # 0 … 1
    back, rows = learner.memory.of(images).images(), learner.memory.rows[0]
    for row, image, level in zip(rows, back, learner.levels(images).transpose(0, 2, 3, 1), strict=True):
        shown = np.unpackbits(row[:2]).reshape(4, 4).repeat(4, 0).repeat(4, 1).astype(bool)
        assert np.array_equal(image[shown], level[shown])
    assert np.abs(learner.levels(images) / 255 - seen.clamp(0, 1).numpy()).max() <= 0.5 / 255 + 1e-6


def test_wrong_settings_are_refused():
    for bad, words in (
        ({"visible": 0.6}, "the second above the first"),
        ({"reconstruction_weight": 0.0}, "where exemplars are masked"),
        ({"detail_weight": -1.0}, "expected 0 or more"),
        ({"early_share": 0.0}, "a share of the early"),
        ({"early": 9}, "expected a block"),
    ):
        with pytest.raises(UserError, match=words):
            create(**bad)
