"""What a notebook's outcome depends on, as digests: while they are equal, it need not run again."""

import functools
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import cilkit
from cilkit import artifacts, plotstyle
from cilkit.errors import UserError
from cilkit.workbook import chain, parameters
from cilkit.workbook.start import versions

PACKAGE = Path(cilkit.__file__).parent
IN_A_KERNEL = ("workbook/__init__.py", "workbook/book.py", "workbook/start.py", "workbook/parameters.py")
AROUND = ("workbook/", "cli.py", "commands/", "assets/site/")  # of these, a notebook sees nothing else


def fingerprint(notebook: dict, values: dict[str, Any], memo: chain.Memo | None = None) -> dict[str, Any]:
    """Digests of a notebook's cells, its parameters, all that they lead to (`chain`), and the code below it."""
    memo = {} if memo is None else memo
    every = {name: parameter.default for name, parameter in parameters.declared(notebook).items()} | values
    named = {text: chain.digest_of(path, memo) for text, path in sorted(chain.files_named(every))}
    cells = [[c["cell_type"], c["source"], sorted(c.get("metadata", {}).get("tags", []))] for c in notebook["cells"]]
    told = os.environ.get(plotstyle.VARIABLE, "")  # of another size, or with further kinds of file
    return ({"figures": told} if told else {}) | {
        "cells": _digest(cells),
        "parameters": _digest(chain.without_paths(every, named)),
        "files": sorted(named.values()),
        "code": code_digest(),
        "versions": versions(),
        "artifacts_root": _digest(str(artifacts.root())),
    }


def all_in_place(book: Path, seen: dict[str, str] | None = None) -> bool:
    """Whether the artifacts (with their digests), figures and tables that a run's `book.json` lists are still there.

    seen: name -> digest of artifacts that were found whole before, which are not looked at again; gets those found now.
    """
    seen = {} if seen is None else seen
    try:
        listed = json.loads(book.read_text())
        entries = [*listed["figures"], *listed["tables"]]
        files = [name for entry in entries for name in (entry["file"], *entry.get("also", ()))]
        for name in (entry["name"] for entry in listed["artifacts"]):
            seen[name] = seen.get(name) or artifacts.open_artifact(name).digest
        same = [seen[entry["name"]] == entry["digest"] for entry in listed["artifacts"]]
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


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
