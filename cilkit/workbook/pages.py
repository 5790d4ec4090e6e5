"""What the site's templates show of a run, a sweep and a table, in words and ready texts."""

import csv
import json
import shlex
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from cilkit.workbook.execute import Status
from cilkit.workbook.fragments import Fragment


@dataclass
class Page:
    """Everything that the templates need of one run."""

    name: str
    notebook: str
    params: str | None
    status: Status
    book: dict = field(default_factory=dict)
    content: Fragment = field(default_factory=Fragment)
    declared: dict = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    sweeps: list[str] = field(default_factory=list)
    job: bool = False
    left: list[str] = field(default_factory=list)  # names of the files beside its page
    kept: str = ""  # where its content is kept for the next site

    @property
    def address(self) -> str:
        return f"{self.name}.html"

    @property
    def number(self) -> str:
        digits = self.notebook.partition("_")[0]
        return digits if digits.isdigit() else ""

    @property
    def title(self) -> str:
        return self.content.title or self.notebook

    @property
    def variant(self) -> str:
        """What tells this run from others of its notebook: its labels, or its parameter file's name."""
        if self.labels:
            return ", ".join(f"{axis} {value}" for axis, value in self.labels.items())
        return Path(self.params).stem.replace("_", " ") if self.params else "defaults"

    @property
    def files(self) -> str:
        return f"files/{self.name}"

    @property
    def log(self) -> str:
        return f"{self.files}/{self.name}.log.txt" if f"{self.name}.log.txt" in self.left else ""

    @property
    def headlines(self) -> list[dict]:
        return [figure for figure in self.book.get("figures", []) if figure.get("headline")]

    @property
    def thumbnail(self) -> dict | None:
        figures = self.book.get("figures", [])
        return (self.headlines or figures[:1] or [None])[0]

    @property
    def progress(self) -> str:
        """How far a running notebook is, in words."""
        if self.status.state != "running" or not self.status.cell:
            return ""
        of = f" of {self.status.cells}" if self.status.cells else ""
        left = f", about {duration(self.status.left)} left" if self.status.left is not None else ""
        return f"cell {self.status.cell}{of}{left}"

    @property
    def command(self) -> str:
        """What a shell would be told to do this again."""
        words = ["cilkit", "run", self.status.notebook]
        if self.params and not self.job:
            return shlex.join([*words, "-f", self.params])
        for name, value in self.status.parameters.items():
            a_text = name in self.declared and "str" in self.declared[name].type.replace("Literal", "")
            plain = a_text and isinstance(value, str)
            words += ["-p", name, value if plain else json.dumps(value, ensure_ascii=False, default=str)]
        return shlex.join(words)

    def about(self, name: str) -> str:
        """The value of an axis or a parameter, "" where the run has none."""
        return str(self.labels.get(name, self.status.parameters.get(name, "")))


@dataclass
class Sweep:
    """A sweep's jobs, in their order."""

    name: str
    file: str
    pages: list[Page] = field(default_factory=list)
    address: str = ""

    @property
    def axes(self) -> list[str]:
        return list(dict.fromkeys(axis for page in self.pages for axis in page.labels))

    @property
    def states(self) -> list[tuple[str, int]]:
        return list(Counter(page.status.state for page in self.pages).items())


@dataclass
class Table:
    """One CSV as rows of ready texts; `numeric` says which columns are aligned to the right."""

    caption: str
    headline: bool
    page: Page
    address: str
    header: list[str]
    rows: list[list[str]]
    numeric: list[bool]


def table_of(page: Page, entry: dict, site: Path) -> Table:
    """A CSV's rows as texts: numbers with the entry's decimals, whole numbers as they are, missing ones empty."""
    address = f"{page.files}/{entry['file']}"
    with open(site / address, newline="", encoding="utf-8") as file:
        header, *body = list(csv.reader(file))
    columns = list(zip(*body, strict=True)) if body else [() for _ in header]
    numeric = [bool(column) and all(_number(cell) is not None or cell == "" for cell in column) for column in columns]
    digits = [0 if all(cell.lstrip("-").isdigit() or not cell for cell in c) else entry["digits"] for c in columns]
    texts = [
        [f"{float(cell):.{d}f}" if n and cell else cell for cell, n, d in zip(row, numeric, digits, strict=True)]
        for row in body
    ]
    return Table(
        entry.get("caption") or entry["name"], entry.get("headline", False), page, address, header, texts, numeric
    )


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None


def duration(seconds: float) -> str:
    """`41 s`, `3 min 05 s`, `12 h 30 min`."""
    if seconds >= 7200:
        return f"{int(seconds + 30) // 3600} h {int(seconds + 30) // 60 % 60:02d} min"
    if seconds < 99.5:
        return f"{seconds:.0f} s" if seconds >= 9.95 else f"{seconds:.1f} s"
    return f"{int(seconds + 0.5) // 60} min {int(seconds + 0.5) % 60:02d} s"


def size(number: float) -> str:
    """`130 kB`, `1.2 GB`."""
    for unit in ("B", "kB", "MB"):
        if number < 999.5:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} GB"
