"""What happens beside the painting: kept batches, whole shards, thumbnails, and a painter that never runs ahead."""

import io
import json
import tarfile
import time

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from squares import Squares

from cilkit import artifacts
from cilkit.data.imagesets import ImageSet
from cilkit.data.shards import open_set
from cilkit.realms import foresee
from cilkit.synthesis import make_plan, paint_plan, writer
from cilkit.synthesis.job import Job, work


@pytest.fixture(scope="module")
def plan():
    return make_plan(foresee("ornaments and shapes")[0].first(5), 5, seed=5, batch_size=4)  # 25 images, 7 batches


def begun(plan, folder, painter) -> Job:
    return Job.begin(plan, painter, folder / "set", folder / "scratch", 8)


def test_at_most_one_painted_batch_is_not_on_the_disk(plan, tmp_path, monkeypatch):
    painter, behind, write = Squares(), [], artifacts.write_parquet
    job = begun(plan, tmp_path, painter)
    monkeypatch.setattr(artifacts, "write_parquet", lambda *content: (time.sleep(0.05), write(*content)))
    for _ in work(job, painter):
        behind.append(painter.painted - job.kept())
    assert max(behind) == 4  # the batch just handed over: the painter waits for a slow disk
    assert job.kept() == 25 and not job.unfinished()


def test_painting_goes_on_while_a_batch_is_written(plan, tmp_path, monkeypatch):
    """7 batches: while one is written, slowly, the next is painted, so calls of the painter come between."""
    write, painted = artifacts.write_parquet, []
    job = begun(plan, tmp_path, painter := Squares(seconds=0.05))

    def slowly(file, table):
        before = painter.calls
        time.sleep(0.1 * ("-" in file.name))
        write(file, table)
        painted.append(painter.calls - before)

    monkeypatch.setattr(artifacts, "write_parquet", slowly)
    list(work(job, painter))
    assert painter.calls == 7 and sum(painted) >= 4


def test_error_of_writing_stops_the_painter_at_the_next_batch(plan, tmp_path, monkeypatch):
    job = begun(plan, tmp_path, painter := Squares())

    def broken(file, table):
        raise PermissionError("read-only")

    monkeypatch.setattr(artifacts, "write_parquet", broken)
    with pytest.raises(PermissionError, match="read-only"):
        list(work(job, painter))
    assert painter.calls <= 2
    assert not list((job.path / "claims").glob("*.claim"))  # nobody waits for us


def test_stopped_worker_leaves_its_batches_and_no_claim(plan, tmp_path):
    job = begun(plan, tmp_path, painter := Squares())
    painting = work(job, painter)
    next(painting), next(painting), next(painting)
    painting.close()
    assert job.kept() == 12 == painter.painted and job.finished() == {0}
    assert not list((job.path / "claims").glob("*.claim"))


def test_shard_lost_to_another_worker_is_not_written(plan, tmp_path):
    job = begun(plan, tmp_path, painter := Squares())
    painting = work(job, painter)
    next(painting)
    (claim,) = (job.path / "claims").glob("*.claim")
    claim.write_text(json.dumps({"host": "elsewhere", "token": "theirs"}))  # we were silent for too long
    next(painting), next(painting)  # shard 0 is given up, shard 1 begun
    painting.close()
    assert job.finished() == set() and claim.exists()


def test_large_images_have_thumbnails_and_every_image_its_row(plan, tmp_path):
    paint_plan(plan, Squares(size=128), tmp_path, shard_size=8)
    images = open_set(tmp_path, verify=True)
    table = pd.concat([pd.read_parquet(path) for path in sorted(tmp_path.glob("*.thumbs.parquet"))])
    assert table["image_id"].tolist() == plan["image_id"].tolist()
    assert {Image.open(io.BytesIO(jpeg)).size for jpeg in table["jpeg"]} == {(64, 64)}
    some = images.of_classes([1, 3])
    for place, thumb in zip([7, 0], writer.thumbnails(some, [7, 0]), strict=True):
        assert thumb.shape == (64, 64, 3)
        assert np.abs(thumb.astype(int) - some.read([place])[0, 0, 0].astype(int)).max() <= 8  # one colour; JPEG
    with tarfile.open(tmp_path / "00001.tar") as tar:
        rows = [json.load(tar.extractfile(name)) for name in tar.getnames() if name.endswith(".json")]
    assert [row["image_id"] for row in rows] == plan["image_id"].tolist()[8:16]
    assert rows[0]["prompt"] == plan["prompt"][8] and rows[0]["generator_digest"] == "d" * 64


def test_sets_without_thumbnails_show_their_images(plan, tmp_path):
    paint_plan(plan, Squares(), tmp_path, shard_size=8)
    assert not list(tmp_path.glob("*.thumbs.parquet"))
    images = open_set(tmp_path)
    assert (writer.thumbnails(images, [3])[0] == images.read([3])[0]).all()
    photos = ImageSet.from_arrays(np.zeros((2, 200, 100, 3), np.uint8), [0, 1], ["a", "b"])
    assert writer.thumbnails(photos, [1])[0].shape == (64, 32, 3)
