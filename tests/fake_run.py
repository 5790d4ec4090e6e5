"""A made-up run on disk in the layout of `cilkit.runs`, for tests of reading, analysing and drawing."""

import json
from pathlib import Path

import numpy as np

from cilkit import outputs


def write_run(folder: Path, increments=(2, 2, 2), per_class=20, dim=8, seed=0, recency=1.0, keep=None) -> Path:
    """Features are noisy points about class centres that drift with every task; old classes lose `recency` a task.

    keep: what the outputs keep whole (`outputs.Keep`); None writes the first layout, with all logits and features.
    """
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
        heads = {"raw": (logits - old).astype(np.float32), "aligned": logits.astype(np.float32)}
        if keep is not None:
            answers = outputs.Outputs(index[now], labels[now], heads, features)
            outputs.write(after, answers, task_of_class, keep)
            continue
        after.mkdir(parents=True)
        arrays = {"index": index[now], "labels": labels[now], "features": features}
        for name, array in (arrays | {f"logits_{head}": logits for head, logits in heads.items()}).items():
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


def write_domain_run(folder: Path, domains=3, n_classes=4, per_class=6, seed=0, compact=False) -> Path:
    """One label space: the images of all domains are tested after every task. Later domains come out better."""
    random = np.random.default_rng(seed)
    labels = np.tile(np.arange(n_classes), domains * per_class)
    tasks = np.repeat(np.arange(domains), n_classes * per_class)
    keep = outputs.Keep(logits=not compact)
    for t in range(domains):
        logits = random.normal(size=(len(labels), n_classes))
        logits[np.arange(len(labels)), labels] += np.where(tasks <= t, 2.0, 0.5)
        answers = outputs.Outputs(np.arange(len(labels)), labels, {"softmax": logits.astype(np.float32)}, None, tasks)
        outputs.write(folder / f"after_{t:02d}", answers, np.zeros(n_classes, int), keep)
    settings = {
        "learner": "fake",
        "protocol": "domain",
        "heads": ["softmax"],
        "default_head": "softmax",
        "class_names": [f"class {c}" for c in range(n_classes)],
        "increments": [n_classes] + [0] * (domains - 1),
        "task_names": [f"task {t + 1}: domain {t}" for t in range(domains)],
        "stream": {"benchmark": "made up", "order_seed": 1993, "kind": "tasks"},
        "seed_init": 0,
        "seed_data": 1,
        "backbone": {"tag": "vit_tiny.made_up", "parameters": 100, "bytes": 400},
        "stored_bytes": {"exemplars": 30, "statistics": 12},
        "forwards": {"declared": {}, "spent": {"student": 7, "test": 5}},
    }
    (folder / "run.json").write_text(json.dumps(settings))
    phases = {"train": {"seconds": 2.5, "peak_bytes": 1000, "calls": 3}}
    (folder / "measured.json").write_text(json.dumps({"phases": phases}))
    return folder
