"""Sweeps that are killed, starved and started twice end in the bytes of one that was left alone."""

import ctypes
import functools
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import made_jobs
import psutil
import pytest
from houses import BOOK, notebook

import cilkit
from cilkit.artifacts import sha256_of

PACKAGE = Path(cilkit.__file__).parent.parent

LIMIT = 300  # seconds until a sweep counts as stuck
GONE = 20  # seconds until a kernel without a driver counts as an orphan; it looks every second
LEFTOVERS = (".lock", ".tmp")

MICRO = '''
"""What the notebooks of this house make: small artifacts in pieces, each kept when their maker is killed."""

import hashlib
import json
import os
import time

from cilkit import artifacts
from cilkit.workbook.parameters import load_params

HOME = artifacts.repository()


def note(event):
    handle = os.open(os.environ["RUNS_NOTED"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(handle, f"{event} {os.environ['CILKIT_RUN']}\\n".encode())  # a short line is written whole
    os.close(handle)


def pieces(work, content):
    """A text ends with a digest of the piece before it, so that a torn one would show in what follows."""
    before = b""
    for name, found in content.items():
        path = work.path / name
        if not path.exists():
            time.sleep(0.02)
            artifacts.atomic_write(path, found + before if name.endswith(".txt") else found)
        before = hashlib.sha256(path.read_bytes()).hexdigest().encode()


def images(per_class):
    content = {f"image_{n}.txt": bytes([65 + n]) * 20000 for n in range(per_class)}
    return artifacts.obtain("images", 1, {"per_class": per_class}, {}, lambda work: pieces(work, content))


def backbone(params, epochs):
    inputs = {"images": images(**load_params(HOME / params))}
    content = {f"epoch_{n}.txt": inputs["images"].digest.encode() for n in range(epochs)}
    return artifacts.obtain("backbone", 1, {"epochs": epochs}, inputs, lambda work: pieces(work, content))


def run(params, learner, order_seed):
    given = load_params(HOME / params)
    inputs = {"backbone": backbone(given["images"], given["epochs"])}
    template = HOME / "template"
    files = sorted(path for path in template.rglob("*") if path.is_file() and path.name != "run.json")
    content = {path.relative_to(template).as_posix(): path.read_bytes() for path in files}
    settings = json.loads((template / "run.json").read_text()) | {"learner": learner}
    settings["stream"]["order_seed"] = order_seed
    content |= {"run.json": json.dumps(settings).encode(), "last.txt": learner.encode()}
    identity = {"learner": learner, "order_seed": order_seed}
    return artifacts.obtain("run", 1, identity, inputs, lambda work: pieces(work, content))
'''
BEGIN = "import micro\n\nmicro.note('start')"
MAKE = "thing = micro.{}\nbook.uses(thing)\nbook.record(files=len(thing.files))\nmicro.note('end')"
FIGURE = """import pandas as pd
from matplotlib.figure import Figure

table = pd.DataFrame({"epoch": range(epochs), "loss": [1 / (1 + epoch) for epoch in range(epochs)]})
figure = Figure((2, 1))
figure.subplots().plot(table["loss"])
book.figure(figure, "loss", table=table, caption="a < b")
book.table(table, "losses")"""
LETTERS, BIRDS, CARS = "params/02_images/letters.yaml", "params/03_backbone/birds.yaml", "params/03_backbone/cars.yaml"
FILES = {
    LETTERS: "per_class: 6",
    BIRDS: f"images: {LETTERS}\nepochs: 3",
    CARS: f"images: {LETTERS}\nepochs: 4",
    "params/sweeps/few.yaml": "notebook: notebooks/04_run.ipynb\naxes: {learner: [icarl, slca]}\n",
    "params/sweeps/grid.yaml": "notebook: notebooks/04_run.ipynb\nseeds: {order_seed: [1, 2]}\n"
    f"axes: {{learner: [finetune, icarl, slca], backbone: [{BIRDS}, {CARS}]}}\n",
    "params/sweeps/trivial.yaml": "notebook: notebooks/05_trivial.ipynb\nseeds: {seed: [1, 2, 3]}\n"
    f"axes: {{a: {list(range(12))}}}\n",
}


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """The files of a run, which cells copy piece by piece."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CILKIT_ARTIFACTS", str(tmp_path_factory.mktemp("template")))
        folder = made_jobs.run_artifact().path
    (folder / "artifact.json").unlink()
    (folder / "measured.json").unlink()
    return folder


class House:
    """A repository of its own in `folder`, and the processes that work in it."""

    def __init__(self, folder: Path, template: Path):
        self.folder, self.noted, self.log = folder, folder.with_name(f"{folder.name}.runs"), folder.with_suffix(".log")
        (folder / "cilkit").mkdir(parents=True)
        (folder / "cilkit" / "artifacts.py").touch()  # by which a repository is known
        shutil.copytree(template, folder / "template")
        backbone = f'images: str = "{LETTERS}"\nepochs: int = 1'
        run = f'learner: str = "x"\norder_seed: int = 0\nbackbone: str = "{BIRDS}"'
        notebook(folder, "02_images", "per_class: int = 3", BOOK, BEGIN, MAKE.format("images(per_class)"))
        notebook(folder, "03_backbone", backbone, BOOK, BEGIN, FIGURE, MAKE.format("backbone(images, epochs)"))
        notebook(folder, "04_run", run, BOOK, BEGIN, MAKE.format("run(backbone, learner, order_seed)"))
        notebook(folder, "05_trivial", "a: int = 0\nseed: int = 0", "print(a, seed)")
        (folder / "notebooks" / "micro.py").write_text(MICRO)
        for name, text in FILES.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)

    def start(self, name: str, *options: str) -> subprocess.Popen:
        environment = os.environ | {"CILKIT_ARTIFACTS": f"{self.folder}/artifacts", "RUNS_NOTED": str(self.noted)}
        environment["PYTHONPATH"] = str(PACKAGE)  # the house's own folder `cilkit` is only a mark
        command = [sys.executable, "-P", "-m", "cilkit.cli", "sweep", f"params/sweeps/{name}.yaml", *options]
        with open(self.log, "ab") as log:
            return subprocess.Popen(
                command, cwd=self.folder, env=environment, stdout=log, stderr=log, start_new_session=True
            )

    def finish(self, process: subprocess.Popen, code: int = 0) -> bool:
        assert process.wait(timeout=LIMIT) == code, self.log.read_text()[-3000:]
        return True

    def processes(self) -> list[psutil.Process]:
        """Everything alive that works with this house's artifacts."""
        found = []
        for process in psutil.process_iter():
            try:
                ours = process.environ().get("CILKIT_ARTIFACTS") == f"{self.folder}/artifacts"
                if ours and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def kernels(self) -> list[psutil.Process]:
        found = []
        for process in self.processes():
            try:
                found += [process] if "ipykernel_launcher" in process.cmdline() else []
            except psutil.Error:
                continue
        return found

    def kill_all(self, driver: subprocess.Popen) -> None:
        driver.kill()
        driver.wait()
        while found := self.processes():
            for process in found:
                try:
                    process.kill()
                except psutil.Error:
                    continue

    def is_empty(self) -> bool:
        """Whether no process is left, soon."""
        deadline = time.monotonic() + GONE
        while self.processes() and time.monotonic() < deadline:
            time.sleep(0.1)
        return not self.processes()

    def events(self) -> list[tuple[str, str]]:
        """("start" or "end", job), in the order in which notebooks came there."""
        return [tuple(line.split()) for line in self.noted.read_text().splitlines()] if self.noted.exists() else []

    def starts(self) -> Counter:
        return Counter(job for event, job in self.events() if event == "start")

    def states(self) -> dict[str, str]:
        found = {}
        for path in (self.folder / "reports" / "cells").glob("*.status.json"):
            found[path.name.removesuffix(".status.json")] = json.loads(path.read_text())["state"]
        return found

    def finished(self) -> dict[str, int]:
        """Job that is finished -> how often it was begun until now."""
        starts = self.starts()
        return {job: starts[job] for job, state in self.states().items() if state == "ok"}

    def snapshot(self) -> dict[str, str]:
        """Every file that is a result, with its hash; what clocks and hosts decide is left out."""
        files = [p for top in ("artifacts", "reports/cells") for p in (self.folder / top).rglob("*") if p.is_file()]
        leftover = [path for path in files if path.suffix in LEFTOVERS or ".part" in str(path)]
        assert not leftover, leftover
        clocked = ("measured.json", ".ipynb", ".log", ".status.json")
        kept = {p.relative_to(self.folder).as_posix(): sha256_of(p) for p in files if not p.name.endswith(clocked)}
        executed = {p.relative_to(self.folder).as_posix(): "" for p in files if p.name.endswith(clocked[1:])}
        assert set(self.states().values()) == {"ok"}
        return kept | executed


