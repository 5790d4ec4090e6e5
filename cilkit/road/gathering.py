"""What came out: each job's result.json is the truth, and one table gathers them all, at any time.

    reports/cells/<job>/result.json     written when the notebook has ended well; no seconds, no dates, no hosts
    reports/runs/<name>/result.json     the same of `cilkit run` and `cilkit report`
    reports/results.parquet             a row a run and head, made anew whenever one of them is newer

Everything here reads files that are whole, and nothing loads torch: a table of a thousand cells is there in seconds.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path

from cilkit import artifacts, outcomes
from cilkit.errors import UserError
from cilkit.runs import Run

RESULT = "result.json"


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
