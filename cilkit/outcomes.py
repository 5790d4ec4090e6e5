"""Many runs in one table: a row a run, every figure under an unambiguous name, with its cost; arms compared in pairs.

`summarise` writes a finished run's figures beside its outputs, so that a thousand runs are collected without opening
their outputs. Other toolboxes' runs (`cilkit.foreign`) stand in the same table.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cilkit import artifacts, calibration, metrics
from cilkit.errors import UserError, near_name
from cilkit.foreign import Foreign
from cilkit.runs import Run

if TYPE_CHECKING:
    import pandas as pd

SUMMARY = "summary.json"
SEEDS = ("order_seed", "seed_init", "seed_data")


def figures(run: Run, head: str) -> dict[str, float]:
    """Every figure of one head, from its outputs: accuracies in percent, differences in points, bins named."""
    full = run.accuracy_of(head, future=True).to_numpy()
    found = metrics.figures(full, run.counts)
    if run.protocol == "class":
        known = metrics.figures(run.accuracy_of(head, task_known=True), run.counts)
        found |= {f"{name}, task known": known[name] for name in ("last accuracy", "average incremental accuracy")}
    elif run.n_tasks > 1:
        chance = 100 / len(run.class_names)
        found["forward transfer (against chance)"] = metrics.forward_transfer(full, chance)
    if (ahead := run.settings.get("look_ahead")) and run.n_tasks > 1:  # of a probe's accuracies: `cilkit.lookahead`
        gained = np.subtract(ahead["before"], ahead["initial"])
        found["forward transfer (of the representation)"] = float(gained.mean())
    last = run.scores(-1, head)
    return found | {
        "top-5 accuracy": metrics.top_k_accuracy(last.rank, 5),
        "calibration error (15 equal-width bins)": calibration.expected_calibration_error(last),
        "calibration error (15 equal-mass bins)": calibration.expected_calibration_error(last, binning="mass"),
        "negative log-likelihood": calibration.negative_log_likelihood(last),
        "Brier score": calibration.brier_score(last),
    }


def summarise(folder: str | Path) -> Path:
    """Write summary.json (figures by head) and class_accuracy_<head>.npy (tasks, classes) into a finished run."""
    run = Run(folder)
    for head in run.heads:
        artifacts.save_npy(run.folder / f"class_accuracy_{head}.npy", run.class_accuracy(head))
    summary = {head: list(_without_nan(figures(run, head)).items()) for head in run.heads}  # in their order
    return artifacts.write_json(run.folder / SUMMARY, summary)


def row(
    source, head: str | None = None, groups: Mapping[str, str] | None = None, cumulative: Run | None = None
) -> dict:
    """One line of a table of results. source: a Run, its folder or artifact, or a `Foreign`.

    groups:     class name -> group ("foreseen", "unforeseen"); adds "last accuracy, <group>", a mean over its classes.
    cumulative: the run of the same stream trained cumulatively; adds the intransigence against its same head, or its
                default one where it has none of this name.
    """
    if isinstance(source, Foreign):
        return source.row()
    run = source if isinstance(source, Run) else Run(source)
    head = head or run.default_head
    run.check_head(head)
    path, stream = run.folder / SUMMARY, run.settings.get("stream", {})
    known = dict(json.loads(path.read_text())[head]) if path.exists() else _without_nan(figures(run, head))
    line = {"learner": run.learner, "head": head, "benchmark": stream.get("benchmark", ""), "protocol": run.protocol}
    kind = stream.get("kind", "") + ", validation" * bool(stream.get("split"))
    line |= {"stream": kind, "backbone": run.backbone_tag, "order_seed": stream.get("order_seed")}
    line |= {name: run.settings.get(name) for name in SEEDS[1:]}
    line |= {"tasks": run.n_tasks, "classes": len(run.class_names), "increments": increments(run.increments)} | known
    if groups is not None:
        last, of_class = run.class_accuracy(head)[-1], np.array([groups.get(name, "") for name in run.class_names])
        line |= {f"last accuracy, {g}": float(np.nanmean(last[of_class == g])) for g in sorted({*groups.values()})}
    if cumulative is not None:
        reference = cumulative.accuracy_of(head if head in cumulative.heads else cumulative.default_head)
        line["intransigence (against cumulative training)"] = metrics.intransigence(run.accuracy_of(head), reference)
    return line | _costs(run) | clocked(run.measured) | {"source": str(run.folder)}


def facts(run: Run, head: str) -> dict:
    """A head's `row` without what a clock measured and where the run lies: equal wherever its outputs are equal."""
    apart = {"source", *clocked(run.measured)}
    return {name: value for name, value in row(run, head).items() if name not in apart}


