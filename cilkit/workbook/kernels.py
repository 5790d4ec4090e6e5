"""A notebook's kernel while it lives: a manager with sockets of its own, limits of time and memory, interrupts.

Kernels talk over IPC sockets in a folder of their own (TCP ports race on busy machines), in the notebook's folder as in
JupyterLab, and are killed with all their children when the notebook is over.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

GRACE = 15.0  # seconds that an interrupted kernel gets to finish what it keeps
# A kernel ends when it sees that its parent is gone, unless that was killed before it first looked and somebody else
# than init has adopted it (a desktop's systemd, a cluster's step daemon): so it looks once more, before its first cell.
ALONE = (
    "--IPKernelApp.exec_lines=None if __import__('psutil').pid_exists({0}) and "
    "__import__('psutil').Process({0}).status() != 'zombie' else __import__('os')._exit(1)"
)
PERIOD = 1.0  # seconds between two looks at a kernel's memory and time


class Run:
    """A kernel while it lives, and why it was stopped, if it was: `reason` is a state of `execute.Status`."""

    def __init__(self) -> None:
        self.manager: Any = None
        self.reason: str | None = None
        self.over = threading.Event()
        self.peak: float | None = None  # GB, the most that was seen

    def stop(self, reason: str) -> None:
        """Interrupt the kernel; kill it when it has not ended after GRACE seconds."""
        if self.reason is None:
            self.reason = reason
            threading.Thread(target=self._stop, daemon=True).start()

    def ended(self) -> str:
        """ " (SIGKILL, often because memory ran out)": how the kernel's process ended, if a signal ended it."""
        code = getattr(getattr(self.manager, "process", None), "returncode", None)
        if code is None or code >= 0:
            return ""
        hint = ", often because memory ran out" if -code == getattr(signal, "SIGKILL", 9) else ""
        return f" ({signal.Signals(-code).name}{hint})"

    @property
    def _pid(self) -> int | None:
        return getattr(getattr(self.manager, "provisioner", None), "pid", None)

    def _stop(self) -> None:
        signal_group(self._pid, signal.SIGINT)
        if not self.over.wait(GRACE):
            signal_group(self._pid, getattr(signal, "SIGKILL", signal.SIGTERM))

    def _watch(self, timeout: float | None, memory: float | None) -> None:
        """Until the run is over: note its memory, interrupt it after `timeout` s, kill it beyond `memory` GB."""
        deadline = time.monotonic() + timeout if timeout else float("inf")
        pause = 0.0
        while not self.over.wait(min(pause, max(0.0, deadline - time.monotonic()))):
            begun = time.monotonic()
            if begun >= deadline:
                self.stop("timeout")
                deadline = float("inf")
            processes = _with_children(self._pid) if self._pid else []
            taken = sum(map(_memory, processes))
            self.peak = round(max(taken, self.peak or 0.0), 3) if taken else self.peak
            if memory and taken > memory and self.reason in (None, "timeout"):
                self.reason = "memory"
                for process in processes:
                    with suppress(OSError, _gone()):
                        process.kill()
            pause = max(PERIOD, 20 * (time.monotonic() - begun))  # of tens of GB, counting pages takes a while


_running: set[Run] = set()


def interrupt_all(reason: str = "interrupted") -> None:
    """Interrupt every notebook that this process is executing (they run in threads and in sessions of their own)."""
    for run in list(_running):
        run.stop(reason)


@contextmanager
def watched(timeout: float | None, memory: float | None) -> Iterator[Run]:
    """A `Run` that `interrupt_all` and the limits can reach; afterwards nothing of its kernel is left."""
    run = Run()
    _running.add(run)
    threading.Thread(target=run._watch, args=[timeout, memory], daemon=True, name="cilkit-watch").start()
    try:
        yield run
    finally:
        run.over.set()
        _running.discard(run)


def kernel_class(
    run: Run, folder: Path, sockets: Path, environment: dict[str, str], says: Callable[[str], None]
) -> type:
    """A kernel manager with an environment, working directory and sockets of its own (threads share this process').

    `says` gets the lines that the kernel's process writes past Jupyter: of a library in C, of a crash.
    """
    from jupyter_client.manager import AsyncKernelManager

    class Kernel(AsyncKernelManager):
        def __init__(self, **kwargs: Any) -> None:
            ipc = {"transport": "ipc", "ip": str(sockets)} if os.name == "posix" else {}
            super().__init__(**kwargs, **ipc)
            run.manager = self

        async def start_kernel(self, **kwargs: Any) -> None:
            source, sink = os.pipe()
            threading.Thread(target=_pass_on, args=[source, says], daemon=True, name="cilkit-lines").start()
            try:
                if self.ipykernel:
                    kwargs["extra_arguments"] = [*kwargs.get("extra_arguments", ()), ALONE.format(os.getpid())]
                await super().start_kernel(**kwargs, env=environment, cwd=str(folder), stdout=sink, stderr=sink)
            finally:
                os.close(sink)
            self.process, self.leader = self.provisioner.process, self.provisioner.pid
            if run.reason:  # stopped while we were starting
                signal_group(self.leader, signal.SIGINT)

        async def cleanup_resources(self, restart: bool = False) -> None:
            signal_group(getattr(self, "leader", None), getattr(signal, "SIGKILL", signal.SIGTERM))
            await super().cleanup_resources(restart=restart)

    return Kernel


def _pass_on(source: int, says: Callable[[str], None]) -> None:
    with open(source, encoding="utf-8", errors="replace") as lines:
        for line in lines:
            says(line)


def signal_group(leader: int | None, number: int) -> None:
    """Signal a kernel and its children: it leads a process group of its own."""
    if leader and hasattr(os, "killpg"):
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(leader, number)


def _gone() -> type[Exception]:
    import psutil

    return psutil.Error


def _with_children(pid: int) -> list:
    """psutil's processes of `pid` and everything below it; [] when it has ended."""
    import psutil

    try:
        kernel = psutil.Process(pid)
        return [kernel, *kernel.children(recursive=True)]
    except psutil.Error:
        return []


def _memory(process: Any) -> float:
    """GB that a process takes: its own and its share of shared memory, without files that are merely mapped (a cache of
    decoded images may be larger than the machine's memory). Where Linux does not tell, its resident set."""
    try:
        lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
        return sum(int(line.split()[1]) for line in lines if line.startswith(("Pss_Anon:", "Pss_Shmem:"))) * 1024 / 1e9
    except OSError:
        pass
    try:
        return process.memory_info().rss / 1e9
    except _gone():
        return 0.0
