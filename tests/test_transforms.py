"""Embedded recipes: local randomness only, no mirrored characters, and batches that partition an epoch."""

import numpy as np
import pytest
import torch

from cilkit.data.transforms import RECIPES, Input, augment, batches, recipe, to_float
from cilkit.errors import UserError


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def ramp(n=64, size=32):
    """Values grow from left to right: a mirrored image would show a falling ramp."""
    row = torch.linspace(-1, 1, size)
    return row.expand(n, 3, size, size).contiguous()


def test_to_float_normalises_each_channel():
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 6, 3), dtype=np.uint8)
    mean, std = np.array([0.5, 0.4, 0.3]), np.array([0.2, 0.25, 0.5])
    expected = ((images / 255 - mean) / std).transpose(0, 3, 1, 2)
    found = to_float(images, mean.tolist(), std.tolist())
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_keep_shape_and_depend_on_the_generator_only(recipe):
    batch = torch.randn(16, 3, 32, 32, generator=generator(5))
    before = torch.random.get_rng_state()
    first, again = augment(batch, recipe, generator()), augment(batch, recipe, generator())
    assert torch.equal(first, again) and first.shape == batch.shape and torch.isfinite(first).all()
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(first, batch) == (recipe == "none")


def test_shift_moves_whole_pixels_within_two():
    batch = torch.randn(32, 3, 16, 16, generator=generator(1))
    shifted = augment(batch, "shift", generator())
    seen = set()
    for image, moved in zip(batch, shifted, strict=True):
        core = moved[:, 2:-2, 2:-2]
        hits = [
            (dy, dx)
            for dy in range(-2, 3)
            for dx in range(-2, 3)
            if torch.equal(core, image[:, 2 + dy : 14 + dy, 2 + dx : 14 + dx])
        ]
        assert len(hits) == 1
        seen.add(hits[0])
    assert len(seen) > 5


@pytest.mark.parametrize("recipe", ["shift", "digits"])
def test_nothing_is_ever_mirrored(recipe):
    moved = augment(ramp(256), recipe, generator())
    slope = (moved[..., 28:].mean((1, 2, 3)) - moved[..., :4].mean((1, 2, 3))).numpy()
    assert (slope > 0).all()


def test_pretrain_inverts_about_half_of_the_images_but_mirrors_none():
    """Bottom-left mark on the ramp: inversion changes both signs, a mirror image would change one of them."""
    n = 400
    batch = ramp(n) + torch.linspace(-1, 1, 32).view(1, 1, 32, 1)
    moved = augment(batch, "pretrain", generator()).mean(1)
    across = moved[:, :, 20:].mean((1, 2)) - moved[:, :, :12].mean((1, 2))
    down = moved[:, 20:, :].mean((1, 2)) - moved[:, :12, :].mean((1, 2))
    assert (across.sign() == down.sign()).float().mean() > 0.98
    assert 0.4 < (across > 0).float().mean() < 0.6


def test_unknown_recipe_is_named():
    with pytest.raises(UserError, match="'flips' is unknown"):
        augment(ramp(), "flips", generator())


def test_batches_partition_the_epoch_and_derive_from_seed_and_epoch():
    cuts = batches(23, 5, seed=1, epoch=2)
    assert [len(cut) for cut in cuts] == [5, 5, 5, 5, 3]
    assert sorted(np.concatenate(cuts)) == list(range(23))
    np.testing.assert_array_equal(np.concatenate(cuts), np.random.default_rng([1, 2]).permutation(23))
    assert np.concatenate(batches(23, 5, 1, 3)).tolist() != np.concatenate(cuts).tolist()
    assert [len(cut) for cut in batches(23, 5, 1, 2, drop_last=True)] == [5, 5, 5, 5]
    assert [len(cut) for cut in batches(20, 5, 1, 2, drop_last=True)] == [5] * 4


@pytest.mark.parametrize("name", RECIPES)
def test_an_embedded_recipe_is_bit_equal_to_augmenting_the_images_at_their_own_size(name):
    images = np.random.default_rng(0).integers(0, 256, (7, 32, 32, 3), dtype=np.uint8)
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.25, 0.5)
    expected = augment(to_float(images, mean, std), name, generator(4))
    for size in (0, 32):
        r = recipe(name, Input(size, mean, std))
        for given in (images, list(images)):
            assert torch.equal(r.train(given, generator(4)), expected)
            assert torch.equal(r.test(given), to_float(images, mean, std))
        assert r.size == size and r.mean == mean and r.std == std and r.augments == (name != "none")


def test_an_embedded_recipe_takes_other_images_when_a_size_is_given():
    images = [np.full((40, 60, 3), 51, np.uint8), np.full((32, 32, 3), 102, np.uint8)]
    with pytest.raises(UserError, match="several sizes.*set image_size, or take a recipe that resizes"):
        recipe("digits", Input()).train(images, generator())
    batch = recipe("none", Input(32)).train(images, generator())
    expected = torch.tensor([51 / 127.5 - 1, 102 / 127.5 - 1]).view(2, 1, 1, 1).expand(2, 3, 32, 32)
    torch.testing.assert_close(batch, expected)
    assert torch.equal(
        recipe("none", Input(), image_size=32).test(images[1:]), to_float(images[1][None], *[(0.5,) * 3] * 2)
    )


def test_no_image_makes_an_empty_batch():
    assert recipe("timm", Input(24)).train([], generator()).shape == (0, 3, 24, 24)


def test_a_recipe_says_how_far_an_image_may_be_decoded_small():
    """What testing resizes the shorter side to; never where pixels stay as they are."""
    wanted = {"timm": 256, "slca_fine_grained": 300, "slca_imagenet_r": 256, "lucir_cifar": 0, "digits": 0, "none": 0}
    assert {name: recipe(name, Input(224)).shortest for name in wanted} == wanted
    assert recipe("slca_imagenet_r", Input(224), 112).shortest == 128
