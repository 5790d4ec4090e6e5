"""The report as a folder of plain pages that opens from disk: no outside address, figures as files.

reports/site/index.html        results tables, key figures, what failed, every notebook, every sweep, every run
             leaderboard.html  arms of every benchmark side by side (`workbook.leaderboard`)
             sweep-<name>.html a sweep's jobs and how far each is
             <run>.html        one executed notebook, of the report or of a sweep, with its parameters and provenance
             files/<run>/      figures, tables (CSV), the executed notebook, log, status
             site.css, site.js (filters and sorting; every page can be read without it)

What a notebook became lies in reports/.site/ by the digest of all that it was made from, so that the next site converts
new notebooks alone. Files are linked, not copied, where the disk can.
"""

import hashlib
import importlib.metadata
import json
import os
import shutil
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cilkit
from cilkit.errors import UserError
from cilkit.workbook import fragments, parameters
from cilkit.workbook.execute import Status, book_folder, read_status, status_path
from cilkit.workbook.fragments import Fragment, fragment
from cilkit.workbook.leaderboard import Leaderboard
from cilkit.workbook.pages import Page, Sweep, duration, size, table_of

ASSETS = Path(cilkit.__file__).parent / "assets" / "site"
TITLE = "Class-incremental learning with generative models"
WORKERS = 2  # processes that convert a sweep's notebooks
FEW = 32  # so many are converted before processes would have started
SHOWN = (".png", ".csv", ".pdf", ".svg")  # of what a Book's folder holds
LEFT = ("status.json", "result.json", "book.json")  # shown as they are beside a run's page


@dataclass
class Work:
    """A run whose page is to be written: an entry of the report, or a job of a sweep."""

    name: str
    notebook: Path
    output: Path
    params: str | None = None
    status: Status | None = None  # None: what its status file says
    given: dict[str, Any] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    sweeps: list[str] = field(default_factory=list)
    job: bool = False


def build_site(entries: list[Any], folder: Path, leaderboard: Leaderboard | None = None) -> Path:
    """Write the site for the report's entries (`report.Entry`) and all sweeps beside `folder`, then put it in place.

    Sweeps and their jobs are those of the folder that `folder` lies in. Returns index.html's path.
    """
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    runs = [Work(e.name, e.notebook, e.output, e.params, e.status) for e in entries]
    jobs, sweeps = _jobs(folder.parent, {run.name for run in runs})
    site = _Site(
        part, folder.with_name("." + folder.name), {work.notebook.name: f"{work.name}.html" for work in runs[::-1]}
    )
    pages = [site.page(run) for run in runs]
    tables = [table_of(page, entry, part) for page in pages for entry in page.book.get("tables", [])]
    site.shared = {
        "site": TITLE,
        "groups": _groups(pages),
        "sweeps": sweeps,
        "built": _now(),
        "board": bool(leaderboard),
    }
    for page in pages:
        site.write("notebook.html", page.address, page=page, here=page.name)
        page.content.body = ""  # the processes below get the list of pages, not what is on them
    made = {page.name: page for page in _written(site, jobs)}
    for sweep in sweeps:
        sweep.pages = [made[page.name] for page in sweep.pages]
        site.write("sweep.html", sweep.address, sweep=sweep, here=sweep.address)
    kept = {page.kept for page in [*pages, *made.values()]}
    if leaderboard:
        kept |= site.draw(leaderboard)
        of_cell = {page.name: page for page in [*pages, *made.values()]}
        unfinished = [page for page in of_cell.values() if not page.status.ok]
        shown = {"leaderboard": leaderboard, "of_cell": of_cell, "unfinished": unfinished}
        site.write("leaderboard.html", "leaderboard.html", here="leaderboard", **shown)
    chosen = [table for table in tables if table.headline] or [table for table in tables if len(table.rows) <= 12]
    site.write("index.html", "index.html", here="index", pages=pages, tables=chosen)
    for name in ("site.css", "site.js"):
        shutil.copy(ASSETS / name, part / name)
    _swap(part, folder)
    for path in site.cache.iterdir():
        if path.name not in kept:
            shutil.rmtree(path)
    return folder / "index.html"


# ---------------------------------------------------------------- what there is


