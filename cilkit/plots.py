"""Tables in, figures out: one house style (`plotstyle`), units on every axis, no model and no torch.

Each function takes a table (or images) and returns a matplotlib Figure; `save` writes it with the table behind it.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from cilkit import plotstyle
from cilkit.errors import UserError
from cilkit.plotstyle import save as save
from cilkit.plotstyle import styled

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


# ---------------------------------------------------------------- accuracy


@styled
def accuracy_heat_map(matrix: "pd.DataFrame", title: str = "Accuracy matrix") -> "Figure":
    """The accuracy matrix, (tasks, tasks) in percent: a row a stage, a column a task; blank above the diagonal."""
    named = matrix.rename(index=lambda name: str(name).removeprefix("after "))
    return _heat_map(named, title, "test accuracy on task", "after learning", "accuracy (%)")


@styled
def confusion_map(shares: "pd.DataFrame", title: str = "Where test images go") -> "Figure":
    """Row shares in percent: rows what an image is, columns what it is taken for (tasks or classes)."""
    return _heat_map(shares, title, "taken for", "true", "share of the row's images (%)")


@styled
def similarity_map(similarity: "pd.DataFrame", title: str = "Feature similarity") -> "Figure":
    """Linear CKA between stages, 0 … 1."""
    return _heat_map(similarity, title, "", "", "linear CKA", top=1.0, digits=2)


@styled
def score_map(
    table: "pd.DataFrame", title: str = "", labels: tuple[str, str] = ("", ""), unit: str = "accuracy (%)"
) -> "Figure":
    """A sweep over two settings, in percent: a row and a column a value. labels: what columns and rows are."""
    return _heat_map(table, title, labels[0], labels[1], unit, digits=1)


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
    for place, (arm, rows) in enumerate(_by_arm(table)):
        intervals = {at: mean_interval(values.to_numpy()) for at, values in rows.groupby(x)[y]}
        at, mean = list(intervals), [i.mean for i in intervals.values()]
        axes.plot(
            at, mean, color=plotstyle.colour(place), marker=plotstyle.MARKERS[place % 6], markersize=4.5, label=arm
        )
        if len({*rows["order"]}) > 1:
            low, high = [i.low for i in intervals.values()], [i.high for i in intervals.values()]
            axes.fill_between(at, low, high, color=plotstyle.colour(place), alpha=0.15, linewidth=0)
    plotstyle.references(axes, chance, joint)
    axes.set(xlabel=labels[0], ylabel=labels[1], title=title)
    if table[x].nunique() <= 12:
        axes.set_xticks(sorted({*table[x]}))
    axes.set_ylim(min(0, axes.get_ylim()[0]), None)
    plotstyle.legend_beside(axes)
    return figure


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

    arms = _by_arm(table)
    figure, axes = plotstyle.figure(max(4.0, 1.15 * len(arms) + 2.4), 3.8)
    for _, rows in table.groupby("order"):
        at = rows["arm"].map({arm: place for place, (arm, _) in enumerate(arms)})
        path = rows.assign(at=at).sort_values("at")
        axes.plot(path["at"], path[value], color="#bbbbbb", linewidth=0.8, zorder=1)
    for place, (_, rows) in enumerate(arms):
        interval = mean_interval(rows[value].to_numpy())
        axes.scatter(
            [place] * len(rows), rows[value], s=16, color=plotstyle.colour(place), alpha=0.6, linewidth=0, zorder=2
        )
        error = 0 if np.isnan(interval.half_width) else interval.half_width
        style = {"fmt": plotstyle.MARKERS[place % 6], "markersize": 6, "capsize": 4, "linewidth": 1.8}
        axes.errorbar(place + 0.2, interval.mean, error, color=plotstyle.colour(place), zorder=3, **style)
        axes.annotate(f"{interval.mean:.1f}", (place + 0.27, interval.mean), va="center", fontsize=8, color="#333333")
    plotstyle.references(axes, chance, joint)
    axes.set(ylabel=f"{value} ({unit})", title=title, xlim=(-0.5, len(arms) - 0.1))
    axes.set_xticks(range(len(arms)), [plotstyle.wrapped(arm) for arm, _ in arms])
    axes.grid(axis="x", visible=False)
    if chance is not None or joint is not None:
        plotstyle.legend_beside(axes)
    return figure


# ---------------------------------------------------------------- forgetting


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
    figure, axes = _bars(rows, {label: table[column].to_numpy() for column, label in values.items()})
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
    figure, axes = _bars([str(name) for name in table[names]], heights, widths)
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
    fills = (("#009E73", "white"), ("#56B4E9", "black"), ("#E69F00", "black"), ("#D55E00", "white"))
    for fate, (fill, ink) in zip(fates, fills, strict=True):
        heights = table[fate].to_numpy()
        axes.bar(table["after_task"], heights, 0.7, bottom=base, color=fill, label=plotstyle.wrapped(fate, 24))
        for at, height, low in zip(table["after_task"], heights, base, strict=True):
            if height >= 6:
                axes.text(at, low + height / 2, f"{height:.0f}", ha="center", va="center", fontsize=8, color=ink)
        base = base + heights
    axes.set(xlabel="after learning task", ylabel="share of old classes' images (%)", ylim=(0, 100), title=title)
    axes.set_xticks(table["after_task"])
    axes.grid(visible=False)
    plotstyle.legend_beside(axes, reverse=True)
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


# ---------------------------------------------------------------- how sure, and what it cost


@styled
def class_accuracy_map(table: "pd.DataFrame", title: str = "Accuracy on each class over time") -> "Figure":
    """A row a class in the order of learning, a column a stage. table: `analysis.accuracy_by_class`."""
    return _heat_map(table.T, title, "after learning task", "class", "accuracy (%)")


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
    for place, (arm, table) in enumerate(tables.items()):
        style = {"color": plotstyle.colour(place), "marker": plotstyle.MARKERS[place % 6], "markersize": 4.5}
        error = (table["images"] * (table["accuracy"] - table["confidence"]).abs()).sum() / table["images"].sum()
        label = plotstyle.wrapped(f"{arm} (error {error:.1f} points)", 24)
        axes.plot(table["confidence"], table["accuracy"], label=label, **style)
        below.plot(table["confidence"], 100 * table["images"] / table["images"].sum(), **style)
    plotstyle.references(axes, chance, None)
    axes.set(ylabel="accuracy (%)", title=title, xlim=(0, 100), ylim=(0, 100))
    below.set(xlabel="mean confidence of the bin (%)", ylabel="images (%)", ylim=(0, None))
    plotstyle.legend_beside(axes)
    return figure


def phase_bars(table: "pd.DataFrame", value: str = "seconds", title: str = "What each phase took") -> "Figure":
    """A group of bars a phase, a bar an arm; value: "seconds" or "peak_bytes". table: `analysis.phases`."""
    units = {"seconds": (1, "seconds"), "peak_bytes": (2**20, "peak memory (MiB)")}
    scale, ylabel = units[value]
    wide = table.pivot(index="phase", columns="arm", values=value).loc[list(dict.fromkeys(table["phase"]))] / scale
    arms = {arm: arm for arm, _ in _by_arm(table)}
    return group_bars(wide.reset_index(), "phase", arms, ylabel=ylabel, title=title)


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
    kinds, met = list(dict.fromkeys(table["kind"])), []
    for letter, (arm, rows) in zip("abcdefghijklmnopqrstuvwxyz" * 9, _by_arm(table), strict=False):
        place, interval = kinds.index(rows["kind"].iloc[0]), mean_interval(rows[value].to_numpy())
        error, size = 0 if np.isnan(interval.half_width) else interval.half_width, sizes[arm] or least / 3
        at = size * 1.15 ** sum(abs(np.log(size / other)) < 0.2 for other in met)
        met.append(size)
        style = {"color": plotstyle.colour(place), "capsize": 3, "markersize": 6, "linestyle": "none"}
        of = f" ({rows['kind'].iloc[0]})" if rows["kind"].iloc[0] != arm else ""
        label = plotstyle.wrapped(f"{letter}  {arm}{of}", 42)
        axes.errorbar(at, interval.mean, error, marker=plotstyle.MARKERS[place % 6], label=label, **style)
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


# ---------------------------------------------------------------- images


@styled
def contact_sheet(
    images: "np.ndarray | Sequence[np.ndarray | None]",
    titles: Sequence[str] = (),
    columns: int = 8,
    rows: Sequence[str] = (),
    title: str = "",
    inches: float = 0.8,
) -> "Figure":
    """Images, uint8 (n, h, w, 3) or a list with None for an empty place, in reading order, `columns` a row.

    titles: a short text of a line or two above each image; rows: a name left of each row.
    """
    if not len(images):
        raise UserError("a contact sheet of no images cannot be drawn; choose at least one.")
    from matplotlib.figure import Figure

    columns = min(columns, len(images))
    lines = -(-len(images) // columns)
    longest = max((len(name) for name in rows), default=0)
    left, above = 0.075 * longest + 0.1 * bool(longest), 0.3 * bool(title)
    gap = 0.06 + 0.14 * max((text.count("\n") + 1 for text in titles), default=0)
    width, height = left + columns * (inches + 0.05), above + lines * (inches + gap)
    figure = Figure(figsize=(max(width, 2.5), height), layout="none")
    for i, image in enumerate(images):
        line, column = divmod(i, columns)
        x, y = left + column * (inches + 0.05), height - above - (line + 1) * (inches + gap)
        axes = figure.add_axes((x / figure.get_figwidth(), y / height, inches / figure.get_figwidth(), inches / height))
        axes.set_axis_off()
        if image is not None:
            axes.imshow(image, interpolation="nearest")
        if titles:
            axes.set_title(titles[i], fontsize=6.5, loc="center", pad=2, parse_math=False)  # a model may have said "$"
        if rows and column == 0:
            axes.text(-0.08, 0.5, rows[line], transform=axes.transAxes, ha="right", va="center", fontsize=8)
    if title:
        figure.text(0.01, 1 - 0.08 / height, title, va="top", fontsize=10)
    return figure


@styled
def domain_scatter(points: "pd.DataFrame", title: str = "Real and synthetic features") -> "Figure":
    """Points x, y of the sets in `analysis.projection`."""
    figure, axes = plotstyle.figure(4.6, 4.0)
    for place, (name, rows) in enumerate(points.groupby("set", sort=True)):
        style = {"s": 12, "alpha": 0.55, "linewidth": 0, "marker": plotstyle.MARKERS[place]}
        axes.scatter(rows["x"], rows["y"], color=plotstyle.colour(place), label=f"{name} ({len(rows)})", **style)
    axes.set(xlabel="1st principal direction of the real set", ylabel="2nd principal direction", title=title)
    axes.legend(markerscale=1.8, loc="best")
    return figure


@styled
def histograms(tables: "Mapping[str, pd.DataFrame]", title: str = "", bins: int = 30) -> "Figure":
    """One panel a column, one outline a set, e.g. `analysis.image_statistics` of real and of painted images."""
    from matplotlib.figure import Figure

    columns = list(next(iter(tables.values())).columns)
    figure = Figure(figsize=(2.3 * len(columns) + 0.6, 2.7), layout="constrained")
    panels = figure.subplots(1, len(columns), squeeze=False)[0]
    for axes, column in zip(panels, columns, strict=True):
        edges = np.histogram_bin_edges(np.concatenate([table[column] for table in tables.values()]), bins)
        for place, (name, table) in enumerate(tables.items()):
            weights = np.full(len(table), 100 / len(table))
            style = {
                "histtype": "stepfilled",
                "facecolor": plotstyle.colour(place, 0.2),
                "edgecolor": plotstyle.colour(place),
            }
            axes.hist(table[column], edges, weights=weights, linewidth=1.4, label=name, **style)
        axes.set(xlabel=column, yticks=[])
        axes.spines["left"].set_visible(False)
    panels[0].set_ylabel("share of images")
    figure.suptitle(title, x=0.01, ha="left", fontsize=10)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(tables))
    return figure


# ---------------------------------------------------------------- helpers


def _by_arm(table: "pd.DataFrame") -> list[tuple[str, "pd.DataFrame"]]:
    """Arms in the order in which the table names them."""
    return list(table.groupby("arm", sort=False))


def _bars(names: Sequence[str], heights: Mapping[str, np.ndarray], errors: Mapping[str, np.ndarray] | None = None):
    crowded = len(names) > 8 and max(map(len, names)) > 8  # then the names are turned and stand closer
    longest = max(len(line) for name in names for line in plotstyle.wrapped(name).splitlines())
    for_names = 0.5 if crowded else 0.08 * longest + 0.2  # inches
    figure, axes = plotstyle.figure(max(4.2, len(names) * max(0.42 * len(heights), for_names) + 1.8), 3.4)
    width = 0.8 / len(heights)
    for place, (label, values) in enumerate(heights.items()):
        at = np.arange(len(names)) + (place - (len(heights) - 1) / 2) * width
        error = (errors or {}).get(label)
        axes.bar(at, values, 0.92 * width, yerr=error, capsize=3, color=plotstyle.colour(place), label=label)
    axes.set_xticks(range(len(names)), [plotstyle.wrapped(name) for name in names], rotation=40 if crowded else 0)
    if crowded:
        for text in axes.get_xticklabels():
            text.set(ha="right", rotation_mode="anchor")
    axes.grid(axis="x", visible=False)
    if len(heights) > 1:
        plotstyle.legend_beside(axes)
    return figure, axes


def _heat_map(table, title: str, xlabel: str, ylabel: str, unit: str, top: float = 100.0, digits: int = 0) -> "Figure":
    values = table.to_numpy(float)
    rows, columns = values.shape
    figure, axes = plotstyle.figure(min(10, 0.52 * columns + 2.9), min(9, 0.42 * rows + 1.9))
    picture = axes.imshow(np.ma.masked_invalid(values), cmap="cividis", vmin=0, vmax=top, aspect="auto")
    if max(rows, columns) <= 20:
        for (row, column), value in np.ndenumerate(values):
            if not np.isnan(value):
                ink = "black" if value > 0.55 * top else "white"
                axes.text(column, row, f"{value:.{digits}f}", ha="center", va="center", fontsize=8, color=ink)
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
