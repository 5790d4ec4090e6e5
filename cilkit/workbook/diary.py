"""What is told of a run while it goes: its log, its status file cell by cell, the terminal, and who asked."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from cilkit.hiding import Sieve, hidden

if TYPE_CHECKING:
    from cilkit.workbook.execute import Status


class Diary:
    """Listens to a notebook (`listening.Listener`) and keeps its `status` up to date. A context manager.

    path:        of the log; what an earlier attempt left in it is kept.
    environment: the kernel's; its secrets reach nothing that is written here.
    earlier:     seconds of each code cell in an earlier run, for the time left; [] without one.
    live:        whether what the cells print is printed here, too.
    tell:        is called with the status at the start of each code cell.
    """

    def __init__(
        self,
        path: Path,
        status: Status,
        environment: Mapping[str, str],
        earlier: list[float],
        live: bool,
        tell: Callable[[Status], None],
    ) -> None:
        self.path, self.status, self.environment, self.earlier = path, status, environment, earlier
        self.live, self.tell = live, tell
        self._sieve = Sieve(environment)
        self._at_line_start = True
        self._lock = threading.Lock()

    def __enter__(self) -> Diary:
        mode = "a" if self.status.attempt > 1 else "w"
        self._file = open(self.path, mode, encoding="utf-8", errors="backslashreplace")
        self._line(f"{self.status.notebook}, attempt {self.status.attempt}, on {self.status.host}")
        return self

    def __exit__(self, *error: object) -> None:
        self._line(f"{self.status.state}, {self.status.seconds:.1f} s {self.status.sentence}".rstrip())
        with self._lock:
            self._file.close()

    def begins(self, cell: int, cells: int) -> None:
        self.status.cell, self.status.cells = cell, cells
        self.status.left = round(sum(self.earlier[cell - 1 :]), 1) if len(self.earlier) == cells else None
        self._begun = time.monotonic()
        self._line(f"cell {cell} of {cells}")
        self.tell(self.status)

    def says(self, text: str, stream: str) -> None:
        with self._lock:
            if self._file.closed:  # a child of a kernel that is gone
                return
            self._write(self._sieve.sift(text))
        if self.live and stream != "error":
            print(text, end="", file=sys.stdout if stream == "stdout" else sys.stderr, flush=True)

    def overhears(self, line: str) -> None:
        """A line that the kernel's process wrote past Jupyter. Called from another thread."""
        self.says(hidden(line, self.environment), "stderr")

    def ends(self) -> None:
        self.status.cell_seconds.append(round(time.monotonic() - self._begun, 2))
        self._line(f"cell {self.status.cell} ended, {self.status.cell_seconds[-1]:.1f} s")

    def _line(self, text: str) -> None:
        now = time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime())
        with self._lock:
            self._write(self._sieve.rest())
            self._write("\n" * (not self._at_line_start) + f"[{now}] {text}\n")

    def _write(self, text: str) -> None:
        if text:
            self._at_line_start = text.endswith("\n")
            self._file.write(text)
            self._file.flush()
