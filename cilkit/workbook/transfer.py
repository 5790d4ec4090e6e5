"""Folders carried from one machine to another as a stream of bytes; artifacts arrive whole or not at all.

A stream is one piece of JSON, which lists the files of the folder with their sha256 and lengths, and then the bytes of
those that the receiver lacks, one file after the other, in pieces of at most PIECE bytes. An interrupted stream leaves
a `.part` folder, whose whole files the next one does not send again.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path, PurePosixPath

from cilkit import artifacts
from cilkit.artifacts import KEY_LENGTH, Artifact
from cilkit.errors import UserError
from cilkit.locks import sole_maker

PIECE = 8 << 20  # bytes
CARDS = ("artifact.json", "measured.json")  # beside an artifact's payload
NAME = re.compile(r"(?P<stage>[\w-]+)/(?P<folder>(?P<key>[0-9a-f]{16})(~[0-9a-f]{1,16})?)", re.ASCII)

Ask = Callable[[dict[str, str]], Iterable[bytes]]  # {path: sha256} of what is there already -> the rest as a stream


def send(folder: Path | str, have: Mapping[str, str]) -> Iterator[bytes]:
    """The stream of a folder, without the files that `have` names with the same sha256."""
    folder, card = Path(folder), Path(folder) / CARDS[0]
    known = {file["path"]: file["sha256"] for file in json.loads(card.read_text())["files"]} if card.is_file() else {}
    names = [*known, *(name for name in CARDS if (folder / name).is_file())] if known else _files(folder)
    digests = {name: known.get(name) or artifacts.sha256_of(folder / name) for name in sorted(names)}
    files = [{"path": n, "sha256": digest, "bytes": (folder / n).stat().st_size} for n, digest in digests.items()]
    yield json.dumps(files).encode()
    for name in (name for name, digest in digests.items() if have.get(name) != digest):
        with open(folder / name, "rb") as file:
            while piece := file.read(PIECE):
                yield piece


def receive(folder: Path, ask: Ask) -> list[dict]:
    """Make `folder` what `ask` streams; returns its files. UserError where the stream is cut off or not what it says:
    the files that had come whole stay."""
    folder.mkdir(parents=True, exist_ok=True)
    have = {name: artifacts.sha256_of(folder / name) for name in _files(folder)}
    pieces = iter(ask(have))
    files = _listed(next(pieces, b""))
    for file in files:
        if have.pop(file["path"], None) != file["sha256"]:
            _take(pieces, folder / file["path"], file)
    if next(pieces, None) is not None:
        raise UserError(f"a transfer to {folder.name} holds more bytes than it lists; run again.")
    for name in have:
        (folder / name).unlink()
    return files


def receive_artifact(name: str, digest: str, ask: Ask) -> Artifact:
    """The artifact called `name` elsewhere, brought here unless it is here: once, whoever else asks for it.

    It gets the same name where that is free, else one with its digest. UserError where what comes is not `digest`.
    """
    parts = NAME.fullmatch(name)
    if parts is None:
        raise UserError(f"{name!r} cannot be fetched: an artifact's name is stage/key, such as run/3f2a91c0b7de4a55.")
    stage, key = artifacts.root() / parts["stage"], parts["key"]
    with sole_maker(stage / f"{key}.lock", name) as still_ours:
        found = artifacts.find(parts["stage"], key, digest)
        if found is not None:
            return found
        part, final = stage / f"{key}~{digest[:KEY_LENGTH]}.part", stage / parts["folder"]
        files = [file for file in receive(part, ask) if file["path"] not in CARDS]
        came = artifacts.open_artifact(part)
        if artifacts.digest_of(files) != digest or (came.digest, came.stage) != (digest, parts["stage"]):
            shutil.rmtree(part)
            raise UserError(f"{name} arrived with another content than {digest[:KEY_LENGTH]}; run again.")
        still_ours()
        os.replace(part, final if not final.exists() else stage / f"{key}~{digest[:KEY_LENGTH]}")
    return artifacts.find(parts["stage"], key, digest)


def read_by(book: Path) -> dict[str, str]:
    """{name: digest} of the artifacts that a job's `book.json` lists and of what they were made from, as far as it lies
    here; what comes first is needed by what comes after."""
    found: dict[str, str] = {}

    def add(artifact: Artifact | None) -> None:
        if artifact is not None and artifact.name not in found:
            for made_from in artifact.inputs.values():
                add(artifacts.find(made_from["stage"], made_from["key"], made_from["digest"]))
            found[artifact.name] = artifact.digest

    with suppress(OSError, ValueError, KeyError):  # no book; UserErrors of what is gone are ValueErrors
        for entry in json.loads(book.read_text())["artifacts"]:
            with suppress(UserError):
                add(artifacts.open_artifact(entry["name"]))
    return found


def put_in_place(part: Path, output: Path, renamed: Mapping[str, str]) -> None:
    """Move what a job left elsewhere from the folder `part` to its places beside `output`, the status last.

    renamed: artifacts that are called otherwise here, for book.json and result.json.
    """
    for path in (part / output.stem / "book.json", part / output.stem / "result.json"):
        if renamed and path.is_file():
            text = path.read_text(encoding="utf-8")
            for name, here in renamed.items():
                text = text.replace(json.dumps(name), json.dumps(here))
            artifacts.atomic_write(path, text)
    for suffix in ("", ".log", ".ipynb", ".status.json"):
        came, place = part / f"{output.stem}{suffix}", output.parent / f"{output.stem}{suffix}"
        if place.is_dir():
            shutil.rmtree(place)
        if came.exists():
            os.replace(came, place)
        elif suffix:
            place.unlink(missing_ok=True)
    shutil.rmtree(part)


def _files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _listed(piece: bytes) -> list[dict]:
    """The first piece of a stream, checked: nothing may be written outside of the folder, and nothing twice."""
    try:
        files = [(str(file["path"]), str(file["sha256"]), int(file["bytes"])) for file in json.loads(piece)]
    except (ValueError, KeyError, TypeError):
        raise UserError("a transfer ended before its list of files; run again.") from None
    for name, _, _ in files:
        path = PurePosixPath(name)
        if not path.parts or path.is_absolute() or ".." in path.parts or str(path) != name or set("\\:\0") & set(name):
            raise UserError(f"a transfer lists a file {name!r}, which may lie outside of its folder; it was refused.")
    if len({name for name, _, _ in files}) != len(files):
        raise UserError("a transfer lists a file twice; it was refused.")
    return [dict(zip(("path", "sha256", "bytes"), file, strict=True)) for file in files]


def _take(pieces: Iterator[bytes], path: Path, file: dict) -> None:
    """One file from the stream, which appears only if its length and sha256 are as listed."""
    left, total = file["bytes"], hashlib.sha256()
    with artifacts.whole_file(path) as beside:
        while left > 0:
            piece = next(pieces, b"")
            if not piece:
                raise UserError(f"a transfer was cut off, {left} bytes of {file['path']} are missing; run again.")
            left -= len(piece)
            total.update(piece)
            beside.write(piece)
        if left < 0 or total.hexdigest() != file["sha256"]:
            raise UserError(f"{file['path']} did not arrive as it was sent (its sha256 differs); run again.")
