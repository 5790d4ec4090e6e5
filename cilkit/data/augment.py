"""Random variants of whole batches: the augmentations of the embedded benchmarks, and the colours of `pretrain_full`.

No recipe of the embedded benchmarks ever flips an image: mirrored characters are other shapes.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from cilkit.data import draws
from cilkit.errors import UserError

if TYPE_CHECKING:
    import torch

RECIPES = ("none", "shift", "digits", "pretrain")


def to_float(images: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> "torch.Tensor":
    """uint8 (n, h, w, 3) to normalised float32 (n, 3, h, w); mean and std a channel, for values in 0 … 1."""
    import torch

    pixels = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2)
    scale = torch.tensor([255.0 * s for s in std]).view(3, 1, 1)
    offset = torch.tensor([m / s for m, s in zip(mean, std, strict=True)]).view(3, 1, 1)
    return (pixels.float() / scale - offset).contiguous()


def augment(batch: "torch.Tensor", recipe: str, generator: "torch.Generator") -> "torch.Tensor":
    """A random variant of each image of a normalised float batch (n, 3, h, w); all chance comes from `generator`.

    none:     the batch itself.
    shift:    up to 2 pixels in each direction, reflected at the border.
    digits:   shift up to 3 pixels, scale 0.85 … 1.15, rotation up to 10 degrees, brightness and contrast.
    pretrain: for paintings that fill the image: scale 0.7 … 1.15 anywhere in the frame, rotation up to 12 degrees,
              polarity, greyscale, channel order, contrast a channel, brightness, noise.
    """
    if recipe not in RECIPES:
        raise UserError(f"augmentation recipe {recipe!r} is unknown; take one of {', '.join(RECIPES)}.")
    if recipe == "none" or not len(batch):
        return batch
    if recipe == "shift":
        return _shift(batch, 2, generator)
    if recipe == "digits":
        batch = _warp(batch, (0.85, 1.15), 10.0, 3.0, generator)
        return _brightness_contrast(batch, 0.3, (0.7, 1.3), generator)
    batch = _place(batch, (0.7, 1.15), 12.0, generator)
    batch = _brightness_contrast(_colours(batch, generator), 0.5, (0.5, 1.4), generator)
    return batch + 0.05 * draws.normal(batch.shape, generator)


def _uniform(n: int, low: float, high: float, generator):
    return draws.uniform((n,), generator) * (high - low) + low  # (n,)


def _shift(batch, pixels: int, generator):
    """Whole-pixel shifts, so that pixel values are kept."""
    import torch

    n, _, height, width = batch.shape
    padded = torch.nn.functional.pad(batch, (pixels,) * 4, mode="reflect")
    top, left = draws.integers(2 * pixels + 1, (2, n), generator, batch=1)
    rows = (top[:, None] + torch.arange(height))[:, None, :, None]  # (n, 1, h, 1)
    columns = (left[:, None] + torch.arange(width))[:, None, None, :]  # (n, 1, 1, w)
    return padded[torch.arange(n)[:, None, None, None], torch.arange(3)[None, :, None, None], rows, columns]


def _sample(batch, scale, angle, shift_x, shift_y):
    """Scale, turn and shift each image: grid coordinates, -1 … 1, of the centre; border pixels go on outside."""
    import torch
    from torch.nn.functional import affine_grid, grid_sample

    cos, sin = torch.cos(angle) / scale, torch.sin(angle) / scale
    theta = torch.stack([cos, sin, -cos * shift_x - sin * shift_y, -sin, cos, sin * shift_x - cos * shift_y], dim=1)
    grid = affine_grid(theta.view(-1, 2, 3), list(batch.shape), align_corners=False)
    return grid_sample(batch, grid, padding_mode="border", align_corners=False)


def _warp(batch, scales, degrees: float, pixels: float, generator):
    """Small changes of scale, angle and place about the image's centre."""
    import torch

    n, most = len(batch), 2 * pixels / batch.shape[-1]
    scale = _uniform(n, *scales, generator)
    angle = torch.deg2rad(_uniform(n, -degrees, degrees, generator))
    return _sample(batch, scale, angle, _uniform(n, -most, most, generator), _uniform(n, -most, most, generator))


