"""`cilkit verify`: artifacts hashed again."""

import argparse
from pathlib import Path

from cilkit.errors import UserError


def add(commands: argparse._SubParsersAction) -> None:
    verify = commands.add_parser("verify", help="hash artifacts again")
    verify.add_argument("artifact", nargs="*", help="stage/key or a folder; default: all")
    verify.set_defaults(call=_verify)


def _verify(options: argparse.Namespace) -> int:
    from cilkit import artifacts

    names = options.artifact or sorted(str(card.parent) for card in artifacts.root().glob("*/*/artifact.json"))
    problems = []
    for name in names:
        if Path(name).suffix == ".part":
            continue
        try:
            problems += artifacts.verify(artifacts.open_artifact(name))
        except UserError as error:
            problems.append(str(error))
    for problem in problems:
        print(problem)
    print(f"{len(names)} artifacts, {len(problems)} problems")
    return int(bool(problems))
