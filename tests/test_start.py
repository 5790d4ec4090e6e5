"""`cilkit.start()` and the Book: what stops a notebook at its first call, and what it leaves in files."""

import json
from types import SimpleNamespace

import nbformat
import pandas
import pytest

from cilkit.errors import UserError
from cilkit.workbook import start as start_module
from cilkit.workbook.start import cells_of, notebook_path, start

CELL = "# parameters\nepochs: int = 3\nlr: float = 0.01\n"


@pytest.fixture
def kernel(monkeypatch, tmp_path):
    """A stand-in for the kernel's shell: runs sources as cells and keeps them in `In`."""
    monkeypatch.setenv("CILKIT_REPORT_DIR", str(tmp_path))
    monkeypatch.setenv("CILKIT_RUN", "here")
    monkeypatch.setenv("CILKIT_ARTIFACTS", str(tmp_path / "artifacts"))
    for name in ("CILKIT_NOTEBOOK", "JPY_SESSION_NAME"):
        monkeypatch.delenv(name, raising=False)
    shell = SimpleNamespace(user_ns={"In": [""]})
    monkeypatch.setattr(start_module, "_shell", lambda: shell)

    def run(*sources):
        for source in sources:
            shell.user_ns["In"].append(source)
            exec(source, shell.user_ns)
        return start()

    run.namespace = shell.user_ns
    return run


def test_an_injected_text_becomes_the_declared_type_and_one_line_says_so(kernel, capsys):
    book = kernel(CELL, "# Parameters\nlr = '1e-4'\n")
    assert kernel.namespace["lr"] == 1e-4 and book.parameters == {"epochs": 3, "lr": 1e-4}
    printed = capsys.readouterr().out.splitlines()
    assert [line for line in printed if "read as" in line] == ["lr: '1e-4' was read as 0.0001, as declared (float)."]
    assert "set for this run: lr = 0.0001" in printed


def test_an_undeclared_injected_name_stops(kernel):
    with pytest.raises(UserError, match="unknown parameter 'epoch': did you mean 'epochs'"):
        kernel(CELL, "# Parameters\nepoch = 5\n")


def test_a_wrong_type_stops_also_when_typed_into_the_cell_itself(kernel):
    with pytest.raises(UserError, match="epochs = 'many': expected int"):
        kernel(CELL.replace("3", "'many'"))


def test_the_newest_parameters_cell_counts_and_forgets_older_injections():
    history = ["", CELL, "# Parameters\nepoch = 1", "epoch + 1", CELL.replace("3", "4")]
    assert cells_of(history) == (history[-1], [])


def test_without_a_parameters_cell_one_sentence_says_what_to_do():
    with pytest.raises(UserError, match="run it first"):
        cells_of(["", "import cilkit"])


def _write(path, source):
    cell = nbformat.v4.new_code_cell(source, metadata={"tags": ["parameters"]})
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), path)
    return path