def _place(batch, scales, degrees: float, generator):
    """Scale the content and put it anywhere in the frame. Border pixels go on: a reflection would mirror characters."""
    import torch

    n = len(batch)
    scale = _uniform(n, *scales, generator)
    angle = torch.deg2rad(_uniform(n, -degrees, degrees, generator))
    room = (1.08 - scale).clamp(min=0.1)  # grid coordinates between the centred content and the border
    return _sample(batch, scale, angle, room * _uniform(n, -1, 1, generator), room * _uniform(n, -1, 1, generator))


def _brightness_contrast(batch, brightness: float, contrasts, generator):
    """Contrast about the image's own mean, then an offset in units of the normalisation's standard deviation."""
    n = len(batch)
    centre = batch.mean((1, 2, 3), keepdim=True)  # (n, 1, 1, 1)
    contrast = _uniform(n, *contrasts, generator).view(n, 1, 1, 1)
    return (batch - centre) * contrast + centre + _uniform(n, -brightness, brightness, generator).view(n, 1, 1, 1)


def _colours(batch, generator):
    """Half of the images inverted, a fifth grey, every image's channels reordered and weighted."""
    import torch

    n = len(batch)
    sign = torch.where(_uniform(n, 0, 1, generator) < 0.5, -1.0, 1.0).view(n, 1, 1, 1)
    grey = (_uniform(n, 0, 1, generator) < 0.2).view(n, 1, 1, 1)
    order = draws.uniform((n, 3), generator).argsort(1)  # (n, 3), a permutation a row
    weight = draws.uniform((n, 3, 1, 1), generator) * 0.6 + 0.7
    batch = batch[torch.arange(n)[:, None], order] * weight * sign
    return torch.where(grey, batch.mean(1, keepdim=True), batch)


# ---------------------------------------------------------------- photographs and paintings of objects


def colours(levels: "torch.Tensor", jitter: float, operations: int, magnitude: int, chance) -> "torch.Tensor":
    """Colour jitter, then RandAugment, of whole levels 0 … 255, float (n, 3, h, w), on their device.

    jitter: brightness, contrast and saturation, in this order (torchvision shuffles it: our decision), each by a factor
            from 1 - jitter … 1 + jitter an image. No hue.
    operations, magnitude: of torchvision's RandAugment, drawn for each image, with magnitude out of 30.
    All chance is drawn on the CPU, from `chance`, before a pixel is touched.
    """
    import torch

    n = len(levels)
    factors = 1 + jitter * (2 * draws.uniform((n, 3), chance) - 1)
    picked = draws.integers(len(_space(levels)), (n, operations), chance)
    signs = draws.integers(2, (n, operations), chance)
    factors = factors.to(levels.device).view(n, 3, 1, 1, 1)
    levels = _blended(levels, 0.0, factors[:, 0])
    levels = _blended(levels, _grey(levels).round_().mean((1, 2, 3), keepdim=True), factors[:, 1])
    levels = _blended(levels, _grey(levels), factors[:, 2]).to(torch.uint8)
    for number in range(operations):
        levels = _operated(levels, picked[:, number], signs[:, number], magnitude)
    return levels.float()


def _blended(levels, other, factor):
    return (levels * factor + other * (1 - factor)).clamp_(0, 255).floor_()


def _grey(levels):
    return (levels * levels.new_tensor([0.2989, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True)  # (n, 1, h, w)


def _space(levels) -> list[tuple]:
    """Name, magnitudes and whether they have a sign, of each of torchvision's operations."""
    from torchvision.transforms import RandAugment

    space = RandAugment()._augmentation_space(31, tuple(levels.shape[-2:]))
    return [(name, magnitudes, signed) for name, (magnitudes, signed) in space.items()]


def _operated(levels, picked, signs, magnitude: int):
    """One operation an image: those that share operation and sign go through it together."""
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.autoaugment import _apply_op

    levels = levels.clone()
    for number, (name, magnitudes, signed) in enumerate(_space(levels)):
        strength = float(magnitudes[magnitude]) if magnitudes.ndim else 0.0
        for sign in (0, 1):
            rows = ((picked == number) & (signs == sign)).nonzero()[:, 0].to(levels.device)
            if len(rows):
                by = -strength if signed and sign else strength
                levels[rows] = _apply_op(levels[rows], name, by, InterpolationMode.NEAREST, None)
    return levels
