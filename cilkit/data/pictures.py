"""A person's own pictures as an image set: arrays, PIL images, files, folders, or a set that is one already."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from cilkit.data.decoding import decode
from cilkit.data.imagesets import ImageSet, Source
from cilkit.data.sources import SUFFIXES
from cilkit.errors import UserError

NO_CLASS = "no class known"


class Pictures(Source):
    """Pixels in memory, each picture of its own size."""

    def __init__(self, pixels: list[np.ndarray], names: list[str]) -> None:
        self._pixels, self._names = pixels, np.array(names, dtype=str)
        self.sizes = np.array([picture.shape[:2] for picture in pixels], np.int32).reshape(-1, 2)

    @cached_property
    def key(self) -> str:
        hashed = hashlib.sha256(repr(self.sizes.tolist()).encode())
        for picture in self._pixels:
            hashed.update(np.ascontiguousarray(picture))
        return hashed.hexdigest()

    def ids(self, rows: np.ndarray) -> np.ndarray:
        return self._names[rows]

    def read(self, rows: np.ndarray, shortest: int = 0) -> np.ndarray | list[np.ndarray]:
        found = [self._pixels[row] for row in np.asarray(rows).tolist()]
        return np.stack(found) if self.uniform and found else found


def pictures(images: Any, size: tuple[int, int] | None = None) -> ImageSet:
    """One's own images as an image set of one class, `NO_CLASS`, with the names of files as ids.

    images: an `ImageSet` (whose classes are left out), a picture or many: uint8 arrays (h, w), (h, w, 3) or (h, w, 4),
            one array (n, h, w, 3), PIL images, files, folders (all pictures below, sorted by path).
    size:   (height, width) that every picture is brought to, by its centre and bicubic resampling: for recipes that do
            not resize. None: each keeps its own.
    UserError for what is no picture, and where there is none.
    """
    if isinstance(images, ImageSet):
        resized = size is not None and (images.sizes != np.array(size)).any()
        if not resized:
            return ImageSet(images.source, images.index, np.zeros(len(images), np.int64), [NO_CLASS])
        found = list(zip(images.ids.tolist(), images.read(), strict=True))
    else:
        found = list(_named(images))
    if not found:
        raise UserError(f"there is no picture in {_shown(images)}; expected files ending in {', '.join(SUFFIXES)}")
    pixels = [picture if size is None else _fitted(picture, size) for _, picture in found]
    source = Pictures(pixels, [name for name, _ in found])
    return ImageSet(source, np.arange(len(found)), np.zeros(len(found), np.int64), [NO_CLASS])


def _named(images: Any, start: int = 1) -> Iterable[tuple[str, np.ndarray]]:
    """(name, uint8 (h, w, 3)) of each picture."""
    if isinstance(images, str | Path):
        path = Path(images).expanduser()
        if not path.exists():
            raise UserError(f"no picture or folder at {str(images)!r}; check the path")
        if path.is_file():
            yield path.name, decode(path.read_bytes(), str(path))
            return
        for file in sorted(one for one in path.rglob("*") if one.suffix.lower() in SUFFIXES):
            yield file.relative_to(path).as_posix(), decode(file.read_bytes(), str(file))
    elif isinstance(images, Image.Image) or isinstance(images, np.ndarray) and images.ndim in (2, 3):
        if isinstance(images, np.ndarray) and images.dtype != np.uint8:
            raise UserError(f"picture {start} is an array of {images.dtype}; expected uint8, 0 … 255")
        yield f"picture {start}", decode(images, f"picture {start}")
    elif isinstance(images, Iterable):
        for one in images:
            for name, picture in _named(one, start):
                yield name, picture
                start += 1
    else:
        raise UserError(
            f"{_shown(images)} is no picture; give uint8 arrays, PIL images, files, a folder or an ImageSet"
        )


def _fitted(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    if picture.shape[:2] == tuple(size):
        return picture
    return np.asarray(ImageOps.fit(Image.fromarray(picture), (size[1], size[0]), Image.Resampling.BICUBIC))


def _shown(images: Any) -> str:
    return repr(str(images)) if isinstance(images, str | Path) else f"a {type(images).__name__}"
