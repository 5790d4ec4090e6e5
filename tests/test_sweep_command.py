"""`cilkit sweep` as it is typed: what it says, its exit status, what it tries again; its table and its estimates."""

import contextlib
import io
import json
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from houses import BOOK, house, notebook, sweep

from cilkit import artifacts
from cilkit.cli import main
from cilkit.workbook import graph as graphs
from cilkit.workbook import local, watching
from cilkit.workbook.estimates import Cost, Estimates, in_all
from cilkit.workbook.execute import Status, book_folder, read_status, write_status
from cilkit.workbook.jobs import Job, Needs

CELL = """import os
from pathlib import Path

marker = Path(f"was_here_{what}")
if what == "killed" and not marker.exists():
    marker.touch()
    os.kill(os.getpid(), 9)
if what == "large" and batch_size > 4:
    raise MemoryError("no room for a batch of 8")
assert what != "wrong", "it is wrong"
book.record(batch_size=batch_size)"""
TEXT = """notebook: notebooks/05_cell.ipynb
axes: {what: [fine, killed, large, wrong]}
needs: {gpus: 0}
then: [{notebook: notebooks/06_after.ipynb}]
"""


def cilkit(*arguments):
    """(exit status, what was printed)."""
    with contextlib.redirect_stdout(io.StringIO()) as said:
        code = main(["sweep", "params/sweeps/x.yaml", *map(str, arguments)])
    return code, said.getvalue()


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A sweep that has run once: (exit status, what it printed, its jobs by label)."""
    with pytest.MonkeyPatch.context() as patch:
        home = house(tmp_path_factory.mktemp("swept") / "house", patch)
        notebook(home, "05_cell", 'what: str = "fine"\nbatch_size: int = 8', BOOK, CELL)
        notebook(home, "06_after", "x: int = 1", BOOK)
        path = sweep(home, TEXT)
        dry = cilkit("--dry-run")
        code, said = cilkit("--workers", 4)
        yield SimpleNamespace(dry=dry, code=code, said=said, jobs={job.label: job for job in graphs.build(path).jobs})


def lines_about(text, job):
    return [line for line in text.splitlines() if job.name in line]


def test_before_it_a_dry_run_names_every_job_and_starts_nothing(swept):
    code, said = swept.dry
    assert code == 0 and said.count(" to do  ? s") == 5 and "5 jobs, 0 done or running, 5 to do" in said
    assert "of 5 nothing is known yet" in said and "after 4 jobs" in said


def test_what_failed_makes_the_sweep_fail_and_what_comes_after_it_is_not_run(swept):
    assert swept.code == 1 and "x: 3 of 5 done, 1 failed, 1 not run" in swept.said
    wrong, after = swept.jobs["what wrong"], swept.jobs["defaults"]
    assert "FAILED: AssertionError: it is wrong" in lines_about(swept.said, wrong)[1]
    assert f"NOT RUN: {wrong.name} did not finish." in lines_about(swept.said, after)[-1]
    assert not after.output.exists()


def test_a_killed_kernel_is_tried_again(swept):
    job = swept.jobs["what killed"]
    started, died, again, ok = lines_about(swept.said, job)
    assert "the kernel died (SIGKILL" in died and "Try 2 of 3." in died and "ok, " in ok
    assert read_status(job.output).attempt == 2


def test_memory_that_ran_out_is_tried_once_with_half_a_batch_and_noted(swept):
    job = swept.jobs["what large"]
    status = read_status(job.output)
    assert status.ok and status.changed == {"batch_size": 4} and status.parameters["batch_size"] == 4
    assert status.notes == ["memory ran out, so it was run again with batch_size 8 -> 4."]
    assert "Once more with batch_size 4 in place of 8." in swept.said
    assert json.loads((book_folder(job.output) / "result.json").read_text())["records"] == {"batch_size": 4}


def test_the_next_time_what_is_done_is_skipped_and_with_resume_what_failed_as_well(swept):
    code, said = cilkit("--resume")
    assert code == 1 and "started" not in said and "x: 3 of 5 done, 1 failed, 1 not run" in said
    code, said = cilkit("--dry-run")
    assert code == 0 and said.count("✓") == 3 and "5 jobs, 3 done or running, 2 to do" in said
    assert "✗" in said and "failed: AssertionError: it is wrong" in said


def test_a_part_of_it_may_be_chosen_and_run_again(swept):
    assert cilkit("--only", "what=killed,large") == (0, cilkit("--only", "what=killed,large")[1])
    output = swept.jobs["what fine"].output
    (output.parent / f".{output.stem}.status.json.0123.tmp").touch()  # of a driver that was killed while it wrote
    code, said = cilkit("--only", "what=fine", "--again")
    assert not list(output.parent.glob(".*.tmp"))
    assert code == 0 and said.count("started") == 1 and "x: 1 of 1 done" in said


def test_looking_on_ends_when_nothing_is_left_to_wait_for(swept):
    code, said = cilkit("--watch")  # something failed, and what comes after it will not run
    assert code == 0 and "3 of 5 done, 1 failed" in said


def test_bad_input_is_one_sentence(swept, capsys):
    for wrong, says in {
        ("--only", "whit=fine"): "there is no axis 'whit'",
        ("--address", "auto"): "belong to --executor ray",
        ("--workers", "0"): "workers is 0",
    }.items():
        assert cilkit(*wrong)[0] == 2
        assert says in capsys.readouterr().err


def test_a_job_is_given_what_differs_from_the_defaults_and_in_their_types(swept, tmp_path, monkeypatch):
    home = house(tmp_path / "house", monkeypatch)
    for written, given in {"'7'": {"per_class": 7}, "5": {}}.items():
        (home / "params/02_images/letters.yaml").write_text(f"per_class: {written}\n")
        jobs = graphs.build(sweep(home, "notebook: notebooks/04_run.ipynb")).jobs
        assert jobs[0].given == given  # so its status has the same, whichever sweep or file asked for it


def test_a_job_that_is_only_starting_is_interrupted_as_well(monkeypatch):
    """An interrupt finds no kernel before there is one: it is given again."""
    heard = []

    def starting(*arguments, **options):
        while len(heard) < 2:
            time.sleep(0.01)
        return Status("interrupted", "n", "o")

    monkeypatch.setattr(local, "run_notebook", starting)
    monkeypatch.setattr(local, "interrupt_all", heard.append)
    executor, found = local.LocalExecutor(1), []
    executor.submit(Job("a", Path("a.ipynb"), {}, Path("b.ipynb"), needs=Needs(gpus=0)), {}, 1)
    executor.stop()
    while not found:
        found = executor.finished(0.1)
    executor.close()
    assert found[0][1].state == "interrupted" and set(heard) == {"interrupted"}


# ---------------------------------------------------------------- the table


def line(name, state, sentence="", label="", **known):
    job = Job(f"{name}-0123", None, {}, None, labels={"case": label} if label else {})
    return watching.Line(job, state, Status(state, "n", "o", sentence=sentence, **known))


@pytest.fixture
def lines():
    return [
        line("done", "done", seconds=61.0),
        line("next", "to do"),
        line("broken", "failed", "ZeroDivisionError: " + "division by zero " * 20),
        line("busy", "running", cell=3, cells=7, left=65.0),
        line("odd", "stopped", "first\nsecond", "<script>alert(1)</script>"),
    ]


@pytest.mark.parametrize("width", [20, 60, 200])
def test_the_table_fits_its_terminal(lines, width):
    text = watching.as_text("birds", lines, width)
    assert all(len(row) <= width for row in text.splitlines()) and len(text.splitlines()) == 6
    assert len(watching.as_text("birds", lines, width, rows=2).splitlines()) == 4


def test_the_table_names_what_runs_and_what_failed_first(lines):
    head, *rows = watching.as_text("birds", lines, 200).splitlines()
    assert "1 of 5 done, 1 failed, 1 running, 1 stopped" in head and head.count("█") == 5
    assert [row.split("-")[0].strip() for row in rows] == ["▸ busy", "✗ broken", "· next", "◦ odd", "✓ done"]
    assert "cell 3 of 7, 2 min left" in rows[0] and rows[1].endswith("…") and "done, 61 s" in rows[4]
    assert "first second" in rows[3]


def test_words_of_others_are_text_in_a_page(lines):
    page = watching.as_html("<b>birds</b>", lines)
    assert "<script>" not in page and "&lt;script&gt;alert(1)&lt;/script&gt;" in page and "<b>birds" not in page


# ---------------------------------------------------------------- estimates


def test_each_estimate_says_how_it_is_known(tmp_path, monkeypatch):
    home = house(tmp_path / "house", monkeypatch)
    (home / "params/04_run/large.yaml").write_text("# Derived: 2.5 hours in all at an assumed 10 TFLOP/s\nlr: 0.3\n")
    text = "notebook: notebooks/04_run.ipynb\nset: {backbone: none}\ngrids:\n"
    text += "- {axes: {learner: [slca, icarl]}, seeds: {order_seed: [1, 2]}}\n- {params: params/04_run/large.yaml}"
    graph = graphs.build(sweep(home, text))
    jobs = {job.label: job for job in graph.jobs}
    first, alike = jobs["learner slca, order_seed 1"], jobs["learner slca, order_seed 2"]
    derived, other = jobs["params/04_run/large.yaml"], jobs["learner icarl, order_seed 1"]
    assert Estimates([graphs.cells_folder()]).of(other) == Cost()
    made = artifacts.obtain("run", 1, {}, {}, lambda work: artifacts.atomic_write(work.path / "a", bytes(1000)))
    book = {"artifacts": [{"name": made.name}], "records": {"tokens": 8}}
    artifacts.write_json(book_folder(first.output) / "book.json", book)
    write_status(first.output, Status("ok", "notebooks/04_run.ipynb", "o", first.given, seconds=120.0))
    estimates = Estimates([graphs.cells_folder(), home / "nowhere"], graphs.Ledger(graph.memo))
    assert estimates.of(first) == Cost(120.0, 1000, 8, "measured") and estimates.of(alike).known == "alike"
    assert estimates.of(other).known == "notebook" and estimates.of(derived) == Cost(9000.0, None, None, "derived")
    total = in_all([estimates.of(first), estimates.of(derived), Cost()], workers=2)
    assert total == {
        "hours": 9120 / 3600,
        "hours on the clock": 9000 / 3600,  # no shorter than its longest job
        "bytes": 1000,
        "tokens": 8,
        "unknown": 1,
    }
