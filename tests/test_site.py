"""The report: a graph of runs that tells the truth, and pages that need nothing from outside."""

import json
import re
from dataclasses import asdict
from html.parser import HTMLParser
from urllib.parse import unquote

import nbformat
import pandas as pd
import pytest

from cilkit.commands.site import runs_of
from cilkit.errors import UserError
from cilkit.road.leaderboard import leaderboard
from cilkit.workbook import site
from cilkit.workbook.execute import Status
from cilkit.workbook.fragments import fragment
from cilkit.workbook.pages import duration
from cilkit.workbook.report import make_report, read_plan

HOSTILE = "<script>alert(1)</script><img src='http://out.example/x.png' onerror='alert(2)'><b onclick='x()'>bold</b>"


@pytest.fixture
def home(tmp_path, monkeypatch, write_notebook):
    """A repository with three notebooks: a good one, a failing one, and one that needs the failing one."""
    monkeypatch.setenv("CILKIT_ARTIFACTS", str(tmp_path / "artifacts"))
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "params").mkdir()
    draw = (
        "import pandas as pd\nfrom matplotlib.figure import Figure\n\nfigure = Figure(figsize=(2, 1))\n"
        "table = pd.DataFrame({'arm': ['<i>none</i>', 'foreseen'], 'accuracy': [31.26, x]})\n"
        "book.figure(figure, 'curve', table=table, caption='A <curve>')\n"
        "book.table(table, 'arms', caption='All arms', headline=True)\nbook.record(best=x)"
    )
    show = f"from IPython.display import HTML\n\nHTML({HOSTILE!r})"
    made = [
        write_notebook("01_good", draw, show, parameters="x: float = 71.9  # best accuracy, %"),
        write_notebook("02_bad", "raise RuntimeError('no <b>such</b> class')"),
        write_notebook("03_after"),
    ]
    for path in made:
        path.rename(tmp_path / "notebooks" / path.name)
    (tmp_path / "params" / "other.yaml").write_text("x: 5e1\n")
    plan = [
        "- {notebook: notebooks/01_good.ipynb}",
        "- {notebook: notebooks/01_good.ipynb, params: params/other.yaml}",
        "- {notebook: notebooks/02_bad.ipynb, after: [01_good]}",
        "- {notebook: notebooks/03_after.ipynb, after: [02_bad]}",
    ]
    (tmp_path / "params" / "report.yaml").write_text("\n".join(plan))
    return tmp_path


