"""Painting by Ray actors: one killed in the middle changes no byte, and its place is filled."""

import json
import os
import signal
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor, wait
from itertools import count
from types import SimpleNamespace

import pytest
from squares import files_of

from cilkit.errors import UserError
from cilkit.realms import foresee
from cilkit.synthesis import make_plan, paint_plan, ray_crew


@pytest.fixture(scope="module")
def plan():
    return make_plan(foresee("ornaments and shapes")[0], 4, seed=5, batch_size=8)  # 188 images, 24 batches


@pytest.fixture(scope="module")
def alone(plan, tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    paint_plan(plan, "font-renderings", folder, shard_size=32)
    return files_of(folder)


@pytest.mark.slow  # Ray takes ten seconds and more to start
def test_one_of_two_ray_workers_killed_gives_the_same_bytes(plan, alone, tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    ray = pytest.importorskip("ray", reason="the extra [scale] is not installed")
    killed = []

    def kill(done, total):
        claims = sorted((tmp_path / "scratch").glob("*/claims/0*.claim"))
        if done >= 48 and claims and not killed:
            killed.append(json.loads(claims[0].read_text())["pid"])
            os.kill(killed[0], signal.SIGKILL)

    with tempfile.TemporaryDirectory(prefix="r") as short:  # Ray's sockets lie in it, and their names have a limit
        options = {"include_dashboard": False, "log_to_driver": False, "object_store_memory": 80 << 20}
        ray.init("local", num_cpus=2, num_gpus=0, _temp_dir=short, _node_ip_address="127.0.0.1", **options)
        try:
            options = {"workers": 2, "shard_size": 32, "executor": "ray"}
            measured = paint_plan(plan, "font-renderings", tmp_path, progress=kill, **options)
        finally:
            ray.shutdown()
    assert killed and killed[0] != os.getpid()
    assert 188 <= measured["images"] <= 188 + 8  # one batch
    assert files_of(tmp_path) == alone


class Died(Exception):
    pass


class Actor:
    """A hand in a thread of its own."""

    def __init__(self, hand, dies):
        self.hand, self.dies, self.thread = hand, dies, ThreadPoolExecutor(1)
        self.paint = SimpleNamespace(remote=lambda: self.thread.submit(self._paint))

    def _paint(self):
        if self.dies():
            self.end()
            raise Died("the worker died")
        return self.hand.paint()

    def end(self):
        self.hand._painted.close()  # which lets go of its claims, as a death does


class FakeRay:
    """What the driver uses of Ray, with the actors in this process; the calls numbered in `deaths` kill theirs."""

    exceptions = SimpleNamespace(RayActorError=Died)

    def __init__(self, deaths=(), cards=0):
        self.deaths, self.cards, self.calls, self.hired, self.killed, self.shares = deaths, cards, count(1), 0, 0, set()
        self.connected = self.left = False

    def is_initialized(self):
        return False

    def init(self, address, **options):
        self.connected = address

    def shutdown(self):
        self.left = True

    def cluster_resources(self):
        return {"CPU": 2.0, "GPU": float(self.cards)}

    def remote(self, kind):
        def hire(folder):
            self.hired += 1
            return Actor(kind(folder), lambda: next(self.calls) in self.deaths)

        def options(num_cpus, num_gpus, runtime_env):
            self.shares.add(num_gpus)
            assert runtime_env["env_vars"]["OMP_NUM_THREADS"] == "1"
            return SimpleNamespace(remote=hire)

        return SimpleNamespace(options=options)

    def wait(self, calls):
        done, waiting = wait(calls, timeout=30, return_when="FIRST_COMPLETED")
        return [done.pop()], [*done, *waiting]

    def get(self, call):
        return call.result()

    def kill(self, actor):
        self.killed += 1
        actor.thread.submit(actor.end)


@pytest.fixture
def fake(monkeypatch):
    def install(**options) -> FakeRay:
        ray = FakeRay(**options)
        monkeypatch.setitem(sys.modules, "ray", ray)
        return ray

    return install


def test_dead_actors_are_replaced(plan, alone, tmp_path, fake):
    ray = fake(deaths=(4, 9))
    paint_plan(plan, "font-renderings", tmp_path, workers=2, shard_size=32, executor="ray")
    assert ray.hired == 4 and ray.killed == 2 and ray.connected == "local" and ray.left and ray.shares == {0}
    assert files_of(tmp_path) == alone


def test_actors_that_keep_dying_are_one_sentence(plan, tmp_path, fake):
    ray = fake(deaths=range(1000))
    with pytest.raises(UserError, match="actors ended 7 times, the last one by the worker died; what is painted is"):
        paint_plan(plan, "font-renderings", tmp_path, workers=2, executor="ray", address="head:6379")
    assert ray.hired == 2 + 6 and ray.connected == "head:6379" and ray.left


def test_an_actors_error_keeps_its_meaning(plan, tmp_path, fake, monkeypatch):
    fake()
    monkeypatch.setattr(ray_crew, "work", lambda job, painter: iter([][1]))
    with pytest.raises(UserError, match=r"painting failed in a worker \(IndexError: .*what is painted is kept"):
        paint_plan(plan, "font-renderings", tmp_path, workers=2, executor="ray")


@pytest.mark.parametrize("cards, workers, share", [(0, 3, 0), (4, 2, 1), (2, 3, 0.5), (1, 3, 1 / 3)])
def test_gpus_are_shared_out(plan, tmp_path, fake, cards, workers, share):
    ray = fake(cards=cards)
    paint_plan(plan.head(40), "font-renderings", tmp_path, workers=workers, shard_size=8, executor="ray")
    assert ray.shares == {share}


def test_without_ray_or_a_cluster_it_is_one_sentence(plan, tmp_path, fake, monkeypatch):
    ray = fake()

    def nobody(address, **options):
        raise ConnectionError("no one there\nTraceback")

    ray.init = nobody
    with pytest.raises(UserError, match=r"no Ray cluster answers at 'head:6379' \(no one there\)"):
        paint_plan(plan, "font-renderings", tmp_path, executor="ray", address="head:6379")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match='needs Ray, which is not installed; pip install -e ".*scale'):
        paint_plan(plan, "font-renderings", tmp_path, executor="ray")
