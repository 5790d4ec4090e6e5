"""An image set on disk, painted or photographed: tar shards of PNGs beside a Parquet manifest, and ONE reader for both.

    folder/00000.tar 00001.tar …     `tar xf` gives a browsable folder <class_id>/<image_id>.png
    folder/manifest.parquet          one row an image: image_id, shard, offset, size, sha256, width, height, class_name,
                                     class_id, and whatever its maker adds (prompt, seed, generator_digest, …)

Offsets make every image reachable without the tar's own index; finished shards survive an interruption.
"""

import hashlib
import io
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from cilkit import artifacts
from cilkit.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

MANIFEST = "manifest.parquet"
COLUMNS = ("image_id", "shard", "offset", "size", "sha256", "width", "height", "class_name", "class_id")


class ImageSet:
    """Images with labels, ids and class names; decoded once, when first asked for, and then kept in memory.

    class_names: one name a label; subsets keep the whole list, so that a label means the same class in all of them.
    labels:      int64 (n,), indices into class_names.
    ids:         str (n,).
    index:       int64 (n,), positions of these images in the set that was opened (kept through every subset).
    """

    artifact: "artifacts.Artifact | None" = None  # the artifact it was opened from; set by whoever knows it

    def __init__(self, source: "_Source", index: np.ndarray, labels: np.ndarray, class_names: Sequence[str]):
        self._source = source
        self.index = np.asarray(index, np.int64)
        self.labels = np.asarray(labels, np.int64)
        self.class_names = list(class_names)

    @classmethod
    def open(cls, folder, verify: bool = False, classes: Sequence[str] | None = None) -> "ImageSet":
        """Open a folder of shards (or an artifact that is one).

        verify:  hash every image and compare with the manifest (the sizes of the shards are always compared).
        classes: the class names expected, in label order; without it, the manifest's classes by class_id.
        Raises UserError for a missing manifest, a missing, truncated or altered shard, a class without images.
        """
        folder = Path(getattr(folder, "path", folder))
        source = _Shards(folder)
        source.check(verify)
        rows = source.manifest
        if classes is None:
            classes = rows.drop_duplicates("class_id").sort_values("class_id")["class_name"].tolist()
        labels = _number(rows["class_name"].to_numpy(), classes, f"the image set {folder.name}")
        keep = np.flatnonzero(labels >= 0)
        return cls(source, keep, labels[keep], classes)

    @classmethod
    def from_arrays(cls, images, labels, class_names: Sequence[str], ids=None) -> "ImageSet":
        """A set from memory. images: uint8 (n, h, w, 3); labels: (n,) indices into class_names; ids: (n,) or None."""
        images, labels = np.asarray(images), np.asarray(labels, np.int64)
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
            raise UserError(f"images are {images.dtype} {images.shape}; expected uint8 (n, height, width, 3).")
        if len(labels) != len(images):
            raise UserError(f"{len(images)} images came with {len(labels)} labels; give one label an image.")
        if len(labels) and not 0 <= labels.min() <= labels.max() < len(class_names):
            bad = labels[(labels < 0) | (labels >= len(class_names))][0]
            raise UserError(f"label {bad} is outside the {len(class_names)} class names; expected 0 … n - 1.")
        _demand_images(np.bincount(labels, minlength=len(class_names)), class_names, "the image set")
        ids = np.array([f"{i:06d}" for i in range(len(images))] if ids is None else ids, dtype=str)
        return cls(_Arrays(images, ids), np.arange(len(images)), labels, class_names)

    def __len__(self) -> int:
        return len(self.index)

    def __repr__(self) -> str:
        return f"ImageSet({len(self)} images, {np.count_nonzero(self.counts)} of {len(self.class_names)} classes)"

    @property
    def ids(self) -> np.ndarray:
        """str (n,)."""
        return self._source.ids[self.index]

    @property
    def manifest(self) -> "pd.DataFrame | None":
        """The manifest's rows of these images, in this order; None for a set that never was on disk."""
        rows = self._source.manifest
        return None if rows is None else rows.iloc[self.index].reset_index(drop=True)

    @property
    def counts(self) -> np.ndarray:
        """Images a class, int64 (n_classes,)."""
        return np.bincount(self.labels, minlength=len(self.class_names))

    def images(self, index=None) -> np.ndarray:
        """Pixels, uint8 (n, height, width, 3), of all images or of those at `index` (positions in this set)."""
        return self._source.pixels()[self.index if index is None else self.index[index]]

    def select(self, index) -> "ImageSet":
        """The images at `index` (positions or a boolean mask), with the same class names and labels."""
        return ImageSet(self._source, self.index[index], self.labels[index], self.class_names)

    def of_classes(self, labels) -> "ImageSet":
        """The images whose label is among `labels`; labels and class names stay as they are."""
        return self.select(np.isin(self.labels, np.asarray(list(labels), np.int64)))

    def keep_classes(self, names: Sequence[str]) -> "ImageSet":
        """Only the classes named, renumbered in the order of `names`. UserError for one unknown or without images."""
        own = np.asarray(self.class_names, dtype=object)[self.labels]
        labels = _number(own, names, repr(self))
        keep = np.flatnonzero(labels >= 0)
        return ImageSet(self._source, self.index[keep], labels[keep], names)

    def split_by_seed(self, fraction: float, seed: int) -> tuple["ImageSet", "ImageSet"]:
        """(train, held_out): `fraction` of each class, at least one image, is held out; same seed, same split."""
        if not 0 < fraction < 1:
            raise UserError(f"held-out fraction {fraction} is not between 0 and 1; 0.1 holds out a tenth a class.")
        rng = np.random.default_rng(seed)
        held = np.zeros(len(self), bool)
        for label in np.unique(self.labels):
            members = np.flatnonzero(self.labels == label)
            if len(members) < 2:
                name = self.class_names[label]
                raise UserError(f"class {name!r} has one image only, which cannot be split; give it two or more.")
            count = min(max(1, round(fraction * len(members))), len(members) - 1)
            held[rng.permutation(members)[:count]] = True
        return self.select(~held), self.select(held)


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


