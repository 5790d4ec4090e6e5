"""A whole SLCA run against a straightforward implementation of the same mathematics: real images and weights, 2 cores.

    python scripts/real_subsets.py --data BUNDLES --out data/subsets
    python perf/slca_run.py [--subsets data/subsets] [--classes 12] [--images 100] [--epochs 5] [--size 64] [--seeds 3]

CIFAR-100 subset, class-incremental, MobileNetV2 with ImageNet weights. `straightforward` below does what the public
code does, the way it does it: images transformed one by one with Pillow and torchvision in DataLoader workers that are
made anew for each pass; the loss read after each step; class means from a loader a class; one MultivariateNormal a
class and alignment epoch; and its diagnostic passes (accuracy on the training and the seen test images every fifth
epoch, on the seen test images after each alignment epoch). Where in doubt it is spared: pixels lie in memory, no
gradients outside training, two workers instead of eight. Both sides start from the same weights (the heads' included),
class orders and settings, and keep the batch normalisation's statistics (our decision; the papers' networks have none).

Runs alternate, so that other load on the machine meets both; CPU seconds, which such load hardly changes, stand beside.
Last line: JSON; value: the median over seeds of straightforward / ours in seconds (at least 2). About 9 minutes of CPU
time.

Three seeds say little about accuracy: single runs differ by several points (600 test images). `--pairs N` compares
accuracy alone over N seeds of one order, at 30 images a class and 3 epochs; there the straightforward side samples from
factors made once and does without diagnoses, neither of which changes what it learns.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # a waiting thread takes no CPU time that would be counted

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.distributions import MultivariateNormal
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms as tv

from cilkit import backbones, incremental, learners
from cilkit.data import Benchmark, ImageSet, Stream, benchmarks
from cilkit.data.streams import SEEDS
from cilkit.learners.heads import TaskHeads

PARTS = ("training", "statistics", "alignment", "testing", "diagnostics")
WORKERS, EVERY = 2, 5  # loader processes; epochs from one diagnosis of stage 1 to the next
# As params/04_slca/cifar100_subset.yaml; alignment as the paper's code has it.
RUN = {"batch_size": 32, "lr": 0.01, "slow_rate": 0.003, "momentum": 0.9, "weight_decay": 5e-4}
ALIGN = {"align_epochs": 5, "align_per_class": 256, "align_lr": 0.01, "temperature": 0.1}


def cpu_seconds() -> float:
    """Of this process and of the loader processes that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


class Clock:
    """Seconds by part; a part inside another is not counted twice."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self.images: Counter[str] = Counter()
        self._open: list[str] = []
        self._since = self._begin = time.perf_counter()
        self._cpu = cpu_seconds()

    def _turn(self) -> None:
        now = time.perf_counter()
        self.seconds[self._open[-1] if self._open else "training"] += now - self._since
        self._since = now

    @contextmanager
    def __call__(self, part: str):
        self._turn()
        self._open.append(part)
        yield
        self._turn()
        self._open.pop()

    def stop(self) -> dict:
        self._turn()
        total, cpu = time.perf_counter() - self._begin, cpu_seconds() - self._cpu
        return {"total": total, "cpu": cpu, "parts": dict(self.seconds), "images": dict(self.images)}


# ---------------------------------------------------------------- straightforward


class OneByOne(Dataset):
    def __init__(self, images: ImageSet, steps) -> None:
        self.pixels, self.labels, self.steps = images.images(), images.labels, steps

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int):
        return self.steps(Image.fromarray(self.pixels[i])), int(self.labels[i])


def steps_of(backbone, size: int) -> tuple[tv.Compose, tv.Compose]:
    """Training and test transforms: the recipe "timm" at this size."""
    bicubic, short = tv.InterpolationMode.BICUBIC, int(size / backbone.input.crop_pct)
    end = [tv.ToTensor(), tv.Normalize(backbone.mean, backbone.std)]
    train = tv.Compose([tv.RandomResizedCrop(size, interpolation=bicubic), tv.RandomHorizontalFlip(), *end])
    return train, tv.Compose([tv.Resize(short, bicubic), tv.CenterCrop(size), *end])


def learning(network: nn.Module) -> None:
    network.train()
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


@torch.no_grad()
def accuracy(network, heads, loader, clock: Clock, part: str) -> float:
    with clock(part):
        network.eval()
        right = 0
        for images, labels in loader:
            features = network(images)
            logits = torch.cat([head(features) for head in heads], dim=1)
            right += int((logits.argmax(1) == labels).sum())
        clock.images[part] += len(loader.dataset)
        return 100 * right / len(loader.dataset)


@torch.no_grad()
def class_statistics(network, images: ImageSet, steps, clock: Clock) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and unbiased covariance + 1e-4 I of one class, in float64, kept in float32."""
    network.eval()
    loader = DataLoader(OneByOne(images, steps), 64, num_workers=WORKERS)
    features = torch.cat([network(batch) for batch, _ in loader]).double()
    clock.images["statistics"] += len(images)
    return features.mean(0).float(), (features.T.cov() + 1e-4 * torch.eye(features.shape[1])).float()