def read_sweeps(reports: Path) -> list[dict]:
    """Every reports/sweeps/<name>/sweep.json with its `name`, in the order of the names."""
    found = []
    for path in sorted((reports / "sweeps").glob("*/sweep.json")):
        try:
            found.append({"decide": {}} | json.loads(path.read_text(encoding="utf-8")) | {"name": path.parent.name})
        except ValueError:
            raise UserError(f"{path} is not readable as JSON: delete it and run its sweep again.") from None
    return found


def _jobs(reports: Path, taken: set[str]) -> tuple[list[Work], list[Sweep]]:
    """All jobs of all sweeps, each once, and those in reports/cells that no sweep names; `taken` names have pages."""
    works: dict[str, Work] = {}
    sweeps = []
    for sweep in read_sweeps(reports):
        shown = Sweep(sweep["name"], sweep["sweep"], address=f"sweep-{sweep['name']}.html")
        for job in sweep["jobs"]:
            work = works.get(job["name"]) or _job(reports, job["name"], job["notebook"], job["params"], job["given"])
            work.labels, work.sweeps = work.labels or job["labels"], [*work.sweeps, shown.name]
            works[work.name] = work
            shown.pages.append(_stub(work))
        sweeps.append(shown)
    others = Sweep("other jobs", "", address="jobs-of-no-sweep.html")
    for path in sorted((reports / "cells").glob("*.status.json")):
        name = path.name.removesuffix(".status.json")
        status = read_status(path.with_name(f"{name}.ipynb"))
        if name not in works and status:
            works[name] = _job(reports, name, status.notebook, None, status.parameters)
            works[name].sweeps = [others.name]
            others.pages.append(_stub(works[name]))
    sweeps += [others] if others.pages else []
    for sweep in sweeps:
        sweep.pages = [page for page in sweep.pages if page.name not in taken]
    return [work for work in works.values() if work.name not in taken], sweeps


def _job(reports: Path, name: str, notebook: str, params: str | None, given: dict) -> Work:
    output = reports / "cells" / f"{name}.ipynb"
    return Work(name, reports.parent / notebook, output, params, None, given, job=True)


def _stub(work: Work) -> Page:
    """A page without what a process will find for it."""
    return Page(work.name, work.notebook.stem, work.params, Status("waiting", str(work.notebook), work.output.name))


# ---------------------------------------------------------------- pages


