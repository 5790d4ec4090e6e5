"""`make report`: run notebooks as a graph, two at a time, and build the site from what they leave.

The plan is a YAML list (`params/report.yaml`; without it every notebook runs once, in the order of their names):

    - notebook: notebooks/04_slca.ipynb
      params: params/04_slca/foreseen.yaml     # optional: only what differs from the notebook's defaults
      name: 04_slca                            # optional; default <notebook> or <notebook>-<params>
      after: [03_pretraining]                  # optional: names of runs that make what this one reads
      timeout: 900                             # optional: seconds

Outputs are `reports/runs/<name>.ipynb`, `<name>.status.json` and the folder `<name>/` with its figures and tables. A
run whose notebook, parameters, code and input artifacts are unchanged is not executed again. Each kernel is a process
of its own with its part of the cores; the driver is one process, so papermill is imported once, and not at all without
need.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from cilkit import artifacts
from cilkit.errors import Stopped, UserError
from cilkit.locks import sole_maker
from cilkit.workbook import parameters
from cilkit.workbook.driving import Driver
from cilkit.workbook.execute import Status
from cilkit.workbook.jobs import Job, Needs
from cilkit.workbook.local import LocalExecutor
from cilkit.workbook.start import shown

WORKERS = 2
KEYS = {"notebook": str, "params": str, "name": str, "after": list, "timeout": (int, float)}


@dataclass
class Entry:
    """One run of the plan."""

    name: str
    notebook: Path
    given: dict[str, Any] = field(default_factory=dict)
    params: str | None = None
    after: list[str] = field(default_factory=list)
    timeout: float | None = None
    output: Path = Path()
    status: Status | None = None


def make_report(
    plan: Path | str | None = None,
    *,
    workers: int = WORKERS,
    again: bool = False,
    home: Path | None = None,
    log: Callable[[str], None] = print,
    finish: Callable[[Path], None] | None = None,
    leaderboard: Callable[[Path], Any] | None = None,
) -> list[Entry]:
    """Run the plan and write `reports/site` in the repository (`home`); returns the entries with their statuses.

    Raises UserError for a plan that does not fit together (nothing was run), Stopped after an interrupt (the site then
    shows what was finished).
    """
    from cilkit.workbook.site import build_site

    home = home or artifacts.repository()
    if home is None:
        raise UserError(f"{Path.cwd()} is not inside the workbook's repository: change into it and run again.")
    plan = home / "params" / "report.yaml" if plan is None else Path(plan).absolute()
    reports = home / "reports"
    entries = read_plan(plan, home) if plan.is_file() else _every_notebook(home)
    for entry in entries:
        entry.output = reports / "runs" / f"{entry.name}.ipynb"
    begun = time.monotonic()
    with sole_maker(reports / ".report.lock", "the report"):
        problem = _run(entries, workers, again, log, finish)
        shown_in_order = sorted(entries, key=lambda entry: (entry.notebook.name, entry.params or ""))
        index = build_site(shown_in_order, reports / "site", leaderboard(home) if leaderboard else None)
    log(f"{shown(index)} written, {time.monotonic() - begun:.1f} s in all")
    if problem is not None:
        raise problem
    return entries


def _run(
    entries: list[Entry], workers: int, again: bool, log: Callable, finish: Callable | None
) -> BaseException | None:
    """Drive the entries as jobs; what stopped it, so that the site is built all the same."""
    jobs = []
    for place, entry in enumerate(entries):
        needs = Needs(gpus=0.0, timeout=entry.timeout)
        jobs.append(
            Job(
                entry.name,
                entry.notebook,
                entry.given,
                entry.output,
                entry.after,
                params=entry.params,
                rank=(place,),
                needs=needs,
            )
        )
    driver = Driver(jobs, LocalExecutor(workers, finish=finish), log=log, again=again)
    try:
        driver.run()
    except (Stopped, UserError) as error:
        return error
    finally:
        for entry in entries:
            entry.status = driver.entries[entry.name].status
    return None


def read_plan(path: Path, home: Path) -> list[Entry]:
    """The entries of a plan, checked: files, parameters, names and the order are all known before anything runs."""
    try:
        lines = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError:
        raise UserError(f"there is no plan {path}{parameters.nearest_file(path)}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not readable as YAML: {getattr(error, 'problem', error)}.") from None
    if not isinstance(lines, list) or not all(isinstance(line, dict) for line in lines):
        raise UserError(f"{path}: expected a list of entries, each with `notebook: …`.")
    entries = [_entry(line, path, home) for line in lines]
    names = [entry.name for entry in entries]
    for number, entry in enumerate(entries):
        if entry.name in names[:number]:
            raise UserError(f"{path}: two entries are named {entry.name!r}; give one of them another `name:`.")
        missing = [name for name in entry.after if name not in names[:number]]
        if missing:
            raise UserError(f"{path}: {entry.name} runs after {missing[0]!r}, which is no entry above it.")
    return entries


def _entry(line: dict, path: Path, home: Path) -> Entry:
    for key, value in line.items():
        if key not in KEYS:
            raise UserError(f"{path}: unknown key {key!r}; an entry has {', '.join(KEYS)}.")
        if not isinstance(value, KEYS[key]):
            raise UserError(f"{path}: {key}: {value!r} is not what this key holds.")
    if "notebook" not in line:
        raise UserError(f"{path}: the entry {line} lacks `notebook: …`.")
    notebook, params = home / line["notebook"], line.get("params")
    given = parameters.load_params(home / params) if params else {}
    try:
        parameters.check(parameters.declared(notebook), given)
    except UserError as error:
        raise UserError(f"{params or line['notebook']}: {error}") from None
    default = f"{notebook.stem}.{Path(params).stem}" if params else notebook.stem
    name = line.get("name", default).replace(".", "-")
    return Entry(name, notebook, given, params, line.get("after", []), line.get("timeout"))


def _every_notebook(home: Path) -> list[Entry]:
    """Without a plan: each notebook with its defaults, one after the other."""
    paths = sorted((home / "notebooks").glob("*.ipynb"))
    if not paths:
        raise UserError(f"there is no notebook in {home / 'notebooks'}.")
    return [Entry(p.stem, p, after=[b.stem for b in paths[max(0, i - 1) : i]]) for i, p in enumerate(paths)]
