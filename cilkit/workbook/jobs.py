"""What a sweep consists of: one notebook with one set of parameters is a job, named by its content.

Equal jobs have equal names, whatever sweep asks for them, so they run once and are shared. What they leave lies in
`reports/cells/`: `<name>.ipynb`, `<name>.status.json`, `<name>.log` and the folder `<name>/` (`execute`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from cilkit.workbook.execute import Status


@dataclass(frozen=True)
class Needs:
    """What one job occupies while it runs. None: no limit."""

    cpus: float = 1.0
    gpus: float | None = None  # 0.5: two such jobs share a GPU; None (which no executor sees): one where there are any
    timeout: float | None = None  # seconds of the whole notebook
    memory: float | None = None  # GB of the kernel with its children


@dataclass
class Job:
    """A notebook to be executed once with `given` parameters."""

    name: str  # "04_slca-3f2a91c0b7de": notebook, and a digest of parameters, named files and the jobs before it
    notebook: Path
    given: dict[str, Any]  # what differs from the notebook's defaults
    output: Path  # the executed notebook
    after: list[str] = field(default_factory=list)  # names of the jobs that make what this one reads
    labels: dict[str, str] = field(default_factory=dict)  # axis -> value in words; what tells it apart in its sweep
    params: str | None = None  # its parameter file, as a page names it
    rank: tuple = ()  # place in the fair order: smaller ones first
    needs: Needs = Needs()

    @property
    def label(self) -> str:
        return ", ".join(f"{name} {value}" for name, value in self.labels.items()) or self.params or "defaults"


class Executor(Protocol):
    """Where jobs run. The driver asks for room, hands over, and collects; what is done stands in files, never here."""

    def room(self, needs: Needs) -> bool:
        """Whether a job with these needs could start now. UserError where it never could."""

    def submit(self, job: Job, given: dict[str, Any], attempt: int) -> None:
        """Start `job` with these parameters (of a retry they may differ from the job's own)."""

    def finished(self, timeout: float) -> Iterable[tuple[Job, Status]]:
        """Jobs that ended, after waiting at most `timeout` seconds for the next one."""

    def stop(self, reason: str = "interrupted") -> None:
        """Interrupt what is running: each notebook keeps what it has finished."""

    def close(self) -> None:
        """Leave nothing behind."""
