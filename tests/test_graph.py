"""A sweep as a graph: what comes before what, what is one job, and when a job counts as done."""

import json
import shutil
from dataclasses import replace

import pytest
from houses import house, notebook, sweep

from cilkit import locks
from cilkit.errors import UserError
from cilkit.workbook import graph as graphs
from cilkit.workbook.execute import Status, book_folder, read_status, write_status
from cilkit.workbook.watching import is_open, look

TEXT = "notebook: notebooks/04_run.ipynb\naxes: {backbone: [none, params/03_backbone/birds.yaml]}\n"
TEXT += "seeds: {order_seed: [1, 2]}"


@pytest.fixture
def home(tmp_path, monkeypatch):
    return house(tmp_path / "house", monkeypatch)


def kinds(graph):
    return [job.notebook.stem[:2] for job in graph.jobs]


def test_what_a_parameter_names_comes_before_and_stands_once(home):
    graph = graphs.build(sweep(home, TEXT))
    assert kinds(graph) == ["04", "02", "03", "04", "04", "04"]
    of = {job.label: job for job in graph.jobs}
    images, backbone = of["params/02_images/letters.yaml"], of["params/03_backbone/birds.yaml"]
    assert backbone.after == [images.name] and of["backbone none, order_seed 1"].after == []
    assert [of[f"backbone birds, order_seed {seed}"].after for seed in (1, 2)] == [[backbone.name]] * 2
    assert images.given == {"per_class": 7} and backbone.given == {"epochs": 3}


def test_last_ones_come_after_all_others(home):
    graph = graphs.build(sweep(home, TEXT + "\nthen: [{notebook: notebooks/02_images.ipynb}]"))
    assert kinds(graph)[-1] == "02" and len(graph.jobs[-1].after) == 4


def test_a_name_follows_the_content_and_nothing_else(home):
    before = {job.label: job.name for job in graphs.build(sweep(home, TEXT)).jobs}
    (home / "params/03_backbone/vögel.yaml").write_text("# a word\nepochs: 3.0\n")
    renamed = graphs.build(sweep(home, TEXT.replace("birds.yaml", "vögel.yaml"), "y"))
    assert {job.name for job in renamed.jobs} == set(before.values())
    ledger, first = graphs.Ledger(), graphs.build(sweep(home, TEXT))
    for job in first.jobs:
        twin = next(one for one in renamed.jobs if one.name == job.name)
        assert ledger.expected(job, {}) == ledger.expected(twin, {})  # neither sweep finds the other's job stale
    (home / "params/02_images/letters.yaml").write_text("per_class: 8\n")  # two notebooks up
    after = {
        job.label.replace("vögel", "birds"): job.name
        for job in graphs.build(sweep(home, TEXT.replace("birds", "vögel"))).jobs
    }
    changed = {label for label in before if before[label] != after[label]}
    assert changed == {label for label in before if "none" not in label}


def test_a_default_two_notebooks_up_counts_as_well(home):
    (home / "params/02_images/letters.yaml").write_text("")
    first = [job.name for job in graphs.build(sweep(home, TEXT)).jobs]
    notebook(home, "02_images", "per_class: int = 6", "print(per_class)")
    second = [job.name for job in graphs.build(sweep(home, TEXT)).jobs]
    assert [a == b for a, b in zip(first, second, strict=True)] == [True, False, False, False, True, False]


def test_a_circle_of_files_is_refused(home):
    (home / "params/03_backbone/birds.yaml").write_text("images: params/03_backbone/cars.yaml\n")
    (home / "params/03_backbone/cars.yaml").write_text("images: params/03_backbone/birds.yaml\n")
    with pytest.raises(UserError, match=r"in a circle \(birds.yaml -> cars.yaml -> birds.yaml\)"):
        graphs.build(sweep(home, TEXT))


def test_only_keeps_what_the_chosen_need(home):
    graph = graphs.build(sweep(home, TEXT))
    assert kinds(graph.only(["backbone=none"])) == ["04", "04"]
    assert kinds(graph.only(["backbone=birds,none", "order_seed=1"])) == ["04", "02", "03", "04"]
    assert kinds(graph.only(["03_backbone"])) == ["02", "03"]
    for wrong, says in {"learner=x": "there is no axis 'learner'", "backbone=cars": "no job of x fits"}.items():
        with pytest.raises(UserError, match=says):
            graph.only([wrong])


def finish(job, ledger):
    """What a run that ended well leaves."""
    folder = book_folder(job.output)
    folder.mkdir(parents=True)
    (folder / "book.json").write_text(json.dumps({"figures": [{"file": "a.png"}], "tables": [], "artifacts": []}))
    (folder / "a.png").touch()
    job.output.write_text("{}")
    write_status(
        job.output, Status("ok", "n", job.output.name, job.given, fingerprint=ledger.expected(job, {}), seconds=3)
    )


def test_done_is_what_the_files_say(home):
    graph = graphs.build(sweep(home, TEXT))
    job, ledger = graph.jobs[0], graphs.Ledger(graph.memo)
    assert ledger.state(job)[0] == "to do"
    finish(job, ledger)
    assert ledger.state(job)[0] == "done" and ledger.done(job).seconds == 3
    (book_folder(job.output) / "a.png").unlink()
    assert ledger.done(job) is None
    (book_folder(job.output) / "a.png").touch()
    shutil.rmtree(book_folder(job.output))
    assert ledger.done(job) is None
    write_status(job.output, replace(read_status(job.output), book=False))  # of a notebook that keeps no book
    assert ledger.done(job) is not None
    notebook(
        home, "04_run", 'learner: str = "finetune"\norder_seed: int = 1\nbackbone: str = "none"', "print('changed')"
    )
    graph = graphs.build(sweep(home, TEXT.replace("none", "node")))
    assert graphs.Ledger().state(job)[0] == "stale"


def test_a_running_job_is_one_whose_lock_a_living_process_holds(home):
    graph = graphs.build(sweep(home, TEXT))
    job, ledger = graph.jobs[0], graphs.Ledger(graph.memo)
    job.output.parent.mkdir(parents=True)
    write_status(job.output, Status("running", "n", job.output.name))
    assert ledger.state(job)[0] == "stopped"
    with locks.claim(graphs.lock_of(job)):
        assert ledger.state(job)[0] == "running"
    write_status(job.output, Status("failed", "n", job.output.name))
    assert ledger.state(job)[0] == "failed"


def test_a_saved_sweep_lists_its_jobs(home):
    graph = graphs.build(sweep(home, TEXT))
    saved = json.loads(graphs.save(graph).read_text())
    assert saved["sweep"] == "params/sweeps/x.yaml" and len(saved["jobs"]) == 6
    assert saved["jobs"][0]["labels"] == {"backbone": "none", "order_seed": "1"}
    assert saved["jobs"][0]["output"] == f"reports/cells/{graph.jobs[0].name}.ipynb"


def test_who_looks_on_sees_what_a_decided_sweep_does_not_need(home):
    graph = graphs.build(sweep(home, TEXT))
    graphs.save(graph)
    assert {line.state for line in look(graph)} == {"to do"} and is_open(look(graph))
    graphs.save(graph, enough=0)
    spare = {line.job.label for line in look(graph) if line.state == "not needed"}
    assert spare == {"backbone none, order_seed 2", "backbone birds, order_seed 2"}
