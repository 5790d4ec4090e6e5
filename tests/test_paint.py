"""Painting: the same bytes whatever the workers, interruptions and kills; what stops it says so in one sentence."""

import errno
import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from squares import Squares, files_of, wait_for

from cilkit import artifacts
from cilkit.data import shards
from cilkit.data.shards import open_set
from cilkit.errors import Stopped, UserError
from cilkit.realms import foresee
from cilkit.synthesis import crew, make_plan, paint_plan, plan_hash
from cilkit.synthesis.job import Brush, Job, work
from cilkit.synthesis.plan import write_plan

PACKAGE = Path(artifacts.__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def plan():
    return make_plan(foresee("ornaments and shapes")[0].first(9), 7, seed=5, batch_size=4)  # 63 images, 16 batches


@pytest.fixture(scope="module")
def undisturbed(plan, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    paint_plan(plan, Squares(), folder, shard_size=10)
    return files_of(folder)


def test_image_set_with_provenance(plan, undisturbed, tmp_path):
    facts = {"realm": "ornaments and shapes"}
    measured = paint_plan(plan, Squares(), tmp_path, shard_size=10, facts=facts)
    assert measured["images"] == 63 and measured["images_per_second"] > 0
    assert list(undisturbed) == [f"{number:05d}.tar" for number in range(8)] + ["manifest.parquet"]  # 2 batches a shard
    images = open_set(tmp_path, verify=True)
    assert images.ids.tolist() == plan["image_id"].tolist()
    assert images.class_names == plan["class_name"].unique().tolist()
    rows = images.manifest
    assert rows["prompt"].tolist() == plan["prompt"].tolist() and rows["seed"].tolist() == plan["seed"].tolist()
    assert rows["batch_id"].tolist() == plan["batch_id"].tolist() and rows["batch_size"].tolist() == [4] * 60 + [3] * 3
    for column, value in {
        **facts,
        "generator_id": "squares",
        "generator_digest": "d" * 64,
        "scheduler": "none",
        "steps": 3,
        "guidance": 1.5,
        "plan_hash": plan_hash(plan),
    }.items():
        assert rows[column].unique().tolist() == [value]
    expected = [np.random.default_rng(seed).integers(0, 256, 3) for seed in plan["seed"]]
    assert (images.images()[:, 3, 3] == np.stack(expected)).all()


@pytest.mark.parametrize("batches", [1, 2, 5, 15])
def test_interrupted_painting_goes_on_to_the_same_bytes(plan, undisturbed, tmp_path, batches):
    def stop(done, total):
        if done >= 4 * batches:
            raise KeyboardInterrupt

    with pytest.raises(Stopped, match=rf"{4 * batches} of 63 images are kept, run it again"):
        paint_plan(plan, Squares(), tmp_path, shard_size=10, progress=stop)
    again = Squares()
    paint_plan(plan, again, tmp_path, shard_size=10)
    assert again.painted == 63 - 4 * batches  # no batch is painted twice
    assert files_of(tmp_path) == undisturbed
    finished = Squares()
    paint_plan(plan, finished, tmp_path, shard_size=10)
    assert finished.painted == 0 and files_of(tmp_path) == undisturbed


KILLED = """
import signal, sys; sys.path.insert(0, {tests!r})
from squares import Squares
from cilkit.realms import foresee
from cilkit.synthesis import make_plan, paint_plan
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where a shell started us in the background
plan = make_plan(foresee("ornaments and shapes")[0].first(9), 7, seed=5, batch_size=4)
paint_plan(plan, Squares(0.05), {folder!r}, shard_size=10)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_killed_or_interrupted_process_goes_on_to_the_same_bytes(plan, undisturbed, tmp_path, number):
    script, environment = KILLED.format(tests=str(Path(__file__).parent), folder=str(tmp_path)), {**os.environ}
    environment["PYTHONPATH"] = str(PACKAGE)
    process = subprocess.Popen([sys.executable, "-c", script], env=environment, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: len(list(tmp_path.glob("*.rows.parquet"))) >= 2)
    process.send_signal(number)
    said = process.communicate()[1]
    assert process.returncode == {signal.SIGKILL: -signal.SIGKILL, signal.SIGINT: 1}[number]
    assert ("Stopped: painting was stopped; " in said) == (number == signal.SIGINT)
    assert not (tmp_path / "manifest.parquet").exists()  # in the middle
    again = Squares()
    paint_plan(plan, again, tmp_path, shard_size=10)
    assert 0 < again.painted <= 63 - 2 * 8
    assert files_of(tmp_path) == undisturbed


CREW = """
from cilkit.realms import foresee
from cilkit.synthesis import make_plan, paint_plan
plan = make_plan(foresee("ornaments and shapes")[0], 4, seed=5, batch_size=8)
paint_plan(plan, "font-renderings", {folder!r}, workers=2, shard_size=32)
"""


def test_bytes_do_not_depend_on_workers_nor_on_killing_their_parent(tmp_path):
    plan = make_plan(foresee("ornaments and shapes")[0], 4, seed=5, batch_size=8)
    alone, crew_of_two, killed = tmp_path / "1", tmp_path / "2", tmp_path / "killed"
    paint_plan(plan, "font-renderings", alone, shard_size=32)
    seen = []
    paint_plan(plan, "font-renderings", crew_of_two, workers=2, shard_size=32, progress=lambda *n: seen.append(n))
    assert seen[-1] == (188, 188) and len(seen) == 24
    script, environment = CREW.format(folder=str(killed)), {**os.environ, "PYTHONPATH": str(PACKAGE)}
    process = subprocess.Popen([sys.executable, "-c", script], env=environment)
    wait_for(lambda: len(list(killed.glob("*.rows.parquet"))) >= 1)
    process.kill()
    process.wait()
    assert not (killed / "manifest.parquet").exists()
    paint_plan(plan, "font-renderings", killed, workers=2, shard_size=32)
    assert files_of(alone) == files_of(crew_of_two) == files_of(killed)


def crew_processes(monkeypatch) -> list:
    """The worker processes that are started from now on."""
    started, start = [], crew.Crew._start
    monkeypatch.setattr(crew.Crew, "_start", lambda self, number: started.append(start(self, number)) or started[-1])
    return started


def test_interrupt_ends_the_workers(plan, tmp_path, monkeypatch):
    hands = crew_processes(monkeypatch)

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(Stopped, match="images are kept, run it again"):
        paint_plan(plan, "font-renderings", tmp_path, workers=2, progress=stop)
    assert len(hands) == 2 and all(hand.poll() is not None for hand in hands)


def test_killed_worker_is_reported_in_a_sentence(plan, tmp_path, monkeypatch):
    hands = crew_processes(monkeypatch)
    monkeypatch.setattr(crew, "RESTARTS", 1)  # each is a process that starts

    def kill_all(done, total):
        for hand in hands:
            hand.kill()

    with pytest.raises(UserError, match="ended 3 times, the last one killed.*paint again, with fewer"):
        paint_plan(plan, "font-renderings", tmp_path, workers=2, progress=kill_all)
    paint_plan(plan, "font-renderings", tmp_path)
    assert len(open_set(tmp_path, verify=True)) == 63


@pytest.mark.parametrize("module, function", [(artifacts, "write_parquet"), (shards, "whole_file")])  # batch, shard
def test_full_disk_is_one_sentence_and_painting_goes_on_later(
    plan, undisturbed, tmp_path, monkeypatch, module, function
):
    real, calls = getattr(module, function), []

    def full(path, *content):
        calls.append(path)
        if len(calls) > 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(path, *content)

    with monkeypatch.context() as patch, pytest.raises(UserError) as caught:
        patch.setattr(module, function, full)
        paint_plan(plan, Squares(), tmp_path, shard_size=10)
    assert "is full" in str(caught.value) and "of 63 images are kept" in str(caught.value)
    again = Squares()
    paint_plan(plan, again, tmp_path, shard_size=10)
    assert 0 < again.painted < 63 and files_of(tmp_path) == undisturbed


def test_read_only_disk_is_one_sentence(plan, tmp_path, monkeypatch):
    def read_only(path, *content):
        raise OSError(errno.EROFS, "Read-only file system")

    with (
        monkeypatch.context() as patch,
        pytest.raises(UserError, match="may not be written to; 0 of 63 images are kept"),
    ):
        patch.setattr(artifacts, "write_parquet", read_only)
        paint_plan(plan, Squares(), tmp_path)
    monkeypatch.setattr(Path, "mkdir", lambda *_, **__: read_only(""))
    with pytest.raises(UserError, match="may not be written to; what was painted is kept"):
        paint_plan(plan, Squares(), tmp_path / "new")


def test_unrelated_calls_on_one_folder_share_the_work(plan, undisturbed, tmp_path):
    with ThreadPoolExecutor(3) as callers:
        calls = [callers.submit(paint_plan, plan, Squares(0.003), tmp_path, shard_size=10) for _ in range(3)]
        assert sum(call.result()["images"] for call in calls) == 63
    assert files_of(tmp_path) == undisturbed and not (tmp_path / "scratch").exists()


def test_a_worker_that_comes_too_late_leaves_quietly_and_one_whose_job_was_deleted_says_so(plan, tmp_path):
    job = Job.begin(plan, Squares(), tmp_path / "set", tmp_path / "scratch", 10)
    late = Job(job.path)
    assert late.kept() == 0
    shutil.rmtree(job.path)
    with pytest.raises(UserError, match="was removed while it was painting; paint again"):
        late.claim(7)
    paint_plan(plan, Squares(), tmp_path / "set", scratch=tmp_path / "scratch", shard_size=10)
    late.close()
    assert late.claim(7) is None and late.unfinished() == [] and not job.path.exists()


def test_scratch_may_lie_behind_a_link(plan, undisturbed, tmp_path):
    (tmp_path / "fast/disk").mkdir(parents=True)
    (tmp_path / "scratch").symlink_to(tmp_path / "fast/disk")
    paint_plan(plan, Squares(), tmp_path / "set", scratch=tmp_path / "scratch", shard_size=10)
    assert files_of(tmp_path / "set") == undisturbed


def test_two_sets_that_share_a_scratch_folder_are_two_jobs(plan, undisturbed, tmp_path):
    jobs = [Job.begin(plan, Squares(), tmp_path / name, tmp_path / "scratch", 10) for name in ("one", "two")]
    for job in jobs:
        list(work(job, Squares()))
        job.close()
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two") == undisturbed


def test_folder_of_another_plan_or_generator_is_left_alone(plan, undisturbed, tmp_path):
    paint_plan(plan, Squares(), tmp_path, shard_size=10)
    other = make_plan(foresee("ornaments and shapes")[0].first(9), 7, seed=6, batch_size=4)
    with pytest.raises(UserError, match="holds images of another plan or generator"):
        paint_plan(other, Squares(), tmp_path, shard_size=10)
    changed = Squares()
    changed.digest = "e" * 64
    with pytest.raises(UserError, match="holds images of another plan or generator"):
        paint_plan(plan, changed, tmp_path, shard_size=10)
    assert files_of(tmp_path) == undisturbed


def test_what_a_stopped_painting_left_is_not_mixed_with_another_generator_s_images(plan, undisturbed, tmp_path):
    def stop(done, total):
        raise KeyboardInterrupt

    changed = Squares()
    changed.digest = "e" * 64
    Job.begin(plan, changed, tmp_path, tmp_path / "scratch", 10)  # no image yet: it makes room
    with pytest.raises(Stopped):
        paint_plan(plan, Squares(), tmp_path, shard_size=10, progress=stop)
    with pytest.raises(UserError, match=r"holds images of another plan or generator \(.*scratch/"):
        paint_plan(plan, changed, tmp_path, shard_size=10)
    paint_plan(plan, Squares(), tmp_path, shard_size=10)
    assert files_of(tmp_path) == undisturbed
    (tmp_path / "manifest.parquet").rename(tmp_path / "100000.rows.parquet")  # a shard that this plan has not
    with pytest.raises(UserError, match="holds images of another plan or generator"):
        paint_plan(plan, Squares(), tmp_path, shard_size=10)
    (tmp_path / "manifest.parquet").write_bytes(b"broken")
    with pytest.raises(UserError, match="manifest.parquet is damaged; see `cilkit doctor"):
        paint_plan(plan, Squares(), tmp_path, shard_size=10)


def test_generator_that_paints_something_else_is_stopped(plan, tmp_path):
    wrong = Squares()
    wrong.size, wrong.paint = 16, Squares().paint
    with pytest.raises(UserError, match=r"squares painted uint8 \(4, 8, 8, 3\); expected uint8 \(4, 16, 16, 3\)"):
        paint_plan(plan, wrong, tmp_path)
    with pytest.raises(UserError, match="the plan lacks the column 'seed'; expected image_id, class_id"):
        paint_plan(plan.drop(columns="seed"), Squares(), tmp_path)
    with pytest.raises(UserError, match="which others cannot load; paint with workers=1"):
        paint_plan(plan, Squares(), tmp_path, workers=2)


def test_scratch_of_an_artifact_is_used_and_left_empty(plan, undisturbed, tmp_path):
    paint_plan(plan, Squares(), tmp_path / "set", scratch=tmp_path / "scratch", shard_size=10)
    assert files_of(tmp_path / "set") == undisturbed and not list((tmp_path / "scratch").iterdir())


def test_plan_on_the_disk_gives_the_bytes_of_the_plan_in_memory(undisturbed, tmp_path):
    realm = foresee("ornaments and shapes")[0].first(9)
    on_disk = write_plan(tmp_path / "plan.parquet", realm, 7, seed=5, batch_size=4, shard_size=10)
    paint_plan(on_disk, Squares(), tmp_path / "set")
    assert files_of(tmp_path / "set") == undisturbed


def test_set_cut_into_other_shards_is_not_gone_on_with(plan, tmp_path):
    def stop(done, total):
        if done >= 32:
            raise KeyboardInterrupt

    with pytest.raises(Stopped):
        paint_plan(plan, Squares(), tmp_path, shard_size=10, progress=stop)
    with pytest.raises(UserError, match="holds images of another plan or generator"):
        paint_plan(plan, Squares(), tmp_path, shard_size=20)


@pytest.mark.parametrize("room, expected", [(3, [2] * 60 + [2, 2, 1]), (1, [1] * 63)])
def test_batch_that_does_not_fit_is_halved_with_nothing_lost(plan, tmp_path, room, expected):
    small, large = Squares(room=room), Squares()
    paint_plan(plan, small, tmp_path / "small", shard_size=10)
    paint_plan(plan, large, tmp_path / "large", shard_size=10)
    assert small.painted == 63
    small, large = open_set(tmp_path / "small"), open_set(tmp_path / "large")
    assert (small.images() == large.images()).all()
    assert small.manifest["batch_size"].tolist() == expected
    assert large.manifest["batch_size"].tolist() == [4] * 60 + [3] * 3


def test_memory_is_asked_before_painting_and_none_at_all_is_one_sentence(plan, tmp_path):
    painter = Squares(room=2)
    painter.most_at_once = lambda: 2
    paint_plan(plan, painter, tmp_path / "set")
    assert painter.calls == 2 * 16 and painter.painted == 63  # no call was refused
    with pytest.raises(UserError, match="not even one image of squares at 8 pixels fits"):
        paint_plan(plan, Squares(room=0), tmp_path / "none")


def test_a_short_batch_sets_no_limit_for_the_next(plan):
    brush = Brush(painter := Squares())
    assert [brush.paint(plan.head(n))[1]["batch_size"].tolist() for n in (1, 4)] == [[1], [4] * 4]
    assert painter.calls == 2


def test_memory_that_runs_out_in_the_middle_halves_what_follows(plan):
    brush = Brush(painter := Squares())
    sizes = [brush.paint(plan.head(4))[1]["batch_size"].tolist()]
    painter.room = 3  # somebody else took the rest
    sizes += [brush.paint(plan.iloc[start : start + 4])[1]["batch_size"].tolist() for start in (4, 8)]
    assert sizes == [[4] * 4, [2] * 4, [2] * 4] and painter.calls == 1 + 2 + 2 and painter.painted == 12


def test_repainted_images_and_the_precision_are_recorded(plan, tmp_path):
    painter = Squares()
    painter.repaints, painter.precision = {1: 2}, "bf16"  # in every call, the second image came out blank twice
    paint_plan(plan, painter, tmp_path)
    rows = open_set(tmp_path).manifest
    assert rows["repainted"].tolist() == [2 * (position == 1) for position in plan["position"]]
    assert rows["precision"].unique().tolist() == ["bf16"]


def test_unknown_executor_is_one_sentence(plan, tmp_path):
    with pytest.raises(UserError, match="executor 'rays' is unknown.*'ray'"):
        paint_plan(plan, Squares(), tmp_path, executor="rays")
