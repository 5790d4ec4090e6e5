"""Runs of other toolboxes, from the files that they leave, scored by the same metrics as ours.

What each writes was read in its own code: PILOT and PyCIL `trainer.py` (log; groups in `utils/toolkit.py`), Mammoth
`utils/loggers.py` (logs.pyd), RanPAC `trainer.py` and `main_tables.py` (log, results, predictions, paper tables).
Accuracies are in percent. PILOT, PyCIL and RanPAC round theirs to two decimals.
"""

import ast
import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from cilkit import metrics
from cilkit.errors import UserError

LINE = re.compile(r"\[trainer\.py\] => (.*)")
SETTING = re.compile(r"(\w+): (.*)")
ROW = re.compile(r"(CNN|NME|Group Accuracies)(?: after this task)?: (\{.*\})")
CURVE = re.compile(r"(?:(CNN|NME) )?(top1|top5|Top1|Ave Acc) curve: (\[.*\])")
CURVES = {"top1": "accuracy", "Top1": "accuracy", "Ave Acc": "accuracy (task mean)", "top5": "top-5 accuracy"}
NUMPY_2 = re.compile(r"np\.float\d+\(([^)]*)\)")  # how numpy 2 writes its numbers


@dataclass(frozen=True)
class Foreign:
    """One run of another toolbox; what its files do not tell is None."""

    toolbox: str
    source: str  # the file
    settings: dict[str, str]  # as the toolbox names and writes them
    head: str = ""
    matrix: np.ndarray | None = field(default=None, repr=False)  # (tasks, tasks) in percent, NaN above the diagonal
    counts: np.ndarray | None = field(default=None, repr=False)  # test images a task
    class_accuracy: np.ndarray | None = field(default=None, repr=False)  # (tasks, classes) in percent
    predictions: list[tuple[np.ndarray, np.ndarray]] | None = field(default=None, repr=False)  # (predicted, true)
    written: dict[str, float] = field(default_factory=dict)  # figures that the file states itself, under our names

    def row(self) -> dict:
        """As `outcomes.row`: its figures from the matrix, and as the file states them where the matrix cannot say."""
        said, seed = self.settings.get, self.settings.get("seed", "")
        line = {"learner": f"{said('model_name') or said('model', '')} ({self.toolbox})", "head": self.head}
        line |= {"benchmark": said("dataset", ""), "order_seed": int(seed) if seed.isdigit() else None}
        line["backbone"] = said("backbone_type") or said("convnet_type") or said("backbone", "")
        known = {} if self.matrix is None else metrics.figures(self.matrix, self.counts)
        return line | self.written | known | {"source": self.source}


def read_pilot(path: str | Path) -> list[Foreign]:
    """A log of PILOT or PyCIL: a Foreign for each run in it (a second seed's run lands in the first one's file) and
    each of its heads, CNN and NME."""
    return _read_log(Path(path), "PILOT")


def read_mammoth(path: str | Path) -> list[Foreign]:
    """`results/<setting>/<dataset>/<model>/logs.pyd`: a Foreign a line, its head the setting (class-il, task-il …)."""
    path, found = Path(path), []
    for line in NUMPY_2.sub(r"\1", _text(path)).splitlines():
        means = [float(value) for value in re.findall(r"'accmean_task\d+': ([-+.\w]+)", line)]
        cells = re.findall(r"'accuracy_(\d+)_task(\d+)': ([-+.\w]+)", line)
        whole = len(cells) == len(means) * (len(means) + 1) // 2  # not domain-il, not joint training
        matrix = np.full((len(means), len(means)), np.nan)
        for i, t, value in cells if whole else ():
            matrix[int(t) - 1, int(i) - 1] = float(value)
        settings = dict(re.findall(r"'(model|dataset|seed|backbone)': '?([^',}]*)", line))
        if means:
            stated = _stated({"accuracy (task mean)": means})
            setting = next((part for part in path.absolute().parts[::-1] if part.endswith("-il")), "")
            matrix = matrix if whole else None
            found.append(Foreign("Mammoth", str(path), settings, setting, matrix, written=stated))
    return found or _nothing(path, "Mammoth", "a line a run with 'accmean_task1' and so on")


def read_ranpac(path: str | Path) -> list[Foreign]:
    """A log of RanPAC, `results/*.csv` (curves), `results/class_preds/*.csv` (predictions) or `paper_tables/*.csv`."""
    import pandas as pd

    path = Path(path)
    if path.suffix != ".csv":
        return _read_log(path, "RanPAC")
    try:
        table = pd.read_csv(path, index_col=0)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as a table of RanPAC ({error}).") from error
    settings = {"model_name": "RanPAC", "dataset": re.split(r"_class_preds|_publish", path.stem)[0]}
    if "pred_task_0" in table:
        return [_from_predictions(table, str(path), settings)]
    if "ave_acc" in table:
        stated = _stated({"accuracy": table["top1_total"], "accuracy (task mean)": table["ave_acc"]})
        return [Foreign("RanPAC", str(path), settings, written=stated)]
    if "runtime" not in table.index:
        _nothing(path, "RanPAC", "columns pred_task_0 …, or top1_total and ave_acc, or a paper table with a runtime")
    dataset, last = table.columns[0], table.iloc[:, 0].drop("runtime")  # seconds, of all methods together
    named = [({"model_name": method, "dataset": dataset}, float(value)) for method, value in last.items()]
    return [Foreign("RanPAC", str(path), s, written={"last accuracy (task mean)": value}) for s, value in named]


