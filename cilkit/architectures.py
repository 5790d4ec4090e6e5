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
    paradigm:   how and on what they were trained, for the table that compares just that; "" in a paper's own variant.
    """

    arch: str
    fresh_norm: bool = False
    file: str = ""
    paradigm: str = ""


MOCOV3 = "mocov3-vit-base-300ep.pth"  # timm has no tag for it

WEIGHTS: dict[str, Weights] = {
    # The checkpoints and the fresh norm are read in SLCA's code (convs/vits.py); augreg_in21k is that file (read in
    # timm's configuration).
    "slca_vit_b16_in21k": Weights("vit_base_patch16_224.augreg_in21k", fresh_norm=True),
    "slca_vit_b16_mocov3": Weights("vit_base_patch16_224", fresh_norm=True, file=MOCOV3),
    # `vit_base_patch16_224` of timm 0.6, which PILOT and RanPAC name: ImageNet-21k, then fine-tuned on ImageNet-1k.
    "pilot_vit_b16_in1k": Weights("vit_base_patch16_224.augreg_in21k_ft_in1k"),
    # One network, six ways to pre-train it: the axis of params/sweeps/paradigms.yaml. Final norms as they come.
    "vit_b16_in21k": Weights("vit_base_patch16_224.augreg_in21k", paradigm="supervised, ImageNet-21k"),
    "vit_b16_in1k": Weights("vit_base_patch16_224.augreg_in1k", paradigm="supervised, ImageNet-1k"),
    "vit_b16_dino": Weights("vit_base_patch16_224.dino", paradigm="DINO, ImageNet-1k"),
    "vit_b16_mae": Weights("vit_base_patch16_224.mae", paradigm="masked autoencoder, ImageNet-1k"),
    "vit_b16_clip": Weights("vit_base_patch16_clip_224.openai", paradigm="CLIP, OpenAI's image-text pairs"),
    "vit_b16_mocov3": Weights("vit_base_patch16_224", file=MOCOV3, paradigm="MoCo v3, ImageNet-1k"),
}


def resolve(arch: str, model_args: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
    """(timm name, arguments) of a preset or a timm name; `model_args` are laid over a preset's own."""
    name, preset = PRESETS.get(arch, (arch, {}))
    return name, preset | (model_args or {})
