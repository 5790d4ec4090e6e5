"""Image sets: what is written is what is read, whole or refused with one sentence."""

import hashlib
import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cilkit import artifacts
from cilkit.data import shards
from cilkit.data.imagesets import ImageSet
from cilkit.data.shards import ShardWriter, open_set
from cilkit.errors import UserError

NAMES = ["digit zero", "digit one", "digit two"]


def pictures(n=25, size=8):
    return np.random.default_rng(0).integers(0, 256, (n, size, size, 3), dtype=np.uint8)


def row(i):
    return {"image_id": f"im{i:03d}", "class_id": i % 3, "class_name": NAMES[i % 3], "prompt": f"prompt {i}", "seed": i}


def written(folder, n=25, skip=()):
    writer = ShardWriter(folder, shard_size=10)
    for i, image in enumerate(pictures(n)):
        if i // 10 not in skip:
            writer.add(image, row(i))
    writer.close()
    return folder


def members(start, stop):
    """(PNG, row) of these pictures, as `write_shard` takes them."""
    images = pictures(stop)
    sizes = {"width": 8, "height": 8}
    return [(shards.encode_png(images[i]), row(i) | sizes | {"guidance": 2.5}) for i in range(start, stop)]


def bytes_of(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_reads_back_pixels_labels_and_provenance(tmp_path):
    images = open_set(written(tmp_path / "set"), verify=True)
    np.testing.assert_array_equal(images.images(), pictures())
    np.testing.assert_array_equal(images.labels, np.arange(25) % 3)
    assert images.class_names == NAMES and images.ids[7] == "im007"
    assert images.manifest["prompt"].tolist() == [f"prompt {i}" for i in range(25)]
    assert sorted(bytes_of(tmp_path / "set")) == ["00000.tar", "00001.tar", "00002.tar", "manifest.parquet"]


def test_tar_is_a_browsable_folder_and_offsets_point_at_the_pngs(tmp_path):
    folder = written(tmp_path / "set")
    with tarfile.open(folder / "00001.tar") as tar:
        member = tar.getmember("001/im010.png")
        assert (member.mtime, member.uid, member.gid) == (0, 0, 0)
        png = tar.extractfile(member).read()
    at = pd.read_parquet(folder / "manifest.parquet").set_index("image_id").loc["im010"]
    assert (folder / at["shard"]).read_bytes()[at["offset"] : at["offset"] + at["size"]] == png
    assert at["sha256"] == hashlib.sha256(png).hexdigest()
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(png))), pictures()[10])


def test_resumed_writing_gives_the_same_bytes(tmp_path):
    whole = bytes_of(written(tmp_path / "whole"))
    writer = ShardWriter(tmp_path / "parts", shard_size=10)
    for i, image in enumerate(pictures()[:17]):  # interrupted in the middle of the second shard
        writer.add(image, row(i))
    assert ShardWriter(tmp_path / "parts", shard_size=10).finished == {0}
    assert bytes_of(written(tmp_path / "parts", skip={0})) == whole
    assert ShardWriter(tmp_path / "parts").finished == {0, 1, 2}


def test_selecting_keeps_positions_and_class_names():
    images = ImageSet.from_arrays(pictures(), np.arange(25) % 3, NAMES)
    some = images.select(np.arange(5, 25)).of_classes([2]).select(slice(1, 3))
    np.testing.assert_array_equal(some.index, [8, 11])
    np.testing.assert_array_equal(some.images(), pictures()[[8, 11]])
    np.testing.assert_array_equal(some.images([1]), pictures()[[11]])
    assert some.class_names == NAMES and some.labels.tolist() == [2, 2] and some.counts.tolist() == [0, 0, 2]
    assert images.manifest is None


def test_keep_classes_renumbers_in_the_order_named():
    images = ImageSet.from_arrays(pictures(), np.arange(25) % 3, NAMES)
    kept = images.keep_classes(["digit two", "digit zero"])
    assert kept.class_names == ["digit two", "digit zero"]
    np.testing.assert_array_equal(kept.labels, np.where(kept.index % 3 == 2, 0, 1))
    assert len(kept) == np.sum(np.arange(25) % 3 != 1)


def test_split_by_seed_is_a_partition_within_each_class():
    images = ImageSet.from_arrays(pictures(60), np.arange(60) % 3, NAMES)
    train, held = images.split_by_seed(0.25, seed=3)
    assert held.counts.tolist() == [5, 5, 5]
    assert sorted([*train.index, *held.index]) == list(range(60))
    np.testing.assert_array_equal(held.index, images.split_by_seed(0.25, seed=3)[1].index)
    assert held.index.tolist() != images.split_by_seed(0.25, seed=4)[1].index.tolist()


