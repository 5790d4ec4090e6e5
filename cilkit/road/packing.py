"""One file that another lab checks (`cilkit.road.checking`): a finished job with all that its figures rest on.

    manifest.json                           sha256 and bytes of every other file, and what was left out
    job/<name>.ipynb, .status.json, .log    the executed notebook, its parameters, versions, commit, what it printed
    job/<name>/                             book.json, result.json, figures, tables
    source/notebooks/…, source/params/…     the notebook as it was run, without outputs; its parameter files
    artifacts/<stage>/<key>/                each run's card and outputs
    provenance/<stage>/<key>/artifact.json  cards of everything that the runs were made from

Equal jobs give equal packages.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path
from typing import Any

from cilkit import artifacts
from cilkit.artifacts import Artifact
from cilkit.errors import UserError
from cilkit.road.gathering import RESULT, write_result

MANIFEST, FORMAT = "manifest.json", 1
DATE = (1980, 1, 1, 0, 0, 0)  # the earliest that a zip can hold
LARGEST_NAMED = 1_000_000  # bytes of a file that parameters name


def pack(job: str | Path, target: str | Path, everything: bool = False) -> Path:
    """Write the package of a finished job: its name in reports/cells or reports/runs, or its executed notebook.

    everything: also backbones and features, which no figure needs. UserError where the job did not end well, or where
    an artifact of it is gone or was changed.
    """
    from cilkit.workbook import execute

    output, target = _output(job), Path(target)
    if target.suffix != ".zip":
        raise UserError(f"a package is a zip, which {target.name} does not end with; name it {target.name}.zip")
    status, book = execute.read_status(output), execute.book_folder(output)
    if status is None or not status.ok or not output.is_file():
        raise UserError(f"{output.name} has not ended well; run it again, then pack it")
    if not (book / RESULT).is_file() and write_result(book) is None:
        raise UserError(f"{output.name} kept no book, so there is nothing to check; let it call cilkit.start()")
    result = json.loads((book / RESULT).read_text(encoding="utf-8"))
    contents: dict[str, bytes | Path] = {f"job/{output.name}": output}
    for path in (execute.status_path(output), execute.log_path(output)):
        contents |= {f"job/{path.name}": path} if path.is_file() else {}
    contents |= {f"job/{book.name}/{path.name}": path for path in book.iterdir() if path.is_file()}
    executed = json.loads(output.read_text(encoding="utf-8"))
    contents[f"source/notebooks/{result['notebook']}"] = json.dumps(source_of(executed), indent=1).encode()
    contents |= {f"source/{name}": path for name, path in named_files(result["parameters"]).items()}
    left_out = []
    for entry in result["artifacts"]:
        artifact = artifacts.open_artifact(entry["name"])
        if artifact.digest != entry["digest"]:
            raise UserError(f"{entry['name']} is not the one that {output.name} used; run the notebook again")
        contents |= {f"provenance/{name}/artifact.json": path for name, path in _cards(artifact).items()}
        if artifact.stage != "run":
            continue
        if problems := artifacts.verify(artifact):
            raise UserError(f"{problems[0]}; delete {artifact.name} and run the notebook again")
        for name in ["artifact.json", "measured.json", *(file["path"] for file in artifact.files)]:
            if optional(name) and not everything:
                left_out.append(f"artifacts/{artifact.name}/{name}")
            elif (artifact.path / name).is_file():
                contents[f"artifacts/{artifact.name}/{name}"] = artifact.path / name
    return _write(target, output.stem, contents, left_out)


def source_of(executed: dict) -> dict:
    """The notebook that was run: what papermill injected, outputs and everything that a run adds are left out."""
    cells = []
    for cell in executed["cells"]:
        tags = cell.get("metadata", {}).get("tags", [])
        if "injected-parameters" in tags:
            continue
        kept = {name: cell[name] for name in ("id", "cell_type", "source") if name in cell}
        more = {"outputs": [], "execution_count": None} if cell["cell_type"] == "code" else {}
        cells.append(kept | {"metadata": {"tags": tags} if tags else {}} | more)
    kernel = {name: executed["metadata"][name] for name in ("kernelspec",) if name in executed["metadata"]}
    return {"cells": cells, "metadata": kernel} | {name: executed[name] for name in ("nbformat", "nbformat_minor")}


def named_files(parameters: Any) -> dict[str, Path]:
    """Path from the repository -> file, of those in it that parameters name, and that parameter files name in turn."""
    from cilkit.workbook import chain

    home, found, memo = artifacts.repository(), {}, {}
    waiting = [parameters]
    while waiting:
        for _, path in sorted(chain.files_named(waiting.pop())):
            inside = home is not None and path.resolve().is_relative_to(home)
            name = path.resolve().relative_to(home).as_posix() if inside else ""
            if not inside or name in found or path.stat().st_size > LARGEST_NAMED:
                continue
            found[name] = path
            if (notebook := chain.notebook_of(path)) is not None:
                waiting.append(chain.resolved(notebook, chain.loaded(path, memo), memo))
    return found


def optional(name: str) -> bool:
    """Whether no figure needs this file of a run: its backbone, its features."""
    return name.startswith("backbone/") or name.endswith("/features.npy")


def _output(job: str | Path) -> Path:
    home = (artifacts.repository() or Path.cwd()) / "reports"
    places = [Path(job), *(home / folder / f"{Path(job).name}.ipynb" for folder in ("cells", "runs"))]
    for path in places:
        if path.suffix == ".ipynb" and path.is_file():
            return path.absolute()
    raise UserError(f"no finished job {str(job)!r} in reports/cells or reports/runs; give its name or its notebook")


def _cards(artifact: Artifact) -> dict[str, Path]:
    """The cards of an artifact and of everything it was made from, as far as that is still here."""
    found, waiting = {}, [artifact]
    while waiting:
        one = waiting.pop()
        if one.name in found:
            continue
        found[one.name] = one.path / "artifact.json"
        for made in one.inputs.values():
            below = artifacts.find(made["stage"], made["key"], made["digest"])
            waiting += [below] if below is not None else []
    return found


def _write(target: Path, job: str, contents: dict[str, bytes | Path], left_out: list[str]) -> Path:
    """A zip whose bytes depend on nothing but its contents; it appears whole."""
    listed = {}
    for name, content in sorted(contents.items()):
        size = len(content) if isinstance(content, bytes) else content.stat().st_size
        whole = hashlib.sha256(content).hexdigest() if isinstance(content, bytes) else artifacts.sha256_of(content)
        listed[name] = {"sha256": whole, "bytes": size}
    manifest = {"format": FORMAT, "job": job, "files": listed, "left_out": sorted(left_out)}
    contents = {MANIFEST: json.dumps(manifest, indent=1, sort_keys=True).encode(), **dict(sorted(contents.items()))}
    with artifacts.whole_file(target) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as package:
        for name, content in contents.items():
            entry = zipfile.ZipInfo(name, DATE)
            entry.compress_type, entry.external_attr, entry.create_system = zipfile.ZIP_DEFLATED, 0o644 << 16, 3
            entry.file_size = len(content) if isinstance(content, bytes) else content.stat().st_size
            with package.open(entry, "w") as place:
                if isinstance(content, bytes):
                    place.write(content)
                    continue
                with open(content, "rb") as source:
                    while piece := source.read(1 << 20):
                        place.write(piece)
    return target