@dataclass
class _Site:
    """A site while it is made, in `part`; `shared` is what every page shows. It travels to the processes."""

    part: Path
    cache: Path
    addresses: dict[str, str]  # notebook file -> page, for links from notebook to notebook
    shared: dict[str, Any] = field(default_factory=dict)

    def write(self, template: str, address: str, **content: Any) -> None:
        text = _templates().get_template(template).render(**content, **self.shared)
        (self.part / address).write_text(text, encoding="utf-8")

    def page(self, work: Work) -> Page:
        """Link a run's files into the site and convert its notebook, if it left one."""
        status = work.status or read_status(work.output)
        if status is None:
            notebook = _shown(work.notebook, self.part)
            status = Status("waiting", notebook, work.output.name, work.given, sentence="its turn has not come.")
        page = Page(work.name, work.notebook.stem, work.params, status, declared=_declared(work.notebook))
        page.labels, page.sweeps, page.job = work.labels, work.sweeps, work.job
        files, left = self.part / page.files, book_folder(work.output)
        files.mkdir(parents=True)
        with suppress(OSError, ValueError):
            page.book = json.loads((left / "book.json").read_text(encoding="utf-8"))
            for kind in ("figures", "tables"):  # a stopped run may list one that it did not finish
                page.book[kind] = [entry for entry in page.book[kind] if _lies_in(left, entry["file"])]
            for entry in page.book["figures"]:
                entry["also"] = [name for name in entry.get("also", ()) if _lies_in(left, name)]
        executed = work.output.is_file()
        found = [path for path in left.glob("*") if page.book and path.suffix in SHOWN]
        found += [path for path in (status_path(work.output), work.output) if path.is_file()]
        found += [left / name for name in LEFT[1:] if (left / name).is_file()]
        for path in found:
            name = LEFT[0] if path.name.endswith(LEFT[0]) else path.name
            page.left += [name] if _link(path, files / name) else []
        with suppress(OSError):  # a log may still grow: a link would change under the site's hand
            log = f"{work.name}.log.txt"
            page.left += [Path(shutil.copyfile(work.output.with_suffix(".log"), files / log)).name]
        source = work.output if executed else work.notebook
        if source.is_file():
            try:
                page.content = self._content(source, page, files)
            except ValueError as error:
                status.notes = [*status.notes, f"the notebook cannot be shown: {error}"]
        return page

    def _content(self, source: Path, page: Page, files: Path) -> Fragment:
        """What the notebook became, from the cache where it was made of the same things before."""
        import nbformat.reader

        text = source.read_bytes()
        figures = page.book.get("figures", [])
        made_of = json.dumps([_made_by(), figures, page.files, self.addresses], sort_keys=True).encode()
        page.kept = hashlib.sha256(hashlib.sha256(text).digest() + made_of).hexdigest()[:32]
        kept = self.cache / page.kept
        try:
            content = Fragment(**json.loads((kept / "fragment.json").read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            shutil.rmtree(kept, ignore_errors=True)
            making = kept.with_name(f"{page.kept}.{os.getpid()}")
            shutil.rmtree(making, ignore_errors=True)
            making.mkdir(parents=True)
            notebook = nbformat.convert(nbformat.reader.reads(text.decode("utf-8")), 4)
            content = fragment(notebook, making, page.files, page.book, self.addresses)
            (making / "fragment.json").write_text(json.dumps(asdict(content)), encoding="utf-8")
            os.replace(making, kept)
        for path in kept.iterdir():
            if path.name != "fragment.json":
                _link(path, files / path.name)
        return content

    def draw(self, leaderboard: Leaderboard) -> set[str]:
        """The boards' pictures into the site; returns where they are kept."""
        names = set()
        (self.part / "files" / "leaderboard").mkdir(parents=True)
        for picture in (picture for board in leaderboard.boards for picture in board.pictures):
            kept = self.cache / picture.key[:32]
            if not (kept / "picture.png").is_file():
                kept.mkdir(parents=True, exist_ok=True)
                (kept / "part").write_bytes(picture.draw())
                os.replace(kept / "part", kept / "picture.png")
            _link(kept / "picture.png", self.part / "files" / "leaderboard" / f"{picture.name}.png")
            names.add(kept.name)
        return names


def _written(site: _Site, jobs: list[Work]) -> list[Page]:
    """The jobs' pages, written, by as many processes as are worth their start; their contents stay on the disk."""
    if len(jobs) < FEW:
        _begin(site)
        return [_write_job(job) for job in jobs]
    with ProcessPoolExecutor(WORKERS, get_context("spawn"), initializer=_begin, initargs=(site,)) as pool:
        return list(pool.map(_write_job, jobs, chunksize=16))


_made: dict[str, _Site] = {}  # the site that this process writes for


def _begin(site: _Site) -> None:
    _made["site"] = site


def _write_job(work: Work) -> Page:
    page = _made["site"].page(work)
    _made["site"].write("notebook.html", page.address, page=page, here=page.name)
    page.content, page.declared, page.book = Fragment(title=page.content.title), {}, {}
    return page


@cache
def _templates() -> Any:
    from jinja2 import Environment, FileSystemLoader

    made = Environment(loader=FileSystemLoader(ASSETS), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    made.filters["duration"] = duration
    made.filters["size"] = size
    return made


@cache
def _made_by() -> str:
    """What turns a notebook into a page, by its source."""
    return importlib.metadata.version("nbconvert") + hashlib.sha256(Path(fragments.__file__).read_bytes()).hexdigest()


@cache
def _declared(notebook: Path) -> dict:
    try:
        return parameters.declared(notebook)
    except UserError:
        return {}


def _shown(notebook: Path, part: Path) -> str:
    """The notebook as a shell in the repository would name it."""
    home = part.parent.parent
    return notebook.relative_to(home).as_posix() if notebook.is_relative_to(home) else str(notebook)


def _lies_in(left: Path, name: str) -> bool:
    return Path(name).name == name and (left / name).is_file()


def _link(source: Path, target: Path) -> bool:
    """Let `target` be the file `source`, or a copy of it on another disk; False where there is neither (any more)."""
    if target.exists():
        return True
    try:
        os.link(source, target)
    except FileNotFoundError:
        return False
    except OSError:
        shutil.copyfile(source, target)
    return True


def _groups(pages: list[Page]) -> list[tuple[str, list[Page]]]:
    """Pages of one notebook together, in the order of the plan."""
    groups: dict[str, list[Page]] = {}
    for page in pages:
        groups.setdefault(page.notebook, []).append(page)
    return list(groups.items())


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
