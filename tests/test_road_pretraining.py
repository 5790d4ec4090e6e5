"""The verb of notebook 03: its arms, where their images and first weights come from, and one place for defaults."""

import inspect
import json

import pytest
import torch

import cilkit
from cilkit.errors import UserError
from cilkit.pretraining.settings import NAMES, Settings

TINY = {"arch": "resnet10t", "model_args": {"channels": [8, 8, 16, 16], "stem_width": 8, "stem_type": ""}}
ONCE = {"epochs": 1, "batch_size": 32}


@pytest.fixture(scope="module", autouse=True)
def own_root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("artifacts")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CILKIT_ARTIFACTS", str(folder))
        yield folder


@pytest.fixture(scope="module")
def images():
    realm = cilkit.foresee("handwritten characters", classes=12)
    return cilkit.paint(realm, generator="font-renderings", per_class=6, workers=1)


@pytest.fixture(scope="module")
def backbone(images):
    return cilkit.pretrain(images, **TINY, **ONCE)


def test_the_defaults_stand_in_one_place():
    signature = inspect.signature(cilkit.pretrain).parameters
    assert {name: signature[name].default for name in NAMES} == Settings().__dict__
    for line in inspect.getdoc(cilkit.pretrain).splitlines():
        assert len(line) <= 120
    undocumented = [name for name in signature if name not in inspect.getdoc(cilkit.pretrain)]
    assert set(undocumented) <= {"epochs", "batch_size", "lr", "weight_decay", "label_smoothing", "held_out",
                                 "seed_init", "seed_data"}  # fmt: skip


def test_imagenet_then_synthetic_is_a_backbone_that_training_starts_from(images, backbone):
    again = cilkit.pretrain(images, init=backbone, **{**ONCE, "epochs": 0})
    states = again.load().state_dict(), backbone.load().state_dict()
    assert all(torch.equal(states[0][name], value) for name, value in states[1].items())  # no step: the same weights
    assert again.artifact.inputs["init"]["digest"] == backbone.artifact.digest
    named = cilkit.pretrain(images, init=backbone.artifact.name, tune="last_block", **ONCE)
    stem = next(name for name in states[1] if name.endswith("conv1.weight"))
    assert torch.equal(named.load().state_dict()[stem], states[1][stem])
    assert named.artifact.identity["tune"] == "last_block"


def test_an_unknown_name_to_start_from_is_one_sentence(images):
    with pytest.raises(
        UserError, match="timm knows no weights 'a1_in2k' of 'resnet50' .did you mean 'resnet50.a1_in1k"
    ):
        cilkit.pretrain(images, init="resnet50.a1_in2k", **ONCE)


def test_subsets_and_their_classes_are_reported(images, backbone):
    small = cilkit.pretrain(images, n_classes=4, per_class=5, subset_seed=1, **TINY, **ONCE)
    assert len(small.report["classes"]) == 4 and small.report["images"] == 20
    assert set(small.report["classes"]) < set(images.class_names)
    card = json.loads(small.artifact.file("config.json").read_text())
    assert card["cilkit"] == {"classes": 4, "images": 20}
    other = cilkit.pretrain(images, n_classes=4, per_class=5, subset_seed=2, **TINY, **ONCE)
    assert other.artifact.key != small.artifact.key and backbone.report["images"] == 72


def digits_of(benchmark: str) -> list[str]:
    from cilkit.data import benchmarks

    return benchmarks.class_names(benchmark)


def test_real_images_beside_painted_ones_and_alone(images):
    small = {"recipe": "timm", "image_size": 16, **TINY, **ONCE}  # the two sets differ in size
    mixed = cilkit.pretrain(images, real="digits", real_share=0.25, **small)
    assert mixed.report["epochs"][0]["real_share"] == pytest.approx(0.25, abs=0.01)
    assert (
        mixed.report["real_images"] == 1257 and mixed.report["classes"][: len(images.class_names)] == images.class_names
    )
    digits = [name for name in mixed.report["classes"] if name.startswith("digit")]
    assert len(digits) == len(set(digits)) == 10  # merged where the realm has them
    assert mixed.artifact.identity["real_classes"] == digits_of("digits")
    with pytest.raises(UserError, match="^0 of 10 classes are left"):  # what the stream will bring is left out of both
        cilkit.pretrain(images, real="digits", without_classes_of="digits_photo", **small)
    alone = cilkit.pretrain("", real="digits", n_classes=3, per_class=10, **small)
    assert alone.report["images"] == 30 and len(alone.report["classes"]) == 3 and "real_images" not in alone.report
    assert set(alone.artifact.inputs) == {"real"}
    with pytest.raises(UserError, match="images and real are both empty"):
        cilkit.pretrain("", **small)


def test_real_images_alone_can_leave_out_the_stream(images):
    with pytest.raises(UserError, match="^0 of 10 classes are left to tell apart"):
        cilkit.pretrain("", real="digits", without_classes_of="digits_photo", **TINY, **ONCE)
    with pytest.raises(UserError, match="leave_out names 'digit tenty', which the benchmark does not hold"):
        cilkit.pretrain("", real="digits", leave_out=["digit tenty"], **TINY, **ONCE)
