"""Stopping where nothing is lost: a person asks, and the computation ends at its next whole moment, with a checkpoint.

Asked is by an interrupt (JupyterLab's ■, Ctrl-C) while `politely` is open, or by a `Wish` that another thread holds
(the Stop button of `cilkit.background`). Loops look at `asked()` where their state is whole, keep it, and `check()`.
"""

from __future__ import annotations

import _thread
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from queue import Empty, SimpleQueue

PATIENCE = 10.0  # seconds that an epoch gets to end after an interrupt; below `workbook.kernels.GRACE`
WORDS = "cilkit: stopping at the end of this epoch or batch; interrupt once more to stop at once"


class Wish:
    """That a computation stops. Made by one thread, seen by the one that computes."""

    def __init__(self) -> None:
        self.made = False

    def make(self) -> None:
        self.made = True


_wish: ContextVar[Wish | None] = ContextVar("wish", default=None)


def asked() -> bool:
    """Whether somebody wishes that this computation stops."""
    wish = _wish.get()
    return wish is not None and wish.made


def check() -> None:
    """KeyboardInterrupt where somebody wishes so. Called after what is finished was kept."""
    if asked():
        raise KeyboardInterrupt


@contextmanager
def heeding(wish: Wish) -> Iterator[None]:
    """What is computed within heeds this wish."""
    token = _wish.set(wish)
    try:
        yield
    finally:
        _wish.reset(token)


@contextmanager
def politely() -> Iterator[None]:
    """Within, an interrupt is a wish first. A second one, or PATIENCE seconds, raise KeyboardInterrupt wherever we are.

    Nothing changes in threads, which get no signals, nor where interrupts have another handler already.
    """
    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    wish, told = Wish(), SimpleQueue()  # whose `put` may interrupt any code, as a signal does

    def interrupted(*_: object) -> None:
        if wish.made:
            raise KeyboardInterrupt
        wish.make()
        told.put("stop")

    def grow_impatient() -> None:
        if told.get() == "over":
            return
        print(WORDS, file=sys.stderr, flush=True)
        try:
            told.get(timeout=PATIENCE)
        except Empty:
            _thread.interrupt_main()

    threading.Thread(target=grow_impatient, daemon=True, name="cilkit-stopping").start()
    signal.signal(signal.SIGINT, interrupted)
    try:
        with heeding(wish):
            yield
        if wish.made:
            raise KeyboardInterrupt  # too late to be heeded within
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        told.put("over")