def test_truncated_missing_and_altered_shards_are_named(tmp_path):
    path = written(tmp_path / "set") / "00001.tar"
    whole = path.read_bytes()
    path.write_bytes(whole[:1000])
    with pytest.raises(UserError, match=r"00001\.tar is truncated \(1000 bytes.*build it again"):
        open_set(tmp_path / "set")
    path.unlink()
    with pytest.raises(UserError, match=r"00001\.tar is missing.*build it again"):
        open_set(tmp_path / "set")
    middle = 600  # inside the first image's PNG, which starts at byte 512
    path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :])
    with pytest.raises(UserError, match=r"image im010 in shard .*00001\.tar is not the one"):
        open_set(tmp_path / "set", verify=True)
    (tmp_path / "set" / "manifest.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(UserError, match="not readable Parquet"):
        open_set(tmp_path / "set")
    with pytest.raises(UserError, match="no finished image set"):
        open_set(tmp_path / "elsewhere")


def test_undecodable_image_is_named(tmp_path):
    path = written(tmp_path / "set") / "00000.tar"
    data = bytearray(path.read_bytes())
    data[512:520] = b"notapng!"
    path.write_bytes(bytes(data))
    with pytest.raises(UserError, match=r"image im000 in shard .*00000\.tar"):
        open_set(tmp_path / "set").images()


def test_a_class_without_images_is_named(tmp_path):
    with pytest.raises(UserError, match="class 'digit two' has no images"):
        ImageSet.from_arrays(pictures(4), [0, 1, 0, 1], NAMES)
    with pytest.raises(UserError, match=r"class 'digit nine' has no images in the image set set"):
        open_set(written(tmp_path / "set"), classes=[*NAMES, "digit nine"])
    images = ImageSet.from_arrays(pictures(), np.arange(25) % 3, NAMES)
    with pytest.raises(UserError, match="class 'digit two' has no images"):
        images.of_classes([0, 1]).keep_classes(NAMES)


def test_wrong_arrays_are_refused():
    with pytest.raises(UserError, match="float64"):
        ImageSet.from_arrays(pictures() / 255, np.zeros(25), ["a"])
    with pytest.raises(UserError, match="25 images came with 24 labels"):
        ImageSet.from_arrays(pictures(), np.zeros(24), ["a"])
    with pytest.raises(UserError, match="label 2 is outside"):
        ImageSet.from_arrays(pictures(3), [0, 1, 2], ["a", "b"])
    with pytest.raises(UserError, match="fraction 1.5"):
        ImageSet.from_arrays(pictures(), np.zeros(25), ["a"]).split_by_seed(1.5, 0)


def test_reading_equals_decoding_every_member_of_the_tars(tmp_path):
    folder = written(tmp_path / "set")
    found = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                image_id = member.name.split("/")[1].removesuffix(".png")
                found[image_id] = np.asarray(Image.open(tar.extractfile(member)).convert("RGB"))
    images = open_set(folder)
    rows = np.array([24, 3, 3, 10])
    np.testing.assert_array_equal(images.read(rows), np.stack([found[image_id] for image_id in images.ids[rows]]))
    assert not images.streamed and images.source.read(rows[:0]).shape == (0, 8, 8, 3)


def test_a_set_too_large_for_memory_is_decoded_batch_by_batch(tmp_path, monkeypatch):
    folder, decoded, decode = written(tmp_path / "set"), [], shards.decode
    monkeypatch.setattr(shards, "IN_MEMORY", 25 * 8 * 8 * 3 - 1)
    monkeypatch.setattr(shards, "decode", lambda *a: decoded.append(a) or decode(*a))
    images = open_set(folder)
    assert images.streamed
    np.testing.assert_array_equal(images.images([20, 4]), pictures()[[20, 4]])
    np.testing.assert_array_equal(images.read([7], shortest=2), pictures()[[7]])  # a set of one size keeps it
    assert len(decoded) == 3
    monkeypatch.setattr(shards, "IN_MEMORY", 25 * 8 * 8 * 3)
    held = open_set(folder)
    assert not held.streamed
    held.read([1]), held.select([2]).read()
    assert len(decoded) == 3 + 25  # once, when first asked for


def test_classes_follow_their_numbers_not_their_places(tmp_path):
    writer = ShardWriter(tmp_path, shard_size=10)
    for i, image in enumerate(pictures(12)):
        writer.add(image, {**row(i), "class_id": 2 - i % 3})
    writer.close()
    images = open_set(tmp_path)
    assert images.class_names == NAMES[::-1] and images.labels.tolist() == [2 - i % 3 for i in range(12)]
    some = open_set(tmp_path, classes=NAMES[1:])
    assert some.labels.tolist() == [0, 1] * 4 and some.index.tolist() == [i for i in range(12) if i % 3]


def test_a_decoded_shard_holds_the_pixels_one_after_the_other(tmp_path):
    members = [(image, {**row(i), "width": 8, "height": 8}) for i, image in enumerate(pictures(7))]
    shards.write_flat(tmp_path, 0, members)
    ShardWriter(tmp_path).close()
    assert (tmp_path / "00000.rgb").read_bytes() == pictures()[:7].tobytes()
    images = open_set(tmp_path, verify=True)
    np.testing.assert_array_equal(images.read([6, 0]), pictures()[[6, 0]])
    data = bytearray((tmp_path / "00000.rgb").read_bytes())
    data[8 * 8 * 3] ^= 1
    (tmp_path / "00000.rgb").write_bytes(bytes(data))
    with pytest.raises(UserError, match=r"image im001 in shard .*00000\.rgb is not the one"):
        open_set(tmp_path, verify=True)


def test_a_missing_column_is_named(tmp_path):
    path = written(tmp_path / "set") / "manifest.parquet"
    pd.read_parquet(path).drop(columns="sha256").to_parquet(path)
    with pytest.raises(UserError, match=r"manifest\.parquet lacks the column 'sha256'"):
        open_set(tmp_path / "set")


def test_sidecars_hold_what_rebuilds_the_manifest(tmp_path):
    for number in range(3):
        shards.write_shard(tmp_path, number, members(10 * number, 10 * number + 10), sidecars=True)
    shards.merge_manifest(tmp_path)
    manifest = pd.read_parquet(tmp_path / "manifest.parquet")
    rows = []
    for path in sorted(tmp_path.glob("*.tar")):
        with tarfile.open(path) as tar:
            pairs = tar.getmembers()
            for image, sidecar in zip(pairs[::2], pairs[1::2], strict=True):
                assert sidecar.name == image.name.replace(".png", ".json") and sidecar.mtime == 0
                content = tar.extractfile(image).read()
                found = json.loads(tar.extractfile(sidecar).read())
                assert found["sha256"] == hashlib.sha256(content).hexdigest()
                rows.append({**found, "shard": path.name, "offset": image.offset_data, "size": image.size})
    pd.testing.assert_frame_equal(pd.DataFrame(rows)[manifest.columns.tolist()], manifest)
    images = open_set(tmp_path, verify=True)
    np.testing.assert_array_equal(images.images(), pictures(30))


def test_a_sidecar_is_json_whatever_numbers_and_texts_the_row_holds(tmp_path):
    png, one = members(0, 1)[0]
    odd = {"seed": np.int64(2**62 + 1), "steps": np.float32(0.5), "blank": np.bool_(True), "licence": float("nan")}
    shards.write_shard(tmp_path, 0, [(png, one | odd | {"prompt": 'Grünfink\n"<b>'})], sidecars=True)
    with tarfile.open(tmp_path / "00000.tar") as tar:
        found = json.loads(tar.extractfile("000/im000.json").read())
    wanted = {"seed": 2**62 + 1, "steps": 0.5, "blank": True, "licence": None, "prompt": 'Grünfink\n"<b>'}
    assert {key: found[key] for key in wanted} == wanted


def test_webdataset_reads_shards_with_sidecars_as_pairs(tmp_path):
    webdataset = pytest.importorskip("webdataset", reason="webdataset is an extra of the tests")
    shards.write_shard(tmp_path, 0, members(0, 6), sidecars=True)
    samples = list(webdataset.WebDataset(str(tmp_path / "00000.tar"), shardshuffle=False).decode("rgb8"))
    assert [sample["json"]["prompt"] for sample in samples] == [f"prompt {i}" for i in range(6)]
    np.testing.assert_array_equal(np.stack([sample["png"] for sample in samples]), pictures(6))


def test_shards_without_sidecars_are_as_they_were(tmp_path):
    """Check values: artifacts that are kept name these bytes."""
    written(tmp_path / "set")
    assert artifacts.sha256_of(tmp_path / "set" / "00002.tar")[:16] == "35c1a4bc867a3460"
    assert artifacts.sha256_of(tmp_path / "set" / "manifest.parquet")[:16] == "8fbefdccdc9d003b"


def test_a_merged_set_does_not_depend_on_who_wrote_its_shards_and_when(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "MERGED", 20)
    found = []
    for name, order in {"one": range(6), "others": (4, 1, 5, 0, 3, 2)}.items():
        for number in order:
            shards.write_shard(tmp_path / name, number, members(7 * number, 7 * number + 7), sidecars=True)
        shards.merge_manifest(tmp_path / name)
        found.append(bytes_of(tmp_path / name))
    assert found[0] == found[1] and list(found[0]) == [*(f"{k:05d}.tar" for k in range(6)), "manifest.parquet"]
    file = pq.ParquetFile(tmp_path / "one" / "manifest.parquet")
    assert [file.metadata.row_group(k).num_rows for k in range(2)] == [21, 21]  # whole shards
    assert open_set(tmp_path / "one", verify=True).ids.tolist() == [f"im{i:03d}" for i in range(42)]


def test_shards_beyond_the_five_digits_come_last(tmp_path):
    for number, start in ((100_000, 3), (99_999, 0)):
        shards.write_shard(tmp_path, number, members(start, start + 3))
    assert ShardWriter(tmp_path).finished == {99_999, 100_000}
    shards.merge_manifest(tmp_path)
    assert open_set(tmp_path, verify=True).ids.tolist() == [f"im{i:03d}" for i in range(6)]
    assert ShardWriter(tmp_path).finished == {99_999, 100_000}


def test_a_column_that_some_shards_lack_is_empty_there(tmp_path):
    shards.write_shard(tmp_path, 0, members(0, 2))
    shards.write_shard(tmp_path, 1, [(png, one | {"note": "late"}) for png, one in members(2, 4)])
    shards.write_shard(tmp_path, 2, [])  # every image of it was left out
    shards.merge_manifest(tmp_path)
    assert pd.read_parquet(tmp_path / "manifest.parquet")["note"].fillna("-").tolist() == ["-", "-", "late", "late"]


def test_merging_goes_on_where_it_was_killed_and_needs_an_image(tmp_path):
    shards.write_shard(tmp_path / "set", 0, members(0, 5))
    rows = (tmp_path / "set" / "00000.rows.parquet").read_bytes()
    shards.merge_manifest(tmp_path / "set")
    whole = bytes_of(tmp_path / "set")
    (tmp_path / "set" / "00000.rows.parquet").write_bytes(rows)  # killed before the rows were removed
    shards.merge_manifest(tmp_path / "set")
    assert bytes_of(tmp_path / "set") == whole
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "00000.rows.parquet").write_bytes(rows[:100])
    with pytest.raises(UserError, match=r"00000\.rows\.parquet is not readable Parquet"):
        shards.merge_manifest(tmp_path / "broken")
    assert sorted(bytes_of(tmp_path / "broken")) == ["00000.rows.parquet"]
    shards.write_shard(tmp_path / "empty", 0, [])
    with pytest.raises(UserError, match="image set empty has no images"):
        shards.merge_manifest(tmp_path / "empty")


def test_the_stand_in_of_a_large_set_opens_fast_and_is_read_in_little_memory():
    """The full size is perf/large_set.py's own default; 20,000 images are 11 GB of pixels."""
    script = Path(__file__).parent.parent / "perf" / "large_set.py"
    command = [sys.executable, str(script), "--images", "20000", "--batches", "1"]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
    assert set(found["kinds"]) == {"flat", "jpeg"} and found["value"] <= 1 and found["peak_gib"] <= 1


def test_two_writers_of_one_file_are_not_in_each_other_s_way(tmp_path):
    """Machines that share a folder share process ids, too."""
    with artifacts.whole_file(tmp_path / "x") as one, artifacts.whole_file(tmp_path / "x") as two:
        one.write(b"same"), two.write(b"same")
        assert len(list(tmp_path.glob(".*.tmp"))) == 2  # what cleaners look for
    assert artifacts.atomic_write(tmp_path / "x", "new") == tmp_path / "x"
    assert [path.name for path in tmp_path.iterdir()] == ["x"] and (tmp_path / "x").read_text() == "new"
