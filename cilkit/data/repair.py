"""A damaged image set: what is wrong with it, each thing by its name, and its manifest written anew from its tars."""

import hashlib
import itertools
import json
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

import numpy as np

from cilkit.data import shards
from cilkit.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

ENDING = 1024  # bytes of zeros, at least, with which a tar ends


class Finding(NamedTuple):
    """One thing that is wrong. kind: a word for programs; where: a file, or an image in a shard; text: what it is."""

    kind: str
    where: str
    text: str

    def __str__(self) -> str:
        return f"{self.where}: {self.text}"


def examine(folder: str | Path) -> list[Finding]:
    """Everything that is wrong with an image set; nothing is changed. Every image is read and hashed once.

    kinds: "manifest" (missing or broken), "missing" (a shard), "truncated", "altered" (an image, the row beside one, a
    tar's structure), "orphan" (a shard or member that the manifest does not list), "duplicate" (an image_id),
    "leftover"; "unfinished" of a set that is being painted. Without a readable manifest, each tar is held against its
    own rows, up to its first damage.
    """
    folder = _image_folder(folder)
    found, unlisted = list(_leftovers(folder)), {path.name: path for path in _shards(folder)}
    try:
        for name, rows in _listed(folder):
            if name in unlisted:
                found += _in_shard(unlisted.pop(name), rows)
            else:
                found.append(Finding("missing", name, f"the shard is missing, and with it {len(rows):,} images"))
        found += [Finding("orphan", name, "the manifest lists no image of this shard") for name in unlisted]
        found += _duplicates(folder)
    except UserError as error:
        if _is_in_the_making(folder):
            found = [Finding("unfinished", folder.name, "it is being painted, or was stopped; paint again to end it")]
        else:
            found.append(Finding("manifest", shards.MANIFEST, f"{error}; `rebuild` writes it anew from the tars"))
        for path in unlisted.values():
            try:
                _rows_of(path)
            except UserError as damage:
                found.append(Finding("altered", path.name, str(damage)))
    return found


def rebuild(folder: str | Path) -> Path:
    """Write the manifest anew from the tars and the row that lies beside each image; equal rows give equal bytes.

    Only whole shards are taken: UserError naming the first that is not, or the image that is not what its row says,
    before anything is changed; and for a set that is being painted. Returns the manifest's path.
    """
    folder = _image_folder(folder)
    paths = _shards(folder)
    if _is_in_the_making(folder):
        raise UserError(
            f"{folder} is being painted, or was stopped: paint again to end it; to keep only the shards that are done, "
            "delete its folder scratch first"
        )
    if not paths or paths[0].suffix != ".tar":
        raise UserError(f"{folder} holds no tar shards, so no manifest can be rebuilt; build the image set again")
    with tempfile.TemporaryDirectory(dir=folder, prefix="scratch-") as tables:
        for path in paths:
            shards.write_rows(tables, int(path.stem), _rows_of(path))
        for old in [folder / shards.MANIFEST, *folder.glob("*.rows.parquet")]:
            old.unlink(missing_ok=True)
        for table in sorted(Path(tables).iterdir()):
            table.replace(folder / table.name)
    return shards.merge_manifest(folder)


def _image_folder(folder: str | Path) -> Path:
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; name the folder of an image set")
    if (folder / "keep.parquet").exists():
        raise UserError(f"{folder} chooses among the images of another set and holds none; name that set's folder")
    return folder


def _is_in_the_making(folder: Path) -> bool:
    return not (folder / shards.MANIFEST).exists() and any(folder.glob("scratch/*/order.json"))


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
            for batch in file.iter_batches():
                held = pd.concat([held, batch.to_pandas()], ignore_index=True)
                names = held[[*shards.COLUMNS]]["shard"].to_numpy()  # none of them may be missing
                cuts = np.flatnonzero(names[1:] != names[:-1]) + 1
                for start, end in itertools.pairwise([0, *cuts.tolist()]):
                    yield names[start], held.iloc[start:end]
                held = held.iloc[cuts[-1] if len(cuts) else 0 :]
    except Exception as error:  # pyarrow raises several unrelated classes for a damaged file
        raise UserError("the manifest is not readable Parquet, or lacks a column") from error
    if held is not None:
        yield held["shard"].iloc[0], held


def _duplicates(folder: Path) -> Iterator[Finding]:
    import pyarrow.parquet

    ids = pyarrow.parquet.read_table(folder / shards.MANIFEST, columns=["image_id"])["image_id"]
    for found in ids.value_counts().to_pylist():
        if found["counts"] > 1:
            yield Finding("duplicate", found["values"], f"the manifest lists this image_id {found['counts']} times")


