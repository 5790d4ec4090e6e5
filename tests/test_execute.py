"""Running notebooks: what happened is decided by the parent, and a name or value that does not fit runs nothing."""

import json
import os
import re
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
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


def _is_gone(pid):
    time.sleep(0.2)
    state = subprocess.run(["ps", "-o", "stat=", "-p", pid], capture_output=True, text=True)
    return state.stdout.strip()[:1] in ("", "Z")


def test_a_run_leaves_output_status_and_book_and_is_not_repeated(write_notebook, tmp_path, monkeypatch):
    gone_to = []
    monkeypatch.setattr(os, "chdir", gone_to.append)
    path = write_notebook("01_{x}", "book.record(twice=2 * x)\nprint(type(x), x)", parameters="x: float = 1.0")
    output = tmp_path / "out" / "01.ipynb"
    status = run_notebook(path, {"x": "1e-4"}, output)
    assert status.ok and status == read_status(output) and not output.with_suffix(".part.ipynb").exists()
    assert not gone_to, "other threads are in this directory too"
    assert status.notes == ["x: '1e-4' was read as 0.0001, as declared (float)."]
    assert "<class 'float'> 0.0001" in _printed(output)
    book = json.loads((tmp_path / "out" / "01" / "book.json").read_text())
    assert book["records"] == {"twice": 2e-4} and book["notebook"] == path.name
    written = output.stat().st_mtime_ns
    assert run_notebook(path, {"x": 1e-4}, output).skipped and output.stat().st_mtime_ns == written
    assert not run_notebook(path, {"x": 0.5}, output).skipped


def test_status_and_log_tell_each_cell_and_the_time_left_comes_from_an_earlier_run(write_notebook, tmp_path):
    sources = [
        "import time\nprint('slow')\ntime.sleep(0.5)",
        "print('quick', end='')\nprint('!', file=__import__('sys').stderr)",
    ]
    path, told, gathered = write_notebook("01_times", *sources, start=False), [], []

    def tell(status):
        on_disk = read_status(output)
        told.append((on_disk.state, on_disk.cell, on_disk.cells, on_disk.left, len(on_disk.cell_seconds)))

    def finish(folder):
        gathered.append((folder, read_status(output).state))

    output = tmp_path / "out" / "01_times-a.ipynb"
    given = {"environment": {"CUDA_VISIBLE_DEVICES": "3"}, "finish": finish, "progress": tell}
    first = run_notebook(path, {"x": 2}, output, **given)
    assert first.ok and first.cell is None and first.left is None and len(first.cell_seconds) == 4
    assert told == [("running", cell, 4, None, cell - 1) for cell in (1, 2, 3, 4)]
    assert gathered == [(output.with_suffix(""), "running")]
    assert (first.device, first.attempt, first.pid) == ("3", 1, os.getpid()) and first.host
    lines = output.with_suffix(".log").read_text().splitlines()
    assert [re.sub(r"^\[[-0-9: ]+Z\] ", "", line).split(",")[0] for line in lines[-8:]] == [
        *["cell 2 ended", "cell 3 of 4", "slow", "cell 3 ended", "cell 4 of 4", "quick!", "cell 4 ended", "ok"]
    ]
    told.clear()
    output = tmp_path / "out" / "01_times-b.ipynb"
    second = run_notebook(path, {"x": 3}, output, progress=tell, attempt=2, finish=lambda folder: 1 / 0)
    left = [entry[3] for entry in told]
    assert left[2] == round(sum(first.cell_seconds[2:]), 1) >= 0.5 and left == sorted(left, reverse=True)
    assert (second.state, second.attempt, read_status(output).state) == ("failed", 2, "failed")
    assert second.sentence == "what it left could not be gathered: ZeroDivisionError: division by zero"


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


def test_a_notebook_is_not_replaced_by_its_own_output(write_notebook):
    path = write_notebook("03")
    with pytest.raises(UserError, match="would replace"):
        run_notebook(path, {}, path)
    assert path.is_file()


def test_an_error_is_failed_with_its_cell_and_a_user_error_is_its_sentence_alone(write_notebook, tmp_path):
    failing = "from cilkit.errors import UserError\n\nraise UserError('no class is called bird.')"
    status = run_notebook(write_notebook("04", "1 + 1", failing, "3"), {"x": 2}, tmp_path / "out.ipynb")
    assert (status.state, status.sentence, status.cell) == ("failed", "no class is called bird.", 5)
    status = run_notebook(write_notebook("05", "1 / 0"), {}, tmp_path / "out5.ipynb")
    assert (status.state, status.sentence) == ("failed", "ZeroDivisionError: division by zero")
    assert "1 / 0" in (tmp_path / "out5.log").read_text()


