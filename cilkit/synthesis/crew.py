"""Several processes painting one job on this machine; one that dies is replaced, its shard taken over.

Processes of `python -m cilkit.synthesis.worker`, not multiprocessing: nothing of the notebook or script that asked is
imported again, and a worker whose parent was killed sees its input end and leaves.
"""

import errno
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import cilkit
from cilkit.devices import gpus
from cilkit.errors import UserError
from cilkit.synthesis.job import Job

RESTARTS = 3  # dead workers replaced, for each worker asked for
UNWRITABLE = {  # what stops writing, and is no fault of the program
    **dict.fromkeys([errno.ENOSPC, errno.EDQUOT], "is full"),
    **dict.fromkeys([errno.EACCES, errno.EPERM, errno.EROFS], "may not be written to"),
}


class Crew:
    """Workers for one job; their logs lie in its folder."""

    def __init__(self, job: Job):
        job.demand_spec()
        self.job = job

    def paint(self, workers: int) -> Iterator[int]:
        """Yields the images of every batch painted; closing the iterator ends the workers."""
        answers, left = queue.SimpleQueue(), RESTARTS * workers
        hands = {number: self._hire(number, answers) for number in range(workers)}
        try:
            while hands:
                number, answer = answers.get()
                if answer is not None:
                    yield images_of(answer)
                elif (status := hands.pop(number).wait()) != 0:
                    if left == 0:
                        raise UserError(self._why(number, status, RESTARTS * workers + 1))
                    left -= 1
                    hands[number] = self._hire(number, answers)
        finally:
            for hand in hands.values():
                hand.kill()
                hand.wait()

    def _hire(self, number: int, answers: queue.SimpleQueue) -> subprocess.Popen:
        hand = self._start(number)
        threading.Thread(target=_listen, args=(number, hand, answers), daemon=True).start()
        return hand

    def _start(self, number: int) -> subprocess.Popen:
        with open(self._log(number), "wb") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "cilkit.synthesis.worker", str(self.job.path), "--tied"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, **worker_environment(), **self._card(number)},
                start_new_session=True,  # Ctrl-C in a terminal is the parent's to handle
            )

    def _card(self, number: int) -> dict[str, str]:
        """Which GPU a worker sees: they go round, unless the generator was told its device."""
        cards = gpus() if self.job.order["given"].get("device", "auto") == "auto" else []
        return {"CUDA_VISIBLE_DEVICES": cards[number % len(cards)]} if cards else {}

    def _log(self, number: int) -> Path:
        return self.job.path / f"worker-{number}.log"

    def _why(self, number: int, status: int, times: int) -> str:
        said = (self._log(number).read_text(errors="replace").strip().splitlines() or [""])[-1][:200]
        how = "killed, perhaps for lack of memory" if status < 0 else f"with exit status {status}"
        return (
            f"painting processes ended {times} times, the last one {how}{said and f' ({said})'}; what is painted is "
            "kept: paint again, with fewer workers"
        )


def worker_environment() -> dict[str, str]:
    """One thread a worker, and this package importable."""
    package = str(Path(cilkit.__file__).resolve().parent.parent)
    path = os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])])
    return {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "PYTHONPATH": path}


def _listen(number: int, hand: subprocess.Popen, answers: queue.SimpleQueue) -> None:
    """Put a worker's answers into the queue, and None when it has ended."""
    for line in hand.stdout:
        if line.endswith("\n"):
            answers.put((number, json.loads(line)))
    answers.put((number, None))


def images_of(answer: dict) -> int:
    """The images that a worker reports; raises what it met instead."""
    if "error" not in answer:
        return answer["images"]
    if answer.get("errno"):
        raise OSError(answer["errno"], answer["error"])
    raise UserError(answer["error"])


def describe(error: BaseException) -> dict:
    """An exception of a worker as an answer."""
    if isinstance(error, OSError) and error.errno in UNWRITABLE:
        return {"error": str(error), "errno": error.errno}
    if isinstance(error, UserError):
        return {"error": str(error)}
    reason = (str(error).strip().splitlines() or [""])[0][:300]
    return {"error": f"painting failed in a worker ({type(error).__name__}: {reason}); what is painted is kept"}
