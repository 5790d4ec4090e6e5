"""A damaged image set: what is wrong with it, each thing by its name, and its manifest written anew from its tars."""

import hashlib
import itertools
import json
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import numpy as np

from cilkit.data import shards
from cilkit.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

CHECKED = ("image_id", "shard", "offset", "size", "sha256")  # columns without which nothing can be compared
BLOCK = 512  # bytes; a tar ends with two blocks of zeros


class Finding(NamedTuple):
    """One thing that is wrong. kind: a word for programs; where: a file, or an image in a shard; text: what it is."""

    kind: str
    where: str
    text: str

    def __str__(self) -> str:
        return f"{self.where}: {self.text}"


class Member(NamedTuple):
    """A file in a tar: its name, and where its content begins and how long it is, in bytes."""

    name: str
    offset: int
    size: int

    @property
    def stem(self) -> str:
        return self.name.rpartition(".")[0]


def examine(folder: str | Path) -> list[Finding]:
    """Everything that is wrong with an image set; nothing is changed. Every image is read and hashed once.

    kinds: "manifest" (missing or broken), "missing" (a shard), "truncated", "altered" (an image, a sidecar, a tar's
    structure), "orphan" (a shard or a member that the manifest does not list), "duplicate" (an image_id), "leftover".
    Without a readable manifest the shards are compared with their own sidecars. Memory does not grow with the pixels.
    """
    folder = _image_folder(folder)
    found = list(_leftovers(folder))
    unlisted = {path.name: path for path in _shards(folder)}
    hashes: list[np.ndarray] = []  # of the ids: 8 bytes an image
    try:
        for name, rows in _listed(folder):
            hashes.append(_hashed(rows["image_id"]))
            path = unlisted.pop(name, None)
            if path is None:
                found.append(Finding("missing", name, f"the shard is missing, and with it {len(rows):,} images"))
            else:
                found += _in_shard(path, rows)
        found += [Finding("orphan", name, "the manifest lists no image of this shard") for name in unlisted]
        found += _duplicates(folder, np.concatenate(hashes or [np.zeros(0, np.uint64)]))
    except UserError as error:
        advice = "`rebuild` writes it anew from the tars"
        found.append(Finding("manifest", shards.MANIFEST, f"{str(error).partition(';')[0]}; {advice}"))
        found += [finding for path in unlisted.values() for finding in _in_shard(path, None)]
    return found


def rebuild(folder: str | Path) -> Path:
    """Write the manifest anew from the tars and the row that lies beside each image; equal rows give equal bytes.

    Only whole shards are taken: UserError naming the first that is not, and the image that is not what its row says,
    before anything is changed. Returns the manifest's path.
    """
    folder = _image_folder(folder)
    paths = _shards(folder)
    if not paths or paths[0].suffix != ".tar":
        raise UserError(f"{folder} holds no tar shards, so no manifest can be rebuilt; build the image set again")
    with tempfile.TemporaryDirectory(dir=folder, prefix="scratch-") as tables:
        hashes = []
        for path in paths:
            rows = _rows_of(path)
            hashes.append(_hashed([row["image_id"] for row in rows]))
            shards.write_rows(tables, int(path.stem), rows)
        values, counts = np.unique(np.concatenate(hashes), return_counts=True)
        if (counts > 1).any():
            value = values[counts > 1][0]
            names = [path.name for path, own in zip(paths, hashes, strict=True) if value in own]
            raise UserError(f"{folder} holds images twice, in {' and '.join(names)}; delete one of these shards")
        for old in [folder / shards.MANIFEST, *folder.glob("*.rows.parquet")]:
            old.unlink(missing_ok=True)
        for rows in sorted(Path(tables).iterdir()):
            rows.replace(folder / rows.name)
    return shards.merge_manifest(folder)


def _image_folder(folder: str | Path) -> Path:
    folder = Path(getattr(folder, "path", folder))
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; name the folder of an image set")
    if (folder / "keep.parquet").exists():
        raise UserError(f"{folder} chooses among the images of another set and holds none; name that set's folder")
    return folder


