"""Images and what they look like in numbers: contact sheets, features, statistics."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from cilkit import plotstyle
from cilkit.errors import UserError
from cilkit.plotstyle import styled

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


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
    styles = plotstyle.styles_of(sorted({*points["set"]}))
    for name, rows in points.groupby("set", sort=True):
        style = {"s": 12, "alpha": 0.55, "linewidth": 0} | {key: styles[name][key] for key in ("color", "marker")}
        axes.scatter(rows["x"], rows["y"], label=f"{name} ({len(rows)})", **style)
    axes.set(xlabel="1st principal direction of the real set", ylabel="2nd principal direction", title=title)
    axes.legend(markerscale=1.8, loc="best")
    return figure


@styled
def histograms(tables: "Mapping[str, pd.DataFrame]", title: str = "", bins: int = 30) -> "Figure":
    """One panel a column, one outline a set, e.g. `analysis.image_statistics` of real and of painted images."""
    from matplotlib.figure import Figure

    columns = list(next(iter(tables.values())).columns)
    figure = Figure(figsize=(2.3 * len(columns) + 0.6, 2.7), layout="constrained")
    looks = plotstyle.styles_of(tables)
    panels = figure.subplots(1, len(columns), squeeze=False)[0]
    for axes, column in zip(panels, columns, strict=True):
        edges = np.histogram_bin_edges(np.concatenate([table[column] for table in tables.values()]), bins)
        for place, (name, table) in enumerate(tables.items()):
            colour = looks[name]["color"]
            weights = np.full(len(table), 100 / len(table))
            style = {
                "histtype": "stepfilled",
                "facecolor": (colour, 0.2),
                "edgecolor": colour,
                "linestyle": ("-", "--", "-.", ":")[place % 4],
            }
            axes.hist(table[column], edges, weights=weights, linewidth=1.4, label=name, **style)
        axes.set(xlabel=column, yticks=[])
        axes.spines["left"].set_visible(False)
    panels[0].set_ylabel("share of images")
    figure.suptitle(title, x=0.01, ha="left", fontsize=10)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(tables))
    return figure
