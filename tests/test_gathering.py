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


# ---------------------------------------------------------------- one table


def cell(home, name, *used, **rest):
    folder = made_jobs.job(home / "reports" / "cells" / name, *used, **rest)
    gathering.write_result(folder)
    return folder


@pytest.fixture
def place(tmp_path):
    (tmp_path / "reports" / "cells").mkdir(parents=True)
    return tmp_path


def test_the_table_has_a_row_a_run_and_head_with_what_tells_them_apart_and_what_a_clock_measured(place, slca):
    slow = made_jobs.run_artifact("slow_learner", hyper={"slow_rate": 0.1, "epochs": 7})
    cell(place, "04_slca-b", slca, slow, threads=1, arms={"b": 1})
    cell(place, "07_forgetting-a", slca, notebook="07_forgetting.ipynb")  # reads a run that 04 made
    cell(place, "04_slca-c", made_jobs.run_artifact("slca", 1996), threads=1, arms={"c": 1})
    table = gathering.gather(place)
    assert len(table) == 6 and table["cell"].tolist() == ["04_slca-b"] * 4 + ["04_slca-c"] * 2
    assert table["page"].iloc[0] == "04_slca-b.html" and table["default head"].tolist() == [False, True] * 3
    assert "threads" not in table and table["arms"].iloc[[0, 4]].tolist() == ['{"b": 1}', '{"c": 1}']
    assert "slow_rate" not in table and "epochs" not in table  # of those that have one, all have the same
    assert not [name for name in table if "seconds" in name or "peak" in name]
    row = table.iloc[1]
    assert row["last accuracy"] == outcomes.row(Run(slca))["last accuracy"] == row[gathering.CURVE][-1]
    first = (place / gathering.TABLE).read_bytes()
    gathering.gather(place)
    assert (place / gathering.TABLE).read_bytes() == first
    found = gathering.results(place)
    assert found["seconds"].tolist() == [3.0] * 6 and found["peak bytes"].tolist() == [1000] * 6
    assert found["seconds: train"].iloc[0] == 2.5


def test_results_gather_again_when_something_came_changed_or_went(place, slca, monkeypatch):
    import shutil

    folder, times = cell(place, "04_slca-a", slca), []
    gather = gathering.gather
    monkeypatch.setattr(gathering, "gather", lambda home: times.append(1) or gather(home))
    assert len(gathering.results(place)) == len(gathering.results(place)) == 2 and len(times) == 1
    other = cell(place, "04_slca-b", made_jobs.run_artifact("slca", 1996))
    assert len(gathering.results(place)) == 4
    gathering.write_result(folder)
    gathering.results(place)
    assert len(times) == 3
    shutil.rmtree(other)
    assert len(gathering.results(place)) == 2 and len(times) == 4
    shutil.rmtree(folder)
    assert len(gathering.results(place)) == 0


def test_a_broken_result_is_named_and_left_out(place, slca, capsys):
    cell(place, "04_slca-a", slca)
    for name, text in (("b", '{"cell": "b"'), ("c", '{"cell": "c", "notebook": "n"}'), ("d", "[]"), ("e", "")):
        (place / "reports" / "cells" / name).mkdir()
        (place / "reports" / "cells" / name / "result.json").write_text(text)
    assert gathering.gather(place)["cell"].tolist() == ["04_slca-a"] * 2
    said = capsys.readouterr().out
    assert said.count("is left out; run its notebook again") == 4 and "cilkit: reports/cells/b/result.json" in said


def sweep(home, name, labels):
    jobs = [{"name": job, "labels": axes} for job, axes in labels.items()]
    artifacts.write_json(home / "reports" / "sweeps" / name / "sweep.json", {"sweep": name, "jobs": jobs})


def test_axes_of_a_sweep_are_columns_and_a_shared_run_keeps_what_its_cells_agree_on(place, slca):
    joint = made_jobs.run_artifact("finetune")
    cell(place, "a", slca, joint)
    cell(place, "b", made_jobs.run_artifact("slca", recency=3.0), joint)
    sweep(place, "s", {"a": {"arm": "whole", "seed": "1993"}, "b": {"arm": "off", "seed": "1993"}})
    table = gathering.gather(place)
    table = table[table["default head"]].set_index("cell")
    assert table["arm"].fillna("").tolist() == ["whole", "", "off"]
    assert table["seed"].tolist() == ["1993"] * 3


def test_a_sweep_is_decided_by_its_cells(place):
    jobs = []
    for seed in range(4):
        for k, learner in enumerate(("slow_learner", "slca")):
            jobs.append(f"{learner}-{seed}")
            cell(place, jobs[-1], made_jobs.run_artifact(learner, seed, seed=2 * seed + k))
    sweep(place, "s", {job: {"method": job[:-2]} for job in jobs})
    spec = {"value": "last accuracy", "by": "learner", "baseline": "slow_learner", "within": 30.0, "at_least": 3}
    enough, (sentence,) = gathering.decide(jobs, spec, place)
    assert enough and sentence.startswith("slca − slow_learner: ") and "over 4, decided" in sentence
    assert gathering.decide(jobs, spec | {"by": "method"}, place) == (enough, [sentence])
    enough, (sentence,) = gathering.decide(jobs[:4] + ["never run"], spec, place)
    assert not enough and "more for ± 30 points (now" in sentence and "over 2)" in sentence
    enough, (sentence,) = gathering.decide(jobs, spec | {"within": 0.01}, place)
    assert not enough
    assert gathering.decide([], spec, place) == (False, [])
    enough, (sentence,) = gathering.decide(jobs, spec | {"baseline": "none"}, place)
    assert not enough and sentence.startswith("not decided: baseline 'none'")
    del spec["baseline"]
    assert gathering.decide(jobs, spec, place)[0]  # against the first arm


def test_a_thousand_cells_gather_in_seconds(place, slca):
    import time

    text = (cell(place, "04_slca-0", slca) / "result.json").read_text()
    for n in range(1, 1000):
        folder = place / "reports" / "cells" / f"04_slca-{n}"
        folder.mkdir()
        (folder / "result.json").write_text(text.replace("04_slca-0", folder.name).replace(slca.digest, f"{n:064d}"))
    begun = time.perf_counter()
    assert len(gathering.gather(place)) == 2000
    assert time.perf_counter() - begun < 8  # 0.7 s on an idle machine


def test_the_command_prints_the_table_and_writes_it_for_others(place, slca, monkeypatch, capsys):
    import cilkit
    from cilkit.cli import main

    monkeypatch.setattr(artifacts, "repository", lambda: place)
    assert main(["results"]) == 2 and "there are no results yet" in capsys.readouterr().err
    cell(place, "a", slca, made_jobs.run_artifact("slow_learner"))
    assert len(cilkit.results()) == 4
    csv, tex = place / "out.csv", place / "out.tex"
    assert main(["results", "--baseline", "slow_learner", "--csv", str(csv), "--latex", str(tex), "--bold"]) == 0
    said = capsys.readouterr().out
    assert "made up" in said and "Last" in said and "slca − slow_learner: too early to say (1 pair so far)" in said
    assert csv.read_text().startswith('method,"made up, last accuracy, mean"') and r"\textbf" in tex.read_text()
    assert main(["results", "--heads", "--value", "Brier score"]) == 0
    assert "slca / head raw" in capsys.readouterr().out
    assert main(["results", "--value", "accuracy"]) == 2 and "no figure 'accuracy'" in capsys.readouterr().err