# ---------------------------------------------------------------- logs


def _read_log(path: Path, toolbox: str) -> list[Foreign]:
    runs, found = [({}, {}, {})], []  # settings; head -> its rows; head -> its newest curves
    for line in LINE.findall(NUMPY_2.sub(r"\1", _text(path))):
        settings, rows, curves = runs[-1]
        try:
            if row := ROW.match(line):
                rows.setdefault(row[1].replace("Group Accuracies", ""), []).append(ast.literal_eval(row[2]))
            elif curve := CURVE.match(line):
                curves.setdefault(curve[1] or "", {})[CURVES[curve[2]]] = ast.literal_eval(curve[3])
        except (ValueError, SyntaxError) as error:
            raise UserError(f"{path}: {line!r} cannot be read ({error}); take the line out or repair it.") from error
        if not row and (setting := SETTING.fullmatch(line)):
            if rows:  # the next seed's run in the same file
                runs.append(({}, {}, {}))
            runs[-1][0][setting[1]] = setting[2]
    for settings, rows, curves in runs:
        for head, of_head in rows.items():
            stated = _stated(curves.get(head, {}))
            found.append(Foreign(toolbox, str(path), settings, head, _matrix(of_head, settings), written=stated))
    return found or _nothing(path, toolbox, "lines with '[trainer.py] =>' and accuracies by group")


def _matrix(rows: list[dict], settings: dict[str, str]) -> np.ndarray | None:
    """(tasks, tasks) from groups such as '00-09'; None where they do not follow the tasks.

    Groups of one task (PyCIL cuts a large first task into several) are averaged by their classes, which is exact where
    every class has equally many test images. A group is missing with increment 1 (a bug of PILOT's `accuracy`) and
    stays the same in domain-incremental runs; an excerpt may begin in the middle: then there is no matrix.
    """
    groups = [{tuple(map(int, name.split("-"))): value for name, value in row.items() if "-" in name} for row in rows]
    seen = np.array([max((high for _, high in row), default=-1) + 1 for row in groups])
    first = int(settings.get("init_cls") or (seen[0] if len(groups[0]) == 1 else -1))  # unknown: groups are tasks
    if (np.diff(seen, prepend=0) <= 0).any() or first != seen[0]:
        return None
    sums, sizes = np.zeros((2, len(rows), len(rows)))
    for t, row in enumerate(groups):
        for (low, high), value in row.items():
            task = np.searchsorted(seen, low, side="right")
            sums[t, task] += (high - low + 1) * value
            sizes[t, task] += high - low + 1
    return np.divide(sums, sizes, out=np.full(sums.shape, np.nan), where=sizes > 0)


# ---------------------------------------------------------------- helpers


def _from_predictions(table, source: str, settings: dict[str, str]) -> Foreign:
    """RanPAC's predictions: after task t the columns pred_task_t and true_task_t, filled up with -1."""
    stages = range(sum(name.startswith("pred_task_") for name in table))
    both = [table[[f"pred_task_{t}", f"true_task_{t}"]].to_numpy(np.int64).T for t in stages]
    both = [(predicted[true >= 0], true[true >= 0]) for predicted, true in both]
    seen, matrix, counts = np.array([true.max() + 1 for _, true in both]), None, None
    if (np.diff(seen, prepend=0) > 0).all():  # else domain-incremental: all classes from the first task on
        tasks = [np.searchsorted(seen, true, side="right") for _, true in both]
        matrix = np.array([metrics.accuracy_by_task(*both[t], tasks[t], len(seen)) for t in stages])
        counts = np.bincount(tasks[-1])
    by_class = np.array([metrics.class_accuracy(*pair, seen[-1]) for pair in both])
    stated = _stated({"accuracy": [100 * np.mean(predicted == true) for predicted, true in both]})
    return Foreign("RanPAC", source, settings, "", matrix, counts, by_class, both, stated)


def _stated(curves: dict) -> dict[str, float]:
    """Last and average incremental accuracy of curves over the stages; of the top-5 curve the last value."""
    found = {}
    for name, values in curves.items():
        last, mean = float(list(values)[-1]), float(np.mean(values))
        top = name == "top-5 accuracy"
        found |= {name: last} if top else {f"last {name}": last, f"average incremental {name}": mean}
    return found


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error}).") from error


def _nothing(path: Path, toolbox: str, expected: str):
    raise UserError(f"{path} holds no run of {toolbox}: expected {expected}.")
