"""The gap between paintings and real images: an artifact whose figures are those of `cilkit.analysis.domain_gap`."""

import numpy as np
import pytest
from tiny import backbone, image_set

from cilkit import analysis, artifacts, backbones
from cilkit.data import Benchmark, ImageSet, ShardWriter, transforms
from cilkit.data.decoding import shrunk
from cilkit.errors import UserError
from cilkit.road import gaps
from cilkit.road.painting import open_images


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("CILKIT_ARTIFACTS", str(tmp_path / "artifacts"))


def stored(stage, images):
    """An image set as an artifact of shards."""

    def make(work):
        writer = ShardWriter(work.path)
        for pixels, label, i in zip(images.images(), images.labels, range(len(images)), strict=True):
            row = {"image_id": f"{i:05d}", "class_id": int(label), "class_name": images.class_names[label]}
            writer.add(pixels, row)
        writer.close()

    return open_images(artifacts.obtain(stage, 1, {"key": images.source.key}, {}, make))


def real_of(train):
    opened = stored("benchmark", train)
    return Benchmark("made up", opened, opened, artifact=opened.artifact)


@pytest.fixture
def real():
    return real_of(image_set(classes=4, per_class=40))


def darker(images, names=None, by=3):
    return ImageSet.from_arrays(images.images() // by, images.labels, names or images.class_names)


def test_equal_images_are_no_gap_and_darker_ones_are(real):
    near = gaps.gap(stored("images", image_set(4, 40, seed=1)), real, number=80)
    far = gaps.gap(stored("images", darker(image_set(4, 40, seed=1))), real, number=80)
    assert near.whole["telling_them_apart"] < 60 and far.whole["telling_them_apart"] > 80
    assert far.whole["frechet"] > 2 * near.whole["frechet"] and far.whole["variance_ratio"] < 0.2
    same = gaps.gap(stored("images", image_set(4, 40)), real, number=160)
    assert same.whole["mean_shift"] == pytest.approx(0, abs=1e-9) and same.whole["precision"] == 1


def test_the_figures_are_those_of_principal_components_of_real_pixels_whole_and_by_class(real):
    painted = stored("images", darker(image_set(4, 30, seed=1), ["class 2", "class 0", "other", "class 9"]))
    found = gaps.gap(painted, real, number=500, seed=3)
    pixels, other = (np.stack([shrunk(image, square=32) for image in one.images()]) for one in (real.train, painted))
    pixels, other = pixels.reshape(160, -1) / 255, other.reshape(120, -1) / 255  # at most 32 pixels on a side
    values, weights = np.linalg.eigh(
        (pixels - pixels.mean(0)) @ (pixels - pixels.mean(0)).T
    )  # directions by their images
    directions = (pixels - pixels.mean(0)).T @ weights[:, :-31:-1] / np.sqrt(values[:-31:-1])
    unit = ((pixels - pixels.mean(0)) @ directions).std()
    seen, theirs = ((x - pixels.mean(0)) @ directions / unit for x in (pixels, other))
    assert found.by_class.index.tolist() == ["class 0", "class 2"]  # what both have, in the benchmark's order
    of = [seen[real.train.labels == 2], theirs[painted.labels == painted.class_names.index("class 2")]]
    drawn = np.sort(np.random.default_rng(3).choice(40, 30, replace=False))
    expected = analysis.domain_gap(of[0][drawn], of[1], seed=3)
    row = found.by_class.loc["class 2"]
    assert row["images"] == 30
    for name, value in expected.items():
        assert row[name] == pytest.approx(value, rel=1e-6, abs=1e-6), name
    assert found.whole["images"] == 120


def test_the_whole_is_of_the_classes_that_are_asked_for_and_small_classes_have_no_row(real):
    mixed = image_set(4, 30, seed=1).images()
    labels = image_set(4, 30, seed=1).labels
    mixed[labels == 3] //= 10
    keep = np.flatnonzero((labels != 1) | (np.cumsum(labels == 1) <= 9))
    painted = stored("images", ImageSet.from_arrays(mixed[keep], labels[keep], real.class_names))
    whole = gaps.gap(painted, real)
    bright = gaps.gap(painted, real, classes=["class 0", "class 2"])
    assert bright.whole["images"] == 60 and bright.whole["mean_shift"] != whole.whole["mean_shift"]
    assert whole.by_class.index.tolist() == bright.by_class.index.tolist() == ["class 0", "class 2", "class 3"]
    assert whole.by_class["telling_them_apart"].idxmax() == "class 3"


def test_it_is_found_again_and_what_is_asked_for_is_its_key(real, monkeypatch):
    painted = stored("images", image_set(4, 20, seed=1))
    made = gaps.gap(painted, real)
    assert set(made.artifact.inputs) == {"images", "benchmark"}
    monkeypatch.setattr(gaps, "_figures", lambda *_: pytest.fail("computed again"))
    again = gaps.gap(painted.artifact.name, real, device="cpu")
    assert again.artifact.digest == made.artifact.digest and again.whole == made.whole
    with pytest.raises(pytest.fail.Exception):
        gaps.gap(painted, real, seed=1)


@pytest.mark.slow
def test_in_a_backbones_features(real):
    painted = stored("images", darker(image_set(4, 20, seed=1)))
    backbones.save(backbone(), real.train.artifact.path.parent / "net", {})
    found = gaps.gap(painted, real, features=str(real.train.artifact.path.parent / "net"), number=80)
    network = backbone()
    recipe = transforms.recipe("timm_test", network.input)
    drawn = np.sort(np.random.default_rng(0).choice(160, 80, replace=False))
    seen = [backbones.extract(network, one, "probe", recipe) for one in (real.train.select(drawn), painted)]
    assert found.whole["frechet"] == pytest.approx(analysis.domain_gap(*seen)["frechet"], rel=1e-3)
    assert found.artifact.identity["threads"] == 1 and found.artifact.identity["backbone"] == "file"


def test_what_cannot_be_compared_is_said(real):
    painted = stored("images", image_set(4, 20, seed=1))
    with pytest.raises(UserError, match="has no class 'class 7'"):
        gaps.gap(painted, real, classes=["class 7"])
    with pytest.raises(UserError, match="number is 3; expected 10 images or more"):
        gaps.gap(painted, real, number=3)
