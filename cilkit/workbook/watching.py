"""How a sweep stands, by the files of its jobs: in a terminal, in JupyterLab, for who runs it or looks on."""

from __future__ import annotations

import html
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from cilkit.progress import left
from cilkit.workbook.execute import Status, read_status
from cilkit.workbook.graph import Graph, Ledger, build, not_needed
from cilkit.workbook.jobs import Job

if TYPE_CHECKING:
    from cilkit.workbook.driving import Driver

EVERY = 1.0  # seconds between two looks
ROWS = 12  # jobs that are named one by one
SIGNS = {"done": "✓", "running": "▸", "elsewhere": "▸", "to do": "·", "waiting": "·", "stale": "~", "not needed": "–"}
SIGNS |= {"stopped": "◦", "not run": "·"}  # any other state is a failure: ✗
BUSY, ENDED = ("running", "elsewhere"), ("done", "not needed")


@dataclass
class Line:
    """A job and its state in words."""

    job: Job
    state: str
    status: Status | None

    @property
    def sign(self) -> str:
        return SIGNS.get(self.state, "✗")

    @property
    def words(self) -> str:
        status = self.status
        if status is None or self.state in ("to do", "waiting", "not needed"):
            return self.state
        if self.state in BUSY:
            where = f"cell {status.cell} of {status.cells}" if status.cell and status.cells else "starting"
            return f"{where}, {left(status.left)}" if status.left is not None else where
        if self.state in ("done", "stale"):
            return f"{self.state}, {status.seconds:.0f} s"
        return f"{self.state}: {status.sentence}"


def look(graph: Graph, ledger: Ledger | None = None) -> list[Line]:
    """How each job stands by its files."""
    ledger, spare = ledger or Ledger(graph.memo), not_needed(graph.name)
    found = [Line(job, *ledger.state(job)) for job in graph.jobs]
    return [Line(x.job, "not needed", None) if x.job.name in spare and x.state == "to do" else x for x in found]


def lines_of(driver: Driver) -> list[Line]:
    """How each job stands in a driver's eyes; where a running one is, its file knows."""
    found = []
    for entry in driver.entries.values():
        failed = entry.state == "failed" and entry.status is not None
        status = read_status(entry.job.output) if entry.state in BUSY else entry.status
        found.append(Line(entry.job, entry.status.state if failed else entry.state, status))
    return found


def is_open(lines: list[Line]) -> bool:
    """Whether something runs or may yet: more than what stands behind a failure. lines: each behind what it needs."""
    hopeless: set[str] = set()
    for line in lines:
        if line.state in BUSY:
            return True
        if line.sign == "✗" or hopeless & set(line.job.after):
            hopeless.add(line.job.name)
    return any(line.state not in ENDED and line.job.name not in hopeless for line in lines)


def summary(lines: list[Line]) -> str:
    """ "12 of 40 done, 2 running, 1 failed"."""
    counts = Counter(line.state for line in lines)
    done = counts["done"] + counts["not needed"]
    others = [f"{n} {state}" for state, n in counts.items() if state not in (*ENDED, "to do", "waiting")]
    return ", ".join([f"{done} of {len(lines)} done", *others])


def chosen(lines: list[Line], rows: int = ROWS) -> list[Line]:
    """Those worth a line of their own: what runs, what failed, then what is next, then what ended last."""
    busy = [line for line in lines if line.state in BUSY]
    failed = [line for line in lines if line.sign == "✗"]
    coming = [line for line in lines if line.state in ("to do", "waiting", "stale", "stopped")]
    done = [line for line in lines if line.state in ENDED]
    return (busy + failed + coming + done[::-1])[:rows]


