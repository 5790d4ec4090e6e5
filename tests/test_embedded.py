"""The embedded benchmarks: fixed recipe, fixed split, nothing shared between train and test."""

import hashlib

import numpy as np
import pytest

from cilkit.data import benchmarks, embedded

GOLDEN = {
    "digits": ("55ec9e165089d86c", "ac78f8cedd3d9563"),
    "digits_photo": ("c6dfbab414c2c25b", "ab4c33c68e631534"),
}


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CILKIT_ARTIFACTS", str(tmp_path_factory.mktemp("artifacts")))
        yield {name: benchmarks.load(name) for name in ("digits", "digits_photo")}


@pytest.mark.parametrize(("name", "train"), [("digits", 1257), ("digits_photo", 2514)])
def test_sizes_and_classes(loaded, name, train):
    benchmark = loaded[name]
    assert (len(benchmark.train), len(benchmark.test)) == (train, 540)
    assert benchmark.test.counts.tolist() == [54] * 10
    assert benchmark.train.images([0]).shape == (1, 32, 32, 3)
    assert benchmark.class_names[:2] == ["digit zero", "digit one"] and benchmark.chance == 0.1
    assert "scikit-learn" in benchmark.licence and benchmark.digest == benchmark.artifact.digest


def test_train_and_test_share_neither_scans_nor_photograph_regions(loaded):
    train, test = loaded["digits_photo"].train.manifest, loaded["digits_photo"].test.manifest
    assert not set(train["scan"]) & set(test["scan"])
    assert len(set(train["scan"]) | set(test["scan"])) == 1797
    assert train["crop_left"].max() + embedded.SIZE <= test["crop_left"].min()
    assert (train["scan"].value_counts() == 2).all() and test["scan"].is_unique


def test_every_image_is_its_recipe(loaded):
    """The row in the manifest says which crop and which scan; outside the scan the photograph shows unchanged."""
    from sklearn.datasets import load_digits, load_sample_image

    test = loaded["digits_photo"].test
    for i in (0, 100, 539):
        row = test.manifest.iloc[i]
        photograph = load_sample_image(row["photograph"]).astype(int)
        crop = photograph[row["crop_top"] :, row["crop_left"] :][:32, :32]
        outside = np.ones((32, 32), bool)
        outside[row["top"] : row["top"] + row["side"], row["left"] : row["left"] + row["side"]] = False
        np.testing.assert_array_equal(test.images([i])[0][outside], crop[outside])
        assert load_digits().target[row["scan"]] == test.labels[i]


def test_blend_is_the_absolute_difference():
    crop = np.full((32, 32, 3), 100, np.uint8)
    image = embedded.blend(np.full((8, 8), 255, np.uint8), crop, top=3, left=5, side=20)
    assert (image[3:23, 5:25] == 155).all() and (image[:3] == 100).all() and (image[:, 25:] == 100).all()


def test_pixels_are_the_golden_ones(loaded):
    """Fails when a recipe changed: raise the version in `_embedded` then, so that no stale artifact is found."""
    found = {
        name: hashlib.sha256(b.train.images().tobytes() + b.test.images().tobytes()).hexdigest()[:16]
        for name, b in loaded.items()
    }
    assert found == {"digits": "e3f2454f0b2f9fe8", "digits_photo": "1b615b53cbe6c767"}


def test_artifacts_are_the_ones_that_studies_were_made_with(loaded):
    """Keys name the recipe, digests the payload; runs and backbones of the committed study hang on both."""
    found = {name: (b.artifact.key[:16], b.digest[:16]) for name, b in loaded.items()}
    assert found == GOLDEN


def test_class_names_are_known_without_building(tmp_path, monkeypatch):
    monkeypatch.setenv("CILKIT_ARTIFACTS", str(tmp_path))
    assert benchmarks.class_names("digits_photo") == embedded.NAMES
    assert list(tmp_path.iterdir()) == []
