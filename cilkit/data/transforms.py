"""From uint8 images to normalised float batches, a batch at a time, and the order in which images are visited.

A recipe is made for a backbone's input: `recipe("slca_cifar", backbone.input)`. Its tables stand in
`cilkit.data.recipes`, the embedded benchmarks' own augmentations in `cilkit.data.augment`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from cilkit.data import recipes
from cilkit.data.augment import RECIPES, augment, colours, to_float
from cilkit.data.recipes import FILTERS, Input, Plan, Preset
from cilkit.errors import UserError, near_name

if TYPE_CHECKING:
    import torch

__all__ = ["RECIPES", "Input", "Recipe", "augment", "batches", "recipe", "to_float"]


@dataclass(frozen=True)
class Recipe:
    """How images become batches.

    size:      side of the batches in pixels; 0: the images' own (embedded recipes only).
    mean, std: the normalisation, a value a channel, for pixels in 0 … 1.
    augments:  whether training differs from testing.
    """

    name: str
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augments: bool
    preset: Preset

    def train(self, images, generator: torch.Generator, device="cpu") -> torch.Tensor:
        """Random variants, normalised float32 (n, 3, size, size), of uint8 (n, h, w, 3) or a list of uint8 (h, w, 3).

        All chance is drawn from the CPU generator before a pixel is touched; the number of threads changes nothing.
        """
        if self.name in RECIPES:
            return augment(self.test(images), self.name, generator).to(device)
        plan = self.preset.train_plan(_sizes(images), self.size, generator)
        if not self.preset.jitter:
            return self._apply(images, plan, device)
        from cilkit.data import resampling

        levels = resampling.apply(images, plan, (0.0,) * 3, (1 / 255,) * 3, device).round_()
        levels = colours(levels, self.preset.jitter, *self.preset.rand_augment, generator) / 255
        mean, std = (levels.new_tensor(values).view(3, 1, 1) for values in (self.mean, self.std))
        return (levels - mean) / std

    def test(self, images, device="cpu") -> torch.Tensor:
        """The same without chance."""
        sizes = _sizes(images)
        if self.name in RECIPES and (not self.size or (sizes == self.size).all()):
            return to_float(_stacked(images, sizes), self.mean, self.std).to(device)
        return self._apply(images, self.preset.test_plan(sizes, self.size), device)

    @property
    def shortest(self) -> int:
        """Pixels that an image's shorter side must keep: what testing resizes it to; 0 where no pixel may be lost.

        Sets that stay JPEG are decoded at a half, a quarter or an eighth where that keeps them. Testing then resizes
        once more, and small training crops lose detail: as with a cache at short side 256, an approximation.
        """
        if self.name in RECIPES or self.preset.pad:
            return 0
        return math.ceil(max(self.preset.short, self.preset.square) * self.size / self.preset.size)

    def _apply(self, images, plan: Plan, device) -> torch.Tensor:
        from cilkit.data import resampling

        return resampling.apply(images, plan, self.mean, self.std, device)


def recipe(name: str, input: Input, image_size: int = 0) -> Recipe:
    """The recipe of that name for a backbone's input; `image_size` 0: the input's own, else the preset's.

    An embedded recipe keeps the images' own size where neither says one.
    UserError for an unknown name (with a near one).
    """
    known = {**dict.fromkeys(RECIPES, Preset("cilkit.data.augment", size=1, short=1)), **recipes.PRESETS}
    if name not in known:
        raise UserError(f"no recipe {name!r}{near_name(name, known)}; take one of {', '.join(known)}")
    preset = known[name]
    size = image_size or input.size or (0 if name in RECIPES else preset.size)
    if name.startswith("timm"):
        preset = _configured(preset, input, size)
    augments = preset.augments or name in RECIPES[1:]
    return Recipe(name, size, tuple(preset.mean or input.mean), tuple(preset.std or input.std), augments, preset)


def _configured(preset: Preset, input: Input, size: int) -> Preset:
    """With the filter and the central share of the backbone's own configuration."""
    if input.interpolation not in FILTERS:
        raise UserError(f"the backbone's input asks for {input.interpolation!r} resizing; give it one of {FILTERS}")
    filters = {"interpolation": input.interpolation, "test_interpolation": input.interpolation}
    short, squash = math.floor(size / input.crop_pct), input.crop_mode == "squash"
    return replace(preset, size=size, short=short, squash=squash, **filters)


def _sizes(images) -> np.ndarray:
    """Heights and widths, int64 (n, 2)."""
    if isinstance(images, np.ndarray) and images.ndim == 4:
        return np.tile(np.array(images.shape[1:3], np.int64), (len(images), 1))
    return np.array([image.shape[:2] for image in images], np.int64).reshape(-1, 2)


def _stacked(images, sizes: np.ndarray) -> np.ndarray:
    if isinstance(images, np.ndarray):
        return images
    if len(np.unique(sizes, axis=0)) > 1:
        raise UserError(
            f"the images have several sizes, e.g. {sizes.min(0).tolist()} and {sizes.max(0).tolist()} (height, width); "
            "set image_size, or take a recipe that resizes, such as 'timm'"
        )
    return np.stack(images)


def batches(n: int, batch_size: int, seed: int, epoch: int, drop_last: bool = False) -> list[np.ndarray]:
    """The positions 0 … n - 1 in the shuffled order of one epoch, cut into batches; (seed, epoch) alone decide it."""
    order = np.random.default_rng([seed, epoch]).permutation(n)
    cuts = [order[start : start + batch_size] for start in range(0, n, batch_size)]
    return cuts[:-1] if drop_last and cuts and len(cuts[-1]) < batch_size else cuts
