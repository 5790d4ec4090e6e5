"""Packages: an untouched one holds, and every way to touch one is found and named, before anything is unpacked."""

import hashlib
import io
import json
import stat
import subprocess
import sys
import warnings
import zipfile

import made_jobs
import numpy as np
import pytest

from cilkit import artifacts
from cilkit.cli import main
from cilkit.errors import UserError
from cilkit.road import checking, gathering, packing
from cilkit.workbook import execute

PARAMS = "params/03_pretraining/small/folder.yaml"
CELLS = [("markdown", "# A", []), ("code", "# parameters\nlr: float = 1.0", ["parameters"]), ("code", "x = 1", [])]


def notebook(*cells):
    made = [
        {"cell_type": kind, "source": text, "metadata": {"tags": tags}, "id": f"c{i}"}
        for i, (kind, text, tags) in enumerate(cells)
    ]
    for cell in made:
        cell |= {"outputs": [{"x": 1}], "execution_count": 3} if cell["cell_type"] == "code" else {}
    return {
        "cells": made,
        "metadata": {"kernelspec": {"name": "python3"}, "papermill": {}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }


def finished(folder, name, *runs, **given):
    """What an executed notebook leaves, as `execute.run_notebook` writes it."""
    output = folder / f"{name}.ipynb"
    gathering.write_result(made_jobs.job(folder / name, *runs, **given))
    injected = ("code", "# Parameters\nlr = 0.1", ["injected-parameters"])
    output.write_text(json.dumps(notebook(*CELLS[:2], injected, *CELLS[2:])))
    status = execute.Status("ok", "notebooks/04_slca.ipynb", output.name, given, commit={"sha": "ab12", "dirty": False})
    execute.write_status(output, status)
    (folder / f"{name}.log").write_text("a line\n")
    return output


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CILKIT_ARTIFACTS", str(tmp_path_factory.mktemp("home") / "artifacts"))
        yield


@pytest.fixture(scope="module")
def run():
    return made_jobs.run_artifact("slca", hyper={"slow_rate": 0.1})


@pytest.fixture(scope="module")
def job(tmp_path_factory, run):
    return finished(tmp_path_factory.mktemp("cells"), "04_slca-3f2a", run, lr=0.1)


@pytest.fixture(scope="module")
def package(tmp_path_factory, job):
    return packing.pack(job, tmp_path_factory.mktemp("packages") / "out.zip")


def contents(package):
    with zipfile.ZipFile(package) as opened:
        return {name: opened.read(name) for name in opened.namelist()}


def write(path, files, manifest=True):
    """A package of these files; `manifest`: hashes as they are now, as a forger would write them."""
    if manifest:
        told = json.loads(files["manifest.json"])
        told["files"] = {
            n: {"sha256": hashlib.sha256(c).hexdigest(), "bytes": len(c)}
            for n, c in files.items()
            if n != "manifest.json"
        }
        files = files | {"manifest.json": json.dumps(told).encode()}
    with zipfile.ZipFile(path, "w") as made:
        for name, content in files.items():
            made.writestr(name, content)
    return path


def test_a_package_holds_the_job_its_outputs_and_cards_and_equal_jobs_give_equal_bytes(tmp_path, job, package, run):
    assert checking.verify(package) == []
    assert packing.pack(job, tmp_path / "twice.zip").read_bytes() == package.read_bytes()
    files = contents(package)
    place = f"artifacts/{run.name}"
    assert {"job/04_slca-3f2a.ipynb", "job/04_slca-3f2a.status.json", "job/04_slca-3f2a.log"} < files.keys()
    assert {"job/04_slca-3f2a/result.json", f"{place}/after_02/logits_raw.npy", f"{place}/measured.json"} < files.keys()
    assert f"provenance/{run.name}/artifact.json" in files and f"{place}/after_02/features.npy" not in files
    manifest = json.loads(files["manifest.json"])
    assert manifest["left_out"] == [f"{place}/after_0{t}/features.npy" for t in range(3)]
    whole = packing.pack(job, tmp_path / "whole.zip", everything=True)
    assert f"{place}/after_02/features.npy" in contents(whole) and checking.verify(whole) == []
    source = json.loads(files["source/notebooks/04_slca.ipynb"])
    assert [(c["cell_type"], c["source"]) for c in source["cells"]] == [cell[:2] for cell in CELLS]
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in source["cells"])


