"""The first call of every notebook: checked parameters, versions, and a `Book` for what the notebook leaves behind."""

import ast
import functools
import importlib.metadata
import inspect
import json
import linecache
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from cilkit import artifacts
from cilkit.errors import UserError
from cilkit.workbook import parameters
from cilkit.workbook.book import Book

PACKAGES = ("cilkit", "numpy", "torch", "torchvision", "timm", "diffusers", "transformers", "scikit-learn")


def start() -> Book:
    """Check the parameters of the notebook that runs in this kernel, print where we are, and open its `Book`.

    Called right after the parameters cell. The kernel's own history holds the parameters cell and the one that
    papermill injected after it, so a name that is not declared stops the notebook also under plain papermill. Values
    are coerced by their declared types in the notebook's namespace, with one printed line for each.
    """
    shell = _shell()
    source, injected = cells_of(_history(shell))
    known = parameters.declared_in(source)
    given = {name: shell.user_ns.get(name, parameter.default) for name, parameter in known.items()}
    values, notes = parameters.check(known, given | {name: None for name in injected if name not in known})
    shell.user_ns.update(values)
    _show_texts_as_texts(shell)
    path = notebook_path(source, known, shell.user_ns)
    book = Book(name=path.stem, path=path, parameters=values, versions=versions(), commit=commit())
    for line in [*_header(book, known), *notes]:
        print(line)
    return book


def _shell() -> Any:
    from IPython import get_ipython

    shell = get_ipython()
    if shell is None:
        raise UserError("cilkit.start() was called outside a notebook; scripts call the functions of cilkit directly.")
    return shell


def _show_texts_as_texts(shell: Any) -> None:
    """Let no DataFrame's text become a formula: what a model called a class may hold dollars. Imports no pandas."""

    def page(frame: Any) -> str | None:
        import pandas

        with pandas.option_context("display.html.use_mathjax", False):
            return frame._repr_html_()

    formatters = getattr(getattr(shell, "display_formatter", None), "formatters", {})
    formatter = formatters.get("text/html")
    for module in ("pandas", "pandas.core.frame"):  # as pandas 3 and 2 name it
        if formatter is not None:
            formatter.for_type_by_name(module, "DataFrame", page)


def _history(shell: Any) -> list[str]:
    """Sources of the cells that this kernel has run: its `In`, else Python's line cache.

    nbval executes without history, but every cell's source is kept for tracebacks, under names in one folder.
    """
    history = list(shell.user_ns.get("In", []))
    if any(cell.lstrip().startswith(parameters.MARKER) for cell in history):
        return history
    frame = inspect.currentframe()
    while frame is not None and frame.f_globals is not shell.user_ns:
        frame = frame.f_back
    folder = os.path.dirname(frame.f_code.co_filename) if frame else ""
    return ["".join(entry[2]) for name, entry in linecache.cache.items() if folder and os.path.dirname(name) == folder]


def cells_of(history: list[str]) -> tuple[str, list[str]]:
    """(source of the newest parameters cell, names that a cell injected after it assigns) in a kernel's `In`."""
    source, injected = None, []
    for cell in history:
        first = cell.lstrip().partition("\n")[0].rstrip()
        if first == parameters.INJECTED:
            injected = _assigned(cell)
        elif first.startswith(parameters.MARKER):
            source, injected = cell, []
    if source is None:
        raise UserError(
            f"cilkit.start() found no parameters cell (first line `{parameters.MARKER}`): run it first, then this cell."
        )
    return source, injected


def _assigned(source: str) -> list[str]:
    targets = [t for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Assign) for t in node.targets]
    return [target.id for target in targets if isinstance(target, ast.Name)]


def notebook_path(source: str, known: dict, namespace: dict) -> Path:
    """Which notebook is this? Jupyter tells a kernel nothing reliable, so a told path counts only if its file fits.

    Told by: `cilkit run` (CILKIT_NOTEBOOK), VS Code, Jupyter's session (which a nested papermill inherits from the
    outer notebook). Otherwise the notebook beside us or in `notebooks/` with the same parameters cell.
    """
    told = [
        os.environ.get("CILKIT_NOTEBOOK"),
        namespace.get("__vsc_ipynb_file__"),
        os.environ.get("JPY_SESSION_NAME"),
    ]
    told = [Path(path) for path in told if path]
    repository = artifacts.repository()
    folders = [Path.cwd(), *([repository / "notebooks"] if repository else [])]
    beside = [path for folder in folders for path in sorted(folder.glob("*.ipynb"))]
    for path in told:
        if _declares(path) == known:
            return path
    for path in beside:
        if _source_of(path) == source.strip():
            return path
    for path in [*told, *beside]:  # the cell was edited and not saved yet
        if list(_declares(path) or ()) == list(known) and known:
            return path
    return told[0] if told else Path("notebook.ipynb")


def _source_of(path: Path) -> str | None:
    try:
        return parameters.parameters_cell(json.loads(path.read_text(encoding="utf-8"))).strip()
    except (OSError, ValueError, KeyError, TypeError):  # not a notebook, or without such a cell
        return None


def _declares(path: Path) -> dict | None:
    source = _source_of(path)
    try:
        return None if source is None else parameters.declared_in(source)
    except (UserError, SyntaxError):
        return None


@functools.cache
def versions() -> dict[str, str]:
    """Versions of what decides the results, read from the installed metadata (nothing is imported)."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def commit() -> dict | None:
    """{"sha", "dirty"} of the repository's checkout; None outside git."""
    folder = artifacts.repository()
    sha = _git(folder, "rev-parse", "--short=12", "HEAD") if folder else None
    if not sha:
        return None
    return {"sha": sha, "dirty": bool(_git(folder, "status", "--porcelain", "--untracked-files=no"))}


def _git(folder: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(folder), *arguments]
    environment = os.environ | {"GIT_OPTIONAL_LOCKS": "0"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, env=environment)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _header(book: Book, known: dict) -> list[str]:
    lines = [" · ".join(f"{package} {version}" for package, version in book.versions.items())]
    if book.commit:
        lines.append(f"commit {book.commit['sha']}" + (" with uncommitted changes" if book.commit["dirty"] else ""))
    lines.append(f"artifacts in {shown(artifacts.root())}, figures and tables in {shown(book.folder)}")
    changed = {n: v for n, v in book.parameters.items() if v != known[n].default}
    if changed:
        lines.append("set for this run: " + ", ".join(f"{name} = {value!r}" for name, value in changed.items()))
    return lines


def shown(path: Path) -> str:
    """A path as a reader of the report should see it: from the repository if it lies inside."""
    repository = artifacts.repository()
    inside = repository and path.is_relative_to(repository)
    return path.relative_to(repository).as_posix() if inside else str(path)
