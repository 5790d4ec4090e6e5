import pytest
import torch
from tiny import ARGS, image_set
from tiny import transformer as tiny_transformer

from cilkit import backbones, pretraining
from cilkit.data import transforms
from cilkit.errors import UserError
from cilkit.pretraining.trainer import Classifier, Data, tune

SMALL = {"model_args": ARGS, "batch_size": 16, "held_out": 0.25, "recipe": "shift", "lr": 5e-3}


@pytest.fixture(scope="module")
def images():
    return image_set(classes=4, per_class=16)


def test_it_learns_and_reports_every_epoch(images):
    backbone, report = pretraining.pretrain(images, epochs=8, **SMALL)
    losses = [row["loss"] for row in report["epochs"]]
    assert losses[-1] < losses[0] and report["held_out_accuracy"] > 0.6
    assert [row["epoch"] for row in report["epochs"]] == list(range(8)) and not backbone.training
    assert (report["train_images"], report["held_out_images"], report["chance"]) == (48, 16, 0.25)
    assert report["forwarded"] == {"student": 8 * 48, "test": 8 * 16}


def test_shuffled_labels_teach_nothing_about_the_classes(images):
    _, shuffled = pretraining.pretrain(images, epochs=8, shuffle_labels=True, **SMALL)
    assert shuffled["held_out_accuracy"] < 0.6


def test_seeds_of_weights_and_of_data_are_apart(images):
    one = pretraining.pretrain(images, epochs=1, **SMALL)[1]["epochs"][0]["loss"]
    assert one != pretraining.pretrain(images, epochs=1, seed_init=1, **SMALL)[1]["epochs"][0]["loss"]
    assert one != pretraining.pretrain(images, epochs=1, seed_data=1, **SMALL)[1]["epochs"][0]["loss"]


def test_a_loss_that_explodes_names_epoch_batch_and_rate(images):
    with pytest.raises(UserError, match=r"is (nan|inf) in epoch 1 of 1, batch 2 of 3, at learning rate 7.5e\+29"):
        pretraining.pretrain(images, epochs=1, **{**SMALL, "lr": 1e30})


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"optimiser": "adam"}, "optimiser is 'adam'; expected one of adamw, sgd"),
        ({"tune": "last_0_blocks"}, "tune is 'last_0_blocks'"),
        ({"real_share": 1.0}, "real_share is 1.0"),
        ({"n_classes": 1}, "n_classes is 1"),
        ({"processes": 17}, "processes is 17; expected 1 to batch_size"),
        ({"precision": "fp8"}, "precision is 'fp8'"),
        ({"epochs": -1}, "epochs is -1; expected a number, 0 or more"),
        ({"batch_size": 0}, "batch_size is 0; expected a number, 1 or more"),
        ({"lr": float("inf")}, "lr is inf; expected a number"),
        ({"lr": float("nan")}, "lr is nan; expected a number"),
        ({"label_smoothing": 1.5}, "label_smoothing is 1.5; expected 0 to 1"),
        ({"seed_data": -1}, "seed_data is -1"),
        ({"n_classes": 5}, "n_classes is 5, but there are 4 classes"),
        ({"per_class": 17}, "per_class is 17, but class 'class 0' has 16 images"),
        ({"tune": "last_9_blocks"}, "tune is 'last_9_blocks', but 'resnet10t' has"),
    ],
)
def test_bad_settings_are_one_sentence(images, wrong, sentence):
    with pytest.raises(UserError, match=sentence):
        pretraining.pretrain(images, **{**SMALL, "epochs": 1, **wrong})


def test_sgd_is_torchs_with_momentum_and_weights_of_ones_own(images):
    """One batch: w - rate * (gradient + decay * w), the momentum's first step; and training starts where it is told."""
    start = backbones.create(model_args=ARGS, seed=3)
    before = {name: value.clone() for name, value in start.state_dict().items()}
    settings = {**SMALL, "batch_size": 64, "optimiser": "sgd", "lr": 0.1, "weight_decay": 0.5, "recipe": "none"}
    trained, _ = pretraining.pretrain(images, network=start, epochs=1, **settings)
    twin = backbones.create(model_args=ARGS, seed=3).train()
    data = Data(images, None, pretraining.Settings(**settings))
    network = Classifier(twin, 4, 0)
    cut = data.cuts(0)[0]
    pixels = transforms.recipe("none", twin.input).train(data.train.read(cut), torch.Generator())
    labels = torch.from_numpy(data.train.labels[cut])
    torch.nn.functional.cross_entropy(network(pixels), labels, label_smoothing=0.1).backward()
    for (name, value), after in zip(twin.named_parameters(), trained.parameters(), strict=True):
        decay = 0.5 if value.ndim > 1 else 0.0
        expected = before[name] - 0.1 * (value.grad + decay * before[name])
        assert torch.allclose(after, expected, atol=1e-6), name


@pytest.mark.parametrize(("what", "trained"), [("head", ()), ("last_block", ("layer4",)), ("all", None)])
def test_frozen_parts_keep_every_bit_and_the_rest_moves(images, what, trained):
    before = backbones.create(model_args=ARGS).state_dict()
    backbone, _ = pretraining.pretrain(images, epochs=1, tune=what, **SMALL)
    for name, value in backbone.state_dict().items():
        moves = trained is None or name.removeprefix("model.").startswith(trained or "nothing")
        assert torch.equal(value, before[name]) != moves, name
    assert all(p.requires_grad for p in backbone.parameters())


def test_the_last_block_of_a_transformer_takes_its_norm_along():
    backbone = tiny_transformer()
    tune(backbone, "last_2_blocks")
    free = {name.removeprefix("model.") for name, p in backbone.named_parameters() if p.requires_grad}
    assert {name.split(".")[1] for name in free if name.startswith("blocks")} == {"2", "3"}
    assert "norm.weight" in free and "pos_embed" not in free


def test_bf16_trains_float32_weights(images):
    backbone, report = pretraining.pretrain(images, epochs=4, precision="bf16", **SMALL)
    assert report["epochs"][-1]["loss"] < report["epochs"][0]["loss"]
    assert {value.dtype for value in backbone.parameters()} == {torch.float32}
