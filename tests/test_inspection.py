"""Inspection: blank images, near-duplicates and wrong sizes are found; good images are left alone; people decide."""

import numpy as np
import pytest

from cilkit.data.imagesets import ImageSet
from cilkit.data.shards import ShardWriter, open_set
from cilkit.errors import UserError
from cilkit.synthesis import glyphs, inspect, keep_good
from cilkit.synthesis.inspection import contrasts, near_duplicates, perceptual_hashes, reduced, sharpness


@pytest.fixture(scope="module")
def renderings() -> tuple[np.ndarray, np.ndarray]:
    return glyphs.render_set(["digit one", "digit eight", "heart"], 40, seed=0)


def image_set(images, labels) -> ImageSet:
    return ImageSet.from_arrays(images, labels, ["digit one", "digit eight", "heart"])


def test_good_images_are_kept(renderings):
    table = inspect(image_set(*renderings))
    assert table["decision"].tolist() == ["keep"] * 120
    assert table["class_name"].tolist() == ["digit one"] * 40 + ["digit eight"] * 40 + ["heart"] * 40


def test_blank_twin_and_its_first_are_told_apart(renderings):
    images, labels = renderings[0].copy(), renderings[1]
    images[3] = 90  # one grey
    noise = np.random.default_rng(0).integers(-4, 5, images[7].shape)
    images[9] = np.clip(images[7].astype(int) + noise, 0, 255)  # a twin in its class
    images[50] = images[7]  # the same picture under another label is no twin, but a matter for the confusion
    table = inspect(image_set(images, labels))
    assert table.index[table["blank"]].tolist() == [3]
    assert table.index[table["duplicate_of"] != ""].tolist() == [9]
    assert table["duplicate_of"][9] == table["image_id"][7]
    assert table.index[table["decision"] == "drop"].tolist() == [3, 9]


def test_wrong_sizes_are_found_from_the_manifest(tmp_path):
    writer = ShardWriter(tmp_path)
    for number, size in enumerate((8, 8, 6, 8)):
        image = np.full((size, size, 3), 10 * number, np.uint8)
        writer.add(image, {"image_id": f"i{number}", "class_id": 0, "class_name": "heart"})
    writer.close()
    table = inspect(open_set(tmp_path))
    assert table["wrong_size"].tolist() == [False, False, True, False]
    assert table["decision"].tolist() == ["keep", "keep", "drop", "keep"]
    assert inspect(open_set(tmp_path), size=6)["wrong_size"].tolist() == [True, True, False, True]


def test_decisions_can_be_overruled_and_no_class_may_vanish(renderings):
    images = image_set(*renderings)
    table = inspect(images)
    table.loc[[0, 41], "decision"] = "drop"
    good = keep_good(images, table)
    assert len(good) == 118 and good.class_names == images.class_names
    assert set(images.ids) - set(good.ids) == {images.ids[0], images.ids[41]}
    table.loc[table["class_name"] == "heart", "decision"] = "drop"
    with pytest.raises(UserError, match="class 'heart' has no images"):
        keep_good(images, table)


def test_contrast_is_the_range_of_brightness():
    images = np.zeros((3, 10, 10, 3), np.uint8)
    images[1, :5] = 200
    images[2, 0, 0] = 255  # one bright pixel of a hundred is no contrast
    assert contrasts(images) == pytest.approx([0.0, 200.0, 0.0], abs=3.0)


def test_hash_by_hand():
    """Brightness that rises to the right: no cell is brighter than the next; falls: every one is."""
    ramp = np.broadcast_to(np.linspace(0, 255, 36).astype(np.uint8)[:, None], (32, 36, 3))
    hashes = perceptual_hashes(np.stack([ramp, ramp[:, ::-1]]))
    assert hashes.shape == (2, 64) and not hashes[0].any() and hashes[1].all()


def test_near_duplicates_need_hash_and_pixels(renderings):
    one = renderings[0][0]
    darker = (one * 0.5).astype(np.uint8)  # nearly the same hash, other pixels
    assert near_duplicates(np.stack([one, darker, one, one])) == {2: 0, 3: 0}


def test_sharpness_by_hand():
    """A flat image has none, a checkerboard of 0 and 10 the most: every inner Laplacian is 40 or -40."""
    board = 10 * (np.indices((9, 9)).sum(axis=0) % 2)
    images = np.stack([np.full((9, 9, 3), 7), np.repeat(board[:, :, None], 3, axis=2)]).astype(np.uint8)
    assert sharpness(images) == pytest.approx([0.0, 40.0], abs=0.1)
    assert sharpness(images[:, :2, :2]).tolist() == [0.0, 0.0]


def test_blur_lowers_sharpness(renderings):
    from scipy.ndimage import uniform_filter

    sharp = renderings[0][:20]
    assert (sharpness(uniform_filter(sharp, (0, 3, 3, 0))) < sharpness(sharp)).all()


def test_reduced_images_are_averages_and_small_ones_stay():
    large = np.random.default_rng(0).integers(0, 256, (2, 64, 96, 3), dtype=np.uint8)
    by_hand = large.reshape(2, 32, 2, 32, 3, 3).mean(axis=(2, 4))
    assert np.abs(reduced(large) - by_hand).max() <= 1 and reduced(large).dtype == np.uint8
    small = large[:, :32, :20]
    assert reduced(small) is small


def test_near_duplicates_of_large_images_are_found_by_their_small_copies(renderings):
    large = renderings[0][:6].repeat(4, axis=1).repeat(4, axis=2)
    large[4] = large[1]
    assert near_duplicates(reduced(large), perceptual_hashes(large)) == near_duplicates(large) == {4: 1}