def aligned_heads(heads, network, means, covariances, sizes, tests, clock: Clock, spared: bool):
    heads = copy.deepcopy(heads).requires_grad_(True)
    count, per_class, tasks = sum(sizes), ALIGN["align_per_class"], np.repeat(np.arange(len(sizes)), sizes)
    momentum, decay = RUN["momentum"], RUN["weight_decay"]
    optimiser = torch.optim.SGD(heads.parameters(), lr=ALIGN["align_lr"], momentum=momentum, weight_decay=decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=ALIGN["align_epochs"])
    factors = [torch.linalg.cholesky(covariance) for covariance in covariances] if spared else []
    for _ in range(ALIGN["align_epochs"]):
        with clock("alignment"):
            samples = []
            for c in range(count):
                mean = means[c] * (0.9 + 0.1 * (tasks[c] + 1) / len(sizes))
                if spared:
                    samples.append(mean + torch.randn(per_class, len(mean)) @ factors[c].T)
                else:
                    samples.append(MultivariateNormal(mean, covariances[c]).sample((per_class,)))
            inputs, labels = torch.cat(samples), torch.arange(count).repeat_interleave(per_class)
            order = torch.randperm(len(labels))
            inputs, labels = inputs[order], labels[order]
            for start in range(0, len(labels), per_class):
                rows = slice(start, start + per_class)
                logits = torch.cat([head(inputs[rows]) for head in heads], dim=1)
                norms = [block.norm(dim=1, keepdim=True) + 1e-7 for block in logits.split(sizes, dim=1)]
                logits = logits / torch.stack(norms).mean(0) / ALIGN["temperature"]
                loss = cross_entropy(logits, labels[rows])
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                loss.item()
            schedule.step()
        if not spared:
            accuracy(network, heads, tests, clock, "diagnostics")
    return heads


def straightforward(stream: Stream, backbone, epochs: int, size: int, seed: int, spared: bool = False) -> dict:
    """spared: without diagnoses, and with factors that are made once: it learns the same, sooner."""
    torch.manual_seed(seed)
    network = backbone.model.to(memory_format=torch.contiguous_format)
    train_steps, test_steps = steps_of(backbone, size)
    heads, means, covariances, sizes, clock = nn.ModuleList(), [], [], [], Clock()
    first = TaskHeads(backbone.dim)  # our heads' initial weights
    for task in stream:
        heads.requires_grad_(False)
        first.grow(len(task.classes), seed, False)
        heads.append(copy.deepcopy(first.current))
        known, _ = sum(sizes), sizes.append(len(task.classes))
        training = DataLoader(OneByOne(task.train, train_steps), RUN["batch_size"], True, num_workers=WORKERS)
        tests = DataLoader(OneByOne(stream.test_after(task), test_steps), RUN["batch_size"], num_workers=WORKERS)
        groups = [
            {"params": heads[-1].parameters(), "lr": RUN["lr"]},
            {"params": network.parameters(), "lr": RUN["lr"] * RUN["slow_rate"]},
        ]
        optimiser = torch.optim.SGD(groups, momentum=RUN["momentum"], weight_decay=RUN["weight_decay"])
        schedule = torch.optim.lr_scheduler.MultiStepLR(optimiser, [epochs - 1], gamma=0.1)
        for epoch in range(epochs):
            learning(network)
            for images, labels in training:
                loss = cross_entropy(heads[-1](network(images)), labels - known)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                loss.item()
            clock.images["training"] += len(task.train)
            schedule.step()
            if (epoch + 1) % EVERY == 0 and not spared:
                accuracy(network, heads, training, clock, "diagnostics")
                accuracy(network, heads, tests, clock, "diagnostics")
        with clock("statistics"):
            for label in task.classes:
                mean, covariance = class_statistics(network, task.train.of_classes([label]), test_steps, clock)
                means.append(mean)
                covariances.append(covariance)
        final = heads
        if len(sizes) > 1:
            final = aligned_heads(heads, network, means, covariances, sizes, tests, clock, spared)
        last = accuracy(network, final, tests, clock, "testing")
    return clock.stop() | {"accuracy": last}


