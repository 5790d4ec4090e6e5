"""Any diffusers pipeline in a folder as a generator: text-to-image, image-to-image, or conditioned on a class."""

import hashlib
import logging
import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from importlib.util import find_spec
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np

from cilkit.artifacts import canonical, sha256_of
from cilkit.errors import UserError, near_name, reason_of
from cilkit.progress import quietly
from cilkit.synthesis import pipelines
from cilkit.synthesis.generators import OutOfMemory, demand
from cilkit.synthesis.presets import Preset

# Premonition's image notebook (read in source: Get_Images_from_Prompts.ipynb): miniSD at 256 x 256, fp16, no safety
# checker (it blanks images), default scheduler, no negative prompt; low guidance for diversity; 20 images a call.
PAPER = {"steps": 40, "guidance": 2.0, "negative_prompt": None, "batch_size": 20}
# Settings that are recorded only where they are not these.
OPTIONAL = {
    "preset": "",
    "fast": "",  # "steps" or "cache": the preset's declared faster variant
    "revision": "",  # of the hub's model
    "precision": "auto",  # "fp32" | "fp16" | "bf16"; auto: the preset's on a GPU, fp32 on a CPU
    "scheduler_options": {},
    "cache": "",  # diffusers' step caching: "attention-N" or "first-block-THRESHOLD"
    "loras": [],  # safetensors files, folders or hub names, "@0.8" behind one scales it
    "max_tokens": 0,  # of the T5, where it is not the pipeline's default
    "safety_checker": False,  # the folder's own; what it blanks is painted again
    "start": "",  # an image set whose images of the same class image-to-image begins with
    "strength": 0.6,  # how much of a start image is noised away, in (0, 1]
}
# Settings that are an argument of the pipeline's call.
ARGUMENTS = {"steps": "num_inference_steps", "guidance": "guidance_scale", "size": "height", "strength": "strength"}
ARGUMENTS |= {"negative_prompt": "negative_prompt", "max_tokens": "max_sequence_length"}
EXECUTION = {"device": "auto", "compile": False, "channels_last": None}  # where and how fast, never recorded
REPAINTS = 3  # times that a blank image is painted again, from another seed each


