"""One test image through time: what was answered to it after each task."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from cilkit import plotstyle
from cilkit.plotstyle import styled

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


@styled
def mind_changes(
    stories: "Mapping[str, pd.DataFrame]", title: str = "When did it change its mind?", seen: Mapping[int, int] = {}
) -> "Figure":
    """Probability of the true class and of the answer after each task, a panel a run; each answer is written down.

    stories: label -> `widgets.telling.story_table`. seen: task -> classes known by then, for the line of chance.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(4.4, 4.4 * len(stories)), 3.6), layout="constrained")
    panels = figure.subplots(1, len(stories), sharey=True, squeeze=False)[0]
    for place, (axes, (label, story)) in enumerate(zip(panels, stories.items(), strict=True)):
        tasks = story["after task"].tolist()
        answer, true = 100 * story["probability"], 100 * story["probability of the true class"]
        axes.plot(tasks, answer, color=plotstyle.COLOURS[1], marker="s", linestyle="--", label="of the answer given")
        axes.plot(tasks, true, color=plotstyle.COLOURS[0], marker="o", label="of the true class")
        if seen:
            chance = [100 / seen[task] for task in tasks]
            axes.plot(tasks, chance, color="black", linestyle=":", linewidth=1.1, label="chance")
        for row, height in zip(story.itertuples(), answer, strict=True):
            said = f"{'right' if row.right else 'wrong'}:\n{str(row.answer)[:18]}"
            ground = {"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.8}
            where = {"xytext": (0, 7), "textcoords": "offset points", "ha": "center"}
            axes.annotate(said, (row[1], height), **where, fontsize=7, bbox=ground)
        axes.set_title(label)
        axes.set_xticks(tasks)
        axes.set_xlabel("after learning task")
        axes.set_ylim(0, 118)
        axes.set_yticks(range(0, 101, 20))
        axes.margins(x=0.12)
        if not place:
            axes.set_ylabel("probability (%)")
    panels[-1].legend(loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0)
    figure.suptitle(title, x=0.01, ha="left", fontsize=10)
    return figure
