"""Notebooks prepared with the small parameter files: `python -m tests.small_notebooks FOLDER`, before nbval runs them.

`params/<notebook>/small/<name>.yaml` leads a notebook over a benchmark's real loader. What the loader reads is laid out
here, a few made-up images in the form in which the real archive unpacks (`tests/layouts.py`).
"""

import logging
import sys
from pathlib import Path

import papermill

from cilkit.workbook import parameters

sys.path.insert(0, str(Path(__file__).parent))
import layouts

ROOT = Path(__file__).resolve().parents[1]


def small_files() -> list[Path]:
    return sorted(ROOT.glob("params/*/small/*.yaml"))


def prepare(path: Path, folder: Path) -> Path:
    """Lay out the data of one small parameter file and write its notebook, ready to run, into `folder`."""
    notebook = ROOT / "notebooks" / f"{path.parts[-3]}.ipynb"
    values, _ = parameters.check(parameters.declared(notebook), parameters.load_params(path))
    kind, _, place = values.get("benchmark", "").partition(":")
    if root := values.get("benchmark_options", {}).get("root") or (place if kind in ("folder", "hf") else ""):
        layouts.write(path.stem, ROOT / root)
    prepared = folder / f"{notebook.stem}-{path.stem}.ipynb"
    folder.mkdir(parents=True, exist_ok=True)
    papermill.execute_notebook(notebook, prepared, values, prepare_only=True, progress_bar=False)
    return prepared


if __name__ == "__main__":
    logging.getLogger("papermill").setLevel("ERROR")  # it reads annotations by a pattern that unions do not fit
    for file in small_files():
        print(prepare(file, Path(sys.argv[1])))
