"""Several small panels of one scale: what the figures of forgetting share. All draw inside `plotstyle.styled`."""

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from cilkit import plotstyle
from cilkit.errors import UserError
from cilkit.plots import parts

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST = 6  # arms that one figure tells apart


def arms_of(table: "pd.DataFrame", at_most: int = MOST) -> tuple[list[tuple[str, "pd.DataFrame"]], str]:
    """The first arms of a table, in its order, and a line for the title that says how many are left out ("": none).

    A table without a column `arm` is one arm without a name.
    """
    if not len(table):
        raise UserError("a figure of an empty table cannot be drawn; it needs at least one row.")
    found = list(table.groupby("arm", sort=False)) if "arm" in table else [("", table)]
    return found[:at_most], left_out(len(found), at_most, "arms")


def left_out(n: int, at_most: int, what: str) -> str:
    return f"\n(the first {at_most} of {n} {what}; the table has all)" if n > at_most else ""


def short(text: object, n: int = 24) -> str:
    """At most n characters, so that a class name of any length leaves room; cut in the middle, as names often number
    themselves at their end."""
    text, end = " ".join(str(text).split()), n // 3
    return text if len(text) <= n else text[: n - 1 - end] + "…" + text[-end:]


def folded(text: object, n: int, width: int) -> str:
    """At most n characters in lines of at most `width`, a longer word cut."""
    return "\n".join(textwrap.wrap(short(text, n), width))


def question(figure: "Figure", title: str) -> None:
    """The title at the figure's left edge, where it has room whatever stands left of the axes."""
    figure.suptitle(title, x=0.01, ha="left", fontsize=10)


def grid(n: int, columns: int, width: float, height: float, title: str, share_x: bool = False, share_y: bool = False):
    """A figure of n panels of width × height inches, at most `columns` a row, under one title: figure, panels."""
    from matplotlib.figure import Figure

    columns = min(n, columns)
    rows = -(-n // columns)
    figure = Figure(figsize=(columns * width, rows * height + 0.45), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False, sharex=share_x, sharey=share_y).ravel())
    for spare in panels[n:]:
        spare.set_visible(False)
    for panel in panels[max(0, n - columns) : n]:  # a column's last panel names the x axis, also above a spare one
        panel.tick_params(labelbottom=True)
    question(figure, title)
    return figure, panels[:n]


def styles(names: Sequence[str]) -> dict[str, dict]:
    """Each name's own style, another where an earlier one looks like it (`plotstyle.styles_of`)."""
    return plotstyle.styles_of([str(name) for name in names])


def lines(axes: "Axes", arms: "Sequence[tuple[str, pd.DataFrame]]", x: str, y: str) -> None:
    """A line an arm, in the arm's own style."""
    look = styles([arm for arm, _ in arms])
    for arm, rows in arms:
        axes.plot(rows[x], rows[y], markersize=4.5, label=short(arm, 40) or None, **look[arm])


def stages(axes: "Axes", values: Sequence[int], label: str = "after learning task") -> None:
    """Whole numbers on the x axis."""
    values = sorted({int(value) for value in values})
    axes.set_xlabel(label)
    axes.set_xticks(values if len(values) <= 10 else values[:: -(-len(values) // 10)])


def legend_below(figure: "Figure", axes: "Axes") -> None:
    """One legend for all panels, under them, in as many columns as its longest name leaves room for."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        column = 0.075 * max(map(len, labels)) + 0.6  # inches, of 8-point letters and a line before them
        columns = max(1, min(5, len(labels), int(figure.get_figwidth() / column)))
        figure.set_figheight(figure.get_figheight() + 0.2 * -(-len(labels) // columns))
        figure.legend(handles, labels, loc="outside lower center", ncols=columns)


def small_heat_map(axes: "Axes", values: np.ndarray, top: float = 100.0, room: float = 2.0):
    """A square heat map with tasks from 1 on both axes, and numbers where a cell has room for them (inches)."""
    picture = axes.imshow(np.ma.masked_invalid(values), cmap="cividis", vmin=0, vmax=top)
    n = len(values)
    if room / n >= 0.2:
        parts.write_in_cells(axes, values, top, size=min(8, 28 * room / n))
    ticks = range(0, n, -(-n // 10))
    axes.set_xticks(ticks, [str(i + 1) for i in ticks])
    axes.set_yticks(ticks, [str(i + 1) for i in ticks])
    axes.grid(visible=False)
    axes.tick_params(length=0, labelsize=7)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return picture


def marked_bar(figure: "Figure", picture, panels, unit: str, chance: float | None = None, joint: float | None = None):
    """A colour bar for all panels, with chance (dotted) and joint training (dashed) marked on it."""
    bar = figure.colorbar(picture, ax=panels, label=unit, fraction=0.03, pad=0.02, aspect=30)
    bar.outline.set_visible(False)
    for value, style, name in ((chance, ":", "chance"), (joint, "--", "joint")):
        if value is not None:
            bar.ax.axhline(value, color="white", linewidth=2.4)
            bar.ax.axhline(value, color="black", linestyle=style, linewidth=1.4)
            bar.ax.text(
                -0.35, value, name, ha="right", va="center", fontsize=6.5, transform=bar.ax.get_yaxis_transform()
            )
    return bar


def from_zero(places: "Sequence[Axes]") -> None:
    """The y axes begin at 0, and reach what was drawn in any panel that shares them. Call it last."""
    top = {axes: axes.get_ylim()[1] for axes in places}
    for axes, value in top.items():
        axes.set_ylim(0, value)
