"""Building blocks of several figures: arms of a table, grouped bars, a heat map. All draw inside `plotstyle.styled`."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from cilkit import plotstyle

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


HATCHED = (1, 1, 1, 0.65)  # white lines over a bar's colour, which stays the first thing seen


def by_arm(table: "pd.DataFrame") -> list[tuple[str, "pd.DataFrame"]]:
    """Arms in the order in which the table names them."""
    return list(table.groupby("arm", sort=False))


def bars(names: Sequence[str], heights: Mapping[str, np.ndarray], errors: Mapping[str, np.ndarray] | None = None):
    crowded = len(names) > 8 and max(map(len, names)) > 8  # then the names are turned and stand closer
    longest = max(len(line) for name in names for line in plotstyle.wrapped(name).splitlines())
    for_names = 0.5 if crowded else 0.08 * longest + 0.2  # inches
    figure, axes = plotstyle.figure(max(4.2, len(names) * max(0.42 * len(heights), for_names) + 1.8), 3.4)
    width = 0.8 / len(heights)
    styles = plotstyle.styles_of(heights)
    if len(heights) == 1:  # nothing to be told apart
        styles = dict.fromkeys(heights, {"color": plotstyle.COLOURS[0]})
    hatches = plotstyle.hatches(styles)
    for place, (label, values) in enumerate(heights.items()):
        at = np.arange(len(names)) + (place - (len(heights) - 1) / 2) * width
        error = (errors or {}).get(label)
        look = {"color": styles[label]["color"], "hatch": hatches[label], "edgecolor": HATCHED, "linewidth": 0}
        axes.bar(at, values, 0.92 * width, yerr=error, capsize=3, label=plotstyle.wrapped(label, 30), **look)
    axes.set_xticks(range(len(names)), [plotstyle.wrapped(name) for name in names], rotation=40 if crowded else 0)
    if crowded:
        for text in axes.get_xticklabels():
            text.set(ha="right", rotation_mode="anchor")
    axes.grid(axis="x", visible=False)
    if len(heights) > 1:
        plotstyle.legend_beside(axes)
    return figure, axes


def heat_map(table, title: str, xlabel: str, ylabel: str, unit: str, top: float = 100.0, digits: int = 0) -> "Figure":
    values = table.to_numpy(float)
    rows, columns = values.shape
    figure, axes = plotstyle.figure(min(10, 0.52 * columns + 2.9), min(9, 0.42 * rows + 1.9))
    picture = axes.imshow(np.ma.masked_invalid(values), cmap="cividis", vmin=0, vmax=top, aspect="auto")
    if max(rows, columns) <= 20:
        write_in_cells(axes, values, top, digits)
    long = max(len(str(name)) for name in table.columns) > 7
    turn = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"} if long else {}
    axes.set_xticks(range(columns), [str(name) for name in table.columns], **turn)
    named = range(0, rows, -(-rows // 40))  # every row where there is room
    axes.set_yticks(named, [str(table.index[row]) for row in named])
    axes.set(xlabel=xlabel, ylabel=ylabel, title=title)
    axes.grid(visible=False)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    figure.colorbar(picture, ax=axes, label=unit, fraction=0.05, pad=0.02).outline.set_visible(False)
    return figure


def write_in_cells(axes: "Axes", values: np.ndarray, top: float, digits: int = 0, size: float = 8) -> None:
    """The numbers of a heat map from 0 to `top` in their cells, black on light and white on dark; none for NaN."""
    for (row, column), value in np.ndenumerate(values):
        if not np.isnan(value):
            ink = "black" if value > 0.55 * top else "white"
            text = axes.text(column, row, f"{value:.{digits}f}", ha="center", va="center", fontsize=size, color=ink)
            text.set_in_layout(False)  # lies in its cell; to measure each is a fifth of the drawing
