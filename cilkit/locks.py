"""One maker at a time: a lock file that a live process holds and a dead one loses.

Plain files instead of flock, which shared file systems do not always honour. A maker touches its lock every few
seconds; it is dead when its process is gone (same machine), or when it was silent for a minute (another machine).
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cilkit.errors import UserError

HEARTBEAT = 5.0  # seconds between two signs of life of a maker
SILENCE = 60.0  # seconds of silence after which a maker on another machine is taken to be dead


@contextmanager
def sole_maker(lock: Path, what: str) -> Iterator[Callable[[], None]]:
    """Hold the file `lock` while making `what`; wait while a live process holds it, take over from a dead one.

    Yields a check to call before publishing: it raises UserError if somebody took over because we were silent.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    token = f"{socket.gethostname()}:{os.getpid()}:{threading.get_ident()}:{time.time_ns()}"
    claim = {"host": _host(), "pid": os.getpid(), "pid_started": _started(os.getpid()), "token": token}
    told = False
    while not _create(lock, claim):
        if _is_dead(lock):
            _break(lock, token)
            continue
        if not told:
            print(f"cilkit: waiting for another process that is making {what}", flush=True)
            told = True
        time.sleep(0.2)

    over = threading.Event()

    def beat() -> None:
        while not over.wait(HEARTBEAT):
            if _claim_of(lock).get("token") == token:
                os.utime(lock)

    def still_ours() -> None:
        if _claim_of(lock).get("token") != token:
            raise UserError(f"another process took over the making of {what}; run again to use its result")

    threading.Thread(target=beat, daemon=True, name="cilkit-heartbeat").start()
    try:
        yield still_ours
    finally:
        over.set()
        if _claim_of(lock).get("token") == token:
            lock.unlink(missing_ok=True)


def _create(lock: Path, claim: dict) -> bool:
    """Create the lock with its content in one step (link of a finished file): no reader ever sees half a claim."""
    beside = lock.with_name(f".{lock.name}.{os.getpid()}.{threading.get_ident()}.claim")
    beside.write_text(json.dumps(claim))
    try:
        os.link(beside, lock)
        return True
    except FileExistsError:
        return False
    finally:
        beside.unlink(missing_ok=True)


def _break(lock: Path, token: str) -> None:
    """Remove a dead maker's lock. Renaming first makes sure that of several waiting processes one does it."""
    aside = lock.with_name(f".{lock.name}.{hashlib.sha256(token.encode()).hexdigest()[:8]}.dead")
    try:
        os.rename(lock, aside)
    except FileNotFoundError:
        return
    if not _is_dead(aside):  # between look and rename a live maker had claimed it: give it back
        with suppress(FileExistsError):
            os.link(aside, lock)
    aside.unlink(missing_ok=True)


def _claim_of(lock: Path) -> dict:
    try:
        return json.loads(lock.read_text())
    except (OSError, ValueError):
        return {}


def _is_dead(lock: Path) -> bool:
    claim = _claim_of(lock)
    try:
        silent = time.time() - lock.stat().st_mtime
    except FileNotFoundError:
        return False
    if claim.get("host") == _host():
        return _started(claim["pid"]) != claim["pid_started"]
    return silent > SILENCE


def _host() -> str:
    """This machine since its last boot: process numbers mean nothing beyond it."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return socket.gethostname() + (":" + boot.read_text().strip() if boot.exists() else "")


def _started(pid: int) -> str | None:
    """When process `pid` began, in the system's own ticks; None if it is not alive (a zombie is not)."""
    stat = Path(f"/proc/{pid}/stat")
    if stat.parent.parent.joinpath("self").exists():  # Linux
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            return None
        return None if fields[0] in "ZX" else fields[19]
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OSError):
        return None
    return "alive"
