"""Jobs as Ray tasks: what ends a job is said, what one did is kept, and artifacts follow the jobs."""

import json
import os
import sys
import tempfile
import time
from pathlib import Path

import nbformat
import pytest

from cilkit import artifacts
from cilkit.errors import UserError
from cilkit.workbook.execute import read_status
from cilkit.workbook.fingerprint import fingerprint
from cilkit.workbook.jobs import Job, Needs
from cilkit.workbook.ray_executor import RayExecutor


@pytest.fixture(scope="module")
def ray(tmp_path_factory):
    """One node with four made-up cores and two made-up GPUs, whose tasks have an artifacts folder of their own."""
    ray = pytest.importorskip("ray", reason="the extra [scale] is not installed")
    short = {"prefix": "r", "ignore_cleanup_errors": True}  # the names of Ray's sockets have a limit
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory(**short) as folder:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("CILKIT_ARTIFACTS", str(tmp_path_factory.mktemp("node") / "artifacts"))
        options = {"include_dashboard": False, "log_to_driver": False, "object_store_memory": 80 << 20}
        ray.init("local", num_cpus=4, num_gpus=2, _temp_dir=folder, **options)
        yield ray
        ray.shutdown()


@pytest.fixture
def home(ray, monkeypatch, tmp_path):
    """(the driver's artifacts folder, that of the node)."""
    node = Path(os.environ["CILKIT_ARTIFACTS"])
    monkeypatch.setenv("CILKIT_ARTIFACTS", str(tmp_path / "home"))
    return tmp_path / "home", node


@pytest.fixture
def job(write_notebook, tmp_path):
    def make(name, *sources, after=(), start=False, **needs):
        path = write_notebook(name, *sources, start=start)
        return Job(name, path, {"x": 3}, tmp_path / "cells" / f"{name}.ipynb", list(after), needs=Needs(**needs))

    return make


def outcome(executor, jobs, seconds=60, attempt=1):
    """{name: Status} of jobs, started together."""
    for job in jobs:
        executor.submit(job, job.given, attempt)
    return collected(executor, len(jobs), seconds)


def collected(executor, count, seconds=60):
    found, begun = {}, time.monotonic()
    while len(found) < count:
        assert time.monotonic() - begun < seconds, f"only {found} ended"
        found |= {job.name: status for job, status in executor.finished(0.5)}
    return found


def gone(pid, seconds=5):
    begun = time.monotonic()
    while Path(f"/proc/{pid}").exists():
        if time.monotonic() - begun > seconds:
            return False
        time.sleep(0.1)
    return True


@pytest.mark.slow  # Ray takes 11 s to start; `test_driving` has the driver, `test_chaos` jobs that are killed
def test_how_a_job_ended_is_said(home, job, tmp_path):
    seen = "import json, os\n\njson.dump({**os.environ, 'x': x}, open(f'{os.environ[\"CILKIT_RUN\"]}.json', 'w'))"
    killing = f"import os, signal\n\nopen('{tmp_path}/pid', 'w').write(str(os.getpid()))\nos.kill(os.getppid(), 9)"
    jobs = [
        job("fine", seen, cpus=1.5, gpus=0.5),
        job("failing", "1 / 0", cpus=0.5),
        job("kernel", "import os\n\nos.kill(os.getpid(), 9)"),
        job("worker", killing, "import time\n\ntime.sleep(60)"),
    ]
    executor = RayExecutor(finish="os:mkdir")
    try:
        assert executor.gpus == 2 and executor.room(Needs(cpus=4, gpus=2))
        found = outcome(executor, jobs, attempt=2)
    finally:
        executor.close()
    assert {name: status.state for name, status in found.items()} == {
        "fine": "ok",
        "failing": "failed",
        "kernel": "dead",
        "worker": "dead",
    }
    assert all(read_status(job.output) == found[job.name] for job in jobs)
    assert found["fine"].attempt == 2 and found["fine"].device in ("0", "1")
    assert (tmp_path / "cells" / "fine").is_dir() and not (tmp_path / "cells" / "failing").exists()  # `finish`
    told = json.loads((tmp_path / "fine.json").read_text())
    assert (told["x"], told["OMP_NUM_THREADS"], told["OMP_WAIT_POLICY"]) == (3, "1", "PASSIVE")
    assert told["CILKIT_ARTIFACTS"] == str(home[0]) and told["CUDA_VISIBLE_DEVICES"] == found["fine"].device
    assert "ZeroDivisionError" in found["failing"].sentence and found["failing"].device == ""
    assert "the kernel died (SIGKILL" in found["kernel"].sentence
    assert "its Ray worker on " in found["worker"].sentence and "died while the job ran" in found["worker"].sentence
    assert gone(int((tmp_path / "pid").read_text()))


