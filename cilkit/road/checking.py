"""Another lab's package (`cilkit.road.packing`), checked: whole, consistent, and every figure again from its outputs.

Nothing of a package is run or un-pickled, and torch is not needed. It shows that the figures follow from the outputs
and that all belong together; not who made it. `again` runs the notebook afresh, if its cells and parameter files are
those of this checkout, and compares.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Any

import numpy as np

from cilkit import artifacts, outcomes, outputs
from cilkit.errors import UserError, reason_of
from cilkit.road.gathering import RESULT, matrix_of
from cilkit.road.packing import FORMAT, MANIFEST, named_files, optional, source_of
from cilkit.runs import Run

LARGEST = 20_000_000_000  # bytes that a package may take when it is unpacked
MOST = 100_000  # files
CLOSE = 1e-9  # relative: sums of another machine may differ in their last digits
BROKEN = (UserError, OSError, ValueError, KeyError, TypeError, IndexError, AttributeError)


def verify(package: str | Path) -> list[str]:
    """What does not hold in a package, a sentence each; nothing is written outside a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="cilkit-") as folder:
        return _unpacked(Path(package), Path(folder)) or list(_checked(Path(folder)))


def again(package: str | Path, log: Callable[[str], None] = print) -> list[str]:
    """Run the packed notebook with the packed parameters in a fresh artifacts folder; how its runs differ.

    On the same kind of machine and thread count equal bytes are expected; `log` is told where they are equal.
    """
    with tempfile.TemporaryDirectory(prefix="cilkit-") as folder:
        return _unpacked(Path(package), Path(folder)) or _again(Path(folder), log)


# ---------------------------------------------------------------- the zip


def _unpacked(package: Path, folder: Path) -> list[str]:
    """Unpack what is as its manifest says; where anything is not, nothing is unpacked and the sentences say what."""
    try:
        with zipfile.ZipFile(package) as opened:
            entries = opened.infolist()
            if problems := list(_refused(entries)):
                return problems
            manifest = json.loads(opened.read(MANIFEST))
            if manifest["format"] != FORMAT:
                return [
                    f"its format is {manifest['format']!r}, this cilkit reads {FORMAT}; take the version that wrote it"
                ]
            listed = manifest["files"]
            if problems := list(_differing(opened, entries, listed)):
                return problems
            for entry in entries:
                opened.extract(entry, folder)
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError, *BROKEN) as error:
        return [f"{package.name} cannot be read as a package ({reason_of(error)})"]
    return []


def _refused(entries: list[zipfile.ZipInfo]) -> Iterator[str]:
    """What no package of ours holds, by the zip's directory alone."""
    if (size := sum(entry.file_size for entry in entries)) > LARGEST or len(entries) > MOST:
        yield f"it announces {len(entries)} files of {size} bytes, more than any package has"
        return
    seen = set()
    for entry in entries:
        name, mode = entry.filename, entry.external_attr >> 16
        parts = PurePosixPath(name).parts
        odd = "\\" in name or "\0" in name or ":" in name or not name.isprintable()
        if odd or name.startswith("/") or ".." in parts or "/".join(parts) != name:
            yield f"{name!r} would leave the folder, or is no plain name"
        elif mode and not stat.S_ISREG(mode) and stat.S_IFMT(mode):
            yield f"{name} is a link or a device"
        elif name.casefold() in seen:
            yield f"{name} is there twice"
        seen.add(name.casefold())
    if MANIFEST.casefold() not in seen:
        yield f"it has no {MANIFEST}, so it is no package of cilkit"


def _differing(package: zipfile.ZipFile, entries: list[zipfile.ZipInfo], listed: dict[str, dict]) -> Iterator[str]:
    """Files that were added, removed or changed since the manifest was written."""
    there = {entry.filename: entry for entry in entries if entry.filename != MANIFEST}
    yield from (f"{name} was added" for name in sorted(there.keys() - listed.keys()))
    yield from (f"{name} is missing" for name in sorted(listed.keys() - there.keys()))
    for name in sorted(there.keys() & listed.keys()):
        found = hashlib.sha256()
        with package.open(there[name]) as file:
            while piece := file.read(1 << 20):
                found.update(piece)
        if found.hexdigest() != listed[name]["sha256"]:
            yield f"{name} was changed"


