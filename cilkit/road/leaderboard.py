"""The leaderboard from the table of results: arms of one benchmark side by side, what others report, what it costs.

A board holds one benchmark, protocol and stream; a line of it the runs of one learner, head, backbone and, where a
sweep has axes that tell more arms apart, their values. Runs of a line differ in seeds and class orders alone.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from cilkit import outcomes, published
from cilkit.workbook.leaderboard import Board, Leaderboard, Line, Measured, Picture, Quote, RunRow

if TYPE_CHECKING:
    import pandas as pd

GROUP = ["benchmark", "protocol", "stream", "increments"]
ARM = ["learner", "head", "backbone"]
FIGURES = ["last accuracy", "average incremental accuracy", "forgetting (max before last)"]
QUOTED = {"last": "last accuracy", "average": "average incremental accuracy", "task_mean": "last accuracy (task mean)"}
BASELINES = ("nearest_mean", "finetune")
DRAWN = 16  # arms in one picture, so that its legend can be read
SEED_WORDS = {"order_seed": "order", "seed_init": "initialisation", "seed_data": "data"}


def leaderboard(
    table: pd.DataFrame,
    labels: Mapping[str, Mapping[str, str]] | None = None,
    baselines: Iterable[str] = (),
    quoted: pd.DataFrame | None = None,
) -> Leaderboard:
    """Boards in the order of their benchmarks' names.

    table:     the columns of `outcomes.row`, `cell` (the job that a run belongs to) and, where not all rows are of
               their run's default head, `default head`: numbers of others stand beside that one alone.
    labels:    job -> axis -> value, of its sweep.
    baselines: learners that sweeps state; the first that a board has is the one it is compared to.
    quoted:    `published.table()`; None reads params/published.yaml.
    """
    if table.empty:
        return Leaderboard([], published.HEADING)
    table = _completed(table)
    labels = labels or {}
    table["labels"] = _telling_labels(table, labels)
    quoted = published.table() if quoted is None else quoted
    wanted = (*baselines, *BASELINES)
    boards = [
        _board(names, rows.copy(), table, labels, wanted, quoted) for names, rows in table.groupby(GROUP, sort=True)
    ]
    return Leaderboard(boards, published.HEADING)


def _completed(table: pd.DataFrame) -> pd.DataFrame:
    """A copy with every column that is read, texts without gaps, and what a run took in all."""
    table = table.reset_index(drop=True)
    table["source"] = table.get("artifact", table.get("source", ""))
    table["default head"] = table.get("default head", True)
    for name in (*GROUP, *ARM, "cell", "source"):
        table[name] = table[name].fillna("").astype(str) if name in table else ""
    for name in (*FIGURES, *QUOTED.values(), "bytes stored", "classes", *outcomes.SEEDS):
        table[name] = table.get(name, math.nan)
    spent = [name for name in table if name.startswith("seconds: ")]
    table["seconds"] = table[spent].sum(axis=1, min_count=1) if spent else math.nan
    return table


def _telling_labels(table: pd.DataFrame, labels: Mapping[str, Mapping[str, str]]) -> pd.Series:
    """What tells two runs apart that are of the same arm and seeds: the axes that differ, else the run's own name."""
    import pandas as pd

    axes = {axis: None for cell in table["cell"].unique() for axis in labels.get(cell, {})}
    of_axis = {axis: table["cell"].map(lambda cell, axis=axis: labels.get(cell, {}).get(axis, "")) for axis in axes}
    same = [*GROUP, *ARM, *outcomes.SEEDS]
    keys = table[same].astype(object).fillna("").astype(str)  # a seed that was not noted is a value too
    telling = [
        axis for axis, values in of_axis.items() if (values.groupby([keys[name] for name in same]).nunique() > 1).any()
    ]
    words = [", ".join(f"{axis} {of_axis[axis][row]}" for axis in telling if of_axis[axis][row]) for row in table.index]
    keys["labels"] = words
    for row in table.index[keys.duplicated(keep=False)]:
        own = Path(table["source"][row]).name[:12]
        words[row] = f"{words[row]}, run {own}".removeprefix(", ")
    return pd.Series(words, index=table.index, dtype=object)