# ---------------------------------------------------------------- ours


def ours(stream: Stream, backbone, epochs: int, size: int, seed: int) -> dict:
    settings = RUN | ALIGN | {"epochs": epochs, "milestones": (epochs - 1,), "recipe": "timm", "image_size": size}
    learner = learners.create("slca", backbone, seed_init=seed, seed_data=seed, **settings)
    clock = Clock()
    for name, part in {"end_task": "statistics", "heads": "alignment", "predict": "testing"}.items():
        setattr(learner, name, timed(getattr(learner, name), clock, part))
    last = incremental.run_stream(learner, stream, None)[-1]
    names = {"student": "training", "statistics": "statistics", "test": "testing"}
    clock.images.update({names[kind]: count for kind, count in backbone.forwarded.items()})
    return clock.stop() | {"accuracy": 100 * float((last.predictions("aligned") == last.labels).mean())}


def timed(method, clock: Clock, part: str):
    def call(*arguments, **named):
        with clock(part):
            return method(*arguments, **named)

    return call


# ---------------------------------------------------------------- accuracy alone


def pairs(count: int, folder: Path, increment: int, classes: int, size: int) -> dict:
    """Last accuracy of both sides over `count` seeds of one order, and the mean difference with its standard error."""
    stream = Stream(subset(folder / "cifar100", classes, 30), SEEDS[0], increment)
    rows = []
    for seed in range(count):
        begin = [backbones.load(folder / "mobilenetv2") for _ in range(2)]
        theirs = straightforward(stream, begin[0], 3, size, seed, spared=True)["accuracy"]
        rows.append([theirs, ours(stream, begin[1], 3, size, seed)["accuracy"]])
        print(f"seed {seed}: straightforward {rows[-1][0]:.2f} %, ours {rows[-1][1]:.2f} %", flush=True)
    scores = np.array(rows)
    difference = scores[:, 1] - scores[:, 0]
    return {
        "name": "slca_run_accuracy",
        "value": round(float(difference.mean()), 2),
        "unit": "points, ours less straightforward",
        "standard_error": round(float(difference.std(ddof=1) / count**0.5), 2),
        "means": [round(float(value), 2) for value in scores.mean(0)],
        "pairs": count,
    }


# ---------------------------------------------------------------- both


def subset(folder: Path, classes: int, per_class: int) -> Benchmark:
    """The first classes, and of each the first training images; pixels in memory."""
    whole = benchmarks.load(f"folder:{folder}")
    names = list(whole.class_names)[:classes]
    train, test = (images.keep_classes(names) for images in (whole.train, whole.test))
    train = train.select(
        np.sort(np.concatenate([np.flatnonzero(train.labels == c)[:per_class] for c in range(classes)]))
    )
    return Benchmark("cifar100 subset", *(ImageSet.from_arrays(s.images(), s.labels, names) for s in (train, test)))


