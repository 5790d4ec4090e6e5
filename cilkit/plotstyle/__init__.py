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

from cilkit.plotstyle.arms import COLOURS as COLOURS
from cilkit.plotstyle.arms import style_of as style_of
from cilkit.plotstyle.arms import styles_of as styles_of
from cilkit.plotstyle.contexts import CONTEXTS as CONTEXTS
from cilkit.plotstyle.contexts import FORMATS
from cilkit.plotstyle.contexts import VARIABLE as VARIABLE
from cilkit.plotstyle.contexts import context as context
from cilkit.plotstyle.contexts import fit as fit
from cilkit.plotstyle.contexts import formats as formats
from cilkit.plotstyle.contexts import use as use
from cilkit.plotstyle.contexts import using as using

DPI = CONTEXTS["notebook"].dpi
MARKERS = "osD^vP"
HATCHES = ("", "//", "..", "xx", "\\\\", "--", "oo", "++", "||", "**")
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
    """Draw in the house style and for the context chosen, whatever the reader's own matplotlib settings are."""

    @wraps(draw)
    def styled(*args, **kwargs):
        import matplotlib

        with matplotlib.rc_context(STYLE | context().style):
            drawn = draw(*args, **kwargs)
            return fit(drawn) if hasattr(drawn, "get_size_inches") else drawn

    return styled


def rendered(figure: "Figure", kind: str = "png", crop: bool = False, note: str = "") -> bytes:
    """A figure as the bytes of a PNG, PDF or SVG: the same figure, the same bytes. note: a description kept in a PNG.

    crop: cut to what was drawn, as a figure needs that somebody laid out by hand; else the size is the figure's own.
    """
    import io

    import matplotlib

    metadata = {
        "png": {"Software": None} | ({"Description": note} if note else {}),
        "pdf": {"CreationDate": None},
        "svg": {"Date": None},
    }[kind]
    # A PDF holds its fonts (TrueType); an SVG its text as text. Ids of an SVG come from the salt, not from chance.
    kept = {"pdf.fonttype": 42, "svg.fonttype": "none", "svg.hashsalt": "cilkit", "savefig.bbox": None}
    buffer = io.BytesIO()
    with matplotlib.rc_context(kept):
        figure.savefig(buffer, format=kind, dpi=context().dpi, bbox_inches="tight" if crop else None, metadata=metadata)
    return buffer.getvalue()


def files_of(figure: "Figure") -> dict[str, bytes]:
    """{"png": …, and what `formats` asks for}. A figure for a notebook is cropped; others keep the size they have."""
    crop = context() is CONTEXTS["notebook"] or figure.get_layout_engine() is None
    return {kind: rendered(figure, kind, crop) for kind in formats()}


def write(files: Mapping[str, bytes], folder, name: str) -> Path:
    """`<name>.png` and its other kinds, each whole; those of an earlier drawing go. Returns the picture's path."""
    for kind in FORMATS:
        path = Path(folder) / f"{name}.{kind}"
        if kind in files:
            artifacts.atomic_write(path, files[kind])
        else:
            path.unlink(missing_ok=True)
    return Path(folder) / f"{name}.png"


def save(figure: "Figure", folder, name: str, table: "pd.DataFrame | None" = None, note: str = "") -> Path:
    """Write `<name>.png` (and what `formats` asks for) and, with a table, `<name>.csv`; returns the picture's path."""
    files = {kind: rendered(figure, kind, note=note) for kind in formats()}
    if table is not None:
        artifacts.atomic_write(Path(folder) / f"{name}.csv", table.to_csv())
    return write(files, folder, name)


def words(figure: "Figure") -> str:
    """What a figure shows, for readers who do not see it: its title, its axes and what its legends name."""
    title = figure._suptitle.get_text() if figure._suptitle is not None else ""
    titles = [title, *(axes.get_title(loc=side) for axes in figure.axes for side in ("left", "center"))]
    legends = [*figure.legends, *(axes.get_legend() for axes in figure.axes)]
    named = [text.get_text() for legend in legends if legend for text in legend.get_texts()]
    axes = [axes for axes in figure.axes if axes.get_xlabel() or axes.get_ylabel()]
    said = [
        "; ".join(dict.fromkeys(filter(None, titles))),
        "across: " + "; ".join(dict.fromkeys(filter(None, (one.get_xlabel() for one in axes)))),
        "up: " + "; ".join(dict.fromkeys(filter(None, (one.get_ylabel() for one in axes)))),
        "shown: " + "; ".join(dict.fromkeys(named)),
    ]
    said = [" ".join(part.split()) for part in said if part and not part.endswith(": ")]
    return ". ".join(said) + "." if said else ""


def figure(width: float, height: float) -> "tuple[Figure, Axes]":
    """A figure of so many inches with one panel. Not pyplot's: nothing has to be closed."""
    from matplotlib.figure import Figure

    made = Figure(figsize=(width, height), layout="constrained")
    return made, made.subplots()


def colour(place: int, alpha: float = 1.0) -> tuple[float, float, float, float]:
    """The palette's colour number `place`, around and around: of tasks and kinds. Arms have `style_of` their name."""
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
    """The legend right of the panel, where it hides nothing; in a paper's column `fit` puts it below."""
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0, reverse=reverse).cilkit_beside = True


def hatches(styles: "Mapping[str, Mapping]") -> dict[str, str]:
    """A pattern for the bars of each arm, so that no bar is told by its colour alone: the colour's, else a free one."""
    found: dict[str, str] = {}
    for name, style in styles.items():
        first = COLOURS.index(style["color"]) if style["color"] in COLOURS else len(HATCHES) - 1
        order = [*HATCHES[first:], *HATCHES[:first]]
        found[name] = next((hatch for hatch in order if hatch not in found.values()), order[0])
    return found
