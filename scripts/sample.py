"""Copy a sample of the last report into the repository: one executed notebook, three figures with their data.

make report && python scripts/sample.py
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from cilkit.artifacts import atomic_write

HOME = Path(__file__).resolve().parent.parent
RUNS, SAMPLE = HOME / "reports" / "runs", HOME / "reports" / "sample"
NOTEBOOK = "04_slca"
FIGURES = {  # run -> figure
    "02_image_synthesis": "paintings",
    "04_slca": "curves",
    "07_forgetting_analysis-three_arms": "premonition",
}


def main() -> None:
    notebook = json.loads((RUNS / f"{NOTEBOOK}.ipynb").read_text())
    for part in (notebook, *notebook["cells"]):  # when and where it was run is not part of the sample
        for key in ("papermill", "widgets", "execution"):
            part["metadata"].pop(key, None)
    atomic_write(SAMPLE / f"{NOTEBOOK}.ipynb", json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")
    for run, figure in FIGURES.items():
        for path in sorted((RUNS / run).glob(f"{figure}.*")):
            shutil.copyfile(path, SAMPLE / f"{run}-{path.name}")


if __name__ == "__main__":
    main()