# ---------------------------------------------------------------- what is in it


def _checked(folder: Path) -> Iterator[str]:
    try:
        job = _plain(_read(folder, MANIFEST)["job"])
        book, result = (_read(folder, f"job/{job}/{name}") for name in ("book.json", RESULT))
        status = _read(folder, f"job/{job}.status.json")
        for name in ("notebook", "parameters", "records", "artifacts"):
            if result[name] != book[name]:
                yield f"result.json and book.json differ in {name}"
        if status["state"] != "ok":
            yield f"the notebook's state is {status['state']!r}, not 'ok'"
        for name, value in status["parameters"].items():
            if result["parameters"].get(name) != value:
                yield f"parameter {name} was given as {value!r}, the book has {result['parameters'].get(name)!r}"
        executed = _cells(source_of(_read(folder, f"job/{job}.ipynb")))
        if executed != _cells(_read(folder, f"source/notebooks/{_plain(result['notebook'])}")):
            yield "the executed notebook has other cells than its source"
        runs = [(entry["name"], entry["digest"]) for entry in result["artifacts"] if entry["stage"] == "run"]
        if runs != [(run["artifact"], run["digest"]) for run in result["runs"]]:
            yield "result.json has other runs than the notebook used"
        for run in result["runs"]:
            try:
                yield from (f"{run['artifact']}: {problem}" for problem in _run(folder, run))
            except BROKEN as error:
                yield f"{run['artifact']} cannot be computed again ({reason_of(error)})"
    except BROKEN as error:
        yield f"the package lacks what a job has ({reason_of(error)})"


def _run(folder: Path, told: dict) -> Iterator[str]:
    """One run: its card fits its files, and every figure that is told anywhere follows from its outputs."""
    stage, _, name = told["artifact"].partition("/")
    place = folder / "artifacts" / _plain(stage) / _plain(name)
    card = json.loads((place / "artifact.json").read_text())
    hashed = [[file["path"], file["sha256"]] for file in card["files"]]
    if (
        hashlib.sha256(artifacts.canonical(hashed).encode()).hexdigest() != card["digest"]
        or card["digest"] != told["digest"]
    ):
        yield "its digest is not that of its files"
    inputs = {name: SimpleNamespace(digest=made["digest"]) for name, made in card["inputs"].items()}
    if artifacts.key_of(card["stage"], card["version"], card["identity"], inputs) != card["key"]:
        yield "its key is not that of its parameters and inputs"
    for file in card["files"]:
        path = place / file["path"]
        if path.is_file():
            if artifacts.sha256_of(path) != file["sha256"]:
                yield f"{file['path']} is not the one that its card names"
        elif not optional(file["path"]):
            yield f"{file['path']} is missing"
    run = Run(place)
    kept = json.loads((place / outcomes.SUMMARY).read_text())
    (place / outcomes.SUMMARY).unlink()  # so that everything below comes from the outputs
    if [row["head"] for row in told["rows"]] != run.heads or told["default_head"] != run.default_head:
        yield "result.json has other heads"
    if told["counts"] != run.counts.tolist():
        yield "result.json has other numbers of test images"
    if told["hyper"] != run.settings.get("hyper", {}):
        yield "result.json has other settings of the learner"
    for row in told["rows"]:
        head = _plain(row["head"])
        yield from _unlike("result.json", head, row, outcomes.facts(run, head))
        yield from _unlike(
            outcomes.SUMMARY,
            head,
            dict(kept[head]),
            {n: v for n, v in outcomes.figures(run, head).items() if not math.isnan(v)},
        )
        matrix = run.accuracy_of(head, future=run.protocol == "domain").to_numpy()
        for where, found in (
            ("result.json", told["matrix"][head]),
            (f"accuracy_{head}.csv", matrix_of(place / f"accuracy_{head}.csv")),
        ):
            if not _equal(np.array(found, float), matrix):
                yield f"the accuracy matrix of head {head} in {where} is not that of the outputs"
        classes = place / f"class_accuracy_{head}.npy"
        found = outputs.load_npy(classes)
        classes.unlink()
        if not _equal(found, run.class_accuracy(head)):
            yield f"the accuracies by class of head {head} are not those of the outputs"


