"""The driver of a graph of jobs: starts them in fair order where there is room, retries what a retry can help.

Its memory is the files that jobs leave and the locks that drivers hold, so that it may be killed at any moment and
started again, twice at the same time, or on another machine that sees the folder: what is finished is never run again,
what another driver runs is waited for, and what a dead one left is taken over.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from cilkit import locks
from cilkit.errors import Stopped, UserError
from cilkit.workbook import chain
from cilkit.workbook.execute import Status, read_status, write_status
from cilkit.workbook.graph import Ledger, lock_of
from cilkit.workbook.jobs import Executor, Job
from cilkit.workbook.start import shown

RETRIES = 2  # of a kernel, worker or machine that died
LOOK = 1.0  # seconds between two looks at what another driver runs
BATCH = "batch_size"  # the parameter that is halved where memory ran out
FEW = 40  # jobs; of more, those that are done are not named one by one
OVER = {"done", "failed", "not run", "not needed"}


@dataclass
class Entry:
    """A job in this driver's eyes."""

    job: Job
    state: str = "waiting"  # then running, elsewhere, and one of OVER
    status: Status | None = None
    attempt: int = 0
    changed: dict[str, Any] | None = None  # parameters of a retry that differ
    claim: locks.Claim | None = None
    looked: float = 0.0
    was_ours: bool = False  # executed by this driver


