"""Backbones: timm models by name, without their head, that count every image they are shown.

A backbone on disk is a folder in timm's own layout, `config.json` and `model.safetensors`, so that plain timm reads it:
`timm.create_model("local-dir:FOLDER", pretrained=True, num_classes=0)`.
"""

from __future__ import annotations

import copy
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from cilkit import architectures, artifacts
from cilkit.errors import UserError

# Batch normalisation (our decision): in a trial, one-group normalisation in its place was 30 points behind after as
# many epochs of joint training, and 15 (nearest class mean) after as long a pre-training on letters.
DEFAULT_ARCH = "small_resnet"  # a preset of cilkit.architectures
KINDS = ("student", "teacher", "statistics", "test", "query", "probe")
WEIGHTS, CONFIG = "model.safetensors", "config.json"


class Backbone(nn.Module):
    """A timm model without head, and the count of what it was shown.

    dim:       number of features.
    mean, std: the normalisation that belongs to the weights, a value a channel, for pixels in 0 … 1.
    arch:      timm's name; `model_args` are what it was created with.
    forwarded: images by kind of pass: student, teacher, statistics, test, query, probe.
    """

    def __init__(self, model: nn.Module, arch: str, model_args: dict[str, Any]) -> None:
        super().__init__()
        self.model = model
        self.arch, self.model_args = arch, dict(model_args)
        self.dim: int = model.num_features
        self.mean, self.std = tuple(model.pretrained_cfg["mean"]), tuple(model.pretrained_cfg["std"])
        self.forwarded: Counter[str] = Counter()
        if any(isinstance(module, nn.Conv2d) and module.kernel_size[0] == 3 for module in model.modules()):
            self.to(memory_format=torch.channels_last)  # a third faster on a CPU; the values' meaning is the same

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def forward(self, images: torch.Tensor, kind: str) -> torch.Tensor:
        """Features (batch, dim) of normalised images (batch, 3, h, w); `kind` says in whose name they are counted."""
        if kind not in KINDS:
            raise UserError(f"{kind!r} is no kind of forward pass; one of {', '.join(KINDS)}")
        self.forwarded[kind] += len(images)
        return self.model(images)

    @property
    def norms(self) -> list[nn.Module]:
        """Its batch normalisations; a transformer has none."""
        return [module for module in self.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]

    def learning(self, norm_statistics: str) -> None:
        """Training mode; "frozen": batch normalisation keeps using, and does not change, its running statistics."""
        self.train()
        if norm_statistics == "frozen":
            for module in self.norms:
                module.eval()

    def frozen_copy(self) -> Backbone:
        """A copy for teaching: eval mode, no gradients, counting into the same counter."""
        twin = copy.deepcopy(self).eval().requires_grad_(False)
        twin.forwarded = self.forwarded
        return twin


def create(arch: str = DEFAULT_ARCH, seed: int = 0, model_args: dict[str, Any] | None = None) -> Backbone:
    """A backbone with random weights that depend on (arch, model_args, seed) alone.

    arch: a preset of `cilkit.architectures` ("" is DEFAULT_ARCH), over which `model_args` are laid, or a timm name.
    UserError for an unknown name or an argument that the model does not take.
    """
    import timm

    arch, model_args = architectures.resolve(arch or DEFAULT_ARCH, model_args)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            model = timm.create_model(arch, pretrained=False, num_classes=0, **model_args)
        except RuntimeError as error:
            raise UserError(_unknown(arch, error)) from error
        except TypeError as error:
            raise UserError(f"timm's {arch!r} does not take model_args {model_args}: {error}") from error
    return Backbone(model, arch, model_args)


def _unknown(arch: str, error: Exception) -> str:
    import difflib

    import timm

    if not isinstance(arch, str) or timm.is_model(arch):
        return f"timm cannot build {arch!r}: {error}"
    near = difflib.get_close_matches(arch.split(".")[0], timm.list_models(), n=1, cutoff=0.4)
    meant = f" (did you mean {near[0]!r}?)" if near else ""
    return f"timm knows no architecture {arch!r}{meant}; timm.list_models() lists them"


