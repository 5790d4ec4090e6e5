"""Where a figure will be looked at: in a notebook, in a paper's column, on a slide; and as which files it is kept.

`CILKIT_FIGURES=paper,pdf,svg` says it for a whole run, whatever starts it; `use("paper", "pdf")` in a cell.
"""

import os
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cilkit.errors import UserError, near_name

if TYPE_CHECKING:
    from matplotlib.figure import Figure

VARIABLE = "CILKIT_FIGURES"
FORMATS = ("png", "pdf", "svg")  # "png" always
COLUMN, PAGE = 3.35, 6.9  # inches: the widths of the usual two-column paper
FITS_A_COLUMN = 6.3  # inches in a notebook, with the legend beside the panel
SHORT, TALLEST = 0.62, 8.6  # heights in a paper: not flatter than this share of the notebook's; inches of a page
SLIDE = 16 / 9
LETTER, LINE = 0.055, 0.15  # inches of a letter and of a line at 8 points


@dataclass(frozen=True)
class Context:
    """dpi: of the PNG. below: legends stand under the panels. style: laid over the house style (rcParams)."""

    dpi: int
    below: bool
    style: dict


CONTEXTS = {
    "notebook": Context(150, False, {}),
    "paper": Context(
        300,
        True,
        {
            "font.size": 8,
            "axes.titlesize": 9,
            "axes.linewidth": 0.6,
            "grid.linewidth": 0.5,
            "lines.linewidth": 1.0,
            "lines.markersize": 4,
            "xtick.major.width": 0.6,
            "ytick.major.width": 0.6,
            "hatch.linewidth": 0.6,
        },
    ),
    # A slide is 13.3 inches wide: what is drawn on 6.4 inches is seen at twice its size.
    "slide": Context(300, False, {"font.size": 10, "axes.titlesize": 11.5, "legend.fontsize": 9, "lines.linewidth": 2}),
}
_told: tuple[str, ...] | None = None  # by `use`; None: the environment says it


def use(*words: str) -> None:
    """Draw for "notebook", "paper" or "slide" and keep "pdf" or "svg" beside the PNG, until told otherwise.

    Without words the environment (`CILKIT_FIGURES`) counts again.
    """
    global _told
    _read(words)
    _told = words or None


@contextmanager
def using(*words: str):
    """`use` for the lines of a `with`."""
    global _told
    before = _told
    use(*words)
    try:
        yield
    finally:
        _told = before


def context() -> Context:
    return CONTEXTS[_now()[0]]


def formats() -> tuple[str, ...]:
    """The kinds of file of a figure, "png" first."""
    return _now()[1]


def _now() -> tuple[str, tuple[str, ...]]:
    if _told is not None:
        return _read(_told)
    return _read([word.strip() for word in os.environ.get(VARIABLE, "").split(",") if word.strip()])


def _read(words) -> tuple[str, tuple[str, ...]]:
    known = (*CONTEXTS, *FORMATS)
    for word in words:
        if word not in known:
            raise UserError(
                f"figures cannot be {word!r}{near_name(word, known)}; {VARIABLE} and use() take one of "
                f"{', '.join(CONTEXTS)}, and any of pdf and svg."
            )
    chosen = [word for word in words if word in CONTEXTS]
    if len(chosen) > 1:
        raise UserError(f"figures are drawn for one place at a time, not for {' and '.join(chosen)}; name one of them.")
    return chosen[0] if chosen else "notebook", tuple(kind for kind in FORMATS if kind == "png" or kind in words)


def fit(figure: "Figure") -> "Figure":
    """Give a figure that was laid out for a notebook the size of the context; done once, however functions nest."""
    name = _now()[0]
    if name == "notebook" or getattr(figure, "cilkit_fitted", False):
        return figure
    figure.cilkit_fitted = True
    width, height = figure.get_size_inches()
    if figure.get_layout_engine() is None:  # a contact sheet: everything has its place, and can only shrink
        if name == "paper" and width > PAGE:
            figure.set_size_inches(PAGE, height * PAGE / width)
        return figure
    if name == "paper":
        fitted = COLUMN if width <= FITS_A_COLUMN and _panels_across(figure) == 1 else PAGE
        figure.set_size_inches(fitted, min(TALLEST, height * max(SHORT, min(1, fitted / width))))
        _put_legends_below(figure)
    else:
        figure.set_size_inches(max(width, height * SLIDE), max(height, width / SLIDE))
    _wrap_titles(figure)
    return figure


def _panels_across(figure: "Figure") -> int:
    return len({axes.get_subplotspec().colspan.start for axes in figure.axes if axes.get_subplotspec()}) or 1


def _put_legends_below(figure: "Figure") -> None:
    """Every legend that stands outside of its panel goes under all panels; the figure grows by its lines."""
    beside = [axes for axes in figure.axes if getattr(axes.get_legend(), "cilkit_beside", False)]
    for legend in [*(axes.get_legend() for axes in beside), *figure.legends]:
        labels = [text.get_text() for text in legend.get_texts()]
        drawn: dict = {}
        for axes in figure.axes:
            drawn |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
        handles = [drawn.get(label, mark) for label, mark in zip(labels, legend.legend_handles, strict=True)]
        legend.remove()
        if not labels:
            continue
        longest = max(len(line) for label in labels for line in label.splitlines() or [""])
        columns = int(figure.get_figwidth() / (longest * LETTER + 0.45))
        columns = max(1, min(len(labels), columns))
        rows = -(-len(labels) // columns)
        lines = sum(max(label.count("\n") + 1 for label in labels[row::rows]) for row in range(rows))
        figure.legend(handles, labels, loc="outside lower center", ncols=columns)
        figure.set_figheight(figure.get_figheight() + LINE * lines)


def _wrap_titles(figure: "Figure") -> None:
    """Titles in as many lines as the width asks for."""
    import textwrap

    def wrap(text, inches: float) -> None:
        letters = max(20, int(inches * 72 / (0.54 * text.get_fontsize())))
        lines = [part for line in text.get_text().splitlines() for part in textwrap.wrap(line, letters) or [""]]
        text.set_text("\n".join(lines))

    panels = _panels_across(figure)
    if figure._suptitle is not None:
        wrap(figure._suptitle, figure.get_figwidth() - 0.2)
    for axes in figure.axes:
        wrap(axes.title, figure.get_figwidth() / panels)
        wrap(axes._left_title, figure.get_figwidth() / panels - 0.6)