def _shards(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix in (".tar", ".rgb") and path.stem.isdigit())


def _leftovers(folder: Path) -> Iterator[Finding]:
    for path in sorted(folder.glob(".*.tmp")):
        yield Finding("leftover", path.name, "half a file of a process that was killed; delete it")
    if (folder / shards.MANIFEST).exists():
        for path in sorted([*folder.glob("*.rows.parquet"), *folder.glob("scratch*")]):
            yield Finding("leftover", path.name, "left from the making, which the manifest ended; delete it")


def _listed(folder: Path) -> "Iterator[tuple[str, pd.DataFrame]]":
    """The manifest's rows, shard by shard; UserError where it is missing or not readable."""
    import pandas as pd
    from pyarrow.parquet import ParquetFile

    path, held = folder / shards.MANIFEST, None
    if not path.exists():
        raise UserError("the manifest is missing")
    try:
        with ParquetFile(path) as file:
            lacking = set(CHECKED) - set(file.schema_arrow.names)
            for batch in file.iter_batches() if not lacking else ():
                held = pd.concat([held, batch.to_pandas()], ignore_index=True)
                cuts = np.flatnonzero(held["shard"].to_numpy()[1:] != held["shard"].to_numpy()[:-1]) + 1
                for start, end in itertools.pairwise([0, *cuts.tolist()]):
                    yield held["shard"].iloc[start], held.iloc[start:end]
                held = held.iloc[cuts[-1] if len(cuts) else 0 :]
    except Exception as error:  # pyarrow raises several unrelated classes for a damaged file
        raise UserError("the manifest is not readable Parquet") from error
    if lacking:
        raise UserError(f"the manifest lacks the column {min(lacking)!r}")
    if held is not None and len(held):
        yield held["shard"].iloc[0], held


def _hashed(ids: Sequence[str]) -> np.ndarray:
    """64 bits of each id, uint64 (n,): to find equal ones among ten million without holding them all."""
    from pandas.util import hash_array

    return hash_array(np.array(list(ids), dtype=object), categorize=False)


def _duplicates(folder: Path, hashes: np.ndarray) -> Iterator[Finding]:
    values, counts = np.unique(hashes, return_counts=True)
    twice = values[counts > 1]
    if not len(twice):
        return
    seen: dict[str, list[str]] = {}
    for name, rows in _listed(folder):
        for image_id in rows["image_id"][np.isin(_hashed(rows["image_id"]), twice)]:
            seen.setdefault(image_id, []).append(name)
    for image_id, names in seen.items():
        if len(names) > 1:
            text = f"the manifest lists this image_id {len(names)} times, in {', '.join(dict.fromkeys(names))}"
            yield Finding("duplicate", image_id, text)


def _in_shard(path: Path, rows: "pd.DataFrame | None") -> Iterator[Finding]:
    """What is wrong with one shard, held against its rows of the manifest, or (None) against its own sidecars."""
    members, whole = _walk(path) if path.suffix == ".tar" else ([], True)
    if rows is None:
        found = [Finding("altered", f"{path.name}: {one.name}", text) for one, _, text in _pairs(path, members) if text]
    else:
        found = [*_in_content(path, rows), *_beside(path, rows, members)]
    yield from found
    if not whole and not any(finding.kind == "truncated" for finding in found):
        last = f"behind {members[-1].name}" if members else "at its beginning"
        kind = "altered" if _ends(path) else "truncated"
        yield Finding(kind, path.name, f"the tar cannot be read on {last}; delete this shard and paint it again")


def _in_content(path: Path, rows: "pd.DataFrame") -> Iterator[Finding]:
    """Every image that the manifest lists in this shard, hashed again."""
    length, cut = path.stat().st_size, []
    with open(path, "rb") as file:
        for row in rows.itertuples():
            if row.offset + row.size > length:
                cut.append(row.image_id)
            elif _sha256(_content(file, row)) != row.sha256:
                yield Finding("altered", f"{path.name}: {row.image_id}", "the image is not the one that was painted")
    if cut:
        yield Finding("truncated", path.name, f"the shard ends early: {len(cut):,} images are cut off, first {cut[0]}")


