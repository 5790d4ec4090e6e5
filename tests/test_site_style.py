"""What readers of the site need who see little, no colours or nothing: contrast, words for pictures, named tables."""

import re
from pathlib import Path

import nbformat
import pytest
from bs4 import BeautifulSoup
from test_plotstyle import contrast

from cilkit.workbook.fragments import fragment

ASSETS = Path(__file__).resolve().parent.parent / "cilkit" / "assets" / "site"
SHEET = (ASSETS / "site.css").read_text()
TEXT = ("ink", "soft", "accent", "good", "bad", "keyword", "string", "comment", "figure", "name", "call")


def themes() -> dict[str, dict[str, str]]:
    """{theme: {variable: colour}}, the dark one laid over the light one as the sheet does."""
    light, dark = re.findall(r":root \{(.*?)\}", SHEET, re.S)[:2]
    light, dark = (dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", part)) for part in (light, dark))
    return {"light": light, "dark": light | dark}


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_and_controls_stand_out_from_what_is_behind_them(theme):
    """WCAG 2.1: text 4.5 to 1, what tells a control or a state 3 to 1."""
    colours = themes()[theme]
    pairs = {(ink, behind): 4.5 for ink in TEXT for behind in ("page", "panel", "code")}
    pairs |= {(ink, "bad-panel"): 4.5 for ink in ("ink", "bad")}
    pairs |= {(edge, behind): 3 for edge in ("edge", "accent", "good", "bad", "soft") for behind in ("page", "panel")}
    assert colours["page"] != colours["ink"]
    low = {pair: contrast(*(colours[one] for one in pair)) for pair in pairs}
    assert not {pair: round(found, 2) for pair, found in low.items() if found < pairs[pair]}


def test_pictures_lie_on_white_in_the_dark_and_nothing_moves_for_who_asks():
    dark = SHEET[SHEET.index("prefers-color-scheme: dark") :]
    assert re.search(r"img:not\(\.formula\) \{ background: #fff;", dark)
    assert "prefers-reduced-motion: reduce" in SHEET
    assert re.search(r":focus-visible \{ outline: 2px solid", SHEET) and not re.search(r"outline: (0|none)", SHEET)


def test_every_table_of_a_template_has_a_name_and_every_heading_a_scope():
    for template in ASSETS.glob("*.html"):
        text = template.read_text()
        for tag in re.findall(r"<table[^>]*>", text):
            assert "aria-label" in tag, f"{template.name}: {tag}"
        assert not re.findall(r"<th(?![^>]*scope=)[ >][^>]*>", text), template.name


CAPTION = "Accuracy of <b>one</b> & <script>two</script>"


@pytest.fixture
def page(tmp_path):
    """A notebook's figure with three kinds of file and its table, as the site shows them."""
    data = {"image/png": "iVBORw0K", "text/plain": "figure"}
    shown = nbformat.v4.new_output("display_data", data, metadata={"cilkit": "curve"})
    html = "<table><thead><tr><th></th><th>x</th></tr></thead><tbody><tr><th>a</th><td>1</td></tr></tbody></table>"
    table = nbformat.v4.new_output("display_data", {"text/html": html})
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1", outputs=[shown, table])])
    entry = {
        "name": "curve",
        "file": "curve.png",
        "caption": CAPTION,
        "table": "curve.csv",
        "shows": "up: <i>accuracy</i>",
    }
    book = {"figures": [entry | {"also": ["curve.pdf", "curve.svg"]}]}
    return BeautifulSoup(fragment(notebook, tmp_path / "files", "files/x", book, {}).body, "html.parser")


def test_a_figure_says_what_it_shows_and_leads_to_each_of_its_files(page):
    (picture,) = page.find_all("img")
    assert picture["alt"] == f"{CAPTION} up: <i>accuracy</i>" and picture["src"] == "files/x/curve.png"
    links = {link.get_text(): link for link in page.select("figcaption a")}
    assert {name: link["href"] for name, link in links.items()} == {
        "data (CSV)": "files/x/curve.csv", "PDF": "files/x/curve.pdf", "SVG": "files/x/curve.svg"
    }  # fmt: skip
    assert links["SVG"].has_attr("download"), "opened, its scripts would run as a page of the site"


def test_markup_in_a_caption_shows_as_text(page):
    assert not page.find_all(["script", "b", "i"]) and page.figcaption.get_text().startswith(CAPTION)


def test_headings_of_a_notebooks_table_say_what_they_head(page):
    assert [heading["scope"] for heading in page.find_all("th")] == ["col", "col", "row"]
