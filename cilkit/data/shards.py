"""An image set on disk, painted or photographed: shards beside a Parquet manifest, and ONE reader for all of them.

    folder/00000.tar 00001.tar …     encoded images; `tar xf` gives a browsable folder <class_id>/<image_id>.png, with
                                     sidecars each followed by its row, <class_id>/<image_id>.json
    folder/00000.rgb 00001.rgb …     or decoded ones: uint8 pixels (h, w, 3), one image after the other, nothing else
    folder/manifest.parquet          one row an image: image_id, shard, offset, size, sha256, width, height, class_name,
                                     class_id, and whatever its maker adds (prompt, seed, generator_digest, …)

Offsets make every image reachable without the tar's own index; finished shards survive an interruption. Opening reads
the few columns that locate images, so that a set of a million images opens in a second.
"""

import hashlib
import io
import json
import mmap
import os
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from cilkit import artifacts
from cilkit.artifacts import whole_file
from cilkit.data.decoding import decode
from cilkit.data.imagesets import ImageSet, Source, number
from cilkit.errors import UserError

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

MANIFEST = "manifest.parquet"
COLUMNS = ("image_id", "shard", "offset", "size", "sha256", "width", "height", "class_name", "class_id")
IN_MEMORY = 1 << 30  # bytes of pixels up to which an encoded set is decoded once and held
MAPPED = 1 << 28  # bytes of mapped files that may be looked at before their pages are given back
MERGED = 1 << 16  # rows after which the manifest's row group ends with the shard


def open_set(folder, verify: bool = False, classes: Sequence[str] | None = None) -> ImageSet:
    """Open a folder of shards (or an artifact that is one).

    verify:  hash every image and compare with the manifest (the sizes of the shards are always compared).
    classes: the class names expected, in label order; without it, the manifest's classes by class_id.
    Raises UserError for a missing manifest, a missing, truncated or altered shard, a class without images.
    """
    folder = Path(getattr(folder, "path", folder))
    if not (folder / MANIFEST).exists():
        raise UserError(f"{folder} holds no {MANIFEST}, so it is no finished image set; paint or build it first.")
    source = Flat(folder) if next(folder.glob("*.rgb"), None) else Encoded(folder)
    source.check(verify)
    classes = source.class_names() if classes is None else classes
    labels = number(source.codes, source.names, classes, f"the image set {folder.name}")
    keep = np.flatnonzero(labels >= 0)
    return ImageSet(source, keep, labels[keep], classes)


class ShardWriter:
    """Writes an image set shard by shard. A shard appears whole or not at all; finished ones are never written again.

    On resume, `finished` holds the numbers of the shards already there: leave out their images (image i of the set
    lies in shard i // shard_size) and `add` the rest in order. `close` writes the manifest and is the last step.
    """

    def __init__(self, folder, shard_size: int = 1000):
        self.folder = Path(folder)
        self.shard_size = shard_size
        self.folder.mkdir(parents=True, exist_ok=True)
        self._pending: list[tuple[bytes, dict]] = []

    @property
    def finished(self) -> set[int]:
        """Numbers of the shards that are written, with their rows."""
        if (self.folder / MANIFEST).exists():
            return {int(name[:-4]) for name in _distinct(self.folder / MANIFEST, "shard")}
        written = {path.stem for path in self.folder.iterdir() if path.suffix in (".tar", ".rgb")}
        return {number for number, path in _row_files(self.folder) if path.name.split(".")[0] in written}

    def add(self, image: np.ndarray, row: dict) -> None:
        """Add one image, uint8 (h, w, 3), to the first unfinished shard. `row` needs image_id, class_id, class_name."""
        self._pending.append((encode_png(image), {**row, "width": image.shape[1], "height": image.shape[0]}))
        if len(self._pending) == self.shard_size:
            self._flush()

    def close(self) -> None:
        """Write the last shard and the manifest. Raises UserError when nothing was ever added."""
        if self._pending:
            self._flush()
        merge_manifest(self.folder)

    def _flush(self) -> None:
        finished = self.finished
        number = next(n for n in range(len(finished) + 1) if n not in finished)
        write_shard(self.folder, number, self._pending)
        self._pending = []