def test_a_kernel_beyond_its_memory_is_killed_with_its_children(write_notebook, tmp_path):
    child = "import time; held = b'x' * 150_000_000; time.sleep(60)"
    greedy = (
        "import subprocess, sys, time\n\nprint('before', flush=True)\n"
        f"p = subprocess.Popen([sys.executable, '-c', {child!r}], start_new_session=True)\n"
        f"open('{tmp_path}/pid', 'w').write(str(p.pid))\n"
        "held = b'x' * 150_000_000\ntime.sleep(60)"
    )
    path = write_notebook("05_memory", greedy, start=False)
    status = run_notebook(path, {}, tmp_path / "out.ipynb", memory=0.25)
    assert status.state == "memory" and status.cell == 2 and status.seconds < 15
    assert "in code cell 2, more than its limit of 0.25 GB" in status.sentence
    assert 0.3 < status.peak_memory < 0.5 and _printed(tmp_path / "out.ipynb") == "before\n"
    assert _is_gone((tmp_path / "pid").read_text())


@pytest.mark.parametrize(
    ("name", "text", "state"),
    [
        ("OutOfMemoryError", "CUDA out of memory. Tried to allocate 2.00 GiB", "memory"),
        ("OutOfMemory", "the device's memory ran out while painting", "memory"),
        ("MemoryError", "", "memory"),
        ("RuntimeError", "CUDA error: out of memory", "memory"),
        ("RuntimeError", "DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes", "memory"),
        ("RuntimeError", "shapes do not fit", "failed"),
        ("ValueError", "out of memory", "failed"),
    ],
)
def test_an_exception_that_memory_ran_out_is_told_from_others(monkeypatch, write_notebook, tmp_path, name, text, state):
    import papermill

    def execute(*args, **kwargs):
        raise papermill.PapermillExecutionError(0, 1, "", name, text, [])

    monkeypatch.setattr(papermill, "execute_notebook", execute)
    status = run_notebook(write_notebook("05_raises"), {}, tmp_path / "out.ipynb")
    assert (status.state, status.sentence) == (state, f"{name}: {text}")


def test_a_killed_kernel_is_dead_whatever_the_output_says(write_notebook, tmp_path):
    killing = "import os, threading, time\n\nthreading.Timer(0.3, os.kill, [os.getpid(), 9]).start()\ntime.sleep(60)"
    status = run_notebook(write_notebook("06", killing, "1 + 1"), {}, tmp_path / "out.ipynb")
    assert (status.state, status.cell) == ("dead", 3) and "SIGKILL" in status.sentence
    assert status.cell_seconds[-1] < 5  # though the cell was busy
    assert read_status(tmp_path / "out.ipynb").state == "dead"


def test_a_time_limit_counts_the_whole_notebook_and_leaves_no_child(write_notebook, tmp_path):
    child = (
        "import subprocess, time\n\np = subprocess.Popen(['sleep', '300'])\n"
        f"open('{tmp_path}/pid', 'w').write(str(p.pid))"
    )
    path = write_notebook("07", child, *["time.sleep(2)"] * 30)
    status = run_notebook(path, {}, tmp_path / "out.ipynb", timeout=4)
    assert status.state == "timeout" and "4 s" in status.sentence and status.seconds < 30
    assert _is_gone((tmp_path / "pid").read_text())