def _beside(path: Path, rows: "pd.DataFrame", members: list[Member]) -> Iterator[Finding]:
    """Members that the manifest does not know, and sidecars that say something else than it does."""
    if path.suffix == ".rgb":
        if path.stat().st_size > rows["size"].sum():
            extra = path.stat().st_size - rows["size"].sum()
            yield Finding("orphan", path.name, f"{extra:,} bytes belong to no image of the manifest")
        return
    listed = {row["offset"]: row for row in rows.to_dict("records")}
    known = {member.stem: listed[member.offset] for member in members if member.offset in listed}
    with open(path, "rb") as file:
        for member in members:
            where = f"{path.name}: {member.name}"
            sidecar = member.name.endswith(".json")
            if member.stem not in known or not (sidecar or member.offset in listed):
                yield Finding("orphan", where, "the manifest does not list this member")
            elif sidecar and not _agree(_row(_content(file, member)), known[member.stem]):
                yield Finding("altered", where, "the row beside the image is not the manifest's")


def _agree(sidecar: dict, row: dict) -> bool:
    """Whether the two say the same; what is missing in the manifest's row (NaN) may be absent beside the image."""
    missing = {key for key, value in row.items() if value is None or value != value}
    wanted = {key: value for key, value in row.items() if key not in missing | {"shard", "offset", "size"}}
    return wanted == {key: value for key, value in sidecar.items() if key not in missing}


def _walk(path: Path) -> tuple[list[Member], bool]:
    """The members of a tar, and whether it is whole to its end."""
    members: list[Member] = []
    try:
        with tarfile.open(path, "r:") as tar:
            for info in tar:
                members.append(Member(info.name, info.offset_data, info.size))
    except (tarfile.TarError, OSError, ValueError):
        return members, False
    end = members[-1].offset + -(-members[-1].size // BLOCK) * BLOCK if members else 0
    with open(path, "rb") as file:
        file.seek(end)
        tail = file.read()
    return members, len(tail) >= 2 * BLOCK and not any(tail)


def _ends(path: Path) -> bool:
    """The last two blocks are the zeros that end a tar."""
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - 2 * BLOCK))
        tail = file.read()
    return len(tail) == 2 * BLOCK and not any(tail)


def _pairs(path: Path, members: list[Member]) -> Iterator[tuple[Member, dict, str]]:
    """(image, the row beside it, what is wrong with the two or "")."""
    rows = {member.stem: member for member in members if member.name.endswith(".json")}
    with open(path, "rb") as file:
        for image in (member for member in members if not member.name.endswith(".json")):
            beside = rows.pop(image.stem, None)
            if beside is None:
                yield image, {}, "no row lies beside this image"
                continue
            row, sha256 = _row(_content(file, beside)), _sha256(_content(file, image))
            same = row.get("sha256") == sha256
            yield image, row, "" if same else "the image is not the one that the row beside it describes"
    yield from ((left, {}, "the image of this row is not there") for left in rows.values())


def _rows_of(path: Path) -> list[dict]:
    """The rows of one whole tar."""
    members, whole = _walk(path)
    if not whole:
        raise UserError(f"{path} is damaged or ends early; delete this shard, rebuild, and paint its images again")
    rows = []
    for image, row, wrong in _pairs(path, members):
        if wrong:
            raise UserError(f"{path}: {image.name}: {wrong}; delete this shard, rebuild, and paint its images again")
        rows.append({**row, "shard": path.name, "offset": image.offset, "size": image.size})
    return rows


def _content(file: BinaryIO, place: Any) -> bytes:
    file.seek(place.offset)
    return file.read(place.size)


def _row(content: bytes) -> dict:
    try:
        row = json.loads(content)
    except ValueError:
        return {}
    return row if isinstance(row, dict) else {}


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
