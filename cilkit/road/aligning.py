"""Notebook 06: a model learns to caption a realm's paintings, and what a run takes of it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cilkit import artifacts
from cilkit.answers import SENTENCE, Sentence
from cilkit.artifacts import Artifact
from cilkit.errors import UserError, near_name
from cilkit.road.inputs import device_of, opener_of, placed, threads_set_to, upstream
from cilkit.road.weights import VLM, Weights

VERSION = 1  # part of the key: raise it when the same parameters come to mean another payload
EMBEDDED = "embedded"
NO_SETTINGS = ("images", "backbone", "arch", "model_args", "seed_init", "device", "unknown")  # of the captioner


@opener_of("captioner")
@dataclass(frozen=True)
class Aligned:
    """A captioner on disk, without its backbone: the artifact that it was aligned to is among its inputs."""

    artifact: Artifact

    @property
    def report(self) -> dict:
        """Loss a token by epoch, captions, images."""
        return json.loads(self.artifact.file("report.json").read_text())

    def load(self, precision: str = "float32"):
        from cilkit.captioning import assembled

        return assembled.load(self.artifact.path, precision)


def prealign(
    images,
    backbone: Any = "none",
    arch: str = "small_resnet",
    model_args: dict | None = None,
    lm: str = "tiny",
    dim: int = 96,
    depth: int = 2,
    grid: int = 2,
    question: str = "What is this photo of?",
    longest: int = 40,
    sentence: str = SENTENCE,
    views: int = 3,
    recipe: str = "pretrain",
    epochs: int = 4,
    batch_size: int = 64,
    lr: float = 2e-3,
    noise: float = 1.0,
    seed: int = 0,
    seed_init: int = 0,
    threads: int = 1,
    device: str = "auto",
    **unknown: Any,
) -> Aligned:
    """A linear projection and a language model learn the captions of painted images, seen through a frozen backbone.

    images:     paintings, an image set, its artifact or a 02 parameter file; the caption is `sentence` with the class.
    backbone:   as in `run`. What is made belongs to it and to no other.
    lm:         "tiny": a Llama of `depth` layers of `dim` numbers, made here; or a causal language model of
                transformers, a folder or a name on the hub, tuned as a whole.
    grid:       image tokens a side, to which a convolutional network's last maps are averaged; 0: as they are. A vision
                transformer's tokens are taken as they are.
    longest:    tokens that an answer may have.
    views:      how often each painting is encoded: as it is, then as random variants by `recipe`.
    noise:      added to standardised tokens, in standard deviations.
    seed_init:  of the weights of backbone "none", as in `run`; all other chance comes from `seed`.
    """
    settings = {name: value for name, value in locals().items() if name not in NO_SETTINGS}
    for name in unknown:
        raise UserError(f"prealign has no setting {name!r}{near_name(name, settings)}; it has {', '.join(settings)}")
    if isinstance(images, str) and not images:
        raise UserError("there are no captions to learn: images is empty; name paintings, or a backbone 'vlm:NAME'")
    painted, weights = upstream(images, "images"), Weights(backbone, arch, model_args, seed_init)
    settings["lm"] = _fingerprint(lm)
    inputs = {"images": painted.artifact, **weights.inputs}

    def make(work: artifacts.Work) -> None:
        from cilkit.captioning import aligning, assembled

        with threads_set_to(threads):
            network = weights.load().to(device_of(device)).eval().requires_grad_(False)
            names = list(painted.class_names)
            captions = [Sentence(sentence).fill(name.replace("_", " ")) for name in names]
            captioner = assembled.create(
                network,
                captions,
                lm=placed(lm),
                dim=dim,
                depth=depth,
                grid=grid,
                question=question,
                longest=longest,
                seed=seed,
            ).to(network.device)
            tokens = aligning.seen(captioner, network, painted, recipe, views, seed)
            losses = aligning.align(
                captioner, tokens, painted.labels, captions,
                epochs=epochs, batch_size=batch_size, lr=lr, noise=noise, seed=seed, scratch=work.scratch,
            )  # fmt: skip
        assembled.save(captioner, work.path)
        facts = {"losses": losses, "captions": captions, "images": len(painted), "backbone": network.tag}
        facts |= {"forwarded": dict(network.forwarded)}
        artifacts.write_json(work.path / "report.json", facts)

    identity = {**settings, **weights.identity}
    return Aligned(artifacts.obtain("captioner", VERSION, identity, inputs, make, execution={"device": device}))


class Writing:
    """Captioner and text encoder of a run: what they add to its identity and inputs, and how they are loaded."""

    def __init__(self, captioner: Any, text_encoder: str, weights: Weights) -> None:
        self.spec, self.own, self.inputs = placed(text_encoder), str(weights.source).startswith(VLM), {}
        if not self.own:
            if captioner is None:
                raise UserError(
                    "a learner that writes needs a captioner: give cilkit.prealign(…) as `captioner`, or a "
                    f"vision-language model as backbone, {VLM}NAME"
                )
            self.aligned = upstream(captioner, "captioner")
            self.inputs = {"captioner": self.aligned.artifact}
            made = self.aligned.artifact
            theirs, ours = made.inputs.get("backbone", {}).get("digest"), weights.inputs.get("backbone")
            same = theirs == (ours and ours.digest)
            if not same or any(made.identity.get(name) != value for name, value in weights.identity.items()):
                raise UserError(f"{made.name} was aligned to another backbone; align it to this one")
        self.identity = {"text_encoder": EMBEDDED if text_encoder == EMBEDDED else _fingerprint(text_encoder)}

    def load(self, network: Any, precision: str) -> dict[str, Any]:
        from cilkit.captioning.text_encoders import Encoder

        dtype = "bfloat16" if precision == "bf16" else "float32"
        captioner = network.captioner if self.own else self.aligned.load(dtype)
        captioner.precision = precision
        return {"captioner": captioner.to(network.device), "text_encoder": Encoder(self.spec, str(network.device))}


def _fingerprint(spec: str) -> str | dict[str, str]:
    """A name as it stands; of a folder, the sha256 of its weights and settings."""
    folder = Path(placed(spec)).expanduser()
    if not folder.is_dir():
        return spec
    files = sorted(file for ending in ("safetensors", "json") for file in folder.rglob(f"*.{ending}"))
    return {file.relative_to(folder).as_posix(): artifacts.sha256_of(file) for file in files}