def test_an_interrupted_kernel_keeps_its_sentence_and_later_cells_do_not_run(write_notebook, tmp_path):
    slow = (
        "import time\nfrom cilkit.errors import Stopped\n\ntry:\n"
        f"    print('so far')\n    open('{tmp_path}/slow', 'w')\n    time.sleep(60)\n"
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
    assert not (tmp_path / "later").exists() and "so far\n" in _printed(tmp_path / "out.ipynb")
    assert "so far\n" in (tmp_path / "out.log").read_text()


KEYS = {"OPENAI_API_KEY": "sk-proj-Zr8&<Lm2vR7tYb+Nw5", "HF_TOKEN": "hf_QwErTyUiOpAsDfGh12"}
LEAKY = """
import logging, os, sys, time
import pandas
from IPython.display import HTML, Markdown, display

keys = [os.environ["OPENAI_API_KEY"], os.environ["HF_TOKEN"]]
for key in keys:
    print(key, [key])
    print("half:", key[:9], sep="", end="", flush=True)
    time.sleep(0.3)  # a message of its own
    print(key[9:], flush=True)
    print(key[:5], end="", flush=True)
    time.sleep(0.3)
    print(key[5:], end="", file=sys.stderr, flush=True)
    logging.getLogger().error(key)
    display(HTML(f"<b>{key}</b>"), Markdown(key), {"key": key}, display_id=key)
    os.write(1, key.encode() + b"\\n")
table = pandas.DataFrame({"key": [*keys, "x" * 80 + keys[0]], "value": 1.0})
book.table(table, "keys", caption=keys[0])
display(table)
book.record(key=keys[0], keys=keys)
"""


def test_no_secret_of_the_environment_reaches_a_file_or_the_terminal(write_notebook, tmp_path, monkeypatch, capfd):
    from cilkit.workbook.report import Entry
    from cilkit.workbook.site import build_site

    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    path, output = write_notebook("10", LEAKY, "raise ValueError(f'refused: {keys}')"), tmp_path / "runs" / "10.ipynb"
    growing = []
    status = run_notebook(
        path,
        {},
        output,
        live=True,
        progress=lambda status: growing.append(output.with_suffix(".part.ipynb").read_text()),
    )
    assert status.state == "failed" and "[HF_TOKEN hidden]" in status.sentence
    build_site([Entry("10", path, output=output, status=status)], tmp_path / "site")
    printed = capfd.readouterr()
    texts = {"stdout": printed.out, "stderr": printed.err, "status": str(status), **dict(enumerate(growing))}
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert {"10.ipynb", "10.log", "10.status.json", "book.json", "keys.csv", "10.html"} <= {file.name for file in files}
    texts |= {file: file.read_bytes().decode(errors="replace") for file in files}
    for value in KEYS.values():
        for form in (value, value.replace("&", "&amp;").replace("<", "&lt;"), value[:16]):
            assert not [name for name, text in texts.items() if form in text]
    log = (tmp_path / "runs" / "10.log").read_text()
    assert (
        log.count("half:[OPENAI_API_KEY hidden]") == 1
        and log.count("\n[HF_TOKEN hidden]\n") >= 1
        and printed.out.count("[HF_TOKEN hidden]") >= 3
    )


@pytest.mark.parametrize("given", ["hf_QwErTyUiOpAsDfGh12", ["a", "token=hf_QwErTyUiOpAsDfGh12&x=1"]])
def test_a_secret_is_no_parameter_and_stands_in_no_cell(write_notebook, tmp_path, monkeypatch, given):
    monkeypatch.setenv("HF_TOKEN", KEYS["HF_TOKEN"])
    path = write_notebook("11", parameters="x: list[str] | str | int = ''")
    with pytest.raises(UserError, match="parameter x holds the value of the environment's HF_TOKEN") as caught:
        run_notebook(path, {"x": given}, tmp_path / "out" / "11.ipynb")
    assert KEYS["HF_TOKEN"] not in str(caught.value) and not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="11.ipynb holds the value of HF_TOKEN in a cell"):
        run_notebook(write_notebook("11", f"token = {KEYS['HF_TOKEN']!r}"), {}, tmp_path / "out" / "11.ipynb")
    with pytest.raises(UserError, match="the environment's OTHER_KEY"):
        run_notebook(path, {"x": "abc-12345"}, tmp_path / "o.ipynb", environment={"OTHER_KEY": "abc-12345"})


@pytest.mark.slow
@pytest.mark.parametrize("repetition", range(5))
def test_thirty_six_runs_twelve_at_once(write_notebook, tmp_path, repetition):
    path = write_notebook("12", "print(x)", start=False)
    with ThreadPoolExecutor(12) as pool:
        runs = [pool.submit(run_notebook, path, {"x": n}, tmp_path / "out" / f"{n}.ipynb") for n in range(36)]
    assert [(run.result().state, run.result().sentence) for run in runs] == [("ok", "")] * 36
    assert [_printed(tmp_path / "out" / f"{n}.ipynb") for n in range(36)] == [f"{n}\n" for n in range(36)]


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