@pytest.mark.slow
def test_room_is_what_is_not_taken_and_what_never_fits_is_said(home, job, tmp_path):
    executor = RayExecutor(limit=3)
    try:
        keeping = "try:\n    time.sleep(60)\nexcept KeyboardInterrupt:\n    open('kept', 'w').close()\n    raise"
        sleeping = job("sleeping", f"import time\n\n{keeping}", cpus=1, gpus=1.0)
        executor.submit(sleeping, sleeping.given, 1)
        assert executor.room(Needs(cpus=3, gpus=1)) and not executor.room(Needs(cpus=3.5))
        assert not executor.room(Needs(gpus=2)) and executor.room(Needs(gpus=0.5))
        for needs in (Needs(gpus=3), Needs(cpus=5)):
            with pytest.raises(UserError, match="of the Ray cluster have 4 cores and 2 GPUs: change `needs`"):
                executor.room(needs)
        with pytest.raises(UserError, match=r"needs 1.5 GPUs; expected a share of one .* or whole ones"):
            executor.room(Needs(gpus=1.5))
        begun = time.monotonic()
        while getattr(read_status(sleeping.output), "cell", None) != 3:
            assert time.monotonic() - begun < 60
            time.sleep(0.1)
        executor.stop()
        executor.submit(late := job("late", "1"), {"x": 4}, 1)
        found = collected(executor, 2)
    finally:
        executor.close()
    assert {status.state for status in found.values()} == {"interrupted"}
    assert sleeping.output.is_file() and found["sleeping"].cell == 3 and "stopped by hand" in found["sleeping"].sentence
    assert (tmp_path / "kept").exists()
    assert "before it began" in found["late"].sentence and not late.output.exists()


MAKING = """from cilkit import artifacts

def made(stage, inputs, text):
    make = lambda work: artifacts.atomic_write(work.path / "text", text)
    return artifacts.obtain(stage, 1, {}, inputs, make)
"""


def made(stage, text, **inputs):
    return artifacts.obtain(stage, 1, {}, inputs, lambda work: artifacts.atomic_write(work.path / "text", text))


@pytest.mark.slow  # the parts of it are tested in test_transfer.py
def test_artifacts_are_fetched_before_a_job_and_taken_home_after_it(home, job):
    root, node = home
    realm = made("realm", "1")
    images = made("images", "2", realm=realm)
    reading = (
        "realm = made('realm', 'made again')\nimages = made('images', 'made again', realm=realm)\n"
        "backbone = made('backbone', '3', images=images)\nbook.uses(made('features', '4', backbone=backbone))"
    )
    first, second = job("first"), job("second", MAKING, reading, after=["first"], start=True)
    book = first.output.with_suffix("") / "book.json"
    artifacts.write_json(book, {"artifacts": [{"name": images.name, "digest": images.digest}]})
    executor = RayExecutor(artifacts="fetched", finish="cilkit.road.gathering:write_result")
    try:
        assert outcome(executor, [second])["second"].ok, read_status(second.output)
    finally:
        executor.close()
    backbone = artifacts.find("backbone", artifacts.key_of("backbone", 1, {}, {"images": images}))
    features = artifacts.find("features", artifacts.key_of("features", 1, {}, {"backbone": backbone}))
    assert [one.file("text").read_text() for one in (backbone, features)] == ["3", "4"]
    assert len(list(artifacts.all_artifacts())) == 4 and not list(root.rglob("*.part"))
    result = json.loads((second.output.with_suffix("") / "result.json").read_text())
    assert result["artifacts"] == [{"digest": features.digest, "name": features.name, "stage": "features"}]
    status, now = read_status(second.output), nbformat.read(second.notebook, as_version=4)
    assert status.ok and status.fingerprint == fingerprint(now, second.given)
    left = [f"second{suffix}" for suffix in ("", ".ipynb", ".log", ".status.json")]
    assert sorted(path.name for path in second.output.parent.iterdir()) == ["first", *left]
    assert str(node) in second.output.read_text() and not list(node.rglob("*.part"))
    assert {one.name for one in (realm, images, backbone, features)} == {
        path.parent.relative_to(node).as_posix() for path in node.glob("*/*/artifact.json")
    }


