"""The residual networks of the CIFAR papers, as timm models: importing this module makes timm know their names.

    cifar_resnet32  He et al. (CVPR 2016), section 4.2: 3 x 5 basic blocks of 16, 32 and 64 channels, 64 features,
                    0.46 M parameters; where the maps halve, the shortcut takes every second pixel and pads the new
                    channels with zeros ("option A"). iCaRL trains it (read); LUCIR's code has 1 x 1 convolutions
                    for shortcuts instead (read: `padded=False`), 2,752 parameters more.
    cifar_resnet18  ResNet-18 (4 x 2 blocks of 64 … 512 channels, 1 x 1 shortcuts) for images of 32 pixels (remembered:
                    DER and its descendants): the first convolution is 3 x 3 without stride, and nothing is pooled
                    after it.

Both start from a 3 x 3 convolution and take images of any size. `final_relu=False` leaves out the ReLU of the very last
block, so that features may be negative: LUCIR and iCaRL (read). PODNet's own network leaves it out after every block.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.layers import create_classifier
from timm.models import build_model_with_cfg, register_model
from timm.models._features import feature_take_indices
from timm.models.resnet import BasicBlock
from torch import nn
from torch.nn.functional import pad


class PaddedShortcut(nn.Module):
    """Option A: every second pixel, `channels` channels of zeros, half of them on either side (iCaRL, read)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        before = self.channels // 2
        return pad(maps[..., ::2, ::2], (0, 0, 0, 0, before, self.channels - before))


def projected_shortcut(inputs: int, outputs: int) -> nn.Module:
    """Option B: a 1 x 1 convolution of every second pixel, normalised."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride=2, bias=False), nn.BatchNorm2d(outputs))


class CifarResNet(nn.Module):
    """timm's face of a model: forward_features, forward_head, forward_intermediates, one map a stage.

    Convolutions start from Kaiming's normal distribution, normalisations from 1 and 0 (LUCIR, read).
    """

    def __init__(
        self,
        channels: tuple[int, ...] = (16, 32, 64),
        depth: int = 5,
        padded: bool = True,
        final_relu: bool = True,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_chans, channels[0], 3, padding=1, bias=False)
        self.bn1, self.act1 = nn.BatchNorm2d(channels[0]), nn.ReLU(inplace=True)
        self.feature_info, before = [], channels[0]
        for stage, width in enumerate(channels):
            halving = {}
            if stage:
                shortcut = PaddedShortcut(width - before) if padded else projected_shortcut(before, width)
                halving = {"stride": 2, "downsample": shortcut}
            blocks = [BasicBlock(before, width, **halving), *(BasicBlock(width, width) for _ in range(depth - 1))]
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
            self.feature_info.append({"num_chs": width, "reduction": 2**stage, "module": f"layer{stage + 1}"})
            before = width
        if not final_relu:
            blocks[-1].act2 = nn.Identity()
        self.num_features = self.head_hidden_size = channels[-1]
        self.reset_classifier(num_classes, global_pool)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def get_classifier(self) -> nn.Module:
        return self.fc

    def reset_classifier(self, num_classes: int, global_pool: str = "avg") -> None:
        self.num_classes = num_classes
        self.global_pool, self.fc = create_classifier(self.num_features, num_classes, pool_type=global_pool)

    def forward_intermediates(
        self, images: torch.Tensor, indices: int | list[int] | None = None, intermediates_only: bool = False
    ) -> Any:
        """The last map and those after the stages `indices`, or the latter alone."""
        chosen, _ = feature_take_indices(len(self.feature_info), indices)
        maps = [self.act1(self.bn1(self.conv1(images)))]
        for stage in self.feature_info:
            maps.append(getattr(self, stage["module"])(maps[-1]))
        kept = [maps[index + 1] for index in chosen]
        return kept if intermediates_only else (maps[-1], kept)

    def forward_features(self, images: torch.Tensor) -> torch.Tensor:
        return self.forward_intermediates(images, 1)[0]

    def forward_head(self, maps: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        features = self.global_pool(maps)
        return features if pre_logits else self.fc(features)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.forward_head(self.forward_features(images))


CONFIG = {
    "url": "",  # no weights are published with them
    "num_classes": 100,
    "input_size": (3, 32, 32),
    "interpolation": "bicubic",
    "crop_pct": 1.0,
    "mean": (0.5071, 0.4866, 0.4409),  # CIFAR-100's, as LUCIR's code has them (read) …
    "std": (0.2009, 0.1984, 0.2023),  # … where the standard deviation is a mean over images, not over all pixels
    "first_conv": "conv1",
    "classifier": "fc",
}
default_cfgs = {name: dict(CONFIG) for name in ("cifar_resnet32", "cifar_resnet18")}


@register_model
def cifar_resnet32(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    return build_model_with_cfg(CifarResNet, "cifar_resnet32", pretrained, **kwargs)


@register_model
def cifar_resnet18(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    kwargs = {"channels": (64, 128, 256, 512), "depth": 2, "padded": False} | kwargs
    return build_model_with_cfg(CifarResNet, "cifar_resnet18", pretrained, **kwargs)