class _Addresses(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found, self.ids, self.elements, self.handlers, self.inline = [], set(), set(), [], ""

    def handle_data(self, data):
        self.inline += data if self.lasttag == "script" and self.get_starttag_text().startswith("<script") else ""

    def handle_starttag(self, tag, attrs):
        self.elements.add(tag)
        for name, value in attrs:
            if name in ("src", "href", "srcset", "action"):
                self.found.append(value)
            if name == "id":
                self.ids.add(value)
            if name.startswith("on"):
                self.handlers.append(name)


def _read(page):
    parser = _Addresses()
    parser.feed(page.read_text(encoding="utf-8"))
    return parser


def _stands_alone(folder):
    """Every page: no inline script or handler, no outside address, and every link leads to something."""
    pages = {page.name: _read(page) for page in folder.glob("*.html")}
    for name, parser in pages.items():
        assert not parser.handlers and not parser.inline.strip(), name
        assert not parser.elements & {"iframe", "object", "embed", "base", "style"}, name
        assert ("script" in parser.elements) == ("site.js" in parser.found), name
        for address in parser.found:
            if address == "data:,":
                continue
            assert re.match(r"[\w./#%()&=-]*$", address) and "//" not in address, (name, address)
            file, _, place = unquote(address).partition("#")
            assert not file or (folder / file).is_file(), (name, address)
            if place and (not file or file in pages):
                assert place in pages[file or name].ids, (name, address)
    for name in ("site.css", "site.js"):
        text = (folder / name).read_text()
        assert not re.search(r"https?:|//[a-z]|innerHTML|eval\(|@import|url\(", text), name
    return pages


def test_the_report_runs_the_graph_and_its_pages_stand_alone(home):
    said = []
    entries = make_report(home / "params" / "report.yaml", home=home, log=said.append)
    assert [entry.status.state for entry in entries] == ["ok", "ok", "failed", "not run"]
    assert [entry.name for entry in entries] == ["01_good", "01_good-other", "02_bad", "03_after"]
    site = home / "reports" / "site"

    index = (site / "index.html").read_text()
    assert "Runs that did not finish" in index and "RuntimeError: no &lt;b&gt;such&lt;/b&gt; class" in index
    assert "02_bad did not finish" in index
    assert "All arms" in index and "&lt;i&gt;none&lt;/i&gt;" in index and ">31.3<" in index and ">50.0<" in index
    assert "script" not in set().union(*(parser.elements for parser in _stands_alone(site).values()))

    good = (site / "01_good.html").read_text()
    assert "A &lt;curve&gt;" in good and "files/01_good/curve.png" in good and "base64" not in good
    assert "<b>bold</b>" in good and "best accuracy, %" in good and "commit" in good.lower()
    assert "took" in good and "scikit-learn" in good
    assert (site / "files" / "01_good" / "arms.csv").read_text().splitlines()[1] == "<i>none</i>,31.26"

    (home / "reports" / "runs" / "01_good-other" / "arms.csv").unlink()
    again = make_report(home / "params" / "report.yaml", home=home, log=said.append)
    assert [entry.status.skipped for entry in again] == [True, False, False, False]
    assert [line for line in said if line.endswith("unchanged")] == [line for line in said if "01_good: unch" in line]


NASTY = "\"><script>alert('x')</script><img src=//out.example onerror=alert(1)>"


def _write_job(reports, name, state="ok", text="1.0", **status):
    """What a job leaves, without a kernel: executed notebook, book, figure, log and status."""
    cells = reports / "cells"
    (cells / name).mkdir(parents=True, exist_ok=True)
    status = Status(state, "notebooks/04_x.ipynb", f"{name}.ipynb", {"x": 2.0, "note": NASTY}, **status)
    (cells / f"{name}.status.json").write_text(json.dumps(asdict(status)))
    (cells / f"{name}.log").write_text(NASTY)
    if state in ("ok", "failed"):
        made = [nbformat.v4.new_output("display_data", {"image/png": "iVBORw0K"}, metadata={"cilkit": "curve"})]
        made += [nbformat.v4.new_output("stream", text=text)]
        shared = [nbformat.v4.new_markdown_cell("# X\n\nWhy?\n\n## How\n\n[to](#How) [out](//out.example)")]
        shared += [nbformat.v4.new_code_cell("show()", outputs=made)]
        nbformat.write(nbformat.v4.new_notebook(cells=shared), cells / f"{name}.ipynb")
        (cells / name / "curve.png").write_bytes(name.encode())
        figure = {"name": "curve", "file": "curve.png", "caption": "A curve", "headline": False}
        artifact = {"name": "run/0123", "stage": "run", "digest": "ab" * 32}
        book = {"figures": [figure], "tables": [], "records": {}, "versions": {"numpy": "2"}, "artifacts": [artifact]}
        (cells / name / "book.json").write_text(json.dumps(book))


@pytest.fixture
def swept(tmp_path, write_notebook):
    """Reports of a sweep with a job in every state, and one job that no sweep names."""
    reports = tmp_path / "reports"
    (tmp_path / "notebooks").mkdir()
    path = write_notebook("04_x", parameters="x: float = 1.0  # a number\nnote: str = ''", start=False)
    path.rename(tmp_path / "notebooks" / path.name)
    _write_job(reports, "04_x-ok", seconds=12.0, started="2026-01-01")
    _write_job(reports, "04_x-bad", "failed", cell=3, sentence=f"ValueError: {NASTY}")
    _write_job(reports, "04_x-now", "running", cell=5, cells=20, left=130.0)
    _write_job(reports, "04_x-alone", seconds=1.0)
    jobs = [
        {"name": f"04_x-{name}", "notebook": "notebooks/04_x.ipynb", "params": None, "given": {"x": 2.0}, "after": []}
        | {"labels": {"learner": NASTY, "seed": name}}
        for name in ("ok", "bad", "now", "later")
    ]
    (reports / "sweeps" / "small").mkdir(parents=True)
    (reports / "sweeps" / "small" / "sweep.json").write_text(json.dumps({"sweep": "params/small.yaml", "jobs": jobs}))
    return reports


def _board():
    row = {"learner": NASTY, "head": "raw", "benchmark": NASTY, "protocol": "class", "stream": "tasks", "classes": 4}
    row |= {"increments": "2 × 2", "backbone": NASTY, "order_seed": 1993, "last accuracy": 50.0, "seconds: train": 2.0}
    row |= {"cell": "04_x-ok", "bytes stored": 10, "artifact": "run/0123"}
    return leaderboard(pd.DataFrame([row, row | {"head": "aligned"}]))


def test_a_sweep_has_a_page_and_so_has_each_job_in_whatever_state(swept):
    site.build_site([], swept / "site", _board())
    folder = swept / "site"
    pages = _stands_alone(folder)
    assert "site.js" in pages["leaderboard.html"].found and "sweep-small.html" in pages["index.html"].found
    for path in folder.glob("*.html"):
        assert "<script>" not in path.read_text() and "onerror=alert(1)>" not in path.read_text(), path.name
    sweep = (folder / "sweep-small.html").read_text()
    words = ["1 ok", "1 failed", "1 running", "1 waiting", "cell 5 of 20, about 2 min 10 s left", "ValueError", "12 s"]
    assert [word for word in words if word not in sweep] == []
    assert {f"04_x-{name}.html" for name in ("ok", "bad", "now", "later")} <= {*pages["sweep-small.html"].found}
    assert "04_x-alone.html" in pages["jobs-of-no-sweep.html"].found
    assert not [address for address in pages["index.html"].found if address.startswith("04_x-")]  # jobs stay in sweeps
    board = (folder / "leaderboard.html").read_text()
    assert "04_x-ok.html#provenance" in board and "3 jobs not finished" in board and "chance 25.0 %" in board
    assert all(f'href="04_x-{name}.html"' in board for name in ("bad", "now", "later"))
    assert (folder / "files" / "leaderboard").is_dir() and board.count("files/leaderboard/front-") == 2


def test_a_jobs_page_says_where_it_came_from_and_how_to_repeat_it(swept):
    site.build_site([], swept / "site")
    page = (swept / "site" / "04_x-ok.html").read_text()
    assert "run/0123" in page and "digest abababababab" in page and "numpy 2" in page
    left = swept / "site" / "files" / "04_x-ok"
    assert {path.name for path in left.iterdir()} == {
        *("04_x-ok.ipynb", "04_x-ok.log.txt", "status.json", "book.json", "curve.png")
    }
    assert (left / "curve.png").stat().st_ino == (swept / "cells" / "04_x-ok" / "curve.png").stat().st_ino
    assert (left / "04_x-ok.log.txt").stat().st_nlink == 1  # it may still grow
    assert not (swept / "site" / "leaderboard.html").exists() and "leaderboard.html" not in page


def test_the_command_on_a_page_gives_the_parameters_of_the_run(tmp_path, write_notebook):
    import shlex

    from cilkit.workbook import parameters
    from cilkit.workbook.pages import Page

    given = {"x": 0.1, "note": NASTY, "word": "yes", "many": [1, 2], "flag": False, "maybe": "a"}
    types = "x: float = 1.0\nnote: str = ''\nword: Literal['yes', 'no'] = 'no'\nmany: list = []\nflag: bool = True"
    path = write_notebook("04_x", parameters=types + "\nmaybe: str | None = None", start=False)
    known = parameters.declared(path)
    status = Status("ok", "notebooks/04_x.ipynb", "04_x.ipynb", given)
    words = shlex.split(Page("04_x", "04_x", None, status, declared=known, job=True).command)
    assert words[:3] == ["cilkit", "run", "notebooks/04_x.ipynb"] and words[3::3] == ["-p"] * 6
    read = {}
    for name, text in zip(words[4::3], words[5::3], strict=True):  # as `cilkit run` reads them
        a_text = "str" in known[name].type.replace("Literal", "")
        read[name] = text if a_text else parameters.parse_text(text)
    assert parameters.check(known, read)[0] == given


def test_an_unchanged_job_is_not_converted_again(swept, monkeypatch):
    converted = []

    def counted(notebook, folder, prefix, book, pages):
        converted.append(prefix.removeprefix("files/04_x-"))
        return fragment(notebook, folder, prefix, book, pages)

    monkeypatch.setattr(site, "fragment", counted)
    site.build_site([], swept / "site")
    first = {path.name: path.read_text() for path in (swept / "site").glob("04_x-*.html")}
    assert sorted(converted) == ["alone", "bad", "later", "now", "ok"]
    converted.clear()
    _write_job(swept, "04_x-ok", text="another number: 2.0")
    _write_job(swept, "04_x-now", seconds=3.0)
    site.build_site([], swept / "site")
    second = {path.name: path.read_text() for path in (swept / "site").glob("04_x-*.html")}
    assert sorted(converted) == ["now", "ok"] and "another number: 2.0" in second["04_x-ok.html"]
    assert first["04_x-bad.html"] == second["04_x-bad.html"]
    kept = [path for path in (swept / ".site").iterdir() if not (path / "fragment.json").is_file()]
    assert not kept and len(list((swept / ".site").iterdir())) == 5  # what no page shows any more is gone
    for path in (swept / ".site").iterdir():
        (path / "fragment.json").write_text("{")  # half a file is no page
    site.build_site([], swept / "site")
    third = {path.name: path.read_text() for path in (swept / "site").glob("04_x-*.html")}
    assert third == second


@pytest.mark.slow  # two processes that import nbconvert
def test_processes_write_the_pages_that_one_would(swept, monkeypatch):
    site.build_site([], swept / "site")
    one = {path.name: path.read_text() for path in (swept / "site").glob("04_x-*.html")}
    monkeypatch.setattr(site, "FEW", 1)
    (swept / ".site").rename(swept / "gone")
    site.build_site([], swept / "site")
    assert {path.name: path.read_text() for path in (swept / "site").glob("04_x-*.html")} == one


def test_a_notebook_that_cannot_be_read_and_a_broken_sweep_are_named(swept):
    (swept / "cells" / "04_x-ok.ipynb").write_text('{"cells": [')
    site.build_site([], swept / "site")
    assert "the notebook cannot be shown" in (swept / "site" / "04_x-ok.html").read_text()
    (swept / "sweeps" / "small" / "sweep.json").write_text("{")
    with pytest.raises(UserError, match="sweep.json is not readable as JSON: delete it"):
        site.build_site([], swept / "site")


def test_the_sites_command_finds_what_was_run_without_the_plan(swept):
    for path in (swept / "cells").iterdir():
        if path.name.startswith("04_x-ok"):
            (swept / "runs").mkdir(exist_ok=True)
            path.rename(swept / "runs" / path.name)
    (entry,) = runs_of(swept.parent)
    assert (entry.name, entry.notebook.name, entry.status.state) == ("04_x-ok", "04_x.ipynb", "ok")
    site.build_site([entry], swept / "site")
    assert "04_x-ok.html" in _stands_alone(swept / "site")["index.html"].found


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("- {notebook: notebooks/01_god.ipynb}", "did you mean '01_good.ipynb'"),
        ("- {notebook: notebooks/01_good.ipynb, after: [05]}", "no entry above it"),
        ("- {notebook: notebooks/01_good.ipynb, parms: x}", "unknown key 'parms'"),
        ("- {notebook: notebooks/01_good.ipynb, timeout: long}", "is not what this key holds"),
        ("- {params: params/other.yaml}", "lacks `notebook"),
        ("- {notebook: notebooks/02_bad.ipynb, params: params/bad.yaml}", "params/bad.yaml: parameter x = 2.5"),
        ("- {notebook: notebooks/01_good.ipynb}\n- {notebook: notebooks/01_good.ipynb}", "two entries are named"),
        ("notebook: x", "expected a list"),
        ("- {", "not readable as YAML"),
    ],
)
def test_a_plan_that_does_not_fit_runs_nothing(home, line, says):
    plan = home / "params" / "plan.yaml"
    plan.write_text(line)
    (home / "params" / "bad.yaml").write_text("x: 2.5\n")
    with pytest.raises(UserError) as caught:
        read_plan(plan, home)
    assert says in str(caught.value)


