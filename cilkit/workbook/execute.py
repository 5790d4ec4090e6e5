"""One notebook, executed by papermill, with papermill's traps closed.

papermill's output cannot tell what happened: after a killed kernel or a time limit every cell in it reads "completed".
So the parent decides, from the exception, and writes `<output>.status.json` beside the output; "running" in it means
that the parent itself was killed. The output grows as `<output>.part.ipynb` and is renamed at the end.
`<output>.log` grows with what the cells print.
"""

import glob
import json
import logging
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cilkit import artifacts
from cilkit.errors import UserError
from cilkit.hiding import hidden, secret_in
from cilkit.workbook import parameters
from cilkit.workbook.diary import Diary
from cilkit.workbook.fingerprint import all_in_place, fingerprint
from cilkit.workbook.kernels import Run, kernel_class, watched
from cilkit.workbook.kernels import interrupt_all as interrupt_all
from cilkit.workbook.start import commit, shown

LATEST = 20  # earlier runs that are looked at for the time left
START_ATTEMPTS = 3  # only while no cell has run
NO_MEMORY = ("out of memory", "allocate memory", "not enough memory", "cublas_status_alloc_failed")


@dataclass
class Status:
    """What became of one run; `state` is ok, failed, dead, memory, timeout, interrupted, running, or not run."""

    state: str
    notebook: str
    output: str
    parameters: dict[str, Any] = field(default_factory=dict)
    sentence: str = ""  # why it is not ok
    cell: int | None = None  # number of the code cell that runs or did not finish, counted from 1
    cells: int | None = None  # code cells in all, with the injected one
    left: float | None = None  # seconds, by the cell times of an earlier run
    cell_seconds: list[float] = field(default_factory=list)  # of the code cells that have ended
    seconds: float = 0.0
    peak_memory: float | None = None  # GB, the most that was seen of the kernel with its children
    started: str = ""
    notes: list[str] = field(default_factory=list)  # parameters that were read as another type
    commit: dict | None = None
    fingerprint: dict[str, Any] = field(default_factory=dict)
    attempt: int = 1
    host: str = ""
    pid: int | None = None  # of the process that executed it
    device: str | None = None  # CUDA_VISIBLE_DEVICES as the kernel got it
    changed: dict[str, Any] = field(default_factory=dict)  # parameters that a retry gave another value
    book: bool = True  # whether it left a book.json; a notebook without `cilkit.start()` leaves none
    skipped: bool = False  # nothing had changed since an earlier run that was ok

    @property
    def ok(self) -> bool:
        return self.state == "ok"


def status_path(output: Path) -> Path:
    return output.with_suffix(".status.json")


def log_path(output: Path) -> Path:
    return output.with_suffix(".log")


def book_folder(output: Path) -> Path:
    """Where the notebook's `Book` leaves its figures and tables in such a run."""
    return output.with_suffix("")


