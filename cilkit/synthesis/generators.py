"""Text-to-image generators behind one small face: the embedded one, any diffusers pipeline, and font renderings.

Loading reads names, settings and digests only; torch and diffusers are imported when the first image is painted.
"""

import hashlib
import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from cilkit.artifacts import sha256_of
from cilkit.errors import UserError

EMBEDDED = Path(__file__).resolve().parent.parent / "assets" / "generator"
# Premonition's image notebook (read in source: Get_Images_from_Prompts.ipynb): miniSD at 256 x 256, fp16, no safety
# checker (it blanks images), default scheduler, no negative prompt; low guidance for diversity; 20 images a call.
PAPER = {"steps": 40, "guidance": 2.0, "negative_prompt": None, "batch_size": 20}


class Generator(Protocol):
    """What painting needs to know. `settings` holds at least size, steps, guidance, scheduler, batch_size."""

    id: str
    digest: str
    size: int
    batch_size: int
    settings: dict[str, Any]

    def check(self, concepts: Sequence[str], prompts: Sequence[str] = ()) -> None:
        """UserError for the first concept or prompt that it cannot paint."""

    def paint(self, prompts: Sequence[str], seeds: Sequence[int], concepts: Sequence[str]) -> np.ndarray:
        """One image a prompt, each from its own seed: uint8 (n, size, size, 3)."""


def load_generator(spec: "str | Path | Generator" = "embedded", **settings) -> Generator:
    """ "embedded", "font-renderings", a diffusers folder, a hub name, or a Generator object (given back as it is).

    settings: steps, guidance, size, negative_prompt, batch_size of a diffusion generator (by default its own,
    else the paper's).
    """
    if hasattr(spec, "paint"):
        return spec
    if str(spec) == "font-renderings":
        return FontRenderings()
    if str(spec) == "embedded":
        return Diffusion(EMBEDDED, "embedded", settings)
    if (Path(spec) / "model_index.json").is_file():
        return Diffusion(Path(spec), Path(spec).name, settings)
    return Diffusion(_fetched(str(spec)), str(spec), settings)


def _fetched(name: str) -> Path:
    """The folder of a model of the Hugging Face hub, from its cache or the network."""
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise UserError(
            f"generator {name!r} is unknown; expected 'embedded', 'font-renderings', a folder with model_index.json, "
            "or a hub name such as 'lambdalabs/miniSD-diffusers'"
        )
    from diffusers import DiffusionPipeline

    try:
        return Path(DiffusionPipeline.download(name, use_safetensors=True))
    except Exception as error:  # the hub's client raises many unrelated classes
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise UserError(f"generator {name!r} is neither a local folder nor to be had from the hub ({reason})") from None


class FontRenderings:
    """The concepts rendered from matplotlib's fonts: what the embedded generator learnt from, as a control arm."""

    id = spec = "font-renderings"

    def __init__(self) -> None:
        from cilkit.synthesis import glyphs

        self.size, self.batch_size = glyphs.SIZE, 32
        self.settings = {"size": self.size, "steps": 0, "guidance": 0.0, "scheduler": "none", "batch_size": 32}

    @cached_property
    def digest(self) -> str:
        """sha256 of the renderer and its fonts."""
        from cilkit.synthesis import glyphs

        fonts = {*glyphs.TRAIN_FONTS, "DejaVuSans"}  # the last one draws what the others lack
        files = [Path(glyphs.__file__), *(glyphs.font_path(font) for font in sorted(fonts))]
        return hashlib.sha256("".join(sha256_of(file) for file in files).encode()).hexdigest()

    def check(self, concepts: Sequence[str], prompts: Sequence[str] = ()) -> None:
        from cilkit.synthesis import glyphs

        _demand(concepts, glyphs.CONCEPTS, "font-renderings")

    def paint(self, prompts: Sequence[str], seeds: Sequence[int], concepts: Sequence[str]) -> np.ndarray:
        from cilkit.synthesis import glyphs

        pairs = zip(concepts, seeds, strict=True)
        return np.stack([glyphs.render(name, np.random.default_rng(seed)) for name, seed in pairs])


