"""Families of diffusers pipelines: how prompts are counted and encoded, LoRAs merged, and steps cached."""

import json
import re
from collections import OrderedDict
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np

from cilkit.errors import UserError, near_name, reason_of

Count = Callable[[list[str]], list[int]]  # prompts -> numbers of tokens
# What `encode_prompt` of diffusers 0.42 returns, in order (read in its source). The names are those under which the
# pipeline takes them back; "" is something that the call makes anew. Any other pipeline is handed its prompts as text.
PAIR = ("prompt_embeds", "negative_prompt_embeds")
POOLED = (*PAIR, "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
FLUX = ("prompt_embeds", "pooled_prompt_embeds", "")
MASKED = ("prompt_embeds", "prompt_attention_mask", "negative_prompt_embeds", "negative_prompt_attention_mask")
ENCODED = {
    "StableDiffusion": PAIR,
    "StableDiffusionXL": POOLED,
    "StableDiffusion3": POOLED,
    "Flux": FLUX,
    "PixArtAlpha": MASKED,
    "PixArtSigma": MASKED,
}
# Tokens that the T5 of a pipeline reads by default: `max_sequence_length` of its __call__ (read in diffusers' source).
T5_TOKENS = {"StableDiffusion3": 256, "Flux": 512, "PixArtAlpha": 120, "PixArtSigma": 300}
SCHEDULERS = {
    "ddim": "DDIMScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler-ancestral": "EulerAncestralDiscreteScheduler",
    "dpm++": "DPMSolverMultistepScheduler",
    "unipc": "UniPCMultistepScheduler",
    "lcm": "LCMScheduler",
}
HELD = 256 << 20  # bytes of encoded prompts kept


def family(class_name: str) -> str:
    """ "StableDiffusionXL" of "StableDiffusionXLImg2ImgPipeline"; "" for a pipeline that is not in ENCODED."""
    found = re.fullmatch(r"(.+?)(Img2Img)?Pipeline", class_name)
    return found[1] if found and found[1] in ENCODED else ""


def read_json(path: Path) -> dict:
    """What the file holds; {} where there is none."""
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); restore the generator's folder") from None


def token_counters(folder: Path, index: dict, longest: int) -> list[tuple[Count, int]]:
    """(prompts -> numbers of tokens, most tokens read) of every text encoder whose limit is known.

    index: the folder's model_index.json. longest: what a T5 reads; 0: what its tokenizer says.
    """
    found = []
    for suffix in ("", "_2", "_3"):
        if (folder / f"tokenizer{suffix}").is_dir():
            count, limit = _counter(folder / f"tokenizer{suffix}")
            is_t5 = "T5" in str(index.get(f"text_encoder{suffix}"))
            found.append((count, longest if is_t5 and longest else limit))
    return [one for one in found if 0 < one[1] < 100_000]  # a tokenizer without a limit of its own says 1e30


def _counter(folder: Path) -> tuple[Count, int]:
    if (folder / "tokenizer.json").is_file():
        from tokenizers import Tokenizer  # without torch

        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        limit = read_json(folder / "tokenizer_config.json").get("model_max_length", 0)
        return lambda prompts: [len(one.ids) for one in tokenizer.encode_batch_fast(prompts)], limit
    from transformers import AutoTokenizer

    full = AutoTokenizer.from_pretrained(folder)
    return lambda prompts: [len(full(one, truncation=False)["input_ids"]) for one in prompts], full.model_max_length


def denoiser(pipeline):
    """The network of the denoising loop: a U-Net or a transformer; None for a pipeline that has neither."""
    return getattr(pipeline, "unet", None) or getattr(pipeline, "transformer", None)