def test_checking_needs_no_torch(package):
    code = "import sys; from cilkit.road.checking import verify; print(verify(sys.argv[1]), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, str(package)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] False"


def test_parameter_files_and_those_they_name_are_packed(tmp_path):
    named = packing.named_files({"backbone": PARAMS, "other": ["params/none.yaml", "/etc/passwd"]})
    assert PARAMS in named and any(name.startswith("params/02_image_synthesis/") for name in named)
    assert not any("passwd" in name for name in named)


def test_a_job_that_cannot_be_packed_is_said(tmp_path, job, run):
    with pytest.raises(UserError, match="no finished job '04_none'"):
        packing.pack("04_none", tmp_path / "out.zip")
    with pytest.raises(UserError, match="name it out.zip"):
        packing.pack(job, tmp_path / "out")
    failed = finished(tmp_path, "failed", run)
    execute.write_status(failed, execute.Status("failed", "notebooks/04_slca.ipynb", failed.name))
    with pytest.raises(UserError, match="failed.ipynb has not ended well"):
        packing.pack(failed, tmp_path / "out.zip")
    other = made_jobs.run_artifact("ewc")
    changed = finished(tmp_path, "changed", other)
    path = other.path / "after_00" / "labels.npy"
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    with pytest.raises(UserError, match=r"after_00/labels.npy was changed after it was written; delete"):
        packing.pack(changed, tmp_path / "out.zip")
    assert not (tmp_path / "out.zip").exists()


# ---------------------------------------------------------------- touched


def logits(content, by=100.0):
    array = np.load(io.BytesIO(content))
    array[:, 0] += by
    kept = io.BytesIO()
    np.save(kept, array)
    return kept.getvalue()


def rehashed(files, run, name):
    """The files with the run's card, and the digest wherever it stands, made to fit a changed payload file."""
    place = f"artifacts/{run.name}"
    card = json.loads(files[f"{place}/artifact.json"])
    for file in card["files"]:
        if file["path"] == name:
            file["sha256"] = hashlib.sha256(files[f"{place}/{name}"]).hexdigest()
    digest = hashlib.sha256(artifacts.canonical([[f["path"], f["sha256"]] for f in card["files"]]).encode()).hexdigest()
    files = files | {f"{place}/artifact.json": json.dumps(card).encode()}
    return {name: text.replace(run.digest.encode(), digest.encode()) for name, text in files.items()}


def test_a_changed_logit_is_found_whoever_covers_it(tmp_path, package, run):
    name = f"artifacts/{run.name}/after_02/logits_raw.npy"
    files = contents(package)
    files[name] = logits(files[name])
    assert checking.verify(write(tmp_path / "a.zip", files, manifest=False)) == [f"{name} was changed"]
    found = checking.verify(write(tmp_path / "b.zip", files))
    assert f"{run.name}: after_02/logits_raw.npy is not the one that its card names" in found
    found = checking.verify(write(tmp_path / "c.zip", rehashed(files, run, "after_02/logits_raw.npy")))
    assert found and not any("card" in problem or "digest" in problem for problem in found)
    assert any(p.startswith(f"{run.name}: last accuracy of head raw is ") and "in result.json" in p for p in found)
    assert any("last accuracy of head raw" in p and "in summary.json" in p for p in found)
    assert any("accuracy matrix of head raw in accuracy_raw.csv" in p for p in found)
    assert any("accuracies by class of head raw" in p for p in found) and not any("aligned" in p for p in found)


@pytest.mark.parametrize("figure", ["last accuracy", "Brier score", "bytes stored", "learner"])
def test_a_changed_figure_is_found_and_named(tmp_path, package, run, figure):
    files = contents(package)
    name = "job/04_slca-3f2a/result.json"
    result = json.loads(files[name])
    row = result["runs"][0]["rows"][1]
    row[figure] = "ewc" if figure == "learner" else row[figure] + 1e-6
    found = checking.verify(write(tmp_path / "a.zip", files | {name: json.dumps(result).encode()}))
    assert len(found) == 1 and found[0].startswith(
        f"{run.name}: {figure} of head aligned is {row[figure]!r} in result.json"
    )


