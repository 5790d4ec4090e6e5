"""The masked autoencoder's mathematics (He et al., CVPR 2022) on a timm vision transformer, with what MAE-CIL (Zhai et
al., ICCV 2023) adds to it: patches and masks, the encoder on visible patches, a decoder, a branch for details.

A mask is an order of an image's n patches: the first `visible` of them are shown, the others hidden.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import nn

from cilkit import precision
from cilkit.errors import UserError

if TYPE_CHECKING:
    from cilkit.backbones import Backbone


def to_patches(images: torch.Tensor, side: int) -> torch.Tensor:
    """Images (batch, channels, h, w) as patches (batch, n, channels * side * side), row after row."""
    batch, channels, height, width = images.shape
    cut = images.reshape(batch, channels, height // side, side, width // side, side)
    return cut.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, channels * side * side)


def to_images(patches: torch.Tensor, side: int) -> torch.Tensor:
    """The inverse of `to_patches`, for square images."""
    batch, count, numbers = patches.shape
    grid, channels = math.isqrt(count), numbers // side**2
    cut = patches.reshape(batch, grid, grid, channels, side, side)
    return cut.permute(0, 3, 1, 4, 2, 5).reshape(batch, channels, grid * side, grid * side)


def orders(batch: int, patches: int, generator: torch.Generator) -> torch.Tensor:
    """A random order of the patches for every image, int64 (batch, patches): argsort of noise, as MAE's."""
    return torch.rand(batch, patches, generator=generator, device=generator.device).argsort(1)


