"""The report as a folder of plain pages that opens from disk: no outside address, no script, figures as files.

reports/site/index.html        results tables, key figures, what failed, every notebook, every run
             <run>.html        one executed notebook with its parameters and provenance
             files/<run>/      figures, tables (CSV), the executed notebook
             site.css
"""

import csv
import json
import os
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cilkit
from cilkit.errors import UserError
from cilkit.workbook import parameters
from cilkit.workbook.execute import book_folder, read_status
from cilkit.workbook.fragments import Fragment, fragment

ASSETS = Path(cilkit.__file__).parent / "assets" / "site"
TITLE = "Class-incremental learning with generative models"


@dataclass
class Page:
    """Everything that the templates need of one run."""

    name: str
    notebook: str
    params: str | None
    status: Any  # execute.Status
    book: dict = field(default_factory=dict)
    content: Fragment = field(default_factory=Fragment)
    declared: dict = field(default_factory=dict)

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
        """What tells this run from others of its notebook: its parameter file's name."""
        return Path(self.params).stem.replace("_", " ") if self.params else "defaults"

    @property
    def files(self) -> str:
        return f"files/{self.name}"

    @property
    def headlines(self) -> list[dict]:
        return [figure for figure in self.book.get("figures", []) if figure.get("headline")]

    @property
    def thumbnail(self) -> dict | None:
        figures = self.book.get("figures", [])
        return (self.headlines or figures[:1] or [None])[0]


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


def build_site(entries: list[Any], folder: Path) -> Path:
    """Write the site for the report's entries (`report.Entry`) beside `folder`, then put it in place."""
    from jinja2 import Environment, FileSystemLoader

    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    addresses = {entry.notebook.name: f"{entry.name}.html" for entry in reversed(entries)}
    pages = [_page(entry, part, addresses) for entry in entries]
    templates = Environment(loader=FileSystemLoader(ASSETS), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    templates.filters["duration"] = duration
    shared = {"site": TITLE, "pages": pages, "groups": _groups(pages), "built": _now()}
    for page in pages:
        text = templates.get_template("notebook.html").render(page=page, here=page.name, **shared)
        (part / page.address).write_text(text, encoding="utf-8")
    tables = [table_of(page, entry, part) for page in pages for entry in page.book.get("tables", [])]
    chosen = [table for table in tables if table.headline] or [table for table in tables if len(table.rows) <= 12]
    text = templates.get_template("index.html").render(here="index", tables=chosen, **shared)
    (part / "index.html").write_text(text, encoding="utf-8")
    shutil.copy(ASSETS / "site.css", part / "site.css")
    _swap(part, folder)
    return folder / "index.html"


def _page(entry: Any, part: Path, addresses: dict[str, str]) -> Page:
    """Copy a run's files into the site and convert its notebook, if it left one."""
    import nbformat

    status = entry.status or read_status(entry.output)
    page = Page(entry.name, entry.notebook.stem, entry.params, status, declared=_declared(entry.notebook))
    files = part / page.files
    files.mkdir(parents=True)
    left = book_folder(entry.output)
    if (left / "book.json").is_file():
        page.book = json.loads((left / "book.json").read_text(encoding="utf-8"))
        for kind in ("figures", "tables"):  # a stopped run may list one that it did not finish
            page.book[kind] = [entry for entry in page.book[kind] if (left / entry["file"]).is_file()]
        for path in left.iterdir():
            if path.suffix in (".png", ".csv"):
                shutil.copy(path, files / path.name)
    source = entry.output if entry.output.is_file() else entry.notebook
    if source.is_file():
        notebook = nbformat.read(source, as_version=4)
        if source is entry.output:
            shutil.copy(source, files / source.name)
        page.content = fragment(notebook, files, page.files, page.book, addresses)
    return page


def _declared(notebook: Path) -> dict:
    try:
        return parameters.declared(notebook)
    except UserError:
        return {}


def _groups(pages: list[Page]) -> list[tuple[str, list[Page]]]:
    """Pages of one notebook together, in the order of the plan."""
    groups: dict[str, list[Page]] = {}
    for page in pages:
        groups.setdefault(page.notebook, []).append(page)
    return list(groups.items())


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
    """`41 s`, `3 min 05 s`."""
    if seconds < 99.5:
        return f"{seconds:.0f} s" if seconds >= 9.95 else f"{seconds:.1f} s"
    return f"{int(seconds + 0.5) // 60} min {int(seconds + 0.5) % 60:02d} s"


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())


def _swap(part: Path, folder: Path) -> None:
    """Put the finished site in place of the old one."""
    old = folder.with_name(folder.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(part, folder)
    shutil.rmtree(old, ignore_errors=True)
