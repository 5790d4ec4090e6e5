"""Measure the embedded generator against real digits and against the font renderings it learnt from.

    python scripts/check_generator.py [--generator FOLDER] [--per-class 200] [--card]

Four questions (a table, then one line of JSON; --card writes the numbers into the folder's README.md):
recognised   how often a classifier of REAL digits recognises the painted digits, against how often it recognises
             renderings of the same captions in fonts that the generator never saw (target: ratio >= 0.95);
variance     variance within a class in that classifier's features, against the same renderings (target: >= 0.80);
transfer     accuracy on real digits of a net trained on painted digits minus that of a net trained on renderings of
             the same captions in the generator's own training fonts, in points (target: >= -5);
speed        see perf/synthesis.py.
Real digits: scikit-learn's scans at random place and scale, blended by absolute difference into crops of scikit-learn's
two photographs or into smooth colour fields, 32 x 32; the classifier's scans and the test's are different ones.
About 8 minutes on one thread, most of it painting.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from cilkit.synthesis import glyphs

DIGITS = [name for name in glyphs.CONCEPTS if name.startswith("digit ")]


def real_digits(scans: np.ndarray, labels: np.ndarray, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """`count` blended real digits: uint8 (count, 32, 32, 3) and labels. `scans` float (n, 8, 8) in [0, 1]."""
    from sklearn.datasets import load_sample_images

    rng = np.random.default_rng(seed)
    photos = [photo.astype(np.float32) / 255.0 for photo in load_sample_images().images]
    index = rng.integers(len(scans), size=count)
    images = np.empty((count, glyphs.SIZE, glyphs.SIZE, 3), np.uint8)
    for row, i in enumerate(index):
        size = int(rng.integers(20, 33))
        grey = Image.fromarray(scans[i].astype(np.float32)).resize((size, size), Image.Resampling.BICUBIC)
        top, left = rng.integers(0, glyphs.SIZE - size + 1, 2)
        scan = np.zeros((glyphs.SIZE, glyphs.SIZE, 1), np.float32)
        scan[top : top + size, left : left + size, 0] = np.clip(grey, 0.0, 1.0)
        if rng.random() < 0.5:
            photo = photos[rng.integers(2)]
            y, x = rng.integers(photo.shape[0] - glyphs.SIZE), rng.integers(photo.shape[1] - glyphs.SIZE)
            ground = photo[y : y + glyphs.SIZE, x : x + glyphs.SIZE]
        else:
            ground = glyphs.ground(glyphs.draw_style(rng), rng)
        images[row] = np.round(255 * np.abs(ground - scan))
    return images, labels[index]


class Net(nn.Module):
    """A small convnet; `features` are its penultimate activations (batch, 96)."""

    def __init__(self):
        super().__init__()
        widths = (3, 24, 48, 96)
        block = lambda a, b: [nn.Conv2d(a, b, 3, 1, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU()]  # noqa: E731
        body = []
        for a, b in zip(widths, widths[1:], strict=False):
            body += [*block(a, b), *block(b, b), nn.MaxPool2d(2)]
        self.body, self.head = nn.Sequential(*body), nn.Linear(widths[-1], 10)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x).amax((2, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(x))


def to_tensor(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1.0


def fit(images: np.ndarray, labels: np.ndarray, epochs: int, seed: int) -> Net:
    """AdamW, one-cycle learning rate, random shifts by two pixels and inversions of the brightness."""
    torch.manual_seed(seed)
    net, x, y = Net(), to_tensor(images), torch.from_numpy(labels)
    random = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(net.parameters(), 3e-3, weight_decay=0.05)
    steps = epochs * (len(x) // 64)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=steps)
    for _ in range(epochs):
        for index in torch.randperm(len(x), generator=random)[: len(x) // 64 * 64].split(64):
            top, left = torch.randint(0, 5, (2,), generator=random).tolist()
            batch = F.pad(x[index], (2, 2, 2, 2), mode="reflect")[:, :, top : top + 32, left : left + 32]
            sign = 1 - 2 * torch.randint(0, 2, (len(index), 1, 1, 1), generator=random)
            optimiser.zero_grad()
            F.cross_entropy(net(batch * sign), y[index], label_smoothing=0.05).backward()
            optimiser.step()
            cycle.step()
    return net.eval()


@torch.no_grad()
def evaluate(net: Net, images: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Accuracy in per cent, and the variance within a class: the trace of the features' covariance, mean of classes."""
    features = torch.cat([net.features(part) for part in to_tensor(images).split(250)])
    accuracy = (net.head(features).argmax(1).numpy() == labels).mean() * 100
    variances = [features[torch.from_numpy(labels == c)].var(0).sum().item() for c in range(10)]
    return float(accuracy), float(np.mean(variances))