def merge_manifest(folder: str | Path) -> Path:
    """The manifest from the rows of all shards, in their order, in memory that does not grow with the shards.

    The rows' files are removed at the end, and at once where the manifest is there. Shards of MERGED rows in all share
    a row group: 10 million images in 10,000 groups take hundreds of megabytes to open. Equal rows give equal bytes,
    whoever wrote the shards and in which order. UserError where no shard has an image.
    """
    from pyarrow.parquet import ParquetWriter

    folder = Path(folder)
    paths = [path for _, path in _row_files(folder)]
    if not (folder / MANIFEST).exists():
        schema = _schema(paths)
        if schema is None:
            raise UserError(f"image set {folder.name} has no images; add at least one before closing it.")
        with whole_file(folder / MANIFEST) as file, ParquetWriter(file, schema) as writer:
            for table in _grouped(paths, schema):
                writer.write_table(table)
    for path in paths:
        path.unlink()
    return folder / MANIFEST


def _schema(paths: Sequence[Path]) -> "pa.Schema | None":
    """The columns of all shards' rows; None where there is no row."""
    import pyarrow as pa
    from pyarrow.parquet import ParquetFile

    found: dict[pa.Schema, None] = {}  # in order; nearly always one
    for path in paths:
        with _readable(path), ParquetFile(path) as file:
            if file.metadata.num_rows:
                found[file.schema_arrow.remove_metadata()] = None
    return pa.unify_schemas(list(found), promote_options="permissive") if found else None


def _grouped(paths: Sequence[Path], schema: "pa.Schema") -> "Iterator[pa.Table]":
    """The rows of shards after one another, as tables of about MERGED rows."""
    import pyarrow as pa

    held = schema.empty_table()
    for path in paths:
        held = pa.concat_tables([held, _read_table(path)], promote_options="permissive")
        if len(held) >= MERGED:
            yield held.combine_chunks()
            held = schema.empty_table()
    if len(held):
        yield held.combine_chunks()


def _row_files(folder: Path) -> list[tuple[int, Path]]:
    """(shard, file of its rows), in the order of the shards."""
    return sorted((int(path.name.split(".")[0]), path) for path in folder.glob("*.rows.parquet"))


def write_shard(folder, number: int, members: Iterable[tuple[bytes, dict]], sidecars: bool = False) -> None:
    """Write one whole tar shard: (encoded image, row) pairs in order, nothing else, decide its bytes; rows are last.

    sidecars: each image is followed by a member of the same name, `.json`: its row with its sha256, in one line.
    """
    folder, name, rows = Path(folder), f"{number:05d}.tar", []
    with whole_file(folder / name) as file, tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for data, row in members:
            suffix = "jpg" if data[:2] == b"\xff\xd8" else "png" if data[:4] == b"\x89PNG" else "image"
            stem = f"{row['class_id']:03d}/{row['image_id']}"
            offset = add_member(tar, f"{stem}.{suffix}", data)
            rows.append(_located(row, name, offset, data))
            if sidecars:
                add_member(tar, f"{stem}.json", sidecar({**row, "sha256": rows[-1]["sha256"]}))
    write_rows(folder, number, rows)


def sidecar(row: dict) -> bytes:
    """A row as one line of JSON, its keys in their order; what is missing (NaN) is null, as it is in Parquet."""
    known = {key: None if value != value else value for key, value in row.items()}
    return json.dumps(known, ensure_ascii=False, default=lambda value: value.tolist()).encode()


def add_member(tar: tarfile.TarFile, name: str, data: bytes) -> int:
    """Append a file to a tar; where its content begins."""
    info = tarfile.TarInfo(name)  # mtime, uid and gid are 0
    info.size = len(data)
    offset = tar.offset + len(info.tobuf(tarfile.GNU_FORMAT))
    tar.addfile(info, io.BytesIO(data))
    return offset


def write_flat(folder, number: int, members: Iterable[tuple[np.ndarray, dict]]) -> None:
    """Write one whole shard of decoded images: (uint8 (h, w, 3), row) pairs in order. The rows come last."""
    folder, name, rows = Path(folder), f"{number:05d}.rgb", []
    with whole_file(folder / name) as file:
        for pixels, row in members:
            data = np.ascontiguousarray(pixels).data.cast("B")
            rows.append(_located(row, name, file.tell(), data))
            file.write(data)
    write_rows(folder, number, rows)


