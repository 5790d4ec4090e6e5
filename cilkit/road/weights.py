"""Where a network's first weights come from, as a person writes it down."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cilkit import architectures, artifacts
from cilkit.artifacts import Artifact
from cilkit.errors import UserError
from cilkit.road.inputs import upstream
from cilkit.road.pretraining import Pretrained

VLM = "vlm:"  # before a vision-language model of transformers, a folder or a name on the hub
STAGE = "backbone/"  # how the name of such an artifact begins


class Weights:
    """A `Pretrained`, a parameter file or an artifact (an input of what is made from it); or a name, a file or folder
    with its content's hash, or "none" with a seed (all part of its identity)."""

    def __init__(self, backbone: Any, arch: str = "", model_args: dict | None = None, seed: int = 0) -> None:
        self.arch, self.model_args, self.seed = arch, model_args, seed
        self.inputs: dict[str, Artifact] = {}
        if not isinstance(backbone, str) or backbone.startswith(STAGE) or backbone.endswith((".yaml", ".yml")):
            self.source = upstream(backbone, "backbone")
            self.inputs = {"backbone": self.source.artifact}
            self.identity: dict[str, Any] = {"backbone": "pretrained"}
            return
        self.source = backbone
        prefix, _, place = backbone.partition(":")
        if backbone.startswith(VLM):
            folder = _on_disk(place)
            self.source, what = f"{VLM}{folder or place}", {"name": place}
            if folder:
                files = [file for end in ("safetensors", "json", "jinja") for file in sorted(folder.glob(f"*.{end}"))]
                what = {"sha256": [artifacts.sha256_of(file) for file in files]}
            self.identity = {"backbone": "vlm", **what, "model_args": model_args or {}}
            return
        by_file = bool(place) and prefix in (*architectures.WEIGHTS, "local-dir")  # "slca_vit_b16_mocov3:FILE"
        path = _on_disk(place if by_file else backbone)
        resolved, args = architectures.resolve(arch, model_args)
        if backbone == "none":
            self.identity = {"backbone": "none", "arch": resolved, "model_args": args, "weights_seed": seed}
        elif path is not None and (path / "artifact.json").is_file():
            self.source = upstream(path, "backbone")
            self.inputs, self.identity = {"backbone": self.source.artifact}, {"backbone": "pretrained"}
        elif path is not None:
            self.source = f"{prefix}:{path}" if by_file else str(path)
            files = [path] if path.is_file() else sorted(path.glob("*.safetensors")) + sorted(path.glob("*.json"))
            self.identity = {"backbone": "file", "sha256": [artifacts.sha256_of(file) for file in files]}
            self.identity |= {"preset": prefix} if by_file else {}
            if path.is_file():
                self.identity |= {"arch": resolved, "model_args": args}
        else:
            self.identity = {"backbone": backbone, "model_args": model_args or {}}

    def load(self):
        """The `Backbone`."""
        from cilkit import backbones

        if isinstance(self.source, Pretrained):
            return self.source.load()
        if self.source.startswith(VLM):
            from cilkit.captioning import vlm

            return vlm.load(self.source.removeprefix(VLM), **(self.model_args or {}))
        return backbones.load(self.source, seed=self.seed, arch=self.arch, model_args=self.model_args)


def _on_disk(spec: str) -> Path | None:
    """A file or folder, from the working directory or the repository; None where `spec` is a name."""
    home = artifacts.repository()
    for path in (Path(spec).expanduser(), *([home / spec] if home else [])):
        if path.is_file() or path.is_dir():
            return path.absolute()
    if spec.startswith((".", "/", "~")) or spec.endswith(".safetensors"):
        raise UserError(f"no backbone at {spec!r}, neither here nor in the repository; check the path")
    return None
