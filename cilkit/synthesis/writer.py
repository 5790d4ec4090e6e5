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
from cilkit.data.imagesets import ImageSet
from cilkit.data.shards import encode_png, write_shard

if TYPE_CHECKING:
    import pandas as pd

    from cilkit.synthesis.job import Job

THUMB = 64  # pixels of a thumbnail's longer side
SMALL = 96  # pixels on a side up to which an image is its own thumbnail


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
    import pandas as pd
    from pyarrow.parquet import read_schema

    if files and "thumb" in read_schema(files[0]).names:
        table = pd.concat([pd.read_parquet(file, columns=["image_id", "thumb"]) for file in files], ignore_index=True)
        artifacts.write_parquet(folder / f"{shard:05d}.thumbs.parquet", table.rename(columns={"thumb": "jpeg"}))


def thumbnails(images: ImageSet, index: Sequence[int]) -> list[np.ndarray]:
    """Small versions of images, for galleries: uint8 (h, w, 3), at most THUMB pixels on a side.

    Read from the shards' thumbnails where they were painted with the set; images of other sets are made smaller here.
    """
    index = np.asarray(index, np.int64)
    ids, painted = images.ids[index].tolist(), _painted_thumbs(images, index)
    missing = [place for place, image_id in enumerate(ids) if image_id not in painted]
    small = dict(zip(missing, images.read(index[missing]), strict=True)) if missing else {}
    return [
        shrunk(small[place]) if place in small else np.asarray(Image.open(io.BytesIO(painted[image_id])))
        for place, image_id in enumerate(ids)
    ]


def _painted_thumbs(images: ImageSet, index: np.ndarray) -> dict[str, bytes]:
    """{image_id: JPEG} of those images whose shard has thumbnails."""
    from pyarrow.parquet import read_table

    folder = getattr(images.source, "folder", None)
    if folder is None or next(folder.glob("*.thumbs.parquet"), None) is None:
        return {}
    shards = images.source.columns("shard")["shard"].take(images.index[index]).to_pylist()
    found = {}
    for shard in dict.fromkeys(shards):
        path = folder / f"{Path(shard).stem}.thumbs.parquet"
        if path.exists():
            rows = read_table(path, filters=[("image_id", "in", images.ids[index].tolist())])
            found |= dict(zip(rows["image_id"].to_pylist(), rows["jpeg"].to_pylist(), strict=True))
    return found
