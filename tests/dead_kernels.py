"""A pytest plugin (`-p tests.dead_kernels`): nbval notices a dead kernel within a second, not at the cell's timeout."""

import time
from queue import Empty

from nbval.kernel import RunningKernel

_wait_for_message = RunningKernel.get_message


def _get_message(kernel: RunningKernel, stream: str, timeout: float | None = None) -> dict:
    """nbval's own wait in steps of a second, between which the kernel must be alive."""
    deadline = float("inf") if timeout is None else time.monotonic() + timeout
    while True:
        left = deadline - time.monotonic()
        try:
            return _wait_for_message(kernel, stream, timeout=max(0.0, min(1.0, left)))
        except Empty:
            if not kernel.is_alive():
                raise RuntimeError("the notebook's kernel died, often because memory ran out") from None
            if left <= 1.0:
                raise


def pytest_configure() -> None:
    RunningKernel.get_message = _get_message
