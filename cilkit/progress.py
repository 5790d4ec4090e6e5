"""Progress of long work: in a notebook that a person watches, one output that is replaced in place; in a terminal a
bar; elsewhere a line at most every half minute, so that logs stay readable.
"""

from __future__ import annotations

import importlib
import math
import os
import sys
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from html import escape
from typing import Any, TextIO

from cilkit import stopping

LIVE = "CILKIT_LIVE"  # environment variable: 1 shows live blocks in every kernel, 0 in none
HASTE = 0.5  # seconds between two updates of a block, at least
SHARE = 1000  # the share of the time so far that lies between them later: an hour's block is redrawn each 3.6 s
THRIFT = 100  # and at least so often the time that the last update took: no more than a hundredth goes into showing
SHORT = 1.0  # seconds; work that is over sooner needs no block
FONT = "font:13px/1.5 var(--jp-ui-font-family, system-ui, sans-serif);color:inherit"
COLOUR = "#0072b2"


def watched() -> bool:
    """Whether a person probably looks at this kernel's notebook.

    A kernel cannot know. JupyterLab names a session's notebook, VS Code its file, and `cilkit run` says that it is
    there; a papermill that was started from a notebook inherits the name, and then its output holds the block as it was
    last, which is harmless. CILKIT_LIVE=0 or 1 decides otherwise.
    """
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    if getattr(shell, "kernel", None) is None:  # a script, a terminal, a worker
        return False
    if (decided := os.environ.get(LIVE, "")) in ("0", "1"):
        return decided == "1"
    batch = {"CILKIT_RUN", "CILKIT_NOTEBOOK"} & os.environ.keys()
    return not batch and ("JPY_SESSION_NAME" in os.environ or "__vsc_ipynb_file__" in shell.user_ns)


class Block:
    """One output of a notebook, replaced in place: at most twice a second at first, ever more rarely later, so that
    neither the browser nor a server that buffers for an absent one drowns. The saved notebook holds its last state.

    patience: seconds before it appears.
    """

    def __init__(self, patience: float = SHORT) -> None:
        self.id, self.shown, self.began = uuid.uuid4().hex, False, time.monotonic()
        self.due = self.began + patience

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began

    def show(self, draw: Callable[[], tuple[str, str]], last: bool = False) -> None:
        """Put what `draw()` gives (HTML, plain text) there if it is time; at the end in any case, if it is there."""
        now = time.monotonic()
        if now < self.due and not (last and self.shown):
            return
        html, plain = draw()
        html = f'<div class="mathjax_ignore">{html}</div>'  # a "$" in a name begins no formula
        publish({"text/html": html, "text/plain": plain}, self.id, self.shown)
        cost, self.shown = time.monotonic() - now, True
        self.due = now + max(HASTE, (now - self.began) / SHARE, cost * THRIFT)


def publish(bundle: dict[str, str], display_id: str, again: bool) -> None:
    """Show in the running cell, or replace what is shown under this id."""
    from IPython.display import display, update_display

    (update_display if again else display)(bundle, raw=True, display_id=display_id)


class Progress:
    """Call it with every moment of long work; it decides when that is worth showing.

    what:     named in each line, e.g. "asking for birds".
    every:    seconds between two lines, where nobody watches.
    patience: seconds before a block appears, where somebody does.
    Left as a context manager, a block is one line: how long it took.
    """

    def __init__(
        self, what: str, stream: TextIO | None = None, every: float = 30.0, *, patience: float = SHORT
    ) -> None:
        self.what, self.every = what, every
        self.stream = stream or sys.stderr
        self.last = time.monotonic()
        self.block = Block(patience) if watched() else None
        self.ended = ""  # what became of it

    def __call__(self, moment: Any, *_: Any) -> None:
        self.tell(lambda: describe(moment))

    def tell(self, words: Callable[[], str]) -> None:
        """Say it if it is time."""
        if self.block is not None:
            self.block.show(lambda: self.draw(words()))
        elif time.monotonic() - self.last >= self.every:
            self.last = time.monotonic()
            print(f"{self.what}: {words()}", file=self.stream, flush=True)

    def draw(self, words: str) -> tuple[str, str]:
        """The block: HTML and plain text."""
        return f'<div style="{FONT}"><b>{escape(self.what)}</b>: {escape(words)}</div>', f"{self.what}: {words}"

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        if self.block is not None:
            self.ended = f"{'stopped after' if kind else 'done in'} {duration(self.block.seconds)}"
            self.block.show(lambda: self.draw(self.ended), last=True)


class Pace(Progress):
    """Progress over images: call it with images so far, in all, and words; it adds images/s and the time left.

    The rate is that of the time since the first call, so that what an earlier attempt did does not count.

    stops: whether a call is a place to end at when a person wishes so; not where the caller keeps a checkpoint first.
    """

    began: tuple[float, int] | None = None  # seconds, images
    done, total = 0, 0

    def __init__(self, *arguments: Any, stops: bool = False, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.stops = stops

    def __call__(self, done: int, total: int, words: str = "") -> None:
        self.done, self.total = done, total
        if self.began is None:
            self.began = time.monotonic(), done
        self.tell(lambda: self._words(words))
        if self.stops:
            stopping.check()

    def _words(self, words: str) -> str:
        seconds, images = time.monotonic() - self.began[0], self.done - self.began[1]
        parts = [words] if words else [f"{self.done:,} of {self.total:,} images"]
        if seconds > 0 and images > 0:
            rate = images / seconds
            parts += [f"{rate:,.0f} images/s" if rate >= 10 else f"{rate:.1f} images/s"]
            parts += [left((self.total - self.done) / rate)]
        return ", ".join(parts)

    def draw(self, words: str) -> tuple[str, str]:
        html, plain = super().draw(words)
        return (html if self.ended else html + bar_of(self.done, self.total, self.what)), plain


def bar_of(done: float, total: float, label: str) -> str:
    """A bar as HTML, with its share in figures beside it."""
    percent = min(100, math.floor(100 * done / total)) if total else 0
    return (
        f'<div style="{FONT};display:flex;align-items:center;gap:8px;max-width:640px">'
        f'<div role="progressbar" aria-label="{escape(label)}" aria-valuemin="0" aria-valuemax="100" '
        f'aria-valuenow="{percent}" style="flex:1;height:10px;border:1px solid currentColor;border-radius:5px;'
        f'overflow:hidden"><div style="width:{percent}%;height:100%;background:{COLOUR}"></div></div>'
        f"<span>{percent} %</span></div>"
    )


def left(seconds: float) -> str:
    """ "2 h 05 min left": what people plan by."""
    if seconds <= 59:
        return f"{math.ceil(seconds)} s left"
    minutes = math.ceil(seconds / 60)
    return f"{minutes} min left" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min left"


def duration(seconds: float) -> str:
    """ "0.4 s", "34 s", "2 min 05 s", "3 h 07 min"."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, seconds = divmod(whole, 60)
    return f"{minutes} min {seconds:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


@contextmanager
def bar(what: str, total: int, done: int = 0) -> Iterator[Callable[..., None]]:
    """Progress over `total` images, with images/s and the time left: a bar in a terminal and in a notebook that is
    watched, elsewhere (a log) a line each half minute. It ends where a person wishes to stop.

    Yields `tick(n=1)`, to be called after every n images.
    """
    from tqdm import tqdm

    with (
        Pace(what, stops=True) as pace,
        tqdm(total=total, initial=done, desc=what, unit=" images", disable=None) as shown,
    ):

        def tick(n: int = 1) -> None:
            nonlocal done
            done += n
            shown.update(n)
            if shown.disable:
                pace(done, total)

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
