"""Pixels: both ways of following a plan agree with Pillow, and neither depends on threads or on memory used again."""

import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from cilkit.data import resampling
from cilkit.data.recipes import Plan

PHOTO = load_sample_images().images[0].copy()  # (427, 640, 3)
HALF = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)  # mean and standard deviation


def plan(crops, resized, window=None, flip=None, brightness=None, **more):
    n = len(crops)
    window = np.zeros((n, 2), np.int64) if window is None else np.array(window)
    flip = np.array([0] * n if flip is None else flip, bool)
    return Plan(np.array(crops), np.array(resized), window, flip, brightness, 48, **more)


def pillow(image, height, width, interpolation="bicubic"):
    """Columns, then rows, as Pillow before 13 always does; 13 takes rows first where that saves work."""
    name = getattr(Image.Resampling, interpolation.upper())
    return np.asarray(Image.fromarray(image).resize((width, len(image)), name).resize((width, height), name))


def reference(image, one, row):
    """Crop, resize, window, flip, one image at a time; uint8 (3, size, size)."""
    top, left, height, width = one.crop[row]
    resized = pillow(image[top : top + height, left : left + width], *one.resized[row].tolist(), one.interpolation)
    canvas = np.broadcast_to(np.array(one.fill, np.uint8), (900, 900, 3)).copy()
    canvas[300 : 300 + resized.shape[0], 300 : 300 + resized.shape[1]] = resized
    down, right = one.window[row] + 300
    out = canvas[down : down + one.size, right : right + one.size]
    return (out[:, ::-1] if one.flip[row] else out).transpose(2, 0, 1)


BOXES = [[5, 9, 111, 98], [0, 0, 120, 160], [60, 33, 20, 31], [7, 7, 48, 48]]
INNER = [[60, 80], [55, 70], [50, 48], [48, 48]]
PLANS = {
    "shrink and grow": plan(BOXES, [[48, 48]] * 4, flip=[0, 1, 1, 0]),
    "bilinear": plan(BOXES, [[48, 48]] * 4, flip=[1, 1, 0, 0], interpolation="bilinear"),
    "a window of the resized crop": plan(BOXES, INNER, [[6, 16], [0, 22], [1, 0], [0, 0]]),
    "beyond the border": plan(
        [[0, 0, 120, 160]] * 4, [[48, 48]] * 4, [[-6, 3], [2, -5], [6, 6], [0, 0]], [0, 1, 1, 0], fill=(9, 99, 200)
    ),
}


@pytest.mark.parametrize("name", PLANS)
def test_both_ways_agree_with_pillow(name):
    one = PLANS[name]
    images = np.stack([PHOTO[20 * i : 20 * i + 120, 30 * i : 30 * i + 160] for i in range(4)])
    expected = np.stack([reference(image, one, row) for row, image in enumerate(images)]).astype(int)
    apart = np.stack([resampling._cut(image, one, row).numpy() for row, image in enumerate(images)])
    together = resampling.batched(torch.from_numpy(images), one)
    assert together.equal(together.round())  # whole levels
    for found in (apart.astype(int), together.numpy().astype(int)):
        difference = np.abs(found - expected)
        assert difference.max() <= 1 and difference.mean() < 0.05


def test_levels_are_kept_where_nothing_is_resized():
    one = plan([[3, 4, 50, 60]] * 2, [[50, 60]] * 2, [[1, 7], [-2, 0]], flip=[0, 1])
    images = np.stack([PHOTO[:80, :90], PHOTO[100:180, 40:130]])
    expected = np.stack([reference(image, one, row) for row, image in enumerate(images)])
    assert np.array_equal(np.stack([resampling._cut(image, one, row) for row, image in enumerate(images)]), expected)
    assert np.array_equal(resampling.batched(torch.from_numpy(images), one).numpy(), expected)


def test_each_row_of_weights_sums_to_one_inside_the_crop_and_is_empty_beyond():
    one = PLANS["beyond the border"]
    sums = resampling.weights(one, 0, 120).sum(2)
    place = np.arange(48) + one.window[:, :1]
    np.testing.assert_allclose(sums, (place >= 0) & (place < 48), atol=1e-6)


@pytest.mark.parametrize("sizes", ["equal", "different"])
def test_a_device_and_threads_give_the_same_batch(sizes, monkeypatch):
    factors = np.array([0.8, 1.0, 1.24, 1.1], np.float32)
    one = plan(BOXES, [[48, 48]] * 4, flip=[0, 1, 1, 0], brightness=factors)
    ends = [120] * 4 if sizes == "equal" else [120, 130, 140, 150]
    images = [PHOTO[:end, 40 : end + 80] for end in ends]
    threads = resampling.apply(images, one, (0.5, 0.4, 0.3), (0.2, 0.25, 0.5))
    monkeypatch.setattr(resampling, "_on_threads", resampling._on_device)
    device = resampling.apply(images, one, (0.5, 0.4, 0.3), (0.2, 0.25, 0.5))
    assert threads.shape == device.shape == (4, 3, 48, 48)
    tolerance = 2.3 / (255 * 0.2) if sizes == "equal" else 1e-6  # a level, brightened and cut to a whole one
    torch.testing.assert_close(threads, device, atol=tolerance, rtol=0)


def test_brightness_is_pillows():
    from torchvision.transforms.functional import adjust_brightness

    factors = np.array([0.753, 0.9, 1.0, 1.247], np.float32)
    levels = torch.from_numpy(PHOTO[:48, :48]).permute(2, 0, 1).float().repeat(4, 1, 1, 1)
    found = resampling._finished(levels, factors, 1.0, 0.0)
    for factor, image in zip(factors, found, strict=True):
        expected = np.asarray(adjust_brightness(Image.fromarray(PHOTO[:48, :48]), float(factor)))
        np.testing.assert_allclose(image.permute(1, 2, 0), expected, atol=1e-3)


def test_the_number_of_threads_changes_no_bit(monkeypatch):
    images = [PHOTO[:120, :160]] * 4
    results = []
    for count in (1, 3, 8):
        monkeypatch.setattr(resampling, "workers", lambda count=count: count)
        results.append(resampling.apply(images, PLANS["shrink and grow"], *HALF))
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


def test_memory_is_lent_again_only_when_no_tensor_shows_it(monkeypatch):
    monkeypatch.setattr(resampling, "_free", [])
    first = resampling._memory((2, 3, 8, 8)).fill_(1)
    view, place = first[1:, :1].flatten(), first.data_ptr()
    del first
    second = resampling._memory((2, 3, 8, 8)).fill_(2)
    assert view.eq(1).all() and second.data_ptr() != place
    del view
    assert resampling._memory((1, 3, 8, 8)).data_ptr() == place  # a smaller batch fits too


def test_read_only_memory_maps_are_read_in_silence(tmp_path):
    np.save(tmp_path / "pixels.npy", PHOTO)
    mapped = np.load(tmp_path / "pixels.npy", mmap_mode="r")
    torch.set_warn_always(True)  # otherwise PyTorch warns once in a process
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for images in ([mapped] * 4, mapped[None].repeat(4, axis=0)):
                assert resampling.apply(images, PLANS["bilinear"], *HALF).isfinite().all()
                assert resampling._on_device(images, PLANS["bilinear"], torch.tensor(1.0), 0.0).isfinite().all()
    finally:
        torch.set_warn_always(False)


def test_an_empty_batch_stays_empty():
    none = plan(np.zeros((0, 4), int), np.zeros((0, 2), int))
    assert resampling.apply([], none, *HALF).shape == (0, 3, 48, 48)
