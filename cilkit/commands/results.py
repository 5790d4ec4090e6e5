"""`cilkit results`: every result so far in one table, for people and for other programs."""

import argparse
from pathlib import Path

from cilkit.errors import UserError


def add(commands: argparse._SubParsersAction) -> None:
    results = commands.add_parser("results", help="the table of all runs, as text, CSV, LaTeX; TensorBoard, W&B")
    results.add_argument("--by", default="", metavar="COLUMN,…", help="what names a method (default: the learner)")
    results.add_argument("--value", action="append", default=[], help="figures to show (default: last and average)")
    results.add_argument("--baseline", default="", metavar="METHOD", help="also paired differences to this method")
    results.add_argument("--within", type=float, default=3.0, help="half width wanted of a difference, in points")
    results.add_argument("--heads", action="store_true", help="every head of a run, not its default one alone")
    results.add_argument("--csv", type=Path, metavar="FILE")
    results.add_argument("--latex", type=Path, metavar="FILE")
    results.add_argument("--bold", action="store_true", help="in LaTeX: the best of each column")
    results.add_argument("--tensorboard", type=Path, metavar="FOLDER", help="accuracy after each task, a run a row")
    results.add_argument(
        "--wandb", metavar="PROJECT", help="the same for Weights & Biases; the environment has the key"
    )
    results.set_defaults(call=_results)


def _results(options: argparse.Namespace) -> int:
    from cilkit import deciding, exporting
    from cilkit.road.gathering import results

    table = results()
    if not len(table):
        raise UserError(
            "there are no results yet under reports/: run a notebook first, cilkit run notebooks/04_slca.ipynb"
        )
    if not options.heads:
        table = table[table["default head"]]
    named = exporting.methods(table, [name for name in options.by.split(",") if name])
    found = exporting.summary(named, options.value or tuple(exporting.FIELD))
    print(exporting.to_text(found))
    if options.baseline:
        value = (options.value or list(exporting.FIELD))[0]
        print(f"\n{value}, over the same class orders and seeds:")
        for one in deciding.comparisons(named, value, "method", options.baseline, options.within):
            print(one)
    for path, write in ((options.csv, exporting.to_csv), (options.latex, exporting.to_latex)):
        if path:
            print(write(found, path, **({"bold": options.bold} if write is exporting.to_latex else {})))
    if options.tensorboard:
        print(f"{options.tensorboard}: {exporting.to_tensorboard(table, options.tensorboard)} runs written")
    if options.wandb:
        print(f"{options.wandb}: {exporting.to_wandb(table, options.wandb)} runs handed over")
    return 0
