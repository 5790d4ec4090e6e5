"""GMM: the loss against a slow reference, what learns and by which rate, and what each image costs
(gmm_icarl_lwm_mae.md, part A). What its linear control shares with it is tested for both here."""

import math
from collections import Counter

import numpy as np
import pytest
import tiny
import torch
from tiny_gmm import NAMES, changed, create, gradients, named, start, weights

from cilkit import backbones, incremental, learners
from cilkit.data import Stream
from cilkit.errors import UserError
from cilkit.runs import Run


@pytest.fixture(scope="module")
def stream():
    return named(NAMES)


# ------------------------------------------------------------ the loss


def nll_of(captioner, tokens, answer):
    """-log p of one answer to one image in float64, every token's by itself: (token numbers, their -log p)."""
    model = captioner.parts["language_model"].double()
    projection = captioner.connector.double()
    written = [*captioner.tokenizer(answer)["input_ids"], captioner.tokenizer.eos_token_id]
    words = model.get_input_embeddings().weight
    image = iter(projection(tokens.double()[None])[0])
    sequence = [
        next(image) if place in captioner.slots else words[token] for place, token in enumerate(captioner.prompt)
    ]
    costs = []
    for token in written:
        logits = model(inputs_embeds=torch.stack(sequence)[None]).logits[0, -1]
        costs.append(-(logits[token] - logits.exp().sum().log()).item())
        sequence.append(words[token])
    return written, costs


def test_the_loss_is_that_of_the_answers_tokens_alone_a_token(stream):
    """Read off a model that sees one image, and so much of its answer, at a time: no padding, no other image."""
    learner = create(batch_size=4)
    batch = start(learner, stream[0])
    found = learner.loss(batch)["answer"].item()
    assert batch.labels.unique().tolist() == [0, 1] and learner.table.shape == (2, max(learner.terms(torch.arange(2))))
    costs, lengths = [], []
    with torch.no_grad():
        for tokens, label in zip(batch.images, batch.labels, strict=True):
            name = stream.class_names[label].replace("_", " ")
            written, cost = nll_of(learner.captioner, tokens, f"this is a photo of a {name}.")
            costs += cost
            lengths.append(len(written))
    assert len(set(lengths)) == 2 and learner.terms(batch.labels).tolist() == lengths
    assert found == pytest.approx(sum(costs) / len(costs), abs=1e-5)


@pytest.mark.parametrize("name", ["gmm", "gmm_linear"])
def test_gradients_do_not_depend_on_how_many_images_go_at_once(stream, name):
    found = []
    for size in (0, 1, 3, 8):
        learner = create(name, micro_batch=size)
        found.append(gradients(learner, start(learner, stream[0])))
    whole, expected = found[0]
    assert expected.abs().max() > 1e-3
    for terms, gradient in found[1:]:
        assert terms.keys() == whole.keys() and not any(term.requires_grad for term in terms.values())
        assert sum(terms.values()).item() == pytest.approx(sum(whole.values()).item(), abs=1e-6)
        np.testing.assert_allclose(gradient, expected, atol=1e-6)


def test_nor_do_the_weights_after_a_task(stream):
    found = []
    for size in (0, 1, 3):
        learner = create(micro_batch=size)
        learner.captioner.double()  # AdamW makes much of the last bits of a gradient that is almost 0
        tiny.learn(learner, stream[:1])
        found.append(torch.cat([value.detach().flatten() for _, value in learner.learnt()]))
    assert (found[0] - torch.cat([v.flatten() for _, v in create().learnt()])).abs().max() > 0.01  # they moved
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], atol=1e-5)


# ------------------------------------------------------------ the optimiser


def rates_of(learner, task, resumed=None, epochs=None):
    """The learning rate of every step of a task, and the state after `epochs` of them."""
    seen, inner = [], learner.before_step

    def noted(batch):
        inner(batch)
        seen.append({group["lr"] for group in learner._optimiser.param_groups})
        assert len(seen[-1]) == 1

    learner.before_step = noted
    for moment in learner.learn(task, resumed):
        if moment.epoch + 1 == epochs:
            learner.before_step = inner
            return seen, learner.moment_state()
    learner.before_step = inner
    return [rate for (rate,) in seen], None


