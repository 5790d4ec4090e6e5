"""Near-duplicates between two sets: planted copies are found, whatever became of them, and little else is."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
from PIL import Image

from cilkit import twins
from cilkit.data import ImageSet
from cilkit.errors import UserError

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def smooth(count: int, side: int, seed: int) -> np.ndarray:
    """Pictures of soft blobs, as unlike one another as photographs: uint8 (n, side, side, 3)."""
    coarse = np.random.default_rng(seed).integers(0, 256, (count, 6, 6, 3)).astype(np.uint8)
    return np.stack([np.array(Image.fromarray(one).resize((side, side), Image.Resampling.BICUBIC)) for one in coarse])


def image_set(images, prefix="image") -> ImageSet:
    images = np.asarray(images)
    return ImageSet.from_arrays(
        images, np.zeros(len(images), int), ["all"], [f"{prefix} {n}" for n in range(len(images))]
    )


def copied(pixels: np.ndarray, side: int, quality: int) -> np.ndarray:
    """Resized and saved as JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=quality)
    return np.array(Image.open(buffer))


@pytest.fixture(scope="module")
def real() -> ImageSet:
    return image_set(smooth(200, 48, seed=0), "real")


@pytest.mark.parametrize("side, quality", [(48, 95), (48, 30), (24, 60), (96, 60), (31, 60)])
def test_planted_copies_are_found_and_nothing_else(real, side, quality):
    painted = smooth(60, side, seed=1)
    planted = {3: 150, 20: 7, 59: 199}
    for place, original in planted.items():
        painted[place] = copied(real.images([original])[0], side, quality)
    table = twins.near_twins(image_set(painted, "painted"), real)
    found = dict(zip(table["image_id"], table["other_id"], strict=True))
    assert found == {f"painted {place}": f"real {original}" for place, original in planted.items()}
    assert (table["hash_distance"] <= twins.HASH_DISTANCE).all() and table["similarity"].isna().all()
    assert table["correlation"].is_monotonic_decreasing and (table["correlation"] >= twins.CORRELATION).all()


def test_features_find_copies_without_the_hash(real):
    network = tiny.backbone()
    painted = image_set(real.images()[[9, 30]])
    table = twins.near_twins(painted, real, network, hash_distance=-1, similarity=0.9999)
    assert set(zip(table["image_id"], table["other_id"], strict=True)) == {
        ("image 0", "real 9"),
        ("image 1", "real 30"),
    }
    assert table["similarity"].tolist() == pytest.approx([1, 1], abs=1e-5)
    assert len(twins.near_twins(painted, real, network, hash_distance=-1, similarity=1.01)) == 0
    both = twins.near_twins(painted, real, network)
    assert len(both) == 2, "one pair found in both ways is one row"


def test_cosines_are_those_of_the_backbone_s_features(real):
    from cilkit.backbones import extract
    from cilkit.data.transforms import recipe

    network, painted = tiny.backbone(), image_set(smooth(5, 48, seed=2))
    table = twins.near_twins(painted, real, network, hash_distance=-1, similarity=-1.0)
    prepare = recipe("none", replace(network.input, size=network.input.size or 48))
    one, other = (extract(network, some.images(), "test", prepare).astype(np.float64) for some in (painted, real))
    cosines = one @ other.T / np.outer(np.linalg.norm(one, axis=1), np.linalg.norm(other, axis=1))
    expected = {f"image {i}": (f"real {row.argmax()}", row.max()) for i, row in enumerate(cosines)}
    for row in table.to_dict("records"):
        assert row["other_id"] == expected[row["image_id"]][0]
        assert row["similarity"] == pytest.approx(expected[row["image_id"]][1], abs=1e-5)


def test_chunks_change_nothing(real, monkeypatch):
    painted = real.images()[:40].copy()
    painted[::3] = smooth(14, 48, seed=3)
    whole = twins.near_twins(image_set(painted), real, tiny.backbone(), similarity=0.999)
    monkeypatch.setattr(twins, "PAIRS", 7 * len(real))
    monkeypatch.setattr(twins, "PIXELS", 50_000)
    parts = twins.near_twins(image_set(painted), real, tiny.backbone(), similarity=0.999)
    key = ["image_id", "other_id", "hash_distance"]
    assert sorted(map(tuple, parts[key].to_numpy())) == sorted(map(tuple, whole[key].to_numpy())) and len(whole) >= 26


def test_blank_images_are_like_nothing_and_empty_sets_are_refused(real):
    blank = image_set(np.full((3, 48, 48, 3), 255, np.uint8))
    assert len(twins.near_twins(blank, blank)) == 0
    with pytest.raises(UserError, match="between 0 and 200 images"):
        twins.near_twins(blank.select([]), real)


@pytest.mark.parametrize("name, most", [("cifar100_32", 0.002), ("pacs_64", 0.008)])
def test_thresholds_on_photographs_and_drawings(name, most):
    """Copies at three quarters of the side, JPEG quality 30, are found; training images seldom are taken for test ones.

    Measured with 2,000 images: 96 % and 99 % of the copies, 0.1 % and 0.7 % of the training images; at half the side
    66 % and 91 %. The hash alone would have needed a distance that takes 14 % and 47 % of the training images.
    """
    path = DATA / f"{name}.npz"
    if not path.exists():
        pytest.skip(f"{path.name} is not beside this checkout")
    bundle = np.load(path)
    blob, offset, split = bundle["blob"], bundle["offset"], bundle["split"]

    def some(part: int) -> np.ndarray:
        rows = np.random.default_rng(0).permutation(np.flatnonzero(split == part))[:600]
        parts = [io.BytesIO(blob[offset[row] : offset[row + 1]].tobytes()) for row in rows]
        return np.stack([np.array(Image.open(part).convert("RGB")) for part in parts])

    test, train = some(1), some(0)
    copies = image_set([copied(one, 3 * one.shape[0] // 4, 30) for one in test[:100]])
    table = twins.near_twins(copies, image_set(test))
    assert (table["image_id"] == table["other_id"]).sum() >= 90
    assert len(twins.near_twins(image_set(train), image_set(test))) <= most * 600
