"""Progress of long work: a line at the start, then at most one every half minute, so that logs stay readable."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO


class Progress:
    """Call it with every moment of a learner or of pre-training; it decides when a line is worth printing.

    what:  named in each line, e.g. "slca on digits_photo, order 1993".
    every: seconds between two lines.
    """

    def __init__(self, what: str, stream: TextIO | None = None, every: float = 30.0) -> None:
        self.what, self.every = what, every
        self.stream = stream or sys.stderr
        self.last = time.monotonic()

    def __call__(self, moment: Any, *_: Any) -> None:
        if time.monotonic() - self.last < self.every:
            return
        self.last = time.monotonic()
        print(f"{self.what}: {describe(moment)}", file=self.stream, flush=True)


@contextmanager
def bar(what: str, total: int, done: int = 0) -> Iterator[Callable[..., None]]:
    """Progress over `total` images: a bar in a terminal, elsewhere (a notebook, a log) a line each half minute.

    Yields `tick(n=1)`, to be called after every n images.
    """
    from tqdm import tqdm

    lines = Progress(what)
    with tqdm(total=total, initial=done, desc=what, unit=" images", disable=None) as shown:

        def tick(n: int = 1) -> None:
            nonlocal done
            done += n
            shown.update(n)
            if shown.disable:
                lines(f"{done:,} of {total:,} images")

        yield tick


def describe(moment: Any) -> str:
    """One moment in words: task, epoch and losses where it has them."""
    losses = ", ".join(f"{name} {value:.3f}" for name, value in getattr(moment, "losses", {}).items())
    parts = []
    if (task := getattr(moment, "task", None)) is not None:
        parts.append(f"task {getattr(task, 'index', task) + 1}")
    if hasattr(moment, "epoch"):
        parts.append(f"epoch {moment.epoch + 1} of {moment.epochs}")
    return ", ".join([*parts, losses] if losses else parts) or str(moment)
