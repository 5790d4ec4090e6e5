"""The nearest real images of a painted one: to be looked at side by side."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from cilkit.data.decoding import shrunk
from cilkit.data.imagesets import ImageSet
from cilkit.errors import UserError

if TYPE_CHECKING:
    from cilkit.backbones import Backbone

SIDE = 32  # pixels on a side of the copies whose principal components are taken
COMPONENTS = 30  # of them, the leading ones
FITTED = 500  # images, evenly spread, that the components are taken of
MOST = 5000  # images that are searched, evenly spread over a larger set
TOGETHER = 256  # decoded at once


class Neighbours:
    """Finds the nearest of `others`: by a network's features (cosine), or by principal components of small copies.

    others: say, a benchmark's training images; of more than `most`, so many at equal distances are searched.
    What is known of them is computed when first asked for.
    """

    def __init__(self, others: ImageSet, network: Backbone | None = None, most: int = MOST) -> None:
        if not len(others):
            raise UserError("neighbours were asked for among no images; give some")
        some = np.unique(np.linspace(0, len(others) - 1, min(most, len(others))).astype(np.int64))
        self.others, self.network, self.all = others.select(some), network, len(others)

    def nearest(self, images: Sequence[np.ndarray], count: int = 6) -> tuple[np.ndarray, np.ndarray]:
        """For each image, uint8 (h, w, 3), its nearest: places in `.others` (n, count), distances (n, count), rising.

        A distance is 1 - cosine of features, or Euclidean in units of the components' mean deviation.
        """
        seen, theirs = self._placed(images), self._theirs
        squared = (seen**2).sum(1)[:, None] + (theirs**2).sum(1) - 2 * seen @ theirs.T  # (n, m)
        places = np.argsort(squared, axis=1, kind="stable")[:, :count]
        found = np.maximum(np.take_along_axis(squared, places, axis=1), 0)
        return places, found / 2 if self.network is not None else np.sqrt(found)

    @cached_property
    def _theirs(self) -> np.ndarray:
        return np.concatenate([self._placed(self.others.read(rows)) for rows in self._pieces()])

    def _pieces(self) -> list[np.ndarray]:
        return np.split(np.arange(len(self.others)), range(TOGETHER, len(self.others), TOGETHER))

    def _placed(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Where images lie in the space that is searched, float (n, dim)."""
        if self.network is None:
            middle, directions, deviation = self._components
            return (_flat(images) - middle) @ directions.T / deviation
        from cilkit.backbones import extract
        from cilkit.data.transforms import recipe

        prepared = recipe("timm_test" if self.network.input.size else "none", self.network.input)
        batches = [images] if isinstance(images, np.ndarray) else [image[None] for image in images]
        found = np.concatenate([extract(self.network, batch, "probe", prepared) for batch in batches])
        return found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)

    @cached_property
    def _components(self) -> tuple[np.ndarray, np.ndarray, float]:
        """Mean (dim,), leading directions (COMPONENTS, dim), and the mean deviation along them."""
        some = np.unique(np.linspace(0, len(self.others) - 1, min(FITTED, len(self.others))).astype(np.int64))
        flat = np.concatenate([_flat(self.others.read(some[k : k + TOGETHER])) for k in range(0, len(some), TOGETHER)])
        middle = flat.mean(axis=0)
        centred = (flat - middle).astype(np.float64)
        values, vectors = np.linalg.eigh(centred @ centred.T)  # fewer images than pixels: several times an SVD's speed
        kept = np.flatnonzero(values > max(1e-9 * values[-1], 1e-6))[::-1][:COMPONENTS]
        directions = (vectors[:, kept].T @ centred) / np.sqrt(values[kept])[:, None]
        deviation = float((centred @ directions.T).std()) if len(kept) else 1.0  # none: all images are equal
        return middle, directions.astype(np.float32), deviation


def _flat(images: Sequence[np.ndarray]) -> np.ndarray:
    """Copies of SIDE pixels on a side, float32 (n, SIDE * SIDE * 3) in [0, 1]."""
    return np.stack([shrunk(image, square=SIDE).reshape(-1) for image in images]).astype(np.float32) / 255
