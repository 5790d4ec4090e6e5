"""Training images a second at 224 px on this machine's cores: cilkit's cache and batches against a per-image pipeline.

    python perf/input.py [--images 400] [--rounds 5] [--seconds 2]

Originals are JPEGs of 500 x 375 (quality 90), crops of scikit-learn's two photographs, made in a temporary folder. The
per-image pipeline is what papers run: a DataLoader of two workers, Pillow, torchvision's transforms, ToTensor,
Normalize, default collation. Both sides run in turns, so that other load on the machine meets both; the ratio is the
median over the pairs. CPU time an image stands beside it, which such load hardly changes. The second table shows what
`short256` changes in the training images (testing is exact: it begins with the same resize). Last line: JSON.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision import transforms as tv

from cilkit.data import ImageSet, cache, loading, transforms

SIZE, BATCH, WORKERS = 224, 64, 2
HEIGHT, WIDTH = 375, 500
BICUBIC, FLIP = tv.InterpolationMode.BICUBIC, tv.RandomHorizontalFlip()
TARGETS = {"original": 2.5, "short256": 4.0, "square300": None, "cifar32": 1.5}
RECIPES = {"square300": "slca_fine_grained", "cifar32": "slca_cifar"}  # others: slca_imagenet_r


def write_originals(folder: Path, count: int) -> list[str]:
    from sklearn.datasets import load_sample_images

    photos, random = load_sample_images().images, np.random.default_rng(0)
    paths = [str(folder / f"{i:05d}.jpg") for i in range(count)]
    for path in paths:
        photo = photos[random.integers(2)]
        top, left = random.integers(photo.shape[0] - HEIGHT + 1), random.integers(photo.shape[1] - WIDTH + 1)
        crop = photo[top : top + HEIGHT, left : left + WIDTH]
        Image.fromarray(crop[:: random.choice([-1, 1]), :: random.choice([-1, 1])]).save(path, quality=90)
    return paths


class Originals(torch.utils.data.Dataset):
    """Decodes, or takes from memory, and transforms one image a call."""

    def __init__(self, source, steps, mean, std) -> None:
        self.source, self.steps = source, tv.Compose([*steps, tv.ToTensor(), tv.Normalize(mean, std)])

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, i: int):
        one = self.source[i]
        image = Image.open(one).convert("RGB") if isinstance(one, str) else Image.fromarray(one)
        return self.steps(image), 0


def papers_steps(case: str) -> list:
    if case == "square300":
        return [tv.Resize((300, 300), BICUBIC), tv.RandomCrop(SIZE), FLIP]
    crop = [tv.RandomResizedCrop(SIZE, interpolation=BICUBIC), FLIP]
    return [*crop, tv.ColorJitter(brightness=63 / 255)] if case == "cifar32" else crop


def per_image(source, case: str, recipe):
    """Batches without end, and the processes that make them."""
    data = Originals(source, papers_steps(case), recipe.mean, recipe.std)
    sampler = torch.utils.data.RandomSampler(data, replacement=True, num_samples=10**6)
    batches = iter(torch.utils.data.DataLoader(data, BATCH, sampler=sampler, num_workers=WORKERS))
    return batches, [worker.pid for worker in batches._workers]


def ours(images: ImageSet, recipe):
    random, generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
    cuts = [random.integers(len(images), size=BATCH) for _ in range(10**4)]
    return loading.prefetched(images, cuts, lambda pixels, labels: (recipe.train(pixels, generator), labels))


def cpu_seconds(processes: list[int]) -> float:
    """User and system time of these processes so far; not a number where there is no /proc."""
    if not Path("/proc/self/stat").exists():
        return float("nan")
    fields = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in processes]
    return sum(int(field[11]) + int(field[12]) for field in fields) / os.sysconf("SC_CLK_TCK")


def measure(batches, processes: list[int], seconds: float) -> tuple[float, float]:
    """Images a second and CPU milliseconds an image, once the batches made ahead are used up."""
    for _ in range(2 * WORKERS + 2):
        next(batches)
    begin, before, count = time.perf_counter(), cpu_seconds(processes), 0
    while time.perf_counter() - begin < seconds:
        count += len(next(batches)[0])
    return count / (time.perf_counter() - begin), 1e3 * (cpu_seconds(processes) - before) / count


def image_set(case: str, paths: list[str], folder: Path) -> ImageSet:
    if case == "cifar32":
        small = [np.asarray(Image.open(path).resize((32, 32), Image.Resampling.BICUBIC)) for path in paths]
        return ImageSet.from_arrays(np.stack(small), np.zeros(len(paths), int), ["photograph"])
    read, where = (lambda i: Path(paths[i]).read_bytes()), paths.__getitem__
    raw = cache.Raw([Path(path).stem for path in paths], np.zeros(len(paths), int), ["photograph"], read, where)
    cache.build(raw, folder / case, case, announce=lambda text: None)
    return cache.open(folder / case)


def compare(case: str, images: ImageSet, source, rounds: int, seconds: float) -> dict:
    recipe = transforms.recipe(RECIPES.get(case, "slca_imagenet_r"), transforms.Input(SIZE))
    theirs, processes = per_image(source, case, recipe)
    pairs = []
    for _ in range(rounds):
        pairs.append((*measure(theirs, processes, seconds), *measure(ours(images, recipe), [os.getpid()], seconds)))
    theirs._shutdown_workers()
    ratios = [pair[2] / pair[0] for pair in pairs]
    rate, cpu, our_rate, our_cpu = (statistics.median(column) for column in zip(*pairs, strict=True))
    return {
        "per_image": rate,
        "ours": our_rate,
        "ratio": statistics.median(ratios),
        "lowest": min(ratios),
        "highest": max(ratios),
        "per_image_cpu_ms": cpu,
        "ours_cpu_ms": our_cpu,
    }


def short256_changes(whole: ImageSet, short: ImageSet) -> list[dict]:
    """The same draws on originals and on images of short side 256: levels apart, and detail kept, by crop area."""
    recipe, rows = transforms.recipe("slca_imagenet_r", transforms.Input(SIZE)), np.arange(min(len(whole), 256))
    levels = 255 * torch.tensor(recipe.std).view(3, 1, 1)
    crops = [recipe.train(images.read(rows), torch.Generator().manual_seed(0)) * levels for images in (whole, short)]
    plan = recipe.preset.train_plan(whole.sizes[rows].astype(np.int64), SIZE, torch.Generator().manual_seed(0))
    area = torch.from_numpy(plan.crop[:, 2] * plan.crop[:, 3] / (HEIGHT * WIDTH))
    bands = [("up to 1/4", area < 0.25), ("1/4 to 1/2", (area >= 0.25) & (area < 0.5)), ("above 1/2", area >= 0.5)]
    found = [changed(f"training, crops {name} of the area", *(crop[band] for crop in crops)) for name, band in bands]
    tests = [recipe.test(images.read(rows)) * levels for images in (whole, short)]
    return [*found, changed("testing", *tests)]


def changed(what: str, whole: torch.Tensor, short: torch.Tensor) -> dict:
    whole_detail, short_detail = (one.diff(dim=-1).abs().mean() for one in (whole, short))
    difference = (whole - short).abs()
    return {"what": what, "images": len(whole), "mean": difference.mean(), "detail": short_detail / whole_detail}


def report(found: dict[str, dict], changes: list[dict], rounds: int) -> None:
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; medians of {rounds} pairs\n")
    print("| cache | target | ratio (lowest … highest) | images/s: ours | per image | CPU ms: ours | per image |")
    print("|---|---|---|---|---|---|---|")
    for case, row in found.items():
        ratio = f"{row['ratio']:.1f} ({row['lowest']:.1f} … {row['highest']:.1f})"
        rates = f"{row['ours']:.0f} | {row['per_image']:.0f} | {row['ours_cpu_ms']:.2f} | {row['per_image_cpu_ms']:.2f}"
        print(f"| {case} | {TARGETS[case] or '-'} | {ratio} | {rates} |")
    print("\n| short256 against originals | images | mean difference, levels of 255 | detail kept |")
    print("|---|---|---|---|")
    for row in changes:
        print(f"| {row['what']} | {row['images']} | {row['mean']:.2f} | {row['detail']:.3f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="a measurement")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = write_originals(folder, arguments.images)
        sets = {case: image_set(case, paths, folder) for case in TARGETS}
        sources = {case: sets[case].images() if case == "cifar32" else paths for case in TARGETS}
        found = {
            case: compare(case, sets[case], sources[case], arguments.rounds, arguments.seconds) for case in TARGETS
        }
        changes = short256_changes(sets["original"], sets["short256"])
    report(found, changes, arguments.rounds)
    ratios = {case: round(row["ratio"], 2) for case, row in found.items()}
    cpu = {case: round(row["per_image_cpu_ms"] / row["ours_cpu_ms"], 2) for case, row in found.items()}
    line = {"name": "input_speed", "ratio": ratios["short256"], "unit": "times", "ratios": ratios, "cpu_ratios": cpu}
    print(json.dumps(line))


if __name__ == "__main__":
    main()