class Eyes:
    """Looks on all the time: what has a final name is whole."""

    def __init__(self, folder: Path):
        self.folder, self.faults, self.looks, self.over = folder, [], 0, threading.Event()
        self.thread = threading.Thread(target=self.watch, daemon=True)

    def watch(self) -> None:
        while not self.over.wait(0.05):
            self.looks += 1
            for place, _, names in os.walk(self.folder):
                for name in names:
                    if name.endswith((".json", ".ipynb")) and not name.endswith(".part.ipynb"):
                        self.look(Path(place) / name)

    def look(self, path: Path) -> None:
        try:
            content = json.loads(path.read_text())
            if path.name == "artifact.json" and path.parent.suffix != ".part":
                wrong = [f for f in content["files"] if (path.parent / f["path"]).stat().st_size != f["bytes"]]
                self.faults += [f"{path}: {wrong}"] if wrong else []
        except FileNotFoundError:
            if path.name == "artifact.json" and path.exists():
                self.faults.append(f"{path}: a file of it is missing")
        except ValueError as error:
            self.faults.append(f"{path}: {error}")

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *error):
        self.over.set()
        self.thread.join()
        assert self.looks and not self.faults, self.faults


@pytest.fixture
def house(tmp_path, template):
    made = House(tmp_path / "house", template)
    yield made
    for process in made.processes():
        process.kill()


