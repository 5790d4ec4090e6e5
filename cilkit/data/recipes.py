"""What is done to an image before a backbone sees it, as tables: the papers' transforms and where each was read.

Tags: [code] read in the authors' code, at the commit named; [remembered] not checked; [ours] our decision.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from cilkit.data import draws

FILTERS = ("bilinear", "bicubic")

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
CLIP = {"mean": (0.48145466, 0.4578275, 0.40821073), "std": (0.26862954, 0.26130258, 0.27577711)}
UNIT = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}  # pixels in 0 … 1


@dataclass(frozen=True)
class Input:
    """What a backbone expects: side in pixels (0: any), normalisation of values in 0 … 1, filter, central share.

    crop_mode: timm's; "center" keeps an image's proportions when testing, "squash" resizes it to a square.
    """

    size: int = 0
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    interpolation: str = "bicubic"
    crop_pct: float = 0.875
    crop_mode: str = "center"


@dataclass(frozen=True)
class Plan:
    """What becomes of each of n images; the window may reach beyond the resized crop.

    crop:    int64 (n, 4), top, left, height, width of what is used.
    resized: int64 (n, 2), height and width that the crop is resized to; its own size: pixels stay as they are.
    window:  int64 (n, 2), top and left, in the resized crop, of the size x size pixels that come out.
    flip:    bool (n,), mirrored at the end.
    brightness: float32 (n,), what levels are multiplied by, or None.
    fill:    levels 0 … 255, a channel, beyond the resized crop.
    """

    crop: np.ndarray
    resized: np.ndarray
    window: np.ndarray
    flip: np.ndarray
    brightness: np.ndarray | None
    size: int
    interpolation: str = "bicubic"
    fill: tuple[int, ...] = (0, 0, 0)


@dataclass(frozen=True)
class Preset:
    """One set of transforms. Lengths are pixels at `size`; another image size scales them alike.

    Training takes one of three cuts: `area`, a RandomResizedCrop of that share of the area, sides 3:4 … 4:3; `square`,
    a resize to that square and a random cut; `pad`, a border and a random cut. Without any, it does as testing.
    Testing resizes the short side (`squash`: both sides) to `short` and cuts out the centre.
    """

    source: str
    size: int = 224
    area: tuple[float, float] | None = None
    square: int = 0
    pad: int = 0
    fill: tuple[int, ...] = (0, 0, 0)  # levels of the border; the mean, where it is 0 after normalising
    flip: float = 0.0
    brightness: float = 0.0
    jitter: float = 0.0  # brightness, contrast and saturation, each by a factor 1 - jitter … 1 + jitter
    rand_augment: tuple[int, int] = (0, 0)  # RandAugment's operations an image, and their magnitude out of 30
    short: int = 256
    squash: bool = False
    interpolation: str = "bicubic"
    test_interpolation: str = "bicubic"
    mean: tuple[float, ...] | None = None  # None: the backbone's own
    std: tuple[float, ...] | None = None

    @property
    def augments(self) -> bool:
        return bool(self.area or self.square or self.pad)

    def train_plan(self, sizes: np.ndarray, size: int, generator) -> Plan:
        """A cut for each image of int (n, 2) heights and widths; all chance is drawn here, from the CPU generator."""
        if not self.augments:
            return self.test_plan(sizes, size)
        n, whole = len(sizes), whole_images(sizes)
        if self.area:
            crop = random_boxes(sizes, self.area, generator)
            resized, window = np.full((n, 2), size), np.zeros((n, 2), np.int64)
        else:
            border, side = round(self.pad * size / self.size), round((self.square or self.size) * size / self.size)
            crop, resized = whole, np.full((n, 2), side)
            room = side + 2 * border - size
            window = np.floor(_uniform((n, 2), generator) * (room + 1)).astype(np.int64) - border
        flip = _uniform((n,), generator) < self.flip
        brightness = None
        if self.brightness:  # as ColorJitter draws it
            brightness = (1 + self.brightness * (2 * _uniform((n,), generator) - 1)).astype(np.float32)
        return Plan(crop, resized, window, flip, brightness, size, self.interpolation, self.fill)

    def test_plan(self, sizes: np.ndarray, size: int) -> Plan:
        """Resize, cut out the centre; lengths and places are rounded as torchvision rounds them."""
        n = len(sizes)
        short = math.floor(self.short * size / self.size)
        resized = np.full((n, 2), short) if self.squash else short * sizes // sizes.min(1, keepdims=True)
        window = np.rint((resized - size) / 2).astype(np.int64)
        return Plan(whole_images(sizes), resized, window, np.zeros(n, bool), None, size, self.test_interpolation)


_CIFAR_MEAN = (0.5071, 0.4867, 0.4408)
_SLCA = "SLCA's utils/data.py, GengDavid/SLCA @d5eecd8 [code]"
_LUCIR = "LUCIR's scripts, hshustc/CVPR19_Incremental_Learning @7ebfa1d, @183c2f9 [code]"
_RANPAC = "RanPAC's utils/data.py, RanPAC/RanPAC @e5e21b7 [code]; pixels in 0 … 1"
_ICARL = "iCaRL's utils_cifar100.py, srebuffi/iCaRL @b3d3686 [code]; one mean a channel, not one a pixel [ours]"
_GMM = "GMM's training processor, DoubleClass/GMM @33744e0 [code]: no flip; tested as CLIP is"
_CROP = {"area": (0.08, 1.0), "flip": 0.5}
_PAD = {"size": 32, "pad": 4, "flip": 0.5, "short": 32, "squash": True}
_WIDE_CROP = {"area": (0.05, 1.0), "flip": 0.5, "interpolation": "bilinear", **UNIT}

PRESETS = {
    "timm": Preset("timm 1.0's crop and flip in the backbone's filter; no colour jitter [ours]", **_CROP),
    "timm_test": Preset("timm 1.0's evaluation: short side size / crop_pct, centre [code]"),
    "slca_cifar": Preset(_SLCA, **_CROP, brightness=63 / 255, mean=_CIFAR_MEAN, std=(0.2675, 0.2565, 0.2761)),
    "slca_imagenet_r": Preset(_SLCA, **_CROP, **IMAGENET),
    "slca_fine_grained": Preset(_SLCA + ": CUB-200, Cars-196", square=300, flip=0.5, **IMAGENET),
    "lucir_cifar": Preset(_LUCIR, **_PAD, mean=(0.5071, 0.4866, 0.4409), std=(0.2009, 0.1984, 0.2023)),
    "lucir_imagenet": Preset(_LUCIR, **_CROP, interpolation="bilinear", test_interpolation="bilinear", **IMAGENET),
    "pilot": Preset("LAMDA-PILOT's utils/data.py @3450184 [code]; pixels in 0 … 1", **_WIDE_CROP),
    "ranpac": Preset(_RANPAC, **_WIDE_CROP),
    "ranpac_cifar": Preset(_RANPAC + "; CIFAR is tested whole", **_WIDE_CROP, short=224),
    "icarl_cifar": Preset(_ICARL, **_PAD, fill=(129, 124, 112), mean=_CIFAR_MEAN, std=UNIT["std"]),
    "pretrain_full": Preset(
        "the specs' recipe for pre-training on synthetic images (no source of the paper's exists): crop and flip "
        "[ours, specs 6]; strength of the jitter, no hue, RandAugment's 2 operations at 9 [ours]",
        area=(0.2, 1.0),
        flip=0.5,
        jitter=0.4,
        rand_augment=(2, 9),
    ),
    "gmm": Preset(_GMM, area=(0.5, 1.0), short=224, **CLIP),
}


def _uniform(shape: tuple[int, ...], generator) -> np.ndarray:
    import torch

    return draws.uniform(shape, generator, dtype=torch.float64).numpy()


def whole_images(sizes: np.ndarray) -> np.ndarray:
    return np.concatenate([np.zeros_like(sizes), sizes], axis=1)  # (n, 4)


def random_boxes(
    sizes: np.ndarray, area: tuple[float, float], generator, ratio: tuple[float, float] = (3 / 4, 4 / 3)
) -> np.ndarray:
    """RandomResizedCrop's boxes, int64 (n, 4) top, left, height, width, for images of int (n, 2) height and width.

    The first of ten attempts (area uniform, log of the ratio uniform) that fits, else the largest central one.
    """
    n = len(sizes)
    height, width = sizes[:, 0], sizes[:, 1]
    draws = _uniform((n, 10, 2), generator)
    target = (area[0] + draws[..., 0] * (area[1] - area[0])) * (height * width)[:, None]  # (n, 10)
    aspect = ratio[0] * (ratio[1] / ratio[0]) ** draws[..., 1]
    wide, high = np.rint(np.sqrt(target * aspect)), np.rint(np.sqrt(target / aspect))
    fits = (wide > 0) & (wide <= width[:, None]) & (high > 0) & (high <= height[:, None])
    first = (np.arange(n), fits.argmax(1))
    any_fits = fits.any(1)
    high = np.where(any_fits, high[first], np.minimum(height, np.rint(width / ratio[0])))
    wide = np.where(any_fits, wide[first], np.minimum(width, np.rint(height * ratio[1])))
    extent = np.stack([high, wide], axis=1).astype(np.int64)  # (n, 2)
    room = sizes - extent
    anywhere = np.floor(_uniform((n, 2), generator) * (room + 1)).astype(np.int64)
    return np.concatenate([np.where(any_fits[:, None], anywhere, room // 2), extent], axis=1)
