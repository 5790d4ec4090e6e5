"""A thousand runs of 20 tasks and 1,000 classes in one table, and what a run of ImageNet-1k's shape keeps.

    python perf/results.py [--runs 1000] [--images 50000]

Made-up runs with full summaries (two heads, as `cilkit.outcomes.summarise` writes them) are collected into a table,
compared in pairs and averaged by class, all from their summaries. Then the outputs of 10 tasks of 100 classes and
50,000 test images, two heads and features of 768 numbers, are written as `outputs.plan` decides, read back and scored.
The last line is JSON. Half a minute, most of it for the logits that stand in for a model.
"""

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np

from cilkit import outcomes, outputs
from cilkit.runs import Run

HEADS = ["raw", "aligned"]


def settings(classes: int, tasks: int, order: int) -> dict:
    """run.json as the loop writes it, with the lists that make it long."""
    return {
        "learner": "slca" if order % 2 else "finetune",
        "hyper": {"lr": 0.01, "epochs": 20},
        "seed_init": 0,
        "seed_data": 0,
        "protocol": "class",
        "stream": {"benchmark": "made up", "order_seed": 1993 + order // 2, "kind": "tasks"},
        "class_names": [f"a class with a name of some length {c}" for c in range(classes)],
        "increments": [classes // tasks] * tasks,
        "task_of_class": np.repeat(np.arange(tasks), classes // tasks).tolist(),
        "heads": HEADS,
        "default_head": "aligned",
        "forwards": {"declared": {}, "spent": {"student": 10**6, "test": 10**5}},
        "stored_bytes": {"class covariances": 10**9},
        "backbone": {"tag": "vit_base_patch16_224.augreg_in21k", "parameters": 85_798_656, "bytes": 343_194_624},
        "losses": [[{"cross-entropy": 0.5}] * 20] * tasks,
    }


def write_summaries(folder: Path, runs: int, classes: int = 1000, tasks: int = 20, images: int = 5000) -> list[Path]:
    """One run with real summaries, copied with other seeds and slightly other figures."""
    first, random = folder / "run_0", np.random.default_rng(0)
    write_run(first, settings(classes, tasks, 0), images, dim=0)
    outcomes.summarise(first)
    summary = json.loads((first / outcomes.SUMMARY).read_text())
    made = []
    for k in range(runs):
        run = folder / f"made_{k}"
        run.mkdir()
        (run / "run.json").write_text(json.dumps(settings(classes, tasks, k)))
        shift = random.normal()
        moved = {head: [(name, value + shift) for name, value in found] for head, found in summary.items()}
        (run / outcomes.SUMMARY).write_text(json.dumps(moved))
        for head in HEADS:
            shutil.copy(first / f"class_accuracy_{head}.npy", run)
        made.append(run)
    return made


def write_run(folder: Path, facts: dict, images: int, dim: int) -> outputs.Keep:
    """Random logits that lean to the true class, stage by stage, through `outputs.write`."""
    random, increments = np.random.default_rng(0), facts["increments"]
    classes, seen = sum(increments), np.cumsum(increments)
    after = [images * int(n) // classes for n in seen]
    keep = outputs.plan(after, seen.tolist(), len(HEADS), dim, facts["backbone"]["bytes"])
    for t, n in enumerate(after):
        labels = np.arange(n) % seen[t]
        logits = random.standard_normal((n, seen[t]), np.float32)
        logits[np.arange(n), labels] += 3
        features = random.standard_normal((n, dim), np.float32) if dim and keep.features else None
        answers = outputs.Outputs(np.arange(n), labels, dict.fromkeys(HEADS, logits), features)
        outputs.write(folder / f"after_{t:02d}", answers, facts["task_of_class"], keep)
    (folder / "run.json").write_text(json.dumps(facts))
    return keep


def timed(what: str, call):
    began = time.perf_counter()
    found = call()
    seconds = time.perf_counter() - began
    print(f"{what:62s}{seconds:10.2f} s", flush=True)
    return found, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--images", type=int, default=50_000, help="test images of the ImageNet-1k shape")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        made, _ = timed(f"{arguments.runs} summaries written", lambda: write_summaries(scratch, arguments.runs))
        table, collecting = timed(f"{arguments.runs} runs collected", lambda: outcomes.collect(made, heads="all"))
        table = table[table["head"] == "aligned"]
        _, comparing = timed("compared in pairs", lambda: outcomes.compare(table, "last accuracy", baseline="finetune"))
        runs = [Run(folder) for folder in made]
        _, averaging = timed(
            "accuracy on each class averaged over runs",
            lambda: sum(run.class_accuracy("aligned") for run in runs) / len(runs),
        )
        shape = settings(1000, 10, 0)
        keep, _ = timed("outputs of ImageNet-1k's shape written", lambda: write_run(scratch / "in1k", shape,
                                                                                    arguments.images, 768))  # fmt: skip
        kept = sum(path.stat().st_size for path in (scratch / "in1k").rglob("*") if path.is_file())
        timed("every figure of it computed from what was kept", lambda: outcomes.summarise(scratch / "in1k"))
    print(f"kept: {kept:,} bytes (planned {keep.bytes:,}); logits {keep.logits}, features {keep.features}")
    seconds = round(collecting + comparing + averaging, 2)
    print(json.dumps({"name": "seconds_to_aggregate", "value": seconds, "unit": "s", "runs": arguments.runs,
                      "kept_bytes": kept}))  # fmt: skip


if __name__ == "__main__":
    main()
