"""Short names for the small networks of the embedded default. Every other name goes to timm as it is.

Kept apart from `backbones.py` so that parameters are resolved, and artifacts found, without importing torch.
"""

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


def resolve(arch: str, model_args: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
    """(timm name, arguments) of a preset or a timm name; `model_args` are laid over a preset's own."""
    name, preset = PRESETS.get(arch, (arch, {}))
    return name, preset | (model_args or {})