def _board(
    names: tuple, rows: pd.DataFrame, table: pd.DataFrame, labels: Mapping, wanted: tuple, quoted: pd.DataFrame
) -> Board:
    board = Board(*names, figures=FIGURES)
    rows["arm"] = rows[[*ARM, "labels"]].agg(" / ".join, axis=1)
    rows = rows[~rows.duplicated(["arm", *outcomes.SEEDS])]  # the same run, reached by two jobs
    board.baseline = next((learner for learner in wanted if learner in set(rows["learner"])), "")
    differences = _differences(rows, board.baseline)
    for arm, runs in rows.groupby("arm", sort=False):
        line = _line(runs)
        line.difference = differences.get(arm, Measured(math.nan, math.nan, 0))
        line.default = bool(runs["default head"].iloc[0])
        line.quotes = _quotes(runs, line, quoted)
        board.lines.append(line)
    _name_by_axes(board, labels)
    board.lines.sort(key=lambda line: (math.isnan(line.figures[0].mean), -line.figures[0].mean))
    classes = rows["classes"].dropna()
    if len(classes) and board.protocol in ("class", "domain"):
        board.chance = 100 / float(classes.iloc[0])
    board.joint = _joint(board, table)
    board.pictures = _pictures(board)
    return board


def _name_by_axes(board: Board, labels: Mapping[str, Mapping[str, str]]) -> None:
    """Say of each line what its sweep called it: values that all its runs share and other lines do not have.

    A backbone's tag tells two trainings apart, "case foreseen" says which is which.
    """
    shared = []
    for line in board.lines:
        of_runs = [set(labels.get(run.cell, {}).items()) for run in line.runs]
        shared.append(set.intersection(*of_runs))
    for line, own in zip(board.lines, shared, strict=True):
        known = {line.learner, line.backbone, board.benchmark}
        words = [
            f"{axis} {value}"
            for axis, value in sorted(own)
            if axis not in outcomes.SEEDS and value not in known and any((axis, value) not in other for other in shared)
        ]
        line.labels = ", ".join([*(word for word in words if word not in line.labels), *filter(None, [line.labels])])


def _line(runs: pd.DataFrame) -> Line:
    first = runs.iloc[0]
    figures = [Measured(runs[name].mean(), runs[name].std(), int(runs[name].count())) for name in FIGURES]
    shown = [
        RunRow(
            run["cell"],
            ", ".join(f"{word} {run[name]:g}" for name, word in SEED_WORDS.items() if run[name] == run[name]),
            [float(run[name]) for name in FIGURES],
            float(run["seconds"]),
            float(run["bytes stored"]),
        )
        for _, run in runs.sort_values(list(outcomes.SEEDS)).iterrows()
    ]
    costs = float(runs["seconds"].mean()), float(runs["bytes stored"].mean())
    return Line(first["learner"], first["head"], first["backbone"], first["labels"], figures, *costs, shown)


def _differences(rows: pd.DataFrame, baseline: str) -> dict[str, Measured | None]:
    """Arm -> paired difference of the last accuracy to the baseline's first arm on the same backbone."""
    found: dict[str, Measured | None] = {}
    for _, same in rows.groupby("backbone", sort=False):
        arms = same.loc[same["learner"] == baseline, "arm"]
        if arms.empty or same[FIGURES[0]].isna().all():
            continue
        compared = outcomes.compare(same, FIGURES[0], by="arm", baseline=arms.iloc[0])
        for line in compared.to_dict("records"):
            found[line["arm"]] = Measured(line["difference"], line["difference_half_width"], line["pairs"])
        found[arms.iloc[0]] = None
    return found


def _quotes(runs: pd.DataFrame, line: Line, quoted: pd.DataFrame) -> list[Quote]:
    """Numbers of others for this learner on this benchmark; they are of its default head, so no other shows them."""
    if quoted.empty or not line.default:
        return []
    learner = "joint" if runs["stream"].iloc[0].startswith("joint") else line.learner
    fitting = quoted[(quoted["learner"] == learner) & (quoted["benchmark"] == runs["benchmark"].iloc[0])]
    fitting = fitting[fitting["figure"].isin(QUOTED)]
    found = []
    for row, text in zip(fitting.to_dict("records"), published.shown(fitting) if len(fitting) else (), strict=True):
        figure = QUOTED[row["figure"]]
        ours = runs[figure].dropna()
        measured = Measured(float(ours.mean()), float(ours.std()), len(ours))
        difference = Measured(measured.mean - row["value"], math.nan, len(ours))
        found.append(Quote(figure, measured, text, difference, row["row"], row["setting"], row["note"]))
    return found


