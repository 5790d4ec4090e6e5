"""Where runs stand: what they learn against what they keep, gaps against accuracy, differences that stand or not."""

import string
from typing import TYPE_CHECKING

import numpy as np

from cilkit import metrics, plotstyle
from cilkit.errors import UserError
from cilkit.plots.panels import folded, left_out, question, styles
from cilkit.plotstyle import styled

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

LETTERS = [*string.ascii_letters, *(a + b for a in string.ascii_lowercase for b in string.ascii_lowercase)]


@styled
def gap_scatter(
    table: "pd.DataFrame",
    x: str,
    value: str = "last accuracy",
    title: str = "Does a smaller gap mean a better learner?",
    chance: float | None = None,
    joint: float | None = None,
) -> "Figure":
    """A point an arm: a figure of its images over what was reached, with Spearman's rank correlation in the title.

    table: arm, `x` and `value` in percent, see `analysis.rank_correlations`.
    """
    shown = table.dropna(subset=[x, value])
    if not len(shown):
        raise UserError(f"no arm has both {x!r} and {value!r}; a scatter needs at least one that has.")
    rank, p = metrics.spearman(shown[x], shown[value])
    says = f"n = {len(shown)}: no conclusion" if len(shown) < 5 else f"n = {len(shown)}, p = {p:.2f}"
    figure, axes = _lettered(shown.reset_index(drop=True), x, value, shown["arm"].astype(str).tolist())
    plotstyle.references(axes, chance, joint)
    rank = "no rank correlation" if np.isnan(rank) else f"Spearman {rank:.2f}"
    axes.set(xlabel=x.replace("_", " "), ylabel=f"{value} (%)", title=f"{title}\n{rank}; {says}")
    plotstyle.legend_beside(axes)
    return figure


@styled
def stability_plasticity(
    table: "pd.DataFrame",
    y: str = "stability",
    title: str = "Which runs both learn and keep?",
    chance: float | None = None,
    joint: float | None = None,
) -> "Figure":
    """A point a run; the stair is the front, which no other run is above and right of.

    table: `analysis.stability_plasticity`; y: "stability" or "last_on_old". chance and joint (percent) are lines of
    accuracies: of what is new, and of `last_on_old`.
    """
    from cilkit.fronts import on_front

    names = {"stability": "stability: 100 − forgetting (points)", "last_on_old": "accuracy on old tasks in the end (%)"}
    if y not in names:
        raise UserError(f"y {y!r} is unknown; take {' or '.join(names)}.")
    if not len(table):
        raise UserError("a figure of an empty table cannot be drawn; it needs at least one row.")
    figure, axes = _lettered(table.reset_index(drop=True), "plasticity", y, table["label"].astype(str).tolist())
    front = table[on_front(-table["plasticity"], table[y])].sort_values("plasticity")
    style = {"color": "#666666", "linewidth": 1.3, "zorder": 0}
    left, low = table["plasticity"].min(), table[y].min()
    xs, ys = [left, *front["plasticity"], front["plasticity"].max()], [front[y].max(), *front[y], low]
    axes.step(xs, ys, where="pre", label="front: no run learns and keeps more", **style)
    if y == "last_on_old":
        plotstyle.references(axes, chance, joint)
    for value, linestyle in ((chance, ":"), (joint, "--")):
        if value is not None:
            axes.axvline(value, color="black", linestyle=linestyle, linewidth=1.1)
    if y != "last_on_old" and (chance is not None or joint is not None):
        kinds = ((chance, ":", "chance"), (joint, "--", "joint training"))
        for value, linestyle, name in kinds:
            if value is not None:
                axes.plot([], [], color="black", linestyle=linestyle, linewidth=1.1, label=f"{name} ({value:.1f})")
    axes.set(xlabel="plasticity: accuracy when new (%)", ylabel=names[y], title=title)
    plotstyle.legend_beside(axes)
    return figure


@styled
def paired_differences(
    table: "pd.DataFrame",
    value: str = "last accuracy",
    unit: str = "points",
    title: str = "Which differences stand over class orders?",
    at_most: int = 30,
) -> "Figure":
    """A row an arm: mean paired difference to the baseline with its 95 % t interval; right of it pairs and Holm's p.

    table: `analysis.significance`, the arm in its first column.
    """
    if not len(table):
        raise UserError("a figure of an empty table cannot be drawn; it needs at least one arm beside the baseline.")
    shown = table.head(at_most)
    name = shown.columns[0]
    figure, axes = plotstyle.figure(7.4, 0.42 * len(shown) + 1.4)
    for place, row in enumerate(shown.to_dict("records")):
        known = not np.isnan(row["low"])
        error = row["difference"] - row["low"] if known else 0
        style = {"color": plotstyle.colour(0 if known and (row["low"] > 0 or row["high"] < 0) else 4), "capsize": 4}
        axes.errorbar(row["difference"], place, xerr=error, fmt="o", markersize=6, linewidth=1.8, **style)
        p = "" if np.isnan(row["p_holm"]) else f", p = {row['p_holm']:.3f}" if row["p_holm"] >= 0.001 else ", p < 0.001"
        text = f"{row['difference']:+.1f} over {row['pairs']}{p}"
        axes.text(1.02, place, text, transform=axes.get_yaxis_transform(), va="center", fontsize=8)
    axes.axvline(0, color="black", linewidth=1)
    axes.set_yticks(range(len(shown)), [folded(arm, 48, 24) for arm in shown[name]])
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    axes.text(1.02, 1.01, "pairs, Holm's p (Wilcoxon)", transform=axes.transAxes, va="bottom", fontsize=7.5)
    axes.set_xlabel(f"{value}, arm − baseline ({unit})\nmean and 95 % interval")
    question(figure, title + left_out(len(table), at_most, "arms"))
    return figure


def _lettered(table: "pd.DataFrame", x: str, y: str, labels: list[str]):
    """A point a row with a letter beside it, and its label behind the letter in the legend: figure, axes."""
    wrapped = [folded(label, 60, 30) for label in labels]
    height = 0.8 + 0.17 * sum(1.2 + label.count("\n") for label in wrapped)
    figure, axes = plotstyle.figure(7.8, min(12.0, max(3.8, height)))  # the legend has to fit
    names = table["arm"].astype(str).tolist()
    distinct = styles([*dict.fromkeys(names)])
    look = [distinct[name] for name in names]
    for at, (row, label) in enumerate(zip(table.to_dict("records"), wrapped, strict=True)):
        style = look[at] | {"linestyle": "none", "markersize": 7}
        axes.plot(row[x], row[y], label=f"{LETTERS[at]}  {label}", **style)
        axes.annotate(LETTERS[at], (row[x], row[y]), (5, 4), textcoords="offset points", fontsize=8, weight="bold")
    return figure, axes
