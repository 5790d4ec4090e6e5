"""The driver of a graph of jobs, with executors that only pretend: order, claims, retries, deciding, stopping."""

import json
import threading

import pytest
from houses import house, sweep

from cilkit import locks
from cilkit.errors import Stopped, UserError
from cilkit.workbook import graph as graphs
from cilkit.workbook.driving import Driver
from cilkit.workbook.execute import Status, book_folder, read_status, write_status
from cilkit.workbook.jobs import Job, Needs
from cilkit.workbook.local import LocalExecutor

TEXT = "notebook: notebooks/04_run.ipynb\naxes: {backbone: [none, params/03_backbone/birds.yaml]}\n"
TEXT += "seeds: {order_seed: [1, 2, 3]}\nneeds: {gpus: 0}"


class Pretend:
    """Ends every job at once, in so many places; `plan` says by label how: a state, or a list of states by attempt."""

    def __init__(self, plan=None, places=1, ledger=None):
        self.plan, self.places, self.ledger = plan or {}, places, ledger or graphs.Ledger()
        self.begun, self.open, self.given, self.at_once, self.closed = [], [], [], 0, False

    def room(self, needs):
        return len(self.open) < self.places

    def submit(self, job, given, attempt):
        assert locks.holder(graphs.lock_of(job)) and locks.claim(graphs.lock_of(job)) is None
        self.begun.append(job.label)
        self.given.append(given)
        self.open.append((job, given, attempt))
        self.at_once = max(self.at_once, len(self.open))

    def finished(self, timeout):
        found = [(job, self.end(job, given, attempt)) for job, given, attempt in self.open]
        self.open = []
        return found

    def end(self, job, given, attempt):
        state = self.plan.get(job.label, "ok")
        state = state if isinstance(state, str) else state[attempt - 1]
        status = Status(state.partition(":")[0], "n", job.output.name, given, attempt=attempt)
        status.sentence = state.partition(":")[2]
        status.fingerprint = self.ledger.expected(job, {k: v for k, v in given.items() if job.given.get(k) != v})
        book_folder(job.output).mkdir(exist_ok=True)
        (book_folder(job.output) / "book.json").write_text('{"figures": [], "tables": [], "artifacts": []}')
        job.output.write_text("{}")
        write_status(job.output, status)
        return status

    def stop(self, reason="interrupted"):
        pass

    def close(self):
        self.closed = True


@pytest.fixture
def graph(tmp_path, monkeypatch):
    home = house(tmp_path / "house", monkeypatch)
    return graphs.build(sweep(home, TEXT))


def drive(graph, executor=None, **options):
    said = []
    driver = Driver(graph.jobs, executor or Pretend(), log=said.append, **options)
    driver.said = said
    return driver


def states(driver):
    return {entry.job.label: entry.state for entry in driver.entries.values()}


BIRDS, LETTERS = "params/03_backbone/birds.yaml", "params/02_images/letters.yaml"


def test_jobs_start_in_fair_order_each_after_what_it_needs_and_once(graph):
    executor = Pretend()
    driver = drive(graph, executor)
    assert driver.run() and executor.closed and set(states(driver).values()) == {"done"}
    seeds = [label[-1] for label in executor.begun if "order_seed" in label]
    assert seeds == sorted(seeds) and len(executor.begun) == len(set(executor.begun)) == 8
    assert (
        executor.begun.index(LETTERS)
        < executor.begun.index(BIRDS)
        < executor.begun.index("backbone birds, order_seed 1")
    )
    assert not list(graphs.cells_folder().glob("*.lock"))
    again = Pretend()
    assert drive(graph, again).run() and again.begun == []
    assert drive(graph, again, again=True).run() and len(again.begun) == 8


def test_as_many_at_once_as_there_is_room_for(graph):
    executor = Pretend(places=3)
    assert drive(graph, executor).run() and executor.at_once == 3


def test_what_needs_a_failed_job_is_not_run_and_the_rest_is(graph):
    driver = drive(graph, Pretend({BIRDS: "failed:ZeroDivisionError: x"}))
    assert not driver.run()
    found = states(driver)
    assert found[LETTERS] == "done" and found[BIRDS] == "failed"
    assert {label: state for label, state in found.items() if "backbone birds" in label} == dict.fromkeys(
        [f"backbone birds, order_seed {seed}" for seed in (1, 2, 3)], "not run"
    )
    assert found["backbone none, order_seed 3"] == "done"
    status = next(
        entry.status for label, entry in zip(found, driver.entries.values(), strict=True) if "birds, " in label
    )
    assert "03_backbone-" in status.sentence and "did not finish" in status.sentence


