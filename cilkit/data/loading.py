"""Reading ahead: the next batches are read and prepared while the present one is learnt."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from cilkit.data.imagesets import ImageSet

T = TypeVar("T")


def prefetched(
    images: ImageSet,
    cuts: Sequence[np.ndarray],
    prepare: Callable[[np.ndarray | list[np.ndarray], np.ndarray], T],
    ahead: int = 2,
    shortest: int = 0,
) -> Iterator[T]:
    """prepare(pixels, labels) of each cut (positions in `images`), in order, at most `ahead` cuts before its time.

    One thread reads and prepares, cut after cut, so that a random generator used by `prepare` advances in order
    whatever `ahead` is. ahead=0: no thread. An error of `prepare` or of reading is raised in its turn; leaving the loop
    early ends the thread. shortest: as in `ImageSet.read`.
    """

    def made(rows: np.ndarray) -> T:
        return prepare(images.read(rows, shortest), images.labels[rows])

    return in_order(made, cuts, workers=1, ahead=ahead) if ahead > 0 else map(made, cuts)


def ahead_for(images: ImageSet, device) -> int:
    """Cuts to prepare before their time: where pixels come from disk, or go to a GPU, that costs nothing."""
    return 2 if images.streamed or device.type != "cpu" else 0


def in_order(work: Callable[..., T], items: Iterable, workers: int, ahead: int) -> Iterator[T]:
    """work(item) of each item, in order, by `workers` threads which are at most `ahead` items before the one taken."""
    with ThreadPoolExecutor(workers) as crew:
        waiting: deque = deque()
        try:
            for item in items:
                waiting.append(crew.submit(work, item))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