class Diffusion:
    """A diffusers pipeline in a folder. One `torch.Generator` an image, on the CPU, so that a seed means one noise."""

    def __init__(self, folder: Path, name: str, settings: dict[str, Any], device: str | None = None):
        self.folder, self.id, self.device = Path(folder), name, device
        self.spec = name if name == "embedded" or "/" in name else str(self.folder)
        if not (self.folder / "model_index.json").is_file():
            raise UserError(
                f"{self.folder} holds no model_index.json; expected a diffusers folder (the weights of {name})"
            )
        self.paintable = self._json("paintable.json", {})
        self.given = dict(settings)
        self.settings = {**PAPER, "size": self._native_size(), "scheduler": self._scheduler()}
        self.settings |= {
            key: value for key, value in self.paintable.get("settings", {}).items() if key in self.settings
        }
        unknown = sorted(set(settings) - set(self.settings))
        if unknown:
            raise UserError(f"generator setting {unknown[0]!r} is unknown; known are {', '.join(self.settings)}")
        self.settings |= settings
        self.size, self.batch_size = self.settings["size"], self.settings["batch_size"]

    def _json(self, name: str, default: dict) -> dict:
        path = self.folder / name
        if not path.is_file():
            return default
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"{path} is not JSON ({error}); restore the generator's folder") from None

    def _native_size(self) -> int:
        """Pixels on a side: the U-Net's latent size times the autoencoder's reduction, 512 where neither is told."""
        latent = self._json("unet/config.json", {}).get("sample_size")
        blocks = self._json("vae/config.json", {}).get("block_out_channels")
        return latent * 2 ** (len(blocks) - 1) if isinstance(latent, int) and blocks else 512

    def _scheduler(self) -> str:
        return self._json("scheduler/scheduler_config.json", {}).get("_class_name", "unknown")

    @cached_property
    def digest(self) -> str:
        """sha256 over the folder's files, cards and hidden files left out."""
        files = [file for file in sorted(self.folder.rglob("*")) if file.is_file() and file.suffix != ".md"]
        names = [file.relative_to(self.folder).as_posix() for file in files]
        lines = [f"{name} {sha256_of(file)}" for name, file in zip(names, files, strict=True) if name[0] != "."]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def check(self, concepts: Sequence[str], prompts: Sequence[str] = ()) -> None:
        families = self.paintable.get("concepts")
        if families:
            _demand(concepts, [name for names in families.values() for name in names], self.id)
        encode, limit = self._tokenizer
        for prompt in dict.fromkeys(prompts):
            tokens = encode(prompt) if limit else 0
            if limit and tokens > limit:
                raise UserError(
                    f"the prompt {prompt!r} has {tokens} tokens, but {self.id} reads {limit}; shorten the description "
                    "(realm.csv), for nothing is cut silently"
                )

    @cached_property
    def _tokenizer(self):
        """(prompt -> number of tokens, most tokens that the text encoder reads; 0 = not known)."""
        folder = self.folder / "tokenizer"
        limit = self._json("tokenizer/tokenizer_config.json", {}).get("model_max_length", 0)
        if not folder.is_dir():
            return len, 0
        if (folder / "tokenizer.json").is_file():
            from tokenizers import Tokenizer  # without torch

            tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
            tokenizer.no_truncation()
            tokenizer.no_padding()
            return (lambda prompt: len(tokenizer.encode(prompt).ids)), limit
        from transformers import CLIPTokenizer

        clip = CLIPTokenizer.from_pretrained(folder)
        return (lambda prompt: len(clip(prompt, truncation=False)["input_ids"])), clip.model_max_length

    @cached_property
    def pipeline(self):
        """The pipeline on its device: half precision on a GPU, single on the CPU."""
        import torch
        from diffusers import DiffusionPipeline

        device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        dtype = torch.float16 if device.startswith("cuda") else torch.float32
        extra = {"safety_checker": None} if "safety_checker" in self._json("model_index.json", {}) else {}
        try:
            with _quietly():
                pipeline = DiffusionPipeline.from_pretrained(
                    self.folder,
                    torch_dtype=dtype,
                    use_safetensors=True,
                    local_files_only=True,
                    low_cpu_mem_usage=find_spec("accelerate") is not None,
                    **extra,
                )
        except Exception as error:  # broken weights surface as several unrelated classes
            reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
            raise UserError(
                f"generator {self.id} in {self.folder} cannot be loaded ({reason}); restore its files"
            ) from None
        pipeline.set_progress_bar_config(disable=True)
        return pipeline.to(device)

    def paint(self, prompts: Sequence[str], seeds: Sequence[int], concepts: Sequence[str]) -> np.ndarray:
        import torch

        with _one_thread(torch):
            images = self.pipeline(
                list(prompts),
                height=self.size,
                width=self.size,
                num_inference_steps=self.settings["steps"],
                guidance_scale=self.settings["guidance"],
                negative_prompt=_repeated(self.settings["negative_prompt"], len(prompts)),
                generator=[torch.Generator("cpu").manual_seed(int(seed)) for seed in seeds],
                output_type="np",
            ).images  # float (n, size, size, 3) in [0, 1]
        return np.round(255 * images).astype(np.uint8)


def _repeated(text: str | None, number: int) -> list[str] | None:
    return None if text is None else [text] * number


@contextmanager
def _quietly() -> Iterator[None]:
    """Loading takes a second; its progress bars and a renamed argument would be all that a notebook shows of it."""
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    of_diffusers.disable_progress_bar()
    of_transformers.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        of_diffusers.enable_progress_bar()
        of_transformers.enable_progress_bar()


@contextmanager
def _one_thread(torch) -> Iterator[None]:
    """Sums run in one order only on one thread: the same bytes in a worker process and in a notebook's own."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _demand(concepts: Sequence[str], known, generator: str) -> None:
    missing = [name for name in dict.fromkeys(concepts) if name not in known]
    if missing:
        others = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise UserError(
            f"the generator {generator!r} cannot paint {missing[0]!r}{others}: it knows {len(known)} characters and "
            "ornaments only; for other realms name a Stable Diffusion folder or hub model as the generator"
        )
