"""One maker at a time: a file that a live process holds and a dead one loses.

Plain files instead of flock, which shared file systems do not always honour, and no links, which some do not know. A
holder touches its file every few seconds; it is dead when its process is gone (same machine), or when it was silent for
a minute (another machine). One that was merely silent learns from `still_ours` that it was taken for dead, and
publishes nothing.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from cilkit.errors import UserError

HEARTBEAT = 5.0  # seconds between two signs of life of a holder
SILENCE = 60.0  # seconds of silence after which a holder on another machine is taken to be dead


class Claim:
    """A file that this process holds, with a heartbeat until it is released or lost. Also a context manager."""

    def __init__(self, path: Path, token: str):
        self.path, self._token, self._over = path, token, threading.Event()
        threading.Thread(target=self._beat, daemon=True, name="cilkit-heartbeat").start()

    def still_ours(self) -> bool:
        """Ask before publishing: False if somebody took over because we were silent, or after `release`.

        Raises OSError where the file system does not answer.
        """
        return not self._over.is_set() and _claim_of(self.path).get("token") == self._token

    def release(self) -> None:
        """Let others have it. What was taken over is left to its new holder."""
        try:
            if self.still_ours():
                self.path.unlink(missing_ok=True)
        finally:
            self._over.set()

    def _beat(self) -> None:
        while not self._over.wait(HEARTBEAT):
            with suppress(OSError):  # a file system that is away for a moment
                if self.still_ours():
                    os.utime(self.path)

    def __enter__(self) -> Claim:
        return self

    def __exit__(self, *error: object) -> None:
        self.release()


def claim(path: str | Path) -> Claim | None:
    """Hold the file `path`, or None at once while somebody alive holds it; a dead holder's is taken over.

    Of several that ask at the same time one gets it. Look afterwards whether the work is not done already: its last
    holder may have finished it in between. FileNotFoundError where there is no such folder.
    """
    path = Path(path)
    token = uuid.uuid4().hex
    who = {"host": _host(), "pid": os.getpid(), "pid_started": _started(os.getpid()), "token": token}
    while not _create(path, who):
        if not _is_dead(path) or not _break(path, who):
            return None
    return Claim(path, token)


def holder(path: str | Path) -> dict | None:
    """Who alive holds the file `path` (host, pid …); None where nobody does. A look, which claims nothing."""
    path = Path(path)
    try:
        who = _claim_of(path)
        return who if who and not _is_dead(path) else None
    except OSError:
        return None


@contextmanager
def sole_maker(lock: Path, what: str) -> Iterator[Callable[[], None]]:
    """Hold the file `lock` while making `what`; wait while a live process holds it, take over from a dead one.

    Yields a check to call before publishing: it raises UserError if somebody took over because we were silent.
    """
    told = False
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        while (held := claim(lock)) is None:
            if not told:
                print(f"cilkit: waiting for another process that is making {what}", flush=True)
                told = True
            time.sleep(0.2)
    except OSError as error:
        raise UserError(
            f"nothing can be written into {lock.parent} ({error.strerror}), so {what} cannot be made; make room there, "
            "or choose another folder (CILKIT_ARTIFACTS)"
        ) from None

    def still_ours() -> None:
        if not held.still_ours():
            raise UserError(f"another process took over the making of {what}; run again to use its result")

    with held:
        yield still_ours


def _create(lock: Path, who: dict) -> bool:
    """Create the lock; False if there is one. A reader between creation and content sees a silent holder, not a dead
    one."""
    try:
        handle = os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    except FileExistsError:
        return False
    try:
        with os.fdopen(handle, "w") as file:
            json.dump(who, file)
    except OSError:  # a full disk
        lock.unlink(missing_ok=True)
        raise
    return True


def _break(lock: Path, who: dict) -> bool:
    """Remove a dead holder's lock; False while another process is at it. One at a time looks and removes, so that
    nobody removes what somebody else has claimed since he looked."""
    guard = lock.with_name(f".{lock.name}.guard")
    if not _create(guard, who):
        if _is_dead(guard):  # killed in the middle of it
            guard.unlink(missing_ok=True)
        return False
    try:
        if _is_dead(lock):
            lock.unlink(missing_ok=True)
    finally:
        guard.unlink(missing_ok=True)
    return True


def _claim_of(lock: Path) -> dict:
    """What the holder wrote; {} where nobody holds it, or the writing was cut off."""
    try:
        return json.loads(lock.read_text())
    except (FileNotFoundError, ValueError):
        return {}


def _is_dead(lock: Path) -> bool:
    holder = _claim_of(lock)
    if holder.get("host") == _host():
        return _started(holder["pid"]) != holder["pid_started"]
    now = _now(lock.parent)
    try:
        with open(lock) as file:  # which asks the server of a shared file system; a mere stat may be a minute old
            return now - os.fstat(file.fileno()).st_mtime > SILENCE
    except FileNotFoundError:
        return False


def _now(folder: Path) -> float:
    """The file system's own time, by a file touched just now: the clocks of two machines may differ."""
    probe = folder / f".{uuid.uuid4().hex}.claim"
    probe.touch()
    try:
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)


@cache
def _host() -> str:
    """This machine since its last boot, and this container: process numbers mean nothing beyond them."""
    boot, space = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    known = [boot.read_text().strip()] * boot.exists() + [os.readlink(space)] * space.exists()
    return ":".join([socket.gethostname(), *known])


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
