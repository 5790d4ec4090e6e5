"""What the small sweeps found: reports/sample/small_sweeps.csv, and the README's table of it.

    cilkit sweep params/sweeps/small/premonition.yaml     # and slca, sddr, gmm
    python scripts/sweep_tables.py

A row a run and head of the sweeps' cells, as `cilkit.results()` has them, with the cell's words. Two or three class
orders make no interval: the table shows the mean and, in brackets, each order.
"""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import readme
import real_runs

import cilkit
from cilkit import artifacts

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT / "reports" / "sample" / "small_sweeps.csv"
SWEEPS = ("premonition", "slca", "sddr", "gmm")
KEYS = ["sweep", "cell", "learner", "arm", "head", "order_seed"]
FIGURES = ["last accuracy", "average incremental accuracy", "forgetting (max before last)"]
COLUMNS = [*KEYS, "default head", "increments", *FIGURES, "bytes stored", "images forwarded", "seconds: train"]
REPLAY = {(0, 0): "none", (0, 1): "distillation", (1, 0): "replay", (1, 1): "both"}  # (a, b) -> arm
# What the README shows of each sweep: (learner, arm, head), "" for any and for the default head, and its name.
SHOWN = {
    "premonition": {("nearest_mean", "", "means"): "nearest mean", ("slca", "", "aligned"): "SLCA"},
    "slca": {("", "", "raw"): "its own heads", ("", "", "aligned"): "aligned"},
    "sddr": {("", arm, ""): arm for arm in REPLAY.values()},
    "gmm": {
        ("gmm", "GMM", "written"): "GMM",
        ("gmm", "zero-shot", "written"): "untuned",
        ("gmm_linear", "", "raw"): "linear head",
    },
}


def collect() -> pd.DataFrame:
    """The runs of all cells that are done, but for upper lines and for runs cut short to check something. A run that
    several cells share stands in each."""
    table, parts = cilkit.results(), []
    table = table[(table["stream"] == "tasks") & (table["classes"] == 10)]
    for sweep in SWEEPS:
        content = json.loads((ROOT / "reports" / "sweeps" / f"small-{sweep}" / "sweep.json").read_text())
        jobs = [job for job in content["jobs"] if job["labels"]]
        order = {_words(job["labels"]): place for place, job in reversed(list(enumerate(jobs)))}  # the file's
        cells = [table[table["artifact"].isin(_runs(job))].assign(cell=_words(job["labels"])) for job in jobs]
        part = pd.concat(cells).assign(sweep=sweep)
        part["arm"] = part.apply(_arm, axis=1)
        parts.append(part.sort_values(KEYS, key=lambda column: column.map(order) if column.name == "cell" else column))
    return pd.concat(parts)[COLUMNS].assign(machine=real_runs.machine())


def _runs(job: dict) -> list[str]:
    """The names of the runs that a finished job lists."""
    result = json.loads((ROOT / job["output"]).with_suffix("").joinpath("result.json").read_text())
    return [run["artifact"] for run in result["runs"]]


def _words(labels: dict[str, str]) -> str:
    return ", ".join(words for axis, words in sorted(labels.items()) if axis != "order_seed")


def _arm(run: pd.Series) -> str:
    """What tells the runs of one job apart, beside their learners."""
    if "synthetic_replay" in run["learner"]:
        return REPLAY[run["a"], run["b"]]
    if run["learner"] != "gmm":
        return ""
    if run["names"] == "shuffled":
        return "shuffled names"
    return ("GMM" if run["per_class"] else "without exemplars") if run["epochs"] else "zero-shot"


def readme_tables() -> dict[str, str]:
    """What stands between the README's markers: a row a cell of a sweep and what is shown of it."""
    table, rows = pd.read_csv(TABLE, keep_default_na=False), []
    for sweep, shown in SHOWN.items():
        part = table[table["sweep"] == sweep]
        for cell in dict.fromkeys(part["cell"]):
            row = {"sweep": sweep, "cell": cell}
            found = []
            for (learner, arm, head), title in shown.items():
                runs = part[(part["cell"] == cell) & (part["head"].eq(head) if head else part["default head"])]
                runs = runs[runs["learner"].eq(learner) | (learner == "")]
                runs = runs[runs["arm"].eq(arm) | (arm == "")].sort_values("order_seed")["last accuracy"]
                found += [f"{title} {runs.mean():.1f} ({', '.join(map('{:.1f}'.format, runs))})"] if len(runs) else []
            rows.append(row | {"last accuracy (%)": "; ".join(found)})
    return {"small_sweeps": readme.markdown(pd.DataFrame(rows).set_index("sweep"))}


def main() -> None:
    artifacts.atomic_write(TABLE, collect().round(4).to_csv(index=False))
    readme.fill(readme_tables())


if __name__ == "__main__":
    main()
