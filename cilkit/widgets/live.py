"""A run while it is made: how far it is, the losses and the accuracy matrix so far, in one output that is replaced.

Plain HTML and SVG, written as text: no figure library is needed, and a browser that opens the saved notebook shows the
last state. Texts take the colour of the page, light or dark.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from html import escape
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from cilkit.plotstyle import COLOURS
from cilkit.progress import FONT, Progress, bar_of, describe, duration, left

if TYPE_CHECKING:
    from cilkit.data import Stream
    from cilkit.learners import Learner

POINTS = 150  # of a loss curve at most: further epochs are averaged
TERMS = len(COLOURS)  # curves at most
TASKS = 12  # rows and columns of the matrix at most: of more tasks, some are shown
WIDE, HIGH = 380, 160  # pixels of the loss curves, and of their axes:
LEFT, RIGHT, TOP, BOTTOM = 46, WIDE - 6, 6, HIGH - 20
PAD = "padding:1px 6px;white-space:nowrap"
MARKS = 40  # lines where tasks begin, at most
DASHES = ("", "7 3", "2 3", "9 3 2 3", "4 4", "1 4")


class Left:
    """Seconds that a stream still takes, by what its epochs and the ends of its tasks took in this attempt.

    An epoch costs by the images it trains on, a task's end (statistics, alignment, test) by the images tested. Each
    costs what the latest of its kind did: of this task, else of the one before.

    images, tested: of each task.
    epochs:         of each task, as far as is known.
    """

    def __init__(self, images: Sequence[int], tested: Sequence[int], epochs: Sequence[int]) -> None:
        self.images, self.tested, self.epochs = list(images), list(tested), list(epochs)
        self.task, self.epoch = 0, 0  # that are over
        self.last = time.monotonic()
        self._learning: list[float] = []  # seconds an image, of the epochs of this task
        self._rate: float | None = None  # and of the task before
        self._ending: float | None = None  # seconds an image tested

    def begin(self, task: int, epoch: int) -> None:
        """Where this attempt starts."""
        self.task, self.epoch, self.last = task, epoch, time.monotonic()

    def epoch_over(self, task: int, epochs: int) -> None:
        self.epochs[task] = epochs
        self.epoch += 1
        self._learning.append(self._lap() / max(1, self.images[task]))

    def task_over(self) -> None:
        self._ending = self._lap() / max(1, self.tested[self.task])
        self._rate = self.rate
        self._learning, self.task, self.epoch = [], self.task + 1, 0

    def _lap(self) -> float:
        before, self.last = self.last, time.monotonic()
        return self.last - before

    @property
    def rate(self) -> float | None:
        """Seconds an image in an epoch; the first epoch of a task has its beginning on top, so later ones decide."""
        measured = self._learning[1:] or self._learning
        return sum(measured) / len(measured) if measured else self._rate

    @property
    def seconds(self) -> float | None:
        """None as long as nothing is known."""
        tasks = range(self.task, len(self.images))
        images = sum(self.images[i] * (self.epochs[i] - (self.epoch if i == self.task else 0)) for i in tasks)
        if images and self.rate is None:
            return None
        return images * (self.rate or 0.0) + (self._ending or 0.0) * sum(self.tested[i] for i in tasks)

    @property
    def words(self) -> str:
        """ "about 3 min left"; "at least" as long as no task's end has been seen."""
        if self.seconds is None or not self.seconds:
            return "time left not known yet"
        return f"{'at least' if self._ending is None else 'about'} {left(self.seconds)}"


