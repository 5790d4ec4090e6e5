"""Artifacts: folders that are whole or absent, named by what they were made from.

    artifacts/<stage>/<key>/            the first payload made for this key
    artifacts/<stage>/<key>~<digest>/   another payload with the same key (another machine, a hand-corrected realm)
    artifacts/<stage>/<key>.part/       being made, or interrupted; the next attempt goes on from it
    artifacts/<stage>/<key>.lock        who is making it

*key* = sha256 of (stage, stage version, identity parameters, digests of the inputs); *digest* = sha256 of the
payload's files. Execution parameters (device, workers, ...) and everything that a clock or a host decides live in
`measured.json`, which neither of them reads. `artifact.json` is written last and the folder is renamed into place, so a
folder with a final name is complete. Nothing here knows science or notebooks, and nothing here needs more than numpy.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import shutil
import socket
import stat
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from cilkit.errors import Stopped, UserError
from cilkit.hiding import hidden
from cilkit.locks import sole_maker

KEY_LENGTH = 16  # hex digits of a key or digest in a folder name; the full values stand in artifact.json


# ---------------------------------------------------------------- where, and how files are written


def repository() -> Path | None:
    """The checkout that holds this workbook: walk up from the working directory, else the editable package's parent."""
    here = Path.cwd().resolve()
    for folder in (here, *here.parents, Path(__file__).resolve().parent.parent):
        if (folder / "notebooks").is_dir() and (folder / "cilkit" / "artifacts.py").is_file():
            return folder
    return None


def root() -> Path:
    """The artifacts folder: `CILKIT_ARTIFACTS`, else `artifacts/` in the repository."""
    named = os.environ.get("CILKIT_ARTIFACTS")
    if named:
        return Path(named).expanduser().absolute()
    found = repository()
    if found is None:
        raise UserError(
            f"no place for artifacts: {Path.cwd()} is not inside the workbook's repository; "
            "set CILKIT_ARTIFACTS to a folder or start from the repository"
        )
    return found / "artifacts"


def canonical(value: Any) -> str:
    """JSON with sorted keys and nothing left to chance; numpy scalars count as numbers, tuples as lists."""

    def plain(item: Any) -> Any:
        if hasattr(item, "tolist"):  # numpy scalars and arrays
            return item.tolist()
        raise UserError(
            f"{item!r} ({type(item).__name__}) cannot identify an artifact; use numbers, texts, lists, dicts"
        )

    try:
        return json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False, default=plain)
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{value!r} cannot identify an artifact: {error}") from error


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def whole_file(path: str | Path) -> Iterator[BinaryIO]:
    """A file open for writing, of any length, that appears under its name only when all of it is on the disk.

    Until then it lies beside, as `.NAME.….tmp`; a killed process leaves that, which cleaners look for.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")  # machines that share the folder share process ids
    try:
        with open(beside, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def atomic_write(path: str | Path, content: bytes | str) -> Path:
    """The file at `path` is the old one or the whole new one, never half. A text never holds the environment's
    secrets: "[NAME hidden]" stands in their place."""
    with whole_file(path) as file:
        file.write(hidden(content).encode() if isinstance(content, str) else content)
    return Path(path)


def write_json(path: str | Path, value: Any) -> Path:
    """Readable JSON with sorted keys: equal values give equal bytes."""
    return atomic_write(
        path, json.dumps(json.loads(canonical(value)), sort_keys=True, indent=1, ensure_ascii=False) + "\n"
    )


def save_npy(path: str | Path, array: Any) -> Path:
    """One array as `.npy`, without pickle."""
    import io

    import numpy as np

    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(array), allow_pickle=False)
    return atomic_write(path, buffer.getvalue())


def write_parquet(path: str | Path, table: Any) -> Path:
    """A DataFrame as Parquet: no index, no metadata that differs between two equal tables."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pandas(table, preserve_index=False).replace_schema_metadata(None), sink)
    return atomic_write(path, sink.getvalue().to_pybytes())


