"""Readers: every real format, laid out tiny, gives the images, classes, split and domains that were laid out."""

import numpy as np
import pytest

from cilkit.data import sources
from cilkit.errors import UserError
from tests import layouts

TRAIN, TEST, CLASSES = layouts.TRAIN, layouts.TEST, layouts.CLASSES


def test_packed_pixels_come_out_as_they_went_in(tmp_path):
    """CIFAR's planes and MNIST's bytes in their order; the fine label, not the coarse one."""
    listing = sources.cifar100(layouts.write("cifar100", tmp_path / "cifar100"))
    assert listing.labels.tolist() == [c for c in range(CLASSES) for _ in range(TRAIN)] + sorted([0, 1, 2, 3] * TEST)
    np.testing.assert_array_equal(listing.read(TRAIN + 2), layouts.pixels(1, 2, 32, 32))
    np.testing.assert_array_equal(listing.read(CLASSES * TRAIN), layouts.pixels(0, TRAIN, 32, 32))
    assert listing.test.sum() == CLASSES * TEST and not listing.test[: CLASSES * TRAIN].any()
    listing = sources.idx(layouts.write("fashion_mnist", tmp_path / "fashion"))
    grey = layouts.pixels(2, 1, 28, 28)[..., 0]
    np.testing.assert_array_equal(listing.read(2 * TRAIN + 1), np.repeat(grey[..., None], 3, axis=2))
    listing = sources.cifar10(layouts.write("cifar10", tmp_path / "cifar10"))
    assert len(listing.ids) == 5 * 2 * CLASSES + TEST * CLASSES and listing.ids[-1] == f"test/{TEST * CLASSES - 1:05d}"


def test_damaged_packed_files_are_named(tmp_path):
    home = layouts.write("cifar100", tmp_path / "a")
    file = home / "cifar-100-binary" / "test.bin"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"test.bin has 36887 bytes, no whole number of records"):
        sources.cifar100(home)
    home = layouts.write("fashion_mnist", tmp_path / "b")
    (home / "t10k-labels-idx1-ubyte.gz").unlink()
    (home / "t10k-labels-idx1-ubyte").write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 9, 1]))
    with pytest.raises(UserError, match="t10k-labels-idx1-ubyte is no whole idx file"):
        sources.idx(home)


def test_a_class_is_its_folder_and_the_split_is_the_list(tmp_path):
    listing = sources.cub(layouts.write("cub200", tmp_path / "cub"))
    assert listing.keys == layouts.keys("cub200") == listing.folders
    assert [listing.keys[c] for c in listing.labels] == [image.split("/")[1] for image in listing.ids]
    assert listing.test.tolist() == ([False] * TRAIN + [True] * TEST) * CLASSES
    assert sources.cub(tmp_path / "cub" / "CUB_200_2011").ids == listing.ids  # the archive's own folder as home


@pytest.mark.parametrize(
    ("name", "reader", "first", "last"),
    [
        ("cars196", sources.cars, "cars_train/00001.jpg", "cars_test/00012.jpg"),
        ("food101", sources.food, "images/apple_pie/1000.jpg", "images/beef_carpaccio/1008.jpg"),
        ("flowers102", sources.flowers, "jpg/image_00001.jpg", "jpg/image_00036.jpg"),
        ("pets", sources.pets, "images/Abyssinian_1.jpg", "images/basset_hound_9.jpg"),
        ("imagenet1k", sources.imagenet, None, "val/n01491361/ILSVRC2012_val_00000008.JPEG"),
    ],
)
def test_lists_give_files_that_exist_with_their_colour(tmp_path, name, reader, first, last):
    """Labels are checked against the pixels: the colour of a class is that of its layout."""
    from PIL import Image

    listing = reader(layouts.write(name, tmp_path))
    assert listing.test.sum() == CLASSES * TEST and (~listing.test).sum() == CLASSES * TRAIN
    assert listing.ids[-1] == last and first in (None, listing.ids[0])
    official = layouts.keys(name)
    for i in range(0, len(listing.ids), 5):
        label = official.index(listing.keys[listing.labels[i]])
        mean = np.asarray(Image.open(listing.home / listing.ids[i])).mean(axis=(0, 1))
        assert np.abs(mean - layouts.pixels(label, 0).mean(axis=(0, 1))).max() < 6


def test_inaturalist_keeps_the_plants(tmp_path):
    listing = sources.inat_plants(layouts.write("inat_plants", tmp_path))
    assert listing.keys == [f"Planta species{i}" for i in range(CLASSES)]
    assert all("/Plantae/" in image for image in listing.ids) and len(listing.ids) == CLASSES * (TRAIN + TEST)


def test_omniglot_is_split_by_drawer(tmp_path):
    listing = sources.omniglot(layouts.write("omniglot", tmp_path))
    drawers = np.array([int(image[-6:-4]) for image in listing.ids])
    assert (listing.test == (drawers > 15)).all() and listing.test.sum() == 15
    assert listing.keys == ["Atlantean/character01", "Balinese/character01", "Balinese/character02"]


