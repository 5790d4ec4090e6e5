"""What a GPU makes of a training step and of a whole SLCA run: ViT-B/16, 224 pixels, batch 128, Split CIFAR-100.

    python perf/gpu.py [--out perf/gpu_CARD.md] [--whole]          # under 8 minutes; --whole: about 10
    python perf/gpu.py --tiny                                      # anywhere, in seconds: the same code, toy sizes

1. The card's bf16 rate on the step's own matrix products: every linear layer's (and the patch embedding's) forward
   product, and those of its two gradients, on random numbers, each as often as a step has it.
2. The training step (SLCA's stage 1: forward, loss, backward, SGD) in float32, bf16, and bf16 compiled. Its operations
   are counted on the meta device, attention included; the attention's recomputation is not. Aim: half of 1.
   One step runs under `precision.no_waiting`: it raises where the program waits for the GPU.
3. Preparing training batches on the device.
4. SLCA on Split CIFAR-100's shape (ten tasks, 50,000 training and 10,000 test images of noise: speed, not accuracy):
   all tasks, statistics, alignments and tests are run whole; of the paper's 20 epochs a task two, the first of which
   counts once and the second nineteen times. Aim: 7 minutes.

Weights are random. Nothing is fetched. Last line: JSON; value: the step's share of the card's rate.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from cilkit import backbones, incremental, learners, precision
from cilkit.data import Benchmark, ImageSet, Stream, transforms
from cilkit.learners.base import Batch


@dataclass(frozen=True)
class Scale:
    """Sizes of everything that is measured. epochs: the paper's, and how many of them are run."""

    arch: str = "vit_base_patch16_224"
    size: int = 224
    batch: int = 128
    classes: int = 100
    increment: int = 10
    train_images: int = 500
    test_images: int = 100
    epochs: int = 20
    epochs_run: int = 2
    steps: int = 30
    photograph: int = 300


TINY = Scale("small_vit", 32, 4, 4, 2, 8, 4, 4, 2, 2, 40)
VARIANTS = {"float32": ("float32", False), "bf16": ("bf16", False), "bf16, compiled": ("bf16", True)}
STEP_AIM, RUN_AIM = 0.5, 7.0  # share of the card's rate; minutes


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(work: Callable[[], object], repeats: int, device: torch.device, warm: int = 3) -> float:
    """Of one call, the device's work included."""
    for _ in range(warm):
        work()
    wait(device)
    begin = time.perf_counter()
    for _ in range(repeats):
        work()
    wait(device)
    return (time.perf_counter() - begin) / repeats


# ---------------------------------------------------------------- 1. the card's rate on the step's products


