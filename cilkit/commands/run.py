"""`cilkit run`: one notebook, with checked parameters."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from cilkit.progress import left

if TYPE_CHECKING:
    from cilkit.workbook.execute import Status


def add(commands: argparse._SubParsersAction) -> None:
    run = commands.add_parser("run", help="execute one notebook with checked parameters")
    run.add_argument("notebook", type=Path)
    run.add_argument("-f", "--file", type=Path, action="append", default=[], help="parameter file (later ones win)")
    run.add_argument("-p", "--parameter", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"))
    run.add_argument("-o", "--output", type=Path, help="executed notebook (default: reports/runs/<name>.ipynb)")
    run.add_argument("--timeout", type=float, metavar="SECONDS", help="limit for the whole notebook")
    run.add_argument("--memory", type=float, metavar="GB", help="limit for the kernel with its children")
    run.add_argument("--again", action="store_true", help="also if nothing has changed")
    run.set_defaults(call=_run)


class CellLines:
    """A line for each cell that begins, with the time left where an earlier run tells; in a file at most one every half
    minute, beside those of the first and the last cell."""

    def __init__(self, stream: TextIO | None = None, every: float = 30.0) -> None:
        self.stream, self.every, self.last = stream or sys.stderr, every, 0.0

    def __call__(self, status: Status) -> None:
        now = time.monotonic()
        if self.stream.isatty() or status.cell in (1, status.cells) or now - self.last >= self.every:
            self.last = now
            rest = f", {left(status.left)}" if status.left else ""
            print(f"cell {status.cell} of {status.cells}{rest}", file=self.stream, flush=True)


def _run(options: argparse.Namespace) -> int:
    from cilkit import artifacts
    from cilkit.road.gathering import write_result
    from cilkit.workbook import parameters
    from cilkit.workbook.execute import interrupt_all, run_notebook
    from cilkit.workbook.start import shown

    known = parameters.declared(options.notebook)
    given = {}
    for path in options.file:
        given |= parameters.load_params(path)
    for name, text in options.parameter:
        declared = known[name].type if name in known else ""
        a_text = "str" in declared.replace("Literal", "") and not (text == "null" and "None" in declared)
        given[name] = text if a_text else parameters.parse_text(text)
    stem = "-".join([options.notebook.stem, *(path.stem for path in options.file)])
    home = artifacts.repository() or Path.cwd()
    output = options.output or home / "reports" / "runs" / f"{stem}.ipynb"

    def stop(number: int, frame: object) -> None:
        """The first signal interrupts the kernel, which keeps what it has; the second one ends us."""
        signal.signal(number, signal.default_int_handler)
        interrupt_all()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    limits = {"timeout": options.timeout, "memory": options.memory, "again": options.again, "finish": write_result}
    status = run_notebook(options.notebook, given, output, log=print, live=True, progress=CellLines(), **limits)
    if status.skipped:
        print(f"{shown(output.absolute())}: nothing has changed since it was made (--again runs it all the same)")
    elif status.ok:
        print(f"{shown(output.absolute())}: ok, {status.seconds:.1f} s")
    else:
        where = f" in code cell {status.cell}" if status.cell else ""
        print(f"cilkit: {status.state}{where}: {status.sentence}", file=sys.stderr)
    return 130 if status.state == "interrupted" else int(not status.ok)