def _in_shard(path: Path, rows: "pd.DataFrame") -> Iterator[Finding]:
    """What is wrong with one shard, held against its rows of the manifest."""
    length, cut, listed = path.stat().st_size, [], {row["offset"]: row for row in rows.to_dict("records")}
    with open(path, "rb") as file:
        for offset, row in listed.items():
            if offset + row["size"] > length:
                cut.append(row["image_id"])
            elif _sha256(_content(file, offset, row["size"])) != row["sha256"]:
                yield Finding("altered", f"{path.name}: {row['image_id']}", "the image is not the one that was painted")
        if cut:
            yield Finding("truncated", path.name, f"it ends early: {len(cut):,} images are cut off, first {cut[0]}")
        if path.suffix == ".tar":
            members, whole = _walk(path)
            yield from _beside(file, path.name, listed, members)
            if not whole and not cut:
                text = f"the tar cannot be read on behind {members[-1].name if members else 'its beginning'}"
                yield Finding("altered", path.name, f"{text}; delete this shard and rebuild to keep the others")
        elif extra := max(0, length - rows["size"].sum()):
            yield Finding("orphan", path.name, f"{extra:,} bytes belong to no image of the manifest")


def _beside(file: BinaryIO, shard: str, listed: dict[int, dict], members: list[tarfile.TarInfo]) -> Iterator[Finding]:
    """Members that the manifest does not know, and rows beside images that say something else than it does."""
    known = {_stem(member): listed[member.offset_data] for member in members if member.offset_data in listed}
    for member in members:
        row = known.get(_stem(member))
        if row is None or not (_is_row(member) or member.offset_data in listed):
            yield Finding("orphan", f"{shard}: {member.name}", "the manifest does not list this member")
        elif _is_row(member) and not _agree(_row(file, member), row):
            yield Finding("altered", f"{shard}: {member.name}", "the row beside the image is not the manifest's")


def _agree(beside: dict, row: dict) -> bool:
    """Whether the two say the same; what is missing in the manifest's row (NaN) may be absent beside the image."""
    left_out = {key for key, value in row.items() if value is None or value != value} | {"shard", "offset", "size"}
    wanted, have = ({key: one[key] for key in one.keys() - left_out} for one in (row, beside))
    return wanted == have


def _walk(path: Path) -> tuple[list[tarfile.TarInfo], bool]:
    """The members of a tar, and whether it is whole to its end."""
    members: list[tarfile.TarInfo] = []
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                members.append(member)
    except (tarfile.TarError, OSError, ValueError):
        return members, False
    with open(path, "rb") as file:
        file.seek(members[-1].offset_data + members[-1].size if members else 0)
        tail = file.read()  # the last block's padding and the ending
    return members, len(tail) >= ENDING and not any(tail)


def _rows_of(path: Path) -> list[dict]:
    """The rows of one tar, from beside its images; UserError where it is not whole, or an image is another."""
    members, whole = _walk(path) if path.suffix == ".tar" else ([], True)
    beside, found = {_stem(member): member for member in members if _is_row(member)}, []
    wrong = "" if whole else "it is damaged or ends early"
    with open(path, "rb") as file:
        for image in (member for member in members if not _is_row(member)):
            row = _row(file, beside[_stem(image)]) if _stem(image) in beside else {}
            if not row:
                wrong = wrong or f"no row lies beside {image.name}"
            elif row.get("sha256") != _sha256(_content(file, image.offset_data, image.size)):
                wrong = wrong or f"{image.name} is not the image that the row beside it describes"
            found.append({**row, "shard": path.name, "offset": image.offset_data, "size": image.size})
    if wrong:
        raise UserError(f"{path}: {wrong}; delete this shard and rebuild to keep the others, or paint the set again")
    return found


def _stem(member: tarfile.TarInfo) -> str:
    return member.name.rpartition(".")[0]


def _is_row(member: tarfile.TarInfo) -> bool:
    return member.name.endswith(".json")


def _row(file: BinaryIO, member: tarfile.TarInfo) -> dict:
    """What the JSON in a tar says; nothing for what is no JSON object."""
    try:
        row = json.loads(_content(file, member.offset_data, member.size))
    except ValueError:
        return {}
    return row if isinstance(row, dict) else {}


def _content(file: BinaryIO, offset: int, size: int) -> bytes:
    file.seek(offset)
    return file.read(size)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
