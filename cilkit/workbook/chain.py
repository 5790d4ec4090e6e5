"""What a notebook's parameters lead to: the files that they name, and the jobs that make what those describe.

A text among the parameters that is a parameter file (`params/<notebook>/…/x.yaml`) stands for what that notebook makes
with it, so its digest is that of the notebook's resolved parameters and of all that these lead to in turn: a comment
changed in it changes nothing, a changed default two notebooks up changes everything below.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from cilkit import artifacts
from cilkit.errors import UserError
from cilkit.workbook import parameters

Memo = dict[Path, Any]  # what was read once while a graph is made


def files_named(value: Any) -> set[tuple[str, Path]]:
    """(text, path) of the texts among the parameters that are files in the repository."""
    if isinstance(value, dict):
        return set().union(*map(files_named, value.values()))
    if isinstance(value, list):
        return set().union(*map(files_named, value))
    if not isinstance(value, str) or "/" not in value or "\n" in value or len(value) > 1000:
        return set()
    path = (artifacts.repository() or Path.cwd()) / value
    return {(value, path)} if path.is_file() else set()


def notebook_of(path: Path) -> Path | None:
    """The notebook whose parameters a file in `params/<notebook>/` (or a folder below) holds; None for other files."""
    home = artifacts.repository()
    if home is None or path.suffix not in (".yaml", ".yml"):
        return None
    for folder in path.parents:
        notebook = home / "notebooks" / f"{folder.name}.ipynb"
        if notebook.is_file():
            return notebook
    return None


def declared(notebook: Path, memo: Memo) -> dict[str, parameters.Parameter]:
    if notebook not in memo:
        memo[notebook] = parameters.declared(notebook)
    return memo[notebook]


def resolved(notebook: Path, given: dict[str, Any], memo: Memo) -> dict[str, Any]:
    """Every parameter of the notebook: its defaults, and what is given over them, checked."""
    known = declared(notebook, memo)
    values, _ = parameters.check(known, given)
    return {name: parameter.default for name, parameter in known.items()} | values


def loaded(path: Path, memo: Memo) -> dict[str, Any]:
    """A parameter file's content, read once."""
    if path not in memo:
        memo[path] = parameters.load_params(path)
    return memo[path]


def digest_of(path: Path, memo: Memo, below: tuple[Path, ...] = ()) -> str:
    """sha256 of what a file stands for. UserError where parameter files lead to each other in a circle."""
    key = path.with_name(path.name + "#digest")
    if key in memo:
        return memo[key]
    if path in below:
        names = " -> ".join(one.name for one in (*below[below.index(path) :], path))
        raise UserError(f"parameter files name each other in a circle ({names}): one of them must name something else.")
    notebook = notebook_of(path)
    if notebook is None:
        memo[key] = artifacts.sha256_of(path)
    else:
        try:
            values = resolved(notebook, loaded(path, memo), memo)
        except UserError as error:
            raise UserError(f"{path.name}: {error}") from None
        memo[key] = key_of(notebook, values, memo, (*below, path))
    return memo[key]


def key_of(notebook: Path, values: dict[str, Any], memo: Memo, below: tuple[Path, ...] = ()) -> str:
    """sha256 of a notebook's name, its resolved parameters and the content of all that they name."""
    named = {text: digest_of(path, memo, below) for text, path in sorted(files_named(values))}
    content = artifacts.canonical([notebook.stem, without_paths(values, named), sorted(named.values())])
    return hashlib.sha256(content.encode()).hexdigest()


def without_paths(value: Any, named: dict[str, str]) -> Any:
    """The same values with the digests of files in place of their names: a renamed file is the same file."""
    if isinstance(value, dict):
        return {name: without_paths(item, named) for name, item in value.items()}
    if isinstance(value, list):
        return [without_paths(item, named) for item in value]
    return named.get(value, value) if isinstance(value, str) else value
