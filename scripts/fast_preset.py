"""Measure declared fast presets of the embedded generator: what they gain, and what they lose.

    python scripts/fast_preset.py [--per-class 40] [--only NAME] [--seconds 4] [--judge 8000]

Agreement is the share of painted digits that a classifier of REAL digits (scripts/check_generator.py's) recognises as
the digit in their prompt. Each candidate paints the same prompts from the same seeds as the full setting (the paper's
40 steps, guidance in all of them); `same` is how often the classifier says the same of both images, right or wrong.
Speed is that of the straightforward published-style loop (one prompt a call, 20 images of it, text encoded in each
call, PNG files saved inline) at the full setting, against painting through cilkit with the candidate's settings.
Both in processor seconds of one thread, PNG files included, so that a busy machine distorts them less.
A candidate may be declared fast if it paints at least 4 times the images and its agreement is within 2 points.
One thread, about 5 minutes on a free core. Prints a table, then one line of JSON about the declared preset, `embedded`
in cilkit/assets/generators.yaml.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

import diffusers
import numpy as np
import torch
import transformers
from check_generator import DIGITS, evaluate, fit, real_digits, same_captions
from PIL import Image

from cilkit.synthesis import load_generator
from cilkit.synthesis.presets import preset

FULL = {"steps": 40}
BATCH = 20
CANDIDATES = {
    "10 steps": {"steps": 10},
    "8 steps": {"steps": 8},
    "7 steps": {"steps": 7},
    "8 steps of UniPC": {"steps": 8, "scheduler": "unipc"},
    "10 steps, attention every second": {"steps": 10, "cache": "attention-2"},
}


def judge_of_real_digits(images: int):
    """The classifier, and its accuracy in per cent on real digits that it never saw."""
    from sklearn.datasets import load_digits

    scans = load_digits()
    pixels, order = scans.images / 16.0, np.random.default_rng(0).permutation(len(scans.images))
    known, unseen = order[:1200], order[1200:]
    judge = fit(*real_digits(pixels[known], scans.target[known], images, 1), epochs=8, seed=1)
    return judge, evaluate(judge, *real_digits(pixels[unseen], scans.target[unseen], 2000, 2))[0]


def paint(generator, prompts: list[str]) -> np.ndarray:
    """uint8 (n, 32, 32, 3): image i from seed i."""
    parts = [range(start, min(start + BATCH, len(prompts))) for start in range(0, len(prompts), BATCH)]
    names = [DIGITS[0]] * BATCH
    return np.concatenate([generator.paint([prompts[i] for i in part], part, names[: len(part)]) for part in parts])


@torch.no_grad()
def said(judge, images: np.ndarray) -> np.ndarray:
    """The digit that the classifier sees in each image (n,)."""
    return judge(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1.0).argmax(1).numpy()


def published_loop(generator, prompts: list[str], seconds: float) -> float:
    """Images a second of the loop of Premonition's notebook, at the generator's own guidance and the full steps."""
    pipeline, settings, images = generator.pipeline, generator.settings, 0
    with tempfile.TemporaryDirectory() as folder:
        start = time.process_time()
        for prompt in prompts:
            made = pipeline(
                prompt,
                height=settings["size"],
                width=settings["size"],
                num_inference_steps=settings["steps"],
                guidance_scale=settings["guidance"],
                num_images_per_prompt=BATCH,
            ).images
            for picture in made:
                picture.save(Path(folder) / f"{images:06d}.png")
                images += 1
            if time.process_time() - start > seconds:
                break
        return images / (time.process_time() - start)


def painting(generator, prompts: list[str], seconds: float) -> float:
    """Images a second through cilkit, PNG files included."""
    images = 0
    with tempfile.TemporaryDirectory() as folder:
        start = time.process_time()
        while time.process_time() - start < seconds:
            picked = [prompts[(images // BATCH) % len(prompts)]] * BATCH  # one prompt a call there, so here too
            for picture in generator.paint(picked, range(images, images + BATCH), DIGITS[:1] * BATCH):
                Image.fromarray(picture).save(Path(folder) / f"{images:06d}.png")
                images += 1
        return images / (time.process_time() - start)


def speeds(reference, generator, prompts: list[str], seconds: float) -> tuple[float, float]:
    """Images a second of the published loop and of painting, in turns, since the machine is not ours alone."""
    turns = [
        (published_loop(reference, prompts, seconds / 4), painting(generator, prompts, seconds / 4)) for _ in "abcd"
    ]
    return tuple(np.median(turns, axis=0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--per-class", type=int, default=40, help="painted images of each of the ten digits")
    parser.add_argument("--seconds", type=float, default=4, help="how long each speed is measured")
    parser.add_argument("--judge", type=int, default=8000, help="real digits that the classifier learns")
    parser.add_argument(
        "--only", default="", help="measure those candidates alone whose name holds this, and the preset"
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()  # long captions are cut, which is meant
    diffusers.utils.logging.set_verbosity_error()
    judge, accuracy = judge_of_real_digits(args.judge)
    prompts, labels, *_ = same_captions(args.per_class, seed=3)
    candidates = {name: asked for name, asked in CANDIDATES.items() if args.only in name}
    candidates["fast preset"] = preset("embedded").fast["steps"]
    full = load_generator("embedded", **FULL)
    painted = said(judge, paint(full, prompts))
    agreement = float((painted == labels).mean() * 100)
    reference, rows = load_generator("embedded", **FULL), []
    print(f"judge on real digits {accuracy:.1f} %, {len(prompts)} images a row; the full setting: {agreement:.1f} %\n")
    print("| setting | agreement, % | lost, points | same as full, % | images/s | of the loop, images/s | ratio |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for name, asked in {"40 steps": {}, **candidates}.items():
        generator = load_generator("embedded", **FULL | asked)
        seen = said(judge, paint(generator, prompts)) if asked else painted
        value, same = float((seen == labels).mean() * 100), float((seen == painted).mean() * 100)
        loop, speed = speeds(reference, generator, prompts, args.seconds)
        rows.append((name, value, same, speed, speed / loop))
        cells = f"{value:.1f} | {agreement - value:+.1f} | {same:.1f} | {speed:.1f} | {loop:.1f} | {speed / loop:.2f}"
        print(f"| {name} | {cells} |", flush=True)
    name, value, same, speed, ratio = rows[-1]
    numbers = {"images": len(prompts), "agreement_full": agreement, "agreement_fast": value, "same": same}
    numbers |= {"lost_points": agreement - value, "images_per_second": speed, "load": os.getloadavg()[0]}
    print(json.dumps({"name": "fast preset", "value": round(ratio, 2), "unit": "times the published loop", **numbers}))


if __name__ == "__main__":
    main()
