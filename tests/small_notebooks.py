"""Notebooks prepared with the small parameter files: `python -m tests.small_notebooks FOLDER`, before nbval runs them.

`… FOLDER seldom` prepares those that are left to the long tests: what is peculiar to them is read, painted or asked in
the unit tests of every run, and the notebook's way is that of one that stays.

Those of one notebook follow each other in one file, `<notebook>-small.ipynb`: a kernel's imports take longer than most
of them. A cell between two of them forgets every name, so that none leans on the one before.

`params/<notebook>/small/<name>.yaml` leads a notebook over a real loader. What the loader reads is laid out here: a few
made-up images in the form in which a benchmark's archive unpacks (`tests/layouts.py`), a language model, a diffusion
pipeline or a vision-language model of tiny random parts in the published formats (`tests/tiny_llm.py`,
`tests/tiny_pipelines.py`, `tests/tiny_vlms.py`).
"""

import itertools
import logging
import sys
from pathlib import Path

import nbformat
import papermill

from cilkit.workbook import parameters

sys.path.insert(0, str(Path(__file__).parent))
import layouts
import tiny_llm
import tiny_pipelines
import tiny_vlms

ROOT = Path(__file__).resolve().parents[1]
MADE = "build/test/data/"  # where models are laid out


SELDOM = {
    # loaders: test_benchmarks reads every one in its format
    "00_start_here": "cifar10 domainnet flowers102 food101 imagenet100 imagenet_r inat_plants omniglot pets",
    "02_image_synthesis": "sdxl",  # test_diffusion paints with every kind of pipeline
    "04_slca": "cars196 cub200",
    "06_generative_classifier": "blip2",  # test_vlm answers with every kind of model
}


def small_files(seldom: bool = False) -> list[Path]:
    files = sorted(ROOT.glob("params/[0-9]*/small/*.yaml"))  # those of sweeps are no notebook's
    return [file for file in files if (file.stem in SELDOM.get(file.parts[-3], "").split()) == seldom]


def prepare(path: Path, folder: Path) -> Path:
    """Lay out the data of one small parameter file and write its notebook, ready to run, into `folder`."""
    notebook = ROOT / "notebooks" / f"{path.parts[-3]}.ipynb"
    values, _ = parameters.check(parameters.declared(notebook), parameters.load_params(path))
    kind, _, place = values.get("benchmark", "").partition(":")
    if root := values.get("benchmark_options", {}).get("root") or (place if kind in ("folder", "hf") else ""):
        layouts.write("folder" if kind == "folder" else path.stem, ROOT / root)
    if (place := values.get("llm", "").removeprefix("local:")).startswith(MADE):
        tiny_llm.write(ROOT / place)
    if (place := values.get("generator", "")).startswith(MADE):
        tiny_pipelines.write(Path(place).name.removeprefix("tiny-"), ROOT / place)
    if (place := values.get("backbone", "").removeprefix("vlm:")).startswith(MADE):
        tiny_vlms.write(Path(place).name.removeprefix("tiny-"), ROOT / place)
    if (place := values.get("alignment", {}).get("lm", "")).startswith(MADE):
        tiny_llm.write(ROOT / place)
    prepared = folder / f"{notebook.stem}-{path.stem}.ipynb"
    folder.mkdir(parents=True, exist_ok=True)
    papermill.execute_notebook(notebook, prepared, values, prepare_only=True, progress_bar=False)
    return prepared


def chain(paths: list[Path], folder: Path) -> Path:
    """The prepared notebooks `paths` of one notebook as one file in `folder`, one after the other."""
    whole = nbformat.read(paths[0], as_version=4)
    whole.cells = []
    for number, path in enumerate(paths):
        cells = nbformat.read(path, as_version=4).cells
        for cell in cells:
            cell.id = f"{number}-{cell.id}"[:64]
        whole.cells += [nbformat.v4.new_markdown_cell(f"# {path.stem}"), *cells, nbformat.v4.new_code_cell("%reset -f")]
    chained = folder / f"{paths[0].stem.rpartition('-')[0]}-small.ipynb"
    folder.mkdir(parents=True, exist_ok=True)
    nbformat.write(whole, chained)
    return chained


if __name__ == "__main__":
    logging.getLogger("papermill").setLevel("ERROR")  # it reads annotations by a pattern that unions do not fit
    out = Path(sys.argv[1])
    for _, files in itertools.groupby(small_files("seldom" in sys.argv[2:]), key=lambda file: file.parts[-3]):
        print(chain([prepare(file, out.with_name("parts")) for file in files], out))
