"""What jobs will cost, from what like ones cost before: seconds, bytes, tokens. Each number says how it is known."""

from __future__ import annotations

import json
import re
import statistics
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cilkit import artifacts
from cilkit.workbook import chain
from cilkit.workbook.execute import Status, book_folder, read_status
from cilkit.workbook.graph import Ledger
from cilkit.workbook.jobs import Job

# "Derived: 5.3 minutes in all", "Derived: 5.2 h at"; of a model that writes "TFLOP/s [remembered]: 0.64, cached"
DERIVED = re.compile(r"Derived: ([\d.]+) (hours|h|minutes)\b|TFLOP/s \[remembered\]: ([\d.]+)")
TELLING = ("benchmark", "backbone", "learners", "learner", "arch", "realm", "images")  # what makes two jobs alike


@dataclass
class Cost:
    """Of one job. None: nothing is known. `known`: "measured" (this very job), "alike", "notebook", "derived", ""."""

    seconds: float | None = None
    bytes: float | None = None
    tokens: float | None = None
    known: str = ""


class Estimates:
    """Reads once what the jobs in these folders took."""

    def __init__(self, folders: list[Path], ledger: Ledger | None = None):
        self.ledger, self.memo = ledger, ledger.memo if ledger else {}
        self._by: dict[Any, list[tuple[Status, Path]]] = defaultdict(list)
        for folder in folders:
            for path in sorted(folder.glob("*.status.json")):
                output = path.with_name(path.name.removesuffix(".status.json") + ".ipynb")
                status = read_status(output)
                if status is not None and status.ok:
                    self._note(status, output)

    def _note(self, status: Status, output: Path) -> None:
        home = artifacts.repository() or Path.cwd()
        notebook = home / status.notebook
        for key in ((output.stem,), self._kind(notebook, status.parameters), (notebook.stem,)):
            self._by[key].append((status, output))

    def _kind(self, notebook: Path, given: dict[str, Any]) -> tuple:
        try:
            values = chain.resolved(notebook, given, self.memo)
        except ValueError:  # of a notebook that has changed since
            return (notebook.stem, "?")
        return (notebook.stem, json.dumps({name: values.get(name) for name in TELLING}, sort_keys=True, default=str))

    def of(self, job: Job) -> Cost:
        """The median of this job before, else of those alike in data, backbone and learners, else of its notebook."""
        keys = {"measured": (job.name,), "alike": self._kind(job.notebook, job.given), "notebook": (job.notebook.stem,)}
        for known, key in keys.items():
            if known == "notebook" and (hours := self._derived(job)) is not None:
                return Cost(hours * 3600, None, None, "derived")
            if found := self._by.get(key):
                sizes = [_left_by(output) for _, output in found[-5:]]
                tokens = [count for _, count in sizes if count is not None]
                seconds = statistics.median(status.seconds for status, _ in found)
                return Cost(seconds, statistics.median(s for s, _ in sizes), max(tokens, default=None), known)
        return Cost()

    def _derived(self, job: Job) -> float | None:
        """Hours that the header of its parameter file derives from counted FLOPs at an assumed rate."""
        home = artifacts.repository() or Path.cwd()
        for name in (job.params or "").split(", "):
            if (
                name
                and (home / name).is_file()
                and (match := DERIVED.search((home / name).read_text(encoding="utf-8")))
            ):
                return float(match[1] or match[3]) / (60 if match[2] == "minutes" else 1)
        return None


def _left_by(output: Path) -> tuple[float, float | None]:
    """(bytes of the artifacts that a job made or used, tokens that a language model was asked for)."""
    try:
        book = json.loads((book_folder(output) / "book.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return 0.0, None
    total = 0
    for entry in book.get("artifacts", []):
        card = artifacts.root() / entry["name"] / "artifact.json"
        try:
            total += sum(file["bytes"] for file in json.loads(card.read_text(encoding="utf-8"))["files"])
        except (OSError, ValueError, KeyError):
            continue
    tokens = book.get("records", {}).get("tokens")
    return float(total), float(tokens) if isinstance(tokens, int | float) else None


def in_all(costs: list[Cost], workers: int = 1) -> dict[str, float]:
    """Sums over jobs of what is known, and how many are not known; hours side by side are a bound from below."""
    seconds = [cost.seconds for cost in costs if cost.seconds is not None]
    return {
        "hours": sum(seconds) / 3600,
        "hours on the clock": max([sum(seconds) / max(workers, 1), *seconds], default=0.0) / 3600,
        "bytes": sum(cost.bytes or 0 for cost in costs),
        "tokens": sum(cost.tokens or 0 for cost in costs),
        "unknown": len(costs) - len(seconds),
    }