def _joint(board: Board, table: pd.DataFrame) -> float:
    """The best mean of joint training on the board's benchmark and protocol; NaN where there is none."""
    if board.stream.startswith("joint"):
        return math.nan
    validation = ", validation" * board.stream.endswith(", validation")
    rows = table[(table["benchmark"] == board.benchmark) & (table["protocol"] == board.protocol)]
    rows = rows[rows["stream"] == f"joint{validation}"]
    return float(rows.groupby([*ARM, "labels"])[FIGURES[0]].mean().max()) if len(rows) else math.nan


def _pictures(board: Board) -> list[Picture]:
    """Accuracy against seconds and against bytes, of default heads whose cost was noted."""
    from cilkit import fronts, plotstyle

    kinds = {
        "time": ("seconds", "seconds of all phases of a run", fronts.words_of_seconds),
        "bytes": ("stored", "bytes stored from task to task", fronts.words_of_bytes),
    }
    name = hashlib.sha256(board.title.encode()).hexdigest()[:8]
    found = []
    for kind, (cost, words, ticks) in kinds.items():
        rows = [
            {"arm": _name(line, board), "cost": getattr(line, cost), "value": line.figures[0].mean}
            | {"spread": line.figures[0].spread}
            for line in board.lines
            if line.default and not math.isnan(getattr(line, cost)) and not math.isnan(line.figures[0].mean)
        ]
        if len(rows) < 2:
            continue
        front = fronts.on_front([row["cost"] for row in rows], [row["value"] for row in rows])
        part = f"; the {DRAWN} best of {len(rows)} arms and the front" * (len(rows) > DRAWN)
        rows = [row for place, row in enumerate(rows) if place < DRAWN or front[place]]
        drawn_by = "".join(Path(made.__file__).read_text() for made in (fronts, plotstyle, plotstyle.arms))
        text = f"{words} {board.title} {rows} {board.chance} {board.joint} {plotstyle.context()} {drawn_by}"
        key = hashlib.sha256(text.encode()).hexdigest()
        caption = (
            f"{board.title}: last accuracy of default heads against {words}; ± the standard deviation over runs{part}."
        )
        found.append(Picture(f"front-{name}-{kind}", key, caption, _drawing(board, rows, words, ticks)))
    return found


def _name(line: Line, board: Board) -> str:
    """The line's name without what all lines of the board share."""
    parts = [part for part in ("head", "backbone", "labels") if len({getattr(one, part) for one in board.lines}) > 1]
    return " · ".join(filter(None, [line.learner, *(getattr(line, part) for part in parts)]))


def _drawing(board: Board, rows: list[dict], words: str, ticks: Callable[[float], str]) -> Callable[[], bytes]:
    def draw() -> bytes:
        import pandas as pd

        from cilkit import fronts, plotstyle

        marks = {
            name: None if math.isnan(getattr(board, name)) else getattr(board, name) for name in ("chance", "joint")
        }
        return plotstyle.rendered(fronts.accuracy_against(pd.DataFrame(rows), words, ticks, title=board.title, **marks))

    return draw


def of_home(home: Path) -> Leaderboard | None:
    """The leaderboard of everything that a repository's reports hold; None where nothing has come out yet."""
    from cilkit.road import gathering
    from cilkit.workbook.site import read_sweeps

    table = gathering.results(home)
    if table.empty:
        return None
    sweeps = read_sweeps(home / "reports")
    labels = {job["name"]: job["labels"] for sweep in sweeps for job in sweep["jobs"] if job["labels"]}
    stated = [sweep["decide"]["baseline"] for sweep in sweeps if sweep["decide"].get("baseline")]
    return leaderboard(table, labels, stated)
