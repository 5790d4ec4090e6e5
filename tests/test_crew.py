"""A crew of processes: who dies is replaced, who joins by hand helps, and the bytes are those of one process."""

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress

import pytest
from squares import files_of, wait_for

from cilkit import locks
from cilkit.data.shards import open_set
from cilkit.errors import UserError
from cilkit.realms import foresee
from cilkit.synthesis import crew, load_generator, make_plan, paint_plan
from cilkit.synthesis.job import Job


@pytest.fixture(scope="module")
def plan():
    return make_plan(foresee("ornaments and shapes")[0], 4, seed=5, batch_size=8)  # 188 images, 24 batches


@pytest.fixture(scope="module")
def alone(plan, tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    paint_plan(plan, "font-renderings", folder, shard_size=32)
    return files_of(folder)


def begun(plan, folder) -> Job:
    folder.mkdir()
    return Job.begin(plan, load_generator("font-renderings"), folder / "set", folder / "scratch", 32)


def at_work(job: Job) -> dict[int, int]:
    """Shard -> the process that holds its claim."""
    claims = [path for path in (job.path / "claims").glob("*.claim") if not path.name.startswith(".")]
    return {int(path.stem): held["pid"] for path in claims if (held := locks._claim_of(path))}


def worker(job: Job, *arguments: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "cilkit.synthesis.worker", str(job.path), *arguments]
    environment = {**os.environ, **crew.worker_environment()}
    return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_dead_worker_is_replaced_at_the_cost_of_one_batch(plan, alone, tmp_path, monkeypatch):
    started, start = [], crew.Crew._start
    monkeypatch.setattr(crew.Crew, "_start", lambda self, number: started.append(start(self, number)) or started[-1])
    killed = []

    def kill_once(done, total):
        if done >= 48 and not killed:
            killed.append(started[0])
            started[0].kill()

    measured = paint_plan(plan, "font-renderings", tmp_path, workers=2, shard_size=32, progress=kill_once)
    assert killed and len(started) == 3
    assert 188 <= measured["images"] <= 188 + 8
    assert files_of(tmp_path) == alone
    assert open_set(tmp_path, verify=True).ids.tolist() == plan["image_id"].tolist()


def test_worker_started_by_hand_takes_over_what_a_dead_one_left(plan, alone, tmp_path):
    job = begun(plan, tmp_path / "job")
    first = worker(job)
    wait_for(lambda: len(list(job.path.glob("*-*.parquet"))) >= 2)
    first.send_signal(signal.SIGKILL)
    first.wait()
    kept, held = job.kept(), at_work(job)
    assert held and set(held.values()) == {first.pid}
    said = worker(job).communicate(timeout=60)[0]
    painted = sum(json.loads(line)["images"] for line in said.splitlines())
    assert painted == 188 - kept and job.unfinished() == []
    job.close()
    assert files_of(tmp_path / "job" / "set") == alone and not job.path.exists()


def test_tied_worker_ends_with_its_input(plan, tmp_path):
    job = begun(plan, tmp_path / "job")
    tied = worker(job, "--tied")
    tied.stdin.close()
    assert tied.wait(timeout=30) == 1


def test_workers_that_cannot_start_are_one_sentence(plan, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(UserError, match=r"processes ended 7 times, the last one with exit status 1; what is painted"):
        paint_plan(plan, "font-renderings", tmp_path, workers=2)


def test_changed_generator_and_damaged_order_stop_a_worker(plan, tmp_path):
    job = begun(plan, tmp_path / "job")
    job.order["origin"]["generator_digest"] = "0" * 64
    (job.path / "order.json").write_text(json.dumps(job.order))
    said = worker(job).communicate(timeout=60)[0]
    assert json.loads(said) == {"error": "generator font-renderings changed while it was painting; run it again"}
    (job.path / "order.json").write_text("{")
    with pytest.raises(UserError, match="expected the folder of a painting job"):
        Job(job.path)


def test_errors_of_workers_keep_their_meaning():
    full = crew.describe(OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(OSError) as caught:
        crew.images_of(full)
    assert caught.value.errno == errno.ENOSPC
    with pytest.raises(UserError, match="^the prompt is too long$"):
        crew.images_of(crew.describe(UserError("the prompt is too long")))
    other = crew.describe(RuntimeError("out of memory\nTraceback"))
    assert "RuntimeError: out of memory" in other["error"] and "\n" not in other["error"]
    assert crew.images_of({"images": 4}) == 4


def test_workers_go_round_the_gpus_unless_one_is_named(plan, tmp_path, monkeypatch):
    job = begun(plan, tmp_path / "job")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2, 5")
    assert crew.gpus() == ["2", "5"]
    seen = [crew.Crew(job)._card(number)["CUDA_VISIBLE_DEVICES"] for number in range(3)]
    assert seen == ["2", "5", "2"]
    job.order["given"]["device"] = "cuda:1"
    assert crew.Crew(job)._card(0) == {}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert crew.gpus() == []


PARENT = """
from cilkit.realms import foresee
from cilkit.synthesis import make_plan, paint_plan
plan = make_plan(foresee("ornaments and shapes")[0], 11, seed=5, batch_size=8)
paint_plan(plan, "font-renderings", {folder!r}, workers=2, shard_size=32)
"""


def files_so_far(folder) -> int:
    return len([*folder.glob("scratch/*/*-*.parquet"), *folder.glob("*.tar")])


@pytest.mark.slow
def test_ten_kills_of_workers_and_parents_change_no_byte(tmp_path):
    """517 images, 65 batches; a kill follows once anything was painted since the one before."""
    folder, rng, killed = tmp_path / "killed", random.Random(0), []
    command = [sys.executable, "-c", PARENT.format(folder=str(folder))]
    environment = {**os.environ, **crew.worker_environment()}
    parent = subprocess.Popen(command, env=environment)
    while len(killed) < 10:
        before = files_so_far(folder)
        wait_for(lambda: files_so_far(folder) != before or parent.poll() is not None)  # noqa: B023
        assert parent.poll() is None, "it ended before it was killed"
        time.sleep(rng.uniform(0, 0.05))
        jobs = [Job(path.parent) for path in folder.glob("scratch/*/order.json")]
        hands = [pid for job in jobs for pid in at_work(job).values()]
        victim = rng.choice([parent.pid, *hands])
        with suppress(ProcessLookupError):  # its claim outlived it
            os.kill(victim, signal.SIGKILL)
            killed.append(victim)
        if victim == parent.pid:
            parent.wait()
            parent = subprocess.Popen(command, env=environment)
    assert parent.wait(timeout=60) == 0
    large = make_plan(foresee("ornaments and shapes")[0], 11, seed=5, batch_size=8)
    paint_plan(large, "font-renderings", tmp_path / "undisturbed", shard_size=32)
    assert files_of(folder) == files_of(tmp_path / "undisturbed")