class Live(Progress):
    """Watches a learner on a stream: give `moment` and `task` to `incremental.run_stream` as on_moment and on_task.

    Where nobody watches, it prints a line every half minute as `Progress` does.
    """

    def __init__(self, what: str, learner: Learner, stream: Stream, **settings: Any) -> None:
        super().__init__(what, patience=0.0, **settings)
        self.learner, self.tasks = learner, list(stream)
        tested = [len(stream.test_after(task)) for task in self.tasks]
        self.left = Left([len(task.train) for task in self.tasks], tested, self._epochs())
        self.losses: list[list[dict[str, float]]] = []  # task, epoch
        self.accuracy: Mapping[str, list[list[float]]] = {}
        self.begun = False

    def _epochs(self) -> list[int]:
        return [self.learner.epochs_of(task) for task in self.tasks]

    def task(self, losses: list[list[dict[str, float]]], accuracy: Mapping[str, list[list[float]]]) -> None:
        """What there is before the first task of this attempt, and after each."""
        self.losses, self.accuracy = [list(task) for task in losses], accuracy
        over = self.tasks_over
        if self.begun:
            self.left.task_over()
            self.left.epochs[over:] = self._epochs()[over:]  # some methods train in the first task only
        else:
            self.left.begin(over, sum(map(len, losses[over:])))
            self.begun = True
        if self.block is not None:
            self.block.show(lambda: self.draw(""))

    def moment(self, moment: Any) -> None:
        """An epoch is over."""
        task = moment.task.index
        self.losses += [[] for _ in range(task + 1 - len(self.losses))]
        self.losses[task].append(moment.losses)
        self.left.epoch_over(task, moment.epochs)
        self.tell(lambda: describe(moment))

    @property
    def tasks_over(self) -> int:
        return len(next(iter(self.accuracy.values()), []))

    @property
    def head(self) -> str:
        """The head whose accuracy is shown."""
        own = self.learner.default_head
        return own if own in self.accuracy else next(iter(self.accuracy), own)

    def draw(self, words: str) -> tuple[str, str]:
        rows, title = self.accuracy.get(self.head, []), escape(self.what)
        if self.ended:
            return self._last_line(rows)
        epochs, done = sum(self.left.epochs), sum(map(len, self.losses))
        share = (done, epochs) if epochs else (len(rows), len(self.tasks))
        place = f"task {min(len(rows) + 1, len(self.tasks))} of {len(self.tasks)}"
        place += f", {done:,} of {epochs:,} epochs" if epochs else ""
        says = ", ".join([place, f"{duration(self.block.seconds)} so far", self.left.words])
        plain = f"{self.what}: {says}" + (f" ({words})" if words else "")
        html = (
            f'<div role="group" aria-label="{title}" style="{FONT}"><b>{title}</b>{bar_of(*share, self.what)}'
            f"<div>{escape(says)}</div>{self._panels(rows)}</div>"
        )
        return html, plain

    def _last_line(self, rows: list[list[float]]) -> tuple[str, str]:
        """One line with the last accuracy; a click on it opens losses and matrix again."""
        says = f"{self.what}: {self.ended}"
        if rows:
            tasks = "all tasks" if len(rows) == len(self.tasks) else f"task {len(rows)} of {len(self.tasks)}"
            says += f"; accuracy after {tasks}: {self._whole(rows):.1f} %, head {self.head}"
        panels = self._panels(rows)
        if not panels:
            return f'<div style="{FONT}">{escape(says)}</div>', says
        return f'<details style="{FONT}"><summary>{escape(says)}</summary>{panels}</details>', says

    def _whole(self, rows: list[list[float]]) -> float:
        """Over all test images so far, percent: the mean over tasks, each by its images."""
        tested = [after - before for before, after in zip([0, *self.left.tested], self.left.tested, strict=False)]
        known = [(value, n) for value, n in zip(rows[-1], tested, strict=True) if not math.isnan(value)]
        if not all(n for _, n in known):  # domains: all are tested after each task
            return sum(value for value, _ in known) / len(known)
        return sum(value * n for value, n in known) / sum(n for _, n in known)

    def _panels(self, rows: list[list[float]]) -> str:
        seen = self.tasks[len(rows) - 1].seen if rows else 0
        parts = [curves(self.losses), matrix(rows, self.head, 100 / seen) if seen else ""]
        return f'<div style="display:flex;flex-wrap:wrap;gap:24px">{"".join(parts)}</div>' if any(parts) else ""


