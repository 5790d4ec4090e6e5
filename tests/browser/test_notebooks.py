"""Every notebook, as a researcher opens it: Run All in JupyterLab, no error anywhere, and nothing but outputs changed.

The first runs in `make test` beside the notebooks' own tests, whose artifacts it finds; the others in `make test-slow`.
"""

import os
import re
import subprocess
import sys

import pytest
from accessible import findings
from lab import ROOT

FIRST = "00_start_here"
PATHS = sorted((ROOT / "notebooks").glob("*.ipynb"))
MOST = 2_000_000  # bytes of a saved notebook; 1,000 thumbnails as widgets would be 11 MB
LONGEST = 600  # seconds for all cells, also where no artifact is there yet
KEYS = re.search(r"^STRIP_KEYS := (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1]


def _run(lab, path, folder):
    """Run All in a copy of `path`; leaves the copy open and returns it."""
    report = {} if "CILKIT_REPORT_DIR" in os.environ else {"CILKIT_REPORT_DIR": str(folder)}
    notebook = lab.open(path, env=report)
    notebook.run_all(timeout=LONGEST)
    assert notebook.errors() == []
    ran = [cell["execution_count"] for cell in notebook.model()["cells"] if cell["cell_type"] == "code"]
    assert ran == list(range(1, len(ran) + 1))
    return notebook


def _saves_as_little(notebook, path):
    saved = notebook.save()
    assert saved.stat().st_size <= MOST
    assert saved.read_bytes() != path.read_bytes()
    command = [sys.executable, "-m", "nbstripout", "--keep-id", "--extra-keys", KEYS, str(saved)]
    subprocess.run(command, check=True)
    assert saved.read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    "path", [pytest.param(p, id=p.stem, marks=[] if p.stem == FIRST else [pytest.mark.slow]) for p in PATHS]
)
def test_a_notebook_runs_in_lab_and_keeps_nothing_but_its_outputs(lab, path, tmp_path):
    notebook = _run(lab, path, tmp_path)
    if notebook.page.locator(".ck").count():
        assert findings(notebook.page, ".ck") == []
    notebook.screenshot(path.stem)
    _saves_as_little(notebook, path)
