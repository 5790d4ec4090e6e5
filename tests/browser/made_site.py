"""A site without a kernel: what notebooks, a sweep and a leaderboard leave, with any text where a user's may stand."""

import io
import itertools
import json
from base64 import b64encode
from dataclasses import asdict
from types import SimpleNamespace

import nbformat
import pandas as pd
from matplotlib.figure import Figure

from cilkit.road.leaderboard import leaderboard
from cilkit.workbook import site
from cilkit.workbook.execute import Status

HOSTILE = (
    "<script>alert(1)</script><img src=x onerror=alert(2)> $x$ &amp; \"double\" 'single' \u202eright to left\u202c "
    "[l](javascript:alert(3)) `code` **stars** </td></table><b>bold</b>"
)
SEEN = "<script>alert(1)</script><img src=x onerror=alert(2)> $x$ &amp;"  # how a reader should see its beginning


def png():
    """A small figure as PNG bytes."""
    figure, drawn = Figure(figsize=(4, 2.5), layout="constrained"), io.BytesIO()
    figure.add_subplot().plot([1, 2, 3], [90, 70, 60])
    figure.savefig(drawn, format="png")
    return drawn.getvalue()


def _notebook(text):
    """Cells of all kinds: text, formula, code, printed lines, a table, a picture, a widget's picture, an error."""
    widget = {"application/vnd.jupyter.widget-view+json": {"model_id": "1"}, "text/plain": text}
    out = nbformat.v4.new_output
    table = pd.DataFrame({"class": [text, "b"], "accuracy": [50.0, 25.5]}).to_html(index=False, border=0)
    outputs = [
        out("stream", text=f"{text}\n" + "a line " * 60 + "x" * 300 + "\n"),
        out("stream", name="stderr", text=f"a warning: {text}\n"),
        out("display_data", {"text/html": table, "text/plain": text}),
        out("display_data", {"image/png": b64encode(png()).decode()}, metadata={"cilkit": "curve"}),
        out("display_data", widget | {"image/png": b64encode(png()).decode()}, metadata={"image/png": {"alt": text}}),
        out("error", ename="ValueError", evalue=text, traceback=[f"\x1b[31mValueError\x1b[39m: {text}"]),
    ]
    code = (
        "def measured(x: int = 3) -> float:  # a comment\n    return f'{x}' + \"y\" if x else None\n"
        + "z = 1 + 2 " * 30
    )
    cells = [
        nbformat.v4.new_markdown_cell("# A title of a notebook\n\n**What is asked here?**\n\nAs $A_{t,i}$ falls."),
        nbformat.v4.new_markdown_cell(
            "| reads | writes |\n|---|---|\n| a | b |\n\n## 1. A section\n\n> quoted\n\n- [next](#2.-No)"
        ),
        nbformat.v4.new_code_cell(code, outputs=outputs),
        nbformat.v4.new_markdown_cell("## 2. Another\n\n$$\\frac{a}{b}$$\n\n```python\nx = 1  # code in prose\n```"),
    ]
    return nbformat.v4.new_notebook(cells=cells)


def _run(folder, name, text, state="ok", **status):
    """What a run leaves in `folder`; returns the path of its executed notebook."""
    left = folder / name
    left.mkdir(parents=True)
    made = Status(state, "notebooks/04_slca.ipynb", f"{name}.ipynb", {"note": text, "lr": 0.1}, **status)
    (folder / f"{name}.status.json").write_text(json.dumps(asdict(made)))
    (folder / f"{name}.log").write_text(text)
    nbformat.write(_notebook(text), folder / f"{name}.ipynb")
    (left / "curve.png").write_bytes(png())
    pd.DataFrame({"arm": [text, "joint training"], "accuracy": [31.26, 80.0]}).to_csv(left / "arms.csv", index=False)
    figure = {
        "name": "curve",
        "file": "curve.png",
        "caption": f"A curve. {text}",
        "headline": True,
        "table": "arms.csv",
    }
    table = {"name": "arms", "file": "arms.csv", "caption": f"Arms. {text}", "headline": True, "digits": 1}
    artifact = {"name": "run/0123456789abcdef", "stage": "run", "digest": "ab" * 32}
    book = {"figures": [figure], "tables": [table], "records": {text: text}, "versions": {"numpy": "2.1"}}
    (left / "book.json").write_text(json.dumps(book | {"artifacts": [artifact], "parameters": {"note": text}}))
    return folder / f"{name}.ipynb"


def _board(text):
    """Two benchmarks, three learners, two seeds each."""
    rows = []
    for benchmark, learner, seed in itertools.product(("digits", f"birds {text}"), ("slca", "finetune", text), (0, 1)):
        row = {"learner": learner, "head": "raw", "benchmark": benchmark, "protocol": "class", "stream": "tasks"}
        row |= {"classes": 4, "increments": "2 × 2", "backbone": f"tiny {text}" if text != learner else "tiny"}
        row |= {"order_seed": 1993 + seed, "last accuracy": 50.0 + len(learner) % 7 + seed, "seconds: train": 2.0}
        row |= {"average incremental accuracy": 60.0, "forgetting (max before last)": 10.0, "bytes stored": 10_000}
        rows.append(row | {"cell": "04_slca-ok" if learner == "slca" else "", "artifact": f"run/{learner[:4]}{seed}"})
    return leaderboard(pd.DataFrame(rows))


def build(home, text):
    """Write `home/reports/site` with `text` wherever a user's or a model's may stand; returns the site's folder."""
    reports = home / "reports"
    failed = {"state": "failed", "cell": 3, "sentence": f"ValueError: {text}"}
    paths = {name: _run(reports / "runs", name, text) for name in ("04_slca", "05_generative_replay")}
    _run(reports / "cells", "04_slca-ok", text, seconds=12.0, started="2026-01-01", notes=[f"a note: {text}"])
    _run(reports / "cells", "04_slca-bad", text, **failed)
    _run(reports / "cells", "04_slca-now", text, "running", cell=5, cells=20, left=130.0)
    jobs = [
        {"name": f"04_slca-{name}", "notebook": "notebooks/04_slca.ipynb", "params": None, "given": {"note": text}}
        | {"labels": {"learner": text, "seed": name}, "after": []}
        for name in ("ok", "bad", "now", "later")
    ]
    folder = reports / "sweeps" / "small"
    folder.mkdir(parents=True)
    (folder / "sweep.json").write_text(json.dumps({"sweep": "params/sweeps/small.yaml", "jobs": jobs}))
    entries = []
    for name, path in paths.items():
        status = Status("ok", f"notebooks/{name}.ipynb", path.name, {"note": text}, seconds=40.0, started="2026-01-01")
        entries.append(
            SimpleNamespace(name=name, notebook=home / "notebooks" / path.name, output=path, params=None, status=status)
        )
    entries[1].status = Status(notebook="notebooks/05_generative_replay.ipynb", output=paths[name].name, **failed)
    (home / "notebooks").mkdir()
    cell = nbformat.v4.new_code_cell(
        f"# parameters\nnote: str = {text!r}  # a word: {text}\nlr: float = 0.1  # step size",
        metadata={"tags": ["parameters"]},
    )
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), home / "notebooks" / "04_slca.ipynb")
    site.build_site(entries, reports / "site", _board(text))
    return reports / "site"