def curves(losses: Sequence[Sequence[Mapping[str, float]]]) -> str:
    """Every term of the loss over the epochs of all tasks, as SVG; "" where nothing was trained."""
    epochs = [terms for task in losses for terms in task]
    names = list(dict.fromkeys(name for terms in epochs for name in terms))[:TERMS]
    if not names:
        return ""
    series = {name: _thinned([terms.get(name, math.nan) for terms in epochs]) for name in names}
    values = [value for points in series.values() for _, value in points]
    high, low = max([*values, 1e-9]), min([*values, 0.0])

    def at(epoch: float, value: float) -> str:
        x = LEFT + (RIGHT - LEFT) * epoch / max(1, len(epochs) - 1)
        return f"{x:.1f},{BOTTOM - (BOTTOM - TOP) * (value - low) / (high - low):.1f}"

    starts = list(accumulate(len(task) for task in losses[:-1]))
    lines = [f'<polyline points="{LEFT},{TOP} {LEFT},{BOTTOM} {RIGHT},{BOTTOM}" stroke="currentColor"/>']
    for start in starts[:: math.ceil(len(starts) / MARKS) or 1]:
        ends = f"{at(start - 0.5, low)} {at(start - 0.5, high)}"
        lines.append(f'<polyline points="{ends}" stroke="currentColor" stroke-opacity="0.3"/>')
    keys = []
    for place, (name, points) in enumerate(series.items()):
        look = f'stroke="{COLOURS[place]}" stroke-width="2.5" stroke-dasharray="{DASHES[place]}"'
        drawn = points if len(points) != 1 else [(points[0][0], points[0][1]), (0.2, points[0][1])]
        lines.append(f'<polyline points="{" ".join(at(*point) for point in drawn)}" {look}/>')
        now = f"{points[-1][1]:.3f}" if points else "no number"
        keys.append(
            (f"{name} {now}", f'<svg width="30" height="8" aria-hidden="true"><path d="M0 4H30" {look}/></svg>')
        )
    middle = (LEFT + RIGHT) / 2
    words = [
        _text(LEFT - 5, TOP + 8, "end", f"{high:.3g}"),
        _text(LEFT - 5, (TOP + BOTTOM) / 2, "end", "loss"),
        _text(LEFT - 5, BOTTOM, "end", f"{low:.3g}"),
        _text(LEFT, BOTTOM + 14, "start", "1"),
        _text(middle, BOTTOM + 14, "middle", "epochs of all tasks"),
        _text(RIGHT, BOTTOM + 14, "end", f"{len(epochs):,}"),
    ]
    alt = escape(f"Loss over {len(epochs):,} epochs, now {', '.join(says for says, _ in keys)}")
    legend = "".join(f'<span style="margin-right:12px">{key} {escape(says)}</span>' for says, key in keys)
    return (
        f'<figure style="margin:4px 0"><svg role="img" aria-label="{alt}" width="{WIDE}" height="{HIGH}" fill="none" '
        f'font-size="11">{"".join(lines + words)}</svg>'
        f'<figcaption style="max-width:{WIDE}px">{legend}</figcaption></figure>'
    )


def _text(x: float, y: float, anchor: str, words: str) -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}" fill="currentColor">{words}</text>'


def _thinned(values: Sequence[float]) -> list[tuple[float, float]]:
    """(epoch from 0, value) of at most POINTS means over equally many epochs; what is no number is left out."""
    size = math.ceil(len(values) / POINTS)
    points = []
    for start in range(0, len(values), size):
        part = [value for value in values[start : start + size] if math.isfinite(value)]
        if part:
            points.append((start + (min(size, len(values) - start) - 1) / 2, sum(part) / len(part)))
    return points


def matrix(rows: Sequence[Sequence[float]], head: str, chance: float) -> str:
    """The accuracy matrix so far as a table: a row after each task, a column a task, percent; "" before the first."""
    if not rows:
        return ""
    some = _some(len(rows[-1]))
    columns = [i for i in some if any(not math.isnan(row[i]) for row in rows)]
    heads = "".join(f'<th scope="col" style="{PAD}">task {i + 1}</th>' for i in columns)
    lines = []
    for t in sorted({*(i for i in some if i < len(rows)), len(rows) - 1}):
        cells = "".join(_cell(rows[t][i]) for i in columns)
        lines.append(f'<tr><th scope="row" style="{PAD}">after task {t + 1}</th>{cells}</tr>')
    left_out = f" Some of {len(rows[-1])} tasks." if len(some) < len(rows[-1]) else ""
    caption = f"Accuracy (%) on each task, head {head}; chance now {chance:.1f} %.{left_out}"
    return (
        f'<table style="border-collapse:collapse;align-self:flex-start;{FONT}"><caption style="text-align:left">'
        f"{escape(caption)}</caption><tr><td></td>{heads}</tr>{''.join(lines)}</table>"
    )


def _some(n: int) -> list[int]:
    """At most TASKS of n tasks, evenly; the first and the last among them."""
    return sorted({round(i * (n - 1) / (TASKS - 1)) for i in range(TASKS)}) if n > TASKS else list(range(n))


def _cell(value: float) -> str:
    """A figure, under it as much blue as it is high: the figure counts, and stays readable in either theme."""
    if math.isnan(value):
        return "<td></td>"
    return f'<td style="{PAD};text-align:right;background:rgba(0,114,178,{value / 250:.2f})">{value:.1f}</td>'
