"""Near-duplicates between two image sets: painted images that a generator may have copied from the test images.

Each painted image is held against every other image in two ways: its pixels, by a perceptual hash confirmed by the
correlation of reduced copies (both survive resizing and recompression), and, with a backbone, the cosine of features.
Neither proves a copy; the pairs found are there to be looked at.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from cilkit.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

    from cilkit.backbones import Backbone
    from cilkit.data import ImageSet
    from cilkit.data.transforms import Recipe

HASH_DISTANCE = 12  # bits of 64 in which a copy's hash may differ: our decision, measured in tests/test_twins.py
CORRELATION = 0.95  # and the least correlation of the reduced copies, which confirms it (likewise)
SIMILARITY = 0.95  # least cosine of features: our decision; it belongs to a backbone, so look at the scores
SIDE, CELLS = 72, 18  # pixels on a side of what is hashed (a multiple of the hash's 8 x 9 cells), and of what confirms
CHUNK = 1024  # images of the first set at a time, at most,
PAIRS = 2**24  # and of pairs
PIXELS = 2**24  # pixels decoded at once


def near_twins(
    images: ImageSet,
    others: ImageSet,
    backbone: Backbone | None = None,
    *,
    hash_distance: int = HASH_DISTANCE,
    similarity: float = SIMILARITY,
) -> pd.DataFrame:
    """For each of `images` the nearest of `others` by pixels and by features, where near enough: at most two rows each.

    images:  say, synthetic ones. others: say, a benchmark's real test images. Sizes may differ, also within a set.
    Mirrored copies are not looked for.
    Returns DataFrame image_id, other_id, hash_distance (bits of 64), similarity (cosine of features; NaN without a
    backbone), correlation (of the reduced copies' grey levels), the most alike first. Held in memory: what is known of
    `others` (1.3 KB an image and its features) and of one chunk of `images`, and the chunk's comparisons.
    """
    import pandas as pd

    if not (len(images) and len(others)):
        raise UserError(f"near-duplicates were asked for between {len(images)} and {len(others)} images; give some")
    recipe = None if backbone is None else _recipe(backbone, images, others)
    their_hashes, their_copies, their_features = _seen(others, backbone, recipe)
    ids, other_ids, found = images.ids, others.ids, []
    step = max(1, min(CHUNK, PAIRS // len(others)))
    for start in range(0, len(images), step):
        some = images.select(np.arange(start, min(start + step, len(images))))
        hashes, copies, features = _seen(some, backbone, recipe)
        bits = np.bitwise_count(hashes[:, None] ^ their_hashes)  # uint8 (step, m)
        alike = copies @ their_copies.T  # (step, m)
        cosines = features @ their_features.T  # (step, m), NaN without a backbone
        near = _nearest(np.where(bits <= hash_distance, alike, -1), CORRELATION) | _nearest(cosines, similarity)
        for i, j in sorted(near):
            found.append((ids[start + i], other_ids[j], int(bits[i, j]), float(cosines[i, j]), float(alike[i, j])))
    columns = {"image_id": str, "other_id": str, "hash_distance": int, "similarity": float, "correlation": float}
    table = pd.DataFrame(found, columns=list(columns)).astype(columns)
    order = ["correlation", "similarity"]
    return table.sort_values(order, ascending=False, kind="stable", ignore_index=True)


def _nearest(scores: np.ndarray, least: float) -> set[tuple[int, int]]:
    """(row, column) of each row's highest score that is not below the least; NaN never is enough."""
    columns = scores.argmax(axis=1)
    return {(row, int(columns[row])) for row in np.flatnonzero(scores.max(axis=1) >= least).tolist()}


def _seen(
    images: ImageSet, backbone: Backbone | None, recipe: Recipe | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hashes uint64 (n,), reduced copies (n, CELLS ** 2) and features (n, dim), both float32 and of length one.

    Without a backbone the features are one NaN an image.
    """
    from cilkit.synthesis.inspection import perceptual_hashes

    n = len(images)
    hashes, copies = np.empty(n, np.uint64), np.empty((n, CELLS**2), np.float32)
    features = np.full((n, backbone.dim if backbone else 1), np.nan, np.float32)
    for rows, pixels in _of_one_size(images):
        small = _resized(pixels)  # uint8 (rows, SIDE, SIDE, 3)
        hashes[rows] = np.packbits(perceptual_hashes(small), axis=1).view(np.uint64)[:, 0]
        cells = small.reshape(len(rows), CELLS, SIDE // CELLS, CELLS, -1).mean((2, 4)).reshape(len(rows), -1)
        copies[rows] = _unit(cells - cells.mean(1, keepdims=True))
        if backbone is not None:
            from cilkit.backbones import extract

            features[rows] = _unit(extract(backbone, pixels, "statistics", recipe))
    return hashes, copies, features


def _unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors of length one; those of no length, as of a blank image, stay 0 and are like nothing."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)


def _resized(pixels: np.ndarray) -> np.ndarray:
    """uint8 (n, h, w, 3) -> uint8 (n, SIDE, SIDE, 3), smoothed: the hash's cells of images of all sizes are alike."""
    import torch

    batch = torch.from_numpy(np.array(pixels)).permute(0, 3, 1, 2)  # a copy: pixels may be a read-only view
    small = torch.nn.functional.interpolate(batch, size=(SIDE, SIDE), mode="bilinear", antialias=True)
    return small.permute(0, 2, 3, 1).contiguous().numpy()


def _recipe(backbone: Backbone, *sets: ImageSet) -> Recipe:
    """Images of all sizes brought to the backbone's, or, where it takes any, to the shortest side among the sets."""
    from cilkit.data.transforms import recipe

    size = backbone.input.size or int(min(images.sizes.min() for images in sets))
    return recipe("none", replace(backbone.input, size=size))


def _of_one_size(images: ImageSet) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(positions, uint8 (n, h, w, 3)) of images of one size, a bounded number of pixels at a time."""
    sizes, groups = np.unique(images.sizes, axis=0, return_inverse=True)
    for group, (height, width) in enumerate(sizes.tolist()):
        members = np.flatnonzero(groups.reshape(-1) == group)
        step = max(1, PIXELS // (height * width + SIDE * SIDE))
        for start in range(0, len(members), step):
            rows = members[start : start + step]
            yield rows, images.images(rows)
