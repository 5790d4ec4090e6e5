"""Off the painter's path: while a batch is painted, the one before is encoded and kept, and a full shard assembled.

Each of the two is one thread that takes one piece at a time: handing it the next waits until it is free. So at most one
painted batch a worker is not on the disk yet, and a slow disk slows the painting instead of filling the memory.
"""

import io
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from cilkit import artifacts
from cilkit.data.decoding import decode
from cilkit.data.imagesets import ImageSet
from cilkit.data.shards import encode_png, write_shard

if TYPE_CHECKING:
    import pandas as pd

    from cilkit.synthesis.job import Job

THUMB = 64  # pixels of a thumbnail's longer side
SMALL = 96  # pixels on a side up to which an image is its own thumbnail
TOGETHER = 50  # thumbnails in a row group: what is read and unpacked for one of them


class Lane:
    """A thread that does one thing at a time; what it raised is raised by the next call."""

    def __init__(self) -> None:
        self.last: Future = Future()
        self.last.set_result(None)
        self._thread = ThreadPoolExecutor(1)

    def hand(self, work, *arguments) -> None:
        """Wait until the piece before is done, then start this one."""
        self.wait()
        self.last = self._thread.submit(work, *arguments)

    def wait(self) -> None:
        self.last.result()


class Writer:
    """Keeps batches and assembles shards of one job; a context that ends with everything handed in written.

    claims: the shards that this worker holds, until they are assembled.
    """

    def __init__(self, job: "Job"):
        self.job, self.claims = job, {}
        self._keeping, self._assembling = Lane(), Lane()
        self._encoders = ThreadPoolExecutor(min(4, os.cpu_count() or 1))  # zlib runs beside Python

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, kind, *_) -> None:
        try:
            self.flush()
        except Exception:
            if kind is None:  # else the first error is the one to tell
                raise
        finally:
            for claim in self.claims.values():
                with suppress(OSError):
                    claim.release()

    def claim(self, shard: int) -> bool:
        """Whether this worker now holds the shard, and has something to do for it."""
        if self.job.is_finished(shard) or (claim := self.job.claim(shard)) is None:
            return False
        self.claims[shard] = claim
        if self.job.is_finished(shard):  # between our look and our claim
            self.claims.pop(shard).release()
        return shard in self.claims

    def keep(self, shard: int, batch: int, images: np.ndarray, rows: "pd.DataFrame") -> None:
        """Take a painted batch, uint8 (n, size, size, 3) with its rows. Raises what writing the one before raised."""
        self._keeping.hand(self._keep, self.job.batch_file(shard, batch), images, rows)

    def assemble(self, shard: int) -> None:
        """Take a shard whose batches are all kept or handed in."""
        self._assembling.hand(self._assemble, shard, self._keeping.last)

    def flush(self) -> None:
        """Wait until everything handed in is on the disk."""
        try:
            self._keeping.wait()
        finally:
            self._assembling.wait()

    def _keep(self, file: Path, images: np.ndarray, rows: "pd.DataFrame") -> None:
        height, width = images.shape[1:3]
        encoded = list(self._encoders.map(encode_png, images))
        table = rows.assign(width=width, height=height, image=encoded)
        if max(height, width) > SMALL:
            table["thumb"] = list(self._encoders.map(encode_thumb, images))
        artifacts.write_parquet(file, table)

    def _assemble(self, shard: int, kept: Future) -> None:
        """Write a shard whose batches are all kept, then drop their files. Its rows come last: they say it is whole."""
        kept.result()
        files = self.job.batch_files(shard)
        if self.claims[shard].still_ours():
            _write_thumbs(self.job.folder, shard, files)
            write_shard(self.job.folder, shard, _members(files, self.job.origin), sidecars=True)
            for file in files:
                file.unlink(missing_ok=True)
        self.claims.pop(shard).release()


def _members(files: Sequence[Path], origin: dict) -> Iterator[tuple[bytes, dict]]:
    """(encoded image, row) of every kept image, a batch in memory at a time."""
    import pandas as pd

    for file in files:
        for row in pd.read_parquet(file).drop(columns="thumb", errors="ignore").to_dict("records"):
            yield row.pop("image"), row | origin


def encode_thumb(image: np.ndarray) -> bytes:
    """JPEG bytes of an image whose longer side is THUMB pixels."""
    buffer = io.BytesIO()
    Image.fromarray(shrunk(image)).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def shrunk(image: np.ndarray) -> np.ndarray:
    """An image at most THUMB pixels on a side; a smaller one as it is."""
    small = Image.fromarray(image)
    small.thumbnail((THUMB, THUMB))
    return np.asarray(small)