def test_every_step_has_the_rate_of_the_formula_anew_in_every_task_and_after_a_resume(stream):
    """16 images in batches of 3: 6 steps an epoch, 18 a task, of which 4 are warm-up."""
    settings = {"epochs": 3, "batch_size": 3, "lr": 0.01, "warmup_lr": 1e-4, "final_lr": 0.002, "warmup": 4}
    expected = []
    for k in range(18):
        if k < 4:
            expected.append(1e-4 + (0.01 - 1e-4) * k / 4)
        else:
            expected.append(0.002 + (0.01 - 0.002) * (1 + math.cos(math.pi * k / 18)) / 2)
    learner = create(**settings)
    for task in stream[:2]:
        rates, _ = rates_of(learner, task)
        assert rates == pytest.approx(expected, rel=1e-12)
    assert rates[0] == 1e-4 and expected[4] < 0.01 and 0.002 < rates[-1] < 0.0021
    for epochs in (1, 2):
        _, state = rates_of(create(**settings), stream[0], epochs=epochs)
        rest, _ = rates_of(create(**settings), stream[0], resumed=state)
        assert rest == pytest.approx(expected[6 * epochs :], rel=1e-12)


@pytest.mark.parametrize("train", ["projection", "language"])
def test_matrices_decay_and_vectors_do_not(stream, train):
    """A step without gradients: AdamW leaves a matrix times 1 - lr * decay, and a vector as it is."""
    learner = create(train=train, weight_decay=0.5)
    start(learner, stream[0])
    made, _ = learner.optimiser(stream[0])
    before = {name: value.detach().clone() for name, value in learner.learnt()}
    for _, value in learner.learnt():
        value.grad = torch.zeros_like(value)
    made.step()
    assert {value.ndim for value in before.values()} == {1, 2}
    for name, value in learner.learnt():
        kept = 1 if value.ndim == 1 else 1 - 0.01 * 0.5
        torch.testing.assert_close(value.detach(), before[name] * kept, rtol=1e-6, atol=0)


PARTS = {"projection": ("connector.linear",), "lora": ("connector.linear", "lora_"), "language": ("",)}


@pytest.mark.parametrize("train", PARTS)
def test_what_is_named_learns_and_nothing_else(stream, train):
    learner = create(train=train, rank=3)
    before, backbone = weights(learner.captioner), weights(learner.backbone)
    tiny.learn(learner, stream[:2])
    moved = changed(learner.captioner, before)
    still = {"connector.mean", "connector.scale"}
    expected = {name for name in before if any(part in name for part in PARTS[train])} - still
    assert moved == expected and {"connector.linear.weight", "connector.linear.bias"} <= moved
    assert not changed(learner.backbone, backbone)
    assert sum(before[name].numel() for name in expected) >= learner.notes()["parameters tuned"]
    if train == "lora":
        assert all(3 in before[name].shape for name in moved if "lora" in name) and len(moved) > 10


# ------------------------------------------------------------ what an image costs


def losses_of(learner, tasks):
    return [moment.losses for task in tasks for moment in learner.learn(task)]


@pytest.mark.parametrize("name", ["gmm", "gmm_linear"])
def test_tokens_kept_and_tokens_made_anew_give_the_same_losses(stream, name):
    """Of an encoder that would drop half of its blocks, were it not kept in eval mode."""
    kept, anew = (
        losses_of(
            create(
                name,
                backbones.create(model_args=tiny.ARGS | {"drop_path_rate": 0.5, "zero_init_last": False}),
                augment=augment,
                per_class=2,
            ),
            stream[:2],
        )
        for augment in (False, True)
    )
    assert len(kept) == 4
    for one, other in zip(kept, anew, strict=True):
        assert one == pytest.approx(other, abs=1e-6)


def test_without_augmentation_every_image_passes_the_encoder_once_a_task(stream):
    """Two classes of 8 images a task, two exemplars a class: 16, 16 + 4, 16 + 8, however many epochs."""
    for epochs in (1, 3):
        learner, spent = create(epochs=epochs, per_class=2), []
        for task in stream:
            tiny.learn(learner, [task])
            spent.append(learner.backbone.forwarded.total())
        assert spent == [16, 36, 60] and set(learner.backbone.forwarded) == {"statistics"}
        assert learner.encoded is None  # kept for the task alone


COSTS = [
    {},
    {"per_class": 2},
    {"per_class": 2, "balanced": True},
    {"total": 7},
    {"budget": 6 * 2 * 768 + 5},
    {"epochs": 0, "per_class": 2},
]


