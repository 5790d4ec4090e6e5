"""Families of diffusers pipelines: how prompts are encoded, LoRAs merged, guidance ended early, and steps cached."""

import re
from collections import OrderedDict
from collections.abc import Sequence
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np

from cilkit.errors import UserError, near_name

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
LORA_ENDS = ((".lora_down.weight", ".lora_up.weight"), (".lora_A.weight", ".lora_B.weight"))
HELD = 256 << 20  # bytes of encoded prompts kept


def family(class_name: str) -> str:
    """ "StableDiffusionXL" of "StableDiffusionXLImg2ImgPipeline"; "" for a pipeline that is not in ENCODED."""
    found = re.fullmatch(r"(.+?)(Img2Img)?Pipeline", class_name)
    return found[1] if found and found[1] in ENCODED else ""


def denoiser(pipeline):
    """The network of the denoising loop: a U-Net or a transformer."""
    return pipeline.unet if getattr(pipeline, "unet", None) is not None else pipeline.transformer


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


def end_guidance(pipeline, share: float) -> dict[str, Any]:
    """Arguments of a call that is guided in the first `share` of its steps only: the rest run one half of the batch.

    diffusers' own callbacks for this keep one image of the batch alone (read in its callbacks.py), hence this one.
    """
    doubled = ("prompt_embeds", "add_text_embeds", "add_time_ids", "pooled_prompt_embeds")
    names = [name for name in doubled if name in getattr(pipeline, "_callback_tensor_inputs", ())]

    def cut(pipeline, step: int, time, tensors: dict) -> dict:
        last = max(1, round(share * pipeline.num_timesteps)) - 1
        if step == last and pipeline.do_classifier_free_guidance:
            pipeline._guidance_scale = 0.0
            reset_cache(pipeline)
            return {name: tensor.chunk(2)[1] for name, tensor in tensors.items()}
        return {}

    return {"callback_on_step_end": cut, "callback_on_step_end_tensor_inputs": names}


def prepare(pipeline, options: dict[str, Any], own_scheduler: str) -> None:
    """The scheduler, LoRAs and step caching that the settings ask for."""
    if options["scheduler"] != own_scheduler or options["scheduler_options"]:
        set_scheduler(pipeline, options["scheduler"], options["scheduler_options"])
    for lora in options["loras"]:
        merge_lora(pipeline, *lora_file(lora))
    if options["cache"]:
        enable_cache(pipeline, options["cache"])
    told = "callback_on_step_end" in signature(pipeline.__call__).parameters
    if options["guidance_until"] < 1 and not (told and hasattr(type(pipeline), "do_classifier_free_guidance")):
        raise UserError(
            f"guidance_until={options['guidance_until']}: {type(pipeline).__name__} guides every step or none; set 1"
        )


def hasten(pipeline, execution: dict[str, Any]) -> None:
    """Memory layout (by default channels-last on a GPU, for networks of convolutions) and compilation."""
    import torch

    last = execution["channels_last"]
    if last or (last is None and pipeline.device.type == "cuda" and getattr(pipeline, "unet", None) is not None):
        for part in (denoiser(pipeline), pipeline.vae):
            part.to(memory_format=torch.channels_last)
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
    network = denoiser(pipeline)
    if hasattr(network, "_diffusers_hook") or any(hasattr(part, "_diffusers_hook") for part in network.modules()):
        from diffusers.hooks import HookRegistry

        HookRegistry.check_if_exists_or_initialize(network).reset_stateful_hooks(recurse=True)


def lora_file(spec: str) -> tuple[Path, float]:
    """(safetensors file, scale) of a file, a folder, "owner/name" or "owner/name/file.safetensors", and "@0.8"."""
    name, _, scale = spec.partition("@")
    path = Path(name)
    if path.is_dir():
        files = sorted(path.glob("*.safetensors"))
        if len(files) != 1:
            raise UserError(f"LoRA {spec!r} is a folder with {len(files)} safetensors files; name the file itself")
        path = files[0]
    if not path.is_file():
        path = _fetched_lora(name)
    return path, float(scale or 1.0)


def _fetched_lora(name: str) -> Path:
    from huggingface_hub import hf_hub_download

    parts = name.split("/")
    try:
        return Path(hf_hub_download("/".join(parts[:2]), "/".join(parts[2:]) or "pytorch_lora_weights.safetensors"))
    except Exception as error:  # the hub's client raises many unrelated classes
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise UserError(f"LoRA {name!r} is neither a local file nor to be had from the hub ({reason})") from None


def merge_lora(pipeline, file: Path, scale: float) -> None:
    """Add a LoRA to the weights it names: W + scale (alpha / rank) B A (Hu et al. 2021), so that it costs no step more.

    Reads the names of kohya's scripts ("lora_unet_down_blocks_0_…") and of peft ("unet.down_blocks.0.…"); UserError
    for a name that the pipeline has not.
    """
    import torch
    from safetensors.torch import load_file

    try:
        tensors = load_file(file)
    except Exception as error:  # safetensors raises a class of its own
        raise UserError(f"LoRA {file} cannot be read ({error}); expected a safetensors file") from None
    layers = {
        f"{part}.{name}".replace(".", "_"): layer
        for part, network in pipeline.components.items()
        if isinstance(network, torch.nn.Module)
        for name, layer in network.named_modules()
    }
    pairs = [(name, ends) for name in tensors for ends in LORA_ENDS if name.endswith(ends[0])]
    for name, (down, up) in pairs:
        stem = name.removesuffix(down)
        target = re.sub(r"^te1?_", "text_encoder_", stem.replace(".", "_").removeprefix("lora_"))
        weight = getattr(layers.get(re.sub(r"^te2_", "text_encoder_2_", target)), "weight", None)
        if weight is None:
            raise UserError(f"LoRA {file.name} changes {stem!r}, which {type(pipeline).__name__} has not")
        a, b = tensors[name].float(), tensors[stem + up].float()  # (rank, in, ...), (out, rank, ...)
        share = scale * float(tensors.get(stem + ".alpha", len(a))) / len(a)
        with torch.no_grad():
            weight += (share * (b.flatten(1) @ a.flatten(1)).reshape(weight.shape)).to(weight.dtype)
    if not pairs:
        raise UserError(f"LoRA {file.name} holds no layers of a known form; expected kohya's or peft's names")


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