def save(backbone: Backbone, folder: str | Path, meta: dict[str, Any] | None = None) -> None:
    """Write timm's local layout: `config.json` and `model.safetensors`, byte-deterministic; `meta` goes along."""
    from safetensors.torch import save as to_bytes

    weights = {name: value.detach().cpu().contiguous() for name, value in backbone.model.state_dict().items()}
    weights = {name: weights[name] for name in sorted(weights)}
    pretrained_cfg = {
        "input_size": list(backbone.model.pretrained_cfg["input_size"]),
        "fixed_input_size": bool(backbone.model.pretrained_cfg.get("fixed_input_size", False)),
        "mean": list(backbone.mean),
        "std": list(backbone.std),
        "num_classes": 0,
        "classifier": backbone.model.pretrained_cfg.get("classifier"),
        "first_conv": backbone.model.pretrained_cfg.get("first_conv"),
    }
    card = {
        "architecture": backbone.arch,
        "num_classes": 0,
        "num_features": backbone.dim,
        "model_args": backbone.model_args,
        "pretrained_cfg": pretrained_cfg,
        "cilkit": meta or {},
    }
    artifacts.atomic_write(Path(folder) / WEIGHTS, to_bytes(weights, metadata={"format": "pt"}))
    artifacts.write_json(Path(folder) / CONFIG, card)


def load(spec: Any, seed: int = 0) -> Backbone:
    """A backbone from "none" (random weights from `seed`), a folder or artifact in timm's layout, or a timm/hub name.

    UserError for a damaged weights file, a folder without one, or an unknown name.
    """
    if isinstance(spec, str) and spec == "none":
        return create(seed=seed)
    folder = Path(getattr(spec, "path", spec))
    if folder.is_dir():
        return _load_folder(folder)
    if isinstance(spec, str) and not spec.startswith((".", "/")):
        return _load_named(spec)
    raise UserError(f"no backbone at {folder}; expected a folder with {CONFIG} and {WEIGHTS}")


def _load_folder(folder: Path) -> Backbone:
    import json

    from safetensors import SafetensorError
    from safetensors.torch import load as from_bytes

    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise UserError(f"{folder} holds no {name}; a backbone's folder has {CONFIG} and {WEIGHTS}")
    try:
        card = json.loads((folder / CONFIG).read_text())
        weights = from_bytes((folder / WEIGHTS).read_bytes())
    except (SafetensorError, ValueError) as error:
        raise UserError(
            f"the backbone in {folder} is damaged ({error}); delete the folder and make it again"
        ) from error
    backbone = create(card["architecture"], 0, card.get("model_args"))
    try:
        backbone.model.load_state_dict(weights)
    except RuntimeError as error:
        first = str(error).splitlines()[-1].strip()
        raise UserError(f"the weights in {folder} do not fit {card['architecture']!r}: {first}") from error
    cfg = card.get("pretrained_cfg", {})
    backbone.mean, backbone.std = tuple(cfg.get("mean", backbone.mean)), tuple(cfg.get("std", backbone.std))
    return backbone


def _load_named(name: str) -> Backbone:
    import timm

    try:
        model = timm.create_model(name, pretrained=True, num_classes=0)
    except (RuntimeError, OSError, ValueError) as error:
        if not timm.is_model(name) and ":" not in name and "/" not in name:
            raise UserError(_unknown(name, error)) from error
        raise UserError(
            f"the weights of {name!r} cannot be had ({str(error).splitlines()[0]}); "
            "check the name and the network, or give a folder"
        ) from error
    return Backbone(model, name, {})


def extract(backbone: Backbone, images: np.ndarray, kind: str, batch_size: int = 256) -> np.ndarray:
    """Features, float32 (n, dim), of images uint8 (n, h, w, 3): eval mode, no gradients, no augmentation."""
    from cilkit.data.transforms import to_float

    was_training = backbone.training
    backbone.eval()
    features = [np.zeros((0, backbone.dim), np.float32)]
    with torch.no_grad():
        for start in range(0, len(images), batch_size):
            batch = to_float(images[start : start + batch_size], backbone.mean, backbone.std)
            features.append(backbone(batch.to(backbone.device), kind).float().cpu().numpy())
    backbone.train(was_training)
    return np.concatenate(features)
