"""Image sets: pictures with labels, ids, class names and, where they have them, domains, wherever the pixels live.

An `ImageSet` is a list of positions in a *source*. Its subsets share that source, so choosing classes, splitting and
keeping exemplars copies positions, never pixels.
"""

import hashlib
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from cilkit.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

    from cilkit import artifacts


class Source:
    """Where pixels come from: one object for the set that was opened and all its subsets.

    key:    names the pixels, wherever they lie (a hash of the content).
    sizes:  int32 (n, 2), height and width of each image.
    domains, domain_names: int64 (n,) indices into the names, or None and nothing.
    streamed: too large to be held decoded in memory; read it batch by batch.
    """

    key: str
    sizes: np.ndarray
    domains: np.ndarray | None = None
    domain_names: Sequence[str] = ()
    streamed: bool = False
    manifest: "pd.DataFrame | None" = None

    def ids(self, rows: np.ndarray) -> np.ndarray:
        """str (n,)."""

    def read(self, rows: np.ndarray, shortest: int = 0) -> np.ndarray | list[np.ndarray]:
        """Pixels at these positions: uint8 (n, h, w, 3) of a uniform source, else a list of uint8 (h, w, 3)."""

    def encoded(self, row: int) -> bytes | None:
        """The file of the image at this position as it was written; None where only pixels are kept."""
        return None

    @cached_property
    def uniform(self) -> bool:
        """All images have the same size."""
        return bool((self.sizes == self.sizes[:1]).all())


class Arrays(Source):
    """Pixels that were in memory from the start."""

    def __init__(self, images: np.ndarray, ids: np.ndarray, domains: np.ndarray | None, domain_names: Sequence[str]):
        self._images, self._ids = images, ids
        self.domains, self.domain_names = domains, list(domain_names)
        self.sizes = np.tile(np.array(images.shape[1:3], np.int32), (len(images), 1))

    @cached_property
    def key(self) -> str:
        hashed = hashlib.sha256(repr(self._images.shape).encode())
        hashed.update(np.ascontiguousarray(self._images))
        return hashed.hexdigest()

    def ids(self, rows: np.ndarray) -> np.ndarray:
        return self._ids[rows]

    def read(self, rows: np.ndarray, shortest: int = 0) -> np.ndarray:
        return self._images[rows]