def _convert(tmp_path, *cells, pages=(), book=None):
    notebook = nbformat.v4.new_notebook(cells=list(cells))
    return fragment(notebook, tmp_path / "files", "files", book or {}, dict(pages))


def test_links_lead_to_pages_of_the_site_or_are_text(tmp_path):
    text = (
        "# T\n\nQuestion?\n\n[next](02_x.ipynb) [paper](https://out.example/1) ![p](http://out.example/p.png) [a](#no)"
    )
    made = _convert(tmp_path, nbformat.v4.new_markdown_cell(text), pages={"02_x.ipynb": "02_x.html"})
    assert (made.title, made.lead) == ("T", "Question?")
    assert '<a href="02_x.html">next</a> paper p a' in made.body and "out.example" not in made.body


def test_formulas_are_pictures_and_what_cannot_be_drawn_stays_as_its_source(tmp_path):
    text = "As $A_{t,i}$ or\n\n$$\\frac{a}{b}$$\n\nand $\\nosuchthing{x}$ but not `$x$` or $5 alone."
    body = _convert(tmp_path, nbformat.v4.new_markdown_cell(text)).body
    assert body.count("<img") == 2 and 'alt="A_{t,i}"' in body and 'class="formula block"' in body
    assert "<code>\\nosuchthing{x}</code>" in body and "<code>$x$</code>" in body and "$5 alone" in body
    assert len(list((tmp_path / "files").glob("formula_*.svg"))) == 2


