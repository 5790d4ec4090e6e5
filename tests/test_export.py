"""Exports, read back by the libraries that they are for; names that would be traps are safe."""

import json
import re

import numpy as np
import pytest

from cilkit.data.imagesets import ImageSet
from cilkit.data.shards import encode_png, merge_manifest, open_set, write_shard
from cilkit.errors import UserError
from cilkit.synthesis import export

TRAPS = ["../x", "a/b", "CON", "", "学名 é", "a b", "a-b", "A B", "\u202egnp.exe", "x" * 300, "..", "<b>&|"]


@pytest.fixture(scope="module")
def pixels():
    return np.random.default_rng(0).integers(0, 256, (24, 8, 6, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def painted(tmp_path_factory, pixels):
    """24 images of 12 classes with wicked names, in two tars."""
    folder = tmp_path_factory.mktemp("set")
    for shard in range(2):
        rows = [
            {
                "image_id": f"i.{n:02d}",
                "class_id": n % 12,
                "class_name": TRAPS[n % 12],
                "width": 6,
                "height": 8,
                "prompt": f"a {TRAPS[n % 12]}",
                "seed": 2**62 + n,
                "guidance": 2.0 if n else float("nan"),
            }
            for n in range(12 * shard, 12 * shard + 12)
        ]
        write_shard(folder, shard, [(encode_png(pixels[12 * shard + n]), row) for n, row in enumerate(rows)])
    merge_manifest(folder)
    return open_set(folder)


def in_memory(pixels) -> ImageSet:
    return ImageSet.from_arrays(pixels[:4], [0, 1, 0, 1], ["one", "two"])


def test_safe_names_differ_hold_no_path_and_leave_good_names_alone():
    names = [export.safe_name(text) for text in TRAPS]
    assert len({name.casefold() for name in names}) == len(TRAPS)
    assert all(re.fullmatch(r"[\w-]{1,60}", name) and len(name.encode()) < 250 for name in names)
    assert export.safe_name("great-tit_7") == "great-tit_7" and export.safe_name("学名") == "学名"
    folders = export.class_folders(TRAPS)
    assert folders == sorted(folders) and folders[1].startswith("01-a-b-")


def test_imagefolder_is_read_by_torchvision_with_the_same_labels(painted, pixels, tmp_path):
    from torchvision.datasets import ImageFolder

    read = ImageFolder(export.to_imagefolder(painted, tmp_path / "out"))
    assert len(read) == 24 and not (tmp_path / "x").exists()
    names = json.loads((tmp_path / "out" / "classes.json").read_text())
    assert [names[folder] for folder in read.classes] == TRAPS
    for (path, label), (image, _) in zip(read.samples, read, strict=True):
        at = painted.ids.tolist().index(next(i for i in painted.ids if export.safe_name(i) in path))
        assert label == painted.labels[at] and (np.asarray(image) == pixels[at]).all()


def test_imagefolder_is_read_by_hugging_face_with_every_images_origin(painted, pixels, tmp_path):
    import datasets

    export.to_imagefolder(painted, tmp_path / "out")
    read = datasets.load_dataset("imagefolder", data_dir=str(tmp_path / "out"), cache_dir=tmp_path / "c", split="train")
    by_id = {row["image_id"]: row for row in read}
    assert len(by_id) == 24 and by_id["i.13"]["seed"] == 2**62 + 13 and by_id["i.13"]["prompt"] == "a a/b"
    assert (np.asarray(by_id["i.13"]["image"]) == pixels[13]).all() and by_id["i.13"]["label"] == 1


@pytest.mark.parametrize("form", ["disk", "parquet"])
def test_hugging_face_datasets_are_read_back(painted, pixels, tmp_path, form):
    import datasets

    folder = export.to_huggingface(painted, tmp_path / "out", form)
    if form == "disk":
        read = datasets.load_from_disk(folder)
    else:
        files = [str(path) for path in folder.glob("*.parquet")]
        read = datasets.load_dataset("parquet", data_files=files, cache_dir=tmp_path / "cache", split="train")
    assert read.features["label"].names == TRAPS and read["label"][:13] == [*range(12), 0]
    assert read["seed"][:2] == [2**62, 2**62 + 1] and read["class_name"][0] == "../x"
    assert all((np.asarray(image) == wanted).all() for image, wanted in zip(read["image"], pixels, strict=True))
    assert sorted(path.name for path in tmp_path.iterdir()) in (["out"], ["cache", "out"])


def test_webdataset_reads_its_tars_in_order(painted, pixels, tmp_path):
    webdataset = pytest.importorskip("webdataset", reason="the extra [test] holds webdataset")

    tars = export.to_webdataset(painted, tmp_path / "train-%03d.tar", per_shard=10)
    assert [path.name for path in tars] == ["train-000.tar", "train-001.tar", "train-002.tar"]
    read = list(webdataset.WebDataset([str(path) for path in tars], shardshuffle=False).decode("rgb8"))
    assert [sample["cls"] for sample in read] == painted.labels.tolist()
    assert [sample["json"]["image_id"] for sample in read] == painted.ids.tolist()
    assert read[0]["json"]["guidance"] is None and read[1]["json"]["guidance"] == 2.0
    assert all((sample["png"] == wanted).all() for sample, wanted in zip(read, pixels, strict=True))


def test_subsets_and_sets_in_memory_are_exported_too(painted, pixels, tmp_path):
    chosen = painted.select([13, 2])
    assert [sample.image_id for sample in export.samples(chosen)] == ["i.13", "i.02"]
    folder = export.to_imagefolder(in_memory(pixels), tmp_path / "out")
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    assert files == ["0-one/000000.png", "0-one/000002.png", "1-two/000001.png", "1-two/000003.png"]


def test_stored_bytes_are_copied_not_encoded_again(painted):
    import hashlib

    hashes = [hashlib.sha256(sample.data).hexdigest() for sample in export.samples(painted)]
    assert hashes == painted.manifest["sha256"].tolist()


def test_an_altered_image_is_not_passed_on(painted, tmp_path):
    import shutil

    folder = shutil.copytree(painted.source.folder, tmp_path / "set")
    content = bytearray((folder / "00001.tar").read_bytes())
    content[painted.manifest["offset"][20] + 50] ^= 1
    (folder / "00001.tar").write_bytes(content)
    for write in (export.to_imagefolder, export.to_huggingface):
        with pytest.raises(UserError, match="image i.20 .* is not the one that was painted"):
            write(open_set(folder), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_nothing_is_left_of_an_export_that_failed(painted, pixels, tmp_path, monkeypatch):
    whole = list(export.samples(painted))

    def cut(images):
        yield from whole[:7]
        raise OSError("the disk is full")

    monkeypatch.setattr(export, "samples", cut)
    for write in (
        lambda: export.to_imagefolder(painted, tmp_path / "out"),
        lambda: export.to_webdataset(painted, tmp_path / "a-%d.tar", per_shard=3),
        lambda: export.to_huggingface(painted, tmp_path / "out"),
    ):
        with pytest.raises(Exception):  # noqa: B017 - the libraries wrap it in errors of their own
            write()
        assert not list(tmp_path.iterdir())


def test_bad_calls_are_refused_and_nothing_is_overwritten(pixels, tmp_path):
    images = in_memory(pixels)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep")
    with pytest.raises(UserError, match="not empty"):
        export.to_imagefolder(images, tmp_path / "out")
    with pytest.raises(UserError, match="form 'csv'"):
        export.to_huggingface(images, tmp_path / "new", "csv")
    for pattern in ("train.tar", "%s.tar", "a-%d-%d.tar", "a-%d.zip"):
        with pytest.raises(UserError, match="train-%06d.tar"):
            export.to_webdataset(images, tmp_path / pattern)
    (tmp_path / "a-0.tar").write_bytes(b"mine")
    with pytest.raises(UserError, match="there already"):
        export.to_webdataset(images, tmp_path / "a-%d.tar")
    twice = ImageSet.from_arrays(pixels[:2], [0, 0], ["one"], ids=["i", "i"])
    with pytest.raises(UserError, match="two images are called 'i'"):
        export.to_imagefolder(twice, tmp_path / "new")
    for write, target in (
        (export.to_imagefolder, "new"),
        (export.to_huggingface, "new"),
        (export.to_webdataset, "%d.tar"),
    ):
        with pytest.raises(UserError, match="no images to export"):
            write(images.select([]), tmp_path / target)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a-0.tar", "out"]
