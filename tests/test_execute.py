"""Running notebooks: what happened is decided by the parent, and a name or value that does not fit runs nothing."""

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import nbformat
import pytest

from cilkit.errors import UserError
from cilkit.workbook import execute
from cilkit.workbook.execute import read_status, run_notebook

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def artifacts_apart(monkeypatch, tmp_path):
    monkeypatch.setenv("CILKIT_ARTIFACTS", str(tmp_path / "artifacts"))


def _printed(path):
    cells = nbformat.read(path, as_version=4).cells
    outputs = [output for cell in cells if cell.cell_type == "code" for output in cell.outputs]
    return "".join(output.get("text", "") for output in outputs)


def test_a_run_leaves_output_status_and_book_and_is_not_repeated(write_notebook, tmp_path):
    path = write_notebook("01_{x}", "book.record(twice=2 * x)\nprint(type(x), x)", parameters="x: float = 1.0")
    output = tmp_path / "out" / "01.ipynb"
    status = run_notebook(path, {"x": "1e-4"}, output)
    assert status.ok and status == read_status(output) and not output.with_suffix(".part.ipynb").exists()
    assert status.notes == ["x: '1e-4' was read as 0.0001, as declared (float)."]
    assert "<class 'float'> 0.0001" in _printed(output)
    book = json.loads((tmp_path / "out" / "01" / "book.json").read_text())
    assert book["records"] == {"twice": 2e-4} and book["notebook"] == path.name
    written = output.stat().st_mtime_ns
    assert run_notebook(path, {"x": 1e-4}, output).skipped and output.stat().st_mtime_ns == written
    assert not run_notebook(path, {"x": 0.5}, output).skipped


def test_an_artifact_that_is_gone_means_run_again(write_notebook, tmp_path):
    source = "from types import SimpleNamespace as S\nbook.uses(S(name='run/ab', stage='run', digest='cd'))"
    path, output = write_notebook("02", source), tmp_path / "02.out.ipynb"
    assert run_notebook(path, {}, output).ok
    assert not run_notebook(path, {}, output).skipped


@pytest.mark.parametrize("given", [{"y": 1}, {"x; import os; os._exit(9) #": 1}, {"x": "many"}])
def test_what_does_not_fit_is_refused_before_anything_runs(write_notebook, tmp_path, given):
    with pytest.raises(UserError):
        run_notebook(write_notebook("03"), given, tmp_path / "out" / "03.ipynb")
    assert not (tmp_path / "out").exists()


def test_an_error_is_failed_with_its_cell_and_a_user_error_is_its_sentence_alone(write_notebook, tmp_path):
    failing = "from cilkit.errors import UserError\n\nraise UserError('no class is called bird.')"
    status = run_notebook(write_notebook("04", "1 + 1", failing, "3"), {"x": 2}, tmp_path / "out.ipynb")
    assert (status.state, status.sentence, status.cell) == ("failed", "no class is called bird.", 5)
    status = run_notebook(write_notebook("05", "1 / 0"), {}, tmp_path / "out5.ipynb")
    assert (status.state, status.sentence) == ("failed", "ZeroDivisionError: division by zero")


def test_a_killed_kernel_is_dead_whatever_the_output_says(write_notebook, tmp_path):
    killing = "import os, signal\n\nos.kill(os.getpid(), signal.SIGKILL)"
    status = run_notebook(write_notebook("06", killing, "1 + 1"), {}, tmp_path / "out.ipynb")
    assert (status.state, status.cell) == ("dead", 3) and "SIGKILL" in status.sentence
    assert read_status(tmp_path / "out.ipynb").state == "dead"


def test_a_time_limit_counts_the_whole_notebook_and_leaves_no_child(write_notebook, tmp_path):
    child = (
        "import subprocess, time\n\np = subprocess.Popen(['sleep', '300'])\n"
        f"open('{tmp_path}/pid', 'w').write(str(p.pid))"
    )
    path = write_notebook("07", child, *["time.sleep(2)"] * 30)
    status = run_notebook(path, {}, tmp_path / "out.ipynb", timeout=4)
    assert status.state == "timeout" and "4 s" in status.sentence and status.seconds < 30
    time.sleep(0.2)
    state = subprocess.run(["ps", "-o", "stat=", "-p", (tmp_path / "pid").read_text()], capture_output=True, text=True)
    assert state.stdout.strip()[:1] in ("", "Z")


def test_an_interrupted_kernel_keeps_its_sentence_and_later_cells_do_not_run(write_notebook, tmp_path):
    slow = (
        "import time\nfrom cilkit.errors import Stopped\n\ntry:\n"
        f"    open('{tmp_path}/slow', 'w')\n    time.sleep(60)\n"
        "except KeyboardInterrupt:\n    raise Stopped('2 of 5 tasks are kept.') from None"
    )
    path = write_notebook("08", slow, f"open('{tmp_path}/later', 'w')")

    def stop_when_slow():
        while not (tmp_path / "slow").exists():
            time.sleep(0.1)
        execute.interrupt_all()

    threading.Thread(target=stop_when_slow, daemon=True).start()
    status = run_notebook(path, {}, tmp_path / "out.ipynb", timeout=50)
    assert status.state == "interrupted" and "2 of 5 tasks are kept." in status.sentence
    assert not (tmp_path / "later").exists()


def test_under_plain_papermill_an_unknown_parameter_stops_too(write_notebook, tmp_path):
    import papermill

    path = write_notebook("09", "print('ran on')")
    with pytest.raises(papermill.PapermillExecutionError, match="unknown parameter 'xx': did you mean 'x'"):
        papermill.execute_notebook(str(path), str(tmp_path / "o.ipynb"), {"xx": 3}, progress_bar=False)
    assert "ran on" not in _printed(tmp_path / "o.ipynb")


def _nbval(path, *options):
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "tests.dead_kernels",
        "-p",
        "no:cacheprovider",
        "--nbval-lax",
    ]
    options = ["--nbval-current-env", "--nbval-cell-timeout=60", *options]
    return subprocess.run([*command, *options, str(path)], cwd=ROOT, capture_output=True, text=True, timeout=90)


def test_start_finds_the_parameters_under_nbval(write_notebook, monkeypatch, tmp_path):
    monkeypatch.setenv("CILKIT_REPORT_DIR", str(tmp_path))
    done = _nbval(write_notebook("10_real_name", "assert x == 1", "assert book.name == '10_real_name'"))
    assert done.returncode == 0, done.stdout


def test_nbval_notices_a_dead_kernel_at_once(write_notebook, monkeypatch, tmp_path):
    monkeypatch.setenv("CILKIT_REPORT_DIR", str(tmp_path))
    begun = time.monotonic()
    done = _nbval(write_notebook("11", "import os\n\nos._exit(1)", start=False), "-x")
    assert done.returncode == 1 and "kernel died" in done.stdout
    assert time.monotonic() - begun < 60  # the cell's own limit is 120 s