def at(values: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """values (batch, n, dim) at places (batch, m): (batch, m, dim)."""
    return values.gather(1, places[:, :, None].expand(-1, -1, values.shape[2]))


def paste(predicted: torch.Tensor, images: torch.Tensor, order: torch.Tensor, visible: int, side: int) -> torch.Tensor:
    """`predicted` images (batch, 3, h, w) with the true pixels of the visible patches over them."""
    hidden = torch.ones_like(order, dtype=torch.bool).scatter(1, order[:, :visible], False)  # (batch, n)
    return torch.where(to_images(hidden[:, :, None].expand(-1, -1, side**2), side), predicted, images)


def high_frequencies(images: torch.Tensor, lowest: float = 0.35) -> torch.Tensor:
    """What is left of images (batch, channels, h, w) once the box of frequencies below `lowest` cycles a pixel, in both
    directions, is zeroed: the mean goes, a checkerboard (0.5 and 0.5) stays.

    0.35 is the code's box, 15 … 85 % of the plane (third-party). The code zeroes that box of an unshifted plane, in
    whose middle the high frequencies lie (third-party), and so keeps the low ones (derived); ours is what it is for.
    """
    (height, width), device = images.shape[2:], images.device
    down, across = torch.fft.fftfreq(height, device=device).abs(), torch.fft.rfftfreq(width, device=device)
    kept = torch.maximum(down[:, None], across) >= lowest  # (h, w / 2 + 1)
    return torch.fft.irfft2(torch.fft.rfft2(images) * kept, s=(height, width))


def grid_of(network: Backbone) -> tuple[int, int]:
    """(patches of an image, pixels on a patch's side). UserError for what is no plain vision transformer."""
    from timm.models.vision_transformer import VisionTransformer

    rows, columns = getattr(getattr(network.model, "patch_embed", None), "grid_size", None) or (0, 1)
    if not isinstance(network.model, VisionTransformer) or rows != columns or network.model.pos_embed is None:
        raise UserError(
            f"{network.arch!r} cannot be masked patch by patch; take a plain vision transformer with positions and "
            "square images, such as 'small_vit'"
        )
    return rows * columns, network.model.patch_embed.patch_size[0]


def encode(
    network: Backbone, images: torch.Tensor, kind: str, shown: torch.Tensor | None = None, early: int = 0
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Tokens (batch, prefix + m, dim) of normalised images after the last norm, and those after block `early`.

    shown: places (batch, m) of the patches that the transformer sees; None: all, which is timm's own forward pass.
    """
    network.forwarded[kind] += len(images)
    model, shallow = network.model, None
    with precision.autocast(network.precision, images.device):
        tokens = model._pos_embed(model.patch_embed(images))
        if shown is not None:
            prefix, patches = tokens.tensor_split([model.num_prefix_tokens], dim=1)
            tokens = torch.cat([prefix, at(patches, shown)], dim=1)
        tokens = model.norm_pre(tokens)
        for place, block in enumerate(model.blocks, 1):
            tokens = block(tokens)
            shallow = tokens if place == early else shallow
        tokens = model.norm(tokens).to(images.dtype)
    return tokens, None if shallow is None else shallow.to(images.dtype)


def waves(patches: int, dim: int) -> torch.Tensor:
    """Where each patch of a square grid lies, float32 (patches, dim): sines and cosines of its row and of its column,
    at frequencies from 1 to 1 / 10000, as MAE's (remembered)."""
    grid, quarter = math.isqrt(patches), dim // 4
    angles = torch.arange(grid)[:, None] / 10000 ** (torch.arange(quarter) / quarter)  # (grid, dim / 4)
    line = torch.cat([angles.sin(), angles.cos()], dim=1)  # (grid, dim / 2)
    both = torch.cat([line[:, None].expand(grid, grid, -1), line[None].expand(grid, grid, -1)], dim=2)
    return nn.functional.pad(both.flatten(0, 1), (0, dim - 4 * quarter))


class Decoder(nn.Module):
    """Pixels of all patches from tokens of the visible ones: a mask token in every hidden place, positions of its own,
    one block, Linear.

    The released code's mask token is no registered parameter and stays zero (third-party); this one learns. Positions
    start as sines and learn (ours): as noise they take twice the epochs until a patch finds its neighbours (measured).
    """

    def __init__(self, dim: int, heads: int, prefix: int, patches: int, numbers: int) -> None:
        from timm.models.vision_transformer import Block

        super().__init__()
        self.prefix = prefix
        self.mask_token = nn.Parameter(torch.zeros(dim))
        self.positions = nn.Parameter(torch.cat([torch.zeros(prefix, dim), waves(patches, dim)]))
        self.block = Block(dim, heads, qkv_bias=True)
        self.norm = nn.LayerNorm(dim)
        self.pixels = nn.Linear(dim, numbers)
        nn.init.trunc_normal_(self.mask_token, std=0.02)

    def forward(self, tokens: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
        """tokens (batch, prefix + visible, dim), of the first patches of `order` (batch, n): (batch, n, numbers)."""
        first, known = tokens.tensor_split([self.prefix], dim=1)
        batch, hidden = len(order), order.shape[1] - known.shape[1]
        known = torch.cat([known, self.mask_token.expand(batch, hidden, -1)], dim=1)
        whole = torch.cat([first, at(known, order.argsort(1))], dim=1) + self.positions
        return self.pixels(self.norm(self.block(whole)))[:, self.prefix :]


class Autoencoder(nn.Module):
    """What rebuilds images beside the transformer, which stays outside: the decoder and, with `detail`, the branch that
    adds high frequencies from the tokens after block `early`: the first `width` of their numbers, detached, expanded
    linearly and read by the same decoder (whether the code has another is not known; ours)."""

    def __init__(self, network: Backbone, early: int, width: int, detail: bool) -> None:
        super().__init__()
        (patches, self.side), dim = grid_of(network), network.model.embed_dim
        heads, prefix = network.blocks[0].attn.num_heads, network.model.num_prefix_tokens
        self.early, self.width = early, width
        self.decoder = Decoder(dim, heads, prefix, patches, 3 * self.side**2)
        self.expand = nn.Linear(width, dim) if detail else None

    def forward(
        self, network: Backbone, images: torch.Tensor, order: torch.Tensor, visible: int, kind: str
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What the `visible` first patches of `order` say of images (batch, 3, h, w), and the detail branch's addition
        to it (zero without the branch); both (batch, 3, h, w). Hidden pixels are not looked at."""
        tokens, shallow = encode(network, images, kind, order[:, :visible], self.early)
        main = to_images(self.decoder(tokens, order), self.side)
        if self.expand is None:
            return main, torch.zeros_like(main)
        tokens = self.expand(shallow[:, :, : self.width].detach())
        return main, high_frequencies(to_images(self.decoder(tokens, order), self.side))

    def rebuild(self, network: Backbone, images: torch.Tensor, order: torch.Tensor, visible: int, kind: str):
        """Images (batch, 3, h, w) as the visible patches alone give them back."""
        main, details = self(network, images, order, visible, kind)
        return paste(main + details, images, order, visible, self.side)