class Encoder:
    """Encodes each distinct prompt once and keeps the tensors, up to HELD bytes, the longest unused dropped first.

    Prompts are encoded in parts of one fixed size (1 on a CPU), so that a prompt's numbers do not depend on which
    others happen to be new: a resumed painting gives the same bytes.
    """

    def __init__(self, pipeline, guided: bool, negative_prompt: str | None, max_tokens: int = 0):
        self.pipeline, self.guided, self.negative_prompt = pipeline, guided, negative_prompt
        self.names = ENCODED[family(type(pipeline).__name__)]
        takes, call = (signature(method).parameters for method in (pipeline.encode_prompt, pipeline.__call__))
        self.takes_guidance = "do_classifier_free_guidance" in takes
        if negative_prompt is None and "negative_prompt" in call:
            self.negative_prompt = call["negative_prompt"].default
        self.extra = {name: None for name in ("prompt_2", "prompt_3") if name in takes}
        if "max_sequence_length" in call:
            self.extra["max_sequence_length"] = max_tokens or call["max_sequence_length"].default
        self.part = 1 if pipeline.device.type == "cpu" else 8
        self.kept: OrderedDict[str, dict] = OrderedDict()  # prompt -> {name: (1, ...)}
        self.negative: dict[str, Any] | None = None

    def __call__(self, prompts: Sequence[str]) -> dict[str, Any]:
        """What the pipeline takes instead of prompts: {name: (n, ...)}."""
        import torch

        if self.negative is None:
            first = self._encode([prompts[0]], guided=self.guided)
            self.negative = {name: tensor for name, tensor in first.items() if name.startswith("negative")}
        rows = self._rows(prompts)
        encoded = {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
        return encoded | {name: torch.cat([tensor] * len(prompts)) for name, tensor in self.negative.items()}

    def _rows(self, prompts: Sequence[str]) -> list[dict]:
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self.kept]
        found = {prompt: self.kept[prompt] for prompt in prompts if prompt in self.kept}
        for start in range(0, len(new), self.part):
            part = new[start : start + self.part]
            encoded = self._encode(part + part[-1:] * (self.part - len(part)), guided=False)
            for i, prompt in enumerate(part):
                found[prompt] = {name: tensor[i : i + 1].clone() for name, tensor in encoded.items()}
        for prompt in dict.fromkeys(prompts):
            self.kept[prompt] = found[prompt]
            self.kept.move_to_end(prompt)
        size = sum(tensor.nbytes for tensor in found[prompts[0]].values())
        while len(self.kept) * size > HELD:
            self.kept.popitem(last=False)
        return [found[prompt] for prompt in prompts]

    def _encode(self, prompts: list[str], guided: bool) -> dict[str, Any]:
        import torch

        arguments = {"prompt": prompts, "device": self.pipeline.device, "num_images_per_prompt": 1, **self.extra}
        if self.takes_guidance:
            arguments["do_classifier_free_guidance"] = guided
            if guided:
                negative = self.negative_prompt
                arguments["negative_prompt"] = None if negative is None else [negative] * len(prompts)
        with torch.no_grad():
            encoded = self.pipeline.encode_prompt(**arguments)
        return {name: tensor for name, tensor in zip(self.names, encoded, strict=True) if name and tensor is not None}


def set_scheduler(pipeline, name: str, options: dict[str, Any]) -> None:
    """Another scheduler (a short name of SCHEDULERS or a class of diffusers) over the pipeline's own noise schedule."""
    import diffusers

    kind = SCHEDULERS.get(name, name)
    known = [*SCHEDULERS, *(entry for entry in dir(diffusers) if entry.endswith("Scheduler"))]
    if kind not in known:
        raise UserError(f"scheduler {name!r} is unknown{near_name(name, known)}; known are {', '.join(SCHEDULERS)}")
    pipeline.scheduler = getattr(diffusers, kind).from_config(pipeline.scheduler.config, **options)
    for option in set(options) - set(pipeline.scheduler.config):  # diffusers warns only
        near = near_name(option, pipeline.scheduler.config)
        raise UserError(f"scheduler_options: {kind} has no {option!r}{near}; leave it out")


def prepare(pipeline, options: dict[str, Any], own_scheduler: str) -> None:
    """The scheduler, LoRAs and step caching that the settings ask for."""
    if options["scheduler"] != own_scheduler or options["scheduler_options"]:
        set_scheduler(pipeline, options["scheduler"], options["scheduler_options"])
    for lora in options["loras"]:
        merge_lora(pipeline, *lora_file(lora))
    if options["cache"]:
        enable_cache(pipeline, options["cache"])


def hasten(pipeline, execution: dict[str, Any]) -> None:
    """Memory layout (by default channels-last on a GPU, for networks of convolutions) and compilation."""
    import torch

    last, networks = execution["channels_last"], [getattr(pipeline, name, None) for name in ("unet", "vae")]
    if last or (last is None and pipeline.device.type == "cuda"):
        for network in filter(None, networks):
            network.to(memory_format=torch.channels_last)
    if execution["compile"]:
        denoiser(pipeline).compile()


def enable_cache(pipeline, cache: str) -> None:
    """diffusers' step caching. "attention-N": self-attention anew in every Nth step only (Pyramid Attention Broadcast);
    "first-block-T": a transformer's later blocks anew only where the first one's residual changed by more than T."""
    from diffusers import hooks

    kind, _, value = cache.rpartition("-")
    network = denoiser(pipeline)
    try:
        if kind == "attention":
            every = hooks.PyramidAttentionBroadcastConfig(
                spatial_attention_block_skip_range=int(value),
                spatial_attention_timestep_skip_range=(-1, 1_000_000),
                current_timestep_callback=lambda: 0,
            )
            hooks.apply_pyramid_attention_broadcast(network, every)
        elif kind == "first-block":
            network.enable_cache(hooks.FirstBlockCacheConfig(threshold=float(value)))
        else:
            raise ValueError("unknown kind")
    except (ValueError, AttributeError) as error:
        raise UserError(
            f"cache={cache!r} does not suit {type(network).__name__} ({error}); expected 'attention-2', or "
            "'first-block-0.1' for the transformers that have it, such as FLUX's"
        ) from None