class Diffusion:
    """A diffusers pipeline in a folder. One `torch.Generator` an image, on the CPU, so that a seed means one noise.

    settings: those of PAPER, size, scheduler (a short name of pipelines.SCHEDULERS or a class), OPTIONAL, EXECUTION.
    """

    def __init__(self, folder: Path, name: str, settings: dict[str, Any], preset: Preset | None = None):
        self.folder, self.id, self.preset = Path(folder), name, preset or Preset()
        self.spec = name if name == "embedded" or "/" in name else str(self.folder)
        self.paintable = self._json("paintable.json")
        self.index = self._json("model_index.json")
        self.execution = {key: settings.get(key, default) for key, default in EXECUTION.items()}
        self.options = self._resolved({key: value for key, value in settings.items() if key not in EXECUTION})
        self.given = settings | {key: self.options[key] for key in ("start", "loras") if key in settings}  # absolute
        local = {"start": _shown(self.options["start"]), "loras": [_shown(one) for one in self.options["loras"]]}
        self.settings = {key: value for key, value in (self.options | local).items() if value != OPTIONAL.get(key, ...)}
        self.size, self.batch_size = self.options["size"], self.options["batch_size"]
        self.repaints: dict[int, int] = {}

    def _resolved(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Defaults, then the folder's own settings, the preset's, and what was asked for."""
        own = {**PAPER, "size": self._native_size(), "scheduler": self._scheduler(), **OPTIONAL}
        unknown = sorted(set(asked) - set(own))
        if unknown:
            raise UserError(
                f"generator setting {unknown[0]!r} is unknown{near_name(unknown[0], own)}; known are {', '.join(own)}, "
                f"{', '.join(EXECUTION)}"
            )
        of_folder = {key: value for key, value in self.paintable.get("settings", {}).items() if key in own}
        of_preset = self.preset.with_fast(asked.get("fast", ""))
        self.gpu_precision = of_preset.pop("precision", "fp16")
        options = own | of_folder | of_preset | asked
        options["scheduler"] = pipelines.SCHEDULERS.get(options["scheduler"], options["scheduler"])
        _validate(options)
        options["loras"] = [_absolute(lora) for lora in options["loras"]]
        options["start"] = _absolute(str(options["start"]))
        if options["start"] and not (Path(options["start"]) / "manifest.parquet").is_file():
            raise UserError(
                f"start={options['start']!r} holds no manifest.parquet; expected the folder of an image set, such as "
                "images.artifact.path"
            )
        if options["start"] and options["steps"] * options["strength"] < 1:
            raise UserError(f"strength={options['strength']} of {options['steps']} steps is no step; raise one of them")
        if options["safety_checker"] and not self.index.get("safety_checker", [None])[0]:
            raise UserError(f"{self.id} has no safety checker; leave safety_checker out")
        if options["negative_prompt"] and (options["guidance"] <= 1 or self.family == "Flux"):
            how = "without one" if self.family == "Flux" else f"with guidance {options['guidance']}"
            raise UserError(
                f"the negative prompt {options['negative_prompt']!r} would not be read: {self.id} paints {how}; leave "
                "it out, or set guidance above 1"
            )
        return options

    @property
    def family(self) -> str:
        return pipelines.family(self.index.get("_class_name", ""))

    @property
    def conditioning(self) -> str:
        """What an image follows besides noise: "text", "image" (and text), or "class"."""
        kind = self.index.get("_class_name", "")
        if "id2label" in self.index or kind == "DiTPipeline":
            return "class"
        return "image" if self.options["start"] or "Img2Img" in kind else "text"

    @cached_property
    def classes(self) -> dict[str, int]:
        """Class id by name of a class-conditional pipeline; nothing else has any."""
        labels = self.index.get("id2label", {})
        return {name.strip(): int(number) for number, names in labels.items() for name in names.split(",")}

    def _known(self) -> Collection[str] | None:
        """The concepts that it can paint; None: any."""
        if self.conditioning == "class":
            return self.classes
        if self.conditioning == "image":
            return self._start.classes
        families = self.paintable.get("concepts")
        return [name for names in families.values() for name in names] if families else None

    @cached_property
    def licence(self) -> str:
        card = self.folder / "README.md"
        text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
        found = re.search(r"\A---\n.*?^license(?:_name)?:\s*(\S+)", text, re.DOTALL | re.MULTILINE)
        return self.preset.licence or (found[1] if found else "")

    def _json(self, name: str) -> dict:
        return pipelines.read_json(self.folder / name)

    def _native_size(self) -> int:
        """Pixels on a side: the denoiser's latent size times the autoencoder's reduction; 512 where one is untold."""
        denoiser = self._json("unet/config.json") or self._json("transformer/config.json")
        latent = denoiser.get("sample_size", 128 if self.family == "Flux" else None)  # FLUX's: read in its pipeline
        blocks = self._json("vae/config.json").get("block_out_channels")
        return latent * 2 ** (len(blocks) - 1) if isinstance(latent, int) and blocks else 512

    def _scheduler(self) -> str:
        return self._json("scheduler/scheduler_config.json").get("_class_name", "unknown")

    @cached_property
    def digest(self) -> str:
        """sha256 over the folder's files (cards and hidden files left out), its LoRAs and start images."""
        files = [file for file in sorted(self.folder.rglob("*")) if file.is_file() and file.suffix != ".md"]
        names = [file.relative_to(self.folder).as_posix() for file in files]
        lines = [f"{name} {_sha256(file)}" for name, file in zip(names, files, strict=True) if name[0] != "."]
        lines += [f"lora {_sha256(pipelines.lora_file(lora)[0])}" for lora in self.options["loras"]]
        if self.options["start"]:
            lines.append(f"start {_sha256(Path(self.options['start']) / 'manifest.parquet')}")
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def check(self, concepts: Sequence[str], prompts: Sequence[str] = ()) -> None:
        if self.options["loras"]:
            pipelines.demand_peft()
        if (known := self._known()) is not None:
            demand(concepts, known, self.id)
        distinct = list(dict.fromkeys(prompts)) if self.conditioning != "class" else []
        counts, limit = self.tokens(distinct)
        for prompt, tokens in zip(distinct, counts, strict=True):
            if limit and tokens > limit:
                raise UserError(
                    f"the prompt {prompt!r} has {tokens} tokens, but {self.id} reads {limit}; shorten the description "
                    "(realm.csv), for nothing is cut silently"
                )

    def tokens(self, prompts: Sequence[str]) -> tuple[list[int], int]:
        """Tokens of each prompt under the text encoder that reads the fewest, and how many that are (0: not known)."""
        limit = min((limit for _, limit in self._counters), default=0)
        counts = [count(list(prompts)) for count, reads in self._counters if reads == limit]
        return [max(each) for each in zip(*counts, strict=True)] or [len(text.split()) for text in prompts], limit

    @cached_property
    def _counters(self) -> list[tuple[pipelines.Count, int]]:
        longest = self.options["max_tokens"] or pipelines.T5_TOKENS.get(self.family, 0)
        return pipelines.token_counters(self.folder, self.index, longest)

    @cached_property
    def _start(self) -> pipelines.StartImages:
        if not self.options["start"]:
            raise UserError(f"{self.id} paints over images; name an image set with the same classes as start")
        return pipelines.StartImages(self.options["start"])

    @cached_property
    def device(self) -> str:
        import torch

        device = self.execution["device"]
        return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device

    @property
    def precision(self) -> str:
        """What is painted in: "fp32", "fp16" or "bf16"."""
        on_gpu = self.gpu_precision if self.device.startswith("cuda") else "fp32"
        return on_gpu if self.options["precision"] == "auto" else self.options["precision"]

    @cached_property
    def pipeline(self):
        """The pipeline on its device, with its scheduler, LoRAs and caching."""
        with quietly("diffusers", "transformers"):
            pipeline = self._loaded()
            self._demand_arguments(pipeline)
            pipelines.prepare(pipeline, self.options, self._scheduler())
        # It remarks on the upcast of SDXL's autoencoder, twice a batch.
        logging.getLogger("diffusers.models.modeling_utils").setLevel(logging.ERROR)
        pipeline.set_progress_bar_config(disable=True)
        pipeline.to(self.device)
        pipelines.hasten(pipeline, self.execution)
        return pipeline

    def _loaded(self):
        import torch
        from diffusers import AutoPipelineForImage2Image, DiffusionPipeline, ModelMixin

        dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[self.precision]
        unchecked = {"safety_checker": None, "requires_safety_checker": False}
        if self.options["safety_checker"]:
            unchecked = {}
        has_accelerate = find_spec("accelerate") is not None
        try:
            pipeline = DiffusionPipeline.from_pretrained(
                self.folder,
                torch_dtype=dtype,
                use_safetensors=True,
                local_files_only=True,
                low_cpu_mem_usage=has_accelerate,
                **{name: value for name, value in unchecked.items() if name in self.index},
            )
        except Exception as error:  # broken weights surface as several unrelated classes
            raise UserError(
                f"generator {self.id} in {self.folder} cannot be loaded ({reason_of(error)}); restore its files"
            ) from None
        for part in pipeline.components.values():
            if isinstance(part, ModelMixin) and not has_accelerate and part.dtype != dtype:
                part.to(dtype)  # SD 3's is left in its file's precision
        if self.options["start"] and "image" not in signature(pipeline.__call__).parameters:
            with suppress(ValueError):  # diffusers has none for this family: `_demand_arguments` says so
                pipeline = AutoPipelineForImage2Image.from_pipe(pipeline)
        return pipeline

    def _demand_arguments(self, pipeline) -> None:
        """UserError for a pipeline that cannot paint from what it is handed, or ignores a setting asked for."""
        takes, kind = signature(pipeline.__call__).parameters, type(pipeline).__name__
        needed = {"text": ["prompt"], "image": ["prompt", "image"], "class": ["class_labels"]}[self.conditioning]
        for name in ("generator", *needed):
            if name not in takes:
                raise UserError(f"{kind} takes no {name}; expected a pipeline that paints from text, images or classes")
        sized = self.conditioning == "image" or self.size == self._native_size()  # without being told
        for setting, argument in ARGUMENTS.items():
            if self.given.get(setting) and argument not in takes and not (setting == "size" and sized):
                raise UserError(f"{kind} reads no {setting}; leave {setting}={self.given[setting]!r} out")

    @cached_property
    def _encoder(self) -> pipelines.Encoder | None:
        """None for a pipeline whose encode_prompt is not known: it is handed its prompts as text."""
        asked = self.options
        if not self.family:
            return None
        return pipelines.Encoder(self.pipeline, asked["guidance"] > 1, asked["negative_prompt"], asked["max_tokens"])

    def paint(self, prompts: Sequence[str], seeds: Sequence[int], concepts: Sequence[str]) -> np.ndarray:
        """uint8 (n, size, size, 3). Blank images (the safety checker's, or not finite) are painted again REPAINTS times
        from derived seeds, counted in `repaints`; one that stays blank is given back so, for curation to reject."""
        self.repaints = {}
        images, blank = self._once(prompts, seeds, concepts)
        for attempt in range(1, REPAINTS + 1):
            again = np.flatnonzero(blank)
            if not len(again):
                break
            self.repaints |= {int(i): attempt for i in again}
            pick = [(prompts[i], derived_seed(seeds[i], attempt), concepts[i]) for i in again]
            images[again], blank[again] = self._once(*map(list, zip(*pick, strict=True)))
        return images

    def _once(self, prompts, seeds, concepts, steps: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Images (n, size, size, 3) and which of them are blank (n,)."""
        import torch

        with _one_thread(torch), _memory(torch):
            pipeline = self.pipeline
            takes = signature(pipeline.__call__).parameters
            arguments = self._arguments(list(prompts), list(seeds), list(concepts), steps or self.options["steps"])
            if self.options["cache"]:
                pipelines.reset_cache(pipeline)
            try:
                made = pipeline(**{key: value for key, value in arguments.items() if key in takes})
            except ValueError as error:  # diffusers' own checks of what it is asked for
                raise UserError(f"{self.id} does not paint with these settings ({reason_of(error)})") from None
        pixels = np.asarray(made.images)  # float (n, size, size, 3) in [0, 1]
        flagged = getattr(made, "nsfw_content_detected", None) or [False] * len(pixels)
        broken = ~np.isfinite(pixels).all((1, 2, 3)) | (pixels == 0).all((1, 2, 3))
        return np.round(255 * np.nan_to_num(pixels)).astype(np.uint8), broken | np.array(flagged, bool)

    def _arguments(self, prompts: list[str], seeds: list[int], concepts: list[str], steps: int) -> dict[str, Any]:
        import torch

        asked = self.options
        arguments = {
            "height": self.size,
            "width": self.size,
            "num_inference_steps": steps,
            "guidance_scale": asked["guidance"],
            "generator": [torch.Generator("cpu").manual_seed(int(seed)) for seed in seeds],
            "output_type": "np",
            "use_resolution_binning": False,  # PixArt's: paints the nearest of its own shapes, then resizes
        }
        if self.conditioning == "class":
            return arguments | {"class_labels": [self.classes[name] for name in concepts]}
        if self.conditioning == "image":
            arguments |= {"image": self._start.of(concepts, seeds, self.size), "strength": asked["strength"]}
        if asked["max_tokens"]:
            arguments["max_sequence_length"] = asked["max_tokens"]
        if self._encoder:
            return arguments | {"negative_prompt": None} | self._encoder(prompts)
        if asked["negative_prompt"] is not None:
            arguments["negative_prompt"] = [asked["negative_prompt"]] * len(seeds)
        return arguments | {"prompt": prompts}

    def most_at_once(self) -> int:
        """Images of one call that fit into the free device memory, from two small calls; 0 on a CPU: not known."""
        return self._most if self.device.startswith("cuda") else 0

    @cached_property
    def _most(self) -> int:
        import torch

        first = next(iter(self._known() or ["a"]))
        steps = 0 if self.conditioning == "image" else 4  # a share of 4 might be none

        def peak(number: int) -> int:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)
            before = torch.cuda.memory_allocated(self.device)
            self._once([first] * number, list(range(number)), [first] * number, steps)
            return torch.cuda.max_memory_allocated(self.device) - before

        peak(1)  # what stays afterwards (kernels' workspaces, encoded prompts) is no image's
        needed = peak(1), peak(3)
        torch.cuda.empty_cache()
        return fitting(torch.cuda.mem_get_info(self.device)[0], *needed)


def fitting(free: int, of_one: int, of_three: int) -> int:
    """Images that fit into 90 % of `free` bytes when one needs `of_one` and three need `of_three`; at least 1."""
    each = max((of_three - of_one) / 2, 1.0)
    return max(1, int((0.9 * free - (of_one - each)) / each))


def derived_seed(seed: int, attempt: int) -> int:
    """The seed, 63 bits, from which an image is painted again."""
    text = canonical(["repaint", int(seed), attempt])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def _absolute(spec: str) -> str:
    """A file or folder that is there by its absolute path, as workers find it; any other text as it is."""
    path = Path(pipelines.scaled(spec)[0]).expanduser()
    return str(Path(spec).expanduser().absolute()) if spec and path.exists() else spec


def _shown(spec: str) -> str:
    """The same without this machine's folders, for the record: `digest` reads what lies there."""
    return Path(spec).name if Path(spec).is_absolute() else spec


def _validate(options: dict[str, Any]) -> None:
    number, kinds = (int, float), ("auto", "fp32", "fp16", "bf16")
    rules = {  # setting -> its type, its test, and both in words
        "steps": (int, lambda n: n >= 1, "a whole number, 1 or more"),
        "guidance": (number, lambda _: True, "a number"),
        "negative_prompt": ((str, type(None)), lambda _: True, "a text"),
        "batch_size": (int, lambda n: n >= 1, "a whole number, 1 or more"),
        "size": (int, lambda n: n >= 8 and n % 8 == 0, "pixels on a side, a multiple of 8"),
        "precision": (str, lambda name: name in kinds, f"one of {', '.join(kinds)}"),
        "loras": (list, lambda those: all(isinstance(one, str) for one in those), "a list of files or hub names"),
        "strength": (number, lambda share: 0 < share <= 1, "in (0, 1]"),
    }
    for name, (kind, met, expected) in rules.items():
        if not isinstance(options[name], kind) or not met(options[name]):
            raise UserError(f"generator setting {name}={options[name]!r}; expected {expected}")


def _sha256(file: Path) -> str:
    """The hub's cache names a large file by its sha256 already, behind a link."""
    name = file.resolve().name
    return name if file.is_symlink() and re.fullmatch(r"[0-9a-f]{64}", name) else sha256_of(file)


@contextmanager
def _memory(torch) -> Iterator[None]:
    """The device's (or the machine's) memory ran out: one class for the caller, and what was held given back."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "allocate memory" not in str(error):
            raise
        reason = reason_of(error)
    else:
        return
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    raise OutOfMemory(f"the device's memory ran out while painting ({reason}); paint fewer images at once")


@contextmanager
def _one_thread(torch) -> Iterator[None]:
    """Sums run in one order only on one thread: the same bytes in a worker process and in a notebook's own."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
