"""`cilkit pack`: a finished job in one file that another lab checks."""

import argparse
from pathlib import Path


def add(commands: argparse._SubParsersAction) -> None:
    pack = commands.add_parser("pack", help="put a finished job into one file, which cilkit verify checks")
    pack.add_argument("job", help="its name in reports/cells or reports/runs, or its executed notebook")
    pack.add_argument("target", type=Path, help="out.zip")
    pack.add_argument("--everything", action="store_true", help="also backbones and features, which no figure needs")
    pack.set_defaults(call=_pack)


def _pack(options: argparse.Namespace) -> int:
    from cilkit.road.packing import pack

    path = pack(options.job, options.target, options.everything)
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB; check it with: cilkit verify {path}")
    return 0