@pytest.mark.parametrize("settings", COSTS)
@pytest.mark.parametrize("augment", [False, True])
def test_what_is_declared_is_what_is_spent(settings, augment):
    for made in (tiny.stream(increments=[1, 3, 2]), few_shot(), tiny.stream().cumulative(), tiny.stream().joint()):
        learner = create("gmm_linear", augment=augment, **{"epochs": 2, "balanced": False} | settings)
        incremental.run_stream(learner, made, None)
        assert Counter(learner.declared(made)) == learner.backbone.forwarded


def few_shot():
    whole = tiny.stream(increments=[2, 1, 3])
    return Stream(whole.benchmark, whole.order_seed, whole.increments, shots=3)


@pytest.mark.parametrize("name", ["gmm", "icarl"])
def test_a_few_shot_stream_costs_what_is_declared(name):
    """5 exemplars a class: of the first classes all 5, of the later ones the 3 shots."""
    learner = tiny.case(name, per_class=5, epochs=1)
    incremental.run_stream(learner, few_shot(), None)
    assert Counter(learner.declared(few_shot())) == learner.backbone.forwarded
    assert [len(rows) for rows in learner.memory.rows] == [5, 5, 3, 3, 3, 3]
    assert learner.stored_bytes()["exemplars"] == 22 * 768


# ------------------------------------------------------------ exemplars


def shown_in_an_epoch(learner, task):
    """How often the batches of an epoch hold each label, and the training set each image."""
    labels = np.concatenate([batch.labels for batch in learner.batches(task, 1)])
    return np.bincount(labels, minlength=task.seen).tolist(), Counter(learner.training_set(task).index.tolist())


@pytest.mark.parametrize("augment", [False, True])
def test_balanced_an_old_class_is_shown_as_often_as_a_new_one(stream, augment):
    """8 images a new class; 3 exemplars an old one, each 8 / 3 = 3 times: 9."""
    for balanced, times in ((False, 1), (True, 3)):
        learner = tiny.learn(create(per_class=3, balanced=balanced, augment=augment), stream[:1])
        start(learner, stream[1])
        labels, images = shown_in_an_epoch(learner, stream[1])
        assert labels == [3 * times] * 2 + [8] * 2
        exemplars = set(learner.memory.of(stream.train).index.tolist())
        assert len(exemplars) == 6 and all(images[place] == times for place in exemplars)
        assert all(images[place] == 1 for place in stream[1].train.index) and len(images) == 6 + 16


def test_exemplars_are_counted_in_bytes_and_stay_within_a_budget(stream):
    """768 bytes an image of 16 x 16."""
    kept = {"per_class": 2}, {"total": 8}, {"budget": 6 * 768 * 2 + 700}
    for settings, sizes in zip(kept, ([2] * 6, [2] * 6, [2] * 6), strict=True):  # ceil(8 / 6) = 2
        learner = tiny.learn(create("gmm_linear", **settings), stream)
        assert [len(rows) for rows in learner.memory.rows] == sizes
        assert learner.stored_bytes() == {"exemplars": 12 * 768}
    assert create(per_class=0).stored_bytes() == {}
    with pytest.raises(UserError, match=r"budget 4000 holds no exemplar of 768 bytes for each of 6 classes"):
        create(budget=4000).declared(stream)


def test_exemplars_are_herded_by_mean_tokens(stream):
    """The first is the image whose mean token is nearest to its class's mean, in direction."""
    for augment in (False, True):
        learner = tiny.learn(create("gmm_linear", per_class=1, augment=augment, epochs=1), stream[:1])
        for label in (0, 1):
            images = stream.train.of_classes([label])
            tokens = learner.features(images, "probe").reshape(len(images), -1, 16).mean(1)
            units = tokens / np.linalg.norm(tokens, axis=1, keepdims=True)
            assert learner.memory.rows[label][0, 0] == images.index[(units @ units.mean(0)).argmax()]


# ------------------------------------------------------------ zero-shot, and domains


def test_without_epochs_nothing_changes_and_it_answers(stream):
    learner = create(epochs=0, per_class=2)
    before = weights(learner.captioner)
    incremental.run_stream(learner, stream[:2], None)
    answers = learner.predict(stream.test_after(stream[1]))
    assert not changed(learner.captioner, before)
    assert set(learner.backbone.forwarded) == {"test"} and learner.stored_bytes() == {}
    assert answers.heads["written"].shape == (12, 4) and len(answers.texts) == 12
    fresh = create(epochs=0)
    fresh.sizes = [2, 2]
    assert fresh.predict(stream.test_after(stream[1])).texts == answers.texts


