"""Image sets: subsets are positions; pixels come from wherever they live, as an array or one by one."""

import numpy as np
import pytest

from cilkit.data import cache
from cilkit.data.imagesets import ImageSet
from cilkit.errors import UserError

NAMES, PLACES = ["cat", "dog", "owl"], ["photo", "sketch"]


def pictures(n=24, size=8):
    return np.random.default_rng(0).integers(0, 256, (n, size, size, 3), dtype=np.uint8)


def in_memory(n=24, domains=True) -> ImageSet:
    where = np.arange(n) // 3 % 2 if domains else None
    return ImageSet.from_arrays(pictures(n), np.arange(n) % 3, NAMES, domains=where, domain_names=PLACES * domains)


def mixed(folder) -> tuple[ImageSet, list[np.ndarray]]:
    """Images of three sizes on disk, and what they were."""
    random = np.random.default_rng(1)
    sizes = [(6, 9), (9, 6), (6, 6)]
    pixels = [random.integers(0, 256, (*sizes[k // 3 % 3], 3), dtype=np.uint8) for k in range(18)]
    ids, labels = [f"im {k}" for k in range(18)], np.arange(18) % 3
    cache.build(cache.Raw(ids, labels, NAMES, pixels.__getitem__, str), folder, "original", announce=lambda _: None)
    return cache.open(folder, NAMES), pixels


def test_reading_gives_what_images_gives_where_sizes_are_equal():
    images = in_memory()
    np.testing.assert_array_equal(images.read(), pictures())
    np.testing.assert_array_equal(images.select([5, 2]).read([1, 0]), pictures()[[2, 5]])
    np.testing.assert_array_equal(images.read(images.labels == 2), pictures()[2::3])
    assert images.sizes.tolist() == [[8, 8]] * 24 and images.sizes.dtype == np.int32 and not images.streamed
    assert images.read([]).shape == (0, 8, 8, 3)


def test_images_of_several_sizes_come_one_by_one_and_never_as_an_array(tmp_path):
    images, pixels = mixed(tmp_path)
    assert images.sizes.tolist() == [list(one.shape[:2]) for one in pixels]
    for have, row in zip(images.select([4, 0, 17]).read([2, 0]), (17, 4), strict=True):
        np.testing.assert_array_equal(have, pixels[row])
    with pytest.raises(UserError, match="mixes image sizes 9 x 6 and 6 x 9, which make no array; take a recipe"):
        images.images()
    np.testing.assert_array_equal(images.images([0, 1]), np.stack(pixels[:2]))  # these two are of one size
    assert isinstance(images.read([0, 1]), list)  # but how a batch is read does not depend on what is in it


def test_views_of_a_mapped_file_cannot_be_written_to(tmp_path):
    view = mixed(tmp_path)[0].read([0])[0]
    with pytest.raises(ValueError, match="read-only"):
        view[0, 0, 0] = 1


def test_exemplars_are_positions_of_the_opened_set():
    images = in_memory().of_classes([1, 2])
    kept = images.at(images.index[[3, 0]], [0, 2])
    np.testing.assert_array_equal(kept.read(), pictures()[images.index[[3, 0]]])
    assert kept.labels.tolist() == [0, 2] and kept.source is images.source and kept.class_names == NAMES
    np.testing.assert_array_equal(kept.at(kept.index, kept.labels).ids, kept.ids)
    with pytest.raises(UserError, match="position 24 is outside the 24 images"):
        images.at([3, 24], [0, 0])
    with pytest.raises(UserError, match="label 3 is outside the 3 class names"):
        images.at([3], [3])
    with pytest.raises(UserError, match="2 images came with 1 labels"):
        images.at([3, 4], [0])


def test_domains_follow_their_images():
    images = in_memory()
    sketches = images.of_domains([1])
    assert sketches.domains.tolist() == [1] * 12 and sketches.domain_names == PLACES
    np.testing.assert_array_equal(sketches.index, np.flatnonzero(images.domains == 1))
    np.testing.assert_array_equal(images.select([7, 2]).domains, images.domains[[7, 2]])
    assert len(images.of_domains([])) == 0
    with pytest.raises(UserError, match=r"domains \[2\] are not among the 2"):
        images.of_domains([2])
    plain = in_memory(domains=False)
    assert plain.domains is None and plain.domain_names == []
    with pytest.raises(UserError, match="not among the 0"):
        plain.of_domains([0])
    with pytest.raises(UserError, match="domain 1 is outside the 1 domain names"):
        ImageSet.from_arrays(pictures(2), [0, 0], ["cat"], domains=[0, 1], domain_names=["photo"])


def test_a_source_is_shared_by_subsets_and_its_key_names_the_pixels(tmp_path):
    images = in_memory()
    assert images.of_classes([1]).split_by_seed(0.5, 0)[0].source is images.source
    assert in_memory().source.key == images.source.key  # the same pixels elsewhere
    changed = pictures()
    changed[3, 0, 0, 0] ^= 1
    assert ImageSet.from_arrays(changed, np.arange(24) % 3, NAMES).source.key != images.source.key
    first, _ = mixed(tmp_path / "a")
    second, _ = mixed(tmp_path / "b")
    assert first.source.key == second.source.key != images.source.key


def test_renumbering_and_splitting_equal_a_loop_over_the_images():
    random = np.random.default_rng(3)
    labels = np.concatenate([np.arange(40), random.integers(0, 40, 360)])
    names = [f"class {k}" for k in range(40)]
    images = ImageSet.from_arrays(pictures(400, 2), labels, names)
    wanted = [names[k] for k in random.permutation(40)[:15]]
    kept = images.keep_classes(wanted)
    slow = [(i, wanted.index(names[label])) for i, label in enumerate(labels) if names[label] in wanted]
    assert list(zip(kept.index.tolist(), kept.labels.tolist(), strict=True)) == slow
    held, rng = np.zeros(len(kept), bool), np.random.default_rng(5)
    for label in range(15):
        members = np.flatnonzero(kept.labels == label)
        assert len(members) > 1
        held[rng.permutation(members)[: max(1, round(0.3 * len(members)))]] = True
    np.testing.assert_array_equal(kept.split_by_seed(0.3, 5)[1].index, kept.index[held])
