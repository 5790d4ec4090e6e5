"""What a notebook leaves for the report: figures, tables and numbers as files, listed in one `book.json`.

    reports/figures/<notebook>/        or $CILKIT_REPORT_DIR/$CILKIT_RUN/, which `cilkit run` and `cilkit report` set
        book.json                      parameters, versions, commit, artifacts used, and the list of what follows
        <name>.png, <name>.csv         a figure and the table behind it; a table

The executed notebook shows the same things, but nobody has to read numbers back out of printed text.
"""

import html
import math
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cilkit import artifacts, plotstyle
from cilkit.errors import UserError

RECORD = "application/vnd.cilkit.record+json"
HEAVY = 80_000  # bytes of a PNG from which a lighter one is shown in the notebook
UNSEEN = 0.5  # of 256 levels, mean over pixels and channels: drawings change by 0.1 at most, photographs by 2 and more


@dataclass
class Book:
    """Opened by `cilkit.start()`. Every call rewrites `book.json`, so that a stopped notebook leaves what it had."""

    name: str
    path: Path
    parameters: dict[str, Any]
    versions: dict[str, str]
    commit: dict | None
    figures: dict[str, dict] = field(default_factory=dict)
    tables: dict[str, dict] = field(default_factory=dict)
    records: dict[str, Any] = field(default_factory=dict)
    used: dict[str, dict] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.save()

    @property
    def folder(self) -> Path:
        told = os.environ.get("CILKIT_REPORT_DIR")
        base = Path(told).absolute() if told else (artifacts.repository() or Path.cwd()) / "reports" / "figures"
        return base / (os.environ.get("CILKIT_RUN") or self.name)

    @property
    def device(self) -> str:
        """ "cuda", "mps" or "cpu"; imports torch, so ask for it where it is first needed."""
        import torch

        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"

    def figure(self, figure: Any, name: str, table: Any = None, caption: str = "", headline: bool = False) -> None:
        """Save a matplotlib figure as `<name>.png` (and the DataFrame behind it as `<name>.csv`) and show it once.

        `headline=True` puts it on the report's first page. What CILKIT_FIGURES asks for ("paper,pdf,svg") is drawn
        before anything is written, and lies beside the picture.
        """
        from IPython.display import Image, display

        stem = self._stem(name)
        files = plotstyle.files_of(figure)
        plotstyle.write(files, self.folder, stem)
        shows = plotstyle.words(figure)
        entry = {"file": f"{stem}.png", "caption": caption, "headline": headline, "shows": shows}
        if len(files) > 1:
            entry["also"] = [f"{stem}.{kind}" for kind in files if kind != "png"]
        if table is not None:
            entry["table"] = self._csv(table, stem)
        self.figures[stem] = entry
        self.save()
        _close(figure)
        width = int.from_bytes(files["png"][16:20], "big")  # pixels, from the PNG's header
        seen = Image(
            lighter(files["png"]), width=round(width * 96 / plotstyle.context().dpi), alt=f"{caption} {shows}".strip()
        )
        display(seen, metadata={"cilkit": stem})

    def table(self, table: Any, name: str, caption: str = "", digits: int = 1, headline: bool = False) -> None:
        """Save a DataFrame as `<name>.csv` (full precision) and show it with `digits` decimals.

        `headline=True` puts it on the report's first page.
        """
        from IPython.display import display

        stem = self._stem(name)
        self.tables[stem] = {
            "file": self._csv(table, stem),
            "caption": caption,
            "digits": digits,
            "headline": headline,
        }
        self.save()
        if _has_index(table):
            table = table.rename_axis(index=[name or "" for name in table.index.names]).reset_index()
        shown = {"float_format": lambda number: f"{number:.{digits}f}", "index": False, "na_rep": ""}
        texts = {"border": 0, "classes": "mathjax_ignore"}  # a "$" in a class name begins no formula
        titled = f"<caption>{html.escape(caption)}</caption>\n  <thead>" if caption else "<thead>"
        page = table.to_html(**texts, **shown).replace("<thead>", titled, 1)
        text = "\n".join([*([caption] if caption else []), table.to_string(**shown)])
        display({"text/html": page, "text/plain": text}, raw=True)

    def record(self, **numbers: Any) -> None:
        """Note numbers or short texts by name; they stand in `book.json` and in the executed notebook."""
        from IPython.display import display

        from cilkit.workbook.parameters import plain

        noted = {name: _finite(plain(value)) for name, value in numbers.items()}
        self.records.update(noted)
        self.save()
        lines = "\n".join(f"{name} = {value}" for name, value in noted.items())
        display({RECORD: noted, "text/plain": lines}, raw=True)

    def uses(self, *things: Any) -> None:
        """Note artifacts (or anything with an `.artifact`) that this notebook read: the report's provenance."""
        for thing in things:
            artifact = getattr(thing, "artifact", thing)
            if not hasattr(artifact, "digest"):
                raise UserError(
                    f"book.uses got a {type(thing).__name__}; expected an artifact or what a verb returned."
                )
            self.used[artifact.name] = {"stage": artifact.stage, "digest": artifact.digest}
        self.save()

    def save(self) -> None:
        content = {
            "notebook": self.path.name,
            "parameters": _finite(self.parameters),
            "versions": self.versions,
            "commit": self.commit,
            "figures": [{"name": name, **entry} for name, entry in self.figures.items()],
            "tables": [{"name": name, **entry} for name, entry in self.tables.items()],
            "records": self.records,
            "artifacts": [{"name": name, **entry} for name, entry in self.used.items()],
        }
        artifacts.write_json(self.folder / "book.json", content)

    def _csv(self, table: Any, stem: str) -> str:
        text = table.to_csv(index=_has_index(table), lineterminator="\n")
        artifacts.atomic_write(self.folder / f"{stem}.csv", text)
        return f"{stem}.csv"

    @staticmethod
    def _stem(name: str) -> str:
        if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", name):
            raise UserError(f"{name!r} cannot name a figure or table: use small letters, digits, _ and -.")
        return name


def lighter(png: bytes) -> bytes:
    """A heavy PNG with 256 colours where next to nothing changes: a drawing comes to a third of its bytes, so that a
    notebook of many stays small. A picture of photographs stays as it is."""
    if len(png) <= HEAVY:
        return png
    import io

    import numpy as np
    from PIL import Image

    with Image.open(io.BytesIO(png)) as opened:
        image, density = opened.convert("RGB"), opened.info.get("dpi", (0, 0))
    few = image.quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    change = np.abs(np.subtract(image, few.convert("RGB"), dtype=np.int16)).mean()
    buffer = io.BytesIO()
    few.save(buffer, "png", dpi=density)
    return buffer.getvalue() if change <= UNSEEN else png


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: they become None and the word."""
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list) else value


def _has_index(table: Any) -> bool:
    """Whether a DataFrame's index says something (a plain 0, 1, 2 … without a name does not)."""
    import pandas

    return not (isinstance(table.index, pandas.RangeIndex) and table.index.name is None)


def _close(figure: Any) -> None:
    """Forget the figure, so that the inline backend does not show it a second time at the end of the cell."""
    import matplotlib.pyplot as plt

    plt.close(figure)