def _write_thumbs(folder: Path, shard: int, files: Sequence[Path]) -> None:
    """A shard's thumbnails in the order of its images, in row groups so small that a gallery reads few at a time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if files and "thumb" in pq.read_schema(files[0]).names:
        table = pa.concat_tables([pq.read_table(file, columns=["image_id", "thumb"]) for file in files])
        sink = pa.BufferOutputStream()
        table = table.rename_columns(["image_id", "jpeg"]).replace_schema_metadata(None)
        pq.write_table(table.combine_chunks(), sink, row_group_size=TOGETHER, use_dictionary=False)
        artifacts.atomic_write(folder / f"{shard:05d}.thumbs.parquet", sink.getvalue().to_pybytes())


class Thumbs:
    """Small versions of images, encoded (JPEG, PNG or WebP), for galleries that show a page of a large set at a time.

    Taken from the shards' thumbnails where they were painted with the set; else an image of at most SMALL pixels on a
    side is its own, and a larger one is decoded and shrunk. Of a large set, only what is asked for is read.
    """

    def __init__(self, images: ImageSet) -> None:
        self.images = images
        folder = getattr(images.source, "folder", None)
        if folder is None or next(folder.glob("*.thumbs.parquet"), None) is None:
            folder = None
        else:
            shards = images.source.columns("shard")["shard"].combine_chunks()
            self._shards, self._shard = shards.dictionary.to_pylist(), shards.indices.to_numpy()
            self._first = np.full(len(self._shards), len(self._shard))  # the manifest holds a shard's rows together
            np.minimum.at(self._first, self._shard, np.arange(len(self._shard)))
        self._folder = folder

    def encoded(self, index: Sequence[int]) -> list[bytes]:
        """Of the images at these positions, at most THUMB pixels on a side unless the originals are small."""
        index = np.asarray(index, np.int64)
        painted = self._painted(index) if self._folder else {}
        return [painted[place] if place in painted else self._made(at) for place, at in enumerate(index.tolist())]

    def _made(self, at: int) -> bytes:
        """The small version of one image that has no painted one."""
        row = self.images.index[at]
        data = self.images.source.encoded(row)
        if data is not None and self.images.source.sizes[row].max() <= SMALL and shown(data):
            return data
        return encode_webp(shrunk(_pixels(self.images, at, data, THUMB)))

    def _painted(self, index: np.ndarray) -> dict[int, bytes]:
        """{place in `index`: JPEG} of those whose shard has thumbnails; every row group is read once."""
        rows, found = self.images.index[index], {}
        ids = self.images.source.ids(rows)
        for shard in np.unique(self._shard[rows]).tolist():
            path = self._folder / f"{Path(self._shards[shard]).stem}.thumbs.parquet"
            places = np.flatnonzero(self._shard[rows] == shard)
            if path.exists():
                wanted = rows[places] - self._first[shard]  # the row within the shard
                for place, (image_id, jpeg) in zip(places.tolist(), _rows_of(path, wanted), strict=True):
                    if image_id == ids[place]:
                        found[place] = jpeg
        return found


def _rows_of(path: Path, rows: np.ndarray) -> list[tuple[str, bytes]]:
    """(image_id, jpeg) at these rows of a shard's thumbnails; ("", b"") past its end."""
    from pyarrow.parquet import ParquetFile

    found = [("", b"")] * len(rows)
    with ParquetFile(path, memory_map=True) as file:
        ends = np.cumsum([file.metadata.row_group(k).num_rows for k in range(file.num_row_groups)])
        groups = np.searchsorted(ends, rows, side="right")
        for group in np.unique(groups[groups < len(ends)]).tolist():
            table = file.read_row_group(group, columns=["image_id", "jpeg"])
            for place in np.flatnonzero(groups == group).tolist():
                row = int(rows[place] - ends[group] + len(table))
                found[place] = (table["image_id"][row].as_py(), table["jpeg"][row].as_py())
    return found


def original(images: ImageSet, at: int) -> bytes:
    """One image as a browser shows it, pixel by pixel: its own file where that is JPEG, PNG or WebP, else WebP."""
    data = images.source.encoded(images.index[at])
    return data if data is not None and shown(data) else encode_webp(_pixels(images, at, data), lossless=True)


def pixels(images: ImageSet, at: int) -> np.ndarray:
    """One image, uint8 (h, w, 3), without decoding the others of a set that would be held in memory as a whole."""
    return _pixels(images, at, images.source.encoded(images.index[at]))


def _pixels(images: ImageSet, at: int, data: bytes | None, shortest: int = 0) -> np.ndarray:
    if data is None:
        return images.read([at])[0]
    return decode(data, f"image {images.source.ids(images.index[[at]])[0]}", shortest)


def shown(data: bytes) -> bool:
    """Whether a browser shows this file as it is."""
    return data[:3] == b"\xff\xd8\xff" or data[:8] == b"\x89PNG\r\n\x1a\n" or data[8:12] == b"WEBP"


def encode_webp(image: np.ndarray, lossless: bool = False) -> bytes:
    """WebP bytes of a uint8 (h, w, 3) image."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "WEBP", quality=85, lossless=lossless, method=0)
    return buffer.getvalue()


def thumbnails(images: ImageSet, index: Sequence[int]) -> list[np.ndarray]:
    """Small versions of images, decoded, for figures: uint8 (h, w, 3), at most THUMB pixels on a side, as `Thumbs`."""
    return [shrunk(decode(data, "a thumbnail")) for data in Thumbs(images).encoded(index)]
