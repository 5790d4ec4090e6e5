"""The explorer: accuracy of each class after each task, and behind every number its images and the answers to them.

Everything comes from saved outputs; no model is needed. Where the benchmark is no longer there, the answers stand
without their images.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from cilkit.errors import UserError
from cilkit.plotstyle import styled, wrapped
from cilkit.widgets.base import View, script, sheet
from cilkit.widgets.telling import Teller

if TYPE_CHECKING:
    import pandas as pd

    from cilkit.data import Benchmark
    from cilkit.runs import Run

PAGE = 60  # images at a time
SIDE = 96  # pixels of a thumbnail's longer side
STILL_CLASSES, STILL_IMAGES = 24, 8  # what the picture shows
STILL_DPI = 90
COLUMNS = (  # of the table of results, where it has them
    *("learner", "benchmark", "protocol", "order_seed", "backbone"),
    *("last accuracy", "average incremental accuracy", "forgetting (max before last)"),
)


class Explorer(View):
    """A widget over runs.

    runs:         label -> `Run`; the first two are shown.
    benchmark_of: from a run to its benchmark; a UserError means that there is none, and is said.
    table:        rows to pick more runs from, as `cilkit.results()` gives them; `pick` opens one.
    """

    _esm = script("explorer")
    _css = sheet("explorer")

    def __init__(
        self,
        runs: Mapping[str, Run],
        benchmark_of: Callable[[Run], Benchmark],
        table: pd.DataFrame | None = None,
        pick: Callable[[dict], Run] | None = None,
    ) -> None:
        super().__init__()
        if not runs:
            raise UserError("there is no run to look at; give a dict from labels to runs")
        self._tellers = {str(label): Teller(run) for label, run in runs.items()}
        self._benchmark_of, self._pick = benchmark_of, pick
        self._rows = [] if table is None else _rows_of(table)
        self._tests: dict[tuple, Any] = {}  # which images -> the image set, or why there is none

    # ------------------------------------------------------------ what the view asks

    def answer_start(self) -> dict:
        """The runs that are here and the rows that may be picked."""
        columns = [name for name in COLUMNS if any(row.get(name) is not None for row in self._rows)]
        table = [[row["place"], *(row.get(name) for name in columns)] for row in self._rows]
        return {"runs": [self._about(label) for label in self._tellers], "columns": columns, "rows": table}

    def answer_pick(self, place: int) -> dict:
        """A run of the table is opened and added."""
        row = self._rows[int(place)]
        run = self._pick(row)
        label = _free_label(f"{run.learner}, order {row.get('order_seed', '?')}", row["artifact"], self._tellers)
        if label not in self._tellers:
            self._tellers[label] = Teller(run)
        return {"run": self._about(label)}

    def answer_map(self, label: str, head: str) -> dict:
        """Accuracy of each class after each task, in percent; null before it was learnt."""
        teller = self._teller(label, head)
        rows = [[None if np.isnan(v) else round(float(v), 1) for v in row] for row in teller.accuracy(head)]
        return {"classes": teller.run.class_names, "tasks": teller.run.task_names, "accuracy": rows}

    def answer_images(self, shown: list, name: str, stage: int, wrong: bool, page: int) -> tuple[dict, list[bytes]]:
        """A page of a class's test images with the answers of the runs shown after a task (from 0).

        shown: [label, head] of one run or two. wrong: only images that one of them got wrong.
        """
        told, notes, confused = [], [], []
        first = self._teller(*shown[0])
        for label, head in shown:
            teller = self._teller(label, head)
            t = min(int(stage), teller.run.n_tasks - 1)
            if name not in teller.run.class_names:
                notes.append(f"{label} does not know the class {name}.")
            elif teller.images != first.images:
                notes.append(f"{label} was tested on other images than {shown[0][0]}; its answers are left out.")
            else:
                if t < int(stage):
                    notes.append(f"{label} has {t + 1} tasks; its answers are those after the last one.")
                told.append((teller, teller.of_class(head, t, name)))
                confused.append([list(pair) for pair in teller.confusions(head, t, name)])
                continue
            told.append(None)
            confused.append([])
        ids = self._ids(told, wrong)
        here = ids[int(page) * PAGE : (int(page) + 1) * PAGE]
        cards = [{"image": int(i), "answers": [self._said(pair, i) for pair in told]} for i in here]
        tested = len(self._ids(told, False))
        pictures, why = self._pictures(first, here)
        notes += [why] if why else []
        notes += [] if tested else [f"{name} was not tested after this task: it is learnt later."]
        answer = {"cards": cards, "confusions": confused, "notes": notes, "count": len(ids), "tested": tested}
        return answer | {"pages": -(-len(ids) // PAGE), "page": int(page)}, pictures

    def answer_story(self, shown: list, image: int) -> tuple[dict, list[bytes]]:
        """What the runs shown answered to one image after each task."""
        tellers = [(self._teller(label, head), head) for label, head in shown]
        first = tellers[0][0]
        lines = [teller.story(head, int(image)) if teller.images == first.images else [] for teller, head in tellers]
        pictures, _ = self._pictures(first, np.array([int(image)]))
        return {"stories": lines, "true": self._true_name(first, shown[0][1], int(image))}, pictures

    # ------------------------------------------------------------ the same, for a page without a kernel

    @styled
    def still(self) -> bytes:
        """Class accuracy of the first run (and the second), and the most forgotten class with its images."""
        from matplotlib.figure import Figure

        shown = list(self._tellers.items())[:2]
        classes = max(min(len(teller.run.class_names), STILL_CLASSES) for _, teller in shown)
        height = 1.4 + 0.24 * classes
        under = 1.7 + 0.25 * len(shown)
        figure = Figure(figsize=(8.6, height + under), layout="constrained")
        maps, below = figure.subfigures(2, 1, height_ratios=[height, under])
        for axes, (name, one) in zip(np.atleast_1d(maps.subplots(1, len(shown))), shown, strict=True):
            _draw_map(axes, one, name)
        self._draw_example(below, shown)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=STILL_DPI, metadata={"Software": None})
        return buffer.getvalue()

    def words(self) -> str:
        label, teller = next(iter(self._tellers.items()))
        head, run = teller.run.default_head, teller.run
        forgotten = teller.most_forgotten(head)
        course = [f"{v:.0f}" for v in teller.accuracy(head)[forgotten] if not np.isnan(v)]
        return (
            f"Explorer of {', '.join(self._tellers)}: accuracy of each of {len(run.class_names)} classes after each of "
            f"{run.n_tasks} tasks. In {label}, {run.class_names[forgotten]!r} lost most: {', '.join(course)} % correct."
        )

    def _draw_example(self, figure, shown: list[tuple[str, Teller]]) -> None:
        teller = shown[0][1]
        head, run = teller.run.default_head, teller.run
        name = run.class_names[teller.most_forgotten(head)]
        told = [
            (one, one.of_class(one.run.default_head, -1, name))
            if name in one.run.class_names and one.images == teller.images
            else None
            for _, one in shown
        ]
        wrong_first = np.argsort(told[0][1].right, kind="stable")
        ids = told[0][1].ids[wrong_first][:STILL_IMAGES]
        pixels, why = self._pixels(teller, ids)
        title = f"{name}, after the last task: {why or 'images and answers, wrong ones first'}"
        figure.suptitle(wrapped(title, 120), fontsize=10, x=0.01, ha="left")
        axes = figure.subplots(1, STILL_IMAGES)
        for place, one in enumerate(axes):
            one.set_axis_off()
            if place >= len(ids):
                continue
            one.imshow(pixels[place] if pixels else np.full((8, 8, 3), 235, np.uint8), interpolation="nearest")
            lines = [_short(label, self._said(pair, ids[place])) for (label, _), pair in zip(shown, told, strict=True)]
            one.set_title("\n".join(lines), fontsize=7, loc="center", pad=3)

    # ------------------------------------------------------------ parts

    def _teller(self, label: str, head: str) -> Teller:
        if label not in self._tellers:
            raise UserError(f"there is no run {label!r} here; take one of {', '.join(self._tellers)}")
        self._tellers[label].run.check_head(head)
        return self._tellers[label]

    def _about(self, label: str) -> dict:
        run = self._tellers[label].run
        facts = {"label": label, "learner": run.learner, "heads": run.heads, "head": run.default_head}
        return facts | {"tasks": run.n_tasks}

    def _ids(self, told: list, wrong: bool) -> np.ndarray:
        """The images, in the order of the test set; with `wrong`, those that one of the runs got wrong."""
        found = [one.ids[~one.right] if wrong else one.ids for _, one in filter(None, told)]
        return np.unique(np.concatenate(found)) if found else np.zeros(0, np.int64)

    def _said(self, pair: tuple | None, image: int) -> dict | None:
        if pair is None:
            return None
        teller, told = pair
        rows = np.flatnonzero(told.ids == image)
        return teller.answer(told, int(rows[0])) if len(rows) else None

    def _true_name(self, teller: Teller, head: str, image: int) -> str:
        told = teller.told(head, -1)
        rows = np.flatnonzero(told.ids == image)
        return teller.run.class_names[int(told.labels[rows[0]])] if len(rows) else ""

    def _test_set(self, teller: Teller) -> Any:
        """The image set that a run was tested on, or why there is none."""
        if teller.images not in self._tests:
            try:
                benchmark = self._benchmark_of(teller.run)
                self._tests[teller.images] = benchmark.test if teller.images[1] else benchmark.train
            except UserError as error:
                self._tests[teller.images] = str(error)
        return self._tests[teller.images]

    def _pixels(self, teller: Teller, ids: np.ndarray) -> tuple[list[np.ndarray], str]:
        test = self._test_set(teller)
        if isinstance(test, str):
            return [], f"no images, since {test}"
        return list(test.at(ids, np.zeros(len(ids), np.int64)).read()) if len(ids) else [], ""

    def _pictures(self, teller: Teller, ids: np.ndarray) -> tuple[list[bytes], str]:
        pixels, why = self._pixels(teller, ids)
        return [thumbnail(one) for one in pixels], why


def thumbnail(pixels: np.ndarray, side: int = SIDE) -> bytes:
    """A small WebP of uint8 (h, w, 3), its longer side at most `side`; small images stay exactly as they are."""
    from PIL import Image

    picture, buffer = Image.fromarray(pixels), io.BytesIO()
    if max(picture.size) <= side // 2:
        picture.save(buffer, "WEBP", lossless=True, method=3)
    else:
        picture.thumbnail((side, side), Image.Resampling.BICUBIC)
        picture.save(buffer, "WEBP", quality=80, method=3)
    return buffer.getvalue()


def _draw_map(axes, teller: Teller, label: str) -> None:
    head = teller.run.default_head
    accuracy = teller.accuracy(head)[:STILL_CLASSES]
    axes.imshow(accuracy, cmap="Blues", vmin=0, vmax=150, aspect="auto")  # the darkest blue stays readable under ink
    for (row, column), value in np.ndenumerate(accuracy):
        if not np.isnan(value):
            axes.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=7)
    names = teller.run.class_names
    axes.set_yticks(range(len(accuracy)), [str(name)[:24] for name in names[: len(accuracy)]], fontsize=8)
    axes.set_xticks(range(accuracy.shape[1]), range(1, accuracy.shape[1] + 1))
    axes.set_xlabel("after learning task")
    left_out = len(names) - len(accuracy)
    axes.set_ylabel(f"class ({left_out} more are not drawn)" if left_out else "class")
    axes.set_title(f"{wrapped(label, 44)}, head {head}: accuracy in %")
    axes.grid(False)


def _short(label: str, answer: dict | None) -> str:
    if answer is None:
        return f"{label[:16]}: –"
    name, share = answer["top"][0]
    return f"{label[:16]}, {'right' if answer['right'] else 'wrong'}:\n{str(name)[:14]} {100 * share:.0f} %"


def _rows_of(table: pd.DataFrame) -> list[dict]:
    """A row a run of the table: its default head's."""
    if "default head" in table:
        table = table[table["default head"].astype(bool)]
    wanted = [name for name in ("artifact", "digest", *COLUMNS) if name in table]
    rows = table[wanted].astype(object).where(table[wanted].notna(), None).to_dict("records")
    return [{name: _plain(value) for name, value in row.items()} | {"place": i} for i, row in enumerate(rows)]


def _plain(value: Any) -> Any:
    value = value.item() if hasattr(value, "item") else value
    return round(value, 2) if isinstance(value, float) else value


def _free_label(wanted: str, artifact: str, taken: Mapping[str, Teller]) -> str:
    """The label of a run that was picked: with the beginning of its name, so that no two runs share one."""
    same = [label for label, teller in taken.items() if getattr(teller.run.artifact, "name", "") == artifact]
    return same[0] if same else f"{wanted} ({artifact.partition('/')[2][:6]})"
