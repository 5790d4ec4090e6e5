"""`cilkit sweep`: a grid of notebooks as a graph of jobs, on this machine or a Ray cluster."""

import argparse
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from cilkit.errors import UserError

FINISH = "cilkit.road.gathering:write_result"  # what is written of a job that ended well
FEW = 3  # jobs before a job that the dry run names one by one


def add(commands: argparse._SubParsersAction) -> None:
    sweep = commands.add_parser("sweep", help="run a grid of notebooks, or go on with it")
    sweep.add_argument("file", type=Path, help="params/sweeps/….yaml")
    sweep.add_argument("--dry-run", action="store_true", help="the graph, what is done, and what the rest will cost")
    sweep.add_argument("--only", action="append", default=[], metavar="AXIS=WORD[,WORD] | PART_OF_A_NAME")
    sweep.add_argument("--resume", action="store_true", help="leave what failed by its own fault, unchanged since")
    sweep.add_argument("--keep-stale", action="store_true", help="what earlier code made counts as done")
    sweep.add_argument("--again", action="store_true", help="run also what is done")
    sweep.add_argument("--watch", action="store_true", help="look on at a sweep that runs elsewhere; starts nothing")
    sweep.add_argument("--workers", type=int, help="jobs at a time (default: as many as the cores or GPUs hold)")
    sweep.add_argument("--gpus", help='GPUs to use, "0,1" (default: all that there are; "" for none)')
    sweep.add_argument("--executor", choices=("local", "ray"), default="local")
    sweep.add_argument("--address", default="", help='of a Ray cluster ("auto": the one of this machine)')
    sweep.add_argument(
        "--artifacts", choices=("shared", "fetched"), default="shared", help="with Ray: how they are seen"
    )
    sweep.set_defaults(call=_sweep)


def _sweep(options: argparse.Namespace) -> int:
    from cilkit.workbook import graph as graphs
    from cilkit.workbook.watching import watch

    if options.watch:
        watch(options.file)
        return 0
    whole = graphs.build(options.file)
    graph = whole.only(options.only) if options.only else whole
    return _dry_run(graph, options) if options.dry_run else _run(graph, whole, options)


def _run(graph: Any, whole: Any, options: argparse.Namespace) -> int:
    from cilkit.workbook import graph as graphs
    from cilkit.workbook.driving import Driver
    from cilkit.workbook.watching import Screen, lines_of, summary

    ledger = graphs.Ledger(graph.memo, options.keep_stale)
    graphs.save(whole)  # a page shows all of it, whatever is run now
    screen = Screen(graph.name)
    executor, cards = _executor(options)
    for job in graph.jobs:
        if job.needs.gpus is None:
            job.needs = replace(job.needs, gpus=1.0 if cards else 0.0)
    decided = None
    if graph.decide:
        from cilkit.road.gathering import decide

        decided = partial(decide, spec=graph.decide)
    driver = Driver(
        graph.jobs,
        executor,
        ledger,
        log=screen.log,
        look=screen,
        decided=decided,
        enough=lambda seed: graphs.save(whole, seed),
        again=options.again,
        keep_failed=options.resume,
    )
    try:
        ok = driver.run()
    finally:
        if screen.live:
            screen.draw(lines_of(driver))
        print(f"{graph.name}: {summary(lines_of(driver))}", file=sys.stdout)
    return int(not ok)


def _executor(options: argparse.Namespace) -> tuple[Any, int]:
    """The executor asked for, and how many GPUs it has."""
    from cilkit.devices import gpus

    if options.executor == "ray":
        from cilkit.workbook.ray_executor import RayExecutor

        executor = RayExecutor(options.address, options.artifacts, finish=FINISH, limit=options.workers)
        return executor, executor.gpus
    if options.address or options.artifacts != "shared":
        raise UserError("--address and --artifacts belong to --executor ray: add it, or leave them out.")
    from cilkit.road.gathering import write_result
    from cilkit.workbook.local import LocalExecutor

    cards = gpus() if options.gpus is None else [card for card in options.gpus.split(",") if card]
    return LocalExecutor(options.workers, cards, finish=write_result), len(cards)


def _dry_run(graph: Any, options: argparse.Namespace) -> int:
    """Print the graph with what is done and what the rest will cost, by earlier runs; nothing is started."""
    from cilkit.workbook import graph as graphs
    from cilkit.workbook.estimates import Estimates, in_all
    from cilkit.workbook.watching import look

    ledger = graphs.Ledger(graph.memo, options.keep_stale)
    lines = look(graph, ledger)
    estimates = Estimates([graphs.cells_folder(), graphs.cells_folder().with_name("runs")], ledger)
    to_do, on_gpus, text = [], [], []
    for line in lines:
        cost = None
        if line.state not in ("done", "running"):
            cost = estimates.of(line.job)
            to_do.append(cost)
            if line.job.needs.gpus != 0:
                on_gpus.append(replace(cost, seconds=cost.seconds and cost.seconds * (line.job.needs.gpus or 1)))
        about = _about(cost) if cost else ""
        before = line.job.after
        after = f"  after {', '.join(before) if len(before) <= FEW else f'{len(before)} jobs'}" if before else ""
        text.append(f"{line.sign} {line.job.name}  {line.job.label}  {line.words}{about}{after}")
    print("\n".join(text))
    total = in_all(to_do, options.workers or 1)
    sentence = f"{graph.name}: {len(lines)} jobs, {len(lines) - len(to_do)} done or running, {len(to_do)} to do"
    if to_do:
        sentence += (
            f"; about {_time(total['hours'])} of computing ({_time(total['hours on the clock'])} on the clock), "
            f"{in_all(on_gpus)['hours']:.2f} GPU-hours where there are GPUs, {total['bytes'] / 1e9:.2f} GB on disk at "
            f"most, {total['tokens']:,.0f} tokens"
        )
        sentence += f"; of {total['unknown']} nothing is known yet" if total["unknown"] else ""
    print(sentence)
    return 0


def _time(hours: float) -> str:
    if hours >= 1:
        return f"{hours:.1f} h"
    return f"{hours * 60:.1f} min" if hours * 60 >= 1 else f"{hours * 3600:.0f} s"


def _about(cost: Any) -> str:
    if cost.seconds is None:
        return "  ? s"
    return f"  about {cost.seconds:.0f} s ({cost.known})"
