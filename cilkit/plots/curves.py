"""Lines: accuracy over classes, drift over tasks, accuracy over confidence."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from cilkit import plotstyle
from cilkit.plots import parts
from cilkit.plotstyle import styled

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


@styled
def accuracy_curves(
    table: "pd.DataFrame",
    x: str = "classes_seen",
    y: str = "accuracy",
    chance: Mapping[float, float] | float | None = None,
    joint: float | None = None,
    title: str = "Accuracy over all classes seen",
    labels: tuple[str, str] = ("classes seen", "accuracy (%)"),
) -> "Figure":
    """A line an arm, with the 95 % t interval over class orders where there are several.

    table: columns arm, order, `x`, `y`. chance: percent, one number or one an x. joint: percent, of joint training.
    """
    from cilkit.metrics import mean_interval

    figure, axes = plotstyle.figure(6.2, 3.8)
    arms = parts.by_arm(table)
    styles = plotstyle.styles_of(arm for arm, _ in arms)
    for arm, rows in arms:
        intervals = {at: mean_interval(values.to_numpy()) for at, values in rows.groupby(x)[y]}
        at, mean = list(intervals), [i.mean for i in intervals.values()]
        axes.plot(at, mean, markersize=4.5, label=plotstyle.wrapped(arm, 40), **styles[arm])
        if len({*rows["order"]}) > 1:
            low, high = [i.low for i in intervals.values()], [i.high for i in intervals.values()]
            axes.fill_between(at, low, high, color=styles[arm]["color"], alpha=0.15, linewidth=0)
    plotstyle.references(axes, chance, joint)
    axes.set(xlabel=labels[0], ylabel=labels[1], title=title)
    if table[x].nunique() <= 12:
        axes.set_xticks(sorted({*table[x]}))
    axes.set_ylim(min(0, axes.get_ylim()[0]), None)
    plotstyle.legend_beside(axes)
    return figure


@styled
def drift_curves(table: "pd.DataFrame", y: str = "relative", title: str = "Drift of the class means") -> "Figure":
    """A thin line a class since it was learnt, a thick one their mean a task. table: `analysis.class_mean_drift`."""
    figure, axes = plotstyle.figure(6.2, 3.6)
    tasks = sorted({*table["task"]} - {table["after_task"].max()})
    for place, task in enumerate(tasks):
        rows = table[table["task"] == task]
        for _, one in rows.groupby("class"):
            axes.plot(one["after_task"], one[y], color=plotstyle.colour(place), linewidth=0.7, alpha=0.5)
        mean = rows.groupby("after_task")[y].mean()
        axes.plot(
            mean.index,
            mean,
            color=plotstyle.colour(place),
            marker=plotstyle.MARKERS[place % 6],
            label=f"classes of task {task}",
        )
    units = {"relative": "distance / spread of the class", "drift": "distance", "cosine": "cosine"}
    axes.set(xlabel="after learning task", ylabel=f"moved since learnt\n({units[y]})", title=title)
    axes.set_xticks(sorted({*table["after_task"]}))
    plotstyle.legend_beside(axes)
    return figure


@styled
def reliability_diagram(
    tables: "Mapping[str, pd.DataFrame]", chance: float | None = None, title: str = "Is it as sure as it is right?"
) -> "Figure":
    """Above, accuracy over confidence, a point a bin; below, the share of images in each. {arm: `analysis.reliability`}

    On the diagonal a head is as sure as it is right; below it is too sure of itself.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.4, 4.6), layout="constrained")
    axes, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    axes.plot([0, 100], [0, 100], color="black", linewidth=1.1, linestyle="--", label="as sure as right")
    styles = plotstyle.styles_of(tables)
    for arm, table in tables.items():
        style = styles[arm] | {"markersize": 4.5}
        error = (table["images"] * (table["accuracy"] - table["confidence"]).abs()).sum() / table["images"].sum()
        label = plotstyle.wrapped(f"{arm} (error {error:.1f} points)", 24)
        axes.plot(table["confidence"], table["accuracy"], label=label, **style)
        below.plot(table["confidence"], 100 * table["images"] / table["images"].sum(), **style)
    plotstyle.references(axes, chance, None)
    axes.set(ylabel="accuracy (%)", title=title, xlim=(0, 100), ylim=(0, 100))
    below.set(xlabel="mean confidence of the bin (%)", ylabel="images (%)", ylim=(0, None))
    plotstyle.legend_beside(axes)
    return figure
