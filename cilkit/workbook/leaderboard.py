"""What the leaderboard's page shows, without a word about where it comes from: boards of lines of runs.

`cilkit.road.leaderboard` fills it from the table of results, `site` writes it. Accuracies are in percent, differences
in points; NaN is what is not known, and shows as nothing.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class Measured:
    """A mean with what stands behind its ±: a standard deviation, or the half width of an interval."""

    mean: float
    spread: float
    n: int

    def __str__(self) -> str:
        if math.isnan(self.mean):
            return ""
        return f"{self.mean:.2f}" + ("" if math.isnan(self.spread) else f" ± {self.spread:.2f}")

    @property
    def signed(self) -> str:
        return str(self) if math.isnan(self.mean) or self.mean < 0 else f"+{self}"


@dataclass
class Quote:
    """A number that others report, as `published.shown` writes it: with its tag."""

    figure: str  # our word for it
    ours: Measured
    text: str
    difference: Measured  # ours minus theirs
    row: str
    setting: str
    note: str = ""


@dataclass
class RunRow:
    """One run under one head; `cell` names the job whose page shows it ("" where no page does)."""

    cell: str
    seeds: str  # "order 1993, initialisation 0"
    figures: list[float]  # as Board.figures
    seconds: float
    stored: float


@dataclass
class Line:
    """The runs of one arm: they differ in seeds and class orders alone."""

    learner: str
    head: str
    backbone: str
    labels: str  # what else tells the arm apart
    figures: list[Measured]  # as Board.figures; ± is the standard deviation over runs
    seconds: float  # means
    stored: float
    runs: list[RunRow]
    difference: Measured | None = None  # to the baseline, ± half the 95 % t interval over pairs; None: is the baseline
    quotes: list[Quote] = field(default_factory=list)
    default: bool = True  # its head is its learner's own, and stands in the pictures

    @property
    def name(self) -> str:
        return " · ".join(part for part in (self.learner, self.head, self.backbone, self.labels) if part)


@dataclass
class Picture:
    """A figure that is drawn when its PNG is not at hand: `key` changes with everything that it shows."""

    name: str
    key: str
    caption: str
    draw: Callable[[], bytes]


@dataclass
class Board:
    """Runs that may be compared: one benchmark, protocol and stream."""

    benchmark: str
    protocol: str
    stream: str
    increments: str
    figures: list[str]  # names of the columns of numbers
    lines: list[Line] = field(default_factory=list)
    baseline: str = ""  # its learner
    chance: float = math.nan
    joint: float = math.nan
    pictures: list[Picture] = field(default_factory=list)

    @property
    def title(self) -> str:
        return " · ".join(part for part in (self.benchmark, self.protocol, self.stream, self.increments) if part)


@dataclass
class Leaderboard:
    """The page. `quoted` is the heading that numbers of others stand under."""

    boards: list[Board]
    quoted: str
