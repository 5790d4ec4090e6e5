"""`cilkit report`: the plan of `make report`."""

import argparse
from pathlib import Path


def add(commands: argparse._SubParsersAction) -> None:
    report = commands.add_parser("report", help="run the plan and build reports/site")
    report.add_argument("plan", type=Path, nargs="?", help="default: params/report.yaml, else every notebook")
    report.add_argument("--workers", type=int, default=2, help="notebooks at a time, one thread each")
    report.add_argument("--again", action="store_true", help="run also what is unchanged")
    report.set_defaults(call=_report)


def _report(options: argparse.Namespace) -> int:
    from cilkit.road.gathering import write_result
    from cilkit.road.leaderboard import of_home
    from cilkit.workbook.report import make_report

    entries = make_report(
        options.plan, workers=options.workers, again=options.again, finish=write_result, leaderboard=of_home
    )
    return int(not all(entry.status.ok for entry in entries))