class Driver:
    """Runs jobs to their end. Call `run()`; `entries` tells at any time how things stand.

    decided: called after each whole seed with the names of the cells that are done; (True, …) ends the sweep there.
    again:   run also what is done. keep_failed: what failed by its own fault, unchanged since, is not tried again.
    look:    called in every turn, to draw a table; log: gets a line for each event.
    enough:  called with the place of the seed after which it was decided.
    """

    def __init__(
        self,
        jobs: Iterable[Job],
        executor: Executor,
        ledger: Ledger | None = None,
        *,
        log: Callable[[str], None] = print,
        decided: Callable[[list[str]], tuple[bool, list[str]]] | None = None,
        again: bool = False,
        keep_failed: bool = False,
        look: Callable[[Driver], None] | None = None,
        enough: Callable[[int], Any] | None = None,
    ):
        self.entries = {job.name: Entry(job) for job in jobs}
        self.executor, self.ledger = executor, ledger or Ledger()
        self.log, self.decided, self.look, self.enough = log, decided, look, enough
        self.again, self.keep_failed = again, keep_failed
        self.begun, self.stopped, self.full, self.asked = time.monotonic(), False, "", set()

    def run(self) -> bool:
        """Until every job has ended; True if all that was needed is done. Stopped after an interrupt."""
        for entry in self.entries.values() if not self.again else ():
            if status := self.ledger.done(entry.job):
                self._end(entry, "done", status, quietly=len(self.entries) > FEW)
        try:
            for needs in {entry.job.needs for entry in self._in("waiting")}:
                self.executor.room(needs)  # what can never run is said before anything is
            if self.decided is not None:
                self._ask()  # it may be enough already
            while not all(entry.state in OVER for entry in self.entries.values()):
                try:
                    self._turn()
                except KeyboardInterrupt:
                    self._interrupted()
        finally:
            self.executor.close()
            for entry in self.entries.values():
                self._release(entry)
        if self.stopped:
            raise Stopped("interrupted; finished jobs and artifacts are kept, run again to go on.")
        if self.full:
            raise UserError(self.full)
        return all(entry.state in ("done", "not needed") for entry in self.entries.values())

    # ------------------------------------------------------------ a turn

    def _turn(self) -> None:
        for entry in self._in("waiting", "elsewhere"):
            if self.stopped or self.full:
                self._end(entry, "not run", self._not_run(entry, "the sweep was stopped."))
            elif causes := [name for name in entry.job.after if self._state(name) in ("failed", "not run")]:
                self._end(entry, "not run", self._not_run(entry, f"{', '.join(causes)} did not finish."))
            elif all(self._state(name) in ("done", "not needed", None) for name in entry.job.after):
                self._start(entry)
        for job, status in self.executor.finished(0.5 if self._in("running") else 0.05):
            self._ended(self.entries[job.name], status)
        if self._in("elsewhere") and not self._in("running"):
            time.sleep(0.2)
        if self.decided is not None:
            self._ask()
        if self.look is not None:
            self.look(self)

    def _start(self, entry: Entry) -> None:
        now = time.monotonic()
        if entry.state == "elsewhere" and now - entry.looked < LOOK or not self.executor.room(entry.job.needs):
            return
        entry.looked = now
        try:
            entry.job.output.parent.mkdir(parents=True, exist_ok=True)
            entry.claim = locks.claim(lock_of(entry.job))
        except OSError as error:
            self._end(entry, "failed", self._status(entry, "failed", _reason(error)))
            return
        if entry.claim is None:
            if entry.state != "elsewhere":
                entry.state = "elsewhere"
                self.log(f"{self._clock()}  {entry.job.name}: another driver runs it")
            return
        ended = self._ended_elsewhere(entry)
        if ended is not None:
            self._release(entry)
            self._end(entry, "done" if ended.ok else "failed", ended, quietly=ended.ok)
            return
        entry.attempt, entry.was_ours = entry.attempt + 1, True
        self.executor.submit(entry.job, entry.job.given | (entry.changed or {}), entry.attempt)
        entry.state = "running"  # not before it is handed over: an interrupt here must not leave us waiting for it
        self.log(f"{self._clock()}  {entry.job.name}: started ({entry.job.label})")

    def _ended_elsewhere(self, entry: Entry) -> Status | None:
        """What came out of a job that we hold now, where it has ended without us."""
        if self.again and entry.state != "elsewhere" or entry.attempt:
            return None
        if done := self.ledger.done(entry.job):
            return done
        status = read_status(entry.job.output)
        if status is None or not (self.keep_failed or entry.state == "elsewhere") or status.state != "failed":
            return None
        same = status.fingerprint == self.ledger.expected(entry.job, status.changed)
        return status if same and not _full(status.sentence) else None

    def _ended(self, entry: Entry, status: Status) -> None:
        retry = None if self.stopped else self._retry(entry, status)
        if retry is not None:
            entry.state = "waiting"
            self._release(entry)
            self.log(f"{self._clock()}  {entry.job.name}: {status.state}: {status.sentence} {retry}")
            return
        if entry.changed:
            status.changed = entry.changed
            before = chain.resolved(entry.job.notebook, entry.job.given, self.ledger.memo)
            words = ", ".join(f"{name} {before[name]} -> {value}" for name, value in entry.changed.items())
            status.notes.append(f"memory ran out, so it was run again with {words}.")
            with suppress(OSError):
                write_status(entry.job.output, status)
        self._release(entry)
        self._end(entry, "done" if status.ok else "failed", status)

    def _retry(self, entry: Entry, status: Status) -> str | None:
        """Why it is worth another try, after preparing that; None where it is not. An error of the code is not."""
        if status.state == "dead" and entry.attempt <= RETRIES:
            return f"Try {entry.attempt + 1} of {RETRIES + 1}."
        if status.state == "memory" and entry.changed is None:
            size = chain.resolved(entry.job.notebook, entry.job.given, self.ledger.memo).get(BATCH)
            if type(size) is int and size > 1:
                entry.changed = {BATCH: size // 2}
                return f"Once more with {BATCH} {size // 2} in place of {size}."
        return None

    # ------------------------------------------------------------ when it is enough

    def _ask(self) -> None:
        """After each whole seed: are the comparisons decided? Then what has not begun is not needed."""
        cells = [entry for entry in self.entries.values() if entry.job.labels]
        open_seeds = {entry.job.rank[0] for entry in cells if entry.state not in OVER}
        for seed in sorted({entry.job.rank[0] for entry in cells}):
            if seed in self.asked or min(open_seeds, default=seed + 1) <= seed:
                continue
            self.asked.add(seed)
            done = [e.job.name for e in cells if e.state == "done" and e.job.rank[0] <= seed]
            enough, sentences = self.decided(done)
            for sentence in sentences:
                self.log(f"{self._clock()}  {sentence}")
            if enough:
                if self.enough is not None:
                    self.enough(seed)
                self.log(f"{self._clock()}  decided: no further seeds are needed")
                for entry in self._in("waiting"):
                    if entry.job.labels and entry.job.rank[0] > seed:
                        self._end(entry, "not needed", self._status(entry, "not needed", "the comparison is decided."))

    # ------------------------------------------------------------ small things

    def _in(self, *states: str) -> list[Entry]:
        return [entry for entry in self.entries.values() if entry.state in states]

    def _state(self, name: str) -> str | None:
        return self.entries[name].state if name in self.entries else None

    def _end(self, entry: Entry, state: str, status: Status, quietly: bool = False) -> None:
        entry.state, entry.status = state, status
        if not quietly:
            self.log(f"{self._clock()}  {entry.job.name}: {in_words(status)}")
        if state == "failed" and _full(status.sentence):
            self.full = (
                "the disk is full, so nothing more was started: free some space and run again; finished work is kept."
            )

    def _release(self, entry: Entry) -> None:
        if entry.claim is not None:
            with suppress(OSError):
                entry.claim.release()
            entry.claim = None

    def _interrupted(self) -> None:
        if self.stopped:
            os._exit(130)  # the second time; kernels end when their parent is gone
        self.log("stopping: each notebook keeps what it has finished (once more to leave at once)")
        self.stopped = True
        self.executor.stop()

    def _not_run(self, entry: Entry, sentence: str) -> Status:
        """The status of a job whose turn did not come; an earlier outcome of it stays in its files."""
        earlier = read_status(entry.job.output)
        if earlier is not None and earlier.ok:
            sentence += " Its files are from an earlier run."
        return self._status(entry, "not run", sentence)

    def _status(self, entry: Entry, state: str, sentence: str) -> Status:
        return Status(state, shown(entry.job.notebook), entry.job.output.name, entry.job.given, sentence=sentence)

    def _clock(self) -> str:
        return f"{time.monotonic() - self.begun:6.1f} s"


def in_words(status: Status) -> str:
    if status.ok:
        return "unchanged" if status.skipped else f"ok, {status.seconds:.1f} s"
    return f"{status.state.upper()}: {status.sentence}"


def _full(sentence: str) -> bool:
    """Whether a run ended for lack of room: so say artifacts that are being made, this driver, or the system."""
    return "disk" in sentence and " is full" in sentence or "No space left" in sentence or "quota exceeded" in sentence


def _reason(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full."
    return f"nothing can be written beside its output ({error.strerror})."
