"""Benchmarks from raw files: what is loaded, what is refused, what is found again; and the real subsets."""

import io
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cilkit.data import benchmarks, catalogue
from cilkit.data.imagesets import ImageSet
from cilkit.errors import UserError
from tests import layouts

TRAIN, TEST, CLASSES = layouts.TRAIN, layouts.TEST, layouts.CLASSES
SUBSETS = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(autouse=True)
def own_places(tmp_path, monkeypatch):
    """Artifacts, raw files and the hub's cache of this test alone; nothing is fetched."""
    monkeypatch.setenv("CILKIT_ARTIFACTS", str(tmp_path / "artifacts"))
    monkeypatch.setenv("CILKIT_DATA", str(tmp_path / "data"))
    monkeypatch.setattr("cilkit.data.fetching.fetch", lambda missing, home: None)


@pytest.fixture
def lay(tmp_path):
    """Lays out a benchmark where `load` looks for it."""
    return lambda name: layouts.write(name, tmp_path / "data" / (catalogue.entries()[name].home or name))


@pytest.mark.parametrize("name", sorted(catalogue.entries()))
def test_every_entry_loads_its_real_format(name, lay):
    """Labels, names and split agree with the pixels: class c has the colour of the layout's class c."""
    lay(name)
    loaded = benchmarks.load(name, partial=True)
    official = list(catalogue.entries()[name].class_table() or {})
    assert len(loaded.train) > len(loaded.test) > 0 and not loaded.complete and loaded.skipped == []
    assert (loaded.train.counts > 0).all() and (loaded.test.counts > 0).all()
    assert loaded.title in loaded.source and loaded.licence and loaded.citation
    assert loaded.train.class_names == loaded.test.class_names == loaded.class_names
    if official:
        names = list(catalogue.entries()[name].class_table().values())
        assert loaded.class_names == sorted(loaded.class_names, key=names.index)  # the official order
    if name not in ("omniglot", "fashion_mnist"):
        for i in range(0, len(loaded.test), 4):
            mean = loaded.test.read([i])[0].mean(axis=(0, 1))
            assert np.abs(mean - layouts.pixels(loaded.test.labels[i], 0).mean(axis=(0, 1))).max() < 8
    assert benchmarks.load(name, partial=True).digest == loaded.digest


def test_domains_reach_the_image_sets(lay):
    lay("pacs")
    loaded = benchmarks.load("pacs", partial=True)
    assert loaded.domain_names == ["art_painting", "cartoon", "photo", "sketch"]
    photos = loaded.test.of_domains([2])
    assert len(photos) == 7 * TEST and all("/photo/" in image for image in photos.ids)


def test_folders_and_parquet_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hub")
    home = layouts.write("folder", tmp_path / "beasts")
    loaded = benchmarks.load(f"folder:{home}")
    assert loaded.complete and loaded.class_names == ["red fox", "grey wolf", "brown bear", "european badger"]
    assert loaded.train.sizes[:2].tolist() == [[40, 60], [44, 60]] and len(loaded.test) == CLASSES * TEST
    assert benchmarks.class_names(f"folder:{home}") == loaded.class_names
    home.rename(tmp_path / "elsewhere")
    assert benchmarks.load(f"folder:{tmp_path / 'elsewhere'}").artifact.key == loaded.artifact.key
    loaded = benchmarks.load(f"hf:{layouts.write('parquet', tmp_path / 'rows')}")
    assert loaded.class_names == ["red fox", "grey wolf"] and len(loaded.train) == 2 * TRAIN
    np.testing.assert_array_equal(
        loaded.train.read([3])[0], np.asarray(Image.open(io.BytesIO(layouts.encoded(0, 3))).convert("RGB"))
    )


def test_what_identifies_a_benchmark(lay):
    """Content of lists, names and sizes of images, how pixels are kept; not where the folder lies or its times."""
    home = lay("cub200")
    key = benchmarks.load("cub200", partial=True).artifact.key
    split = home / "CUB_200_2011" / "train_test_split.txt"
    os.utime(split)
    assert benchmarks.load("cub200", partial=True).artifact.key == key
    assert benchmarks.load("cub200", root=str(home / "CUB_200_2011"), partial=True).artifact.key == key
    assert benchmarks.load("cub200", keep="square300", partial=True).artifact.key != key
    split.write_text(split.read_text().replace("\n2 1\n", "\n2 0\n"))
    other = benchmarks.load("cub200", partial=True)
    assert other.artifact.key != key and len(other.test) == CLASSES * TEST + 1


def test_raw_files_may_go_once_it_is_built(lay):
    home = lay("cifar100")
    digest = benchmarks.load("cifar100", partial=True).digest
    shutil.rmtree(home)
    assert benchmarks.load("cifar100", partial=True).digest == digest
    with pytest.raises(UserError, match=r"cifar100 held only a part of CIFAR-100; complete it"):
        benchmarks.load("cifar100")