def undisturbed(tmp_path_factory, template, name):
    made = House(tmp_path_factory.mktemp("undisturbed") / "house", template)
    made.finish(made.start(name, "--workers", "2"))
    assert made.is_empty() and set(made.starts().values()) == {1}
    return made.snapshot()


@pytest.fixture(scope="module")
def few(tmp_path_factory, template):
    return undisturbed(tmp_path_factory, template, "few")


@pytest.fixture(scope="module")
def grid(tmp_path_factory, template):
    return undisturbed(tmp_path_factory, template, "grid")


def wait_for(condition, process):
    deadline = time.monotonic() + LIMIT
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline, "it ended before it could be disturbed"
        time.sleep(0.02)


def nothing_ran_twice(house, *finished):
    """finished: jobs at some moments, with how often each had been begun by then."""
    starts = house.starts()
    for then in finished:
        assert {job: starts[job] for job in then} == then


def test_killed_once_in_the_middle(house, few):
    assert {name.rpartition("/")[2] for name in few} >= {"artifact.json", "book.json", "loss.png", "losses.csv"}
    assert len([name for name in few if name.startswith("reports/cells/04_run") and name.endswith("result.json")]) == 2
    with Eyes(house.folder):
        driver = house.start("few", "--workers", "2")
        wait_for(lambda: list(house.folder.glob("artifacts/run/*.part/after_01/*.npy")), driver)
        house.kill_all(driver)
        finished = house.finished()
        assert {job[:2] for job in finished} == {"02", "03"} and house.finish(house.start("few", "--workers", "2"))
    assert house.is_empty() and house.snapshot() == few
    nothing_ran_twice(house, finished)
    attempts = [json.loads(p.read_text())["attempts"] for p in house.folder.glob("artifacts/run/*/measured.json")]
    assert max(attempts) == 2  # it went on from the pieces that were there


@pytest.mark.slow
@pytest.mark.parametrize("number", range(4))
def test_killed_at_random_moments(house, grid, number):
    """Five moments each: a random event of the notebooks and a random pause behind it, before the first one too."""
    chance = random.Random(number)
    moments = [0, *sorted(chance.sample(range(1, 26), 4))]
    finished = []
    with Eyes(house.folder):
        driver = house.start("grid", "--workers", "2")
        for moment in moments:
            wait_for(lambda moment=moment: len(house.events()) >= moment, driver)
            time.sleep(chance.uniform(0, 1.5))
            what = chance.choice(["driver", "kernel", "all"])
            if what == "kernel" and (kernels := house.kernels()):
                chance.choice(kernels).kill()  # its driver sees to it
                continue
            if what == "driver":
                driver.kill()  # its kernels may still be alive when the next one begins
                driver.wait()
            else:
                house.kill_all(driver)
            finished.append(house.finished())
            driver = house.start("grid", "--workers", "2")
        house.finish(driver)
    assert house.is_empty() and house.snapshot() == grid
    nothing_ran_twice(house, *finished)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets others than init adopt a process")
