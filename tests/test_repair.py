"""A damaged image set: every kind of damage is found and named, and a manifest rebuilt from its tars equals the old."""

import io
import shutil
import tarfile

import numpy as np
import pandas as pd
import pytest

from cilkit import artifacts
from cilkit.data.repair import examine, rebuild
from cilkit.data.shards import MANIFEST, encode_png, merge_manifest, open_set, write_flat, write_shard
from cilkit.errors import UserError

PER_SHARD = 6


def members(shard):
    rng = np.random.default_rng(shard)
    for n in range(PER_SHARD * shard, PER_SHARD * (shard + 1)):
        row = {"image_id": f"bird-{n:05d}", "class_id": n % 3, "class_name": f"bird {n % 3}", "width": 9, "height": 8}
        row |= {"prompt": 'a "bird", ö', "seed": 2**62 + n, "guidance": 2.0, "steps": 40, "negative_prompt": ""}
        yield encode_png(rng.integers(0, 256, (8, 9, 3), dtype=np.uint8)), row


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "set"
    folder.mkdir()
    for shard in range(3):
        write_shard(folder, shard, members(shard), sidecars=True)
    merge_manifest(folder)
    return folder


@pytest.fixture
def folder(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "set")


def kinds(folder):
    return [(finding.kind, finding.where) for finding in examine(folder)]


def flip(path, at):
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def row_of(folder, image_id):
    return open_set(folder).manifest.set_index("image_id").loc[image_id]


def test_a_whole_set_has_no_findings_and_is_not_touched(folder, whole):
    (folder / "00000.thumbs.parquet").write_bytes(b"a neighbour's file")
    assert examine(folder) == []
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert rebuild(folder) == folder / MANIFEST
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_lost_manifest_is_found_and_rebuilt_as_it_was(folder, whole):
    (folder / MANIFEST).unlink()
    assert kinds(folder) == [("manifest", MANIFEST)]
    assert "missing" in str(examine(folder)[0])
    rebuild(folder)
    assert (folder / MANIFEST).read_bytes() == (whole / MANIFEST).read_bytes()
    assert examine(folder) == [] and len(open_set(folder, verify=True)) == 18


