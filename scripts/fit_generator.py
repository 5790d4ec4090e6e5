"""Fit a small Stable Diffusion on images of one's own, a stand-in for the real one where none can be had.

    python scripts/fit_generator.py --images data/subsets/fashion_for_generator/train \\
                                    --out data/subsets/fashion_generator
    python scripts/fit_generator.py --images … --out … --steps 20 --vae-steps 20 --text-steps 20     # a smoke run

Images lie as FOLDER/<class>/*.png, 32 x 32; a class is called as its folder is. The parts, their sizes and their loops
are those of the embedded generator (train_generator.py): an autoencoder, a text encoder taught to carry the class's
name, a U-Net between them. What comes out is a diffusers folder with a model card, which `cilkit.paint` takes as any
other generator, in style "plain". About 35 minutes on one thread with the defaults. Interrupted, it goes on from the
last checkpoint under --work; every batch depends on (seed, step) alone.

It paints the classes that it was fitted on and no others, and it has seen real images of them: measured against
Stable Diffusion, it is much closer to the benchmark.
"""

import argparse
import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from train_generator import early_stages, train_diffusion

from cilkit.artifacts import atomic_write
from cilkit.errors import UserError
from cilkit.synthesis import glyphs
from cilkit.synthesis.styles import STYLES

# The first is that of style "plain"; the others, so that the name is found in other prompts as well.
TEMPLATES = (STYLES["plain"].template, "A photograph of {name}", "{name}")
CARD = """# A small text-to-image generator fitted on {folder}

A stand-in for Stable Diffusion where none can be had: the same stock classes (`CLIPTextModel`, `AutoencoderKL`,
`UNet2DConditionModel`), 3 million weights, 32 x 32 pixels. It paints {classes} classes and nothing else, and unlike
Stable Diffusion it has seen real images of the benchmark that these classes come from: {images:,} training images,
which are to be kept out of every stream that its images are used in.

| | |
|---|---|
| classes | {names} |
| pixels and labels, sha256 | {images_sha256} |
| captions | {captions}; one in ten empty |
| seed | {seed} |
| steps of the U-Net, batches of {batch} | {steps_trained:,} of {steps_planned:,} |
| steps of the autoencoder, batches of 32 | {vae_steps:,} |
| steps of the text encoder, batches of 128 | {text_steps:,} |

By `scripts/fit_generator.py`. Weights are kept in half precision and meant to be used in single precision. Prompts:
style "plain". Low guidance (1 to 2) keeps the images of a class different from one another. Its licence is that of the
images.
"""


def read_images(folder: Path) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """uint8 (n, 32, 32, 3), labels (n,), class names in the order of the folders. UserError for what is not there."""
    names = sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    if not names:
        raise UserError(f"{folder} holds no class folders; expected FOLDER/<class>/*.png, one folder a class")
    images, labels = [], []
    for label, name in enumerate(names):
        files = sorted((folder / name).glob("*.png"))
        if not files:
            raise UserError(f"class {name!r} has no *.png in {folder}; add some or remove the folder")
        for file in files:
            with Image.open(file) as image:
                if image.size != (glyphs.SIZE, glyphs.SIZE):
                    raise UserError(
                        f"{file} is {image.width} x {image.height}, but the generator paints {glyphs.SIZE} x "
                        f"{glyphs.SIZE}; lay the images out in that size"
                    )
                images.append(np.asarray(image.convert("RGB")))
        labels += [label] * len(files)
    return np.stack(images), np.array(labels), names


def materials(args) -> tuple:
    """What `train_diffusion` asks for, from the images of a folder."""
    images, labels, names = read_images(args.images)

    def caption(i: int, rng: np.random.Generator) -> str:
        return TEMPLATES[rng.integers(len(TEMPLATES))].format(name=names[labels[i]])

    def draw(rng: np.random.Generator, batch: int) -> tuple[list[str], list[list[int]]]:
        index = rng.integers(len(labels), size=batch)
        return [caption(i, rng) for i in index], [[int(labels[i])] for i in index]

    digest = hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest()
    made = {"images": len(images), "images_sha256": digest, "steps_planned": args.steps, "batch": args.batch}
    made |= {"vae_steps": args.vae_steps, "text_steps": args.text_steps, "seed": args.seed}
    _demand_same(args.work / "fitted.json", made)
    texts = [template.format(name=name) for template in TEMPLATES for name in names]
    vae, text, latents, tokenizer = early_stages(args, images, texts, draw, [len(names)])
    settings = {"guidance": 2.0, "steps": 20, "template": TEMPLATES[0]}  # low guidance as in the papers
    return vae, text, latents, caption, tokenizer, {"concepts": {"classes": names}, "settings": settings, "made": made}


def _demand_same(file: Path, made: dict) -> None:
    """UserError where the checkpoints beside `file` are those of other images or settings."""
    if file.exists():
        kept = json.loads(file.read_text())
        other = [name for name in made if kept.get(name) != made[name]]
        if other:
            raise UserError(
                f"{file.parent} holds checkpoints with {other[0]}={kept.get(other[0])!r}, but {made[other[0]]!r} was "
                "asked for; name another --work, or delete it"
            )
    atomic_write(file, json.dumps(made, indent=1))


def write_card(out: Path, folder: Path) -> None:
    """The model card, from what paintable.json tells."""
    told = json.loads((out / "paintable.json").read_text())
    names = told["concepts"]["classes"]
    shown = {"folder": folder.as_posix(), "classes": len(names), "names": ", ".join(names)}
    atomic_write(out / "README.md", CARD.format(**told["made"], **shown, captions="; ".join(TEMPLATES)))


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="FOLDER/<class>/*.png, 32 x 32")
    parser.add_argument("--out", type=Path, required=True, help="the diffusers folder to write")
    parser.add_argument("--work", type=Path, help="checkpoints; kept (default: OUT.work)")
    parser.add_argument("--steps", type=int, default=2400, help="steps of the U-Net")
    parser.add_argument("--vae-steps", type=int, default=800)
    parser.add_argument("--text-steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=1e9, help="stop the U-Net early; a further call goes on")
    parser.set_defaults(rate=1e-3, save_every=200, warm_start=None, processes=1)
    args = parser.parse_args(given)
    args.work = args.work or args.out.with_name(args.out.name + ".work")
    torch.set_num_threads(args.threads)
    try:
        args.work.mkdir(parents=True, exist_ok=True)
        train_diffusion(0, args, materials)
    except UserError as error:
        raise SystemExit(str(error)) from None
    write_card(args.out, args.images)


if __name__ == "__main__":
    main()
