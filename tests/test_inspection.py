"""Inspection: what pixels alone tell, by hand and against literal references."""

import numpy as np
import pytest

from cilkit.synthesis import glyphs
from cilkit.synthesis.inspection import contrasts, near_duplicates, perceptual_hashes, reduced, sharpness


@pytest.fixture(scope="module")
def renderings() -> tuple[np.ndarray, np.ndarray]:
    return glyphs.render_set(["digit one", "digit eight", "heart"], 40, seed=0)


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
