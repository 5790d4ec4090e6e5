"""An image set on disk, painted or photographed: tar shards of PNGs beside a Parquet manifest, and ONE reader for both.

    folder/00000.tar 00001.tar …     `tar xf` gives a browsable folder <class_id>/<image_id>.png
    folder/manifest.parquet          one row an image: image_id, shard, offset, size, sha256, width, height, class_name,
                                     class_id, and whatever its maker adds (prompt, seed, generator_digest, …)

Offsets make every image reachable without the tar's own index; finished shards survive an interruption.
"""

import hashlib
import io
import os
import tarfile
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from cilkit import artifacts
from cilkit.data.imagesets import ImageSet, Source, number
from cilkit.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

MANIFEST = "manifest.parquet"
COLUMNS = ("image_id", "shard", "offset", "size", "sha256", "width", "height", "class_name", "class_id")


def open_set(folder, verify: bool = False, classes: Sequence[str] | None = None) -> ImageSet:
    """Open a folder of shards (or an artifact that is one).

    verify:  hash every image and compare with the manifest (the sizes of the shards are always compared).
    classes: the class names expected, in label order; without it, the manifest's classes by class_id.
    Raises UserError for a missing manifest, a missing, truncated or altered shard, a class without images.
    """
    folder = Path(getattr(folder, "path", folder))
    source = Shards(folder)
    source.check(verify)
    classes = source.class_names if classes is None else classes
    labels = number(source.codes, source.class_names, classes, f"the image set {folder.name}")
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
            return {int(name[:-4]) for name in _read_parquet(self.folder / MANIFEST)["shard"].unique()}
        rows = {int(path.name.split(".")[0]) for path in self.folder.glob("*.rows.parquet")}
        return {number for number in rows if (self.folder / _shard_name(number)).exists()}

    def add(self, image: np.ndarray, row: dict) -> None:
        """Add one image, uint8 (h, w, 3), to the first unfinished shard. `row` needs image_id, class_id, class_name."""
        self._pending.append((encode_png(image), {**row, "width": image.shape[1], "height": image.shape[0]}))
        if len(self._pending) == self.shard_size:
            self._flush()

    def close(self) -> None:
        """Write the last shard and the manifest. Raises UserError when nothing was ever added."""
        if self._pending:
            self._flush()
        if (self.folder / MANIFEST).exists():
            return
        import pandas as pd

        paths = sorted(self.folder.glob("*.rows.parquet"))
        if not paths:
            raise UserError(f"image set {self.folder.name} has no images; add at least one before closing it.")
        artifacts.write_parquet(self.folder / MANIFEST, pd.concat([_read_parquet(p) for p in paths], ignore_index=True))
        for path in paths:
            path.unlink()

    def _flush(self) -> None:
        finished = self.finished
        number = next(n for n in range(len(finished) + 1) if n not in finished)
        write_shard(self.folder, number, self._pending)
        self._pending = []


def write_shard(folder, number: int, members: Sequence[tuple[bytes, dict]]) -> None:
    """Write one whole shard: (PNG bytes, row) pairs in order, nothing else, decide its bytes. The rows come last."""
    import pandas as pd

    folder, name, rows, buffer = Path(folder), _shard_name(number), [], io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for png, row in members:
            info = tarfile.TarInfo(f"{row['class_id']:03d}/{row['image_id']}.png")  # mtime, uid and gid are 0
            info.size = len(png)
            offset = buffer.tell() + tarfile.BLOCKSIZE * _header_blocks(info)
            tar.addfile(info, io.BytesIO(png))
            sha = hashlib.sha256(png).hexdigest()
            rows.append({**row, "shard": name, "offset": offset, "size": len(png), "sha256": sha})
    table = pd.DataFrame(rows)
    order = [*COLUMNS, *(column for column in table.columns if column not in COLUMNS)]
    artifacts.atomic_write(folder / name, buffer.getvalue())
    artifacts.write_parquet(folder / f"{number:05d}.rows.parquet", table[order])


