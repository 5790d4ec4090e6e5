"""Bars: forgetting, groups of classes, fates of images, phases."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from cilkit import plotstyle
from cilkit.plots import parts
from cilkit.plotstyle import styled

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


@styled
def forgetting_bars(
    table: "pd.DataFrame",
    names: str = "task",
    values: Mapping[str, str] | None = None,
    title: str = "Forgetting of each old task",
) -> "Figure":
    """A group of bars a task or class. table: a column `names` and one column for each key of `values` (column: label).

    Bars point up where accuracy was lost.
    """
    values = values or {"forgetting_max_before_last": "best before the last task − last"}
    table = table.dropna(subset=list(values))
    rows = [f"task {name}" if names == "task" else str(name) for name in table[names]]
    figure, axes = parts.bars(rows, {label: table[column].to_numpy() for column, label in values.items()})
    axes.set(ylabel="accuracy lost (percentage points)", title=title)
    axes.axhline(0, color="black", linewidth=0.8)
    return figure


@styled
def group_bars(
    table: "pd.DataFrame",
    names: str,
    values: Mapping[str, str],
    chance: float | None = None,
    joint: float | None = None,
    errors: Mapping[str, str] | None = None,
    ylabel: str = "accuracy (%)",
    xlabel: str = "",
    title: str = "",
) -> "Figure":
    """Bars of several columns side by side, e.g. foreseen and unforeseen classes. errors: column -> its half widths."""
    heights = {label: table[column].to_numpy() for column, label in values.items()}
    widths = {values[column]: table[error].to_numpy() for column, error in (errors or {}).items()}
    figure, axes = parts.bars([str(name) for name in table[names]], heights, widths)
    plotstyle.references(axes, chance, joint)
    axes.set(ylabel=ylabel, xlabel=xlabel, title=title)
    if chance is not None or joint is not None:
        plotstyle.legend_beside(axes)
    return figure


@styled
def confusion_flow(table: "pd.DataFrame", title: str = "Where test images of old classes go") -> "Figure":
    """Stacked bars of the fates in `analysis.confusion_flow`, a bar a stage."""
    fates = [column for column in table.columns if column != "after_task"]
    figure, axes = plotstyle.figure(6.6, 3.6)
    base = np.zeros(len(table))
    middle = {"ha": "center", "va": "center", "fontsize": 8}
    behind = {"boxstyle": "round,pad=0.15", "ec": "none"}  # a number is not read through a pattern
    fills = (
        ("#009E73", "white", ""),
        ("#56B4E9", "black", "//"),
        ("#E69F00", "black", ".."),
        ("#D55E00", "white", "xx"),
    )
    for fate, (fill, ink, hatch) in zip(fates, fills, strict=True):
        heights = table[fate].to_numpy()
        look = {"color": fill, "hatch": hatch, "edgecolor": parts.HATCHED, "linewidth": 0}
        axes.bar(table["after_task"], heights, 0.7, bottom=base, label=plotstyle.wrapped(fate, 24), **look)
        for at, height, low in zip(table["after_task"], heights, base, strict=True):
            if height >= 6:
                seen = {"color": ink, "bbox": behind | {"fc": fill}, **middle}
                axes.text(at, low + height / 2, f"{height:.0f}", **seen)
        base = base + heights
    axes.set(xlabel="after learning task", ylabel="share of old classes' images (%)", ylim=(0, 100), title=title)
    axes.set_xticks(table["after_task"])
    axes.grid(visible=False)
    plotstyle.legend_beside(axes, reverse=True)
    return figure


def phase_bars(table: "pd.DataFrame", value: str = "seconds", title: str = "What each phase took") -> "Figure":
    """A group of bars a phase, a bar an arm; value: "seconds" or "peak_bytes". table: `analysis.phases`."""
    units = {"seconds": (1, "seconds"), "peak_bytes": (2**20, "peak memory (MiB)")}
    scale, ylabel = units[value]
    wide = table.pivot(index="phase", columns="arm", values=value).loc[list(dict.fromkeys(table["phase"]))] / scale
    arms = {arm: arm for arm, _ in parts.by_arm(table)}
    return group_bars(wide.reset_index(), "phase", arms, ylabel=ylabel, title=title)