def test_a_large_folder_is_not_looked_at_again_while_its_times_stand(lay, monkeypatch):
    monkeypatch.setattr(benchmarks, "LARGE", 10)
    home = lay("cub200")
    key = benchmarks.load("cub200", partial=True).artifact.key
    with monkeypatch.context() as patch:
        patch.setattr(benchmarks, "_checked", lambda *_: pytest.fail("the folder was read again"))
        assert benchmarks.load("cub200", partial=True).artifact.key == key
    shutil.copy(home / "CUB_200_2011" / "images.txt", home / "kept")
    os.utime(home / "CUB_200_2011" / "images.txt", (1, 1))  # a list that changed is noticed
    with monkeypatch.context() as patch, pytest.raises(LookupError):
        patch.setattr(benchmarks, "_checked", lambda *_: {}["read again"])
        benchmarks.load("cub200", partial=True)


def test_an_interrupted_build_goes_on_to_the_same_bytes(lay, tmp_path, monkeypatch):
    lay("cub200")
    digest = benchmarks.load("cub200", partial=True).digest
    monkeypatch.setenv("CILKIT_ARTIFACTS", str(tmp_path / "other"))
    with monkeypatch.context() as patch:
        build = benchmarks.cache.build
        patch.setattr(
            benchmarks.cache, "build", lambda raw, at, *rest: build(raw, at, *rest) if at.name == "train" else 1 / 0
        )
        with pytest.raises(ZeroDivisionError):
            benchmarks.load("cub200", partial=True)
    assert list((tmp_path / "other" / "benchmark").glob("*.part/train/*"))
    assert benchmarks.load("cub200", partial=True).digest == digest


def test_a_folder_that_holds_nothing_says_what_is_expected(tmp_path):
    for name, words in (("cars196", "devkit/cars_train_annos.mat"), ("imagenet1k", "torchvision.datasets.ImageNet")):
        with pytest.raises(UserError, match=rf"is not in .*data.{name}.*Expected in the folder: .*{words}"):
            benchmarks.load(name)
    with pytest.raises(UserError, match=r"the image folder nowhere is not in .*<class>/\*"):
        benchmarks.load(f"folder:{tmp_path / 'nowhere'}")


def test_a_download_that_fails_names_the_layout_too(tmp_path, monkeypatch):
    def refused(missing, home):
        assert [one.leaves for one in missing] == ["CUB_200_2011"] and home == tmp_path / "data" / "cub200"
        raise UserError("it cannot be reached.")

    monkeypatch.setattr("cilkit.data.fetching.fetch", refused)
    with pytest.raises(UserError, match="it cannot be reached. Expected in .*: CUB_200_2011/images"):
        benchmarks.load("cub200")


def test_what_is_missing_is_fetched_and_nothing_else(lay, tmp_path, monkeypatch):
    """One of two archives, or both when nothing is there; a home that is the archive's own folder is left alone."""
    asked = []
    monkeypatch.setattr("cilkit.data.fetching.fetch", lambda missing, home: asked.append([m.leaves for m in missing]))
    home = lay("pets")
    shutil.rmtree(home / "images")
    with pytest.raises(UserError, match="36 images that the lists of Oxford-IIIT Pet name are not in"):
        benchmarks.load("pets")
    (tmp_path / "data" / "imagenet_r").mkdir()
    with pytest.raises(UserError, match="ImageNet-R is not in"):
        benchmarks.load("imagenet_r")
    assert asked == [["images"], ["imagenet-r"]]
    (lay("cub200") / "CUB_200_2011").rename(tmp_path / "birds")
    with pytest.raises(UserError, match="has no train images"):
        benchmarks.load("cub200", root=str(tmp_path / "birds"))
    assert len(asked) == 2


def test_a_part_is_refused_unless_it_is_asked_for(lay):
    home = lay("cub200")
    with pytest.raises(UserError, match=r"class 'Crested Auklet' \(and 195 more\) of CUB.* has no train images"):
        benchmarks.load("cub200")
    file = next((home / "CUB_200_2011" / "images" / "002.Laysan_Albatross").iterdir())
    file.unlink()
    with pytest.raises(UserError, match=rf"1 images that the lists .* name are not in .*{file.name}.*partial=True"):
        benchmarks.load("cub200")
    loaded = benchmarks.load("cub200", partial=True)
    assert len(loaded.train) + len(loaded.test) == CLASSES * (TRAIN + TEST) - 1 and not loaded.complete


