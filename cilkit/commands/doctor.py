"""`cilkit doctor`: this installation, or one image set."""

import argparse
from pathlib import Path

from cilkit.errors import UserError


def add(commands: argparse._SubParsersAction) -> None:
    doctor = commands.add_parser(
        "doctor",
        help="what differs in this installation from the lock; or what is wrong with an image set",
    )
    doctor.add_argument("images", nargs="?", help="an image set to examine: stage/key, or a folder of shards")
    doctor.add_argument("--rebuild", action="store_true", help="write its manifest anew from the rows in its shards")
    doctor.set_defaults(call=_doctor)


def _doctor(options: argparse.Namespace) -> int:
    from cilkit.workbook.doctor import findings

    if options.images:
        return _examine(options)
    if options.rebuild:
        raise UserError("--rebuild needs an image set: cilkit doctor images/3f2a91 --rebuild")
    for line in findings():
        print(line)
    return 0


def _examine(options: argparse.Namespace) -> int:
    from cilkit import artifacts
    from cilkit.data import repair

    is_folder = Path(options.images).is_dir()
    folder = Path(options.images) if is_folder else artifacts.open_artifact(options.images).path
    if options.rebuild:
        print(f"{repair.rebuild(folder)} was written from the shards")
    found = repair.examine(folder)
    for finding in found:
        print(f"! {finding}")
    print(f"{folder}: {len(found) or 'no'} finding{'s' * (len(found) != 1)}")
    return int(bool(found))
