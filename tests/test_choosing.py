"""Subsets of classes and images, and real images mixed in."""

import numpy as np
import pytest
from tiny import ARGS, image_set

from cilkit import pretraining
from cilkit.data import ImageSet
from cilkit.pretraining import choosing
from cilkit.pretraining.trainer import Data

SMALL = {"model_args": ARGS, "batch_size": 16, "held_out": 0.25, "recipe": "shift", "epochs": 3}


def named(images: ImageSet, *names: str) -> ImageSet:
    return ImageSet(images.source, images.index, images.labels, names)


def test_subsets_of_one_seed_are_nested_and_balanced():
    images = image_set(classes=6, per_class=8)
    parts = {(n, k): choosing.subset(images, n, k, 5) for n in (2, 4, 6) for k in (2, 5, 8)}
    for (n, k), part in parts.items():
        assert (part.counts == k).all() and len(part.class_names) == n
        assert part.class_names == [name for name in images.class_names if name in part.class_names]
        for (more, each), larger in parts.items():
            if n <= more and k <= each:
                assert set(part.index) <= set(larger.index)
        for name, label in zip(part.class_names, range(n), strict=True):
            whole = images.index[images.labels == images.class_names.index(name)]
            assert set(part.index[part.labels == label]) <= set(whole)
    assert choosing.subset(images, 0, 0, 5) is images
    assert set(choosing.subset(images, 2, 0, 6).class_names) != set(parts[2, 8].class_names)


def test_real_classes_are_merged_by_name_or_appended():
    painted = named(image_set(classes=3, per_class=2), "house sparrow", "rook", "wren")
    real = named(image_set(classes=3, per_class=4, seed=1), "001.House_Sparrow", "owl", "wrens")
    joined = choosing.join(painted, real)
    assert joined.class_names == ["house sparrow", "rook", "wren", "owl"]
    assert joined.counts.tolist() == [2 + 4, 2, 2 + 4, 4]
    for place in (0, 5, 6, 17):
        one, where = (painted, place) if place < 6 else (real, place - 6)
        assert np.array_equal(joined.read([place])[0], one.read([where])[0])
        assert joined.ids[place] == one.ids[where]
    order = np.random.default_rng(0).permutation(18)  # both sources in one batch, in its order
    assert np.array_equal(joined.read(order), np.concatenate([painted.read(), real.read()])[order])


@pytest.mark.parametrize(("share", "count"), [(0.0, 10), (0.25, 16), (0.5, 48), (0.75, 144)])
def test_every_epoch_has_its_share_and_shows_real_images_evenly(share, count):
    painted, real = image_set(classes=4, per_class=16), image_set(classes=5, per_class=2, seed=1, prefix="real")
    data = Data(painted, real, pretraining.Settings(held_out=0.25, real_share=share))
    assert (data.painted, data.an_epoch) == (48, 48 + count)
    seen = np.zeros(58, int)
    for epoch in range(7):
        cuts = np.concatenate(data.cuts(epoch))
        seen += np.bincount(cuts, minlength=58)
        assert (np.sort(cuts[cuts < 48]) == np.arange(48)).all() and (cuts >= 48).sum() == count
        assert np.ptp(seen[48:]) <= 1, "no real image comes twice before all came once"
    assert np.array_equal(data.cuts(3)[0], Data(painted, real, data.settings).cuts(3)[0])


def test_mixed_training_reports_the_share_and_learns_both():
    painted, real = image_set(classes=4, per_class=16), image_set(classes=4, per_class=6, seed=1, prefix="real")
    _, report = pretraining.pretrain(painted, real=real, real_share=0.25, **SMALL)
    assert report["classes"] == 8 and report["real_images"] == 24 and report["train_images"] == 48
    assert [row["real_share"] for row in report["epochs"]] == [0.25] * 3
    assert report["forwarded"]["student"] == 3 * 64 and report["held_out_images"] == 16