class _Arrays:
    """Pixels that were in memory from the start."""

    manifest = None

    def __init__(self, images: np.ndarray, ids: np.ndarray):
        self._images, self.ids = images, ids

    def pixels(self) -> np.ndarray:
        return self._images


class _Shards:
    """Pixels in the shards of one folder."""

    def __init__(self, folder: Path):
        if not (folder / MANIFEST).exists():
            raise UserError(f"{folder} holds no {MANIFEST}, so it is no finished image set; paint or build it first.")
        self.folder = folder
        self.manifest = _read_parquet(folder / MANIFEST)
        missing = [column for column in COLUMNS if column not in self.manifest.columns]
        if missing:
            raise UserError(f"{folder / MANIFEST} lacks the column {missing[0]!r}; build the image set again.")
        self.ids = self.manifest["image_id"].to_numpy().astype(str)
        self._pixels: np.ndarray | None = None

    def check(self, verify: bool) -> None:
        needed = (self.manifest["offset"] + self.manifest["size"]).groupby(self.manifest["shard"]).max()
        for name, size in needed.items():
            path = self.folder / name
            if not path.exists():
                raise UserError(f"shard {path} is missing; delete the folder {self.folder} and build it again.")
            if path.stat().st_size < size:
                raise UserError(
                    f"shard {path} is truncated ({path.stat().st_size} bytes, the manifest needs {size}); "
                    f"delete the folder {self.folder} and build it again."
                )
        if verify:
            for data, image_id, shard, sha in self._members("image_id", "shard", "sha256"):
                if hashlib.sha256(data).hexdigest() != sha:
                    raise self._altered(image_id, shard)

    def pixels(self) -> np.ndarray:
        if self._pixels is None:
            images = []
            for data, image_id, shard in self._members("image_id", "shard"):
                try:
                    images.append(np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))
                except OSError as error:
                    raise self._altered(image_id, shard) from error
            sizes = sorted({image.shape for image in images})
            if len(sizes) > 1:
                raise UserError(
                    f"{self.folder} mixes image sizes {sizes[0][:2]} and {sizes[1][:2]}; give all the same."
                )
            self._pixels = np.stack(images)
        return self._pixels

    def _members(self, *columns: str):
        for shard, rows in self.manifest.groupby("shard", sort=False):
            data = (self.folder / shard).read_bytes()
            for row in rows[["offset", "size", *columns]].itertuples(index=False):
                yield data[row[0] : row[0] + row[1]], *row[2:]

    def _altered(self, image_id: str, shard: str) -> UserError:
        return UserError(
            f"image {image_id} in shard {self.folder / shard} is not the one that the manifest records; "
            f"delete the folder {self.folder} and build it again."
        )


_Source = _Arrays | _Shards


def _number(names: np.ndarray, classes: Sequence[str], where: str) -> np.ndarray:
    """Label of each name in the list `classes`, -1 where it is not listed; every listed class must occur."""
    place = {name: label for label, name in enumerate(classes)}
    if len(place) < len(classes):
        twice = next(name for name in classes if list(classes).count(name) > 1)
        raise UserError(f"class {twice!r} is named twice; name each class once.")
    labels = np.array([place.get(name, -1) for name in names], np.int64)
    _demand_images(np.bincount(labels[labels >= 0], minlength=len(classes)), classes, where)
    return labels


def _demand_images(counts: np.ndarray, class_names: Sequence[str], where: str) -> None:
    empty = np.flatnonzero(counts == 0)
    if len(empty):
        others = f" (and {len(empty) - 1} more)" if len(empty) > 1 else ""
        raise UserError(
            f"class {class_names[empty[0]]!r}{others} has no images in {where}; add some or leave the class out."
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