def _unlike(where: str, head: str, told: dict, computed: dict) -> Iterator[str]:
    """Each figure of a head that is not what the outputs give."""
    for name in {**computed, **told}:
        ours, theirs = computed.get(name), told.get(name)
        numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in (ours, theirs))
        if not (math.isclose(ours, theirs, rel_tol=CLOSE, abs_tol=CLOSE) if numbers else ours == theirs):
            yield f"{name} of head {head} is {theirs!r} in {where}, the outputs give {ours!r}"


def _equal(found: np.ndarray, computed: np.ndarray) -> bool:
    return found.shape == computed.shape and bool(np.allclose(found, computed, CLOSE, CLOSE, equal_nan=True))


def _read(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_text(encoding="utf-8"))


def _plain(name: str) -> str:
    """A name out of a package that is about to become part of a path."""
    if not re.fullmatch(r"[^/\\]+", name) or name in (".", "..") or "\0" in name:
        raise UserError(f"{name!r} is no plain name")
    return name


def _cells(notebook: dict) -> list[tuple[str, str]]:
    return [(cell["cell_type"], "".join(cell["source"])) for cell in notebook["cells"]]


# ---------------------------------------------------------------- once more


def _again(folder: Path, log: Callable[[str], None]) -> list[str]:
    from cilkit.workbook.execute import book_folder, run_notebook

    job = _plain(_read(folder, MANIFEST)["job"])
    result, status = _read(folder, f"job/{job}/{RESULT}"), _read(folder, f"job/{job}.status.json")
    commit = (status.get("commit") or {}).get("sha", "that it was made from")
    home, notebook = artifacts.repository() or Path.cwd(), _plain(result["notebook"])
    ours = home / "notebooks" / notebook
    if not ours.is_file() or _cells(json.loads(ours.read_text())) != _cells(
        _read(folder, f"source/notebooks/{notebook}")
    ):
        return [f"{notebook} has other cells here, and a package's own are never run; check out commit {commit}"]
    for name in named_files(result["parameters"]):
        packed = folder / "source" / name
        if not packed.is_file() or packed.read_bytes() != (home / name).read_bytes():
            return [f"{name} is another file here than the one that was packed; check out commit {commit}"]
    fresh, output = folder / "fresh", folder / "again" / f"{job}.ipynb"
    done = run_notebook(ours, status["parameters"], output, environment={"CILKIT_ARTIFACTS": str(fresh)}, again=True)
    if not done.ok:
        return [f"run again, it was {done.state}: {done.sentence}"]
    made = {one["name"]: one["digest"] for one in _read(book_folder(output), "book.json")["artifacts"]}
    problems = []
    for told in result["runs"]:
        name = told["artifact"].partition("~")[0]
        if name not in made:
            problems.append(f"run again, there was no {name}")
        elif made[name] == told["digest"]:
            log(f"{name}: run again, equal in every byte")
        else:
            problems.append(f"{name}: run again, {_far(Run(fresh / name), told)}")
    return problems


def _far(run: Run, told: dict) -> str:
    """How far the figures of a run made afresh are from those that were told."""
    widest, where = 0.0, ""
    for row in told["rows"]:
        now = outcomes.facts(run, row["head"])
        for name, value in row.items():
            if isinstance(value, float) and isinstance(now.get(name), float) and abs(now[name] - value) > widest:
                widest, where = abs(now[name] - value), f" ({name}, head {row['head']})"
    return f"its bytes differ; its figures by at most {widest:.3g}{where}"