@pytest.mark.parametrize("name", ["gmm", "gmm_linear"])
def test_new_domains_are_learnt_without_exemplars(name, tmp_path):
    domains, learner = tiny.domain_stream(), create(name)
    incremental.run_stream(learner, domains, tmp_path / "run")
    assert Counter(learner.declared(domains)) == learner.backbone.forwarded
    run = Run(tmp_path / "run")
    assert run.n_tasks == 3 and run.accuracy_of(learner.default_head).shape == (3, 3)
    for head in ("per_class", "total", "budget"):
        learner = create(name, **{head: 10_000})
        with pytest.raises(UserError, match="exemplars are kept by class.*set per_class, total and budget to 0"):
            incremental.run_stream(learner, domains, tmp_path / "other")
        assert not learner.backbone.forwarded
        with pytest.raises(UserError, match="exemplars are kept by class"):
            tiny.learn(learner, domains)


# ------------------------------------------------------------ bad input, and whose values


BAD = [
    ({"names": "short"}, "names is 'short'"),
    ({"train": "all"}, "train is 'all'"),
    ({"rank": 0}, "rank is 0; expected 1"),
    ({"template": "a photo"}, "template is 'a photo'"),
    ({"template": "{} {}"}, r"template is '\{\} \{\}'"),
    ({"sentence": "a photo"}, "'a photo' has 0 places"),
    ({"token": "last"}, "no parameter 'token'"),
    ({"epochs": -1}, "epochs is -1; expected 0 or more"),
    ({"batch_size": 0}, "batch_size is 0; expected 1 or more"),
    ({"micro_batch": -1}, "micro_batch is -1"),
    ({"warmup": -2}, "warmup is -2"),
    ({"lr": float("nan")}, "lr is nan"),
    ({"warmup_lr": -1e-3}, "warmup_lr is -0.001"),
    ({"final_lr": -1e-3}, "final_lr is -0.001"),
    ({"weight_decay": -0.1}, "weight_decay is -0.1"),
    ({"per_class": -1}, "per_class is -1"),
    ({"total": -1}, "total is -1"),
    ({"budget": -1}, "budget is -1"),
]


@pytest.mark.parametrize(("settings", "sentence"), BAD)
def test_bad_settings_are_refused(settings, sentence):
    with pytest.raises(UserError, match=sentence):
        learners.settings("gmm", settings)


def test_a_missing_captioner_or_text_encoder_is_named():
    network = tiny.backbone()
    for given in ({}, {"captioner": tiny.captioner(network)}, {"text_encoder": tiny.letters}):
        with pytest.raises(UserError, match=r"'gmm' needs captioner= .*'vlm:NAME' has one\) and text_encoder="):
            learners.create("gmm", network, **given)
    with pytest.raises(UserError, match=r"'gmm_linear' needs captioner= .*'vlm:NAME' has one\)$"):
        learners.create("gmm_linear", network)
    learners.create("gmm_linear", network, captioner=tiny.captioner(network))
    with pytest.raises(UserError, match="leave `captioner` and `text_encoder` out"):
        learners.create("finetune", network, text_encoder=tiny.letters)


def test_the_released_values_are_those_that_were_read():
    """gmm_icarl_lwm_mae.md, A4: AdamW, decay 0.05; 1e-7 to 3e-6 over 200 steps, cosine to 1e-6; batches of 2, 5 epochs
    a task; crops of 224 without a flip; 2,000 exemplars; names as they stand, embedded bare."""
    read = {
        "epochs": 5, "batch_size": 2, "lr": 3e-6, "warmup_lr": 1e-7, "final_lr": 1e-6, "warmup": 200,
        "weight_decay": 0.05, "augment": True, "recipe": "gmm", "image_size": 224, "total": 2000, "budget": 0,
        "balanced": False,
    }  # fmt: skip
    written = {"train": "projection", "names": "plain", "template": "{}", "sentence": "this is a photo of a {}."}
    for name, values in (("gmm", read | written), ("gmm_linear", read | {"token": "first"})):
        found = learners.settings(name, {"recipe_of": "released"})
        assert {key: found[key] for key in values} == values