def read_status(output: Path) -> Status | None:
    try:
        return Status(**json.loads(status_path(output).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def run_notebook(
    path: Path | str,
    given: dict[str, Any],
    output: Path | str,
    *,
    timeout: float | None = None,
    memory: float | None = None,
    log: Callable[[str], None] | None = None,
    live: bool = False,
    again: bool = False,
    environment: dict[str, str] | None = None,
    progress: Callable[[Status], None] | None = None,
    finish: Callable[[Path], None] | None = None,
    attempt: int = 1,
) -> Status:
    """Execute a notebook with `given` parameters into `output`; never raises for what happens inside the notebook.

    timeout:     seconds of the whole notebook.
    memory:      GB of the kernel with its children; beyond them they are killed.
    log:         gets a line for each parameter that was read as another type.
    live:        prints what the cells print. The file `<output>.log` has it in any case.
    again:       run it even if nothing has changed.
    environment: variables for the kernel, beside this process'.
    progress:    is called at the start of each code cell.
    finish:      is called with the book's folder after a kernel that ended well; only then the run is ok.
    attempt:     counts from 1; a later one's log is added to that of the first.

    Raises UserError for a notebook or parameters that do not fit, or that hold a secret: then nothing was run.
    """
    import nbformat

    path, output = Path(path).absolute(), Path(output).absolute()
    if output.resolve() == path.resolve():
        raise UserError(f"the executed notebook would replace {path}: choose another output.")
    around = os.environ | (environment or {})
    values, notes = parameters.check(parameters.declared(path), given, around)
    notebook = nbformat.read(path, as_version=4)
    if secret := secret_in("\n".join(cell["source"] for cell in notebook["cells"]), around):
        raise UserError(f"{path.name} holds the value of {secret} in a cell: let it read the environment instead.")
    now = fingerprint(notebook, values)
    before = read_status(output)
    unchanged = before is not None and before.ok and before.fingerprint == now and output.is_file()
    if unchanged and not again and in_place(output, before):
        before.skipped = True
        return before
    status = Status("running", shown(path), output.name, values, notes=notes, fingerprint=now, commit=commit())
    status.attempt, status.host, status.pid = attempt, socket.gethostname(), os.getpid()
    status.device = around.get("CUDA_VISIBLE_DEVICES")
    for note in notes if log else ():
        log(note)
    earlier = _earlier_seconds(path, output, status)

    def tell(status: Status) -> None:
        write_status(output, status)
        if progress:
            progress(status)

    _prepare(output, status)
    begun = time.monotonic()
    part = output.with_suffix(".part.ipynb")
    with Diary(log_path(output), status, around, earlier, live, tell) as diary:
        try:
            _execute(path, notebook, values, part, status, diary, timeout=timeout, memory=memory)
            if finish and status.ok:
                _finish(finish, output, status)
        finally:
            status.seconds = round(time.monotonic() - begun, 2)
            if status.state == "running":
                status.state, status.sentence = "interrupted", "the process that executed the notebook was stopped."
            if part.is_file():
                os.replace(part, output)
            status.left, status.book = None, (book_folder(output) / "book.json").is_file()
            write_status(output, status)
    return status


def in_place(output: Path, status: Status, seen: dict[str, str] | None = None) -> bool:
    """Whether what a run left and used is still there; `seen` as in `all_in_place`."""
    return output.is_file() and (not status.book or all_in_place(book_folder(output) / "book.json", seen))


def _prepare(output: Path, status: Status) -> None:
    status.started = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    output.unlink(missing_ok=True)
    shutil.rmtree(book_folder(output), ignore_errors=True)
    for leftover in output.parent.glob(f".{glob.escape(output.stem)}.*.tmp"):
        leftover.unlink(missing_ok=True)  # half a file of a process that was killed
    write_status(output, status)


def write_status(output: Path, status: Status) -> None:
    content = asdict(status) | {"skipped": False}
    artifacts.atomic_write(status_path(output), json.dumps(content, indent=1, default=str) + "\n")


def _earlier_seconds(path: Path, output: Path, status: Status) -> list[float]:
    """Seconds of each code cell in an earlier run of the same cells that lies beside `output`: of the newest ones, the
    run whose parameters have most in common with these; [] without one."""
    beside = sorted(output.parent.glob(f"{glob.escape(path.stem)}*.status.json"), key=_changed, reverse=True)[:LATEST]
    found = [read_status(p.with_name(p.name.replace(".status.json", ".ipynb"))) for p in {status_path(output), *beside}]
    same = [run for run in found if run and run.ok and run.fingerprint["cells"] == status.fingerprint["cells"]]
    alike = [sum(run.parameters.get(name) == value for name, value in status.parameters.items()) for run in same]
    return max(zip(alike, same, strict=True), key=lambda pair: pair[0])[1].cell_seconds if same else []


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:  # replaced at this moment
        return 0.0


def _finish(finish: Callable[[Path], None], output: Path, status: Status) -> None:
    """What a run left is gathered; if that fails, so did the run."""
    status.state = "running"
    try:
        finish(book_folder(output))
        status.state = "ok"
    except Exception as error:
        reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        status.state, status.sentence = "failed", f"what it left could not be gathered: {reason}"


def _execute(path, notebook, values, part, status, diary, *, timeout, memory) -> None:
    """Run papermill until the kernel has started at least once; turn whatever it raises into the status."""
    import nbclient.exceptions
    import papermill
    from papermill.exceptions import PapermillExecutionError

    from cilkit.workbook import listening

    logging.getLogger("papermill").setLevel(logging.CRITICAL)  # names were checked; its own check only guesses
    os.environ.setdefault("JUPYTER_PREFER_ENV_PATH", "1")  # not a user-level `python3` kernel
    output = part.with_suffix("").with_suffix("")
    environment = {k: v for k, v in diary.environment.items() if k not in ("MPLBACKEND", "JPY_SESSION_NAME")}
    environment |= {"CILKIT_NOTEBOOK": str(path), "CILKIT_REPORT_DIR": str(output.parent), "CILKIT_RUN": output.name}
    with watched(timeout, memory) as run, tempfile.TemporaryDirectory(prefix="ck", ignore_cleanup_errors=True) as place:
        for attempt in range(1, START_ATTEMPTS + 1):
            try:
                papermill.execute_notebook(
                    notebook,
                    _literal(part),
                    parameters=values,
                    progress_bar=False,
                    engine_name=listening.NAME,
                    listener=diary,
                    kernel_manager_class=kernel_class(
                        run, path.parent, Path(place) / str(attempt), environment, diary.overhears
                    ),
                    shutdown_kernel="immediate",
                )
                status.state, status.cell = "ok", None
            except PapermillExecutionError as error:
                status.state = "interrupted" if error.ename in ("KeyboardInterrupt", "Stopped") else "failed"
                if _ran_out(error):
                    status.state = "memory"
                plain = error.ename in ("UserError", "Stopped", "KeyboardInterrupt")
                status.sentence = error.evalue if plain else f"{error.ename}: {error.evalue}"
            except nbclient.exceptions.DeadKernelError:
                status.state = "dead"
                status.sentence = f"the kernel died{run.ended()} in code cell {status.cell}."
            except Exception as error:
                if isinstance(error, RuntimeError) and attempt < START_ATTEMPTS and not run.reason and not status.cell:
                    continue  # the kernel did not come up
                status.state = "failed"
                status.sentence = hidden(f"{type(error).__name__}: {error}", environment)
            break
    status.peak_memory = run.peak
    if run.reason and status.state != "ok":
        status.sentence = _stopped(run, status, timeout, memory)
        status.state = run.reason


def _ran_out(error: Any) -> bool:
    """Whether an exception in a notebook says that memory ran out, the GPU's or the machine's."""
    if error.ename.endswith("MemoryError") or error.ename in ("OutOfMemoryError", "OutOfMemory"):
        return True
    return error.ename == "RuntimeError" and any(words in error.evalue.lower() for words in NO_MEMORY)


def _stopped(run: Run, status: Status, timeout: float | None, memory: float | None) -> str:
    """Why we stopped a kernel, and what it said to that."""
    if run.reason == "memory":
        return f"it took {run.peak:.3g} GB in code cell {status.cell}, more than its limit of {memory:g} GB."
    limit = f"the time limit of {timeout:g} s is over." if run.reason == "timeout" else "stopped by hand."
    return limit if status.state == "dead" or not status.cell else f"{limit} {status.sentence}".strip()


def _literal(path: Path) -> str:
    """papermill formats its output path: braces in it must be doubled."""
    return str(path).replace("{", "{{").replace("}", "}}")
