"""The report: a graph of runs that tells the truth, and pages that need nothing from outside."""

import re
from html.parser import HTMLParser

import nbformat
import pytest

from cilkit.errors import UserError
from cilkit.workbook.fragments import fragment
from cilkit.workbook.report import make_report, read_plan
from cilkit.workbook.pages import duration

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
        self.found, self.ids, self.elements, self.handlers = [], set(), set(), []

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
    for page in site.glob("*.html"):
        parser = _read(page)
        assert "script" not in parser.elements and not parser.handlers, page.name
        for address in parser.found:
            assert re.match(r"[\w./#:,%()&=-]*$", address) and "//" not in address, (page.name, address)
            if address.startswith("#"):
                assert address[1:] in parser.ids, (page.name, address)
            elif address != "data:,":
                assert (site / address).is_file(), (page.name, address)
    assert "http" not in (site / "site.css").read_text()

    good = (site / "01_good.html").read_text()
    assert "A &lt;curve&gt;" in good and "files/01_good/curve.png" in good and "base64" not in good
    assert "<b>bold</b>" in good and "best accuracy, %" in good and "commit" in good.lower()
    assert "took" in good and "scikit-learn" in good
    assert (site / "files" / "01_good" / "arms.csv").read_text().splitlines()[1] == "<i>none</i>,31.26"

    (home / "reports" / "runs" / "01_good-other" / "arms.csv").unlink()
    again = make_report(home / "params" / "report.yaml", home=home, log=said.append)
    assert [entry.status.skipped for entry in again] == [True, False, False, False]
    assert [line for line in said if line.endswith("unchanged")] == [line for line in said if "01_good: unch" in line]


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
    assert [duration(s) for s in (0.04, 9.94, 41.2, 99.6, 185)] == [
        "0.0 s",
        "9.9 s",
        "41 s",
        "1 min 40 s",
        "3 min 05 s",
    ]
