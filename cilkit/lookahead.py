"""Forward transfer of the representation: what the backbone makes of a task before it has learnt it.

In a class-incremental stream no head knows a class before its task, so forward transfer cannot be read off the accuracy
matrix (in a domain-incremental one it can: `metrics.forward_transfer`). What can be asked is how well the features tell
the next task's classes apart. That needs forward passes that no method needs: it is off unless asked for, and counted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from cilkit.probes import nearest_class_mean

if TYPE_CHECKING:
    from cilkit.data import Stream
    from cilkit.learners import Learner

KIND = "probe"  # under which its passes are counted


def knowable(learner: Learner, stream: Stream, index: int) -> float:
    """Accuracy in percent, among task `index`'s own classes, of the nearest class mean on the present features: class
    means from the task's training images, tested on its test images."""
    train = stream[index].fresh
    test = stream.test.select(stream.task_of(stream.test) == index)
    seen, asked = (learner.features(images, KIND).astype(np.float64) for images in (train, test))  # (n, dim)
    return float(100 * np.mean(nearest_class_mean(seen, train.labels, asked) == test.labels))


def declared(stream: Stream) -> int:
    """Images that this forwards: every task but the first, training and test images, twice."""
    tasks = stream.task_of(stream.test)
    return 2 * sum(len(task.fresh) + int((tasks == task.index).sum()) for task in stream if task.index)
