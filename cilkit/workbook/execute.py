"""One notebook, executed by papermill, with papermill's traps closed.

papermill's output cannot tell what happened: after a killed kernel or a time limit every cell in it reads "completed".
So the parent decides, from the exception, and writes `<output>.status.json` beside the output; "running" in it means
that the parent itself was killed. The output grows as `<output>.part.ipynb` and is renamed at the end.
Kernels talk over IPC sockets in a folder of their own (TCP ports race on busy machines), in the notebook's folder as in
JupyterLab, and are killed with all their children when the notebook is over.
"""

import json
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cilkit import artifacts
from cilkit.workbook import parameters
from cilkit.workbook.fingerprint import all_in_place, fingerprint
from cilkit.workbook.start import commit, shown

GRACE = 15.0  # seconds that an interrupted kernel gets to finish what it keeps
START_ATTEMPTS = 3  # only while no cell has run


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
    skipped: bool = False  # nothing had changed since an earlier run that was ok

    @property
    def ok(self) -> bool:
        return self.state == "ok"


class _Run:
    """A kernel while it lives, and why it was stopped, if it was."""

    def __init__(self) -> None:
        self.manager: Any = None
        self.reason: str | None = None
        self.over = threading.Event()

    def stop(self, reason: str) -> None:
        """Interrupt the kernel; kill it when it has not ended after GRACE seconds."""
        if self.reason is None:
            self.reason = reason
            threading.Thread(target=self._stop, daemon=True).start()

    def _stop(self) -> None:
        self._signal(signal.SIGINT)
        if not self.over.wait(GRACE):
            self._signal(getattr(signal, "SIGKILL", signal.SIGTERM))

    def _signal(self, number: int) -> None:
        pid = getattr(getattr(self.manager, "provisioner", None), "pid", None)
        if pid:
            _signal_group(pid, number)


_running: set[_Run] = set()


def interrupt_all(reason: str = "interrupted") -> None:
    """Interrupt every notebook that this process is executing (they run in threads and in sessions of their own)."""
    for run in list(_running):
        run.stop(reason)


