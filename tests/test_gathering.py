"""Results: what a job leaves is exact and repeatable, and one table gathers every job at any time."""

import json
import subprocess
import sys

import made_jobs
import pytest

from cilkit import artifacts, outcomes
from cilkit.errors import UserError
from cilkit.road import gathering
from cilkit.runs import Run


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("home")
        patch.setenv("CILKIT_ARTIFACTS", str(folder / "artifacts"))
        yield folder


@pytest.fixture(scope="module")
def slca():
    return made_jobs.run_artifact("slca", hyper={"slow_rate": 0.1})


def test_a_result_holds_every_figure_exactly_and_no_clock(tmp_path, slca):
    folder = made_jobs.job(tmp_path / "04_slca-3f2a", slca, epochs=5)
    result = json.loads(gathering.write_result(folder).read_text())
    assert (result["cell"], result["notebook"]) == ("04_slca-3f2a", "04_slca.ipynb")
    assert result["parameters"] == {"epochs": 5} and result["artifacts"][0]["name"] == slca.name
    (found,), run = result["runs"], Run(slca)
    assert (found["artifact"], found["digest"], found["default_head"]) == (slca.name, slca.digest, "aligned")
    row = outcomes.row(run, "raw")
    clocks = {"seconds: train", "peak bytes: train", "seconds: test", "peak bytes: test"}
    assert row.keys() - found["rows"][0].keys() == clocks | {"source"}
    assert all(row[name] == value for name, value in found["rows"][0].items())
    assert list(found["rows"][0]) == [name for name in row if name not in clocks | {"source"}]  # in their order
    for head in run.heads:
        matrix = [[None if value != value else value for value in row] for row in run.accuracy_of(head).to_numpy()]
        assert found["matrix"][head] == matrix
    assert found["counts"] == [24, 16, 16] and found["hyper"] == {"slow_rate": 0.1}


def test_equal_books_give_equal_bytes_whatever_the_clock_said(tmp_path, slca):
    folder = made_jobs.job(tmp_path / "job", slca)
    first = gathering.write_result(folder).read_bytes()
    measured, kept = slca.path / "measured.json", (slca.path / "measured.json").read_bytes()
    artifacts.write_json(measured, {"phases": {"train": {"seconds": 99.0, "peak_bytes": 1}}, "host": "another"})
    assert gathering.write_result(folder).read_bytes() == first
    measured.write_bytes(kept)


def test_no_book_no_result_and_a_run_that_is_gone_is_said(tmp_path, slca):
    (tmp_path / "empty").mkdir()
    assert gathering.write_result(tmp_path / "empty") is None and not list((tmp_path / "empty").iterdir())
    folder = made_jobs.job(tmp_path / "job", slca)
    book = (folder / "book.json").read_text()
    (folder / "book.json").write_text(book.replace(slca.digest, "0" * 64))
    with pytest.raises(UserError, match=f"{slca.name} is not the one that the notebook used"):
        gathering.write_result(folder)
    (folder / "book.json").write_text(book.replace(slca.name, "run/none"))
    with pytest.raises(UserError, match="no artifact 'run/none'"):
        gathering.write_result(folder)


def test_a_result_needs_neither_torch_nor_pandas(tmp_path, slca):
    folder = made_jobs.job(tmp_path / "job", slca)
    code = "import sys; from cilkit.road.gathering import write_result; write_result(sys.argv[1]); "
    code += "print(sorted({'torch', 'pandas', 'scipy', 'IPython'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]" and (folder / "result.json").exists()
