"""Points: a run or an arm each, paired over class orders or over the bytes that it keeps."""

from typing import TYPE_CHECKING

import numpy as np

from cilkit import plotstyle
from cilkit.plots import parts
from cilkit.plotstyle import styled

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


@styled
def arms_comparison(
    table: "pd.DataFrame",
    value: str = "last accuracy",
    unit: str = "%",
    chance: float | None = None,
    joint: float | None = None,
    title: str = "Arms on the same class orders",
) -> "Figure":
    """A point a run, a thin line a class order through all arms (paired), and beside them mean and 95 % t interval.

    table: columns arm, order and `value`.
    """
    from cilkit.metrics import mean_interval

    arms = parts.by_arm(table)
    figure, axes = plotstyle.figure(max(4.0, 1.15 * len(arms) + 2.4), 3.8)
    for _, rows in table.groupby("order"):
        at = rows["arm"].map({arm: place for place, (arm, _) in enumerate(arms)})
        path = rows.assign(at=at).sort_values("at")
        axes.plot(path["at"], path[value], color="#bbbbbb", linewidth=0.8, zorder=1)
    styles = plotstyle.styles_of(arm for arm, _ in arms)
    for place, (arm, rows) in enumerate(arms):
        look, interval = styles[arm], mean_interval(rows[value].to_numpy())
        axes.scatter([place] * len(rows), rows[value], s=16, color=look["color"], alpha=0.6, linewidth=0, zorder=2)
        error = 0 if np.isnan(interval.half_width) else interval.half_width
        style = {"fmt": look["marker"], "markersize": 6, "capsize": 4, "linewidth": 1.8}
        axes.errorbar(place + 0.2, interval.mean, error, color=look["color"], zorder=3, **style)
        axes.annotate(f"{interval.mean:.1f}", (place + 0.27, interval.mean), va="center", fontsize=8, color="#333333")
    plotstyle.references(axes, chance, joint)
    axes.set(ylabel=f"{value} ({unit})", title=title, xlim=(-0.5, len(arms) - 0.1))
    axes.set_xticks(range(len(arms)), [plotstyle.wrapped(arm) for arm, _ in arms])
    axes.grid(axis="x", visible=False)
    if chance is not None or joint is not None:
        plotstyle.legend_beside(axes)
    return figure


@styled
def accuracy_against_bytes(
    table: "pd.DataFrame",
    value: str = "last accuracy",
    chance: float | None = None,
    joint: float | None = None,
    title: str = "What is kept, and what it is worth",
) -> "Figure":
    """A letter an arm, its mean over orders with the 95 % t interval; bytes on a logarithmic axis with a place for 0.

    table: columns arm, order, bytes, kind (of what most of the bytes are) and `value` in percent. Arms of equal bytes
    stand side by side.
    """
    from matplotlib.ticker import FuncFormatter, NullLocator

    from cilkit.metrics import mean_interval

    figure, axes = plotstyle.figure(8.2, max(4.0, 0.36 * table["arm"].nunique() + 0.8))  # the legend has to fit
    sizes = table.groupby("arm", sort=False)["bytes"].mean()
    stored = sizes[sizes > 0]
    least = 10.0 ** np.floor(np.log10(stored.min())) if len(stored) else 1.0
    kinds, met = plotstyle.styles_of(table["kind"]), []
    for letter, (arm, rows) in zip("abcdefghijklmnopqrstuvwxyz" * 9, parts.by_arm(table), strict=False):
        look, interval = kinds[rows["kind"].iloc[0]], mean_interval(rows[value].to_numpy())
        error, size = 0 if np.isnan(interval.half_width) else interval.half_width, sizes[arm] or least / 3
        at = size * 1.15 ** sum(abs(np.log(size / other)) < 0.2 for other in met)
        met.append(size)
        style = look | {"capsize": 3, "markersize": 6, "linestyle": "none"}
        of = f" ({rows['kind'].iloc[0]})" if rows["kind"].iloc[0] != arm else ""
        label = plotstyle.wrapped(f"{letter}  {arm}{of}", 42)
        axes.errorbar(at, interval.mean, error, label=label, **style)
        axes.annotate(letter, (at, interval.mean), (4, 4), textcoords="offset points", fontsize=8, weight="bold")
    axes.set_xscale("log")
    axes.set_xlim(least / 5, 10 * max(stored.max() if len(stored) else 1, least))
    axes.set_xticks([least / 3, *(10.0 ** np.arange(np.log10(least), np.log10(axes.get_xlim()[1])))])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda size, _: _size(size) if size >= least else "nothing"))
    plotstyle.references(axes, chance, joint)
    axes.set(xlabel="bytes stored from task to task (logarithmic)", ylabel=f"{value} (%)", title=title)
    plotstyle.legend_beside(axes)
    return figure


def _size(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            return f"{size:.0f} {unit}"
        size /= 1000