def report(found: dict[str, list[dict]]) -> dict:
    theirs, mine = found["straightforward"], found["ours"]
    print(f"\n| seconds (images forwarded) | {' | '.join(found)} |\n|---|---|---|")
    for part in PARTS:
        cells = []
        for runs in found.values():
            seconds = np.mean([run["parts"].get(part, 0.0) for run in runs])
            images = runs[0]["images"].get(part, 0)
            cells.append(f"{seconds:.1f} ({images:,})" if images else f"{seconds:.1f}")
        print(f"| {part} | {' | '.join(cells)} |")
    for label, key in (("whole run", "total"), ("CPU", "cpu")):
        print(f"| {label} | {' | '.join(f'{np.mean([run[key] for run in runs]):.1f}' for runs in found.values())} |")
    scores = {name: np.array([run["accuracy"] for run in runs]) for name, runs in found.items()}
    difference = scores["ours"] - scores["straightforward"]
    count = len(difference)
    error = {name: values.std(ddof=1) / count**0.5 if count > 1 else float("nan") for name, values in scores.items()}
    cells = " | ".join(f"{scores[name].mean():.2f} ± {error[name]:.2f}" for name in found)
    print(f"| last accuracy, % ± standard error | {cells} |")
    ratio, cpu = (np.array([a[key] / b[key] for a, b in zip(theirs, mine, strict=True)]) for key in ("total", "cpu"))
    without = [
        (a["total"] - a["parts"]["alignment"]) / (b["total"] - b["parts"]["alignment"])
        for a, b in zip(theirs, mine, strict=True)
    ]
    print(
        f"\nstraightforward / ours: {np.median(ratio):.2f} ({ratio.min():.2f} … {ratio.max():.2f}), in CPU time "
        f"{np.median(cpu):.2f}, without alignment {np.median(without):.2f}; accuracy, ours less theirs, by order: "
        + ", ".join(f"{value:+.2f}" for value in difference)
    )
    return {
        "name": "slca_run",
        "value": round(float(np.median(ratio)), 2),
        "unit": "times",
        "cpu_ratio": round(float(np.median(cpu)), 2),
        "without_alignment": round(float(np.median(without)), 2),
        "accuracy": {name: [round(float(v), 2) for v in values] for name, values in scores.items()},
        "standard_error": {name: round(float(value), 2) for name, value in error.items()},
        "within_one_standard_error": bool(abs(difference.mean()) <= max(error.values())),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subsets", type=Path, default=Path("data/subsets"), help="what scripts/real_subsets.py wrote")
    parser.add_argument("--classes", type=int, default=12)
    parser.add_argument("--increment", type=int, default=4)
    parser.add_argument("--images", type=int, default=100, help="training images a class, at most 120")
    parser.add_argument("--epochs", type=int, default=5, help="a task; the paper has 20")
    parser.add_argument("--size", type=int, default=64, help="pixels on a side")
    parser.add_argument("--seeds", type=int, default=3, help="class orders")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=0, help="compare accuracy alone over so many seeds, two or more")
    a = parser.parse_args()
    if not (a.subsets / "cifar100").is_dir():
        raise SystemExit(f"{a.subsets} holds no cifar100; lay it out first: python scripts/real_subsets.py --help")
    torch.set_num_threads(a.threads)
    if a.pairs:
        print(json.dumps(pairs(a.pairs, a.subsets, a.increment, a.classes, a.size)))
        return
    benchmark = subset(a.subsets / "cifar100", a.classes, a.images)
    found: dict[str, list[dict]] = {"straightforward": [], "ours": []}
    for k, order in enumerate(SEEDS[: a.seeds]):
        stream = Stream(benchmark, order_seed=order, increments=a.increment)
        for way in (straightforward, ours) if k % 2 == 0 else (ours, straightforward):
            run = way(stream, backbones.load(a.subsets / "mobilenetv2"), a.epochs, a.size, k)
            found[way.__name__].append(run)
            print(f"order {order} {way.__name__:16s} {run['total']:7.1f} s, {run['accuracy']:.2f} %", flush=True)
    print(f"\n{a.threads} threads of {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, torch {torch.__version__}")
    print(json.dumps(report(found)))


if __name__ == "__main__":
    main()
