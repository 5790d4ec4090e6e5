"""`cilkit site`: the pages anew, of whatever has been run so far; nothing is run."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cilkit.workbook.report import Entry


def add(commands: argparse._SubParsersAction) -> None:
    site = commands.add_parser("site", help="build reports/site of all that has been run: notebooks, sweeps, results")
    site.set_defaults(call=_site)


def _site(options: argparse.Namespace) -> int:
    import time

    from cilkit import artifacts
    from cilkit.errors import UserError
    from cilkit.locks import sole_maker
    from cilkit.road.leaderboard import of_home
    from cilkit.workbook.site import build_site
    from cilkit.workbook.start import shown

    home = artifacts.repository()
    if home is None:
        raise UserError(f"{Path.cwd()} is not inside the workbook's repository: change into it and run again.")
    begun = time.monotonic()
    with sole_maker(home / "reports" / ".report.lock", "the report"):
        index = build_site(runs_of(home), home / "reports" / "site", of_home(home))
    print(f"{shown(index)} written, {time.monotonic() - begun:.1f} s")
    return 0


def runs_of(home: Path) -> list[Entry]:
    """Every run that left a status in reports/runs, with its parameter file where the report's plan names one."""
    from cilkit.workbook.execute import read_status
    from cilkit.workbook.report import Entry, read_plan

    plan = home / "params" / "report.yaml"
    planned = {entry.name: entry for entry in (read_plan(plan, home) if plan.is_file() else [])}
    found = []
    for path in sorted((home / "reports" / "runs").glob("*.status.json")):
        name = path.name.removesuffix(".status.json")
        output = path.with_name(f"{name}.ipynb")
        if status := read_status(output):
            entry = planned.get(name) or Entry(name, home / status.notebook, status.parameters)
            entry.output, entry.status = output, status
            found.append(entry)
    return found
