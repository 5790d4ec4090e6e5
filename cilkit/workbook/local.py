"""Jobs on this machine: kernels side by side, each with its share of cores and its GPUs."""

from __future__ import annotations

import os
import queue
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cilkit.errors import UserError
from cilkit.workbook.execute import Status, interrupt_all, run_notebook
from cilkit.workbook.jobs import Job, Needs
from cilkit.workbook.start import shown


@dataclass
class _Place:
    """What a running job occupies."""

    cpus: float
    gpus: dict[str, float] = field(default_factory=dict)  # GPU -> share


class LocalExecutor:
    """Kernels of this process, each a process group of its own, in as many threads as jobs run at once.

    workers: jobs at a time; None: as many as their `cpus` fit into the cores. gpus: names as in CUDA_VISIBLE_DEVICES.
    finish:  called with the folder of each job that ended well, before its status says so.
    """

    def __init__(
        self,
        workers: int | None = None,
        gpus: list[str] | None = None,
        finish: Callable[[Path], None] | None = None,
    ):
        if workers is not None and workers < 1:
            raise UserError(f"workers is {workers}; expected 1 or more.")
        self.cores = os.cpu_count() or 1
        self.workers, self.gpus, self.finish = workers, list(gpus or []), finish
        self._places: dict[str, _Place] = {}
        self._ended: queue.SimpleQueue = queue.SimpleQueue()
        self._pool = ThreadPoolExecutor(workers or max(self.cores, len(self.gpus) * 8))
        self._stopping = ""

    def room(self, needs: Needs) -> bool:
        if needs.gpus > len(self.gpus):
            have = f"there are {len(self.gpus)} ({', '.join(self.gpus)})" if self.gpus else "there is none"
            raise UserError(f"a job needs {needs.gpus:g} GPUs and {have}: change `needs` in the sweep, or give --gpus.")
        if self.workers is not None and len(self._places) >= self.workers:
            return False
        if self.workers is None and self._places:
            used = sum(place.cpus for place in self._places.values())
            if used + min(needs.cpus, self.cores) > self.cores:
                return False
        return self._cards(needs.gpus) is not None

    def submit(self, job: Job, given: dict[str, Any], attempt: int) -> None:
        place = self._places[job.name] = _Place(min(job.needs.cpus, self.cores), self._cards(job.needs.gpus) or {})
        self._pool.submit(self._run, job, given, attempt, self._environment(place))

    def finished(self, timeout: float) -> list[tuple[Job, Status]]:
        found = []
        if self._stopping:
            interrupt_all(self._stopping)  # again and again: a kernel may only now be starting
        try:
            found.append(self._ended.get(timeout=timeout))
            while not self._ended.empty():
                found.append(self._ended.get())
        except queue.Empty:
            pass
        for job, _ in found:
            del self._places[job.name]
        return found

    def stop(self, reason: str = "interrupted") -> None:
        self._stopping = reason
        interrupt_all(reason)

    def close(self) -> None:
        self._pool.shutdown(wait=True)

    def _environment(self, place: _Place) -> dict[str, str]:
        """Threads that do not fight: a kernel's own cores, or its part of them where more run than there are."""
        threads = int(place.cpus) if self.workers is None else max(1, self.cores // self.workers)
        environment = {"OMP_NUM_THREADS": str(max(1, threads)), "OMP_WAIT_POLICY": "PASSIVE"}
        return environment | ({"CUDA_VISIBLE_DEVICES": ",".join(place.gpus)} if self.gpus else {})

    def _cards(self, wanted: float) -> dict[str, float] | None:
        """GPUs with room for so many (a share: the fullest that has it, so that whole ones stay free), or None."""
        taken = dict.fromkeys(self.gpus, 0.0)
        for place in self._places.values():
            for card, share in place.gpus.items():
                taken[card] += share
        if wanted == 0:
            return {}
        share = wanted if wanted < 1 else 1.0
        fitting = sorted((card for card in self.gpus if taken[card] + share <= 1 + 1e-9), key=lambda card: -taken[card])
        count = 1 if wanted < 1 else round(wanted)
        return dict.fromkeys(fitting[:count], share) if len(fitting) >= count else None

    def _run(self, job: Job, given: dict[str, Any], attempt: int, environment: dict[str, str]) -> None:
        """In a thread of the pool: whatever happens, the job ends with a status."""
        try:
            if self._stopping:
                status = Status(
                    "interrupted", shown(job.notebook), job.output.name, sentence="stopped before it began."
                )
            else:
                status = run_notebook(
                    job.notebook,
                    given,
                    job.output,
                    timeout=job.needs.timeout,
                    memory=job.needs.memory,
                    again=True,
                    environment=environment,
                    finish=self.finish,
                    attempt=attempt,
                )
        except Exception as error:  # a full disk, a folder that may not be written to
            reason = str(error) if isinstance(error, UserError | OSError) else f"{type(error).__name__}: {error}"
            status = Status("failed", shown(job.notebook), job.output.name, given, sentence=reason)
        self._ended.put((job, status))