def test_other_changes_of_results_are_found(tmp_path, package, run):
    files, place = contents(package), f"artifacts/{run.name}"
    summary = json.loads(files[f"{place}/summary.json"])
    summary["raw"][0][1] += 1
    forged = rehashed(files | {f"{place}/summary.json": json.dumps(summary).encode()}, run, "summary.json")
    (found,) = checking.verify(write(tmp_path / "a.zip", forged))
    assert "last accuracy of head raw" in found and "in summary.json" in found
    matrix = files[f"{place}/accuracy_raw.csv"].replace(b"after", b"after").split(b"\n")
    matrix[1] = b",1.0,,"
    forged = rehashed(files | {f"{place}/accuracy_raw.csv": b"\n".join(matrix)}, run, "accuracy_raw.csv")
    (found,) = checking.verify(write(tmp_path / "b.zip", forged))
    assert "accuracy matrix of head raw in accuracy_raw.csv" in found
    book = json.loads(files["job/04_slca-3f2a/book.json"]) | {"parameters": {"lr": 0.2}}
    found = checking.verify(
        write(tmp_path / "c.zip", files | {"job/04_slca-3f2a/book.json": json.dumps(book).encode()})
    )
    assert found == ["result.json and book.json differ in parameters"]
    source = json.loads(files["source/notebooks/04_slca.ipynb"])
    source["cells"][2]["source"] = "x = 2"
    found = checking.verify(
        write(tmp_path / "d.zip", files | {"source/notebooks/04_slca.ipynb": json.dumps(source).encode()})
    )
    assert found == ["the executed notebook has other cells than its source"]
    card = json.loads(files[f"{place}/artifact.json"])
    card["identity"]["learner"] = "ewc"
    found = checking.verify(write(tmp_path / "e.zip", files | {f"{place}/artifact.json": json.dumps(card).encode()}))
    assert found == [f"{run.name}: its key is not that of its parameters and inputs"]


def test_a_file_that_was_removed_or_added_is_found(tmp_path, package, run):
    files = contents(package)
    name = f"artifacts/{run.name}/after_00/labels.npy"
    less = {one: content for one, content in files.items() if one != name}
    assert checking.verify(write(tmp_path / "a.zip", less, manifest=False)) == [f"{name} is missing"]
    found = checking.verify(write(tmp_path / "b.zip", less))
    assert found[0] == f"{run.name}: after_00/labels.npy is missing" and "cannot be computed again" in found[1]
    assert checking.verify(write(tmp_path / "c.zip", files | {"job/x": b""}, manifest=False)) == ["job/x was added"]
    no_book = {one: content for one, content in files.items() if not one.endswith("book.json")}
    (found,) = checking.verify(write(tmp_path / "d.zip", no_book))
    assert found.startswith("the package lacks what a job has (")


@pytest.mark.parametrize("name", ["../evil", "/evil", "a/../../evil", "a\\evil", "C:evil", "job//x", "folder/", "./x"])
def test_a_name_that_leaves_the_folder_is_refused_before_anything_is_unpacked(tmp_path, package, name, monkeypatch):
    monkeypatch.setattr(zipfile.ZipFile, "extract", lambda *_: pytest.fail("unpacked"))
    (found,) = checking.verify(write(tmp_path / "a.zip", contents(package) | {name: b"x"}))
    assert found == f"{name!r} would leave the folder, or is no plain name"


def test_links_doubled_names_and_bombs_are_refused(tmp_path, package, monkeypatch):
    files = contents(package)
    link = zipfile.ZipInfo("job/link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    path = write(tmp_path / "a.zip", files)
    with zipfile.ZipFile(path, "a") as opened, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        opened.writestr(link, "/etc/passwd")
        opened.writestr("Manifest.json", "{}")
    assert checking.verify(path) == ["job/link is a link or a device", "Manifest.json is there twice"]
    monkeypatch.setattr(checking, "LARGEST", 1000)
    (found,) = checking.verify(package)
    assert found.startswith(f"it announces {len(files)} files of ")


def test_what_is_no_package_is_said(tmp_path, package):
    (tmp_path / "a.zip").write_bytes(b"no zip")
    (found,) = checking.verify(tmp_path / "a.zip")
    assert found.startswith("a.zip cannot be read as a package (")
    (tmp_path / "b.zip").write_bytes(package.read_bytes()[:-2000])
    assert len(checking.verify(tmp_path / "b.zip")) == 1
    assert checking.verify(write(tmp_path / "c.zip", {"a": b""}, manifest=False)) == [
        "it has no manifest.json, so it is no package of cilkit"
    ]
    whole = package.read_bytes()
    with zipfile.ZipFile(package) as opened:
        largest = max(opened.infolist(), key=lambda entry: entry.compress_size)
    for place in range(largest.header_offset + 150, largest.header_offset + largest.compress_size, 400):
        broken = whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]
        (tmp_path / "d.zip").write_bytes(broken)
        assert len(checking.verify(tmp_path / "d.zip")) == 1