MAKING = """from cilkit import artifacts

def made(stage, text, **inputs):
    return artifacts.obtain(stage, 1, {}, inputs, lambda work: artifacts.atomic_write(work.path / "text", text))"""


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"artifacts": "copied"}, "artifacts is 'copied'; expected 'shared' or 'fetched'"),
        ({"limit": 0}, "workers is 0; expected 1 or more"),
        ({"address": "ray://head:10001"}, "started on a machine of its cluster, not through 'ray://head:10001'"),
    ],
)
def test_what_does_not_fit_is_said_before_ray_starts(options, sentence):
    with pytest.raises(UserError, match=sentence):
        RayExecutor(**options)


def test_without_ray_it_is_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setenv("CILKIT_ARTIFACTS", str(tmp_path))
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match='needs Ray, which is not installed; pip install .*, or take "local"'):
        RayExecutor()


@pytest.mark.slow  # a cluster of two nodes takes half a minute to start and to lose one
def test_a_lost_node_costs_only_what_runs_there(job, monkeypatch, tmp_path):
    ray = pytest.importorskip("ray", reason="the extra [scale] is not installed")
    from ray.cluster_utils import Cluster

    ray.shutdown()  # of the tests above
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    options = {"num_cpus": 1, "object_store_memory": 80 << 20, "include_log_monitor": False}
    until = f"import pathlib, time\n\nwhile not pathlib.Path('{tmp_path}/go').exists():\n    time.sleep(0.1)"
    monkeypatch.setenv("CILKIT_ARTIFACTS", str(tmp_path / "home"))
    cluster = Cluster(initialize_head=True, head_node_args=options | {"include_dashboard": False, "no_monitor": True})
    try:
        monkeypatch.setenv("CILKIT_ARTIFACTS", str(tmp_path / "node"))
        other = cluster.add_node(**options)
        monkeypatch.setenv("CILKIT_ARTIFACTS", str(tmp_path / "home"))
        executor = RayExecutor(cluster.address, artifacts="fetched")
        try:
            making = [job(f"first{n}", MAKING, f"book.uses(made('s{n}', 'text'))", start=True) for n in (1, 2)]
            assert {status.state for status in outcome(executor, making).values()} == {"ok"}
            assert {path.name for path in (tmp_path / "home").iterdir()} == {"s1", "s2"}
            assert len(list((tmp_path / "node").iterdir())) == 1
            where = f"open('{tmp_path}/' + os.environ['CILKIT_RUN'], 'w').write(artifacts.root().name)"
            source = f"import os\nfrom cilkit import artifacts\n\n{where}"
            jobs = {name: job(name, source, until) for name in ("one", "two")}
            for one in jobs.values():
                assert executor.room(one.needs)
                executor.submit(one, one.given, 1)
            assert not executor.room(Needs())
            begun = time.monotonic()
            while not all((tmp_path / name).exists() and (tmp_path / name).read_text() for name in jobs):
                assert time.monotonic() - begun < 60
                time.sleep(0.1)
            lost = next(name for name in jobs if (tmp_path / name).read_text() == "node")
            cluster.remove_node(other, allow_graceful=False)
            status = collected(executor, 1)[lost]
            assert status.state == "dead" and "was lost while the job ran" in status.sentence
            assert read_status(jobs[lost].output) == status
            assert not executor.room(Needs())
            (tmp_path / "go").touch()
            assert all(status.ok for status in collected(executor, 1).values())
            assert executor.room(Needs()) and outcome(executor, [jobs[lost]], attempt=2)[lost].ok
            assert (tmp_path / lost).read_text() == "home"
        finally:
            executor.close()
    finally:
        cluster.shutdown()
