"""The parts of the embedded generator, stock classes only, and the folder they are kept in; see train_generator.py.

fit_generator.py fits the same parts on images of one's own.
"""

import copy
import json
import shutil
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from cilkit.synthesis import glyphs

LENGTH = 40  # tokens of a prompt, start and end included; longer prompts are cut
WIDTH = 96  # of the text encoder
LATENTS = 6  # channels of the 8 x 8 latents
SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_schedule": "linear",  # ends at a signal-to-noise ratio near 0, so that the ground's brightness is free
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "prediction_type": "v_prediction",
}
SETTINGS = {"size": glyphs.SIZE, "steps": 10, "guidance": 5.0, "negative_prompt": None, "batch_size": 32}
SPECIAL = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}


def make_tokenizer(texts: list[str], seed: int = 0) -> CLIPTokenizer:
    """A CLIP tokenizer in which every word of the texts is one token and unknown words fall to pieces."""
    rng = np.random.default_rng([seed, 1])
    words = set(" ".join(texts).lower().split()) | {chr(97 + i) for i in range(26)}
    corpus = sorted(words) + [str(i) for i in range(10)] + list(".,:;'\"()-/!?&")
    rng.shuffle(corpus)
    blank = CLIPTokenizer(vocab={"<|startoftext|>": 0, "<|endoftext|>": 1}, merges=[], **SPECIAL)
    tokenizer = blank.train_new_from_iterator([corpus], 4000, show_progress=False)
    tokenizer.model_max_length = LENGTH
    return tokenizer


def build_vae() -> AutoencoderKL:
    """32 x 32 RGB to 8 x 8 latents and back, 0.43 million weights."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 48),
        layers_per_block=1,
        latent_channels=LATENTS,
        norm_num_groups=8,
        sample_size=glyphs.SIZE,
        scaling_factor=1.0,  # the latents' means and deviations are folded into the weights, see `normalise`
    )


def build_unet() -> UNet2DConditionModel:
    """2.6 million weights; attention to the prompt at 4 x 4, convolutions alone at 8 x 8, which halves the cost.

    `addition_embed_type="text"` pools the prompt's tokens into the time embedding, so that every block knows the
    concept; through the attention alone the shapes followed the prompt more slowly.
    """
    return UNet2DConditionModel(
        sample_size=glyphs.SIZE // 4,
        in_channels=LATENTS,
        out_channels=LATENTS,
        block_out_channels=(64, 96),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=WIDTH,
        addition_embed_type="text",
        addition_embed_type_num_heads=4,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Two causal transformer layers; the U-Net reads the last hidden states of all LENGTH positions."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        projection_dim=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=LENGTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)


def tokenize(tokenizer: CLIPTokenizer, captions: list[str]) -> torch.Tensor:
    """Token ids (batch, LENGTH), padded and cut."""
    kept = tokenizer(captions, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt")
    return kept.input_ids


def write_folder(out: Path, vae, text, ema: dict, tokenizer: CLIPTokenizer, paintable: dict) -> None:
    """The pipeline as Stable Diffusion's folder layout, weights in half precision, written beside and then renamed.

    paintable: concepts, settings and how it was made, as paintable.json tells `cilkit.synthesis.diffusion`.
    """
    unet = build_unet()
    unet.load_state_dict(ema)
    scheduler = DPMSolverMultistepScheduler(**SCHEDULE, timestep_spacing="trailing", steps_offset=1)
    halves = copy.deepcopy(vae).half(), copy.deepcopy(text).half(), tokenizer, unet.half()
    pipeline = StableDiffusionPipeline(*halves, scheduler, None, None, requires_safety_checker=False)
    beside = out.with_name(out.name + ".part")
    shutil.rmtree(beside, ignore_errors=True)
    pipeline.save_pretrained(beside)
    settings = SETTINGS | {"scheduler": type(scheduler).__name__} | paintable["settings"]
    told = json.dumps(paintable | {"settings": settings}, indent=1, ensure_ascii=False)
    (beside / "paintable.json").write_text(told + "\n")
    if (out / "README.md").exists():
        shutil.copy(out / "README.md", beside / "README.md")
    for file in beside.rglob("*.safetensors"):
        file.chmod(0o644)
    old = out.with_name(out.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.rename(old)
    out.parent.mkdir(parents=True, exist_ok=True)
    beside.rename(out)
    shutil.rmtree(old, ignore_errors=True)