def products(backbone, batch: int, size: int) -> Counter:
    """(rows, inputs, outputs, whether the input needs a gradient) of each linear layer, and how many there are."""
    found: Counter = Counter()

    def linear(module, inputs, output) -> None:
        found[(inputs[0].numel() // module.in_features, module.in_features, module.out_features, True)] += 1

    def patches(module, inputs, output) -> None:
        if module.kernel_size == module.stride:
            found[(output.numel() // module.out_channels, module.weight[0].numel(), module.out_channels, False)] += 1

    model = copy.deepcopy(backbone.model).to("meta")
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.register_forward_hook(linear if isinstance(module, nn.Linear) else patches)
    with torch.no_grad():
        model(torch.empty(batch, 3, size, size, device="meta"))
    return found


def card_rate(shapes: Counter, device: torch.device, repeats: int) -> tuple[float, list[str]]:
    """Operations a second over all products of a step, and a table row a shape."""
    operations, taken, rows = 0.0, 0.0, []
    for (n, inputs, outputs, needs), count in shapes.items():
        x, w, g = (torch.randn(s, device=device).bfloat16() for s in ((n, inputs), (outputs, inputs), (n, outputs)))
        work = {"forward": lambda x=x, w=w: x @ w.T, "weights": lambda g=g, x=x: g.T @ x}
        if needs:
            work["inputs"] = lambda g=g, w=w: g @ w
        each = {name: seconds(call, repeats, device) for name, call in work.items()}
        flops = 2.0 * n * inputs * outputs
        rates = " | ".join(
            f"{flops / each[name] / 1e12:.1f}" if name in each else "" for name in ("forward", "weights", "inputs")
        )
        rows.append(f"| {count} x ({n}, {inputs}) to {outputs} | {rates} |")
        operations += count * flops * len(each)
        taken += count * sum(each.values())
    return operations / taken, rows


# ---------------------------------------------------------------- 2. the training step


def step_operations(backbone, batch: int, size: int) -> int:
    """Of forward and backward pass, counted on the meta device; attention as the products that it stands for."""
    model = copy.deepcopy(backbone.model).to("meta")
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(torch.empty(batch, 3, size, size, device="meta")).sum().backward()
    return counter.get_total_flops()


def learner_of(backbone, scale: Scale, epochs: int):
    """SLCA as the paper has it on CIFAR-100 (see params/04_slca)."""
    settings = {"batch_size": scale.batch, "lr": 0.01, "slow_rate": 0.01, "align_epochs": 5, "temperature": 0.1}
    shown = {"recipe": "slca_cifar", "image_size": scale.size}
    return learners.create("slca", backbone, **settings, **shown, epochs=epochs, milestones=(max(epochs - 2, 1),))


def training_step(learner, task, scale: Scale) -> Callable[[], None]:
    device = learner.backbone.device
    learner.sizes.append(len(task.classes))
    learner.begin_task(task)
    optimiser, _ = learner.optimiser(task)
    learner.backbone.learning(learner.norm_statistics)
    labels = torch.arange(scale.batch, device=device) % len(task.classes)
    batch = Batch(torch.randn(scale.batch, 3, scale.size, scale.size, device=device), labels)

    def step() -> None:
        loss = sum(learner.loss(batch).values())
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()

    return step


def steps(backbone, stream: Stream, scale: Scale, variants: list[str]) -> dict[str, dict]:
    found = {}
    for name in variants:
        how, compiled = VARIANTS[name]
        twin, device, begun = copy.deepcopy(backbone), backbone.device, time.perf_counter()
        step = training_step(learner_of(precision.prepare(twin, how, compiled), scale, 1), next(iter(stream)), scale)
        try:
            for _ in range(3):
                step()
        except Exception as error:  # a compiler that is missing or fails: torch raises many classes for that
            if not compiled:
                raise
            print(f"{name}: not measured: {str(error).strip().splitlines()[0]}")
            continue
        wait(device)
        row = {"first steps": time.perf_counter() - begun}
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        row["seconds"] = seconds(step, scale.steps, device)
        row["bytes"] = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
        if not compiled:
            with precision.no_waiting(device):
                step()
        found[name] = row
        print(f"{name}: {1e3 * row['seconds']:.1f} ms a step", flush=True)
    return found


# ---------------------------------------------------------------- 3. batches, 4. a whole run


def noise(classes: int, per_class: int, size: int, seed: int) -> ImageSet:
    """Noise over a colour a class."""
    random = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), per_class)
    images = random.integers(0, 128, (len(labels), size, size, 3), np.uint8)
    images += np.random.default_rng(0).integers(0, 128, (classes, 1, 1, 3), np.uint8)[labels]
    return ImageSet.from_arrays(images, labels, [f"class {c}" for c in range(classes)])


def preparing(backbone, scale: Scale) -> list[str]:
    rows, generator = [], torch.Generator().manual_seed(0)
    for name, side in (("slca_cifar", 32), ("slca_fine_grained", scale.photograph)):
        recipe = transforms.recipe(name, backbone.input, scale.size)
        pixels = noise(1, scale.batch, side, 0).images()
        taken = seconds(lambda r=recipe, p=pixels: r.train(p, generator, backbone.device), scale.steps, backbone.device)
        rows.append(f"| {name}: {side} to {scale.size} pixels | {1e3 * taken:.2f} | {scale.batch / taken:,.0f} |")
    return rows


def slca_run(backbone, stream: Stream, scale: Scale, epochs: int) -> dict[str, float]:
    """Seconds of the whole run with the paper's epochs, and of its parts."""
    learner, marks, taken = learner_of(backbone, scale, epochs), {}, Counter()

    def timed(name: str, part: str) -> None:
        method = getattr(learner, name)

        def call(*arguments, **named):
            begun = time.perf_counter()
            answer = method(*arguments, **named)
            wait(backbone.device)
            taken[part] += time.perf_counter() - begun
            return answer

        setattr(learner, name, call)

    for name, part in (("end_task", "statistics"), ("heads", "alignments"), ("predict", "tests")):
        timed(name, part)
    begun = time.perf_counter()
    incremental.run_stream(
        learner, stream, None, on_moment=lambda m: marks.update({(m.task.index, m.epoch): time.perf_counter()})
    )
    total = time.perf_counter() - begun
    epoch = sum(marks[task.index, epochs - 1] - marks[task.index, 0] for task in stream) / (epochs - 1)
    taken["tests"] -= taken["alignments"]  # heads are made inside predict
    return {"whole": total + (scale.epochs - epochs) * epoch, "an epoch of all tasks": epoch, **taken}


def card(device: torch.device) -> str:
    if device.type == "cuda":
        facts = torch.cuda.get_device_properties(device)
        return (
            f"{facts.name}, {facts.total_memory / 2**30:.0f} GiB, torch {torch.__version__}, CUDA {torch.version.cuda}"
        )
    return f"CPU, {os.cpu_count()} cores, torch {torch.__version__}"


def table(title: str, columns: str, rows: list[str]) -> list[str]:
    return ["", title, "", f"| {columns} |", "|" + "---|" * (columns.count("|") + 1), *rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="toy sizes, on a CPU too")
    parser.add_argument("--whole", action="store_true", help="all 20 epochs instead of two")
    parser.add_argument("--out", type=Path, help="file for the tables")
    parser.add_argument("--limit", type=float, default=450, help="seconds after which no further SLCA run begins")
    a = parser.parse_args()
    begun, scale = time.perf_counter(), TINY if a.tiny else Scale()
    if not (torch.cuda.is_available() or a.tiny):
        raise SystemExit("no GPU here; --tiny runs the same code at toy size")
    if a.tiny:
        torch.set_num_threads(1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    backbone = backbones.create(scale.arch, seed=0).to(device)
    train, test = (noise(scale.classes, n, 32, seed) for seed, n in enumerate((scale.train_images, scale.test_images)))
    stream = Stream(Benchmark("noise", train, test), order_seed=1993, increments=scale.increment)
    slow = precision.attention_without_sdpa(backbone.model)
    if slow:
        raise SystemExit(f"{slow[0]} does not use SDPA; unset TIMM_FUSED_ATTN")

    rate, shapes = card_rate(products(backbone, scale.batch, scale.size), device, scale.steps)
    operations = step_operations(backbone, scale.batch, scale.size)
    variants = [name for name, (_, compiled) in VARIANTS.items() if not (compiled and a.tiny)]
    measured = steps(backbone, stream, scale, variants)
    share = {name: operations / row["seconds"] / rate for name, row in measured.items()}
    lines = [f"# {card(device)}", "", f"bf16 rate on the step's own products: {rate / 1e12:.1f} TFLOP/s"]
    lines += table("Products, TFLOP/s", "layers | forward | weights' gradient | inputs' gradient", shapes)
    rows = [
        f"| {name} | {1e3 * r['seconds']:.2f} | {scale.batch / r['seconds']:,.0f} | {share[name] * rate / 1e12:.1f} | "
        f"{100 * share[name]:.0f} | {r['bytes'] / 2**30:.1f} | {r['first steps']:.0f} |"
        for name, r in measured.items()
    ]
    title = f"Training step: {scale.arch}, {scale.size} pixels, batch {scale.batch} (aim: {100 * STEP_AIM:.0f} %)"
    lines += table(title, "how | ms | images/s | TFLOP/s | % of that rate | GiB | first steps, s", rows)
    lines += table("Training batches made on the device", "recipe | ms a batch | images/s", preparing(backbone, scale))

    rows, minutes = [], {}
    for name in sorted((name for name in measured if name != "float32"), key=share.get, reverse=True):
        if minutes and time.perf_counter() - begun > a.limit / 2:
            continue
        twin = precision.prepare(copy.deepcopy(backbone), *VARIANTS[name])
        found = slca_run(twin, stream, scale, scale.epochs if a.whole else scale.epochs_run)
        minutes[name] = found["whole"] / 60
        parts = " | ".join(f"{found[p]:.1f}" for p in ("an epoch of all tasks", "statistics", "alignments", "tests"))
        rows.append(f"| {name} | {minutes[name]:.2f} | {parts} |")
        print(f"{name}: SLCA in {minutes[name]:.2f} minutes", flush=True)
    how = (
        "measured whole"
        if a.whole
        else f"{scale.epochs_run} of {scale.epochs} epochs measured, the others counted as the last"
    )
    title = f"SLCA, {scale.classes} classes in tasks of {scale.increment}: {how} (aim: {RUN_AIM:.0f} minutes)"
    lines += table(title, "how | minutes | an epoch, s | statistics, s | alignments, s | tests, s", rows)
    print("\n".join(["", *lines]))
    if a.out:
        a.out.write_text("\n".join(lines) + "\n")
    best = max((name for name in share if name != "float32"), key=share.get)
    line = {"name": "gpu_step", "value": round(share[best], 3), "unit": "of the card's bf16 rate", "how": best}
    line |= {"shares": {name: round(value, 3) for name, value in share.items()}, "card": card(device)}
    line |= {"slca_minutes": {name: round(value, 2) for name, value in minutes.items()}}
    print(json.dumps(line | {"seconds": round(time.perf_counter() - begun)}))


if __name__ == "__main__":
    main()
