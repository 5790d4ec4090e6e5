"""What an accuracy costs: arms over seconds or bytes, and the front of those that no other arm beats at both."""

import string
import textwrap
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from cilkit import plotstyle
from cilkit.plotstyle import styled

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


def on_front(costs: Sequence[float], values: Sequence[float]) -> np.ndarray:
    """Which arms no other arm beats: none costs at most as much, is worth at least as much, and differs. bool (n,).

    An arm whose cost or value is NaN is never on the front.
    """
    costs, values = np.asarray(costs, float), np.asarray(values, float)
    no_dearer, no_worse = costs <= costs[:, None], values >= values[:, None]  # [arm, other]
    better = (costs < costs[:, None]) | (values > values[:, None])
    return ~(no_dearer & no_worse & better).any(1) & ~np.isnan(costs) & ~np.isnan(values)


def words_of_bytes(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.0f} TB"


def words_of_seconds(seconds: float) -> str:
    return f"{seconds:g} s" if seconds < 10_000 else f"{seconds / 3600:.0f} h"


@styled
def accuracy_against(
    table: "pd.DataFrame",
    cost: str,
    words: Callable[[float], str],
    value: str = "last accuracy (%)",
    chance: float | None = None,
    joint: float | None = None,
    title: str = "",
) -> "Figure":
    """A letter an arm at its mean accuracy ± the standard deviation over runs; the front as a stair.

    table: a row an arm, columns arm, cost, value, spread (NaN: one run). cost: the words of the axis. words: a cost's
    tick. The axis is logarithmic, with a place for what costs nothing. chance, joint: percent.
    """
    from matplotlib.ticker import FuncFormatter, NullLocator

    letters = dict(zip(table.index, string.ascii_letters * 9, strict=False))
    labels = {at: plotstyle.wrapped(f"{letters[at]}  {arm}", 52) for at, arm in table["arm"].items()}
    height = 0.6 + 0.16 * sum(1.3 + label.count("\n") for label in labels.values())
    figure, axes = plotstyle.figure(8.6, max(4.0, height))  # the legend has to fit
    paid = table["cost"][table["cost"] > 0]
    least = 10.0 ** np.floor(np.log10(paid.min())) if len(paid) else 1.0
    most = 10 * max(paid.max() if len(paid) else 1.0, least)
    place = table["cost"].where(table["cost"] > 0, least / 3)
    front = table.assign(cost=place)[on_front(table["cost"], table["value"])].sort_values("cost")
    if len(front):
        x, y = [*front["cost"], most], [*front["value"], front["value"].iloc[-1]]
        axes.step(x, y, where="post", color="#666666", linewidth=1.3, label="front: no arm is better and cheaper")
    styles = plotstyle.styles_of(table["arm"])
    for row in table.itertuples():
        style = styles[row.arm] | {"linestyle": "none"}
        error = 0.0 if np.isnan(row.spread) else row.spread
        axes.errorbar(place[row.Index], row.value, error, capsize=3, markersize=6, label=labels[row.Index], **style)
        at = (place[row.Index], row.value)
        axes.annotate(letters[row.Index], at, (4, 4), textcoords="offset points", fontsize=8, weight="bold")
    axes.set_xscale("log")
    axes.set_xlim(least / 5 if (table["cost"] <= 0).any() else least / 1.5, most)
    ticks = 10.0 ** np.arange(np.log10(least), np.log10(most) + 1e-9)
    axes.set_xticks([least / 3, *ticks] if (table["cost"] <= 0).any() else ticks)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: words(x) if x >= least * 0.99 else "nothing"))
    plotstyle.references(axes, chance, joint)
    axes.set(xlabel=f"{cost}, logarithmic", ylabel=value, title=textwrap.fill(title, 62))
    plotstyle.legend_beside(axes)
    return figure
