"""`cilkit run | sweep | report …`, for people and make. Bad input is one sentence, no traceback."""

import argparse
import errno
import importlib
import signal
import sys

from cilkit.errors import UserError

COMMANDS = ("run", "sweep", "report", "doctor", "export", "verify", "results", "pack", "site")  # modules


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0 done, 1 something did not finish or does not hold, 2 bad input, 130 interrupted."""
    options = _parser().parse_args(arguments)
    if hasattr(signal, "SIGTERM"):  # a cluster's time limit counts as an interrupt: what is finished is kept
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return options.call(options)
    except UserError as error:
        print(f"cilkit: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        where = f" ({error.filename})" if error.filename else ""
        print(
            f"cilkit: the disk is full{where}: free some space and run again; finished work is kept.", file=sys.stderr
        )
        return 1
    except KeyboardInterrupt as stop:
        print(f"cilkit: {stop or 'interrupted.'}", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="cilkit", description="Runs the workbook's notebooks and builds its report.")
    commands = parser.add_subparsers(required=True, metavar=" | ".join(COMMANDS))
    for name in COMMANDS:
        importlib.import_module(f"cilkit.commands.{name}").add(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