def status_path(output: Path) -> Path:
    return output.with_suffix(".status.json")


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

    `timeout` counts seconds of the whole notebook; `live` prints what the cells print; `again` runs it even if nothing
    has changed. Raises UserError for a notebook or parameters that do not fit: then nothing was run.
    """
    import nbformat

    path, output = Path(path).absolute(), Path(output).absolute()
    values, notes = parameters.check(parameters.declared(path), given)
    notebook = nbformat.read(path, as_version=4)
    now = fingerprint(notebook, values)
    before = read_status(output)
    unchanged = before is not None and before.ok and before.fingerprint == now and output.is_file()
    if unchanged and not again and all_in_place(book_folder(output) / "book.json"):
        before.skipped = True
        return before
    status = Status("running", shown(path), output.name, values, notes=notes, fingerprint=now, commit=commit())
    status.attempt, status.host, status.pid = attempt, socket.gethostname(), os.getpid()
    status.device = (os.environ | (environment or {})).get("CUDA_VISIBLE_DEVICES")
    for note in notes if log else ():
        log(note)
    _prepare(output, status)
    begun = time.monotonic()
    part = output.with_suffix(".part.ipynb")
    try:
        _execute(path, notebook, values, part, status, timeout=timeout, live=live, environment=environment or {})
        if finish and status.ok:
            finish(book_folder(output))
    finally:
        status.seconds = round(time.monotonic() - begun, 2)
        if status.state == "running":
            status.state, status.sentence = "interrupted", "the process that executed the notebook was stopped."
        if part.is_file():
            os.replace(part, output)
        write_status(output, status)
    return status


def _prepare(output: Path, status: Status) -> None:
    status.started = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    output.unlink(missing_ok=True)
    shutil.rmtree(book_folder(output), ignore_errors=True)
    write_status(output, status)


def write_status(output: Path, status: Status) -> None:
    content = asdict(status) | {"skipped": False}
    artifacts.atomic_write(status_path(output), json.dumps(content, indent=1, default=str) + "\n")


def _execute(path, notebook, values, part, status, *, timeout, live, environment) -> None:
    """Run papermill until the kernel has started at least once; turn whatever it raises into the status."""
    import nbclient.exceptions
    import papermill
    from papermill.exceptions import PapermillExecutionError

    logging.getLogger("papermill").setLevel(logging.CRITICAL)  # names were checked; its own check only guesses
    os.environ.setdefault("JUPYTER_PREFER_ENV_PATH", "1")  # not a user-level `python3` kernel
    stream = {"stdout_file": sys.stdout, "stderr_file": sys.stderr} if live else {}
    with _watched(timeout) as run, tempfile.TemporaryDirectory(prefix="ck", ignore_cleanup_errors=True) as sockets:
        for attempt in range(1, START_ATTEMPTS + 1):
            try:
                papermill.execute_notebook(
                    notebook,
                    _literal(part),
                    parameters=values,
                    progress_bar=False,
                    kernel_manager_class=_kernel_class(run, path, part, Path(sockets) / str(attempt), environment),
                    shutdown_kernel="immediate",
                    **stream,
                )
                status.state = "ok"
            except PapermillExecutionError as error:
                status.state = "interrupted" if error.ename in ("KeyboardInterrupt", "Stopped") else "failed"
                plain = error.ename in ("UserError", "Stopped", "KeyboardInterrupt")
                status.sentence = error.evalue if plain else f"{error.ename}: {error.evalue}"
                status.cell = _code_cell(part)
            except nbclient.exceptions.DeadKernelError:
                status.state, status.cell = "dead", _code_cell(part)
                status.sentence = f"the kernel died{_signal_name(run)} in code cell {status.cell}."
            except Exception as error:
                if (
                    isinstance(error, RuntimeError)
                    and attempt < START_ATTEMPTS
                    and not run.reason
                    and not _code_cell(part)
                ):
                    continue  # the kernel did not come up
                status.state = "failed"
                status.sentence = f"{type(error).__name__}: {error}"
            break
    if run.reason and status.state != "ok":
        limit = f"the time limit of {timeout:g} s is over." if run.reason == "timeout" else "stopped by hand."
        status.state = run.reason
        status.sentence = limit if "died" in status.sentence else f"{limit} {status.sentence}".strip()


@contextmanager
def _watched(timeout: float | None):
    """A `_Run` that `interrupt_all` and the time limit can reach; afterwards nothing of its kernel is left."""
    run = _Run()
    timer = threading.Timer(timeout, run.stop, args=["timeout"]) if timeout else None
    _running.add(run)
    if timer:
        timer.daemon = True
        timer.start()
    try:
        yield run
    finally:
        run.over.set()
        _running.discard(run)
        if timer:
            timer.cancel()


def _kernel_class(run: _Run, path: Path, part: Path, sockets: Path, environment: dict[str, str]) -> type:
    """A kernel manager with an environment, working directory and sockets of its own (threads share this process')."""
    from jupyter_client.manager import AsyncKernelManager

    output = part.with_suffix("").with_suffix("")
    kernel_environment = {k: v for k, v in os.environ.items() if k not in ("MPLBACKEND", "JPY_SESSION_NAME")}
    kernel_environment |= {
        "CILKIT_NOTEBOOK": str(path),
        "CILKIT_REPORT_DIR": str(output.parent),
        "CILKIT_RUN": output.name,
        **environment,
    }

    class Kernel(AsyncKernelManager):
        def __init__(self, **kwargs: Any) -> None:
            ipc = {"transport": "ipc", "ip": str(sockets)} if os.name == "posix" else {}
            super().__init__(**kwargs, **ipc)
            run.manager = self

        async def start_kernel(self, **kwargs: Any) -> None:
            await super().start_kernel(**kwargs, env=kernel_environment, cwd=str(path.parent))
            self.process, self.leader = self.provisioner.process, self.provisioner.pid
            if run.reason:  # stopped while we were starting
                _signal_group(self.leader, signal.SIGINT)

        async def cleanup_resources(self, restart: bool = False) -> None:
            _signal_group(getattr(self, "leader", None), getattr(signal, "SIGKILL", signal.SIGTERM))
            await super().cleanup_resources(restart=restart)

    return Kernel


def _signal_group(leader: int | None, number: int) -> None:
    """Signal a kernel and its children: it leads a process group of its own."""
    if leader and hasattr(os, "killpg"):
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(leader, number)


def _signal_name(run: _Run) -> str:
    code = getattr(getattr(run.manager, "process", None), "returncode", None)
    if code is None or code >= 0:
        return ""
    hint = ", often because memory ran out" if -code == getattr(signal, "SIGKILL", 9) else ""
    return f" ({signal.Signals(-code).name}{hint})"


def _literal(path: Path) -> str:
    """papermill formats its output path: braces in it must be doubled."""
    return str(path).replace("{", "{{").replace("}", "}}")


def _code_cell(part: Path) -> int | None:
    """Number, among the code cells, of the last one that was started (inserted parameters count)."""
    try:
        cells = json.loads(part.read_text(encoding="utf-8"))["cells"]
    except (OSError, ValueError, KeyError):
        return None
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    started = [n for n, cell in enumerate(code, 1) if cell["metadata"].get("papermill", {}).get("start_time")]
    return started[-1] if started else None