def load_pipeline(folder: Path):
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()  # long captions are cut, which is meant
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline, json.loads((folder / "paintable.json").read_text())["settings"]


def paint(pipeline, settings: dict, prompts: list[str], seed: int) -> np.ndarray:
    """Painted images uint8 (n, 32, 32, 3), one seed an image."""
    images = []
    for start in range(0, len(prompts), settings["batch_size"]):
        part = prompts[start : start + settings["batch_size"]]
        seeds = [torch.Generator().manual_seed(seed * 1_000_003 + start + k) for k in range(len(part))]
        made = pipeline(
            part,
            height=settings["size"],
            width=settings["size"],
            num_inference_steps=settings["steps"],
            guidance_scale=settings["guidance"],
            generator=seeds,
            output_type="np",
        ).images
        images.append(np.round(255 * made).astype(np.uint8))
    return np.concatenate(images)


def same_captions(per_class: int, seed: int) -> tuple[list[str], np.ndarray, np.ndarray, np.ndarray]:
    """Prompts, their labels, and their renderings in held-out and in training fonts."""
    prompts, held_out, trained_on = [], [], []
    for label, name in enumerate(DIGITS):
        for k in range(per_class):
            rng = np.random.default_rng([seed, label, k])
            style = glyphs.draw_style(rng)
            prompts.append(glyphs.caption(name, style, rng))
            held_out.append(glyphs.render(name, rng, style=style, fonts=glyphs.HELD_OUT_FONTS))
            trained_on.append(glyphs.render(name, rng, style=style))
    labels = np.repeat(np.arange(10), per_class)
    return prompts, labels, np.stack(held_out), np.stack(trained_on)


def measure(folder: Path, per_class: int, repeats: int) -> dict[str, float]:
    """All numbers, for the table and the card."""
    from sklearn.datasets import load_digits

    scans = load_digits()
    pixels, targets = scans.images / 16.0, scans.target
    order = np.random.default_rng(0).permutation(len(pixels))
    judge_scans, test_scans = order[:1200], order[1200:]
    judge = fit(*real_digits(pixels[judge_scans], targets[judge_scans], 8000, 1), epochs=8, seed=1)
    test = real_digits(pixels[test_scans], targets[test_scans], 2000, 2)
    prompts, labels, held_out, trained_on = same_captions(per_class, seed=3)
    pipeline, settings = load_pipeline(folder)
    painted = paint(pipeline, settings, prompts, seed=4)
    numbers = {"judge on real digits, %": evaluate(judge, *test)[0], "painted images": float(len(painted))}
    (numbers["recognised, painted, %"], variance) = evaluate(judge, painted, labels)
    (numbers["recognised, held-out fonts, %"], reference) = evaluate(judge, held_out, labels)
    numbers["recognised, ratio"] = numbers["recognised, painted, %"] / numbers["recognised, held-out fonts, %"]
    numbers["recognised, training fonts, %"] = evaluate(judge, trained_on, labels)[0]
    numbers["variance, ratio"] = variance / reference
    scores = {"painted": [], "renderings": []}
    for k in range(repeats):
        for name, images in (("painted", painted), ("renderings", trained_on)):
            scores[name].append(evaluate(fit(images, labels, epochs=12, seed=10 + k), *test)[0])
    numbers["real test after training on painted, %"] = float(np.mean(scores["painted"]))
    numbers["real test after training on renderings, %"] = float(np.mean(scores["renderings"]))
    numbers["transfer, points"] = float(np.mean(scores["painted"]) - np.mean(scores["renderings"]))
    return numbers


def write_card(folder: Path, rows: list[str]) -> None:
    """Put the table between the card's two markers."""
    card = folder / "README.md"
    head, rest = card.read_text().split("<!-- measured -->\n")
    tail = rest.split("<!-- end -->")[1]
    card.write_text(f"{head}<!-- measured -->\n" + "\n".join(rows) + f"\n<!-- end -->{tail}")


def main() -> None:
    here = Path(__file__).resolve().parents[1]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generator", type=Path, default=here / "cilkit" / "assets" / "generator")
    parser.add_argument("--per-class", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=3, help="nets trained for the transfer figure, each side")
    parser.add_argument("--card", action="store_true", help="write the numbers into the model card")
    args = parser.parse_args()
    numbers = measure(args.generator, args.per_class, args.repeats)
    rows = ["| measured by scripts/check_generator.py | value |", "|---|---|"]
    rows += [f"| {name} | {value:.3f} |" for name, value in numbers.items()]
    print("\n".join(rows))
    if args.card:
        write_card(args.generator, rows)
    ratio = round(numbers["recognised, ratio"], 3)
    print(json.dumps({"name": "generator recognised", "value": ratio, "unit": "of held-out fonts", **numbers}))


if __name__ == "__main__":
    main()
