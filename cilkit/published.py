"""What others report, from `params/published.yaml`: every number with the tag that says how it is known."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from cilkit import artifacts
from cilkit.errors import UserError, near_name

if TYPE_CHECKING:
    import pandas as pd

FILE = Path("params") / "published.yaml"
HEADING = "quoted, by tag"  # of the column that shows such numbers beside ours
FIGURES = ("last", "average", "task_mean", "forgetting", "backward_transfer", "seconds")
WORDS = ("row", "learner", "benchmark", "tag", "note")  # what an entry holds beside its figures


def table(path: str | Path | None = None) -> pd.DataFrame:
    """One row a number: table, row, learner, benchmark, figure, value, std (NaN: not known), tag, note, setting.

    learner: as in cilkit/learners, "joint", or "" for a method that is not here. UserError, naming the entry, for a
    number without one of the file's tags, an unknown word, or an entry without a number.
    """
    import pandas as pd
    import yaml

    path = Path(path) if path else (artifacts.repository() or Path.cwd()) / FILE
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError:
        raise UserError(f"there is no file of published numbers at {path}; restore it from git") from None
    rows = []
    for name, group in content["tables"].items():
        for entry in group["rows"]:
            rows += [
                {"table": name, **one, "setting": group["setting"]} for one in _numbers(name, entry, content["tags"])
            ]
    return pd.DataFrame(rows)


def _numbers(table: str, entry: dict[str, Any], tags: dict[str, str]) -> list[dict[str, Any]]:
    """The numbers of one entry, each with its tag."""
    where = f"{table}, {entry.get('row')!r} on {entry.get('benchmark')!r}"
    if entry.get("tag") not in tags:
        raise UserError(f"{where}: tag {entry.get('tag')!r}; every number needs one of {', '.join(tags)}")
    if unknown := [word for word in entry if word not in (*WORDS, *FIGURES)]:
        near = near_name(unknown[0], FIGURES)
        raise UserError(f"{where}: {unknown[0]!r} is unknown{near}; figures are {', '.join(FIGURES)}")
    words = {word: entry.get(word, "") for word in WORDS}
    found = []
    for figure in FIGURES:
        if figure in entry:
            value, *std = entry[figure] if isinstance(entry[figure], list) else [entry[figure]]
            if not all(type(number) in (int, float) for number in (value, *std)):
                raise UserError(f"{where}: {figure} is {entry[figure]!r}; expected a number, or [number, std]")
            found.append(
                words | {"figure": figure, "value": float(value), "std": float(std[0]) if std else float("nan")}
            )
    if not found:
        raise UserError(f"{where}: no number; give one of {', '.join(FIGURES)}")
    return found


def shown(numbers: pd.DataFrame) -> pd.Series:
    """One cell a row of `numbers`, as the column HEADING shows it: "91.53 ± 0.28 [third-party]"."""
    spread = numbers["std"].map(lambda std: "" if std != std else f" ± {std:.2f}")
    return numbers["value"].map("{:.2f}".format) + spread + " [" + numbers["tag"] + "]"
