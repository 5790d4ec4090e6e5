"""The form of every notebook: what a reader and the tools rely on, checked without running anything."""

import ast
import re
from pathlib import Path

import nbformat
import pytest

from cilkit.workbook import parameters

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
KERNEL = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def _read(path):
    return nbformat.read(path, as_version=4)


def _code(path):
    return [cell for cell in _read(path).cells if cell.cell_type == "code"]


def test_there_are_notebooks_and_their_numbers_are_their_own():
    numbers = [path.name[:2] for path in NOTEBOOKS]
    assert numbers and all(number.isdigit() for number in numbers) and len(set(numbers)) == len(numbers)


@each_notebook
def test_opens_with_title_question_and_contract(path):
    first = _read(path).cells[0]
    assert first.cell_type == "markdown"
    lines = [line for line in first.source.splitlines() if line.strip()]
    assert lines[0].startswith("# ") and lines[1].startswith("**") and lines[1].endswith("?**")
    rows = re.findall(r"^\| (\w+) \|", first.source, re.MULTILINE)
    assert rows == ["reads", "writes", "runtime"]


@each_notebook
def test_parameters_cell_comes_first_and_start_second(path):
    tagged = [i for i, cell in enumerate(_code(path)) if "parameters" in cell.metadata.get("tags", [])]
    assert tagged == [0]
    cells = _code(path)
    assert cells[0].source.splitlines()[0] == parameters.MARKER
    known = parameters.declared(path)
    assert known, "a notebook without parameters cannot be scaled up"
    assert parameters.check(known, {name: p.default for name, p in known.items()})[1] == []
    assert re.search(r"^book = cilkit\.start\(\)$", cells[1].source, re.MULTILINE)


@each_notebook
def test_cells_are_few_and_short(path):
    cells = _read(path).cells
    assert sum(cell.cell_type == "code" for cell in cells) <= 25
    heading = ""
    for cell in cells:
        if cell.cell_type == "markdown":
            heading = (re.findall(r"^## (.*)", cell.source, re.MULTILINE) or [heading])[-1]
            continue
        lines = [line for line in cell.source.splitlines() if line.strip() and not line.startswith(("import", "from"))]
        limit = 15 if "by hand" in heading.lower() else 40
        assert len(lines) <= limit, f"{path.name}, section {heading!r}: {len(lines)} lines, at most {limit}"


@each_notebook
def test_is_stripped_and_small(path):
    notebook = _read(path)
    assert notebook.metadata == {"kernelspec": KERNEL}
    assert (notebook.nbformat, path.stat().st_size < 100_000) == (4, True)
    for cell in notebook.cells:
        assert set(cell.metadata) <= {"tags"}
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None


@each_notebook
def test_asserts_something_and_ends_with_what_was_seen(path):
    cells = _read(path).cells
    trees = [ast.parse(cell.source) for cell in cells if cell.cell_type == "code"]
    assert any(isinstance(node, ast.Assert) for tree in trees for node in ast.walk(tree))
    assert cells[-1].cell_type == "markdown" and "## What we saw" in cells[-1].source


@each_notebook
def test_ends_with_what_to_try_next(path):
    """Two things at least, each with a parameter, a command or a link, before the way to the next notebook."""
    last = _read(path).cells[-1].source
    assert "\n**Try next**\n" in last
    tried = last.partition("**Try next**")[2].partition("\nNext: ")[0]
    items = re.split(r"^- ", tried, flags=re.MULTILINE)[1:]
    assert len(items) >= 2 and all(re.search(r"`[^`]+`|\]\(", item) for item in items)


@each_notebook
def test_links_lead_somewhere_and_no_path_is_absolute(path):
    for cell in _read(path).cells:
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", cell.source if cell.cell_type == "markdown" else ""):
            assert target.startswith("https://") or (path.parent / target).exists(), target
        assert not re.search(r"(?<![\w.:/])/(home|root|tmp|work|mnt|Users)/", cell.source)


@each_notebook
def test_a_plain_import_of_a_heavy_library_waits_until_it_is_needed(path):
    """The set-up cell stays cheap: torch and what imports it are loaded where they are first used."""
    heavy = {"torch", "torchvision", "timm", "diffusers", "transformers", "sklearn"}
    names = set()
    for node in ast.walk(ast.parse(_code(path)[1].source)):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module.split(".")[0])
    assert not names & heavy


def _parameter_files():
    folders = [folder for folder in (ROOT / "params").iterdir() if folder.is_dir() and folder.name != "sweeps"]
    return sorted(path for folder in folders for path in folder.glob("**/*.yaml"))


@pytest.mark.parametrize("path", _parameter_files(), ids=lambda path: path.relative_to(ROOT / "params").as_posix())
def test_a_parameter_file_holds_declared_parameters_of_its_notebook_only(path):
    notebook = ROOT / "notebooks" / f"{path.relative_to(ROOT / 'params').parts[0]}.ipynb"
    values, notes = parameters.check(parameters.declared(notebook), parameters.load_params(path))
    assert notes == [], "write the value as its declared type"
    files = [value for value in values.values() if isinstance(value, str) and value.startswith("params/")]
    assert all((ROOT / name).is_file() for name in files), files


def test_the_report_plan_fits_together():
    from cilkit.workbook.report import read_plan

    entries = read_plan(ROOT / "params" / "report.yaml", ROOT)
    assert {entry.notebook for entry in entries} == set(NOTEBOOKS), "every notebook is in the report"
