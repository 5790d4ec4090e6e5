"""The house style of all figures: fonts, colours that colour-blind readers can tell apart, reference lines, saving."""

import textwrap
from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING

from cilkit import artifacts

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 150
# Okabe and Ito's palette, without its yellow (too faint on white); black is kept for reference lines.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = "osD^vP"
STYLE = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "figure.constrained_layout.use": True,
    "text.parse_math": False,  # a "$" in a model's class name is a dollar
}


def styled(draw: Callable) -> Callable:
    """Draw in the house style, whatever the reader's own matplotlib settings are."""

    @wraps(draw)
    def styled(*args, **kwargs):
        import matplotlib

        with matplotlib.rc_context(STYLE):
            return draw(*args, **kwargs)

    return styled


def save(figure: "Figure", folder, name: str, table: "pd.DataFrame | None" = None) -> Path:
    """Write `<name>.png` (150 dpi) and, with a table, `<name>.csv`; returns the picture's path."""
    import io

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    if table is not None:
        artifacts.atomic_write(Path(folder) / f"{name}.csv", table.to_csv())
    return artifacts.atomic_write(Path(folder) / f"{name}.png", buffer.getvalue())


def figure(width: float, height: float) -> "tuple[Figure, Axes]":
    """A figure of so many inches with one panel. Not pyplot's: nothing has to be closed."""
    from matplotlib.figure import Figure

    made = Figure(figsize=(width, height), layout="constrained")
    return made, made.subplots()


def colour(place: int, alpha: float = 1.0) -> tuple[float, float, float, float]:
    """The palette's colour number `place`, around and around."""
    from matplotlib.colors import to_rgba

    return to_rgba(COLOURS[place % len(COLOURS)], alpha)


def wrapped(text: str, width: int = 13) -> str:
    """The text in lines of at most `width` characters; a longer word stays whole."""
    return "\n".join(textwrap.wrap(str(text), width, break_long_words=False))


def references(axes: "Axes", chance: Mapping[float, float] | float | None, joint: float | None) -> None:
    """Dashed: joint training; dotted: chance, a number or a number an x."""
    if joint is not None:
        axes.axhline(joint, color="black", linestyle="--", linewidth=1.1, label=f"joint training ({joint:.1f})")
    if isinstance(chance, Mapping):
        axes.plot(list(chance), list(chance.values()), color="black", linestyle=":", linewidth=1.1, label="chance")
    elif chance is not None:
        axes.axhline(chance, color="black", linestyle=":", linewidth=1.1, label=f"chance ({chance:.0f})")


def legend_beside(axes: "Axes", reverse: bool = False) -> None:
    """The legend right of the panel, where it hides nothing."""
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0, reverse=reverse)


def style_of(name: str) -> dict[str, str]:
    """What a learner or an arm of this name is drawn with in every figure: {"color", "marker", "linestyle"}."""
    import zlib

    number = zlib.crc32(name.lower().encode())
    return {
        "color": COLOURS[number % 6],
        "marker": MARKERS[number // 6 % 6],
        "linestyle": ("-", "--", "-.", ":")[number // 36 % 4],
    }
