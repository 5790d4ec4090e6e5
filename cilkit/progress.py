"""Progress of long work: a line at the start, then at most one every half minute, so that logs stay readable."""

from __future__ import annotations

import importlib
import math
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
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


class Pace(Progress):
    """Progress over images: call it with images so far, in all, and words; it adds images/s and the time left.

    The rate is that of the time since the first call, so that what an earlier attempt did does not count.
    """

    began: tuple[float, int] | None = None  # seconds, images

    def __call__(self, done: int, total: int, words: str = "") -> None:
        now = time.monotonic()
        if self.began is None:
            self.began = now, done
        seconds, images = now - self.began[0], done - self.began[1]
        parts = [words] if words else [f"{done:,} of {total:,} images"]
        if seconds > 0 and images > 0:
            rate = images / seconds
            parts += [f"{rate:,.0f} images/s" if rate >= 10 else f"{rate:.1f} images/s", left((total - done) / rate)]
        super().__call__(", ".join(parts))


def left(seconds: float) -> str:
    """ "2 h 05 min left": what people plan by."""
    if seconds <= 59:
        return f"{math.ceil(seconds)} s left"
    minutes = math.ceil(seconds / 60)
    return f"{minutes} min left" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min left"


@contextmanager
def bar(what: str, total: int, done: int = 0) -> Iterator[Callable[..., None]]:
    """Progress over `total` images: a bar in a terminal, elsewhere (a notebook, a log) a line each half minute,
    with images/s and the time left.

    Yields `tick(n=1)`, to be called after every n images.
    """
    from tqdm import tqdm

    lines = Pace(what)
    with tqdm(total=total, initial=done, desc=what, unit=" images", disable=None) as shown:

        def tick(n: int = 1) -> None:
            nonlocal done
            done += n
            shown.update(n)
            if shown.disable:
                lines(done, total)

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


@contextmanager
def quietly(*libraries: str) -> Iterator[None]:
    """Without the progress bars and remarks of "transformers", "diffusers" while they load or save: they would be all
    that a notebook shows of it. Also a decorator."""
    found = [importlib.import_module(f"{library}.utils.logging") for library in libraries]
    with ExitStack() as stack, warnings.catch_warnings():
        for logging in found:
            stack.callback(logging.set_verbosity, logging.get_verbosity())
            logging.set_verbosity(logging.CRITICAL)
            logging.disable_progress_bar()
            stack.callback(logging.enable_progress_bar)
        warnings.simplefilter("ignore", FutureWarning)
        yield