def as_text(title: str, lines: list[Line], width: int = 100, rows: int = ROWS) -> str:
    """A table of so many columns at most, with a bar of what is done."""
    done = sum(line.state in ENDED for line in lines)
    full = round(24 * done / max(len(lines), 1))
    shown = [f"{title}  [{'█' * full}{'░' * (24 - full)}]  {summary(lines)}"]
    picked = chosen(lines, rows)
    name = min(max((len(line.job.name) for line in picked), default=0), width // 3)
    for line in picked:
        shown.append(f" {line.sign} {line.job.name:<{name}.{name}}  {line.job.label}  {line.words}".replace("\n", " "))
    if len(lines) > len(picked):
        shown.append(f"   … and {len(lines) - len(picked)} more")
    return "\n".join(text if len(text) <= width else text[: width - 1] + "…" for text in shown)


def as_html(title: str, lines: list[Line], rows: int = ROWS) -> str:
    """The same for JupyterLab; whatever a label or a sentence holds is text."""
    cells = [(x.sign, x.job.name, x.job.label, x.words) for x in chosen(lines, rows)]
    body = "".join(f"<tr>{''.join(f'<td>{html.escape(text)}</td>' for text in row)}</tr>" for row in cells)
    head = "".join(f"<th>{name}</th>" for name in ("", "job", "what", "state"))
    done = sum(line.state in ENDED for line in lines)
    bar = f"<progress max='{len(lines)}' value='{done}'></progress> {html.escape(summary(lines))}"
    table = f"<p><strong>{html.escape(title)}</strong> {bar}</p><table><tr>{head}</tr>{body}</table>"
    return f"<div class='mathjax_ignore'>{table}</div>"  # a "$" in a label begins no formula


class Screen:
    """A table that stays in its place in a terminal; elsewhere nothing is drawn and the log's lines stand alone."""

    def __init__(self, title: str, stream: TextIO | None = None):
        self.title, self.stream = title, stream or sys.stdout
        self.live = self.stream.isatty()
        self._height, self._last = 0, 0.0

    def __call__(self, driver: Driver) -> None:
        if self.live and time.monotonic() - self._last >= EVERY:
            self.draw(lines_of(driver))

    def draw(self, lines: list[Line]) -> None:
        self._last = time.monotonic()
        size = shutil.get_terminal_size()
        text = as_text(self.title, lines, size.columns, max(3, min(ROWS, size.lines - 4)))
        self._erase()
        self.stream.write(text + "\n")
        self.stream.flush()
        self._height = text.count("\n") + 1

    def log(self, line: str) -> None:
        """A line above the table, which is drawn again in the same turn."""
        self._erase()
        self._last = 0.0
        self.stream.write(line + "\n")
        self.stream.flush()

    def _erase(self) -> None:
        if self.live and self._height:
            self.stream.write(f"\x1b[{self._height}A\x1b[J")
        self._height = 0


def watch(sweep: Path | str, seconds: float | None = None) -> None:
    """Look on at a sweep that runs elsewhere, until it is over (or for so many seconds): in a notebook a table that is
    drawn anew in its place, in a terminal the same in text. Interrupt to leave; the sweep goes on."""
    graph = build(Path(sweep))
    draw, ledger = _canvas(graph.name), Ledger(graph.memo)
    until = None if seconds is None else time.monotonic() + seconds
    try:
        while True:
            lines = look(graph, ledger)
            draw(lines)
            if not is_open(lines):
                return
            if until is not None and time.monotonic() >= until:
                return
            time.sleep(EVERY)
    except KeyboardInterrupt:
        return


def _canvas(title: str) -> Callable[[list[Line]], None]:
    """Where to draw: the cell of a notebook, else this terminal."""
    shell: Any = None
    if "IPython" in sys.modules:
        from IPython import get_ipython

        shell = get_ipython()
    if shell is None or not hasattr(shell, "kernel"):
        screen = Screen(title)
        return screen.draw
    from IPython.display import display

    handle = display({"text/html": "", "text/plain": title}, raw=True, display_id=True)
    return lambda lines: handle.update(
        {"text/html": as_html(title, lines), "text/plain": as_text(title, lines)}, raw=True
    )
