"""The two benchmarks that need no download: built, once, from data that installed packages ship.

`digits_photo`: 1,797 handwritten digits (scikit-learn's copy of the UCI "Optical recognition of handwritten digits"
test part), each blended by absolute difference, at a random place and scale, into 32 x 32 crops of the two photographs
that scikit-learn ships. Train and test share neither a scan nor a region of a photograph. Every test scan is used once,
every training scan twice: 2,514 train and 540 test images, 54 test images a class.

Measured with this recipe (train on all 2,514, last accuracy on the 540): raw-pixel nearest mean
10.9 %, shrinkage LDA 12.2 % (both as in cilkit/probes.py), 1-NN 41.1 %, SVM (RBF, C = 1) 29.1 %.
Plain `digits` are the scans alone (1,257 and 540), for tests only: nearest mean has 88.3 % there, shrinkage LDA 95.6 %.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from cilkit.data.shards import ShardWriter

SIZE = 32  # pixels on a side
TEST_SCANS = 54  # a class; the other 120 … 129 are for training
COPIES = 2  # training images a scan
SCALES = (14, 26)  # side of the blended scan in pixels, uniform
TRAIN_COLUMNS, TEST_COLUMNS = (0, 400), (432, 640)  # of the photographs, which are 427 x 640
PHOTOGRAPHS = ("china.jpg", "flower.jpg")
NAMES = [f"digit {word}" for word in "zero one two three four five six seven eight nine".split()]


def split_scans(labels: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(train, test) positions of the scans, 54 of each class in test. numpy's legacy generator never changes."""
    random = np.random.RandomState(seed)
    test = np.concatenate([random.permutation(np.flatnonzero(labels == c))[:TEST_SCANS] for c in range(10)])
    return np.setdiff1d(np.arange(len(labels)), test), np.sort(test)


def blend(scan: np.ndarray, crop: np.ndarray, top: int, left: int, side: int) -> np.ndarray:
    """|crop - scan|: `scan`, uint8 (8, 8), enlarged to `side` pixels at (top, left) of `crop`, uint8 (32, 32, 3)."""
    from PIL import Image

    ink = np.zeros(crop.shape[:2], np.int16)
    ink[top : top + side, left : left + side] = Image.fromarray(scan).resize((side, side), Image.Resampling.BICUBIC)
    return np.abs(crop.astype(np.int16) - ink[:, :, None]).astype(np.uint8)


def _scans() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    return np.round(digits.images * 255 / 16).astype(np.uint8), digits.target  # (1797, 8, 8), (1797,)


def _build_digits(folder: Path) -> None:
    scans, labels = _scans()
    for part, chosen in zip(("train", "test"), split_scans(labels), strict=True):
        images = (_enlarge(scans[i]) for i in chosen)
        _write(folder / part, images, [{"scan": int(i)} for i in chosen], labels[chosen])


def _enlarge(scan: np.ndarray) -> np.ndarray:
    from PIL import Image

    grey = Image.fromarray(scan).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    return np.repeat(np.asarray(grey)[:, :, None], 3, axis=2)  # (32, 32, 3)


def _build_digits_photo(folder: Path) -> None:
    from sklearn.datasets import load_sample_image

    scans, labels = _scans()
    photographs = [load_sample_image(name) for name in PHOTOGRAPHS]  # (427, 640, 3)
    random = np.random.RandomState(1)
    train, test = split_scans(labels)
    for part, chosen, columns in (("train", np.tile(train, COPIES), TRAIN_COLUMNS), ("test", test, TEST_COLUMNS)):
        rows = [_draw(int(scan), columns, random) for scan in chosen]
        images = (_compose(scans[row["scan"]], photographs, row) for row in rows)
        _write(folder / part, images, rows, labels[chosen])


def _draw(scan: int, columns: tuple[int, int], random: np.random.RandomState) -> dict:
    """Which photograph, which crop of it, and where and how large the scan is in the crop."""
    side = int(random.randint(SCALES[0], SCALES[1] + 1))
    photograph = int(random.randint(len(PHOTOGRAPHS)))
    crop_top, crop_left = int(random.randint(427 - SIZE + 1)), int(random.randint(columns[0], columns[1] - SIZE + 1))
    top, left = (int(place) for place in random.randint(SIZE - side + 1, size=2))
    where = {"photograph": PHOTOGRAPHS[photograph], "crop_top": crop_top, "crop_left": crop_left}
    return {"scan": scan, **where, "top": top, "left": left, "side": side}


def _compose(scan: np.ndarray, photographs: list[np.ndarray], row: dict) -> np.ndarray:
    photograph = photographs[PHOTOGRAPHS.index(row["photograph"])]
    crop = photograph[row["crop_top"] : row["crop_top"] + SIZE, row["crop_left"] : row["crop_left"] + SIZE]
    return blend(scan, crop, row["top"], row["left"], row["side"])


def _write(folder: Path, images, rows: list[dict], labels: np.ndarray) -> None:
    writer = ShardWriter(folder)
    finished = writer.finished
    for i, (image, row, label) in enumerate(zip(images, rows, labels, strict=True)):
        if i // writer.shard_size not in finished:
            identity = {"image_id": f"{i:05d}", "class_id": int(label), "class_name": NAMES[label]}
            writer.add(image, identity | row)
    writer.close()


LICENCE = (
    "Scans: UCI Machine Learning Repository (CC BY 4.0, remembered); photographs: Creative Commons Attribution 2.0, "
    "china.jpg by danielbuechele, flower.jpg from vultilion's Flickr page, as scikit-learn's image README credits them."
)
CITATION = (
    "E. Alpaydin, C. Kaynak (1998). Optical Recognition of Handwritten Digits. UCI Machine Learning Repository; "
    "F. Pedregosa et al. (2011). Scikit-learn: Machine Learning in Python. JMLR 12."
)
_DIGITS_SOURCE = "sklearn.datasets.load_digits, 8 x 8 scans enlarged to 32 x 32 RGB (bilinear)"
_PHOTO_SOURCE = "sklearn.datasets.load_digits blended into sklearn.datasets.load_sample_image crops, 32 x 32 RGB"
RECIPES: dict[str, tuple[Callable[[Path], None], str, dict]] = {
    "digits": (_build_digits, _DIGITS_SOURCE, {"size": SIZE, "test_scans": TEST_SCANS, "enlarged": "bilinear"}),
    "digits_photo": (
        _build_digits_photo,
        _PHOTO_SOURCE,
        {"size": SIZE, "test_scans": TEST_SCANS, "copies": COPIES, "scales": SCALES, "blend": "absolute difference"},
    ),
}