def test_the_notebook_is_found_by_its_parameters_cell_and_not_by_a_stale_name(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    known = start_module.parameters.declared_in(CELL)
    other = _write(tmp_path / "01_other.ipynb", "# parameters\nrealm: str = 'x'\n")
    mine = _write(tmp_path / "02_mine.ipynb", CELL)
    monkeypatch.setenv("JPY_SESSION_NAME", str(other))  # inherited from an outer notebook
    assert notebook_path(CELL, known, {}) == mine
    edited = CELL.replace("0.01", "0.02")  # edited in Lab, not saved
    assert notebook_path(edited, start_module.parameters.declared_in(edited), {}) == mine
    monkeypatch.setenv("CILKIT_NOTEBOOK", str(_write(tmp_path / "copy.ipynb", CELL)))
    assert notebook_path(CELL, known, {}).name == "copy.ipynb"


def test_book_leaves_files_and_a_list_of_them(kernel, tmp_path):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    book = kernel(CELL)
    figure = Figure(figsize=(2, 1))
    figure.subplots().plot([0, 1])
    table = pandas.DataFrame({"accuracy": [50.04, float("nan")]}, index=["<b>none</b>", "foreseen"])
    book.figure(figure, "curve", table=table, caption="Accuracy, %")
    book.table(table, "arms", headline=True)
    book.record(best=1.5, missing=float("nan"))
    book.uses(SimpleNamespace(artifact=SimpleNamespace(name="run/ab", stage="run", digest="abcd")))
    content = json.loads((tmp_path / "here" / "book.json").read_text())
    assert content["figures"] == [
        {"caption": "Accuracy, %", "file": "curve.png", "headline": False, "name": "curve"}
        | {"shows": "", "table": "curve.csv"}
    ]
    assert content["tables"][0]["headline"] is True and content["records"] == {"best": 1.5, "missing": None}
    assert content["artifacts"] == [{"digest": "abcd", "name": "run/ab", "stage": "run"}]
    kept = pandas.read_csv(tmp_path / "here" / "arms.csv", index_col=0)
    pandas.testing.assert_frame_equal(kept, table, check_names=False)
    assert (tmp_path / "here" / "curve.png").read_bytes()[:4] == b"\x89PNG"


def test_a_shown_table_is_escaped_rounded_and_captioned(kernel, monkeypatch):
    import IPython.display

    shown = []
    monkeypatch.setattr(IPython.display, "display", lambda bundle, **options: shown.append(bundle))
    table = pandas.DataFrame({"accuracy": [50.04, float("nan")]}, index=["<b>none</b>", "foreseen"])
    kernel(CELL).table(table, "arms", caption="Arms & more", digits=1)
    html, text = shown[0]["text/html"], shown[0]["text/plain"]
    assert "<caption>Arms &amp; more</caption>" in html and "&lt;b&gt;none&lt;/b&gt;" in html and "NaN" not in html
    assert ">50.0<" in html and text.splitlines()[0] == "Arms & more"


def test_the_same_figure_gives_the_same_bytes(kernel, tmp_path):
    from matplotlib.figure import Figure

    book = kernel(CELL)
    images = []
    for _ in range(2):
        figure = Figure(figsize=(2, 1))
        figure.subplots().plot([0, 1])
        book.figure(figure, "curve")
        images.append((tmp_path / "here" / "curve.png").read_bytes())
    assert images[0] == images[1]


@pytest.mark.parametrize("name", ["../x", "a b", "", "Ä"])
def test_a_name_that_is_no_file_name_is_refused(kernel, name):
    with pytest.raises(UserError, match="cannot name a figure"):
        kernel(CELL).table(pandas.DataFrame({"a": [1]}), name)


def test_uses_names_what_it_cannot_take(kernel):
    with pytest.raises(UserError, match="got a int"):
        kernel(CELL).uses(3)


@pytest.mark.parametrize("photograph", [False, True])
def test_a_heavy_drawing_is_shown_in_few_colours_and_a_photograph_as_it_is(photograph):
    import io

    import numpy as np
    from PIL import Image

    from cilkit.workbook.book import HEAVY, lighter

    random = np.random.default_rng(0)
    places, colours = random.integers(0, 2000, (500, 700)), random.integers(0, 256, (2000, 3), dtype=np.uint8)
    colours[100:] = colours[random.integers(0, 100, 1900)] if not photograph else colours[100:]
    buffer = io.BytesIO()
    Image.fromarray(colours[places]).save(buffer, "png", dpi=(150, 150))
    png = buffer.getvalue()
    assert len(png) > HEAVY
    shown = lighter(png)
    if photograph:
        assert shown == png
    else:
        with Image.open(io.BytesIO(shown)) as image:
            assert (np.asarray(image.convert("RGB")) == colours[places]).all() and round(image.info["dpi"][0]) == 150
        assert len(shown) < len(png) / 2
    assert lighter(png[:HEAVY]) == png[:HEAVY]  # a light one is not looked at