def encode_png(image: np.ndarray) -> bytes:
    """PNG bytes of one uint8 (h, w, 3) image."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
        raise UserError(f"an image is {image.dtype} {image.shape}; expected uint8 (height, width, 3).")
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


class Shards(Source):
    """Pixels in the shards of one folder; the columns of the manifest are read when they are asked for."""

    def __init__(self, folder: Path):
        if not (folder / MANIFEST).exists():
            raise UserError(f"{folder} holds no {MANIFEST}, so it is no finished image set; paint or build it first.")
        self.folder = folder
        self._pixels: np.ndarray | list[np.ndarray] | None = None
        self._shards, self._shard = self._names("shard")
        self._offset, self._size = self._column("offset"), self._column("size")
        self.sizes = np.stack([self._column("height"), self._column("width")], axis=1).astype(np.int32)
        names, codes = self._names("class_name")
        first = np.unique(codes, return_index=True)[1]
        order = np.argsort(self._column("class_id")[first])  # of the names, by class_id
        self.class_names = [names[code] for code in order]
        self.codes = np.argsort(order)[codes]  # int64 (n,), indices into class_names

    @cached_property
    def manifest(self) -> "pd.DataFrame":
        return _read_parquet(self.folder / MANIFEST)

    @cached_property
    def key(self) -> str:
        return artifacts.sha256_of(self.folder / MANIFEST)  # which holds the sha256 of every image

    def _column(self, name: str) -> np.ndarray:
        if name not in self.manifest.columns:
            raise UserError(f"{self.folder / MANIFEST} lacks the column {name!r}; build the image set again.")
        return self.manifest[name].to_numpy()

    def _names(self, column: str) -> tuple[list[str], np.ndarray]:
        names, codes = np.unique(self._column(column).astype(str), return_inverse=True)
        return names.tolist(), codes

    def ids(self, rows: np.ndarray) -> np.ndarray:
        return self._column("image_id")[rows].astype(str)

    def read(self, rows: np.ndarray, shortest: int = 0) -> np.ndarray | list[np.ndarray]:
        if self._pixels is None:
            images = [self._decoded(row) for row in range(len(self.sizes))]
            self._pixels = np.stack(images) if self.uniform else images
        return self._pixels[rows] if self.uniform else [self._pixels[row] for row in rows]

    def check(self, verify: bool) -> None:
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
            for row, sha in enumerate(self._column("sha256")):
                if hashlib.sha256(self._bytes(row)).hexdigest() != sha:
                    raise self._altered(row)

    def _bytes(self, row: int) -> bytes:
        with open(self.folder / self._shards[self._shard[row]], "rb") as file:
            return os.pread(file.fileno(), int(self._size[row]), int(self._offset[row]))

    def _decoded(self, row: int) -> np.ndarray:
        try:
            return np.asarray(Image.open(io.BytesIO(self._bytes(row))).convert("RGB"))
        except OSError as error:
            raise self._altered(row) from error

    def _altered(self, row: int) -> UserError:
        image_id, shard = self.ids(np.array([row]))[0], self._shards[self._shard[row]]
        return UserError(
            f"image {image_id} in shard {self.folder / shard} is not the one that the manifest records; "
            f"delete the folder {self.folder} and build it again."
        )


def _shard_name(number: int) -> str:
    return f"{number:05d}.tar"


def _header_blocks(info: tarfile.TarInfo) -> int:
    return len(info.tobuf(tarfile.GNU_FORMAT)) // tarfile.BLOCKSIZE


def _read_parquet(path: Path) -> "pd.DataFrame":
    import pandas as pd

    try:
        return pd.read_parquet(path)
    except Exception as error:  # pyarrow raises several unrelated classes for a damaged file
        raise UserError(
            f"{path} is not readable Parquet; delete the folder {path.parent} and build it again."
        ) from error
