"""Chance for a part of a batch is the whole batch's: recipes do not see how many processes share it."""

import numpy as np
import pytest
import torch

from cilkit.data import draws, transforms
from cilkit.data.transforms import Input

IMAGES = np.random.default_rng(0).integers(0, 256, (7, 24, 20, 3), dtype=np.uint8)
NAMES = ["shift", "digits", "pretrain", "timm", "slca_cifar", "slca_fine_grained", "lucir_cifar", "pretrain_full"]


@pytest.mark.parametrize("name", NAMES)
def test_parts_of_a_batch_are_the_batch(name):
    images = IMAGES[:, :20] if name == "shift" else IMAGES
    recipe = transforms.recipe(name, Input(), 0 if name in transforms.RECIPES else 16)
    generators = [torch.Generator().manual_seed(3) for _ in range(4)]
    whole = recipe.train(images, generators[0])
    parts = np.array_split(np.arange(7), 3)
    made = [
        recipe.train(images[rows], draws.Share(generator, 7, rows))
        for rows, generator in zip(parts, generators[1:], strict=True)
    ]
    assert torch.equal(torch.cat(made), whole)
    assert all(torch.equal(g.get_state(), generators[0].get_state()) for g in generators)
    assert not torch.equal(whole, recipe.train(images, generators[0]))
