"""The class-conditional diffusion model: it learns classes, keeps its places for them, and is its state."""

import numpy as np
import pytest
import torch

from cilkit.data import ImageSet
from cilkit.errors import UserError
from cilkit.synthesis.classwise import Classwise

SMALL = {"steps": 3, "batch": 4, "lr": 1e-3, "width": 8, "size": 0, "sampling": 2, "ema": 0.5}


def plain_colours(levels, size=8, each=6, names="abc"):
    """Class k is the grey `levels[k]`, with a little noise."""
    labels = np.repeat(np.arange(len(levels)), each)
    noise = np.random.default_rng(0).integers(-8, 8, (len(labels), size, size, 3))
    pixels = (np.array(levels)[labels, None, None, None] + noise).clip(0, 255).astype(np.uint8)
    return ImageSet.from_arrays(pixels, labels, list(names[: len(levels)]))


def test_it_learns_what_a_class_looks_like_and_a_new_class_beside_its_own_samples():
    painter = Classwise(**SMALL | {"steps": 60, "batch": 16, "lr": 1e-2, "sampling": 8, "ema": 0.9})
    painter.fit([plain_colours([40, 210])], ["a", "b"], seed=0)
    first = painter.paint(["a", "b"], 6, seed=1)
    means = [first.images()[first.labels == k].mean() for k in (0, 1)]
    assert means[0] < 100 < 150 < means[1]
    new = plain_colours([0, 0, 120]).of_classes([2])
    painter.fit([new, first], ["a", "b", "c"], seed=2)
    second = painter.paint(["a", "b", "c"], 6, seed=3)
    means = [second.images()[second.labels == k].mean() for k in range(3)]
    assert means[0] < means[2] < means[1] and means[1] - means[0] > 60


def test_images_depend_on_the_seed_and_the_state_alone():
    painter, other = Classwise(**SMALL), Classwise(**SMALL)
    before = torch.random.get_rng_state()
    painter.fit([plain_colours([40, 210])], ["a", "b"], seed=0)
    other.load(painter.state())
    painted = [one.paint(["a", "b"], 3, seed) for one, seed in ((painter, 5), (other, 5), (painter, 6))]
    assert np.array_equal(painted[0].images(), painted[1].images())
    assert not np.array_equal(painted[0].images(), painted[2].images())
    assert torch.equal(before, torch.random.get_rng_state())
    other.load({})
    assert other.network is None and other.bytes == 0 and painter.bytes > 4 * 10_000


def test_a_new_class_leaves_the_old_ones_what_they_were():
    painter = Classwise(**SMALL)
    painter.fit([plain_colours([40, 210])], ["a", "b"], seed=0)
    before = painter.paint(["a", "b"], 2, seed=1).images()
    kept = painter.state()
    painter._grow(3, seed=9)
    assert np.array_equal(painter.paint(["a", "b"], 2, seed=1).images(), before)
    assert len(painter.state()["class_embedding.weight"]) == len(kept["class_embedding.weight"]) + 1


@pytest.mark.parametrize("size", [0, 8])
def test_what_it_paints_is_as_large_as_what_it_learnt(size):
    painter = Classwise(**SMALL | {"size": size})
    painter.fit([plain_colours([40, 210], size=12)], ["a", "b"], seed=0)
    assert painter.paint(["a"], 2, seed=0).images().shape == (2, 12, 12, 3)
    assert painter.state()["shape"].tolist() == [size or 12, 12, 12]


def test_sizes_that_it_cannot_work_in_are_named():
    painter = Classwise(**SMALL)
    with pytest.raises(UserError, match="are 10 x 10 \\(painter_size 0\\)"):
        painter.fit([plain_colours([0], size=10)], ["a"], seed=0)
    with pytest.raises(UserError, match="painter_size 6"):
        Classwise(**SMALL | {"size": 6}).fit([plain_colours([0])], ["a"], seed=0)
