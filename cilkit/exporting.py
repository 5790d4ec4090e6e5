"""The table of results for other programs: in the field's shape as text, CSV and LaTeX; TensorBoard; Weights & Biases.

In the field's shape a row is a method, and each benchmark has its last accuracy, its average incremental accuracy and
the number of runs: mean ± sample standard deviation over class orders and seeds, averaged first and rounded last.
"""

from __future__ import annotations

import csv
import functools
import io
import math
import os
import re
import shutil
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from cilkit import artifacts, outcomes
from cilkit.errors import UserError, near_name

if TYPE_CHECKING:
    import pandas as pd

CURVE = "accuracy after each task"  # over all test images so far, in percent; what stands right of it tells runs apart
FIELD = {"last accuracy": "Last", "average incremental accuracy": "Avg"}
IN_LATEX = FIELD | {"average incremental accuracy": r"$\bar{A}$"}
LOWER = ("forgetting", "error", "likelihood", "Brier", "intransigence", "seconds", "bytes")  # of which less is better
CLOCKS = ("seconds", "peak bytes")


def methods(table: pd.DataFrame, by: Sequence[str] = ()) -> pd.DataFrame:
    """The table with columns "method" and "on" (the benchmark, with its increments where it was cut in several ways).

    by: the columns that name a method, joined by " / ". () is the learner with whatever else tells runs of the same
        seeds apart. UserError where the columns named leave two runs of the same seeds under one name.
    A joint run is a method of its own on every cut of its benchmark, named "… (joint)".
    """
    import pandas as pd

    kind = table["stream"].str.partition(",")
    benchmark, kind = table["benchmark"] + kind[1] + kind[2], kind[0]
    cut = benchmark + ", " + table["increments"]
    whole = kind == "joint"
    cuts = {name: list(dict.fromkeys(cut[(benchmark == name) & ~whole])) for name in benchmark.unique()}
    places = [
        [name] if len(cuts[name]) < 2 else cuts[name] if joint else [own]
        for name, joint, own in zip(benchmark, whole, cut, strict=True)
    ]
    table = table.assign(on=places, kind=kind).explode("on", ignore_index=True)
    outcomes.arms(table, list(by) or ["learner"])  # each is a column
    parts = [table] if by else [part for _, part in table.groupby("learner", sort=False)]
    method = {}
    for part in parts:
        names = _telling(part, list(by))
        for index, line in zip(part.index, part[names].to_dict("records"), strict=True):
            kind = part.at[index, "kind"]
            method[index] = _named(line, bool(by)) + ("" if kind == "tasks" else f" ({kind})")
    return table.assign(method=pd.Series(method, dtype=object))


def _telling(table: pd.DataFrame, by: list[str]) -> list[str]:
    """The columns that tell runs of the same seeds apart: those asked for, else the fewest and coarsest."""
    names, unit = by or ["learner"], ["on", "kind", *[name for name in outcomes.SEEDS if name in table]]
    table = table.astype(object).where(table.notna(), "").astype(str)
    while (doubled := table[table.duplicated([*names, *unit], keep=False)]).size:
        left = [name for name in ("head", "backbone", "protocol", *_right_of(table), "artifact") if name in {*table}]
        groups = doubled.groupby([*names, *unit])
        left = [name for name in left if name not in names and groups[name].nunique().max() > 1]
        if by or not left:
            told = f"; they differ in {', '.join(left)}" if left else ""
            raise UserError(f"{doubled[names[0]].iloc[0]} has several runs of the same seeds{told}: name more in --by")

        names = [*names, min(left, key=functools.partial(_rank, doubled, [*names, *unit]))]
    return names


def _rank(doubled: pd.DataFrame, names: list[str], name: str) -> tuple:
    """Smaller is better: what a person reads first, then what leaves fewest runs under one name, then coarse ones."""
    nested = bool(doubled[name].str.startswith(("{", "[")).any())
    return (
        name == "artifact",
        name.startswith("input: "),
        nested,
        doubled.duplicated([*names, name]).sum(),
        doubled[name].nunique(),
    )


