"""Forgetting taken apart: what was learnt and lost, who took it, where the head leans, what the features still tell.

Every figure is of a table of `analysis`, for one run or, with a column `arm`, for several; see `panels.arms_of`.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from cilkit import plotstyle
from cilkit.errors import UserError
from cilkit.plots import panels, parts
from cilkit.plots.panels import folded, short
from cilkit.plotstyle import styled

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

Chance = Mapping[float, float] | float | None  # percent, one number or one an x
FEW_NAMES = 12  # names that fit under an axis
STAGES_SHOWN = 5  # lines of one panel that are told apart by shade


@styled
def accuracy_heat_maps(
    matrices: "Mapping[str, pd.DataFrame]",
    title: str = "Which tasks are lost, and when?",
    at_most: int = 12,
    chance: float | None = None,
    joint: float | None = None,
) -> "Figure":
    """Accuracy matrices side by side on one scale. matrices: {arm: (tasks, tasks) in percent}."""
    if not matrices:
        raise UserError("accuracy matrices of no arms cannot be drawn; give at least one.")
    shown = list(matrices.items())[:at_most]
    title += panels.left_out(len(matrices), at_most, "arms")
    figure, places = panels.grid(len(shown), {4: 2}.get(len(shown), 3 if len(shown) <= 6 else 4), 2.5, 2.5, title)
    for axes, (arm, matrix) in zip(places, shown, strict=True):
        picture = panels.small_heat_map(axes, matrix.to_numpy(float))
        axes.set_title(folded(arm, 48, 30), fontsize=8)
        axes.set_xlabel("test accuracy on task", fontsize=7.5)
        axes.set_ylabel("after learning task", fontsize=7.5)
    panels.marked_bar(figure, picture, places, "accuracy (%)", chance, joint)
    return figure


@styled
def changes(
    table: "pd.DataFrame",
    names: str = "task",
    title: str = "What was never learnt, and what was forgotten?",
    chance: float | None = None,
    joint: float | None = None,
    at_most: int = panels.MOST,
) -> "Figure":
    """One above the other, of each task or class: accuracy when new, what joint training has more, what was lost.

    table: `analysis.changes_by_task` or `_by_class`; names: "task" or "class". The middle panel needs a reference.
    """
    rows = {"learned": "accuracy\nwhen new (%)", "intransigence": "joint training\n− when new (points)"}
    rows["forgetting"] = "best − last\n(points)"
    rows = {name: label for name, label in rows.items() if table[name].notna().any() or name == "learned"}
    arms, note = panels.arms_of(table, at_most)
    order = list(dict.fromkeys(arms[0][1][names])) + [
        n for n in dict.fromkeys(table[names]) if n not in {*arms[0][1][names]}
    ]
    place = {name: at for at, name in enumerate(order)}
    figure, places = panels.grid(len(rows), 1, max(5.5, min(9.5, 0.55 * len(order) + 2.5)), 1.65, title + note, True)
    for axes, (column, label) in zip(places, rows.items(), strict=True):
        _draw_changes(axes, arms, column, names, place)
        if column == "learned":
            plotstyle.references(axes, chance, joint)
            panels.from_zero([axes])
        else:
            axes.axhline(0, color="black", linewidth=0.8)
        axes.set_ylabel(label, fontsize=8)
        axes.grid(axis="x", visible=False)
    _name_places(places, arms, names, order)
    if arms[0][0] or chance is not None or joint is not None:
        panels.legend_below(figure, places[0])
    return figure


def _draw_changes(axes, arms, column: str, names: str, place: dict) -> None:
    """Bars of few names, each arm with its own pattern; points of many."""
    look = panels.styles([arm for arm, _ in arms])
    hatches = plotstyle.hatches(look)
    for k, (arm, part) in enumerate(arms):
        at, style = part[names].map(place).to_numpy(float), look[arm]
        label = short(arm, 40) or None
        if len(place) <= FEW_NAMES:
            width = 0.8 / len(arms)
            at += (k - (len(arms) - 1) / 2) * width
            pattern = {"hatch": hatches[arm], "edgecolor": parts.HATCHED, "linewidth": 0}
            axes.bar(at, part[column], 0.92 * width, color=style["color"], label=label, **pattern)
        else:
            points = {"color": style["color"], "marker": style["marker"], "linestyle": "none"}
            axes.plot(at, part[column], markersize=3.5, alpha=0.8, label=label, **points)


def _name_places(places, arms, names: str, order: list) -> None:
    """Names under the lowest panel where they fit; else the first class of each task, where all arms agree on it."""
    last = places[-1]
    if names == "task":
        step = -(-len(order) // 25)
        last.set_xticks(range(0, len(order), step), [str(name) for name in order[::step]])
        last.set_xlabel("task")
        return
    task_of = [dict(zip(part["class"], part["task"], strict=True)) for _, part in arms]
    same = all(one == task_of[0] for one in task_of)
    last.set_xlabel("class, in order of learning" if same else f"class, in the order of {short(arms[0][0])}")
    if len(order) <= FEW_NAMES:
        labels = [folded(name, 24, 13) for name in order]
        longest = max(len(line) for label in labels for line in label.splitlines())
        last.figure.set_figheight(last.figure.get_figheight() + 0.05 * longest)
        last.set_xticks(range(len(order)), labels, rotation=40, ha="right", rotation_mode="anchor")
    elif same:
        starts = [at for at, name in enumerate(order) if not at or task_of[0][name] != task_of[0][order[at - 1]]]
        last.set_xticks(starts, [f"task {task_of[0][order[at]]}" if k % -(-len(starts) // 12) == 0 else ""
                                 for k, at in enumerate(starts)], ha="left", fontsize=7.5)  # fmt: skip
        for axes in places:
            for at in starts[1:]:
                axes.axvline(at - 0.5, color="#cccccc", linewidth=0.8, zorder=0)
    else:
        last.set_xticks([])


# ---------------------------------------------------------------- where images go


@styled
def flow_maps(
    table: "pd.DataFrame",
    title: str = "Where do each task's test images go, stage by stage?",
    at_most: int = 12,
) -> "Figure":
    """A small heat map a stage from the second: rows the images' task, columns the task they are taken for.

    table: `analysis.task_flow` of one run. Of more stages than `at_most` some are drawn, evenly spaced, with the last.
    """
    stages = [stage for stage in sorted({*table["after_task"]}) if stage > 1 or table["after_task"].max() == 1]
    if len(stages) > at_most:
        title += f"\n({at_most} of {len(stages)} stages; the table has all)"
        stages = [stages[at] for at in np.linspace(0, len(stages) - 1, at_most).round().astype(int)]
    n = int(table["after_task"].max())
    figure, places = panels.grid(len(stages), {4: 2}.get(len(stages), 3 if len(stages) <= 6 else 4), 2.5, 2.5, title)
    for axes, stage in zip(places, stages, strict=True):
        values = np.full((n, n), np.nan)
        part = table[table["after_task"] == stage]
        values[part["from_task"] - 1, part["to_task"] - 1] = part["share"]
        picture = panels.small_heat_map(axes, values)
        axes.set_title(f"after task {stage}", fontsize=8)
        axes.set_xlabel("taken for task", fontsize=7.5)
        axes.set_ylabel("images of task", fontsize=7.5)
    panels.marked_bar(figure, picture, places, "share of the task's images (%)")
    return figure


@styled
def theft_bars(
    table: "pd.DataFrame", title: str = "Which new class took which old one's images?", at_most: int = 25
) -> "Figure":
    """A bar a theft, the largest above, named by both classes. table: `analysis.top_thefts` of one run."""
    shown = table.head(at_most)
    if not len(shown):
        figure, axes = plotstyle.figure(5.0, 1.2)
        axes.text(0.5, 0.5, "No new class took any image of an old one.", ha="center", va="center")
        axes.set_axis_off()
        axes.set_title(title)
        return figure
    figure, axes = plotstyle.figure(8.0, 0.27 * len(shown) + 1.3)
    panels.question(figure, title)
    at = np.arange(len(shown))
    axes.barh(at, shown["gained"], 0.75, color=plotstyle.colour(1))
    for place, row in enumerate(shown.itertuples()):
        axes.text(row.gained, place, f" {row.gained:.0f}, after task {row.after_task}", va="center", fontsize=7.5)
    pairs = zip(shown["from_class"], shown["from_task"], shown["to_class"], shown["to_task"], strict=True)
    names = [f"{short(a, 20)} (task {i}) → {short(b, 20)} (task {j})" for a, i, b, j in pairs]
    axes.set_yticks(at, names, fontsize=7.5)
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.set_xlim(0, 1.25 * shown["gained"].max())
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("taken by the new class (points of the old one's images)")
    return figure


# ---------------------------------------------------------------- the head


@styled
def recency_curves(
    table: "pd.DataFrame", title: str = "Does the head lean to the newest task?", at_most: int = panels.MOST
) -> "Figure":
    """Three panels over stages: predictions, logits, and weights of new against old classes; the line is no leaning.

    table: `analysis.recency_over_time`, or `recency_bias`, which has no weights.
    """
    wanted = {
        "bias": ("predicted to be newest −\ntruly newest (points)", 0),
        "logit_gap": ("largest newest logit − largest\nold one, old images (logits)", 0),
        "norm_ratio": ("length of the newest classes'\nweights over the old ones' (ratio)", 1),
    }
    wanted = {name: what for name, what in wanted.items() if name in table and table[name].notna().any()}
    arms, note = panels.arms_of(table, at_most)
    figure, places = panels.grid(len(wanted), 3, 3.2, 2.8, title + note)
    for axes, (column, (label, none)) in zip(places, wanted.items(), strict=True):
        panels.lines(axes, arms, "after_task", column)
        axes.axhline(none, color="black", linewidth=0.9)
        axes.set_ylabel(label, fontsize=7.5)
        panels.stages(axes, table["after_task"])
    panels.legend_below(figure, places[0])
    return figure


@styled
def weight_norms(
    table: "pd.DataFrame", title: str = "Are the newest classes' weights longer?", at_most: int = panels.MOST
) -> "Figure":
    """A panel an arm, a line a stage, the later the darker: mean length of the weights of each task's classes.

    table: `analysis.norms_by_task`. At most five stages are drawn; where no weights were found the panel says so.
    """
    from matplotlib import colormaps

    arms, note = panels.arms_of(table, at_most)
    figure, places = panels.grid(len(arms), 3, 2.9, 2.4, title + note, True, True)
    stages = sorted({*table["after_task"]})
    chosen = [stages[at] for at in sorted({*np.linspace(0, len(stages) - 1, STAGES_SHOWN).round().astype(int)})]
    for axes, (arm, rows) in zip(places, arms, strict=True):
        axes.set_title(folded(arm, 48, 34), fontsize=8)
        panels.stages(axes, table["task"], "classes of task")
        if rows["norm"].isna().all():
            axes.text(0.5, 0.5, "no weights: not linear,\nor too few images", ha="center", va="center", fontsize=8,
                      transform=axes.transAxes)  # fmt: skip
        for k, stage in enumerate(chosen):
            part = rows[(rows["after_task"] == stage) & rows["norm"].notna()]
            shade = colormaps["cividis"](0.85 * (1 - k / max(1, len(chosen) - 1)))
            style = {"color": shade, "marker": plotstyle.MARKERS[k % 6], "markersize": 4}
            axes.plot(part["task"], part["norm"], label=f"after task {stage}", **style)
    panels.from_zero(places)
    for axes in places[::3]:
        axes.set_ylabel("mean length of weights")
    panels.legend_below(figure, places[0])
    return figure


@styled
def alignment(
    by_stage: "pd.DataFrame",
    by_task: "pd.DataFrame",
    title: str = "What does alignment give back, and to which tasks?",
    chance: Chance = None,
    joint: float | None = None,
) -> "Figure":
    """Left, accuracy over all classes seen by stage; right, on each task in the end; before and after alignment.

    by_stage, by_task: `analysis.alignment_by_stage` and `_by_task` of one run. chance by stage holds left only.
    """
    figure, (left, right) = panels.grid(2, 2, 3.9, 3.0, title)
    styles = {"before": (1, "o", ":"), "after": (2, "s", "-")}
    for name, (place, marker, linestyle) in styles.items():
        look = {"color": plotstyle.colour(place), "marker": marker, "markersize": 5}
        left.plot(by_stage["after_task"], by_stage[name], linestyle=linestyle, label=f"{name} alignment", **look)
        right.plot(by_task["task"], by_task[name], linestyle="none", **look)
    right.vlines(by_task["task"], by_task["before"], by_task["after"], color="#999999", linewidth=1.2, zorder=0)
    plotstyle.references(left, chance, joint)
    plotstyle.references(right, None if isinstance(chance, Mapping) else chance, joint)
    panels.from_zero([left, right])
    panels.stages(left, by_stage["after_task"])
    panels.stages(right, by_task["task"], "task, after the last one")
    left.set_ylabel("accuracy on all classes seen (%)")
    right.set_ylabel("accuracy on the task (%)")
    panels.legend_below(figure, left)
    return figure


@styled
def calibration_curves(
    table: "pd.DataFrame",
    title: str = "Is the head as sure as it is right, over time?",
    at_most: int = panels.MOST,
) -> "Figure":
    """Calibration error and negative log-likelihood over stages. table: `analysis.calibration_by_stage`."""
    arms, note = panels.arms_of(table, at_most)
    figure, places = panels.grid(2, 2, 3.6, 2.7, title + note)
    labels = {
        "calibration_error": "calibration error (points)",
        "negative_log_likelihood": "negative log-likelihood (nats)",
    }
    for axes, (column, label) in zip(places, labels.items(), strict=True):
        panels.lines(axes, arms, "after_task", column)
        axes.set_ylabel(label)
        panels.stages(axes, table["after_task"])
    panels.from_zero(places)
    panels.legend_below(figure, places[0])
    return figure


# ---------------------------------------------------------------- head or backbone


@styled
def head_and_representation(
    table: "pd.DataFrame",
    title: str = "Did the head forget, or the backbone?",
    chance: Chance = None,
    joint: float | None = None,
    at_most: int = panels.MOST,
) -> "Figure":
    """A panel an arm: own head, and classifiers cross-fitted on the saved test features, over stages.

    table: `analysis.head_and_representation`. Where the own head falls and the others stay, the head forgot.
    """
    lines = {
        "own_head": ("own head", 1, "o", "-"),
        "crossfit_linear": ("linear, cross-fitted on test features", 0, "s", "--"),
        "crossfit_nearest_mean": ("nearest mean, cross-fitted on test features", 2, "D", "-."),
    }
    arms, note = panels.arms_of(table, at_most)
    figure, places = panels.grid(len(arms), 3, 3.0 if len(arms) > 1 else 5.4, 2.5, title + note, True, True)
    for axes, (arm, rows) in zip(places, arms, strict=True):
        for column, (label, place, marker, linestyle) in lines.items():
            style = {"color": plotstyle.colour(place), "marker": marker, "linestyle": linestyle, "markersize": 4.5}
            axes.plot(rows["after_task"], rows[column], label=label, **style)
        plotstyle.references(axes, chance, joint)
        axes.set_title(folded(arm, 48, 34), fontsize=8)
        panels.stages(axes, table["after_task"])
    panels.from_zero(places)
    for axes in places[::3]:
        axes.set_ylabel("accuracy on all\nclasses seen (%)")
    panels.legend_below(figure, places[0])
    return figure


@styled
def heads_beside_probes(
    table: "pd.DataFrame",
    title: str = "What does the final backbone still know?",
    chance: float | None = None,
    joint: float | None = None,
    at_most: int = panels.MOST,
) -> "Figure":
    """A row an arm: its heads, and probes trained on all training images. table: `analysis.heads_beside_probes`."""
    if not len(table):
        raise UserError("a figure of an empty table cannot be drawn; it needs at least one row.")
    shown = table.head(at_most).dropna(axis=1, how="all")
    figure, axes = plotstyle.figure(7.6, 0.42 * len(shown) + max(1.4, 0.2 * len(shown.columns)))
    rows = np.arange(len(shown))
    for k, column in enumerate(shown):
        style = {"color": plotstyle.colour(k), "marker": plotstyle.MARKERS[k % 6], "markersize": 7 - 0.4 * (k > 1)}
        axes.plot(shown[column], rows, linestyle="none", label=folded(column, 60, 26), **style)
    for value, linestyle, name in ((joint, "--", "joint training"), (chance, ":", "chance")):
        if value is not None:
            axes.axvline(value, color="black", linestyle=linestyle, linewidth=1.1, label=f"{name} ({value:.1f})")
    axes.set_yticks(rows, [folded(name, 48, 24) for name in shown.index])
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.set_xlim(0, None)
    axes.set_xlabel("last accuracy (%)")
    panels.question(figure, title + panels.left_out(len(table), at_most, "arms"))
    plotstyle.legend_beside(axes)
    return figure


# ---------------------------------------------------------------- drift


@styled
def feature_drift(
    table: "pd.DataFrame",
    title: str = "How far has the feature space moved since the first task?",
    at_most: int = panels.MOST,
) -> "Figure":
    """Similarity to the features after task 1, and the angle of the leading directions to them, on its images.

    table: `analysis.feature_drift`.
    """
    arms, note = panels.arms_of(table[table["earlier"] == 1], at_most)
    figure, places = panels.grid(2, 2, 3.6, 2.7, title + note)
    labels = {"cka": ("linear CKA with task 1 (0 … 1)", 1.03), "angle_mean": ("mean angle to task 1 (degrees)", 92)}
    for axes, (column, (label, top)) in zip(places, labels.items(), strict=True):
        panels.lines(axes, arms, "later", column)
        axes.set_ylabel(label)
        axes.set_ylim(0, top)
        panels.stages(axes, table["later"])
    panels.legend_below(figure, places[0])
    return figure


@styled
def angle_map(matrix: "pd.DataFrame", title: str = "By what angle do the leading directions turn?") -> "Figure":
    """Angles between stages, (tasks, tasks) in degrees. matrix: `analysis.drift_matrix(…, "angle_mean")`."""
    return parts.heat_map(matrix, title, "", "", "mean angle (degrees)", top=90.0)


@styled
def class_drift(
    table: "pd.DataFrame", title: str = "How far have the class means moved?", at_most: int = panels.MOST
) -> "Figure":
    """A line an arm: mean over old classes of the distance to where they were learnt. `analysis.class_mean_drift`."""
    old = table[table["after_task"] > table["task"]]
    keys = [name for name in ("arm", "after_task") if name in table]
    means = old.groupby(keys, sort=False, as_index=False)["relative"].mean()
    arms, note = panels.arms_of(means, at_most)
    figure, axes = plotstyle.figure(6.4, 3.2)
    panels.lines(axes, arms, "after_task", "relative")
    axes.set(ylabel="moved since learnt\n(distance / spread of the class)", title=title + note)
    panels.stages(axes, old["after_task"])
    panels.from_zero([axes])
    if arms[0][0]:
        plotstyle.legend_beside(axes)
    return figure