def _located(row: dict, shard: str, offset: int, data) -> dict:
    return {**row, "shard": shard, "offset": offset, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def write_rows(folder, number: int, rows: "list[dict] | pd.DataFrame") -> None:
    """The rows of one shard, written after it: only then is it finished. COLUMNS come first, then the maker's own."""
    import pandas as pd

    table = pd.DataFrame(rows)
    order = [*COLUMNS, *(column for column in table.columns if column not in COLUMNS)] if len(table) else []
    artifacts.write_parquet(Path(folder) / f"{number:05d}.rows.parquet", table[order])


def encode_png(image: np.ndarray) -> bytes:
    """PNG bytes of one uint8 (h, w, 3) image."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
        raise UserError(f"an image is {image.dtype} {image.shape}; expected uint8 (height, width, 3).")
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


class Shards(Source):
    """The shards of one folder; a column of the manifest is read when it is asked for."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._shards, self._shard = self._coded("shard")
        self._offset, self._size, self._class_id = map(self._whole, ("offset", "size", "class_id"))
        self.sizes = np.empty((len(self._size), 2), np.int32)
        self.sizes[:, 0], self.sizes[:, 1] = self._whole("height"), self._whole("width")
        self.names, self.codes = self._coded("class_name")  # codes: (n,), indices into names
        self.streamed = bool(3 * self.sizes.prod(axis=1, dtype=np.int64).sum() > IN_MEMORY)

    def columns(self, *names: str) -> "pa.Table":
        """Columns of the manifest, one row an image."""
        from pyarrow.parquet import ParquetFile

        path = self.folder / MANIFEST
        with _readable(path):
            file = ParquetFile(path, read_dictionary=["shard", "class_name"])
        with file:
            missing = [name for name in (*COLUMNS, *names) if name not in file.schema_arrow.names]
            if missing:
                raise UserError(f"{path} lacks the column {missing[0]!r}; build the image set again.")
            with _readable(path):
                return file.read(columns=list(names))

    def _whole(self, name: str) -> np.ndarray:
        """One column of numbers; one at a time, because a table of all would stand beside its copies."""
        return self.columns(name)[name].to_numpy()

    def _coded(self, name: str) -> tuple[list[str], np.ndarray]:
        """A column of texts as (distinct texts, int (n,) indices into them)."""
        coded = self.columns(name)[name].combine_chunks()
        return coded.dictionary.to_pylist(), coded.indices.to_numpy()

    def class_names(self) -> list[str]:
        """The classes that occur, by class_id."""
        return [self.names[code] for code in self.codes[np.unique(self._class_id, return_index=True)[1]]]

    @cached_property
    def manifest(self) -> "pd.DataFrame":
        return _read_parquet(self.folder / MANIFEST)

    @cached_property
    def key(self) -> str:
        return artifacts.sha256_of(self.folder / MANIFEST)  # which holds the sha256 of every image

    @cached_property
    def _ids(self) -> "pa.ChunkedArray":
        return self.columns("image_id")["image_id"]

    def ids(self, rows: np.ndarray) -> np.ndarray:
        return self._ids.take(rows).to_numpy().astype(str)

    def check(self, verify: bool) -> None:
        """Compare the sizes of the shards with the manifest; verify: and the hash of every image."""
        needed = np.zeros(len(self._shards), np.int64)
        np.maximum.at(needed, self._shard, self._offset + self._size)
        for name, size in zip(self._shards, needed.tolist(), strict=True):
            path = self.folder / name
            if not path.exists():
                raise UserError(f"shard {path} is missing; delete the folder {self.folder} and build it again.")
            if path.stat().st_size < size:
                raise UserError(
                    f"shard {path} is truncated ({path.stat().st_size} bytes, the manifest needs {size}); "
                    f"delete the folder {self.folder} and build it again."
                )
        if verify:
            for row, sha in enumerate(self.columns("sha256")["sha256"].to_pylist()):
                if hashlib.sha256(self._bytes(row)).hexdigest() != sha:
                    raise self._altered(row)

    def _together(self, rows: np.ndarray, images: Iterable[np.ndarray]) -> np.ndarray | list[np.ndarray]:
        """Images of these rows as `read` returns them."""
        if not self.uniform:
            return list(images)
        pixels = np.empty((len(rows), *self.sizes[0], 3), np.uint8)
        for place, image in enumerate(images):
            pixels[place] = image
        return pixels

    def _path(self, row: int) -> Path:
        return self.folder / self._shards[self._shard[row]]

    def _bytes(self, row: int):
        """What the shard holds of one image."""

    def _altered(self, row: int) -> UserError:
        return UserError(
            f"image {self.ids(np.array([row]))[0]} in shard {self._path(row)} is not the one that the manifest "
            f"records; delete the folder {self.folder} and build it again."
        )


class Encoded(Shards):
    """Tar shards: images are decoded when they are read, or all of them once where they fit into memory."""

    _held: np.ndarray | list[np.ndarray] | None = None

    def read(self, rows: np.ndarray, shortest: int = 0) -> np.ndarray | list[np.ndarray]:
        if self.streamed:
            return self._decoded(rows, shortest)
        if self._held is None:
            self._held = self._decoded(np.arange(len(self.sizes)), 0)
        return self._held[rows] if self.uniform else [self._held[row] for row in rows]

    def _decoded(self, rows: np.ndarray, shortest: int) -> np.ndarray | list[np.ndarray]:
        """Decoded by as many threads as there are cores. A set of one size keeps it: `shortest` is for mixed ones."""
        with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as crew:
            return self._together(rows, crew.map(lambda row: self._decode(row, 0 if self.uniform else shortest), rows))

    def _decode(self, row: int, shortest: int) -> np.ndarray:
        try:
            return decode(self._bytes(row), "", shortest)
        except UserError as error:
            raise self._altered(row) from error

    def encoded(self, row: int) -> bytes:
        return self._bytes(row)

    def _bytes(self, row: int) -> bytes:
        with open(self._path(row), "rb", buffering=0) as file:
            return os.pread(file.fileno(), int(self._size[row]), int(self._offset[row]))


class Flat(Shards):
    """Decoded shards, mapped into memory: an image is a view of the file, whose pages come as needed."""

    def __init__(self, folder: Path):
        super().__init__(folder)
        self._maps: dict[int, mmap.mmap] = {}
        self._looked_at = 0  # bytes handed out since the pages were last given back

    def read(self, rows: np.ndarray, shortest: int = 0) -> np.ndarray | list[np.ndarray]:
        self._looked_at += int(self._size[rows].sum())
        if self._looked_at > MAPPED:  # pages stay cached by the system, but no longer count as this process's memory
            self._looked_at = 0
            for mapped in list(self._maps.values()):
                mapped.madvise(mmap.MADV_DONTNEED)
        for row in rows:  # all at once: page by page, a cold disk is several times slower
            start, past = int(self._offset[row]) // mmap.PAGESIZE * mmap.PAGESIZE, self._offset[row] + self._size[row]
            self._map(row).madvise(mmap.MADV_WILLNEED, start, int(past) - start)
        return self._together(rows, (self._bytes(row).reshape(*self.sizes[row], 3) for row in rows))

    def _bytes(self, row: int) -> np.ndarray:
        return np.frombuffer(self._map(row), np.uint8, self._size[row], self._offset[row])

    def _map(self, row: int) -> mmap.mmap:
        shard = self._shard[row]
        if shard not in self._maps:
            with open(self._path(row), "rb") as file:
                self._maps[shard] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return self._maps[shard]


@contextmanager
def _readable(path: Path):
    try:
        yield
    except Exception as error:  # pyarrow raises several unrelated classes for a damaged file
        raise UserError(
            f"{path} is not readable Parquet; delete the folder {path.parent} and build it again."
        ) from error


def _read_table(path: Path) -> "pa.Table":
    from pyarrow.parquet import ParquetFile

    with _readable(path), ParquetFile(path) as file:
        return file.read()


def _distinct(path: Path, column: str) -> set[str]:
    """The values of one column, row group by row group."""
    from pyarrow.parquet import ParquetFile

    with _readable(path), ParquetFile(path) as file:
        groups = (file.read_row_group(k, [column])[column].unique() for k in range(file.num_row_groups))
        return {value for group in groups for value in group.to_pylist()}


def _read_parquet(path: Path) -> "pd.DataFrame":
    import pandas as pd

    with _readable(path):
        return pd.read_parquet(path)