def reset_cache(pipeline) -> None:
    """Forget what step caching kept of the last call."""
    from diffusers.hooks import HookRegistry

    HookRegistry.check_if_exists_or_initialize(denoiser(pipeline)).reset_stateful_hooks(recurse=True)


def scaled(lora: str) -> tuple[str, str]:
    """(name, scale) of "name@0.8"; "" where none is given."""
    return re.fullmatch(r"(.*?)(?:@(-?\d*\.?\d+))?", lora).groups(default="")


def lora_file(spec: str) -> tuple[Path, float]:
    """(safetensors file, scale) of a file, a folder, "owner/name" or "owner/name/file.safetensors", and "@0.8"."""
    name, scale = scaled(spec)
    path = Path(name).expanduser()
    if path.is_dir():
        files = sorted(path.glob("*.safetensors"))
        if len(files) != 1:
            raise UserError(f"LoRA {spec!r} is a folder with {len(files)} safetensors files; name the file itself")
        path = files[0]
    if not path.is_file():
        path = _fetched_lora(name)
    return path, float(scale or 1.0)


def _fetched_lora(name: str) -> Path:
    """The LoRA of a hub model, from its cache or the network."""
    from huggingface_hub import hf_hub_download, model_info, try_to_load_from_cache

    owner, model, file = (*name.split("/", 2), "", "")[:3]
    if owner in ("", ".", "..", "~") or not model or (model.endswith(".safetensors") and not file):
        raise UserError(f"LoRA {name!r} is no file; expected one, a folder that holds one, or a hub's 'owner/name'")
    wanted = f"{owner}/{model}", file or "pytorch_lora_weights.safetensors"
    try:
        cached = try_to_load_from_cache(*wanted)
        if isinstance(cached, str):
            return Path(cached)
        model_info(wanted[0])  # fails at once without a connection; the download would wait
        return Path(hf_hub_download(*wanted))
    except Exception as error:  # the hub's client raises many unrelated classes
        raise UserError(
            f"LoRA {name!r} is neither a local file nor to be had from the hub ({reason_of(error)})"
        ) from None


def demand_peft() -> None:
    """UserError where the library is missing with which diffusers reads LoRAs."""
    if find_spec("peft") is None:
        raise UserError('LoRAs need the optional extra: pip install -e ".[lora]"')


def merge_lora(pipeline, file: Path, scale: float) -> None:
    """Add a LoRA to the weights it names: W + scale (alpha / rank) B A (Hu et al. 2021), so that it costs no step more.

    diffusers reads the names of kohya's scripts and of peft; UserError for a file that was made for another model.
    """
    from safetensors import safe_open

    demand_peft()
    where, kind = {"weight_name": file.name, "use_safetensors": True, "local_files_only": True}, type(pipeline).__name__
    try:
        with safe_open(file, "pt") as content:
            named = sum(bool(re.search(r"lora[._](up|B)\b", name)) for name in content.keys())  # noqa: SIM118
        pipeline.load_lora_weights(file.parent, **where)
        networks = [part for part in pipeline.components.values() if hasattr(part, "named_parameters")]
        placed = sum(".lora_B." in name for part in networks for name, _ in part.named_parameters())
        if placed < max(named, 1):  # diffusers warns only
            raise ValueError(f"{placed} of its {named} layers fit")
        pipeline.fuse_lora(lora_scale=scale)
        pipeline.unload_lora_weights()
    except Exception as error:  # safetensors, diffusers, peft and torch raise their own classes
        raise UserError(
            f"LoRA {file.name} cannot be merged into {kind} ({reason_of(error)}); expected a safetensors file that was "
            "made for this model"
        ) from None


class StartImages:
    """Images of an image set that image-to-image begins with: of each concept, one that the seed decides."""

    def __init__(self, folder: str):
        from cilkit.data.shards import open_set

        self.images = open_set(folder)
        self.classes = list(self.images.class_names)

    def of(self, concepts: Sequence[str], seeds: Sequence[int], size: int) -> list:
        """PIL images (size, size), the middle square of each."""
        from PIL import Image, ImageOps

        rows = [self._row(name, seed) for name, seed in zip(concepts, seeds, strict=True)]
        pictures = [Image.fromarray(self.images.images([row])[0]) for row in rows]
        return [ImageOps.fit(picture, (size, size), Image.Resampling.BICUBIC) for picture in pictures]

    def _row(self, name: str, seed: int) -> int:
        rows = np.flatnonzero(self.images.labels == self.classes.index(name))
        return int(rows[int(seed) % len(rows)])
