"""Exemplars without most of their pixels: visible patches and a mask in bits, which an autoencoder fills up when they
are replayed (MAE-CIL; the released code stores ordinary images, third-party).

The bytes lie in the learner's own arrays. Nothing of a masked exemplar is read from the training set again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from cilkit.data.imagesets import Arrays, ImageSet, Source
from cilkit.learners.base import derive
from cilkit.learners.memory import Memory

if TYPE_CHECKING:
    from cilkit.learners.rehearsal import RehearsalHyper

Levels = np.ndarray  # uint8 (m, 3, h, w)


class MaskedMemory(Memory):
    """Exemplars by class in herding order; `rows` of a class: uint8 (m, each), an exemplar a row: its mask in bits, 0
    for hidden, then the visible patches in their order in the image. Where all of them are visible there is no mask.

    levels:  from images to what the network sees of them, as levels.
    rebuild: from levels, 0 where hidden, and orders (m, patches) whose first `visible` are shown, to whole images.
    """

    def __init__(
        self,
        hyper: RehearsalHyper,
        seed: int,
        grid: tuple[int, int],
        visible: int,
        levels: Callable[[ImageSet], Levels],
        rebuild: Callable[[Levels, np.ndarray], Levels],
    ) -> None:
        super().__init__(hyper.per_class, hyper.total, hyper.budget)
        self.seed, self.visible, self.levels, self.rebuild = seed, visible, levels, rebuild
        self.patches, self.side = grid
        self.mask_bytes = -(-self.patches // 8) if visible < self.patches else 0
        self.each = self.mask_bytes + visible * self.side**2 * 3

    def add(self, images: ImageSet) -> None:
        """The next class's exemplars, best first, each behind a random mask of its own."""
        import torch

        from cilkit.masked import to_patches

        random = np.random.default_rng(derive(self.seed, len(self.rows), "exemplar masks"))
        shown = random.random((len(images), self.patches)).argsort(1) < self.visible  # (m, patches)
        mask = np.packbits(shown, axis=1)[:, : self.mask_bytes]
        patches = to_patches(torch.from_numpy(self.levels(images)), self.side).numpy()
        known = patches[shown]  # (m * visible, 3 * side * side)
        self.rows.append(np.concatenate([mask, known.reshape(len(images), -1)], axis=1))

    def of(self, images: ImageSet) -> ImageSet:
        """All exemplars, class after class, rebuilt; of `images` only the class names are used."""
        import torch

        from cilkit.masked import to_images

        rows = self.state()["rows"]  # (all, each)
        bits = np.unpackbits(rows[:, : self.mask_bytes], axis=1, count=self.patches) if self.mask_bytes else 1
        shown = np.broadcast_to(bits, (len(rows), self.patches)).astype(bool)
        patches = np.zeros((*shown.shape, self.side**2 * 3), np.uint8)
        patches[shown] = rows[:, self.mask_bytes :].reshape(-1, patches.shape[2])
        whole = to_images(torch.from_numpy(patches), self.side).numpy()
        if self.mask_bytes and len(rows):
            whole = self.rebuild(whole, np.argsort(~shown, axis=1, kind="stable"))
        labels = np.repeat(np.arange(len(self.rows)), [len(one) for one in self.rows])
        pixels = np.ascontiguousarray(whole.transpose(0, 2, 3, 1))
        source = Arrays(pixels, np.array([f"exemplar {i}" for i in range(len(rows))]), None, ())
        return ImageSet(source, np.arange(len(rows)), labels, images.class_names)

    @property
    def bytes(self) -> int:
        return sum(rows.nbytes for rows in self.rows)

    def state(self) -> dict[str, np.ndarray]:
        counts = np.array([len(rows) for rows in self.rows], np.int64)
        return {"counts": counts, "rows": np.concatenate([np.zeros((0, self.each), np.uint8), *self.rows])}


class Joined(Source):
    """Two opened sets as one, the second's positions behind the first's."""

    def __init__(self, first: Source, second: Source) -> None:
        self.parts, self.cut, self.streamed = (first, second), len(first.sizes), first.streamed
        self.sizes = np.concatenate([first.sizes, second.sizes])

    def ids(self, rows: np.ndarray) -> np.ndarray:
        return np.concatenate([part.ids(np.arange(len(part.sizes))) for part in self.parts])[rows]

    def read(self, rows: np.ndarray, shortest: int = 0) -> np.ndarray | list[np.ndarray]:
        late, pixels = rows >= self.cut, [None] * len(rows)
        for part, places, start in zip(self.parts, (~late, late), (0, self.cut), strict=True):
            read = part.read(rows[places] - start, shortest) if places.any() else []
            for place, image in zip(np.flatnonzero(places), read, strict=True):
                pixels[place] = image
        return np.stack(pixels) if self.uniform else pixels


def joined(first: ImageSet, second: ImageSet) -> ImageSet:
    """The images of both."""
    source = Joined(first.source, second.source)
    index, labels = np.append(first.index, second.index + source.cut), np.append(first.labels, second.labels)
    return ImageSet(source, index, labels, first.class_names)