def _right_of(table: pd.DataFrame) -> list[str]:
    """Axes of sweeps, settings and inputs."""
    columns = list(table)
    right = columns[columns.index(CURVE) + 1 :] if CURVE in columns else []
    seeds = [f"{name}{of}" for name in outcomes.SEEDS for of in ("", " (parameter)", " (sweep)")]
    return [name for name in right if not name.startswith(CLOCKS) and name not in ("on", "kind", *seeds)]


def _named(line: dict, asked: bool) -> str:
    """ "slca / slow_rate 0.1"; as asked for: the values alone."""
    told = [(name, _text(value)) for name, value in line.items() if _is(value)]
    return " / ".join(value if asked or name == "learner" else f"{name} {value}" for name, value in told)


def _text(value: object) -> str:
    """A whole number as such (a column with gaps holds floats), a parameter file by its name."""
    text = str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
    return Path(text).stem if text.endswith((".yaml", ".yml")) else text


def _is(value: object) -> bool:
    """Whether a cell of a table holds something."""
    return value is not None and value == value


def summary(table: pd.DataFrame, values: Sequence[str] = tuple(FIELD)) -> pd.DataFrame:
    """A row a method, with columns (benchmark, figure, "mean" or "std") and (benchmark, "runs", ""), of `methods`.

    std is the sample standard deviation, NaN of one run. Nothing is rounded.
    """
    import pandas as pd

    for value in values:
        if value not in table:
            raise UserError(f"the results have no figure {value!r}{near_name(value, table)}")
    columns, names = {}, pd.Index(table["method"].unique(), name="method")
    for benchmark in table["on"].unique():
        groups = table[table["on"] == benchmark].groupby("method", sort=False)
        for value in values:
            columns[benchmark, value, "mean"] = groups[value].mean()
            columns[benchmark, value, "std"] = groups[value].std(ddof=1)
        columns[benchmark, "runs", ""] = groups.size().reindex(names, fill_value=0)
    return pd.DataFrame(columns, index=names)


def to_text(found: pd.DataFrame, digits: int = 1) -> str:
    """What a terminal shows."""
    import pandas as pd

    texts = {(on, FIELD.get(figure, figure)): cells for (on, figure), cells in _cells(found, digits).items()}
    table = pd.DataFrame(texts, index=found.index).rename_axis(index=None)
    return table.to_string()


def _cells(found: pd.DataFrame, digits: int) -> dict[tuple[str, str], list[str]]:
    """(benchmark, figure) -> a text a method: "71.2 ± 0.8", "71.2" of one run, "" of none; or the number of runs."""
    texts = {}
    for on, figure in dict.fromkeys((on, figure) for on, figure, _ in found):
        if figure == "runs":
            texts[on, figure] = [str(n) if n else "" for n in found[on, "runs", ""]]
        else:
            pairs = zip(found[on, figure, "mean"], found[on, figure, "std"], strict=True)
            texts[on, figure] = [_number(mean, std, digits) for mean, std in pairs]
    return texts


def _number(mean: float, std: float, digits: int) -> str:
    if math.isnan(mean):
        return ""
    return f"{mean:.{digits}f}" + ("" if math.isnan(std) else f" ± {std:.{digits}f}")


# ---------------------------------------------------------------- CSV and LaTeX


