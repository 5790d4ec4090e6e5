"""What a notebook's outcome depends on, as digests: while they are equal, it need not run again."""

import functools
import hashlib
import json
from pathlib import Path
from typing import Any

import cilkit
from cilkit import artifacts
from cilkit.errors import UserError
from cilkit.workbook.start import versions

PACKAGE = Path(cilkit.__file__).parent
IN_A_KERNEL = ("workbook/__init__.py", "workbook/book.py", "workbook/start.py", "workbook/parameters.py")
AROUND = ("workbook/", "cli.py", "commands/", "assets/site/")  # of these, a notebook sees nothing else


def fingerprint(notebook: dict, values: dict[str, Any]) -> dict[str, Any]:
    """Digests of a notebook's cells, its parameters, the files that they name, and the code below it."""
    cells = [[c["cell_type"], c["source"], sorted(c.get("metadata", {}).get("tags", []))] for c in notebook["cells"]]
    return {
        "cells": _digest(cells),
        "parameters": _digest(values),
        "files": {text: artifacts.sha256_of(path) for text, path in sorted(_files_named(values))},
        "code": code_digest(),
        "versions": versions(),
        "artifacts_root": _digest(str(artifacts.root())),
    }


def all_in_place(book: Path) -> bool:
    """Whether the artifacts (with their digests), figures and tables that a run's `book.json` lists are still there."""
    try:
        listed = json.loads(book.read_text())
        files = [entry["file"] for entry in [*listed["figures"], *listed["tables"]]]
        same = [artifacts.open_artifact(entry["name"]).digest == entry["digest"] for entry in listed["artifacts"]]
        return all(same) and all((book.parent / name).is_file() for name in files)
    except (OSError, ValueError, KeyError, UserError):
        return False


@functools.cache
def code_digest() -> str:
    """One digest of the package's files (sources and assets), without those around a notebook's execution."""
    total = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*")):
        name = path.relative_to(PACKAGE).as_posix()
        if path.is_file() and "__pycache__" not in name and (name in IN_A_KERNEL or not name.startswith(AROUND)):
            total.update(f"{name}\0{artifacts.sha256_of(path)}\n".encode())
    return total.hexdigest()


def _files_named(value: Any) -> set[tuple[str, Path]]:
    """Texts among the parameters that are files in the repository (a parameter file of an earlier notebook)."""
    if isinstance(value, dict):
        return set().union(*map(_files_named, value.values()))
    if isinstance(value, list):
        return set().union(*map(_files_named, value))
    if not isinstance(value, str) or "/" not in value:
        return set()
    path = (artifacts.repository() or Path.cwd()) / value
    return {(value, path)} if path.is_file() else set()


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
