"""Several processes painting one plan: each loads the generator, is handed batches one by one, and answers in lines.

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
from cilkit.errors import UserError
from cilkit.synthesis.generators import Generator


class Crew:
    """Workers for one generator. `scratch` takes their logs."""

    def __init__(self, painter: Generator, scratch: Path):
        spec = getattr(painter, "spec", None)
        if spec is None:
            raise UserError(
                f"generator {painter.id!r} is an object of this process, which others cannot load; paint with workers=1"
            )
        self.order = {"spec": str(spec), "settings": getattr(painter, "given", {}), "digest": painter.digest}
        self.scratch = scratch

    def paint(self, requests: list[dict], workers: int) -> Iterator[int]:
        """Yields the batch number of each request as it is done; closing the iterator ends the workers."""
        waiting, done = queue.SimpleQueue(), queue.SimpleQueue()
        for request in requests:
            waiting.put(request)
        hands = [self._start(number) for number in range(min(workers, len(requests)))]
        for hand in hands:
            threading.Thread(target=_feed, args=(hand, waiting, done), daemon=True).start()
        try:
            for _ in requests:
                answer = done.get()
                if "error" in answer:
                    raise self._exception(answer)
                yield answer["batch"]
        finally:
            for hand in hands:
                hand.kill()
                hand.wait()

    def _start(self, number: int) -> subprocess.Popen:
        package = str(Path(cilkit.__file__).resolve().parent.parent)
        path = os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])])
        with open(self.scratch / f"worker-{number}.log", "wb") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "cilkit.synthesis.worker", json.dumps(self.order)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "PYTHONPATH": path},
                start_new_session=True,  # Ctrl-C in a terminal is the parent's to handle
            )

    def _exception(self, answer: dict) -> Exception:
        if answer.get("errno"):
            return OSError(answer["errno"], answer["error"])
        return UserError(answer["error"])


def _feed(hand: subprocess.Popen, waiting: queue.SimpleQueue, done: queue.SimpleQueue) -> None:
    """Hand one worker batch after batch; put its answers, or how it died, into `done`."""
    while True:
        try:
            request = waiting.get_nowait()
        except queue.Empty:
            return
        try:
            hand.stdin.write(json.dumps(request) + "\n")
            hand.stdin.flush()
            line = hand.stdout.readline()
        except (OSError, ValueError):
            line = ""
        if not line:
            batch, status = request["batch"], hand.wait()
            why = "killed, perhaps for lack of memory" if status < 0 else f"exit status {status}"
            done.put({"error": f"a painting process ended at batch {batch} ({why}); paint again, with fewer workers"})
            return
        done.put(json.loads(line))


def describe(error: BaseException) -> dict:
    """An exception of a worker as an answer."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return {"error": str(error), "errno": error.errno}
    if isinstance(error, UserError):
        return {"error": str(error)}
    reason = (str(error).strip().splitlines() or [""])[0][:300]
    return {"error": f"painting failed in a worker ({type(error).__name__}: {reason}); try a smaller batch size"}