def test_a_broken_manifest_and_one_without_a_column(folder):
    content = (folder / MANIFEST).read_bytes()
    (folder / MANIFEST).write_bytes(content[: len(content) // 2])
    assert kinds(folder) == [("manifest", MANIFEST)]
    artifacts.write_parquet(folder / MANIFEST, pd.DataFrame({"image_id": ["x"]}))
    assert kinds(folder) == [("manifest", MANIFEST)]
    rebuild(folder)
    assert (folder / MANIFEST).read_bytes() == content


def test_a_truncated_tar(folder):
    at = row_of(folder, "bird-00009")
    with open(folder / "00001.tar", "r+b") as file:
        file.truncate(at["offset"] + 20)
    (finding,) = examine(folder)
    assert (finding.kind, finding.where) == ("truncated", "00001.tar")
    assert "3 images are cut off, first bird-00009" in finding.text
    (folder / MANIFEST).unlink()  # without it the tar itself tells
    assert kinds(folder) == [("manifest", MANIFEST), ("altered", "00001.tar")]
    with pytest.raises(UserError, match="00001.tar: it is damaged or ends early; delete this shard"):
        rebuild(folder)
    assert not list(folder.glob("*.rows.parquet")) and not list(folder.glob("scratch*"))
    (folder / "00001.tar").unlink()
    rebuild(folder)
    assert len(open_set(folder, verify=True)) == 12


def test_a_tar_cut_between_two_members_or_without_its_end(folder):
    path, at = folder / "00002.tar", row_of(folder, "bird-00016")
    with open(path, "r+b") as file:
        file.truncate(at["offset"] - 512)
    assert [finding.kind for finding in examine(folder)] == ["truncated"]
    (folder / MANIFEST).unlink()
    assert kinds(folder) == [("manifest", MANIFEST), ("altered", "00002.tar")]
    assert "ends early" in str(examine(folder)[1])


def test_a_flipped_byte_is_named_whatever_it_belongs_to(folder):
    one = row_of(folder, "bird-00008")
    flip(folder / "00001.tar", one["offset"] + 40)  # in the image
    (finding,) = examine(folder)
    assert (finding.kind, finding.where) == ("altered", "00001.tar: bird-00008")
    saved = (folder / MANIFEST).read_bytes()
    with pytest.raises(UserError, match="002/bird-00008.png is not the image that the row"):
        rebuild(folder)
    assert (folder / MANIFEST).read_bytes() == saved, "damage is never written into a manifest as if it were the image"
    (folder / MANIFEST).unlink()
    assert ("altered", "00001.tar") in kinds(folder) and "bird-00008" in str(examine(folder)[1])


def test_a_flipped_byte_in_a_sidecar_or_in_a_header(folder, whole):
    content = (folder / "00000.tar").read_bytes()
    flip(folder / "00000.tar", content.index(b'"sha256": "') + 15)
    assert kinds(folder) == [("altered", "00000.tar: 000/bird-00000.json")]
    shutil.copy(whole / "00000.tar", folder / "00000.tar")
    flip(folder / "00000.tar", content.index(b'"steps": 40') + 10)  # says 41 steps now
    assert kinds(folder) == [("altered", "00000.tar: 000/bird-00000.json")]
    shutil.copy(whole / "00000.tar", folder / "00000.tar")
    flip(folder / "00000.tar", row_of(folder, "bird-00003")["offset"] - 500)  # in the header's name
    assert kinds(folder) == [("altered", "00000.tar")]
    assert "cannot be read on behind 002/bird-00002.json" in str(examine(folder)[0])
    with pytest.raises(UserError, match="damaged"):
        rebuild(folder)


def test_a_missing_shard_and_one_too_many(folder):
    (folder / "00001.tar").rename(folder / "00007.tar")
    assert kinds(folder) == [("missing", "00001.tar"), ("orphan", "00007.tar")]
    assert "6 images" in str(examine(folder)[0])


def test_a_shard_that_is_there_twice_is_an_orphan_and_then_a_duplicate(folder):
    shutil.copy(folder / "00001.tar", folder / "00007.tar")
    assert kinds(folder) == [("orphan", "00007.tar")]
    rebuild(folder)
    assert kinds(folder) == [("duplicate", f"bird-{n:05d}") for n in range(6, 12)]


def test_an_orphan_member(folder):
    with tarfile.open(folder / "00002.tar", "a", format=tarfile.GNU_FORMAT) as tar:
        info = tarfile.TarInfo("../../evil.png")
        info.size = 3
        tar.addfile(info, io.BytesIO(b"bad"))
    assert kinds(folder) == [("orphan", "00002.tar: ../../evil.png")]
    with pytest.raises(UserError, match="no row lies beside"):
        rebuild(folder)


def test_a_row_without_its_image(tmp_path):
    write_shard(tmp_path, 0, members(0), sidecars=True)
    merge_manifest(tmp_path)
    manifest = open_set(tmp_path).manifest
    artifacts.write_parquet(tmp_path / MANIFEST, manifest.drop(index=4))
    found = kinds(tmp_path)
    assert found == [("orphan", "00000.tar: 001/bird-00004.png"), ("orphan", "00000.tar: 001/bird-00004.json")]


def test_a_duplicated_id(folder):
    manifest = open_set(folder).manifest
    manifest.loc[7, "image_id"] = "bird-00002"
    artifacts.write_parquet(folder / MANIFEST, manifest)
    altered, finding = examine(folder)
    assert (altered.kind, altered.where) == ("altered", "00001.tar: 001/bird-00007.json")
    assert (finding.kind, finding.where) == ("duplicate", "bird-00002")
    assert "2 times" in finding.text


def test_a_set_that_is_being_painted_is_left_alone(folder):
    (folder / "scratch/job").mkdir(parents=True)
    (folder / "scratch/job/order.json").write_text("{}")
    assert kinds(folder) == [("leftover", "scratch")]  # the manifest says that it is whole
    (folder / MANIFEST).unlink()
    (folder / ".00003.tar.12.tmp").write_bytes(b"half")  # a worker is writing it
    assert kinds(folder) == [("unfinished", folder.name)] and "paint again" in str(examine(folder)[0])
    with pytest.raises(UserError, match="is being painted, or was stopped: paint again"):
        rebuild(folder)
    flip(folder / "00001.tar", 560)
    assert ("altered", "00001.tar") in kinds(folder)
    shutil.rmtree(folder / "scratch")
    assert ("manifest", MANIFEST) in kinds(folder)


def test_leftovers(folder):
    artifacts.write_parquet(folder / "00001.rows.parquet", open_set(folder).manifest.iloc[6:12])
    (folder / ".00003.tar.12.tmp").write_bytes(b"half")
    (folder / "scratch").mkdir()
    wanted = [("leftover", ".00003.tar.12.tmp"), ("leftover", "00001.rows.parquet"), ("leftover", "scratch")]
    assert kinds(folder) == wanted


def test_several_damages_are_all_found(folder):
    (folder / "00000.tar").unlink()
    flip(folder / "00001.tar", row_of_file(folder, 7) + 30)
    (folder / "00001.rows.parquet").write_bytes(b"")
    assert {kind for kind, _ in kinds(folder)} == {"missing", "altered", "leftover"}


def row_of_file(folder, row):
    return int(pd.read_parquet(folder / MANIFEST)["offset"][row])


def test_decoded_shards_are_examined_but_cannot_be_rebuilt(tmp_path):
    image = np.arange(8 * 9 * 3, dtype=np.uint8).reshape(8, 9, 3)
    write_flat(tmp_path, 0, [(image + n, row) for n, (_, row) in enumerate(members(0))])
    merge_manifest(tmp_path)
    assert examine(tmp_path) == []
    flip(tmp_path / "00000.rgb", 3 * image.size)
    with open(tmp_path / "00000.rgb", "ab") as file:
        file.write(b"more")
    assert kinds(tmp_path) == [("altered", "00000.rgb: bird-00003"), ("orphan", "00000.rgb")]
    with pytest.raises(UserError, match="no tar shards"):
        rebuild(tmp_path)


def test_a_set_without_sidecars_is_examined_but_not_rebuilt(tmp_path):
    write_shard(tmp_path, 0, members(0))
    merge_manifest(tmp_path)
    assert examine(tmp_path) == []
    with pytest.raises(UserError, match="no row lies beside"):
        rebuild(tmp_path)


def test_folders_that_hold_no_images_are_refused(tmp_path):
    with pytest.raises(UserError, match="no folder"):
        examine(tmp_path / "none")
    (tmp_path / "keep.parquet").write_bytes(b"")
    with pytest.raises(UserError, match="another set"):
        examine(tmp_path)


def test_shards_larger_than_a_batch_of_rows_are_kept_together(folder, monkeypatch):
    """The manifest is read in batches that end anywhere: no shard is taken for two."""
    from pyarrow.parquet import ParquetFile

    whole = ParquetFile.iter_batches
    monkeypatch.setattr(ParquetFile, "iter_batches", lambda self, **kwargs: whole(self, batch_size=4, **kwargs))
    assert examine(folder) == []