def test_an_image_known_to_be_absent_is_no_lack(lay):
    lay("pacs")
    with pytest.raises(UserError, match=r"PACS has 9991 images, .* holds \[168, 84\]"):  # not: a file is missing
        benchmarks.load("pacs")


def test_an_extra_class_is_refused_even_in_a_part(lay):
    home = lay("imagenet_r")
    layouts.picture(home / "imagenet-r" / "n00000000" / "a.jpg", 0, 0)
    with pytest.raises(UserError, match=r"holds the class 'n00000000', which ImageNet-R does not have"):
        benchmarks.load("imagenet_r", partial=True)
    layouts.picture(lay("cub200") / "CUB_200_2011" / "images" / "201.Dodo" / "a.jpg", 0, 0)
    with pytest.raises(UserError, match=r"holds the class '201.Dodo', which CUB-200-2011 does not have"):
        benchmarks.load("cub200", partial=True)


def test_classes_without_images_and_names_that_are_the_same(tmp_path):
    home = layouts.write("folder", tmp_path / "beasts")
    (home / "train" / "005.lynx").mkdir()
    with pytest.raises(UserError, match="class 'lynx' of the image folder beasts has no train images"):
        benchmarks.load(f"folder:{home}")
    assert len(benchmarks.load(f"folder:{home}", partial=True).class_names) == CLASSES
    layouts.picture(home / "test" / "005.lynx" / "a.jpg", 0, 0)
    with pytest.raises(UserError, match="class 'lynx' of .* has no train images"):
        benchmarks.load(f"folder:{home}")
    layouts.picture(home / "train" / "Red fox" / "a.jpg", 0, 0)
    with pytest.raises(UserError, match=r"classes '001.red_fox' and 'Red fox' are both called 'Red fox'; rename one"):
        benchmarks.load(f"folder:{home}")
    for key in ("train", "test"):
        shutil.rmtree(home / key)
    (home / "only").mkdir()
    with pytest.raises(UserError, match="no class .* has both train and test images"):
        benchmarks.load(f"folder:{home}", partial=True)


def test_a_bad_image_stops_by_name_or_is_left_out(tmp_path):
    home = layouts.write("folder", tmp_path / "beasts")
    bad = home / "train" / "002.grey_wolf" / "001.jpg"
    bad.write_bytes(b"")
    with pytest.raises(UserError, match=r"002.grey_wolf/001.jpg is not a readable image: it is empty"):
        benchmarks.load(f"folder:{home}")
    loaded = benchmarks.load(f"folder:{home}", bad_images="skip")
    assert loaded.skipped == ["train/002.grey_wolf/001.jpg"] and not loaded.complete
    assert len(loaded.train) == CLASSES * TRAIN - 1


