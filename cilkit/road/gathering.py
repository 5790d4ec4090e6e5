"""What came out: each job's result.json is the truth, and one table gathers them all, at any time.

    reports/cells/<job>/result.json     written when the notebook has ended well; no seconds, no dates, no hosts
    reports/runs/<name>/result.json     the same of `cilkit run` and `cilkit report`
    reports/results.parquet             a row a run and head, made anew whenever one of them is newer

Everything here reads files that are whole, and nothing loads torch: a table of a thousand cells is there in seconds.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cilkit import artifacts, deciding, exporting, metrics, outcomes
from cilkit.errors import UserError, reason_of
from cilkit.runs import Run

if TYPE_CHECKING:
    import pandas as pd

RESULT = "result.json"
TABLE = Path("reports/results.parquet")
CURVE = exporting.CURVE
FIRST = ("cell", "notebook", "page", "artifact", "digest", "default head", "learner", "head")  # of an empty table too


def write_result(book_folder: str | Path) -> Path | None:
    """Write result.json beside a job's book.json: its parameters, what it used, every figure of its runs.

    Equal books and equal artifacts give equal bytes. None, and no file, where the notebook kept no book. UserError
    where a run that the book lists is no longer what it was.
    """
    folder = Path(book_folder)
    if not (folder / "book.json").is_file():
        return None
    book = json.loads((folder / "book.json").read_text(encoding="utf-8"))
    result = {"cell": folder.name, **{name: book[name] for name in ("notebook", "parameters", "records", "artifacts")}}
    result["runs"] = [_run(entry) for entry in book["artifacts"] if entry["stage"] == "run"]
    text = json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False)  # figures in their order, so not sorted
    return artifacts.atomic_write(folder / RESULT, text + "\n")


def _run(entry: dict) -> dict:
    """One run of a result: a row of figures and the accuracy matrix of each head, test images a task, and settings."""
    artifact = artifacts.open_artifact(entry["name"])
    if artifact.digest != entry["digest"]:
        raise UserError(f"{entry['name']} is not the one that the notebook used; run the notebook again")
    run = Run(artifact)
    return {
        "artifact": entry["name"],
        "digest": artifact.digest,
        "default_head": run.default_head,
        "rows": [outcomes.facts(run, head) for head in run.heads],
        "matrix": {head: matrix_of(artifact.path / f"accuracy_{head}.csv") for head in run.heads},
        "counts": run.counts.tolist(),
        "hyper": run.settings.get("hyper", {}),
        "inputs": {name: f"{made['stage']}/{made['key'][:16]}" for name, made in sorted(artifact.inputs.items())},
    }


def matrix_of(path: Path) -> list[list[float | None]]:
    """An accuracy matrix as it was written, in percent; None where nothing was tested."""
    with open(path, newline="", encoding="utf-8") as file:
        return [[float(cell) if cell else None for cell in row[1:]] for row in list(csv.reader(file))[1:]]


# ---------------------------------------------------------------- one table


def gather(home: str | Path | None = None) -> pd.DataFrame:
    """Scan every result.json and write reports/results.parquet: a row a run and head, no clock; returns the table.

    A run that several notebooks used stands once, with the earliest of them. A result that cannot be read is named and
    left out. home: the folder that holds reports/; the repository.
    """
    home = _home(home)
    newest, found = _newest(home), []
    for path in _files(home):
        try:
            result = json.loads(path.read_text(encoding="utf-8"))
            found.append((result, _rows(result)))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            where = path.relative_to(home).as_posix()
            print(f"cilkit: {where} cannot be read ({reason_of(error)}) and is left out; run its notebook again")
    table = _table(found, _labels(home))
    path = artifacts.write_parquet(home / TABLE, table)
    os.utime(path, ns=(newest, newest))  # as new as the newest that it was made from, by the same clock
    return table


def results(home: str | Path | None = None) -> pd.DataFrame:
    """Every result so far, a row a run and head: figures in percent, what tells the runs apart, seconds, peak bytes.

    Gathers first when a result is newer than reports/results.parquet. What a clock measured comes from the artifacts
    that are still there. `table[table["default head"]]` has a row a run.
    """
    import pandas as pd

    home = _home(home)
    path = home / TABLE
    if not path.exists() or path.stat().st_mtime_ns != _newest(home):
        gather(home)
    table = pd.read_parquet(path)
    pairs = dict.fromkeys(zip(table["artifact"], table["digest"], strict=True))
    measured = {(name, digest): _measured(name, digest) for name, digest in pairs}
    clocks = pd.DataFrame(
        [measured[pair] for pair in zip(table["artifact"], table["digest"], strict=True)], index=table.index
    )
    return pd.concat([table, clocks], axis=1)


def decide(job_names: Sequence[str], spec: Mapping[str, Any], home: str | Path | None = None) -> tuple[bool, list[str]]:
    """Whether the comparisons of a sweep are decided by these jobs, and a sentence for each (`cilkit.deciding`).

    spec: value, by, within, and where they differ from their defaults baseline (the first arm), at_least, over; `by`
          and `over` name columns of the table, axes of the sweep among them. What does not fit is a sentence too: a
          sweep goes on.
    """
    home = _home(home)
    found = []
    for name in job_names:
        path = home / "reports" / "cells" / name / RESULT
        if path.exists():
            result = json.loads(path.read_text(encoding="utf-8"))
            found.append((result, _rows(result)))
    table = _table(found, _labels(home, job_names))
    by = spec.get("by", "learner")
    if "head" not in ([by] if isinstance(by, str) else by):
        table = table[table["default head"].astype(bool)]
    try:
        rest = {name: spec[name] for name in ("baseline", "at_least", "over") if name in spec}
        if len(table) and not rest.get("baseline"):
            rest["baseline"] = outcomes.arms(table, by).iloc[0]
        compared = deciding.comparisons(table, spec["value"], by, within=spec["within"], **rest) if len(table) else []
    except UserError as error:
        return False, [f"not decided: {error}"]
    return deciding.decided(compared), [str(one) for one in compared]


def _rows(result: dict) -> list[dict]:
    """The rows of one result: where it comes from, its figures, its settings (under "settings" and "inputs")."""
    rows = []
    base = {"cell": result["cell"], "notebook": result["notebook"], "page": f"{result['cell']}.html"}
    for run in result["runs"]:
        counts = run["counts"]
        for row in run["rows"]:
            head = row["head"]
            matrix = np.array(run["matrix"][head], float)
            line = base | {"artifact": run["artifact"], "digest": run["digest"]}
            line |= {"default head": head == run["default_head"]} | row
            line[CURVE] = metrics.accuracy_by_stage(matrix, counts).tolist()
            line |= {"settings": result["parameters"] | run["hyper"], "inputs": run["inputs"]}
            rows.append(line)
    return rows


def _table(found: list[tuple[dict, list[dict]]], labels: Mapping[str, dict]) -> pd.DataFrame:
    """One row a run and head; behind the column `CURVE` stand axes of sweeps, settings and inputs that differ."""
    import pandas as pd

    rows, axes = {}, {}
    for _, lines in sorted(found, key=lambda pair: (pair[0]["notebook"], pair[0]["cell"])):
        for line in lines:
            key, own = (line["artifact"], line["digest"], line["head"]), labels.get(line["cell"], {})
            first = rows.setdefault(key, line)
            if first["notebook"] == line["notebook"]:  # of a run that several cells share, what they agree on
                axes[key] = dict(axes.get(key, own).items() & own.items())
    told = [(row.pop("settings"), row.pop("inputs"), axes[key]) for key, row in rows.items()]
    table = pd.DataFrame(list(rows.values()), columns=None if rows else list(FIRST))
    if CURVE in table:  # the last of the fixed columns
        table = table[[name for name in table if name != CURVE] + [CURVE]]
    settings = [{name: _cell(value) for name, value in each.items()} for each, _, _ in told]
    inputs = [{f"input: {name}": value for name, value in each.items()} for _, each, _ in told]
    more = {name: [each.get(name) for _, _, each in told] for _, _, each in told for name in each}
    columns = {name if name not in table else f"{name} (sweep)": values for name, values in more.items()}
    for each in (settings, inputs):
        for name in dict.fromkeys(name for one in each for name in one):
            values = [one.get(name) for one in each]
            if len({repr(value) for one, value in zip(each, values, strict=True) if name in one}) < 2:
                continue
            if name in table and [str(value) for value in values] == [str(value) for value in table[name]]:
                continue
            columns.setdefault(name if name not in table else f"{name} (parameter)", values)
    columns = {name: _column(values) for name, values in columns.items()}
    return pd.concat([table, pd.DataFrame(columns, index=table.index)], axis=1)


def _cell(value: Any) -> Any:
    """A list or mapping as its JSON."""
    return artifacts.canonical(value) if isinstance(value, list | dict) else value


def _column(values: list) -> list:
    """Values of one kind: all numbers, all true or false, or all texts."""
    kinds = {
        bool if isinstance(v, bool) else float if isinstance(v, int | float) else str for v in values if v is not None
    }
    return values if len(kinds) < 2 else [None if v is None else str(v) for v in values]


def _labels(home: Path, jobs: Sequence[str] = ()) -> dict[str, dict[str, str]]:
    """Job -> its axes in the sweeps that hold it. Where two disagree, the one with more of `jobs` has the last word."""
    sweeps = []
    for path in sorted((home / "reports" / "sweeps").glob("*/sweep.json")):
        try:
            sweeps.append({job["name"]: dict(job["labels"]) for job in json.loads(path.read_text())["jobs"]})
        except (OSError, ValueError, KeyError, TypeError) as error:
            print(
                f"cilkit: {path.relative_to(home).as_posix()} cannot be read ({reason_of(error)}); run the sweep again"
            )
    found: dict[str, dict[str, str]] = {}
    for sweep in sorted(sweeps, key=lambda sweep: len(sweep.keys() & set(jobs))):
        for name, labels in sweep.items():
            found[name] = found.get(name, {}) | labels
    return found


def _measured(name: str, digest: str) -> dict[str, float]:
    """Seconds and peak bytes of a run, in all and by phase; {} where it is no longer here."""
    folder = artifacts.root() / name
    try:
        if json.loads((folder / "artifact.json").read_text())["digest"] != digest:
            return {}
        clocked = outcomes.clocked(json.loads((folder / "measured.json").read_text()))
    except (OSError, ValueError, KeyError):
        return {}
    seconds = [value for key, value in clocked.items() if key.startswith("seconds")]
    peaks = [value for key, value in clocked.items() if key.startswith("peak bytes")]
    return {"seconds": sum(seconds), "peak bytes": max(peaks), **clocked} if seconds else {}


def _home(home: str | Path | None) -> Path:
    return Path(home) if home is not None else artifacts.repository() or Path.cwd()


def _files(home: Path) -> list[Path]:
    return [path for folder in ("cells", "runs") for path in sorted((home / "reports" / folder).glob(f"*/{RESULT}"))]


def _newest(home: Path) -> int:
    """When a result or a sweep last came, went or changed, in ns; 0 where there is none."""
    reports = home / "reports"
    folders = [reports / name for name in ("cells", "runs", "sweeps")]
    seen = [path for folder in folders for path in (folder, *folder.glob("*/"))]
    seen += [*_files(home), *reports.glob("sweeps/*/sweep.json")]
    return max((path.stat().st_mtime_ns for path in seen if path.exists()), default=0)
