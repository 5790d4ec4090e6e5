"""Shared by all tests: one thread, and notebooks to try things on."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported here or in a kernel
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("JUPYTER_PREFER_ENV_PATH", "1")

import pytest


@pytest.fixture
def write_notebook(tmp_path):
    """`write_notebook(name, *sources, parameters="x: int = 1")` -> path of a small notebook in tmp_path."""
    import nbformat

    def write(name, *sources, parameters="x: int = 1", start=True):
        first = nbformat.v4.new_code_cell(f"# parameters\n{parameters}", metadata={"tags": ["parameters"]})
        cells = [nbformat.v4.new_markdown_cell(f"# {name}"), first]
        if start:
            sources = ["from cilkit.workbook.start import start\n\nbook = start()", *sources]
        cells += [nbformat.v4.new_code_cell(source) for source in sources]
        spec = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
        path = tmp_path / f"{name}.ipynb"
        nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": spec}), path)
        return path

    return write


@pytest.fixture(scope="module")
def stream():
    """Three tasks of two classes of the tiny benchmark; a file with another stream has a fixture of its own."""
    import tiny

    return tiny.stream()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """kind -> the folder of a tiny diffusers pipeline, written when first asked for."""
    import tiny_pipelines

    home, written = tmp_path_factory.mktemp("pipelines"), {}

    def folder(kind):
        if kind not in written:
            written[kind] = tiny_pipelines.write(kind, home / kind)
        return written[kind]

    return folder
