"""Seconds and peak memory of each phase of a long computation: `with phases("train"): …`. No torch at import.

Seconds are wall-clock, taken after the device has finished what it was given. The peak is the device's allocated
memory on CUDA, else the process's resident memory: what either held at most while the phase was open, whatever had
been allocated before it. Phases may be nested; the outer one contains the inner one's seconds and peak.
"""

import ctypes
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Phases:
    """Measure phases on one device. Of a phase entered again, seconds and calls add up; the peak is the largest."""

    def __init__(self, device: str = "cpu") -> None:
        self.device = str(device)
        self._table: dict[str, dict[str, float]] = {}
        self._open: list[dict[str, float]] = []

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        now = {"seconds": 0.0, "peak_bytes": 0, "calls": 1}
        self._settle()
        self._open.append(now)
        began = time.perf_counter()
        try:
            yield
        finally:
            self._settle()
            now["seconds"] = time.perf_counter() - began
            self._open = [phase for phase in self._open if phase is not now]
            self.add({name: now})

    def table(self) -> dict[str, dict[str, float]]:
        """{phase: {"seconds", "peak_bytes", "calls"}} of the phases that have ended."""
        return {name: dict(row) for name, row in self._table.items()}

    def add(self, table: Mapping[str, Mapping[str, float]]) -> None:
        """Count another table in: what an interrupted run had measured before."""
        for name, row in table.items():
            mine = self._table.setdefault(name, {"seconds": 0.0, "peak_bytes": 0, "calls": 0})
            mine["seconds"] += row["seconds"]
            mine["calls"] += row["calls"]
            mine["peak_bytes"] = max(mine["peak_bytes"], row["peak_bytes"])

    def _settle(self) -> None:
        """Wait for the device; what was held at most since the last time counts for every open phase."""
        if self.device.startswith("cuda"):
            import torch

            torch.cuda.synchronize(self.device)
            peak = torch.cuda.max_memory_allocated(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            peak = process_peak()
            reset_process_peak()
        for phase in self._open:
            phase["peak_bytes"] = max(phase["peak_bytes"], peak)


def process_peak() -> int:
    """Bytes that this process has held resident at most: since `reset_process_peak`, or ever where that is refused."""
    try:
        lines = STATUS.read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):  # not Linux
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def reset_process_peak() -> bool:
    """Start the process's peak afresh at what it holds now, without what it has freed but kept for its next blocks
    (`precision.keep_freed_memory`); False where the system does not allow it."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)
    try:
        RESET.write_text("5")
    except OSError:
        return False
    return True
