"""Tables in the README: each stands between `<!-- name -->` and `<!-- /name -->`, and comes from a committed CSV."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd

from cilkit.artifacts import atomic_write

README = Path(__file__).resolve().parent.parent / "README.md"


def markdown(table: pd.DataFrame) -> str:
    """A DataFrame as a Markdown table, the index in the first column."""
    shown = table.reset_index().astype(object).where(table.reset_index().notna(), "")
    lines = [list(shown.columns), ["---"] * shown.shape[1], *shown.to_numpy().tolist()]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def fill(tables: dict[str, str]) -> None:
    """Put each table between its markers."""
    text = README.read_text()
    for name, table in tables.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.S)
        text = pattern.sub(lambda found, table=table: f"{found[1]}{table}\n{found[2]}", text)
    atomic_write(README, text)