def test_a_dead_kernel_is_tried_again_and_an_error_of_the_code_is_not(graph):
    label = "backbone none, order_seed 1"
    executor = Pretend({label: ["dead:killed.", "dead:killed.", "ok"], LETTERS: ["failed:NameError: y", "ok"]})
    driver = drive(graph, executor)
    assert not driver.run()
    assert executor.begun.count(label) == 3 and executor.begun.count(LETTERS) == 1
    assert states(driver)[label] == "done" and states(driver)[LETTERS] == "failed"
    gone = Pretend({label: ["dead:killed."] * 9})
    driver = drive(graph, gone, again=True)
    assert not driver.run() and gone.begun.count(label) == 3 and states(driver)[label] == "failed"


def test_memory_that_ran_out_is_tried_once_with_half_the_batch_and_says_so(graph):
    label = "backbone none, order_seed 1"
    executor = Pretend({label: ["memory:CUDA out of memory", "ok"]})
    driver = drive(graph, executor)
    assert driver.run()
    tries = [given.get("batch_size") for given, one in zip(executor.given, executor.begun, strict=True) if one == label]
    assert tries == [None, 4]
    job = next(job for job in graph.jobs if job.label == label)
    status = read_status(job.output)
    assert status.changed == {"batch_size": 4} and "batch_size 8 -> 4" in status.notes[0]
    again = Pretend()
    assert drive(graph, again).run() and again.begun == []  # the halved one counts as done
    twice = Pretend({label: ["memory:x", "memory:x", "ok"]})
    driver = drive(graph, twice, again=True)
    assert not driver.run() and twice.begun.count(label) == 2


def test_resuming_leaves_what_failed_by_its_own_fault_until_it_changes(graph):
    label = "backbone none, order_seed 1"
    drive(graph, Pretend({label: "failed:NameError: y"})).run()
    kept = Pretend()
    assert not drive(graph, kept, keep_failed=True).run() and kept.begun == []
    assert drive(graph, kept).run() and kept.begun == [label]
    with pytest.raises(UserError, match="the disk is full"):
        drive(graph, Pretend({label: "failed:the disk is full"}), again=True).run()
    resumed = Pretend()
    assert drive(graph, resumed, keep_failed=True).run() and label in resumed.begun


def test_a_full_disk_stops_the_sweep_instead_of_failing_every_job(graph):
    executor = Pretend({"backbone none, order_seed 1": "failed:the disk under x is full while making y"})
    with pytest.raises(UserError, match="the disk is full, so nothing more was started"):
        drive(graph, executor).run()
    assert len(executor.begun) < 8


def test_a_job_that_another_driver_holds_is_waited_for_and_taken_as_it_ends(graph):
    other = Pretend()
    job = graph.jobs[0]
    job.output.parent.mkdir(parents=True)
    held = locks.claim(graphs.lock_of(job))

    def ended():
        other.end(job, job.given, 1)
        held.release()

    timer = threading.Timer(1.0, ended)
    timer.start()
    executor = Pretend()
    driver = drive(graph, executor)
    assert driver.run()
    timer.join()
    assert job.label not in executor.begun and len(executor.begun) == 7
    assert any("another driver runs it" in line for line in driver.said)


def test_a_failure_of_another_driver_is_not_tried_a_second_time(graph):
    job, other = graph.jobs[0], Pretend({graph.jobs[0].label: "failed:NameError: z"})
    job.output.parent.mkdir(parents=True)
    held = locks.claim(graphs.lock_of(job))
    timer = threading.Timer(0.5, lambda: (other.end(job, job.given, 1), held.release()))
    timer.start()
    executor = Pretend()
    assert not drive(graph, executor).run()
    timer.join()
    assert job.label not in executor.begun


