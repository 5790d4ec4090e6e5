"""A sweep as a graph of jobs: its cells, and before them what makes the files that they name.

A cell whose parameter `backbone` is `params/03_pretraining/birds.yaml` comes after the job of notebook 03 with that
file, which comes after one of 02, and so on (realm, images, backbone, runs, analysis). Jobs are named by their content,
so what several cells, sweeps or people need is one job. What is done is read from files alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cilkit import artifacts, locks
from cilkit.errors import UserError
from cilkit.workbook import chain
from cilkit.workbook.execute import Status, in_place, read_status
from cilkit.workbook.fingerprint import fingerprint
from cilkit.workbook.jobs import Job, Needs
from cilkit.workbook.start import shown
from cilkit.workbook.sweepfile import SweepFile, read_sweep

ASKED = ("parameters", "files", "artifacts_root")  # what of a fingerprint is not about the code
KEY_LENGTH = 12  # hex digits of a job's key in its name


@dataclass
class Graph:
    """Jobs in the order in which they are started where there is room, each after those that it needs."""

    name: str
    jobs: list[Job]
    decide: dict[str, Any] = field(default_factory=dict)
    path: Path | None = None
    memo: chain.Memo = field(default_factory=dict)

    def only(self, conditions: Iterable[str]) -> Graph:
        """The jobs that fit all conditions (`axis=word,word`, or a part of a job's or notebook's name), and what these
        need. UserError where none fits."""
        tests = [_test(condition, self) for condition in conditions]
        wanted = {job.name for job in self.jobs if all(test(job) for test in tests)}
        if not wanted:
            raise UserError(f"--only {' '.join(conditions)}: no job of {self.name} fits.")
        for job in reversed(self.jobs):  # whatever a job needs stands above it
            if job.name in wanted:
                wanted |= set(job.after)
        return Graph(self.name, [job for job in self.jobs if job.name in wanted], self.decide, self.path, self.memo)


def cells_folder() -> Path:
    return (artifacts.repository() or Path.cwd()) / "reports" / "cells"


def sweep_folder(name: str) -> Path:
    return (artifacts.repository() or Path.cwd()) / "reports" / "sweeps" / name


def build(source: SweepFile | Path | str) -> Graph:
    """The graph of a sweep file; everything in it is checked (UserError)."""
    memo: chain.Memo = {}
    sweep = source if isinstance(source, SweepFile) else read_sweep(source, memo)
    builder = _Builder(memo)
    ends = [
        builder.job(c.notebook, c.given, c.labels, c.params, (c.seed, place), c.needs)
        for place, c in enumerate(sweep.cells)
    ]
    names = list(dict.fromkeys(job.name for job, cell in zip(ends, sweep.cells, strict=True) if not cell.last))
    for job, cell in zip(ends, sweep.cells, strict=True):
        if cell.last:
            job.after = list(dict.fromkeys([*job.after, *(name for name in names if name != job.name)]))
    return Graph(sweep.name, builder.ordered(), sweep.decide, sweep.path, memo)


class _Builder:
    def __init__(self, memo: chain.Memo):
        self.memo, self.jobs = memo, {}
        self.home = artifacts.repository() or Path.cwd()

    def job(self, notebook: Path, given: dict, labels: dict, params: str | None, rank: tuple, needs: Needs) -> Job:
        """The job of these parameters and, before it, those that they name; one that is there gets the earlier rank."""
        values = chain.resolved(notebook, given, self.memo)
        known = chain.declared(notebook, self.memo)
        given = {name: values[name] for name in given if values[name] != known[name].default}
        name = f"{notebook.stem}-{chain.key_of(notebook, values, self.memo)[:KEY_LENGTH]}"
        job = self.jobs.get(name)
        if job is None:
            output = cells_folder() / f"{name}.ipynb"
            job = self.jobs[name] = Job(name, notebook, given, output, [], labels, params, rank, needs)
        elif labels and not job.labels:  # what was only needed until now is a cell of its own too
            job.labels, job.params, job.needs = labels, params or job.params, needs
        job.rank = min(job.rank, rank)
        before = []
        for text, path in sorted(chain.files_named(values)):
            if (maker := chain.notebook_of(path)) is not None:
                content = chain.loaded(path, self.memo)
                before.append(self.job(maker, content, {}, text, (*rank, -1), needs).name)
        job.after = list(dict.fromkeys([*job.after, *before]))
        return job

    def ordered(self) -> list[Job]:
        """By rank, each behind what it needs (which has at least its rank: a job is started when its turn comes)."""
        done: dict[str, Job] = {}

        def place(job: Job) -> None:
            if job.name not in done:
                for name in job.after:
                    place(self.jobs[name])
                done[job.name] = job

        for job in sorted(self.jobs.values(), key=lambda job: job.rank[:2]):
            place(job)
        return list(done.values())


def save(graph: Graph, enough: int | None = None) -> Path:
    """What a sweep consists of, for pages and for people who look on: `reports/sweeps/<name>/sweep.json`.

    enough: the place of the seed after which it was decided, so that cells of later ones are not needed.
    """
    jobs = [
        {
            "name": job.name,
            "notebook": shown(job.notebook),
            "params": job.params,
            "labels": job.labels,
            "given": job.given,
            "after": job.after,
            "needed": enough is None or not job.labels or job.rank[0] <= enough,
            "output": shown(job.output),
        }
        for job in graph.jobs
    ]
    content = {"sweep": shown(graph.path) if graph.path else graph.name, "decide": graph.decide, "jobs": jobs}
    return artifacts.write_json(sweep_folder(graph.name) / "sweep.json", content)


def not_needed(name: str) -> set[str]:
    """The jobs that the saved sweep was decided without; none where it was not, or was never started."""
    try:
        saved = json.loads((sweep_folder(name) / "sweep.json").read_text(encoding="utf-8"))
        return {job["name"] for job in saved["jobs"] if not job["needed"]}
    except (OSError, ValueError, KeyError):
        return set()


# ---------------------------------------------------------------- what is done


def lock_of(job: Job) -> Path:
    return job.output.with_suffix(".lock")


class Ledger:
    """What is done, by the files that jobs leave; reads each notebook and artifact once.

    keep_stale: what earlier code or an earlier notebook made counts too, if parameters and inputs are the same.
    """

    def __init__(self, memo: chain.Memo | None = None, keep_stale: bool = False):
        self.memo, self.keep_stale = {} if memo is None else memo, keep_stale
        self._seen: dict[str, str] = {}  # artifacts that are whole

    def expected(self, job: Job, changed: dict[str, Any]) -> dict[str, Any]:
        """The fingerprint of a job that is up to date, with what a retry changed."""
        source = job.notebook.with_name(job.notebook.name + "#cells")
        if source not in self.memo:
            self.memo[source] = json.loads(job.notebook.read_text(encoding="utf-8"))
            for cell in self.memo[source]["cells"]:
                cell["source"] = "".join(cell["source"])
        return fingerprint(self.memo[source], job.given | changed, self.memo)

    def done(self, job: Job) -> Status | None:
        """The status of a job that is finished and up to date."""
        status = read_status(job.output)
        if status is None or not status.ok:
            return None
        expected = self.expected(job, status.changed)
        if any(status.fingerprint.get(part) != expected[part] for part in (ASKED if self.keep_stale else expected)):
            return None
        status.skipped = True
        return status if in_place(job.output, status, self._seen) else None

    def state(self, job: Job) -> tuple[str, Status | None]:
        """done, stale (of earlier code or parameters), running, stopped (its process is gone), failed …, to do."""
        if status := self.done(job):
            return "done", status
        status = read_status(job.output)
        if status is None:
            return ("running", None) if locks.holder(lock_of(job)) else ("to do", None)
        if status.state == "running":
            return ("running" if locks.holder(lock_of(job)) else "stopped"), status
        return ("stale" if status.ok else status.state), status


def _test(condition: str, graph: Graph) -> Any:
    axis, given, words = condition.partition("=")
    if not given:
        return lambda job: condition in job.name
    axes = {name for job in graph.jobs for name in job.labels}
    if axis not in axes:
        raise UserError(f"--only {condition}: there is no axis {axis!r}; {graph.name} has {', '.join(sorted(axes))}.")
    wanted = words.split(",")
    return lambda job: job.labels.get(axis) in wanted
