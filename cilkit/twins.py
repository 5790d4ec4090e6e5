"""Near-duplicates between two image sets: painted images that a generator may have copied from the test images.

Each painted image is held against every other image twice: by perceptual hash (survives resizing and recompression)
and, with a backbone, by the cosine of features. Neither proves a copy; the pairs found are there to be looked at.
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

HASH_DISTANCE = 6  # bits of 64 in which the hashes of a copy may differ: our decision, see tests/test_twins.py
SIMILARITY = 0.95  # least cosine of features: our decision; it belongs to a backbone, so look at the scores
CHUNK = 1024  # images of the first set at a time, at most,
PAIRS = 2**24  # and of pairs
PIXELS = 2**22  # pixels decoded at once


def near_twins(
    images: ImageSet,
    others: ImageSet,
    backbone: Backbone | None = None,
    *,
    hash_distance: int = HASH_DISTANCE,
    similarity: float = SIMILARITY,
    flipped: bool = False,
) -> pd.DataFrame:
    """For each of `images` the nearest of `others` by hash and by features, where near enough: at most two rows each.

    images:  say, synthetic ones. others: say, a benchmark's real test images. Sizes may differ, also within a set.
    flipped: left-right mirrored copies are looked for as well.
    Returns DataFrame image_id, other_id, hash_distance (bits of 64), similarity (cosine; NaN without a backbone),
    nearest first; a row is there because one of the two is near enough. Held in memory: hashes (8 bytes an image) and
    features of `others`, and one chunk of `images` with its distances.
    """
    import pandas as pd

    if not (len(images) and len(others)):
        raise UserError(f"near-duplicates were asked for between {len(images)} and {len(others)} images; give some")
    recipe = None if backbone is None else _recipe(backbone, images, others)
    theirs, their_features = _seen(others, backbone, recipe, flipped)  # (1 or 2, m), (1 or 2, m, dim)
    ids, other_ids, found = images.ids, others.ids, []
    step = max(1, min(CHUNK, PAIRS // len(others)))
    for start in range(0, len(images), step):
        some = images.select(np.arange(start, min(start + step, len(images))))
        hashes, features = _seen(some, backbone, recipe)
        bits = np.min([np.bitwise_count(hashes[0][:, None] ^ form) for form in theirs], axis=0)  # uint8 (step, m)
        cosines = np.max([features[0] @ form.T for form in their_features], axis=0)  # (step, m), NaN without a backbone
        near = {*_pairs(bits.argmin(1), bits.min(1) <= hash_distance)}
        near |= {*_pairs(cosines.argmax(1), cosines.max(1) >= similarity)}
        found += [(ids[start + i], other_ids[j], int(bits[i, j]), float(cosines[i, j])) for i, j in sorted(near)]
    table = pd.DataFrame(found, columns=["image_id", "other_id", "hash_distance", "similarity"])
    table = table.astype({"hash_distance": int, "similarity": float})
    return table.sort_values(["hash_distance", "similarity"], ascending=[True, False], kind="stable", ignore_index=True)


def _pairs(columns: np.ndarray, enough: np.ndarray) -> list[tuple[int, int]]:
    return [(int(row), int(columns[row])) for row in np.flatnonzero(enough)]


def _seen(
    images: ImageSet, backbone: Backbone | None, recipe: Recipe | None, flipped: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Perceptual hashes uint64 (forms, n) and features of length one, float32 (forms, n, dim).

    forms: the images as they are and, with `flipped`, mirrored. Without a backbone the features are one NaN an image.
    """
    from cilkit.synthesis.inspection import perceptual_hashes

    hashes = np.empty((1 + flipped, len(images)), np.uint64)
    features = np.full((1 + flipped, len(images), backbone.dim if backbone else 1), np.nan, np.float32)
    for rows, pixels in _alike(images):
        for form in range(1 + flipped):
            seen = np.ascontiguousarray(pixels[:, :, ::-1]) if form else pixels
            hashes[form, rows] = np.packbits(perceptual_hashes(seen), axis=1).view(np.uint64)[:, 0]
            if backbone is not None:
                from cilkit.backbones import extract

                vectors = extract(backbone, seen, "statistics", recipe)
                features[form, rows] = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return hashes, features


def _recipe(backbone: Backbone, *sets: ImageSet) -> Recipe:
    """Images of all sizes brought to the backbone's, or, where it takes any, to the shortest side among the sets."""
    from cilkit.data.transforms import recipe

    size = backbone.input.size or int(min(images.sizes.min() for images in sets))
    return recipe("none", replace(backbone.input, size=size))


def _alike(images: ImageSet) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(positions, uint8 (n, h, w, 3)) of images of one size, a bounded number of pixels at a time."""
    sizes, groups = np.unique(images.sizes, axis=0, return_inverse=True)
    for group, (height, width) in enumerate(sizes.tolist()):
        members = np.flatnonzero(groups.reshape(-1) == group)
        step = max(1, PIXELS // (height * width))
        for start in range(0, len(members), step):
            rows = members[start : start + step]
            yield rows, images.images(rows)