def test_a_sweep_ends_when_it_is_decided_but_only_after_whole_seeds(graph):
    asked = []

    def decided(names):
        asked.append(len(names))
        return len(names) >= 4, [f"{len(names)} cells seen"]

    executor, at = Pretend(), []
    driver = drive(graph, executor, decided=decided, enough=at.append)
    assert driver.run() and asked == [2, 4] and at == [1]
    assert states(driver)["backbone none, order_seed 3"] == "not needed"
    assert not [label for label in executor.begun if label.endswith("3")]
    assert any("4 cells seen" in line for line in driver.said) and any("decided" in line for line in driver.said)
    again = Pretend()  # and is not begun anew by the next one
    assert drive(graph, again, decided=decided).run() and again.begun == []


def test_an_interrupt_starts_nothing_more_and_keeps_what_is_done(graph):
    class Interrupted(Pretend):
        def finished(self, timeout):
            if len(self.begun) == 2 and self.open:
                self.places = 0
                found = super().finished(timeout)
                driver._interrupted()
                return found
            return super().finished(timeout)

    executor = Interrupted()
    driver = drive(graph, executor)
    with pytest.raises(Stopped, match="run again to go on"):
        driver.run()
    assert sorted(states(driver).values()) == ["done"] * 2 + ["not run"] * 6


def test_what_can_never_run_is_said_before_anything_runs(graph, tmp_path):
    for job in graph.jobs:
        job.needs = Needs(gpus=2.0)
    driver = drive(graph, LocalExecutor(gpus=["0"]))
    with pytest.raises(UserError, match=r"a job needs 2 GPUs and there are 1 \(0\)"):
        driver.run()
    assert not graphs.cells_folder().exists()
    with pytest.raises(UserError, match="workers is 0"):
        LocalExecutor(workers=0)


def placed(executor, *needs):
    """Which GPUs jobs with these needs get, one after the other; None where there is no room."""
    found = []
    for number, one in enumerate(needs):
        job = Job(str(number), None, {}, None, needs=one)
        if not executor.room(one):
            found.append(None)
            continue
        executor.submit(job, {}, 1)
        found.append(executor.environments[-1])
    return found


class Places(LocalExecutor):
    """Notes what each job would get, and runs nothing."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.environments = []

    def _run(self, job, given, attempt, environment):
        self.environments.append(environment)

    def submit(self, job, given, attempt):
        super().submit(job, given, attempt)
        self._pool.submit(lambda: None).result()


def test_gpus_are_whole_or_shared_and_never_promised_twice():
    executor = Places(workers=9, gpus=["3", "5"])
    half, one, none = Needs(gpus=0.5), Needs(gpus=1.0), Needs(gpus=0.0)
    found = placed(executor, half, half, one, half, none)
    assert [e and e["CUDA_VISIBLE_DEVICES"] for e in found] == ["3", "3", "5", None, ""]
    executor.close()
    executor = Places(workers=9, gpus=["0", "1", "2"])
    found = placed(executor, Needs(gpus=2.0), Needs(gpus=2.0), one)
    assert [e and e["CUDA_VISIBLE_DEVICES"] for e in found] == ["0,1", None, "2"]
    executor.close()


def test_kernels_share_the_cores(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    executor = Places()
    found = placed(executor, Needs(cpus=6, gpus=0.0), Needs(cpus=4, gpus=0.0), Needs(cpus=2, gpus=0.0))
    assert [e and e["OMP_NUM_THREADS"] for e in found] == ["6", None, "2"]
    executor.close()
    executor = Places(workers=4)
    (found,) = placed(executor, Needs(gpus=0.0))
    assert found == {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE"}
    executor.close()
    executor = Places()  # a job that wants more than there is runs alone
    assert [e is not None for e in placed(executor, Needs(cpus=99, gpus=0.0), Needs(gpus=0.0))] == [True, False]
    executor.close()


def test_a_job_that_raises_ends_with_a_status(graph, monkeypatch):
    def broken(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("cilkit.workbook.local.run_notebook", broken)
    with pytest.raises(UserError, match="the disk is full"):
        drive(graph, LocalExecutor(workers=1)).run()
    monkeypatch.setattr("cilkit.workbook.local.run_notebook", lambda *a, **o: json.loads("{"))
    driver = drive(graph, LocalExecutor(workers=1))
    assert not driver.run() and "JSONDecodeError" in next(iter(driver.entries.values())).status.sentence