def test_widgets_fall_back_to_their_picture_and_progress_bars_to_their_last_line(tmp_path):
    from base64 import b64encode

    widget = {"application/vnd.jupyter.widget-view+json": {"model_id": "1"}, "text/plain": "Gallery(…)"}
    picture = {**widget, "image/png": b64encode(b"\x89PNG").decode()}
    outputs = [
        nbformat.v4.new_output("display_data", data=widget),
        nbformat.v4.new_output("display_data", data=picture),
        nbformat.v4.new_output("stream", name="stderr", text="\r0/2\r1/2\r2/2\ndone\n"),
    ]
    body = _convert(tmp_path, nbformat.v4.new_code_cell("show()", outputs=outputs)).body
    assert "model_id" not in body and "Gallery(…)" in body and "files/cell0_1.png" in body
    assert "2/2\ndone" in body and "1/2" not in body


def test_hostile_html_and_text_are_harmless(tmp_path):
    nasty = (
        HOSTILE + "<style>*{background:url(//x)}</style><a href='javascript:alert(1)'>l</a><iframe src='x'></iframe>"
    )
    outputs = [
        nbformat.v4.new_output("display_data", data={"text/html": nasty}),
        nbformat.v4.new_output("stream", text=nasty),
        nbformat.v4.new_output("display_data", data={"text/markdown": nasty}),
    ]
    body = _convert(tmp_path, nbformat.v4.new_code_cell("x", outputs=outputs)).body
    assert not re.search(r"<(script|style|iframe)|<[^>]*(onerror|onclick|javascript:|//)", body)
    assert "&lt;script&gt;alert(1)" in body


def test_durations_read_well():
    read = {0.04: "0.0 s", 9.94: "9.9 s", 41.2: "41 s", 99.6: "1 min 40 s", 185: "3 min 05 s", 45_010: "12 h 30 min"}
    assert {seconds: duration(seconds) for seconds in read} == read