def clocked(measured: Mapping) -> dict[str, float]:
    """Seconds and peak memory by phase, as columns, of a run's measured.json."""
    found = {}
    for phase, spent in measured.get("phases", {}).items():
        found |= {f"seconds: {phase}": spent["seconds"], f"peak bytes: {phase}": spent["peak_bytes"]}
    return found


def collect(sources: Iterable, heads: str | Sequence[str] = "default") -> "pd.DataFrame":
    """A table of results, a row a run, or a row a head with heads="all" or a list of heads. See `row`."""
    import pandas as pd

    lines = []
    for source in sources:
        run = source if isinstance(source, (Run, Foreign)) else Run(source)
        wanted = [None] if heads == "default" or isinstance(run, Foreign) else run.heads
        lines += [row(run, head) for head in wanted if head is None or heads == "all" or head in heads]
    return pd.DataFrame(lines)


def arms(table: "pd.DataFrame", by: str | Sequence[str]) -> "pd.Series":
    """The arm of each row: its value in the column `by`; those of several columns are joined by " / "."""
    columns = [by] if isinstance(by, str) else list(by)
    for column in columns:
        if column not in table:
            raise UserError(f"the results have no column {column!r}{near_name(column, table)}")
    return table[by] if isinstance(by, str) else table[columns].astype(str).agg(" / ".join, axis=1)


def compare(
    table: "pd.DataFrame",
    value: str,
    by: str | Sequence[str] = "learner",
    baseline: str = "",
    over: Sequence[str] = SEEDS,
) -> "pd.DataFrame":
    """A row an arm: mean and half width of the 95 % t interval of `value` and, paired, its difference to `baseline`.

    by:   the column that tells arms apart; several are joined by " / ".
    over: what one pair shares, such as class order and seeds; runs that only one arm has are left out of its pairing.
    """
    import pandas as pd

    name, arm = by if isinstance(by, str) else " / ".join(by), arms(table, by)
    shared = [column for column in over if column in table]
    if not shared:
        raise UserError(f"the table has none of the columns {', '.join(over)}; name in `over` what a pair shares.")
    unit = table[shared].astype(object).fillna("").astype(str).agg(", ".join, axis=1)  # a seed not noted is one too
    long = pd.DataFrame({"arm": arm, "unit": unit, "value": table[value]}).dropna(subset=["value"])
    if (twice := long.duplicated(["arm", "unit"])).any():
        arm, unit = long.loc[twice, ["arm", "unit"]].iloc[0]
        raise UserError(f"{name} {arm!r} has several runs of {', '.join(shared)} = {unit}; tell them apart in `by`.")
    wide = long.pivot(index="unit", columns="arm", values="value")[list(dict.fromkeys(long["arm"]))]
    if baseline and baseline not in wide:
        raise UserError(f"baseline {baseline!r} is not among the arms {', '.join(wide)}.")
    rows = []
    for arm in wide:
        interval = metrics.mean_interval(wide[arm].dropna().to_numpy())
        line = {name: arm, "runs": interval.n, "mean": interval.mean, "half_width": interval.half_width}
        if baseline:
            pairs = wide[list(dict.fromkeys([arm, baseline]))].dropna()
            paired = metrics.Interval(float("nan"), float("nan"), 0)
            if len(pairs):
                paired = metrics.paired_interval(pairs[arm].to_numpy(), pairs[baseline].to_numpy())
            line |= {"difference": paired.mean, "difference_half_width": paired.half_width, "pairs": paired.n}
        rows.append(line)
    return pd.DataFrame(rows)


def _costs(run: Run) -> dict[str, float]:
    """Bytes stored by kind, backbone and images forwarded, where they were noted."""
    stored, backbone = run.settings.get("stored_bytes", {}), run.settings.get("backbone", {})
    costs = {"bytes stored": sum(stored.values())} | {f"bytes: {kind}": size for kind, size in stored.items()}
    costs |= {f"backbone {kind}": backbone[kind] for kind in ("parameters", "bytes") if kind in backbone}
    forwards = {"declared": {}, "spent": {}, "found": []} | run.settings.get("forwards", {})
    costs["images forwarded"] = sum(forwards["spent"].values())
    found = sum(forwards["declared"].get(kind, 0) for kind in forwards["found"])
    costs |= {"images found as features": found} if found else {}  # forwarded before, once for all runs
    return costs


def increments(sizes: Sequence[int]) -> str:
    """[50, 10, 10, 10] -> "50 + 3 × 10"."""
    runs = [(size, len(list(same))) for size, same in groupby(sizes)]
    return " + ".join(f"{size}" if times == 1 else f"{times} × {size}" for size, times in runs)


def _without_nan(found: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in found.items() if not np.isnan(value)}
