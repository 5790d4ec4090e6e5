import pytest
import torch
from tiny import ARGS, image_set

from cilkit import pretraining
from cilkit.errors import UserError

SMALL = {"model_args": ARGS, "batch_size": 16, "held_out": 0.25, "recipe": "shift", "lr": 5e-3}


@pytest.fixture(scope="module")
def images():
    return image_set(classes=4, per_class=16)


def test_it_learns_and_reports_every_epoch(images):
    moments = []
    backbone, report = pretraining.pretrain(images, epochs=8, log=moments.append, **SMALL)
    losses = [row["loss"] for row in report["epochs"]]
    assert losses[-1] < losses[0] and report["held_out_accuracy"] > 0.6
    assert [moment.epoch for moment in moments] == list(range(8)) and not backbone.training
    assert (report["train_images"], report["held_out_images"], report["chance"]) == (48, 16, 0.25)
    assert report["forwarded"] == {"student": 8 * 48, "test": 8 * 16}


def test_shuffled_labels_teach_nothing_about_the_classes(images):
    _, shuffled = pretraining.pretrain(images, epochs=8, shuffle_labels=True, **SMALL)
    assert shuffled["held_out_accuracy"] < 0.6


@pytest.mark.parametrize("after", [0, 1, 2])
def test_an_interrupted_training_ends_in_the_same_weights_and_report(images, tmp_path, after):
    def stop(moment):
        if moment.epoch == after:
            raise KeyboardInterrupt

    whole, report = pretraining.pretrain(images, epochs=4, **SMALL)
    with pytest.raises(KeyboardInterrupt):
        pretraining.pretrain(images, epochs=4, scratch=tmp_path, log=stop, **SMALL)
    resumed, again = pretraining.pretrain(images, epochs=4, scratch=tmp_path, **SMALL)
    assert report == again
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_seeds_of_weights_and_of_data_are_apart(images):
    one = pretraining.pretrain(images, epochs=1, **SMALL)[1]["epochs"][0]["loss"]
    assert one != pretraining.pretrain(images, epochs=1, seed_init=1, **SMALL)[1]["epochs"][0]["loss"]
    assert one != pretraining.pretrain(images, epochs=1, seed_data=1, **SMALL)[1]["epochs"][0]["loss"]


def test_a_loss_that_explodes_is_one_sentence(images):
    with pytest.raises(UserError, match=r"loss is (nan|inf) in epoch 1 of 1, batch [12] of 3, at learning rate inf; lower lr"):
        pretraining.pretrain(images, epochs=1, **{**SMALL, "lr": float("inf")})
