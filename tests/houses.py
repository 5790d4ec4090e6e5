"""A small repository of notebooks for tests of sweeps: its own folder, its own artifacts."""

import json
from pathlib import Path

SPEC = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
BOOK = "from cilkit.workbook.start import start\n\nbook = start()"


def notebook(folder: Path, name: str, parameters: str, *sources: str) -> Path:
    """A notebook without nbformat's checks: quick to write, good to run."""
    cells = [("parameters", f"# parameters\n{parameters}"), *((None, source) for source in sources)]
    content = {
        "cells": [
            {
                "cell_type": "code",
                "id": f"cell{place}",
                "metadata": {"tags": [tag]} if tag else {},
                "source": source,
                "outputs": [],
                "execution_count": None,
            }
            for place, (tag, source) in enumerate(cells)
        ],
        "metadata": {"kernelspec": SPEC},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    path = folder / "notebooks" / f"{name}.ipynb"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def house(folder: Path, monkeypatch) -> Path:
    """Notebooks 02 (images), 03 (backbone, of images) and 04 (runs, of a backbone), with parameter files; the working
    directory and the artifacts are in it."""
    (folder / "cilkit").mkdir(parents=True)
    (folder / "cilkit" / "artifacts.py").touch()  # by which a repository is known
    monkeypatch.chdir(folder)
    monkeypatch.setenv("CILKIT_ARTIFACTS", str(folder / "artifacts"))
    notebook(folder, "02_images", "per_class: int = 5", "print(per_class)")
    notebook(folder, "03_backbone", 'images: str = "params/02_images/letters.yaml"\nepochs: int = 2', "print(epochs)")
    cells = 'learner: str = "finetune"\norder_seed: int = 1993\nbatch_size: int = 8\nbenchmark: str = "digits"\n'
    cells += 'backbone: str = "params/03_backbone/birds.yaml"\nown: dict = {"slca": {"lr": 0.1}}\nlr: float = 0.1'
    notebook(folder, "04_run", cells, "print(learner)")
    for name, text in {
        "02_images/letters": "per_class: 7",
        "03_backbone/birds": "epochs: 3",
        "03_backbone/cars": "epochs: 4",
        "04_run/cub": "benchmark: cub\nlr: 0.5",
    }.items():
        path = folder / "params" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return folder


def sweep(folder: Path, text: str, name: str = "x") -> Path:
    path = folder / "params" / "sweeps" / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path
