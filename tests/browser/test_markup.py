"""What a model or a user wrote shows as text, whatever it is: in tables, records, blocks, cards and views."""

import json
import re
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest
from lab import ROOT
from made_site import HOSTILE, SEEN

from cilkit import progress
from cilkit.workbook import fragments, watching

OUR_OWN = {"div", "p", "strong", "b", "progress", "table", "tr", "th", "td", "caption", "thead", "tbody"}


class _Read(HTMLParser):
    def __init__(self, page):
        super().__init__()
        self.tags, self.text = set(), ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        assert not [name for name, _ in attrs if name.startswith("on")]

    def handle_data(self, data):
        self.text += data


def _is_text(page):
    """`page` (HTML) shows HOSTILE as it was written, in our own elements only, and without formulas."""
    read = _Read(page)
    assert read.tags <= OUR_OWN and HOSTILE in read.text
    assert "mathjax_ignore" in page


def test_scripts_of_views_and_pages_make_no_markup_of_data():
    scripts = [*ROOT.glob("cilkit/**/*.js")]
    assert len(scripts) >= 4
    for path in scripts:
        source = path.read_text()
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|\beval\(", source), path
    for path in ROOT.glob("cilkit/assets/site/*.html"):
        assert path.read_text().count("safe }}") == (path.name == "notebook.html"), path.name  # the cleaned fragment


def test_tables_blocks_and_progress_hold_texts_as_texts(monkeypatch):
    job = SimpleNamespace(name=HOSTILE, label=HOSTILE)
    lines = [watching.Line(job, "failed", SimpleNamespace(sentence=HOSTILE, cell=None, attempt=1))]
    _is_text(watching.as_html(HOSTILE, lines))
    published = []
    monkeypatch.setattr(progress, "publish", lambda bundle, *_: published.append(bundle["text/html"]))
    told = progress.Progress(HOSTILE)
    progress.Block(0.0).show(lambda: told.draw(HOSTILE))
    _is_text(published[0])


def test_a_dollar_in_a_card_begins_no_formula_on_the_site(tmp_path):
    import nbformat

    made = [f'<div class="mathjax_ignore">\n\nwas {kind}\n\n</div>' for kind in ("&#36;x&#36;", "$y$")] + ["as $z$"]
    cells = [nbformat.v4.new_code_cell("x", outputs=[_markdown(text)]) for text in made]
    body = fragments.fragment(nbformat.v4.new_notebook(cells=cells), tmp_path, "files", {}, {}).body
    assert "was $x$" in body and "was $y$" in body and body.count("<img") == 1


def _markdown(text):
    import nbformat

    return nbformat.v4.new_output("display_data", data={"text/markdown": text})


def _card_cell():
    """The cell of notebook 02 that shows a data card."""
    cells = json.loads((ROOT / "notebooks" / "02_image_synthesis.ipynb").read_text())["cells"]
    (source,) = [
        source for source in ("".join(cell["source"]) for cell in cells) if "Markdown(" in source and "card" in source
    ]
    return source


CELLS = f"""
# parameters
note: str = {HOSTILE!r}  # hostile
# %%
import pathlib
from types import SimpleNamespace

import numpy as np
import pandas as pd
from IPython.display import Markdown

import cilkit
from cilkit.data.imagesets import ImageSet
from cilkit.progress import Progress
from cilkit.realms.realm import Concept, Realm
from cilkit.synthesis import cards
from cilkit.synthesis.curation import Decisions
from cilkit.widgets.browsing import Collection
from cilkit.widgets.gallery import Gallery

book = cilkit.start()
frame = pd.DataFrame({{note: [note], "accuracy": [1.0]}}, index=pd.Index([note], name="class"))
realm = Realm(note, "object", (note,), (Concept(note, note, note, note),), ())
cards.write_card(".", realm=realm, counts={{note: 3}}, style=note, rejected={{note: 1}}, rules={{"a": note}})
chosen = SimpleNamespace(artifact=SimpleNamespace(file=pathlib.Path))
images = ImageSet.from_arrays(np.zeros((2, 32, 32, 3), "uint8"), np.array([0, 1]), [note, "b"], ids=["i0", "i1"])
# %%
book.table(frame, "arms", caption=note)
# %%
frame
# %%
book.record(best=note)
# %%
Progress(note, patience=0.0).tell(lambda: note)
# %%
{_card_cell()}
# %%
Gallery(Collection(images, None, Decisions(pathlib.Path("decisions.jsonl")), {{}}), reviewer=note, reasons=[note])
"""


@pytest.mark.slow
def test_in_lab_every_output_shows_texts_as_they_were_written(lab, tmp_path):
    notebook = lab.open(
        [cell.strip() for cell in CELLS.split("# %%\n")], env={"CILKIT_REPORT_DIR": str(tmp_path), "CILKIT_LIVE": "1"}
    )
    notebook.run_all()
    assert notebook.errors() == []
    page = notebook.page
    page.wait_for_timeout(1500)  # formulas are set after the output stands
    notebook.screenshot("markup")
    code_cells = page.locator(".jp-CodeCell")
    assert code_cells.count() == 8
    for place in range(2, 8):
        seen = code_cells.nth(place).locator(".jp-Cell-outputWrapper")
        assert SEEN in " ".join(seen.inner_text().split()), place
        assert seen.locator("mjx-container, script, [onerror]").count() == 0, place
