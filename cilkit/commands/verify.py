"""`cilkit verify`: artifacts hashed again, or a package checked down to its figures."""

import argparse
from pathlib import Path

from cilkit.errors import UserError


def add(commands: argparse._SubParsersAction) -> None:
    verify = commands.add_parser("verify", help="hash artifacts again; or check a package of cilkit pack")
    verify.add_argument("artifact", nargs="*", help="stage/key, a folder, or a package.zip; default: all artifacts")
    verify.add_argument("--again", action="store_true", help="of a package: run its notebook afresh and compare")
    verify.set_defaults(call=_verify)


def _verify(options: argparse.Namespace) -> int:
    from cilkit import artifacts

    packages = [name for name in options.artifact if Path(name).suffix == ".zip"]
    if options.again and not packages:
        raise UserError("--again needs a package: cilkit verify out.zip --again")
    names = [name for name in options.artifact if name not in packages]
    if not options.artifact:
        names = sorted(str(card.parent) for card in artifacts.root().glob("*/*/artifact.json"))
    problems = []
    for name in packages:
        problems += _package(name, options.again)
    for name in names:
        if Path(name).suffix == ".part":
            continue
        try:
            problems += artifacts.verify(artifacts.open_artifact(name))
        except UserError as error:
            problems.append(str(error))
    for problem in problems:
        print(problem)
    what = f"{len(packages)} packages" if packages and not names else f"{len(names) + len(packages)} artifacts"
    print(f"{what}, {len(problems)} problems")
    return int(bool(problems))


def _package(name: str, again: bool) -> list[str]:
    """The problems of one package; it is run again only where it holds."""
    from cilkit.road import checking

    if not Path(name).is_file():
        raise UserError(f"there is no package {name}; check its path")
    problems = checking.verify(name)
    if again and not problems:
        problems = checking.again(name)
    return [f"{Path(name).name}: {problem}" for problem in problems]
