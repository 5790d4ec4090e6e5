"""Every table and figure of forgetting over 60 saved runs of 100 classes, without a model and without torch.

    python perf/analysis.py [--runs 60] [--classes 100] [--tasks 10] [--images 50] [--keep FOLDER]

Made-up runs with two heads, features of 64 to 128 numbers, and whole logits or, every third, compact scores: new
classes push old ones out, features drift, one head is aligned. Every table is made of every run and every figure is
drawn and written as PNG. The straightforward way looks at each image of each class for the confusion flow, in Python
loops, and compares every two stages' features afresh; it is timed on a few runs in the same process. The last line is
JSON; its value is the seconds of all tables and figures. Seconds of processors say what a busy machine would need
alone.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np

from cilkit import analysis, outputs, plots
from cilkit.runs import Run

HEADS = ["raw", "aligned"]
LEARNERS = ("finetune", "slow learner", "slca", "lwf", "icarl", "replay")


def write_run(folder: Path, number: int, increments: list[int], images: int) -> Path:
    """One run: linear heads on drifting features, the newest classes ahead in the raw head."""
    random = np.random.default_rng(number)
    classes, dim, strength = sum(increments), (64, 96, 128)[number % 3], 0.5 + number % 6
    labels, task_of = np.tile(np.arange(classes), images), np.repeat(np.arange(len(increments)), increments)
    centres = random.normal(size=(classes, dim)).astype(np.float32)
    points = centres[labels] + 2 * random.normal(size=(len(labels), dim)).astype(np.float32)
    turn = np.eye(dim, dtype=np.float32)
    for t in range(len(increments)):
        now, seen = task_of[labels] <= t, sum(increments[: t + 1])
        turn = turn + 0.02 * strength * random.normal(size=(dim, dim)).astype(np.float32) / np.sqrt(dim)
        features = points[now] @ turn
        weights = centres[:seen] @ turn
        weights /= np.linalg.norm(weights, axis=1, keepdims=True)
        longer = 1 + 0.1 * strength * (task_of[:seen] - t) / len(increments)
        heads = {"raw": features @ (weights * longer[:, None]).T + 0.3 * strength * (task_of[:seen] == t)}
        heads["aligned"] = features @ weights.T
        answers = outputs.Outputs(np.flatnonzero(now), labels[now], heads, features)
        keep = outputs.Keep(logits=number % 3 != 2)
        outputs.write(folder / f"after_{t:02d}", answers, task_of, keep)
    settings = {"learner": LEARNERS[number % 6], "heads": HEADS, "default_head": "aligned", "increments": increments}
    settings["class_names"] = [f"a class with a name of some length {c}" for c in range(classes)]
    (folder / "run.json").write_text(json.dumps(settings))
    return folder


def flow_by_loops(run: Run, head: str) -> dict[tuple, float]:
    """{(after task, true class, predicted class): share}: the straightforward `analysis.class_flow`."""
    shares = {}
    for t in range(run.n_tasks):
        labels, predicted = run.labels(t), run.predictions(t, head)
        for c in range(sum(run.increments[: t + 1])):
            taken = Counter(int(p) for p, label in zip(predicted, labels, strict=True) if label == c)
            for taker, n in taken.items():
                shares[t + 1, c, taker] = 100 * n / sum(taken.values())
    return shares


def similarity_by_pairs(run: Run) -> dict[tuple[int, int], float]:
    """{(earlier, later): CKA}: every two stages from their files, as the formula has it."""
    found = {}
    for t in range(run.n_tasks):
        for s in range(t):
            _, at_s, at_t = np.intersect1d(run.ids(s), run.ids(t), return_indices=True)
            found[s + 1, t + 1] = analysis.linear_cka(run.features(s)[at_s], run.features(t)[at_t])
    return found


class Clock:
    """Seconds a step, printed as they come."""

    def __init__(self):
        self.spent: dict[str, float] = {}

    def __call__(self, what: str, call):
        began = time.perf_counter()
        found = call()
        self.spent[what] = time.perf_counter() - began
        print(f"{what:44s}{self.spent[what]:8.2f} s", flush=True)
        return found


def tables(clock: Clock, arms: dict, joint: Run) -> dict:
    """Every table, of all runs."""
    of = analysis.of_arms
    raw = {arm: (run, "raw") for arm, (run, _) in arms.items()}
    made = {"matrices": clock("accuracy matrices (reads the outputs)", lambda: analysis.matrices(arms))}
    clock("matrices of the raw heads (reads them too)", lambda: analysis.matrices(raw))
    whole = {
        "curves": lambda: analysis.curves(arms),
        "changes_by_task": lambda: of(analysis.changes_by_task, raw, reference=joint),
        "changes_by_class": lambda: of(analysis.changes_by_class, raw, reference=joint),
        "accuracy_by_class": lambda: {arm: analysis.accuracy_by_class(*raw[arm]) for arm in raw},
        "confusion_flow": lambda: {arm: analysis.confusion_flow(*raw[arm]) for arm in raw},
        "class_flow": lambda: of(analysis.class_flow, raw),
        "task_flow": lambda: of(analysis.task_flow, raw),
        "takers": lambda: of(analysis.takers, raw),
        "recency_over_time": lambda: of(analysis.recency_over_time, raw),
        "weight_norms": lambda: of(analysis.weight_norms, raw),
        "head_and_representation": lambda: of(analysis.head_and_representation, raw),
        "class_mean_drift": lambda: of(analysis.class_mean_drift, arms),
        "feature_drift": lambda: of(analysis.feature_drift, arms),
        "alignment_by_stage": lambda: of(analysis.alignment_by_stage, arms),
        "alignment_by_task": lambda: of(analysis.alignment_by_task, arms),
        "calibration_by_stage": lambda: of(analysis.calibration_by_stage, arms),
        "reliability": lambda: {arm: analysis.reliability(*arms[arm][:1], head="raw") for arm in list(arms)[:6]},
        "stability_plasticity": lambda: analysis.stability_plasticity(raw),
        "heads_beside_probes": lambda: analysis.heads_beside_probes(raw, {arm: {"linear probe": 70.0} for arm in raw}),
    }
    made |= {name: clock(name, make) for name, make in whole.items()}
    made["thefts"] = clock("top_thefts", lambda: analysis.top_thefts(made["class_flow"]))
    return made


def orders_of(made: dict) -> "tuple":
    """Arms over orders out of the last accuracies: learners, each with as many orders as there are runs of it."""
    last = made["curves"].groupby("arm", sort=False)["accuracy"].last().reset_index()
    last["order"] = np.arange(len(last)) // 6
    last["arm"] = [LEARNERS[number % 6] for number in range(len(last))]
    last = last.rename(columns={"accuracy": "last accuracy"})
    return last, analysis.significance(last, baseline=LEARNERS[0])


def figures(clock: Clock, arms: dict, made: dict, folder: Path) -> None:
    """Every figure; those of one run are drawn of the first."""
    first, (run, _) = next(iter(arms.items()))
    one = {name: table[table["arm"] == first] for name, table in made.items() if "arm" in getattr(table, "columns", ())}
    gaps = made["stability_plasticity"].rename(columns={"last": "last accuracy"}).head(12)
    gaps = gaps.assign(gap=np.linspace(9, 1, len(gaps)))
    orders, stands = clock("significance", lambda: orders_of(made))
    chance, lines = 100 / len(run.class_names), {"chance": 100 / len(run.class_names), "joint": 90.0}
    drawn = {
        "accuracy_heat_maps": lambda: plots.accuracy_heat_maps(made["matrices"], **lines),
        "accuracy_curves": lambda: plots.accuracy_curves(made["curves"].head(6 * run.n_tasks), **lines),
        "changes_by_task": lambda: plots.changes(made["changes_by_task"], **lines),
        "changes_by_class": lambda: plots.changes(made["changes_by_class"], "class", **lines),
        "class_accuracy_map": lambda: plots.class_accuracy_map(made["accuracy_by_class"][first]),
        "confusion_flow": lambda: plots.confusion_flow(made["confusion_flow"][first]),
        "flow_maps": lambda: plots.flow_maps(one["task_flow"]),
        "theft_bars": lambda: plots.theft_bars(analysis.top_thefts(one["class_flow"])),
        "recency_curves": lambda: plots.recency_curves(made["recency_over_time"]),
        "weight_norms": lambda: plots.weight_norms(analysis.norms_by_task(made["weight_norms"])),
        "head_and_representation": lambda: plots.head_and_representation(made["head_and_representation"], **lines),
        "heads_beside_probes": lambda: plots.heads_beside_probes(made["heads_beside_probes"], **lines),
        "feature_drift": lambda: plots.feature_drift(made["feature_drift"]),
        "similarity_map": lambda: plots.similarity_map(analysis.drift_matrix(one["feature_drift"])),
        "angle_map": lambda: plots.angle_map(analysis.drift_matrix(one["feature_drift"], "angle_mean")),
        "class_drift": lambda: plots.class_drift(made["class_mean_drift"]),
        "drift_curves": lambda: plots.drift_curves(one["class_mean_drift"]),
        "alignment": lambda: plots.alignment(one["alignment_by_stage"], one["alignment_by_task"], **lines),
        "calibration_curves": lambda: plots.calibration_curves(made["calibration_by_stage"]),
        "reliability_diagram": lambda: plots.reliability_diagram(made["reliability"], chance),
        "gap_scatter": lambda: plots.gap_scatter(gaps, "gap", **lines),
        "stability_plasticity": lambda: plots.stability_plasticity(made["stability_plasticity"], **lines),
        "arms_comparison": lambda: plots.arms_comparison(orders, **lines),
        "paired_differences": lambda: plots.paired_differences(stands),
    }
    for name, draw in drawn.items():
        clock(f"figure {name}", lambda draw=draw, name=name: plots.save(draw(), folder, name))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=60)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--tasks", type=int, default=10)
    parser.add_argument("--images", type=int, default=50, help="test images a class")
    parser.add_argument("--slow", type=int, default=2, help="runs that the straightforward way is timed on")
    parser.add_argument("--keep", type=Path, help="a new folder for runs and figures (default: removed at the end)")
    options = parser.parse_args()
    home, clock = options.keep or Path(tempfile.mkdtemp()), Clock()
    home.mkdir(parents=True, exist_ok=True)
    increments = [options.classes // options.tasks] * options.tasks
    folders = [write_run(home / f"run_{k}", k, increments, options.images) for k in range(options.runs)]
    joint = write_run(home / "joint", options.runs, [sum(increments)], options.images)
    print(f"{options.runs} runs written, {sum(f.stat().st_size for f in home.rglob('*.npy')) / 1e9:.1f} GB", flush=True)
    begun, used = time.perf_counter(), time.process_time()
    arms = {f"{LEARNERS[k % 6]}, run {k}": (Run(folder), None) for k, folder in enumerate(folders)}
    made = tables(clock, arms, Run(joint))
    in_tables = time.perf_counter() - begun
    figures(clock, arms, made, home / "figures")
    value, used = time.perf_counter() - begun, time.process_time() - used
    assert "torch" not in sys.modules, "something of the analysis loads torch"
    print(f"{'all tables':44s}{in_tables:8.2f} s")
    print(f"{'all tables and figures':44s}{value:8.2f} s, {used:.1f} s of processors")

    few = [Run(folder) for folder in folders[: options.slow]]
    began = time.perf_counter()
    slow = [flow_by_loops(run, "raw") for run in few]
    loops = (time.perf_counter() - began) / len(few)
    began = time.perf_counter()
    quick = [analysis.class_flow(Run(run.folder), "raw") for run in few]  # a fresh run: outputs are read again
    tabled = (time.perf_counter() - began) / len(few)
    for shares, table in zip(slow, quick, strict=True):
        kept = table[table["share"] > 0]
        assert len(kept) == len(shares) and np.isclose(kept["share"].sum(), sum(shares.values()))
    began = time.perf_counter()
    pairs = [similarity_by_pairs(run) for run in few]
    paired = (time.perf_counter() - began) / len(few)
    drift = clock.spent["feature_drift"] / options.runs
    for (arm, _), found in zip(arms.items(), pairs, strict=False):
        rows = made["feature_drift"][made["feature_drift"]["arm"] == arm]
        assert all(np.isclose(row.cka, found[row.earlier, row.later], atol=1e-5) for row in rows.itertuples())
    print(f"confusion flow of one run: {tabled:.2f} s from its files; by loops {loops:.2f} s")
    print(f"feature drift of one run: {drift:.2f} s with angles; CKA alone pair by pair {paired:.2f} s")
    if not options.keep:
        shutil.rmtree(home)
    print(json.dumps({"name": "seconds_of_forgetting", "value": round(value, 2), "unit": "s", "runs": options.runs,
                      "classes": options.classes, "cpu": round(used, 2), "tables": round(in_tables, 2),
                      "flow": round(tabled, 3),
                      "flow_by_loops": round(loops, 3), "drift": round(drift, 3),
                      "similarity_by_pairs": round(paired, 3)}))  # fmt: skip


if __name__ == "__main__":
    main()
