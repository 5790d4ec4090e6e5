"""A verb that runs while its cell waits, so that a Stop button, and whatever else the notebook offers, can be used."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import signal
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from cilkit import stopping
from cilkit.progress import publish, watched

PROMPT = 0.5  # seconds; what is found sooner needs no button
GLANCE = 0.2  # seconds between two looks at whether it is over
SAYS = "cilkit: stopping at the end of this epoch or batch"
HINT = "Stop at the next epoch or batch; what is finished is kept, and the next run goes on from there"


async def background(verb: Callable, *arguments: Any, **settings: Any) -> Any:
    """`await cilkit.background(cilkit.learn, …)`: what `cilkit.learn(…)` returns or raises, bit for bit.

    In a notebook that a person watches, the verb runs in a thread of its own, under a button. The button, or an
    interrupt (■), lets it end at its next whole moment, with a checkpoint; the cell then raises `Stopped`, and run
    again it goes on from there. What never comes to such a moment is ended by restarting the kernel, as ever.
    Elsewhere (papermill, `cilkit run`, scripts) the verb is simply called.
    """
    call = functools.partial(verb, *arguments, **settings)
    if not watched():
        with _interruptible():
            return call()
    wish = stopping.Wish()
    result = _in_a_thread(call, wish)
    try:
        await asyncio.wait({result}, timeout=PROMPT)
        if not result.done():
            with _button(wish):
                await _end_of(result, wish)
    except asyncio.CancelledError:  # ■ in the first moments, or whoever else cancels the cell
        wish.make()
        await _end_of(result, wish)
    return result.result()


async def _end_of(result: asyncio.Future, wish: stopping.Wish) -> None:
    """Wait for it; an interrupt is a wish to stop.

    A kernel that answers other messages meanwhile puts handlers of its own in place before and after each, and loses
    those of a cell that awaits where two messages come together: so ours is set again and again.
    """
    ours = threading.current_thread() is threading.main_thread()
    before, told = signal.getsignal(signal.SIGINT), False
    try:
        while not result.done():
            if ours:
                signal.signal(signal.SIGINT, lambda *_: wish.make())
            await asyncio.wait({result}, timeout=GLANCE)
            if wish.made and not told:
                print(SAYS, file=sys.stderr, flush=True)
                told = True
    finally:
        if ours:
            signal.signal(signal.SIGINT, before)


def _in_a_thread(call: Callable[[], Any], wish: stopping.Wish) -> asyncio.Future:
    """A future of what `call` gives, which heeds the wish. A daemon: a kernel that shuts down waits for nothing."""
    loop, context = asyncio.get_running_loop(), contextvars.copy_context()  # whose outputs go to the cell that waits
    result = loop.create_future()

    def settle(how: Callable, what: Any) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(lambda: None if result.done() else how(what))

    def work() -> None:
        try:
            with stopping.heeding(wish):
                value = call()
        except BaseException as error:
            settle(result.set_exception, error)
        else:
            settle(result.set_result, value)

    threading.Thread(target=context.run, args=(work,), daemon=True, name="cilkit-background").start()
    return result


@contextmanager
def _button(wish: stopping.Wish) -> Iterator[None]:
    """A Stop button under the cell, gone when the work is over; none where ipywidgets is not installed."""
    try:
        from ipywidgets import Button
    except ImportError:
        yield
        return
    button, place = Button(description="Stop", icon="stop", tooltip=HINT), uuid.uuid4().hex

    def pressed(_: Any) -> None:
        wish.make()
        button.disabled, button.description = True, "Stopping …"

    button.on_click(pressed)
    publish(button._repr_mimebundle_(), place, False)
    try:
        yield
    finally:
        publish({"text/plain": ""}, place, True)
        button.close()


@contextmanager
def _interruptible() -> Iterator[None]:
    """Where a cell awaits, a kernel turns an interrupt into a message to its loop, which a call keeps from running:
    within, an interrupt raises KeyboardInterrupt again."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