def test_domains_come_from_the_folders(tmp_path):
    listing = sources.domainnet(layouts.write("domainnet", tmp_path / "d"))
    assert listing.keys == ["aircraft_carrier", "bat", "The_Eiffel_Tower"]  # the numbers of the lists, not the alphabet
    assert [listing.domain_names[d] for d in listing.domains] == [image.split("/")[0] for image in listing.ids]
    home = layouts.write("pacs", tmp_path / "p")
    listing = sources.pacs(home)
    assert listing.domain_names == ["art_painting", "cartoon", "photo", "sketch"] and len(listing.keys) == 7
    assert "kfold/sketch/dog/n02103406_4068-1.png" in listing.ids  # as the official list has it; see the catalogue
    (home / "kfold").rename(home / "images")
    (home / "pacs_label").rename(home / "splits")
    assert sources.pacs(home).ids[0] == "images/art_painting/dog/pic_000.png"


def test_core50_tests_on_sessions_that_are_never_learnt(tmp_path):
    listing = sources.core50(layouts.write("core50", tmp_path))
    named = np.array(listing.domain_names)[listing.domains]
    assert set(named[listing.test]) == {"s3", "s7", "s10"}
    assert listing.domain_names[:8] == ["s1", "s2", "s4", "s5", "s6", "s8", "s9", "s11"]
    assert [listing.keys[c] for c in listing.labels] == [image.split("/")[1] for image in listing.ids]


def test_any_image_folder(tmp_path):
    home = layouts.write("folder", tmp_path / "whole")
    listing = sources.folders(home)
    assert listing.keys == ["001.red_fox", "002.grey_wolf", "003.brown_bear", "004.european_badger"]
    assert listing.test.sum() == CLASSES * TEST and not listing.note
    (home / "test").rename(home / "val")
    assert sources.folders(home).test.sum() == CLASSES * TEST
    split = sources.folders(home / "train")  # classes only: a fifth of each is held out, and that is said
    assert split.note == sources.OUR_SPLIT
    assert np.bincount(split.labels[split.test]).tolist() == [round(TRAIN / 5)] * CLASSES


def test_a_class_may_be_called_train(tmp_path):
    for label, name in enumerate(("train", "tractor")):
        for number in range(3):
            layouts.picture(tmp_path / name / f"{number}.png", label, number)
    assert sources.folders(tmp_path).keys == ["tractor", "train"]


def test_held_out_images_are_a_fixed_share_of_each_class():
    labels = np.array([0] * 10 + [1] * 3 + [2])
    test = sources.hold_out(labels)
    assert [test[labels == c].sum() for c in range(3)] == [2, 1, 0]
    assert (sources.hold_out(labels) == test).all() and (sources.hold_out(labels, seed=1) != test).any()


@pytest.fixture
def hub_cache(tmp_path_factory, monkeypatch):
    """Hugging Face's own cache, away from the developer's."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("hub"))


def test_hugging_face_parquet(tmp_path, hub_cache):
    home = layouts.write("parquet", tmp_path)
    listing = sources.huggingface(home)
    assert listing.keys == ["red_fox", "grey_wolf"] and listing.test.sum() == 2 * TEST
    assert listing.read(TRAIN + 1) == layouts.encoded(1, 1) and listing.bytes[TRAIN + 1] == len(layouts.encoded(1, 1))
    (home / "test-00000-of-00001.parquet").unlink()
    assert sources.huggingface(home).note == sources.OUR_SPLIT


def test_hugging_face_domains_and_test_images_without_labels(tmp_path, hub_cache):
    """ImageNet's test labels are all -1: its validation images are taken. Our own split holds out of each domain."""
    from datasets import Dataset, Features, Image, Value

    kinds = Features({"img": Image(), "fine_label": Value("int64"), "domain": Value("string")})

    def rows(part: str, labels: list[int]) -> None:
        cells = [{"bytes": layouts.encoded(0, i), "path": None} for i in range(len(labels))]
        table = {"img": cells, "fine_label": labels, "domain": ["photo", "sketch"] * (len(labels) // 2)}
        Dataset.from_dict(table, features=kinds).to_parquet(str(tmp_path / f"{part}-00000-of-00001.parquet"))

    rows("train", [3] * 20 + [5] * 20)
    listing = sources.huggingface(tmp_path)
    assert listing.keys == ["3", "5"] and listing.domain_names == ["photo", "sketch"]
    assert np.bincount(2 * listing.labels[listing.test] + listing.domains[listing.test]).tolist() == [2, 2, 2, 2]
    rows("test", [-1] * 4)
    rows("validation", [3, 3, 5, 5])
    assert [i for i in sources.huggingface(tmp_path).ids if not i.startswith("train")][0] == "validation/0000000"


def test_hugging_face_without_a_label_or_at_all(tmp_path, hub_cache):
    from datasets import Dataset, Features, Image

    rows = Dataset.from_dict({"image": [{"bytes": b"", "path": None}]}, features=Features({"image": Image()}))
    rows.to_parquet(str(tmp_path / "train-00000-of-00001.parquet"))
    with pytest.raises(UserError, match="has the columns image; expected one of type or name 'label'"):
        sources.huggingface(tmp_path)
    (tmp_path / "train-00000-of-00001.parquet").write_bytes(b"no parquet")
    with pytest.raises(UserError, match="cannot be loaded"):
        sources.huggingface(tmp_path)