class ImageSet:
    """Images with labels, ids and class names.

    class_names: one name a label; subsets keep the whole list, so that a label means the same class in all of them.
    labels:      int64 (n,), indices into class_names.
    ids:         str (n,).
    index:       int64 (n,), positions of these images in the set that was opened (kept through every subset).
    source:      what was opened, shared by all subsets; `source.key` names it.
    """

    artifact: "artifacts.Artifact | None" = None  # the artifact it was opened from; set by whoever knows it

    def __init__(self, source: Source, index: np.ndarray, labels: np.ndarray, class_names: Sequence[str]):
        self.source = source
        self.index = np.asarray(index, np.int64)
        self.labels = np.asarray(labels, np.int64)
        self.class_names = list(class_names)

    @classmethod
    def from_arrays(
        cls, images, labels, class_names: Sequence[str], ids=None, domains=None, domain_names: Sequence[str] = ()
    ) -> "ImageSet":
        """A set from memory. images: uint8 (n, h, w, 3); labels: (n,) indices into class_names; ids: (n,) or None;
        domains: (n,) indices into domain_names, or None."""
        images, labels = np.asarray(images), np.asarray(labels, np.int64)
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
            raise UserError(f"images are {images.dtype} {images.shape}; expected uint8 (n, height, width, 3).")
        _demand_labels(labels, len(images), class_names)
        demand_images(np.bincount(labels, minlength=len(class_names)), class_names, "the image set")
        if domains is not None:
            domains = np.asarray(domains, np.int64)
            _demand_labels(domains, len(images), domain_names, "domain")
        ids = np.array([f"{i:06d}" for i in range(len(images))] if ids is None else ids, dtype=str)
        return cls(Arrays(images, ids, domains, domain_names), np.arange(len(images)), labels, class_names)

    def __len__(self) -> int:
        return len(self.index)

    def __repr__(self) -> str:
        return f"ImageSet({len(self)} images, {np.count_nonzero(self.counts)} of {len(self.class_names)} classes)"

    @property
    def ids(self) -> np.ndarray:
        """str (n,)."""
        return self.source.ids(self.index)

    @property
    def manifest(self) -> "pd.DataFrame | None":
        """The manifest's rows of these images, in this order; None for a set that never was on disk."""
        rows = self.source.manifest
        return None if rows is None else rows.iloc[self.index].reset_index(drop=True)

    @property
    def counts(self) -> np.ndarray:
        """Images a class, int64 (n_classes,)."""
        return np.bincount(self.labels, minlength=len(self.class_names))

    @property
    def domains(self) -> np.ndarray | None:
        """int64 (n,), indices into domain_names; None for a set without domains."""
        return None if self.source.domains is None else self.source.domains[self.index]

    @property
    def domain_names(self) -> list[str]:
        return list(self.source.domain_names)

    @property
    def sizes(self) -> np.ndarray:
        """int32 (n, 2): height and width of each image."""
        return self.source.sizes[self.index]

    @property
    def streamed(self) -> bool:
        """The pixels do not live in memory: read them batch by batch."""
        return self.source.streamed

    def read(self, index=None, shortest: int = 0) -> np.ndarray | list[np.ndarray]:
        """Pixels of all images, or of those at `index` (positions in this set or a mask); only to be looked at.

        uint8 (n, h, w, 3) where the opened set has one size, else a list of uint8 (h, w, 3), which may be read-only
        views of a mapped file. shortest: pixels that the shorter side must keep; JPEGs may then be decoded at a half,
        a quarter or an eighth of their size, the smallest that keeps it (0: every image as it is, exactly).
        """
        return self.source.read(self._rows(index), shortest)

    def images(self, index=None) -> np.ndarray:
        """Pixels, uint8 (n, height, width, 3), of all images or of those at `index`; UserError when sizes differ."""
        rows = self._rows(index)
        if not self.source.uniform:
            sizes = self.source.sizes[rows]
            other = sizes[(sizes != sizes[:1]).any(axis=1)]
            if len(other):
                first, second = ("{1} x {0}".format(*size) for size in (sizes[0], other[0]))
                raise UserError(
                    f"{self!r} mixes image sizes {first} and {second}, which make no array; take a recipe that resizes"
                )
        pixels = self.source.read(rows)
        return pixels if isinstance(pixels, np.ndarray) else np.stack(pixels)

    def _rows(self, index) -> np.ndarray:
        return self.index if index is None else self.index[index]

    def at(self, index, labels) -> "ImageSet":
        """These positions of the opened set (as in `.index`) with these labels: exemplars, kept as numbers."""
        index, labels = np.asarray(index, np.int64).reshape(-1), np.asarray(labels, np.int64).reshape(-1)
        _demand_labels(labels, len(index), self.class_names)
        outside = index[(index < 0) | (index >= len(self.source.sizes))]
        if len(outside):
            raise UserError(f"position {outside[0]} is outside the {len(self.source.sizes)} images that were opened.")
        return ImageSet(self.source, index, labels, self.class_names)

    def select(self, index) -> "ImageSet":
        """The images at `index` (positions or a boolean mask), with the same class names and labels."""
        return ImageSet(self.source, self.index[index], self.labels[index], self.class_names)

    def of_classes(self, labels) -> "ImageSet":
        """The images whose label is among `labels`; labels and class names stay as they are."""
        return self.select(np.isin(self.labels, np.asarray(list(labels), np.int64)))

    def of_domains(self, domains) -> "ImageSet":
        """The images of these domains, indices into domain_names; labels stay as they are."""
        wanted = np.asarray(list(domains), np.int64)
        if self.domains is None or not np.isin(wanted, np.arange(len(self.domain_names))).all():
            raise UserError(f"domains {wanted.tolist()} are not among the {len(self.domain_names)} of {self!r}.")
        return self.select(np.isin(self.domains, wanted))

    def keep_classes(self, names: Sequence[str]) -> "ImageSet":
        """Only the classes named, renumbered in the order of `names`. UserError for one unknown or without images."""
        labels = number(self.labels, self.class_names, names, repr(self))
        keep = np.flatnonzero(labels >= 0)
        return ImageSet(self.source, self.index[keep], labels[keep], names)

    def split_by_seed(self, fraction: float, seed: int) -> tuple["ImageSet", "ImageSet"]:
        """(train, held_out): `fraction` of each class, at least one image, is held out; same seed, same split."""
        if not 0 < fraction < 1:
            raise UserError(f"held-out fraction {fraction} is not between 0 and 1; 0.1 holds out a tenth a class.")
        rng = np.random.default_rng(seed)
        held = np.zeros(len(self), bool)
        by_class = np.split(np.argsort(self.labels, kind="stable"), np.cumsum(self.counts)[:-1])
        for label, members in enumerate(by_class):
            if len(members) == 1:
                name = self.class_names[label]
                raise UserError(f"class {name!r} has one image only, which cannot be split; give it two or more.")
            if len(members):
                count = min(max(1, round(fraction * len(members))), len(members) - 1)
                held[rng.permutation(members)[:count]] = True
        return self.select(~held), self.select(held)


def number(codes: np.ndarray, own: Sequence[str], classes: Sequence[str], where: str) -> np.ndarray:
    """Labels in the list `classes` of images whose class is own[code]: int64 (n,), -1 where it is not listed.

    Works on the class table, not on the images. UserError for a class named twice and for one without images.
    """
    place = {name: label for label, name in enumerate(classes)}
    if len(place) < len(classes):
        twice = next(name for name in classes if list(classes).count(name) > 1)
        raise UserError(f"class {twice!r} is named twice; name each class once.")
    table = np.array([place.get(name, -1) for name in own], np.int64)
    labels = table[codes] if len(table) else np.zeros(0, np.int64)
    demand_images(np.bincount(labels[labels >= 0], minlength=len(classes)), classes, where)
    return labels


def demand_images(counts: np.ndarray, class_names: Sequence[str], where: str) -> None:
    """UserError naming the first class without images."""
    empty = np.flatnonzero(counts == 0)
    if len(empty):
        others = f" (and {len(empty) - 1} more)" if len(empty) > 1 else ""
        raise UserError(
            f"class {class_names[empty[0]]!r}{others} has no images in {where}; add some or leave the class out."
        )


def _demand_labels(labels: np.ndarray, images: int, names: Sequence[str], kind: str = "label") -> None:
    if len(labels) != images:
        raise UserError(f"{images} images came with {len(labels)} {kind}s; give one {kind} an image.")
    if len(labels) and not 0 <= labels.min() <= labels.max() < len(names):
        bad, what = labels[(labels < 0) | (labels >= len(names))][0], "class" if kind == "label" else kind
        raise UserError(f"{kind} {bad} is outside the {len(names)} {what} names; expected 0 … n - 1.")
