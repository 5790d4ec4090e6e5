"""A pipeline that is killed ends in the same bytes as one that is not."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cilkit.artifacts import sha256_of

PIPELINE = Path(__file__).parent / "pipeline.py"
LIMIT = 240  # seconds until a pipeline counts as stuck


def start(root: Path, workers: int = 2) -> subprocess.Popen:
    environment = os.environ | {"CILKIT_ARTIFACTS": str(root), "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    return subprocess.Popen(
        [sys.executable, str(PIPELINE), str(workers)],
        env=environment,
        start_new_session=True,  # so that a kill takes its workers along
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def kill(process: subprocess.Popen) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def finish(root: Path, workers: int = 2) -> None:
    process = start(root, workers)
    out, _ = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, out[-3000:]


def snapshot(root: Path) -> dict[str, str]:
    """Every file that an identity or a digest reads, with its hash; what clocks and hosts decide is left out."""
    files = [path for path in root.rglob("*") if path.is_file() and path.name != "measured.json"]
    leftover = [path for path in files if path.suffix in (".lock", ".tmp", ".claim") or ".part" in str(path)]
    assert not leftover, leftover
    return {path.relative_to(root).as_posix(): sha256_of(path) for path in files}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("undisturbed")
    finish(root, workers=1)  # the bytes do not depend on it, and a process more takes its time to start
    return root


@pytest.fixture(scope="module")
def undisturbed(whole) -> dict[str, str]:
    return snapshot(whole)


def test_killed_twice_in_the_middle_of_a_run(tmp_path, whole, undisturbed):
    """In half a task, and again where a task is learnt; what comes before a run is there already."""
    shutil.copytree(whole, tmp_path, ignore=shutil.ignore_patterns("run"), dirs_exist_ok=True)
    for sign in ("scratch/epoch.safetensors", "after_00/*.npy"):
        process = start(tmp_path)
        deadline = time.monotonic() + LIMIT
        while not list(tmp_path.glob(f"run/*.part/{sign}")):
            assert process.poll() is None and time.monotonic() < deadline, "it ended before it could be killed"
            time.sleep(0.01)
        kill(process)
        assert list(tmp_path.glob("run/*.part")), "killed too late: nothing was in the making"
    finish(tmp_path)
    assert snapshot(tmp_path) == undisturbed


@pytest.mark.slow
@pytest.mark.parametrize("number", range(10))
def test_killed_at_a_random_moment(tmp_path, undisturbed, number):
    moment = random.Random(number).uniform(2.0, 20.0)
    process = start(tmp_path)
    time.sleep(moment)
    if process.poll() is None:
        kill(process)
    finish(tmp_path)
    assert snapshot(tmp_path) == undisturbed
