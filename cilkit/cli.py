"""`cilkit run | report | doctor | verify | export`, for people and make. Bad input is one sentence, no traceback."""

import argparse
import errno
import signal
import sys
from pathlib import Path

from cilkit.errors import UserError


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
    commands = parser.add_subparsers(required=True, metavar="run | report | doctor | verify | export")

    run = commands.add_parser("run", help="execute one notebook with checked parameters")
    run.add_argument("notebook", type=Path)
    run.add_argument("-f", "--file", type=Path, action="append", default=[], help="parameter file (later ones win)")
    run.add_argument("-p", "--parameter", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"))
    run.add_argument("-o", "--output", type=Path, help="executed notebook (default: reports/runs/<name>.ipynb)")
    run.add_argument("--timeout", type=float, metavar="SECONDS", help="limit for the whole notebook")
    run.add_argument("--again", action="store_true", help="also if nothing has changed")
    run.set_defaults(call=_run)

    report = commands.add_parser("report", help="run the plan and build reports/site")
    report.add_argument("plan", type=Path, nargs="?", help="default: params/report.yaml, else every notebook")
    report.add_argument("--workers", type=int, default=2, help="notebooks at a time, one thread each")
    report.add_argument("--again", action="store_true", help="run also what is unchanged")
    report.set_defaults(call=_report)

    doctor = commands.add_parser(
        "doctor",
        help="what differs in this installation from the lock; or what is wrong with an image set",
    )
    doctor.add_argument("images", nargs="?", help="an image set to examine: stage/key, or a folder of shards")
    doctor.add_argument("--rebuild", action="store_true", help="write its manifest anew from the rows in its shards")
    doctor.set_defaults(call=_doctor)

    export = commands.add_parser("export", help="give an image set to other programs")
    export.add_argument("images", help="stage/key, a folder, or a parameter file of notebook 02")
    export.add_argument("form", choices=("imagefolder", "huggingface", "parquet", "webdataset"))
    export.add_argument("target", type=Path, help="a new folder; of webdataset the pattern of its tars, out/%%06d.tar")
    export.set_defaults(call=_export)

    verify = commands.add_parser("verify", help="hash artifacts again")
    verify.add_argument("artifact", nargs="*", help="stage/key or a folder; default: all")
    verify.set_defaults(call=_verify)
    return parser


def _run(options: argparse.Namespace) -> int:
    from cilkit import artifacts
    from cilkit.workbook import parameters
    from cilkit.workbook.execute import interrupt_all, run_notebook
    from cilkit.workbook.start import shown

    known = parameters.declared(options.notebook)
    given = {}
    for path in options.file:
        given |= parameters.load_params(path)
    for name, text in options.parameter:
        a_text = name in known and "str" in known[name].type.replace("Literal", "")
        given[name] = text if a_text else parameters.parse_text(text)
    stem = "-".join([options.notebook.stem, *(path.stem for path in options.file)])
    home = artifacts.repository() or Path.cwd()
    output = options.output or home / "reports" / "runs" / f"{stem}.ipynb"

    def stop(number: int, frame: object) -> None:
        """The first signal interrupts the kernel, which keeps what it has; the second one ends us."""
        signal.signal(number, signal.default_int_handler)
        interrupt_all()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    status = run_notebook(
        options.notebook, given, output, timeout=options.timeout, log=print, live=True, again=options.again
    )
    if status.skipped:
        print(f"{shown(output.absolute())}: nothing has changed since it was made (--again runs it all the same)")
    elif status.ok:
        print(f"{shown(output.absolute())}: ok, {status.seconds:.1f} s")
    else:
        print(f"cilkit: {status.state} in code cell {status.cell}: {status.sentence}", file=sys.stderr)
    return 130 if status.state == "interrupted" else int(not status.ok)


def _report(options: argparse.Namespace) -> int:
    from cilkit.workbook.report import make_report

    entries = make_report(options.plan, workers=options.workers, again=options.again)
    return int(not all(entry.status.ok for entry in entries))


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


def _export(options: argparse.Namespace) -> int:
    from cilkit.road.inputs import upstream
    from cilkit.synthesis import export

    images = upstream(options.images, "images")
    if options.form == "imagefolder":
        export.to_imagefolder(images, options.target)
    elif options.form == "webdataset":
        export.to_webdataset(images, options.target)
    else:
        export.to_huggingface(images, options.target, "disk" if options.form == "huggingface" else "parquet")
    print(f"{len(images)} images of {len(images.class_names)} classes: {options.target}")
    return 0


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


if __name__ == "__main__":
    sys.exit(main())
