"""What can be told of an image by its pixels alone: contrast, sharpness, a perceptual hash, near-duplicates."""

import numpy as np

BLANK_RANGE = 32  # grey levels of 255 between the 1st and 99th percentile of brightness: less is a blank image
HASH_SIDE = 8  # the perceptual hash has HASH_SIDE * HASH_SIDE bits
HASH_DISTANCE = 3  # bits in which two images of one class may differ and still be suspected of being the same
PIXEL_DISTANCE = 8.0  # and the mean absolute difference of their pixels, in grey levels of 255, that confirms it
SAMPLED = 128  # rows and columns of a large image, at least, from which its contrast is taken
REDUCED = 32  # pixels on a side of the copies by which images of a large set are compared
LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)  # of R, G, B (Rec. 601)


def contrasts(pixels: np.ndarray) -> np.ndarray:
    """Brightness range of each image, 1st to 99th percentile, in grey levels: uint8 (n, h, w, 3) -> float (n,).

    Of an image larger than SAMPLED pixels on a side, rows and columns at equal distances are looked at.
    """
    step = max(1, min(pixels.shape[1:3]) // SAMPLED)
    grey = _brightness(pixels[:, ::step, ::step]).reshape(len(pixels), -1)
    low, high = np.percentile(grey, [1, 99], axis=1)
    return high - low


def perceptual_hashes(pixels: np.ndarray) -> np.ndarray:
    """Difference hashes: uint8 (n, h, w, 3) -> bool (n, HASH_SIDE ** 2).

    The image is averaged to HASH_SIDE rows of HASH_SIDE + 1 cells; a bit says whether a cell is brighter than the next.
    """
    grey = _brightness(pixels)
    cells = _averaged(_averaged(grey, HASH_SIDE, 1), HASH_SIDE + 1, 2)  # (n, HASH_SIDE, HASH_SIDE + 1)
    return (cells[:, :, :-1] > cells[:, :, 1:]).reshape(len(pixels), -1)


def _brightness(pixels: np.ndarray) -> np.ndarray:
    """uint8 (n, h, w, 3) -> float32 (n, h, w)."""
    return np.stack([image.astype(np.float32) @ LUMINANCE for image in pixels])


def _averaged(grey: np.ndarray, parts: int, axis: int) -> np.ndarray:
    """Means over `parts` nearly equal stretches along an axis."""
    edges = np.round(np.linspace(0, grey.shape[axis], parts + 1)).astype(int)
    stretches = np.split(grey, edges[1:-1], axis=axis)
    return np.stack([stretch.mean(axis) for stretch in stretches], axis)


def sharpness(pixels: np.ndarray) -> np.ndarray:
    """How sharp each image is, in grey levels: uint8 (n, h, w, 3) -> float (n,).

    The standard deviation of the brightness's Laplacian (each pixel's four neighbours minus four times itself), which
    blur lowers; 0 for an image that has no inner pixel.
    """
    if min(pixels.shape[1:3]) < 3:
        return np.zeros(len(pixels))
    found = []
    for grey in _brightness(pixels):  # one image at a time stays in the processor's cache
        laplacian = -4 * grey[1:-1, 1:-1]
        for neighbour in (grey[:-2, 1:-1], grey[2:, 1:-1], grey[1:-1, :-2], grey[1:-1, 2:]):
            laplacian += neighbour
        found.append(laplacian.std())
    return np.array(found)


def reduced(pixels: np.ndarray) -> np.ndarray:
    """Images averaged to at most REDUCED pixels on a side, uint8; smaller ones are as they were."""
    for axis in (1, 2):
        if pixels.shape[axis] > REDUCED:
            pixels = np.round(_averaged(pixels, REDUCED, axis)).astype(np.uint8)
    return pixels


def near_duplicates(pixels: np.ndarray, hashes: np.ndarray | None = None) -> dict[int, int]:
    """{image: the first image that it nearly equals}: close by perceptual hash, then confirmed pixel by pixel.

    hashes: of the images that `pixels` are reduced copies of; None: of `pixels`. Memory grows with n, not with n².
    """
    hashes = perceptual_hashes(pixels) if hashes is None else hashes
    signs = np.where(hashes, 1.0, -1.0).astype(np.float32)  # (n, bits)
    found: dict[int, int] = {}
    for first in range(len(pixels)):
        if first in found:
            continue
        apart = (signs.shape[1] - signs[first + 1 :] @ signs[first]) / 2  # Hamming distances to the later ones
        for twin in (first + 1 + np.flatnonzero(apart <= HASH_DISTANCE)).tolist():
            if twin not in found and np.abs(pixels[first].astype(np.float32) - pixels[twin]).mean() <= PIXEL_DISTANCE:
                found[twin] = first
    return found
