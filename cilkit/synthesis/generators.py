"""Text-to-image generators behind one small face: the embedded one, any diffusers pipeline, and font renderings.

Loading reads names, settings and digests only; torch and diffusers are imported when the first image is painted.
"""

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from cilkit.artifacts import sha256_of
from cilkit.errors import UserError, near_name, reason_of
from cilkit.synthesis.presets import preset, preset_of, presets

EMBEDDED = Path(__file__).resolve().parent.parent / "assets" / "generator"


class OutOfMemory(MemoryError):
    """The device's memory ran out while painting; fewer images at once may fit."""


class Generator(Protocol):
    """What painting needs to know. `settings` holds at least size, steps, guidance, scheduler, batch_size."""

    id: str
    digest: str
    licence: str  # as far as known, "" else
    size: int
    batch_size: int
    settings: dict[str, Any]
    repaints: dict[int, int]  # position in the last call -> how often it was painted again, being blank

    def check(self, concepts: Sequence[str], prompts: Sequence[str] = ()) -> None:
        """UserError for the first concept or prompt that it cannot paint."""

    def tokens(self, prompts: Sequence[str]) -> tuple[list[int], int]:
        """The number of tokens of each prompt, and how many are read (0: not known)."""

    def paint(self, prompts: Sequence[str], seeds: Sequence[int], concepts: Sequence[str]) -> np.ndarray:
        """One image a prompt, each from its own seed: uint8 (n, size, size, 3). Raises OutOfMemory."""

    def most_at_once(self) -> int:
        """Images of one call that the free device memory allows; 0 where no limit is known."""


def load_generator(spec: "str | Path | Generator" = "embedded", **settings) -> Generator:
    """ "embedded", "font-renderings", a preset's name, a diffusers folder, a hub name, or a Generator object.

    settings: see `cilkit.synthesis.diffusion.Diffusion`; by default the model's own, else its preset's, else the
    paper's. A Generator object is given back as it is.
    """
    from cilkit.synthesis.diffusion import EXECUTION, Diffusion

    if hasattr(spec, "paint"):
        return spec
    spec, asked = str(spec), settings.get("preset", "")
    if spec == "font-renderings":
        if unknown := sorted(set(settings) - set(EXECUTION)):
            raise UserError(f"font-renderings has no settings, but {unknown[0]!r} was given; leave it out")
        return FontRenderings()
    if spec in presets() and spec != "embedded" and not (Path(spec) / "model_index.json").is_file():
        settings["preset"] = asked = asked or spec
        spec = preset(spec).model
    known = preset(asked) if asked else preset_of(spec)
    if spec == "embedded":
        return Diffusion(EMBEDDED, "embedded", settings, known)
    if (Path(spec) / "model_index.json").is_file():
        return Diffusion(Path(spec), Path(spec).resolve().name, settings, known)
    return Diffusion(_fetched(spec, settings.get("revision")), spec, settings, known)


def _fetched(name: str, revision: str | None = None) -> Path:
    """The folder of a model of the Hugging Face hub, from its cache or the network."""
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        near = near_name(name, ["font-renderings", *presets()], cutoff=0.6)
        raise UserError(
            f"generator {name!r} is unknown{near}; expected 'embedded', 'font-renderings', a folder with "
            f"model_index.json, a preset ({', '.join(presets())}), or a hub name such as 'lambdalabs/miniSD-diffusers'"
        )
    from diffusers import DiffusionPipeline

    try:
        return Path(DiffusionPipeline.download(name, revision=revision or None, use_safetensors=True))
    except Exception as error:  # the hub's client raises many unrelated classes
        raise UserError(
            f"generator {name!r} is neither a local folder nor to be had from the hub ({reason_of(error)}); check its "
            "name and the connection, or name a folder that holds it"
        ) from None


class FontRenderings:
    """The concepts rendered from matplotlib's fonts: what the embedded generator learnt from, as a control arm."""

    id = spec = "font-renderings"
    licence = "as this repository; the fonts have matplotlib's"

    def __init__(self) -> None:
        from cilkit.synthesis import glyphs

        self.size, self.batch_size = glyphs.SIZE, 32
        self.settings = {"size": self.size, "steps": 0, "guidance": 0.0, "scheduler": "none", "batch_size": 32}
        self.repaints: dict[int, int] = {}

    @cached_property
    def digest(self) -> str:
        """sha256 of the renderer and its fonts."""
        from cilkit.synthesis import glyphs

        fonts = {*glyphs.TRAIN_FONTS, "DejaVuSans"}  # the last one draws what the others lack
        files = [Path(glyphs.__file__), *(glyphs.font_path(font) for font in sorted(fonts))]
        return hashlib.sha256("".join(sha256_of(file) for file in files).encode()).hexdigest()

    def check(self, concepts: Sequence[str], prompts: Sequence[str] = ()) -> None:
        from cilkit.synthesis import glyphs

        demand(concepts, glyphs.CONCEPTS, "font-renderings")

    def tokens(self, prompts: Sequence[str]) -> tuple[list[int], int]:
        return [len(prompt.split()) for prompt in prompts], 0

    def most_at_once(self) -> int:
        return 0

    def paint(self, prompts: Sequence[str], seeds: Sequence[int], concepts: Sequence[str]) -> np.ndarray:
        from cilkit.synthesis import glyphs

        pairs = zip(concepts, seeds, strict=True)
        return np.stack([glyphs.render(name, np.random.default_rng(seed)) for name, seed in pairs])


def demand(concepts: Sequence[str], known, generator: str) -> None:
    """UserError for the first concept that is not among the known ones."""
    missing = [name for name in dict.fromkeys(concepts) if name not in known]
    if missing:
        others = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise UserError(
            f"the generator {generator!r} cannot paint {missing[0]!r}{others}{near_name(missing[0], known, 0.6)}: it "
            f"knows {len(known)} concepts only; for other realms name a Stable Diffusion folder or hub model as the "
            "generator"
        )
