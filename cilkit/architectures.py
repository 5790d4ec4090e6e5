"""Short names for the small networks of the embedded default, and for weights prepared as a paper prepares them.

Every other name goes to timm as it is. Kept apart from `backbones.py` so that parameters are resolved, and artifacts
found, without importing torch.
"""

from dataclasses import dataclass
from typing import Any

PRESETS: dict[str, tuple[str, dict[str, Any]]] = {
    # 9 convolutions for 32 x 32 images, 0.36 M parameters, 128 features. The stem brings 32 x 32 to 8 x 8 and
    # `output_stride=8` keeps it there, so that thin strokes stay visible. Our decision, measured: see perf/ and README.
    "small_resnet": (
        "resnet10t",
        {"channels": [32, 48, 64, 128], "stem_type": "deep", "stem_width": 16, "avg_down": False, "output_stride": 8},
    ),
    # 64 tokens of 96 numbers.
    "small_vit": (
        "vit_tiny_patch16_224",
        {"img_size": 32, "patch_size": 4, "embed_dim": 96, "depth": 4, "num_heads": 3},
    ),
}


@dataclass(frozen=True)
class Weights:
    """Published weights as a paper uses them.

    arch:       timm's name; with a weight tag, timm fetches the weights unless a file is given.
    fresh_norm: the final LayerNorm is replaced by a new one (weight 1, bias 0, eps 1e-5), which is trained.
    file:       what file to bring where timm has no such weights; "" where it has.
    """

    arch: str
    fresh_norm: bool = False
    file: str = ""


# The checkpoints and the fresh norm are read in SLCA's code (convs/vits.py); timm's names for them are remembered.
WEIGHTS: dict[str, Weights] = {
    "slca_vit_b16_in21k": Weights("vit_base_patch16_224.augreg_in21k", fresh_norm=True),
    "slca_vit_b16_mocov3": Weights("vit_base_patch16_224", fresh_norm=True, file="mocov3-vit-base-300ep.pth"),
    # `vit_base_patch16_224` of timm 0.6, which PILOT and RanPAC name: ImageNet-21k, then fine-tuned on ImageNet-1k.
    "pilot_vit_b16_in1k": Weights("vit_base_patch16_224.augreg_in21k_ft_in1k"),
}


def resolve(arch: str, model_args: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
    """(timm name, arguments) of a preset or a timm name; `model_args` are laid over a preset's own."""
    name, preset = PRESETS.get(arch, (arch, {}))
    return name, preset | (model_args or {})
