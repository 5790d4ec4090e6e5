"""The explorer over any runs: those given, or picked from the table of results."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cilkit.errors import UserError
from cilkit.road.opening import benchmark_of, run_of

if TYPE_CHECKING:
    import pandas as pd

    from cilkit.runs import Run
    from cilkit.widgets.explorer import Explorer


def explore(runs: Any = None, table: pd.DataFrame | None = None) -> Explorer:
    """Accuracy of each class after each task, and behind every number its images and the answers given to them.

    runs:  label -> run, or one run: whatever `cilkit.open` takes. The first two are shown. None: the first of the table
           whose artifact is still here.
    table: rows of `cilkit.results()` to pick more runs from; all of them where no runs are given.
    A widget in JupyterLab; a picture elsewhere. Saved outputs are read, no model.
    """
    from cilkit.widgets.explorer import Explorer

    if runs is None and table is None:
        from cilkit.road.gathering import results

        table = results()
    if runs is None:
        found = {str(run.learner): run for run in [_first(table)]}
    elif isinstance(runs, Mapping):
        found = {str(label): run_of(run) for label, run in runs.items()}
    else:
        run = run_of(runs)
        found = {run.learner: run}
    return Explorer(found, benchmark_of, table, run_of)


def _first(table: pd.DataFrame) -> Run:
    """The first row's run that is still here."""
    for row in table.drop_duplicates("artifact")[["artifact", "digest"]].to_dict("records"):
        try:
            return run_of(row)
        except UserError:
            continue
    raise UserError(
        "no run of the table of results is here; run a notebook that makes one, or give runs: explore({'slca': run})"
    )
