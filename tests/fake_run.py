"""A made-up run on disk in the layout of `cilkit.runs`, for tests of reading, analysing and drawing."""

import json
from pathlib import Path

import numpy as np


def write_run(folder: Path, increments=(2, 2, 2), per_class=20, dim=8, seed=0, recency=1.0) -> Path:
    """Features are noisy points about class centres that drift with every task; old classes lose `recency` a task."""
    random = np.random.default_rng(seed)
    n_classes = sum(increments)
    labels = np.tile(np.arange(n_classes), per_class)
    index = random.permutation(len(labels))  # the place in a benchmark's test set
    centres = random.normal(size=(n_classes, dim))
    points = centres[labels] + random.normal(size=(len(labels), dim))
    drift = random.normal(size=(len(increments), dim)).cumsum(0)
    task_of_class = np.repeat(np.arange(len(increments)), increments)
    for t in range(len(increments)):
        now = np.flatnonzero(task_of_class[labels] <= t)
        seen = sum(increments[: t + 1])
        features = (points[now] + 0.3 * drift[t]).astype(np.float32)
        logits = -((features[:, None] - centres[None, :seen]) ** 2).sum(2)
        old = recency * (t - task_of_class[:seen])
        after = folder / f"after_{t:02d}"
        after.mkdir(parents=True)
        arrays = {"index": index[now], "labels": labels[now], "features": features}
        arrays |= {"logits_raw": (logits - old).astype(np.float32), "logits_aligned": logits.astype(np.float32)}
        for name, array in arrays.items():
            np.save(after / f"{name}.npy", array)
    settings = {
        "learner": "fake",
        "heads": ["raw", "aligned"],
        "default_head": "aligned",
        "class_names": [f"class {c}" for c in range(n_classes)],
        "increments": list(increments),
    }
    (folder / "run.json").write_text(json.dumps(settings))
    return folder