def sha256_of(path: str | Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---------------------------------------------------------------- what an artifact is


@dataclass(frozen=True)
class Artifact:
    """A finished folder. Compare and pass on by `digest`: it names the payload, whatever the folder is called."""

    path: Path
    stage: str
    key: str
    digest: str
    identity: dict
    inputs: dict  # name -> {"stage", "key", "digest"}
    files: list  # [{"path", "sha256", "bytes"}], sorted by path

    @property
    def name(self) -> str:
        """How parameter files and people call it, e.g. `backbone/3f2a…`; `artifacts.open_artifact(name)` finds it."""
        return f"{self.stage}/{self.path.name}"

    @property
    def measured(self) -> dict:
        """Seconds, host, dates: facts about the making, never part of what was made."""
        path = self.path / "measured.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def file(self, name: str) -> Path:
        path = self.path / name
        if not path.exists():
            raise UserError(
                f"{self.name} has no file {name!r}; it holds {', '.join(f['path'] for f in self.files[:8])}"
            )
        return path


class Work:
    """The folder in which a payload grows. It outlives an interrupted attempt: look into `path` first."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.scratch = path / "scratch"  # checkpoints; gone when the artifact is finished
        self.scratch.mkdir(parents=True, exist_ok=True)
        self.numbers: dict[str, Any] = {}

    def measure(self, **numbers: Any) -> None:
        """Note numbers that a clock decides, e.g. `images_per_second=41.2`."""
        self.numbers.update(numbers)


def key_of(stage: str, version: int, identity: dict, inputs: dict[str, Artifact]) -> str:
    digests = {name: artifact.digest for name, artifact in inputs.items()}
    return hashlib.sha256(canonical([stage, version, identity, digests]).encode()).hexdigest()


def _list_files(folder: Path) -> list[dict]:
    found = [p for p in sorted(folder.rglob("*")) if p.is_file()]
    names = [(p.relative_to(folder).as_posix(), p) for p in found]
    return [
        {"path": name, "sha256": sha256_of(p), "bytes": p.stat().st_size}
        for name, p in sorted(names)
        if name not in ("artifact.json", "measured.json") and not name.startswith("scratch/")
    ]


def digest_of(files: list[dict]) -> str:
    """The digest of a payload, from the paths and sha256 of its files (sorted by path)."""
    return hashlib.sha256(canonical([[f["path"], f["sha256"]] for f in files]).encode()).hexdigest()


# ---------------------------------------------------------------- finding


def _read(folder: Path) -> Artifact:
    """Open a finished folder; sizes are compared, so a truncated or missing file is noticed without hashing."""
    try:
        card = json.loads((folder / "artifact.json").read_text())
        wanted = ("stage", "key", "digest", "identity", "inputs", "files")
        artifact = Artifact(path=folder, **{name: card[name] for name in wanted})
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{folder / 'artifact.json'} cannot be read ({error}); delete the folder {folder.name} and run again"
        ) from error
    for file in artifact.files:
        size = _size_of(f"{folder}/{file['path']}")
        if size != file["bytes"]:
            state = "is missing" if size is None else f"has {size} bytes"
            raise UserError(
                f"{artifact.name}: {file['path']} {state}, {file['bytes']} bytes were written; "
                f"delete the folder {folder} and run again, or restore the file"
            )
    return artifact


def _size_of(path: str) -> int | None:
    """Bytes of a file; None where there is none. A finished sweep asks for tens of thousands."""
    try:
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_size if stat.S_ISREG(found.st_mode) else None


def find(stage: str, key: str, digest: str | None = None) -> Artifact | None:
    """The artifact with this key: the first one made, or the sibling with that digest. None if there is none."""
    folder = root() / stage
    first = folder / key[:KEY_LENGTH]
    candidates = [first, *sorted(folder.glob(f"{key[:KEY_LENGTH]}~*"))]
    for candidate in candidates:
        if candidate.is_dir() and candidate.suffix != ".part":
            artifact = _read(candidate)
            if digest is None or artifact.digest.startswith(digest):
                return artifact
    return None


def open_artifact(name: str | Path) -> Artifact:
    """Open by name (`stage/key`, `stage/key~digest`, a unique beginning of either) or by folder."""
    path = Path(name)
    if (path / "artifact.json").is_file():
        return _read(path.absolute())
    stage, _, start = str(name).partition("/")
    whole = root() / stage / start
    if start and whole.suffix != ".part" and (whole / "artifact.json").is_file():
        return _read(whole)
    folders = (root() / stage).glob(f"{start}*") if start else ()
    hits = sorted(p for p in folders if p.is_dir() and p.suffix != ".part")
    exact = [p for p in hits if p.name == start]
    if len(exact) == 1 or len(hits) == 1:
        return _read((exact or hits)[0])
    if not hits:
        raise UserError(
            f"no artifact {str(name)!r} under {root()}; expected stage/key such as backbone/3f2a91, or a folder"
        )
    raise UserError(f"artifact {str(name)!r} is ambiguous: {', '.join(p.name for p in hits)}; write more of its name")


def all_artifacts(stage: str | None = None) -> Iterator[Artifact]:
    """Every finished artifact, sorted by stage and name."""
    for card in sorted(root().glob(f"{stage or '*'}/*/artifact.json")):
        if card.parent.suffix != ".part":
            yield _read(card.parent)


def verify(artifact: Artifact) -> list[str]:
    """Hash the payload again; one sentence for each file that is not as it was written."""
    now = {file["path"]: file for file in _list_files(artifact.path)}
    problems = []
    for file in artifact.files:
        have = now.pop(file["path"], None)
        if have is None:
            problems.append(f"{artifact.name}: {file['path']} is missing")
        elif have["sha256"] != file["sha256"]:
            problems.append(f"{artifact.name}: {file['path']} was changed after it was written")
    return problems + [f"{artifact.name}: {extra} was added after it was written" for extra in now]


# ---------------------------------------------------------------- making


def obtain(
    stage: str,
    version: int,
    identity: dict,
    inputs: dict[str, Artifact],
    make: Callable[[Work], None],
    execution: dict | None = None,
    again: bool = False,
) -> Artifact:
    """Find the artifact of this key or make it; wait while another process makes it; take over when that one is dead.

    `make(work)` writes the payload under `work.path`, whole files only (`atomic_write` and friends), and looks there
    first: after an interruption the folder still holds what was finished. `again=True` makes it once more; a payload
    that differs is put beside the first as a sibling, an equal one is dropped.
    """
    key = key_of(stage, version, identity, inputs)
    found = None if again else find(stage, key)
    if found is not None:
        return found
    what = f"{stage}/{key[:KEY_LENGTH]}"
    with sole_maker(root() / stage / f"{key[:KEY_LENGTH]}.lock", what) as still_ours:
        found = find(stage, key)
        if found is not None and not again:
            return found  # the process that we waited for has made it
        part = root() / stage / f"{key[:KEY_LENGTH]}.part"
        part.mkdir(parents=True, exist_ok=True)
        for leftover in part.rglob(".*.tmp"):
            leftover.unlink(missing_ok=True)  # half a file of an attempt that was killed
        work = Work(part)
        started = time.time()
        attempts = _note_attempt(part)
        try:
            make(work)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise UserError(
                    f"the disk under {root()} is full while making {what}; "
                    "free some space and run again: what was finished is kept"
                ) from error
            raise
        except KeyboardInterrupt as stop:
            if isinstance(stop, Stopped):
                raise
            raise Stopped(f"interrupted while making {what}; what was finished is kept, run again to go on") from stop
        still_ours()
        measured = {
            "started": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(started)),
            "seconds": round(time.time() - started, 3),
            "attempts": attempts,
            "host": socket.gethostname(),
            "machine": platform.machine(),
            "python": platform.python_version(),
            "execution": execution or {},
            **work.numbers,
        }
        return _finish(stage, version, key, identity, inputs, part, measured)


def correct(artifact: Artifact, change: Callable[[Path], None]) -> Artifact:
    """A hand-corrected copy: `change(folder)` edits a copy of the payload, which then stands beside the original."""
    part = artifact.path.with_name(f"{artifact.key[:KEY_LENGTH]}~{os.getpid()}.part")
    shutil.copytree(artifact.path, part, ignore=shutil.ignore_patterns("artifact.json", "measured.json"))
    change(part)
    card = json.loads((artifact.path / "artifact.json").read_text())
    measured = {"corrected_from": artifact.digest, "host": socket.gethostname()}
    return _finish(card["stage"], card["version"], card["key"], card["identity"], card["inputs"], part, measured)


def _note_attempt(part: Path) -> int:
    """Count the attempts in the scratch folder (so that the count itself never becomes payload)."""
    counter = part / "scratch" / "attempts"
    attempts = int(counter.read_text()) + 1 if counter.exists() else 1
    atomic_write(counter, str(attempts))
    return attempts


def _finish(stage, version, key, identity, inputs, part: Path, measured: dict) -> Artifact:
    shutil.rmtree(part / "scratch", ignore_errors=True)
    files = _list_files(part)
    if not files:
        raise UserError(f"{stage}/{key[:KEY_LENGTH]} would be empty: its maker wrote no file")
    for file in files:
        _fsync(part / file["path"])
    digest = digest_of(files)
    card = {
        "stage": stage,
        "version": version,
        "key": key,
        "digest": digest,
        "identity": json.loads(canonical(identity)),
        "inputs": {
            name: value if isinstance(value, dict) else {"stage": value.stage, "key": value.key, "digest": value.digest}
            for name, value in inputs.items()
        },
        "files": files,
    }
    write_json(part / "measured.json", measured)
    write_json(part / "artifact.json", card)
    _fsync(part)
    final = root() / stage / key[:KEY_LENGTH]
    if final.is_dir():
        final = final.with_name(f"{key[:KEY_LENGTH]}~{digest[:KEY_LENGTH]}")
    if find(stage, key, digest) is not None:
        shutil.rmtree(part)  # the same payload again
    else:
        os.replace(part, final)
        _fsync(final.parent)
    return find(stage, key, digest)