@pytest.mark.parametrize("pause", [0, 0.3, 0.6, 1])
def test_a_kernel_whose_driver_dies_while_it_starts_ends_whoever_adopts_it(house, pause):
    adopt = functools.partial(ctypes.CDLL(None).prctl, 36)  # PR_SET_CHILD_SUBREAPER
    try:
        adopt(1, 0, 0, 0)
        driver = house.start("few")
        wait_for(house.kernels, driver)
        time.sleep(pause)
        driver.kill()
        driver.wait()
        assert house.is_empty()
    finally:
        adopt(0, 0, 0, 0)


@pytest.mark.slow
@pytest.mark.parametrize("killed", [False, True])
def test_two_drivers_share_the_work(house, grid, killed):
    with Eyes(house.folder):
        drivers = [house.start("grid", "--workers", "2") for _ in range(2)]
        if killed:
            wait_for(lambda: len(house.events()) >= 8, drivers[0])
            drivers[0].kill()
            drivers[0].wait()
            finished = house.finished()
        for driver in drivers[killed:]:
            house.finish(driver)
    assert house.is_empty() and house.snapshot() == grid
    if killed:
        nothing_ran_twice(house, finished)
    else:
        assert set(house.starts().values()) == {1}
    assert "another driver runs it" in house.log.read_text()


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "house"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)], capture_output=True)
    if done.returncode:
        pytest.skip("a small file system to fill can only be mounted by root")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.slow
def test_a_full_disk_stops_the_sweep_and_room_lets_it_go_on(small_disk, house, grid):
    ballast = small_disk / "ballast"
    with Eyes(house.folder):
        driver = house.start("grid", "--workers", "2")
        wait_for(lambda: list(house.folder.glob("artifacts/run/*.part/after_01/*.npy")), driver)
        fill(ballast)
        house.finish(driver, code=2)
        said = house.log.read_text()
        assert said.count("cilkit: the disk is full, so nothing more was started: free some space") == 1
        assert "Traceback" not in said and house.is_empty()
        finished, begun = house.finished(), len(house.starts())
        assert finished and begun <= len(finished) + 4  # what ran at that moment, and no more
        fill(ballast)
        driver = house.start("grid", "--workers", "2")
        assert driver.wait(timeout=LIMIT) in (1, 2) and len(house.starts()) == begun
        said = house.log.read_text().removeprefix(said)
        assert said.count("the disk is full") and "Traceback" not in said
        ballast.unlink()
        house.finish(house.start("grid", "--workers", "2"))
    assert house.is_empty() and house.snapshot() == grid
    nothing_ran_twice(house, finished)


def fill(path):
    """A file that takes all the room that there is."""
    with pytest.raises(OSError, match="No space left"), open(path, "ab", buffering=0) as file:
        while True:
            file.write(bytes(512))


@pytest.mark.slow
@pytest.mark.parametrize("number", range(5))
def test_36_runs_with_12_at_once(house, number):
    house.finish(house.start("trivial", "--workers", "12"))
    assert list(house.states().values()) == ["ok"] * 36 and house.is_empty()
    assert "36 of 36 done" in house.log.read_text() and ": started" in house.log.read_text()
    assert house.log.read_text().count(": started") == 36  # none was tried again


@pytest.mark.slow
def test_a_ray_node_that_is_lost_costs_only_its_running_cells(house, grid, monkeypatch):
    pytest.importorskip("ray", reason="the extra [scale] is not installed")
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RUNS_NOTED", str(house.noted))
    monkeypatch.setenv("PYTHONPATH", str(PACKAGE))
    node = {"num_cpus": 2, "object_store_memory": 80 << 20}
    with tempfile.TemporaryDirectory(prefix="r", ignore_cleanup_errors=True) as short:  # names of sockets have a limit
        monkeypatch.setenv("RAY_TMPDIR", short)
        head = node | {"include_dashboard": False}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        try:
            lost = cluster.add_node(**node)
            with Eyes(house.folder):
                driver = house.start("grid", "--executor", "ray", "--address", cluster.address)
                wait_for(lambda: len(house.events()) >= 9, driver)  # cells of the grid run on both nodes
                wait_for(lambda: len(house.kernels()) > 2, driver)
                finished = house.finished()
                cluster.remove_node(lost, allow_graceful=False)
                house.finish(driver)
                assert house.is_empty() and house.snapshot() == grid
                nothing_ran_twice(house, finished)
                assert "was lost while the job ran" in house.log.read_text()
                begun = len(house.events())
                house.finish(house.start("grid"))  # what Ray's nodes did is done here as well
                assert len(house.events()) == begun
        finally:
            cluster.shutdown()
