"""The committed generator: a plain Stable Diffusion folder, small, repeatable, and guided by its prompt."""

import json
from pathlib import Path

import numpy as np
import pytest

import cilkit
from cilkit.synthesis import glyphs

FOLDER = Path(cilkit.__file__).parent / "assets" / "generator"


@pytest.fixture(scope="module")
def pipeline():
    import torch
    from diffusers import StableDiffusionPipeline

    loaded = StableDiffusionPipeline.from_pretrained(FOLDER, torch_dtype=torch.float32)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def paint(pipeline, prompts, seeds, steps=None):
    import torch

    settings = json.loads((FOLDER / "paintable.json").read_text())["settings"]
    made = pipeline(
        prompts,
        height=settings["size"],
        width=settings["size"],
        num_inference_steps=steps or settings["steps"],
        guidance_scale=settings["guidance"],
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        output_type="np",
    )
    return np.round(255 * made.images).astype(np.uint8)


def test_the_folder_is_small_and_names_what_it_paints():
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) <= 10e6
    card = json.loads((FOLDER / "paintable.json").read_text())
    assert {family: tuple(names) for family, names in card["concepts"].items()} == glyphs.FAMILIES
    assert {"size", "steps", "guidance", "negative_prompt", "batch_size", "scheduler"} <= card["settings"].keys()
    assert "| recognised, ratio |" in (FOLDER / "README.md").read_text()


def test_only_stock_classes_are_used():
    index = json.loads((FOLDER / "model_index.json").read_text())
    classes = {name: value for name, value in index.items() if isinstance(value, list) and value[0]}
    assert {library for library, _ in classes.values()} <= {"diffusers", "transformers"}
    assert index["_class_name"] == "StableDiffusionPipeline"


def test_every_word_of_a_caption_is_one_token_and_unknown_words_are_borne(pipeline):
    words = sorted(set(" ".join(glyphs.CONCEPTS).replace("-", " ").lower().split()))
    lengths = {word: len(pipeline.tokenizer(word).input_ids) - 2 for word in words}
    assert set(lengths.values()) == {1}
    unknown = pipeline.tokenizer("a zyxgribble 77 (ωmega)").input_ids
    assert len(unknown) > 4 and max(unknown) < pipeline.text_encoder.config.vocab_size


def test_a_batch_repeats_bit_for_bit_and_seeds_differ(pipeline):
    prompts = ["A photograph of the digit three: thick strokes"] * 3
    first, second = (paint(pipeline, prompts, [1, 2, 3]) for _ in range(2))
    assert first.shape == (3, 32, 32, 3)
    assert np.array_equal(first, second)
    assert np.abs(first[0].astype(int) - first[1]).mean() > 5


def test_the_prompt_decides_the_ground(pipeline):
    light = ["A photograph of the digit four: dark on light grey"] * 8
    dark = ["A photograph of the digit four: light on dark grey"] * 8
    light, dark = (paint(pipeline, prompts, range(8)).astype(float)[:, [0, -1]].mean() for prompts in (light, dark))
    assert light > dark + 60


def test_the_prompt_decides_the_shape(pipeline):
    """Ink fills a black square, and leaves most of the image free in a digit one."""
    ink = []
    for name in ("square", "digit one"):
        images = paint(pipeline, [f"A photograph of the {name}: thin strokes, light on dark grey"] * 8, range(8))
        ink.append((images.mean(3) > 110).mean())
    assert ink[0] > 1.5 * ink[1]