def test_odd_images_become_colour(tmp_path):
    """CMYK, palette, alpha, 16 bits and EXIF rotation come through the loader as (height, width, 3)."""
    home = layouts.write("folder", tmp_path / "beasts")
    at = home / "train" / "001.red_fox"
    pixels = Image.fromarray(layouts.pixels(0, 0))
    pixels.convert("CMYK").save(at / "cmyk.jpg")
    pixels.quantize(8).save(at / "palette.png")
    pixels.convert("RGBA").save(at / "alpha.png")
    Image.fromarray(np.full((44, 56), 40_000, np.uint16)).save(at / "deep.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels.save(at / "turned.jpg", exif=exif)
    train = benchmarks.load(f"folder:{home}").train
    sizes = {Path(image).name: tuple(size) for image, size in zip(train.ids, train.sizes.tolist(), strict=True)}
    assert {sizes[name] for name in ("cmyk.jpg", "palette.png", "alpha.png", "deep.png")} == {(44, 56)}
    assert sizes["turned.jpg"] == (56, 44)
    assert all(image.shape == (*size, 3) for image, size in zip(train.read(), train.sizes.tolist(), strict=True))


def test_class_names_without_raw_files_or_from_them(lay, tmp_path):
    assert len(benchmarks.class_names("cars196")) == 196 and benchmarks.class_names("pacs")[0] == "dog"
    with pytest.raises(UserError, match="iNaturalist 2018, plants is not in"):
        benchmarks.class_names("inat_plants")
    lay("domainnet")
    assert benchmarks.class_names("domainnet") == ["aircraft carrier", "bat (animal)", "The Eiffel Tower"]
    assert not (tmp_path / "artifacts").exists()


def test_unknown_name_suggests_the_nearest():
    with pytest.raises(UserError, match=r"'digit_photos' is unknown \(did you mean 'digits_photo'\?\)"):
        benchmarks.load("digit_photos")


def test_benchmark_from_memory_is_identified_by_its_content():
    def made(value):
        images = np.full((4, 8, 8, 3), value, np.uint8)
        return benchmarks.Benchmark("mine", *(ImageSet.from_arrays(images, [0, 1, 0, 1], ["a", "b"]) for _ in "xy"))

    assert made(1).digest == made(1).digest != made(2).digest
    assert made(1).complete and made(1).domain_names == []
    with pytest.raises(UserError, match="different classes"):
        benchmarks.Benchmark("mine", made(1).train, made(1).test.keep_classes(["b", "a"]))


# ---------------------------------------------------------------- real images


def subset(name: str):
    path = SUBSETS / f"{name}.npz"
    if not path.exists():
        pytest.skip(f"{path} is not here: real images are checked where the subsets lie beside the repository")
    return np.load(path)


def test_real_fashion_mnist(tmp_path):
    data, home = subset("fashion_mnist_28"), tmp_path / "data" / "fashion_mnist"
    home.mkdir(parents=True)
    for part, file in (("train", "train"), ("test", "t10k")):
        layouts._idx(home / f"{file}-images-idx3-ubyte.gz", data[f"x_{part}"][::20])
        layouts._idx(home / f"{file}-labels-idx1-ubyte.gz", data[f"y_{part}"][::20])
    loaded = benchmarks.load("fashion_mnist", partial=True)
    assert (len(loaded.train), len(loaded.test)) == (500, 150) and loaded.class_names[9] == "ankle boot"
    np.testing.assert_array_equal(loaded.test.images([7])[0, ..., 1], data["x_test"][140])
    np.testing.assert_array_equal(loaded.train.labels, data["y_train"][::20])


def test_real_omniglot(tmp_path):
    data, home = subset("omniglot_28"), tmp_path / "data" / "omniglot"
    for i in range(5 * 20):
        at = home / "images_background" / str(data["classes"][data["y"][i]])
        at.mkdir(parents=True, exist_ok=True)
        Image.fromarray(255 - data["x"][i]).save(at / f"{data['y'][i] + 1:04d}_{data['drawer'][i]:02d}.png")
    loaded = benchmarks.load("omniglot", partial=True)
    assert (len(loaded.train), len(loaded.test)) == (75, 25) and loaded.class_names[0] == "Balinese character01"


def test_real_cifar100(tmp_path):
    """Nearest mean of raw pixels on ten real classes is far above chance: labels and pixels belong together."""
    data, home = subset("cifar100_32"), tmp_path / "data" / "cifar100" / "cifar-100-binary"
    home.mkdir(parents=True)
    blob, offset = data["blob"], data["offset"]
    for part, file in ((0, "train.bin"), (1, "test.bin")):
        records = []
        for i in np.flatnonzero((data["split"] == part) & (data["label"] < 10)):
            image = Image.open(io.BytesIO(blob[offset[i] : offset[i + 1]].tobytes())).convert("RGB")
            records.append(bytes([0, data["label"][i]]) + np.asarray(image).transpose(2, 0, 1).tobytes())
        (home / file).write_bytes(b"".join(records))
    loaded = benchmarks.load("cifar100", partial=True)
    assert loaded.class_names[:2] == ["apple", "aquarium fish"] and len(loaded.test) == 500
    train, test = (part.images().reshape(len(part), -1).astype(np.float32) for part in (loaded.train, loaded.test))
    means = np.stack([train[loaded.train.labels == c].mean(axis=0) for c in range(10)])
    nearest = ((test[:, None] - means) ** 2).sum(axis=2).argmin(axis=1)
    assert (nearest == loaded.test.labels).mean() > 0.2


def test_real_pacs(tmp_path):
    data, home = subset("pacs_64"), tmp_path / "data" / "pacs"
    names, domains = data["classes"], data["domains"]
    lines: dict[str, list[str]] = {}
    for i in range(0, len(data["label"]), 45):
        name, domain = str(names[data["label"][i]]), str(domains[data["domain"][i]])
        file = f"{domain}/{name}/pic_{i:05d}.webp"
        (home / "kfold" / file).parent.mkdir(parents=True, exist_ok=True)
        (home / "kfold" / file).write_bytes(data["blob"][data["offset"][i] : data["offset"][i + 1]].tobytes())
        part = "crossval" if data["split"][i] else "train"
        lines.setdefault(f"{domain}_{part}", []).append(f"{file} {data['label'][i] + 1}")
    (home / "pacs_label").mkdir()
    for name, rows in lines.items():
        (home / "pacs_label" / f"{name}_kfold.txt").write_text("\n".join(rows))
    loaded = benchmarks.load("pacs", partial=True)
    assert loaded.class_names == [str(name) for name in names] and loaded.domain_names == [str(d) for d in domains]
    assert len(loaded.train) + len(loaded.test) == len(range(0, len(data["label"]), 45))
    assert (loaded.train.sizes == 64).all() and set(loaded.test.domains) == {0, 1, 2, 3}
