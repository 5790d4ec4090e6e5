"""Painting: the same bytes whatever the workers, interruptions and kills; what stops it says so in one sentence."""

import errno
import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from cilkit import artifacts
from cilkit.data import shards
from cilkit.data.shards import open_set
from cilkit.errors import Stopped, UserError
from cilkit.realms import foresee
from cilkit.synthesis import crew, make_plan, paint_plan, plan_hash

PACKAGE = Path(artifacts.__file__).resolve().parent.parent


class Squares:
    """A generator in miniature: each image is one colour drawn from its seed; slow on request."""

    id, digest, size, batch_size = "squares", "d" * 64, 8, 4
    settings = {"size": 8, "steps": 3, "guidance": 1.5, "scheduler": "none", "batch_size": 4}

    def __init__(self, seconds: float = 0.0):
        self.seconds, self.painted = seconds, 0

    def check(self, concepts, prompts=()):
        pass

    def paint(self, prompts, seeds, concepts):
        time.sleep(self.seconds)
        self.painted += len(seeds)
        colours = [np.random.default_rng(seed).integers(0, 256, 3) for seed in seeds]
        return np.stack([np.broadcast_to(colour, (8, 8, 3)) for colour in colours]).astype(np.uint8)


def files_of(folder: Path) -> dict[str, str]:
    found = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


@pytest.fixture(scope="module")
def plan():
    return make_plan(foresee("ornaments and shapes")[0].first(9), 7, seed=5, batch_size=4)  # 63 images, 16 batches


@pytest.fixture(scope="module")
def undisturbed(plan, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    paint_plan(plan, Squares(), folder, shard_size=10)
    return files_of(folder)


def test_image_set_with_provenance(plan, undisturbed, tmp_path):
    measured = paint_plan(plan, Squares(), tmp_path, shard_size=10)
    assert measured["images"] == 63 and measured["images_per_second"] > 0
    assert files_of(tmp_path) == undisturbed
    assert list(undisturbed) == [f"{number:05d}.tar" for number in range(8)] + ["manifest.parquet"]  # 2 batches a shard
    images = open_set(tmp_path, verify=True)
    assert images.ids.tolist() == plan["image_id"].tolist()
    assert images.class_names == plan["class_name"].unique().tolist()
    rows = images.manifest
    assert rows["prompt"].tolist() == plan["prompt"].tolist() and rows["seed"].tolist() == plan["seed"].tolist()
    assert rows["batch_id"].tolist() == plan["batch_id"].tolist() and rows["batch_size"].tolist() == [4] * 60 + [3] * 3
    for column, value in {
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
from test_paint import Squares
from cilkit.realms import foresee
from cilkit.synthesis import make_plan, paint_plan
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where a shell started us in the background
plan = make_plan(foresee("ornaments and shapes")[0].first(9), 7, seed=5, batch_size=4)
paint_plan(plan, Squares(0.05), {folder!r}, shard_size=10)
"""


def wait_for(condition, seconds=30.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the painting process never came that far"
        time.sleep(0.005)


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
plan = make_plan(foresee("ornaments and shapes")[0], 8, seed=5, batch_size=8)
paint_plan(plan, "font-renderings", {folder!r}, workers=2, shard_size=32)
"""


def test_bytes_do_not_depend_on_workers_nor_on_killing_their_parent(tmp_path):
    plan = make_plan(foresee("ornaments and shapes")[0], 8, seed=5, batch_size=8)
    alone, crew_of_two, killed = tmp_path / "1", tmp_path / "2", tmp_path / "killed"
    paint_plan(plan, "font-renderings", alone, shard_size=32)
    seen = []
    paint_plan(plan, "font-renderings", crew_of_two, workers=2, shard_size=32, progress=lambda *n: seen.append(n))
    assert seen[-1] == (376, 376) and len(seen) == 47
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

    def kill_all(done, total):
        for hand in hands:
            hand.kill()

    with pytest.raises(UserError, match="ended 7 times, the last one killed.*paint again, with fewer"):
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


def test_generator_that_paints_something_else_is_stopped(plan, tmp_path):
    wrong = Squares()
    wrong.size = 16
    with pytest.raises(UserError, match=r"squares painted uint8 \(4, 8, 8, 3\); expected uint8 \(4, 16, 16, 3\)"):
        paint_plan(plan, wrong, tmp_path)
    with pytest.raises(UserError, match="the plan lacks the column 'seed'; expected image_id, class_id"):
        paint_plan(plan.drop(columns="seed"), Squares(), tmp_path)
    with pytest.raises(UserError, match="which others cannot load; paint with workers=1"):
        paint_plan(plan, Squares(), tmp_path, workers=2)


def test_scratch_of_an_artifact_is_used_and_left_empty(plan, undisturbed, tmp_path):
    paint_plan(plan, Squares(), tmp_path / "set", scratch=tmp_path / "scratch", shard_size=10)
    assert files_of(tmp_path / "set") == undisturbed and not list((tmp_path / "scratch").iterdir())