def to_csv(found: pd.DataFrame, path: str | Path) -> Path:
    """A row a method in full precision: "cub200, last accuracy, mean" …; a text that a spreadsheet would compute is
    written with an apostrophe before it."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["method", *[_harmless(", ".join(part for part in column if part)) for column in found]])
    for method, line in zip(found.index, found.itertuples(index=False), strict=True):
        writer.writerow([_harmless(method), *["" if value != value else repr(value) for value in line]])
    return artifacts.atomic_write(path, text.getvalue())


def _harmless(text: str) -> str:
    return f"'{text}" if text[:1] in "=+-@\t\r" and text else text


LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "_": r"\_", "%": r"\%",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", "×": r"$\times$", "−": r"$-$", "±": r"$\pm$", "\n": " ", "\r": " ",
}  # fmt: skip


def escaped(text: str) -> str:
    """Text that LaTeX sets as it reads here."""
    return "".join(LATEX.get(letter, letter) for letter in text)


def to_latex(found: pd.DataFrame, path: str | Path, digits: int = 1, bold: bool = False) -> Path:
    """A tabular with booktabs' rules; needs no other package. bold: the best mean of each column, as it is printed."""
    cells, benchmarks = _cells(found, digits), list(dict.fromkeys(on for on, *_ in found))
    figures = {on: [figure for one, figure in cells if one == on] for on in benchmarks}
    best = {column: _best(column[1], texts) if bold else "" for column, texts in cells.items()}
    spans, rules, first = [], [], 2
    for on in benchmarks:
        width = len(figures[on])
        spans.append(rf"\multicolumn{{{width}}}{{c}}{{{escaped(on)}}}")
        rules.append(rf"\cmidrule(lr){{{first}-{first + width - 1}}}")
        first += width
    heads = [IN_LATEX.get(figure, escaped(figure.capitalize())) for on in benchmarks for figure in figures[on]]
    lines = [
        rf"\begin{{tabular}}{{l{'r' * len(heads)}}}",
        r"\toprule",
        " & ".join(["", *spans]) + r" \\",
        "".join(rules),
    ]
    lines += [" & ".join(["Method", *heads]) + r" \\", r"\midrule"]
    for i, method in enumerate(found.index):
        row = [_set(texts[i], best[column]) for column, texts in cells.items()]
        lines.append(" & ".join([escaped(method), *row]) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}"]
    return artifacts.atomic_write(path, "\n".join(lines) + "\n")


def _best(figure: str, texts: Sequence[str]) -> str:
    """The best mean of a column as it is printed; "" of the numbers of runs."""
    means = [text.split(" ")[0] for text in texts if text]
    if figure == "runs" or not means:
        return ""
    return (min if any(word in figure for word in LOWER) else max)(means, key=float)


def _set(text: str, best: str) -> str:
    mean, sign, std = text.partition(" ± ")
    number = rf"\textbf{{{mean}}}" if best and mean == best else mean
    return number + (rf" $\pm$ {std}" if sign else "")


# ---------------------------------------------------------------- trackers


def to_tensorboard(table: pd.DataFrame, folder: str | Path) -> int:
    """A run of TensorBoard for each row: the accuracy after each task, by step. Returns how many were written anew."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise _missing("TensorBoard", error) from error
    written = 0
    for line in table.to_dict("records"):
        place = Path(folder) / _label(line)
        if place.exists():  # named by content
            continue
        with _whole_folder(place) as part, SummaryWriter(str(part)) as writer:
            for step, accuracy in enumerate(line[CURVE], 1):
                writer.add_scalar(CURVE, float(accuracy), step)
        written += 1
    return written


def to_wandb(table: pd.DataFrame, project: str) -> int:
    """A run of Weights & Biases for each row, named by its content, so that a second time goes on with the same.

    The key comes from the environment (WANDB_API_KEY) or from `wandb login`; WANDB_MODE=offline writes to disk alone.
    """
    try:
        import wandb
    except ImportError as error:
        raise _missing("wandb", error) from error
    right = _right_of(table)
    for line in table.to_dict("records"):
        known = {name: value for name, value in line.items() if name != CURVE and _is(value)}
        told = {
            name: known.pop(name)
            for name in ("cell", "notebook", "learner", "head", "benchmark", *right)
            if name in known
        }
        label = _label(line)
        with wandb.init(project=project, id=label, name=label, config=told, resume="allow") as run:
            for step, accuracy in enumerate(line[CURVE], 1):
                run.log({CURVE: float(accuracy)}, step=step)
            run.summary.update(known)
    return len(table)


def _label(line: dict) -> str:
    """ "slca-3f2a91c0b7de-aligned": a name for folders and addresses, equal for equal runs."""
    return re.sub(r"[^\w.-]", "_", f"{line['learner']}-{line['digest'][:12]}-{line['head']}", flags=re.ASCII)


@contextmanager
def _whole_folder(place: Path):
    """A folder that appears under its name when all is in it."""
    part = place.with_name(f".{place.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    yield part
    os.replace(part, place)


def _missing(what: str, error: ImportError) -> UserError:
    return UserError(f"{what} is not installed ({error}): pip install -c requirements.lock -e '.[track]'")