@pytest.mark.parametrize("part, value", [("artifact", "run/../../../../etc"), ("artifact", "run/..")])
def test_a_path_out_of_a_result_goes_nowhere(tmp_path, package, part, value):
    files, name = contents(package), "job/04_slca-3f2a/result.json"
    result = json.loads(files[name])
    result["runs"][0][part] = value
    found = checking.verify(write(tmp_path / "a.zip", files | {name: json.dumps(result).encode()}))
    assert any("is no plain name" in problem for problem in found)


# ---------------------------------------------------------------- once more


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A repository with the packed notebook, and a kernel that makes the run again."""
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "04_slca.ipynb").write_text(json.dumps(notebook(*CELLS)))
    monkeypatch.setattr(artifacts, "repository", lambda: tmp_path)
    monkeypatch.made = {"recency": 1.0}

    def run_notebook(path, given, output, environment, again):
        assert path == tmp_path / "notebooks" / "04_slca.ipynb" and given == {"lr": 0.1}
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("CILKIT_ARTIFACTS", environment["CILKIT_ARTIFACTS"])
            made = made_jobs.run_artifact("slca", hyper={"slow_rate": 0.1}, **monkeypatch.made)
            made_jobs.job(execute.book_folder(output), made)
        return execute.Status("ok", "", "")

    monkeypatch.setattr(execute, "run_notebook", run_notebook)
    return tmp_path


def test_again_runs_the_notebook_in_a_fresh_folder_and_compares_bytes(checkout, package, run, capsys, monkeypatch):
    assert main(["verify", str(package), "--again"]) == 0
    assert capsys.readouterr().out == f"{run.name}: run again, equal in every byte\n1 packages, 0 problems\n"


def test_again_says_how_far_figures_are(checkout, package, run, monkeypatch):
    made = made_jobs.run_artifact

    def on_another_machine(*names, **settings):
        """The same key, other bytes."""
        import fake_run

        whole = fake_run.write_run
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(made_jobs, "write_run", lambda folder, **rest: whole(folder, **rest | {"seed": 5}))
            return made(*names, **settings)

    monkeypatch.setattr(made_jobs, "run_artifact", on_another_machine)
    (found,) = checking.again(package)
    assert found.startswith(f"{run.name}: run again, its bytes differ; its figures by at most ") and ", head " in found


def test_again_never_runs_cells_that_are_not_this_checkouts(checkout, package, monkeypatch):
    monkeypatch.setattr(execute, "run_notebook", lambda *_, **__: pytest.fail("run"))
    other = notebook(*CELLS[:2], ("code", "x = 2", []))
    (checkout / "notebooks" / "04_slca.ipynb").write_text(json.dumps(other))
    (found,) = checking.again(package)
    assert found == "04_slca.ipynb has other cells here, and a package's own are never run; check out commit ab12"
    with pytest.raises(UserError, match="there is no package"):
        from cilkit.commands.verify import _package

        _package("none.zip", False)


def test_the_command_names_each_problem(tmp_path, job, package, capsys, run):
    assert main(["pack", str(job), str(tmp_path / "out.zip")]) == 0 and "cilkit verify" in capsys.readouterr().out
    assert main(["verify", str(tmp_path / "out.zip")]) == 0
    files = contents(package)
    write(tmp_path / "bad.zip", files | {"more": b""}, manifest=False)
    capsys.readouterr()
    assert main(["verify", str(tmp_path / "bad.zip")]) == 1
    assert capsys.readouterr().out == "bad.zip: more was added\n1 packages, 1 problems\n"
    assert main(["verify", "--again"]) == 2
